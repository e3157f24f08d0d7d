//! Hooks, told by a real engine: to a server of ours, to programs, once, and again after `kill -9`.
//! Must not reach any host but this one.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use ring::hmac;
use rustix::process::Pid;
use serde_json::Value;

use super::world::{TestWorld, ended};

const PATIENCE: Duration = Duration::from_secs(30);
const SECRET: &str = "correct-horse-battery-staple";
const QUICK: &str = "[limits]\nnotify_retry_ms = 5\n";

struct Heard {
    line: String,
    head: Vec<String>,
    body: Vec<u8>,
    answered: u16,
}

impl Heard {
    fn header(&self, name: &str) -> Option<&str> {
        let start = format!("{name}: ");
        let line = self.head.iter().find(|line| line.starts_with(&start))?;
        line.strip_prefix(&start)
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A server that answers everything with the status it is set to.
struct Listener {
    url: String,
    status: Arc<AtomicU16>,
    heard: Receiver<Heard>,
}

impl Listener {
    fn new(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let status = Arc::new(AtomicU16::new(status));
        let (tell, heard) = channel();
        let answers = Arc::clone(&status);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // One that is cut off in the middle is no request.
                if serve(&stream, &answers, &tell).is_none() && tell_is_over(&tell) {
                    return;
                }
            }
        });
        Self { url, status, heard }
    }

    fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    #[track_caller]
    fn next(&self) -> Heard {
        self.heard.recv_timeout(PATIENCE).unwrap()
    }

    /// The next that is taken; tries that were refused come before it.
    #[track_caller]
    fn taken(&self) -> Heard {
        loop {
            let heard = self.next();
            if heard.answered == 200 {
                return heard;
            }
        }
    }
}

/// The test has ended.
fn tell_is_over(tell: &Sender<Heard>) -> bool {
    let probe = Heard {
        line: "cut off".into(),
        head: Vec::new(),
        body: Vec::new(),
        answered: 0,
    };
    tell.send(probe).is_err()
}

fn serve(stream: &TcpStream, answers: &AtomicU16, tell: &Sender<Heard>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let length = lines
        .iter()
        .find_map(|line| line.strip_prefix("content-length: "))?;
    let mut body = vec![0; length.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    let answered = answers.load(Ordering::SeqCst);
    let heard = Heard {
        line: lines.remove(0),
        head: lines,
        body,
        answered,
    };
    let answer = format!("HTTP/1.1 {answered} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let mut out = stream;
    out.write_all(answer.as_bytes()).ok()?;
    tell.send(heard).ok()
}

fn secret_file(world: &TestWorld) -> String {
    let path = world.path("person/secret");
    fs::write(&path, format!("{SECRET}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

/// Its configuration names a file that lies in the world.
fn with_webhook(url: &str, more: &str) -> TestWorld {
    let world = TestWorld::new();
    let hook = format!(
        "{QUICK}[notify.web]\nkind = \"webhook\"\nurl = \"{url}/hook\"\n\
         secret = {{ file = {:?} }}\n{more}\n",
        secret_file(&world)
    );
    add_config(&world, &hook);
    world
}

fn add_config(world: &TestWorld, more: &str) {
    let path = world.home().join("dispatch.toml");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(path, format!("{config}{more}")).unwrap();
}

fn nothing_below(dir: &Path, word: &str) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap();
        if kind.is_dir() {
            nothing_below(&path, word);
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap();
            let found = bytes.windows(word.len()).any(|w| w == word.as_bytes());
            assert!(!found, "{}", path.display());
        }
    }
}

#[test]
fn a_webhook_is_told_once_signed_and_in_order() {
    let server = Listener::new(200);
    let world = with_webhook(&server.url, "on = [\"completed\", \"blocked\"]");
    let done = world.detach(&["x\n> write out.txt hi"]);
    world.dispatch(&["wait", &done]).exits(0);
    // Nobody asked to be told of this one.
    let failed = world.detach(&["y\n> say a"]);
    world.dispatch(&["wait", &failed]).exits(1);
    let first = server.taken();
    assert_eq!(first.line, "POST /hook HTTP/1.1");
    let told = first.json();
    assert_eq!(
        (&told["on"], &told["hook"]),
        (&"completed".into(), &"web".into())
    );
    assert_eq!(told["task"]["id"], done[..]);
    assert_eq!(told["task"]["state"], "completed");
    assert_eq!(first.header("x-dispatch-delivery"), told["id"].as_str());
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let tag = hmac::sign(&key, &first.body);
    let hex: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    let signed = format!("sha256={hex}");
    assert_eq!(first.header("x-dispatch-signature"), Some(&signed[..]));

    // Another engine goes on where this one was.
    world.shut_down();
    let asked = world.detach(&["z\n> ask Which one?"]);
    world.dispatch(&["wait", &asked]).exits(3);
    let second = server.taken().json();
    assert_eq!(second["on"], "blocked");
    assert_eq!(second["task"]["id"], asked[..]);
    assert!(
        second["task"]["question"]
            .as_str()
            .unwrap()
            .contains("Which one?")
    );
    assert!(second["seq"].as_u64() > told["seq"].as_u64());
    world.shut_down();
    assert!(server.heard.try_recv().is_err(), "something came twice");
    let found = world.dispatch(&["doctor"]);
    found.says(&["notify web", "webhook, told up to event"]);
    nothing_below(&world.home(), SECRET);
}

#[test]
fn what_was_not_taken_is_told_by_the_next_engine_after_a_kill() {
    let server = Listener::new(503);
    let world = with_webhook(&server.url, "on = [\"failed\"]");
    let config = world.home().join("dispatch.toml");
    let text = fs::read_to_string(&config).unwrap();
    let patient = text.replace(QUICK, "[limits]\nnotify_retry_ms = 60000\n");
    fs::write(&config, patient).unwrap();
    let failed = world.detach(&["x\n> say a"]);
    let refused = server.next();
    assert_eq!(refused.answered, 503);
    world.kill_engine();
    server.answer(200);
    world.dispatch(&["thaw"]).exits(0);
    let taken = server.taken();
    assert_eq!(taken.json()["task"]["id"], failed[..]);
    let id = |heard: &Heard| heard.header("x-dispatch-delivery").map(str::to_owned);
    assert_eq!(id(&taken), id(&refused), "the same notice, so the same id");

    let again = world.detach(&["y\n> say a"]);
    assert_eq!(server.taken().json()["task"]["id"], again[..]);
    world.kill_engine();
    world.dispatch(&["thaw"]).exits(0);
    let third = world.detach(&["z\n> say a"]);
    // Most often nothing is told twice; what is, has the same id.
    let next = server.taken();
    let told = next.json()["task"]["id"].as_str().unwrap().to_owned();
    assert!(told == third || told == again, "{told}");
    world.shut_down();
    world.dispatch(&["doctor"]).says(&["told up to event"]);
}

#[test]
fn a_hook_that_stays_broken_is_given_up_and_says_so_once() {
    let server = Listener::new(500);
    let world = with_webhook(&server.url, "on = [\"failed\"]");
    for _ in 0..2 {
        let id = world.detach(&["x\n> say a"]);
        world.dispatch(&["wait", &id]).exits(1);
    }
    let tries = 2 * 6;
    for _ in 0..tries {
        assert_eq!(server.next().answered, 500);
    }
    server.answer(200);
    let id = world.detach(&["z\n> say a"]);
    assert_eq!(server.taken().json()["task"]["id"], id[..]);
    world.shut_down();
    let log = fs::read_to_string(world.home().join("data/engine.log")).unwrap();
    assert_eq!(log.matches("it answered 500").count(), 1, "{log}");
    assert!(log.contains("delivers again"), "{log}");
    world.dispatch(&["doctor"]).says(&["2 dropped so far"]);
}

#[test]
fn ntfy_gets_a_text_under_its_topic() {
    let server = Listener::new(200);
    let world = TestWorld::new();
    add_config(
        &world,
        &format!(
            "[notify.phone]\nkind = \"ntfy\"\non = [\"completed\"]\nurl = \"{}/\"\n\
             topic = \"mine\"\ntoken = {{ file = {:?} }}\nagents = [\"scripted\"]\n",
            server.url,
            secret_file(&world)
        ),
    );
    let sent = world
        .dispatch(&["notify", "test", "phone", "--json"])
        .exits(0);
    assert_eq!(sent.json()["kind"], "ntfy");
    let heard = server.taken();
    assert_eq!(heard.line, "POST /mine HTTP/1.1");
    assert_eq!(
        heard.header("authorization"),
        Some(&format!("Bearer {SECRET}")[..])
    );
    let id = world.detach(&["Tidy ünder the stairs\n> write out.txt hi"]);
    let heard = server.taken();
    let title = heard.header("title").unwrap();
    assert!(
        title.starts_with("dispatch: ") && title.ends_with(" completed"),
        "{title}"
    );
    assert!(id.starts_with(title.split(' ').nth(1).unwrap()));
    let text = String::from_utf8(heard.body).unwrap();
    assert!(text.starts_with("Tidy ünder the stairs"), "{text}");

    let unknown = world.dispatch(&["notify", "test", "nobody"]).exits(2);
    unknown.says(&["there are phone"]);
    server.answer(403);
    let refused = world.dispatch(&["notify", "test", "phone"]).exits(1);
    refused.says(&["it answered 403"]);
    fs::remove_file(world.path("person/secret")).unwrap();
    let absent = world.dispatch(&["notify", "test", "phone"]).exits(1);
    absent.says(&["take the token of the hook"]);
}

#[test]
fn a_command_gets_the_notice_and_its_group_ends_with_its_time() {
    let world = TestWorld::new();
    let (told, pid) = (world.path("told"), world.path("pid"));
    let take = format!("cat > {0}.new && mv {0}.new {0}", told.display());
    let hang = format!("echo $$ > {}; sleep 600 & wait", pid.display());
    add_config(
        &world,
        &format!(
            "[limits]\nnotify_wall_clock_s = 1\n\
             [notify.mine]\nkind = \"command\"\non = [\"completed\"]\ncommand = [\"sh\", \"-c\", {take:?}]\n\
             [notify.hang]\nkind = \"command\"\non = [\"lost\"]\ncommand = [\"sh\", \"-c\", {hang:?}]\n\
             [notify.none]\nkind = \"command\"\non = [\"lost\"]\ncommand = [\"no-such-program\"]\n"
        ),
    );
    let id = world.detach(&["x\n> write out.txt hi"]);
    world.dispatch(&["wait", &id]).exits(0);
    let engine = world.engine().unwrap();
    // It leaves when it has nothing to do, and that is after the notice.
    ended(engine);
    let notice: Value = serde_json::from_slice(&fs::read(&told).unwrap()).unwrap();
    assert_eq!(notice["task"]["id"], id[..]);

    let slow = world.dispatch(&["notify", "test", "hang"]).exits(1);
    slow.says(&["deliver within 1 s"]);
    let shell = fs::read_to_string(pid).unwrap();
    ended(Pid::from_raw(shell.trim().parse().unwrap()).unwrap());
    let none = world.dispatch(&["notify", "test", "none"]).exits(1);
    none.says(&["run no-such-program"]);
}

#[test]
fn the_desktop_is_told_by_its_own_program() {
    let world = TestWorld::new();
    add_config(
        &world,
        "[notify.desk]\nkind = \"desktop\"\non = [\"blocked\"]\n",
    );
    let bin = world.path("bin");
    fs::create_dir(&bin).unwrap();
    let args = world.path("args");
    let program = bin.join("notify-send");
    let script = format!("#!/bin/sh\nprintf '%s\\n' \"$@\" > {}\n", args.display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    world
        .dispatch_with(&[("PATH", &path)], &["notify", "test", "desk"])
        .exits(0);
    let got = fs::read_to_string(&args).unwrap();
    assert_eq!(
        got,
        "--app-name=dispatch\n--\ndispatch: a test\nThe hook desk of Dispatch works.\n"
    );
    let empty = world.path("person").display().to_string();
    let none = world.dispatch_with(&[("PATH", &empty)], &["notify", "test", "desk"]);
    none.exits(1).says(&["libnotify-bin"]);
}

#[test]
fn an_engine_for_one_task_tells_of_it_before_it_ends() {
    let server = Listener::new(200);
    let world = with_webhook(&server.url, "on = [\"failed\"]");
    world.dispatch(&["run", "--here", "x\n> say a"]).exits(1);
    assert_eq!(world.engine(), None);
    assert_eq!(server.taken().json()["on"], "failed");
}

#[test]
fn a_repository_cannot_make_a_hook() {
    let world = TestWorld::new();
    let hook = "[notify.x]\nkind = \"command\"\non = [\"completed\"]\ncommand = [\"true\"]\n";
    fs::write(world.repo().join("dispatch.toml"), hook).unwrap();
    world.commit();
    let refused = world.dispatch(&["run", "x\n> write out.txt hi"]).exits(2);
    refused.says(&["notify.x", "a repository may not set it"]);
}
