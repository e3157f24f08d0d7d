//! A world for one test: a home of its own, a git repository, agents without a model.
//! Must not end a process that it did not start, and must not know one by its name.

use std::{
    cell::RefCell,
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use serde_json::Value;
use tempfile::TempDir;

const DISPATCH: &str = env!("CARGO_BIN_EXE_dispatch");
/// No test waits that long; one that would has found a bug.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// Standard output is one JSON value and nothing else.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        match serde_json::from_str(&self.out) {
            Ok(value) => value,
            Err(error) => panic!("{error}: {self:#?}"),
        }
    }

    #[track_caller]
    pub(crate) fn says(self, words: &[&str]) -> Self {
        for word in words {
            let said = self.out.contains(word) || self.err.contains(word);
            assert!(said, "no {word:?} in {self:#?}");
        }
        self
    }
}

/// A command that is still going on, line by line.
#[derive(Debug)]
pub(crate) struct Followed {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    seen: Vec<String>,
    asides: Receiver<String>,
    told: Vec<String>,
}

impl Followed {
    /// Reads on until a line holds `word`.
    #[track_caller]
    pub(crate) fn until(&mut self, word: &str) {
        read_until(&self.lines, &mut self.seen, word);
    }

    /// The same on standard error.
    #[track_caller]
    pub(crate) fn until_aside(&mut self, word: &str) {
        read_until(&self.asides, &mut self.told, word);
    }

    /// A line on its standard input.
    pub(crate) fn tell(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        writeln!(stdin, "{line}").unwrap();
    }

    /// Nothing more comes on its standard input.
    pub(crate) fn hush(&mut self) {
        self.stdin = None;
    }

    /// The line that was read last.
    pub(crate) fn last(&self) -> &str {
        self.seen.last().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    #[track_caller]
    pub(crate) fn end(mut self) -> Done {
        let mut err = std::mem::take(&mut self.told);
        loop {
            match self.asides.recv_timeout(PATIENCE) {
                Ok(line) => err.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end: {:#?}", self.seen),
            }
        }
        let status = self.child.wait().unwrap();
        let mut out = std::mem::take(&mut self.seen);
        out.extend(self.lines.iter());
        Done {
            code: status.code(),
            out: out.join("\n"),
            err: err.join("\n"),
        }
    }
}

#[track_caller]
fn read_until(lines: &Receiver<String>, seen: &mut Vec<String>, word: &str) {
    while !seen.last().is_some_and(|line| line.contains(word)) {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => seen.push(line),
            Err(error) => panic!("no {word:?} ({error}) in {seen:#?}"),
        }
    }
}

/// Its lines, as they come.
fn lines_of(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (send, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

impl Drop for Followed {
    fn drop(&mut self) {
        // It fails when the child has ended, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Until a process has ended, whoever its parent is.
#[track_caller]
pub(crate) fn ended(pid: Pid) {
    assert!(has_ended(pid), "process {pid:?} lives on");
}

fn has_ended(pid: Pid) -> bool {
    // No such process: it has been reaped already.
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
        return true;
    };
    let patience = Timespec {
        tv_sec: PATIENCE.as_secs().try_into().unwrap(),
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(&handle, PollFlags::IN)];
    poll(&mut fds, Some(&patience)).unwrap_or(0) == 1
}

pub(crate) fn pid_of(value: &Value) -> Pid {
    let raw = value.as_i64().unwrap().try_into().unwrap();
    Pid::from_raw(raw).unwrap()
}

pub(crate) fn children(pid: Pid) -> Vec<Pid> {
    let raw = pid.as_raw_pid();
    // Each belongs to the thread that started it.
    let threads = fs::read_dir(format!("/proc/{raw}/task"));
    let threads = threads.into_iter().flatten().map_while(Result::ok);
    let listed = threads.map(|thread| fs::read_to_string(thread.path().join("children")));
    let pids: String = listed.map(Result::unwrap_or_default).collect();
    pids.split_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .collect()
}

/// What `/mcp` answered.
#[derive(Debug)]
pub(crate) struct McpAnswer {
    pub(crate) status: u16,
    pub(crate) session: Option<String>,
}

#[derive(Debug)]
pub(crate) struct TestWorld {
    dir: TempDir,
    /// Engines that a test has started itself.
    serving: RefCell<Vec<Child>>,
    /// Keeps what was written into the gate until somebody reads it.
    gate: RefCell<Option<File>>,
}

impl TestWorld {
    pub(crate) fn new() -> Self {
        Self::with_config("")
    }

    /// Agents: `scripted`, and `gated`, which says `begun` and waits for `open_gate`.
    pub(crate) fn with_config(more: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("e2e-").tempdir().unwrap();
        let world = Self {
            dir,
            serving: RefCell::default(),
            gate: RefCell::new(None),
        };
        for name in ["home", "person", "repo"] {
            fs::create_dir(world.path(name)).unwrap();
        }
        let gated = "cat > /dev/null; echo begun; read line < $GATE; \
                     echo ran >> $COUNTER; echo through > gated.txt; echo through";
        // Other tests keep this machine busy; a test that is about the gate has a table of its own.
        let gate = if more.contains("[gate]") {
            ""
        } else {
            "[gate]\nload_per_core_max = 0\n"
        };
        let config = format!(
            "{gate}{more}\n[task]\nagent = \"scripted\"\n\n\
             [agents.scripted]\ndriver = \"plain\"\nprogram = {DISPATCH:?}\n\
             args = [\"agent\", \"--scripted\"]\npool = \"default\"\n\n\
             [agents.gated]\ndriver = \"plain\"\nprogram = \"sh\"\nargs = [\"-c\", {gated:?}]\n\
             pool = \"default\"\nplacement = \"host\"\n\
             env = {{ GATE = {:?}, COUNTER = {:?} }}\n",
            world.path("gate"),
            world.path("counter"),
        );
        fs::write(world.home().join("dispatch.toml"), config).unwrap();
        fs::write(world.repo().join("README.md"), "A project.\n").unwrap();
        world.git(&["init", "-q", "-b", "main"]);
        world.commit();
        let made = Command::new("mkfifo").arg(world.path("gate")).status();
        assert!(made.unwrap().success());
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.path("home")
    }

    pub(crate) fn repo(&self) -> PathBuf {
        self.path("repo")
    }

    fn clear<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.path("person"))
            .current_dir(self.repo())
            .stdin(Stdio::null())
    }

    pub(crate) fn git(&self, args: &[&str]) -> String {
        let mut git = Command::new("git");
        let person = [
            "-c",
            "user.name=You",
            "-c",
            "user.email=you@example.invalid",
        ];
        let output = self.clear(git.args(person).args(args)).output().unwrap();
        assert!(output.status.success(), "git {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn commit(&self) {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-qm", "more"]);
    }

    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(DISPATCH);
        self.clear(&mut command)
            .args(args)
            .env("DISPATCH_HOME", self.home());
        command
    }

    pub(crate) fn dispatch<S: AsRef<OsStr>>(&self, args: &[S]) -> Done {
        finish(&mut self.command(args), None)
    }

    pub(crate) fn dispatch_with(&self, env: &[(&str, &str)], args: &[&str]) -> Done {
        finish(self.command(args).envs(env.iter().copied()), None)
    }

    pub(crate) fn dispatch_fed(&self, input: &str, args: &[&str]) -> Done {
        finish(&mut self.command(args), Some(input))
    }

    pub(crate) fn follow(&self, args: &[&str]) -> Followed {
        followed(&mut self.command(args))
    }

    /// The same, with a standard input to tell it something.
    pub(crate) fn talk(&self, args: &[&str]) -> Followed {
        followed(self.command(args).stdin(Stdio::piped()))
    }

    /// A task by the scripted agent that is accepted and not waited for: its id.
    #[track_caller]
    pub(crate) fn detach(&self, args: &[&str]) -> String {
        let all = [&["run", "--detach", "--json"][..], args].concat();
        let task = self.dispatch(&all).exits(0).json();
        task["id"].as_str().unwrap().to_owned()
    }

    /// A task by the gated agent, whose agent has begun.
    #[track_caller]
    pub(crate) fn begun(&self, args: &[&str]) -> String {
        let id = self.detach(&[&["--agent", "gated", "Wait for it"][..], args].concat());
        self.follow(&["logs", "-f", &id]).until("begun");
        id
    }

    #[track_caller]
    pub(crate) fn show(&self, id: &str) -> Value {
        self.dispatch(&["show", id, "--json"]).exits(0).json()
    }

    /// Lets one gated agent through, now or when it comes.
    pub(crate) fn open_gate(&self) {
        let mut gate = self.gate.borrow_mut();
        // Both ways, so that it never waits for the other side.
        let file = gate.get_or_insert_with(|| {
            let both = OpenOptions::new()
                .read(true)
                .write(true)
                .open(self.path("gate"));
            both.unwrap()
        });
        file.write_all(b"go\n").unwrap();
    }

    /// How often a gated agent got through.
    pub(crate) fn counted(&self) -> usize {
        let counter = fs::read_to_string(self.path("counter")).unwrap_or_default();
        counter.lines().count()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.home().join("run/dispatch.sock")
    }

    /// An engine that stays until it is told to end; the one there is, where it does already.
    pub(crate) fn serve(&self) {
        if !self.serving.borrow().is_empty() && self.engine().is_some() {
            return;
        }
        let mut command = self.command(&["serve", "--json"]);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        self.serving.borrow_mut().push(child);
        let line = lines.recv_timeout(PATIENCE).unwrap();
        assert!(line.contains("\"socket\""), "{line}");
    }

    /// One request to `/mcp`, with a token.
    pub(crate) fn mcp(&self, token: &str, session: Option<&str>, body: &str) -> McpAnswer {
        let session = session.map(|id| format!("mcp-session-id: {id}\r\n"));
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!(
            "POST /mcp HTTP/1.1\r\nhost: dispatch\r\nconnection: close\r\n\
             authorization: Bearer {token}\r\naccept: application/json, text/event-stream\r\n\
             content-type: application/json\r\n{}content-length: {}\r\n\r\n{body}",
            session.unwrap_or_default(),
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, _) = answer.split_once("\r\n\r\n").unwrap();
        let session = head
            .lines()
            .find_map(|line| line.strip_prefix("mcp-session-id: "));
        McpAnswer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            session: session.map(str::to_owned),
        }
    }

    /// One request; `None` when nobody serves.
    pub(crate) fn http(&self, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
        self.http_at("", "dispatch.sock", method, path, body)
    }

    /// The same at another socket below the directory of sockets.
    pub(crate) fn http_at(
        &self,
        dir: &str,
        name: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> Option<(u16, Value)> {
        // By its directory: a socket's path has room for 108 bytes only.
        let run = File::open(self.home().join("run").join(dir)).ok()?;
        let socket = format!("/proc/self/fd/{}/{name}", run.as_raw_fd());
        let mut stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        // In one piece: an engine that leaves may answer before it has read the rest.
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: dispatch\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, serde_json::from_str(body).unwrap_or(Value::Null)))
    }

    pub(crate) fn engine(&self) -> Option<Pid> {
        let (_, health) = self.http("GET", "/v1/health", "")?;
        Some(pid_of(&health["pid"]))
    }

    /// As if the machine's memory had run out.
    pub(crate) fn kill_engine(&self) {
        let pid = self.engine().unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        ended(pid);
    }

    /// How many events the log has.
    pub(crate) fn events_so_far(&self) -> usize {
        let events = self.dispatch(&["events", "--json"]).exits(0).out;
        events.lines().count()
    }

    pub(crate) fn shut_down(&self) {
        let pid = self.engine().unwrap();
        self.http("POST", "/v1/shutdown", "{}").unwrap();
        ended(pid);
    }

    /// How many engines there have been.
    pub(crate) fn engines(&self) -> usize {
        let events = self.dispatch(&["events", "--json"]).exits(0).out;
        events.matches("\"kind\":\"engine_started\"").count()
    }

    fn clear_up(&self) -> Option<()> {
        let engine = self.engine();
        if let Some(pid) = engine {
            self.http("POST", "/v1/shutdown", "{}");
            if !has_ended(pid) {
                kill_process(pid, Signal::KILL).ok()?;
            }
        }
        let list = self.command(&["list", "--all", "--json"]).output().ok()?;
        let tasks: Value = serde_json::from_slice(&list.stdout).ok()?;
        let runs = tasks
            .as_array()?
            .iter()
            .flat_map(|task| task["runs"].as_array());
        for run in runs.flatten().filter(|run| run["pid"].is_i64()) {
            let keeper = pid_of(&run["pid"]);
            // A keeper ends by itself when its job has.
            for agent in children(keeper) {
                kill_process(agent, Signal::KILL).ok();
            }
            if !has_ended(keeper) {
                kill_process(keeper, Signal::KILL).ok();
            }
        }
        Some(())
    }
}

impl Drop for TestWorld {
    fn drop(&mut self) {
        // Nothing below is worth a second panic; what is left over is seen by whoever looks.
        self.clear_up();
        for child in self.serving.get_mut() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn followed(command: &mut Command) -> Followed {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let out = child.stdout.take().unwrap();
    let err = child.stderr.take().unwrap();
    Followed {
        stdin: child.stdin.take(),
        child,
        lines: lines_of(out),
        seen: Vec::new(),
        asides: lines_of(err),
        told: Vec::new(),
    }
}

fn finish(command: &mut Command, input: Option<&str>) -> Done {
    let stdin = match input {
        Some(_) => Stdio::piped(),
        None => Stdio::null(),
    };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    if let Some(input) = input {
        let mut stdin = child.stdin.take().unwrap();
        match stdin.write_all(input.as_bytes()) {
            // It may end before it reads, with what it thinks of its arguments.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            written => written.unwrap(),
        }
    }
    let pid = Pid::from_child(&child);
    let (send, ended) = channel();
    thread::spawn(move || drop(send.send(child.wait_with_output())));
    let Ok(output) = ended.recv_timeout(PATIENCE) else {
        kill_process(pid, Signal::KILL).ok();
        panic!("{command:?} does not end");
    };
    Done::of(output.unwrap())
}

/// Every file below a directory.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map_while(Result::ok) {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}
