//! Measures the door for programs: `bench-http DISPATCH [OPENCODE]`. Requests per second beside a server
//! that hands out the same bytes and knows nothing, a start with a long log beside one with none, and
//! another dispatcher's server beside ours; in turns, so that what else the machine does falls on both.
//! Must not assert, and must not be run beside other work: it measures.
#![expect(clippy::print_stdout, reason = "figures are printed")]

#[path = "bench/rival.rs"]
mod rival;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use dispatch_core::{
    drivers::DriverKind,
    event::{Event, Kind, Subject, Verified},
    id::{RunId, TaskId},
    outcome::Outcome,
    run::RunCause,
    task::{Base, ChecksAsked, Expects, Labels, Placement, TaskSpec, Terms, Turn, Wrap},
};
use dispatch_engine::store::Store;

const TASKS: u64 = 10_000;
/// Of each; all of them are folded.
const EVENTS_EACH: u64 = 10;
const STARTS: usize = 9;
const ROUNDS: usize = 7;
/// Requests of a round, over all connections.
const ASKED: usize = 400;
const CONNECTIONS: usize = 8;
const HEAD_BYTES_MAX: usize = 16 << 10;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (dispatch, opencode) = match args.as_slice() {
        [dispatch] => (dispatch, None),
        [dispatch, opencode] => (dispatch, Some(opencode)),
        _ => bail!("bench-http DISPATCH [OPENCODE]"),
    };
    let place = std::env::temp_dir().join(format!("bench-http-{}", std::process::id()));
    let (full, empty) = (place.join("full"), place.join("empty"));
    for home in [&full, &empty] {
        fs::create_dir_all(home.join("data"))?;
        fs::write(home.join("dispatch.toml"), "")?;
    }
    history(&full.join("data"))?;
    let program = PathBuf::from(dispatch);
    starts(&program, &full, &empty)?;
    requests(&program, &full)?;
    match opencode {
        Some(opencode) => rival::beside(&program, Path::new(opencode), &place)?,
        None => println!("SKIPPED: opencode serve beside ours: it is not installed"),
    }
    fs::remove_dir_all(place)?;
    Ok(())
}

fn now_ms() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(now.as_millis())?)
}

/// Tasks that have ended, each with the events of a run.
fn history(data: &Path) -> Result<()> {
    let mut store = Store::open(data)?;
    let (at, mut seq) = (now_ms()?, 0);
    let mut events = Vec::new();
    for n in 0..TASKS {
        let task = TaskId::from_bits((n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let run = RunId { task, n: 1 };
        let noted = |text: &str| Kind::Noted { text: text.into() };
        let outcome = Outcome::Completed {
            summary: "The test passes now; the parser forgot the last line.".into(),
        };
        let kinds = [
            (
                Subject::Task(task),
                Kind::TaskCreated {
                    spec: Box::new(spec(n)?),
                    short: format!("{task}").chars().take(6).collect(),
                },
            ),
            (
                Subject::Run(run),
                Kind::RunQueued {
                    cause: RunCause::Dispatched,
                },
            ),
            (Subject::Run(run), Kind::Admitted),
            (
                Subject::Run(run),
                Kind::Started {
                    site: "local".parse()?,
                    driver: DriverKind::Plain,
                    enforced: "cage: mounts, network, seccomp".into(),
                },
            ),
            (
                Subject::Run(run),
                Kind::SessionSeen {
                    session: format!("session-{n}"),
                },
            ),
            (
                Subject::Task(task),
                noted("the base commit is two days old"),
            ),
            (Subject::Task(task), noted("no check was found")),
            (Subject::Task(task), noted("history was not rewritten")),
            (Subject::Run(run), Kind::Adopted),
            (
                Subject::Run(run),
                Kind::Finished {
                    outcome,
                    verified: Verified::NotVerified,
                },
            ),
        ];
        for (subject, kind) in kinds {
            seq += 1;
            events.push(Event {
                seq,
                at,
                subject,
                kind,
            });
        }
    }
    anyhow::ensure!(seq == TASKS * EVENTS_EACH, "{seq} events");
    store.append(&events)?;
    Ok(())
}

fn spec(n: u64) -> Result<TaskSpec> {
    Ok(TaskSpec {
        title: format!("Fix the failing test {n} in parser.rs"),
        text: format!("Fix the failing test {n} in parser.rs, and say what was wrong with it.\n"),
        repo: format!("/home/me/src/project-{}", n % 40),
        base: Base::Head,
        agent: "codex".parse()?,
        pool: "openai".parse()?,
        placement: Placement::of(Wrap::Cage),
        expects: Expects::Change,
        checks: ChecksAsked::Detect,
        review_base: None,
        workspace: None,
        turn: Turn::default(),
        parent: None,
        labels: Labels::default(),
        terms: Terms::default(),
        limits: dispatch_core::limits::Lowered::default(),
        guide: Default::default(),
    })
}

/// An engine that listens.
struct Serving {
    child: Child,
    address: SocketAddr,
    token: String,
}

impl Serving {
    fn begin(program: &Path, home: &Path, token: &str) -> Result<Self> {
        let mut child = Command::new(program)
            .args(["serve", "--listen", "127.0.0.1:0", "--json"])
            .env("DISPATCH_HOME", home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        let out = child.stdout.take().context("a pipe")?;
        BufReader::new(out).read_line(&mut line)?;
        let said: serde_json::Value = serde_json::from_str(&line)?;
        let url = said["url"].as_str().context("a url")?;
        let address = url
            .strip_prefix("http://")
            .context("a plain one")?
            .parse()?;
        Ok(Self {
            child,
            address,
            token: token.to_owned(),
        })
    }

    fn end(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

fn token(program: &Path, home: &Path) -> Result<String> {
    let made = Command::new(program)
        .args(["token", "new", "--scope", "read"])
        .env("DISPATCH_HOME", home)
        .output()?;
    anyhow::ensure!(made.status.success(), "dispatch token: {made:?}");
    Ok(String::from_utf8(made.stdout)?.trim().to_owned())
}

/// One connection that is asked again and again.
struct Client {
    stream: BufReader<TcpStream>,
    request: Vec<u8>,
}

impl Client {
    fn new(address: SocketAddr, token: &str, path: &str) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\r\n"
        );
        Ok(Self {
            stream: BufReader::new(stream),
            request: request.into_bytes(),
        })
    }

    /// The body of one answer.
    fn ask(&mut self) -> Result<Vec<u8>> {
        self.stream.get_mut().write_all(&self.request)?;
        let (mut line, mut length, mut head) = (String::new(), 0, 0);
        loop {
            line.clear();
            head += self.stream.read_line(&mut line)?;
            anyhow::ensure!(head <= HEAD_BYTES_MAX && !line.is_empty(), "no answer");
            if line == "\r\n" {
                break;
            }
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            let bad = line.starts_with("HTTP/") && !line.contains(" 200 ");
            anyhow::ensure!(!bad, "{line}");
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(body)
    }
}

fn starts(program: &Path, full: &Path, empty: &Path) -> Result<()> {
    let tokens = [token(program, full)?, token(program, empty)?];
    let (mut long, mut short) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        for (home, token, samples) in [
            (full, &tokens[0], &mut long),
            (empty, &tokens[1], &mut short),
        ] {
            let begun = Instant::now();
            let serving = Serving::begin(program, home, token)?;
            Client::new(serving.address, token, "/v1/tasks?limit=1")?.ask()?;
            samples.push(begun.elapsed().as_secs_f64() * 1000.0);
            serving.end()?;
        }
    }
    let name = format!(
        "start to the first answered request, {} events",
        TASKS * EVENTS_EACH
    );
    let with = figure(&name, long, "ms");
    let without = figure("the same with an empty log", short, "ms");
    println!("ratio: {:.2}", with / without);
    Ok(())
}

/// Hands out the same bytes to whoever asks, as fast as it can.
fn baseline(body: Arc<Vec<u8>>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let serve = move |stream: TcpStream| -> Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        let answer = [head.as_bytes(), &body].concat();
        let mut line = String::new();
        loop {
            line.clear();
            if stream.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line == "\r\n" {
                stream.get_mut().write_all(&answer)?;
            }
        }
    };
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            thread::spawn(move || serve(stream).is_ok());
        }
    });
    Ok(address)
}

fn requests(program: &Path, home: &Path) -> Result<()> {
    let token = token(program, home)?;
    let serving = Serving::begin(program, home, &token)?;
    for (name, path, asked) in [
        ("health", "/v1/health", ASKED * 10),
        ("one page of 100 tasks", "/v1/tasks?limit=100", ASKED),
        ("the last page of 100", &last_page(&serving)?, ASKED),
        ("what is queued (nothing)", "/v1/tasks?state=queued", ASKED),
        ("a page of 1000", "/v1/tasks", ASKED / 10),
    ] {
        let body = Client::new(serving.address, &token, path)?.ask()?;
        let bytes = body.len();
        let other = baseline(Arc::new(body))?;
        for connections in [1, CONNECTIONS] {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                ours.push(rate(serving.address, &token, path, asked, connections)?);
                theirs.push(rate(other, &token, path, asked, connections)?);
            }
            let name = format!(
                "{name} of {TASKS} ({} kB), {connections} connection(s)",
                bytes / 1000
            );
            let ours = figure(&name, ours, "requests/s");
            let theirs = figure(
                "  a server that only hands out these bytes",
                theirs,
                "requests/s",
            );
            println!("  ratio: {:.3}", ours / theirs);
        }
    }
    serving.end()
}

/// Where the last hundred begin.
fn last_page(serving: &Serving) -> Result<String> {
    let mut after = String::new();
    for _ in 0..TASKS / 1000 {
        let path = format!("/v1/tasks?limit=1000{after}");
        let page = Client::new(serving.address, &serving.token, &path)?.ask()?;
        let tasks: Vec<serde_json::Value> = serde_json::from_slice(&page)?;
        let id = tasks.get(899).or(tasks.last());
        let id = id.and_then(|task| task["id"].as_str()).context("a task")?;
        after = format!("&after={id}");
        if tasks.len() < 1000 {
            break;
        }
    }
    Ok(format!("/v1/tasks?limit=100{after}"))
}

fn rate(
    address: SocketAddr,
    token: &str,
    path: &str,
    asked: usize,
    connections: usize,
) -> Result<f64> {
    let begun = Instant::now();
    let threads: Vec<_> = (0..connections)
        .map(|_| {
            let (token, path) = (token.to_owned(), path.to_owned());
            thread::spawn(move || -> Result<()> {
                let mut client = Client::new(address, &token, &path)?;
                for _ in 0..asked / connections {
                    client.ask()?;
                }
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        match thread.join() {
            Ok(done) => done?,
            Err(_) => bail!("a client panicked"),
        }
    }
    Ok(asked as f64 / begun.elapsed().as_secs_f64())
}

/// Median, least, most.
fn figure(name: &str, mut samples: Vec<f64>, unit: &str) -> f64 {
    samples.sort_by(f64::total_cmp);
    let at = |index: usize| samples.get(index).copied().unwrap_or(f64::NAN);
    let median = at(samples.len() / 2);
    println!(
        "{name}: {median:.1} {unit} ({:.1} to {:.1}, n = {})",
        at(0),
        at(samples.len().saturating_sub(1)),
        samples.len()
    );
    median
}
