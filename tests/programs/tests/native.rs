//! The native agent as a process, against the scripted model server: every wire format with every
//! kind of trouble, `kill -9` at any moment, and the signal to stop.
//! Must not use the agent's own code but for the types of its lines.
#![expect(
    clippy::unwrap_used,
    reason = "in a test, what is not as expected shall panic"
)]

#[path = "native/interleavings.rs"]
mod interleavings;
mod world;

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use dispatch_core::native::{Block, Chunk, Line, StepId, TurnEnd};
use dispatch_test_programs::fuzz::Random;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use world::model::Model;

const AGENT: &str = env!("CARGO_BIN_EXE_native-agent");
const SERVER: &str = env!("CARGO_BIN_EXE_fake-mcp");
/// Provider and what of its base URL comes before the path of its wire format.
const PROVIDERS: [(&str, &str); 3] = [("anthropic", ""), ("openai", "/v1"), ("compatible", "/v1")];

struct Task {
    dir: tempfile::TempDir,
    opening: Value,
    runs: usize,
}

impl Task {
    fn new(model: &Model, provider: (&str, &str)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("work")).unwrap();
        let url = format!("{}{}", model.url, provider.1);
        let opening = json!({
            "version": 1, "session": "s", "cwd": dir.path().join("work"),
            "spill": dir.path().join("spill"),
            "chain": [{"key": "k", "model": "m"}],
            "keys": {"k": {"provider": provider.0, "base_url": url, "auth": "none"}},
            "limits": {"steps_max": 100, "tokens_max": 0, "cost_usd_max": 0.0, "wall_clock_ms": 0,
                "retry_ms": 5, "wait_ms_max": 60_000, "ask_wait_ms": 1000},
            "rules": {"layers": [{"otherwise": "allow"}]},
        });
        Self {
            dir,
            opening,
            runs: 0,
        }
    }

    fn out(&self, run: usize) -> PathBuf {
        self.dir.path().join(format!("out-{run}"))
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join("work").join(name)).unwrap_or_default()
    }

    fn start(&mut self, prompt: Option<&str>) -> Agent {
        self.start_and_kill(prompt, usize::MAX)
    }

    /// Killed as soon as it has said so many bytes.
    fn start_and_kill(&mut self, prompt: Option<&str>, bytes: usize) -> Agent {
        let earlier: Vec<PathBuf> = (1..=self.runs).map(|run| self.out(run)).collect();
        self.opening["resume"] = json!(earlier);
        self.opening["prompt"] = json!(prompt);
        self.runs += 1;
        let mut child = Command::new(AGENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "{}", json!({"open": self.opening})).unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.out(self.runs))
            .unwrap();
        let pid = Pid::from_child(&child);
        // As a keeper does: bytes as they come, to the end of the pipe.
        let keeper = thread::spawn(move || {
            let (mut chunk, mut left) = ([0; 512], bytes);
            loop {
                let n = stdout.read(&mut chunk).unwrap();
                if n == 0 {
                    return;
                }
                file.write_all(&chunk[..n]).unwrap();
                if left <= n {
                    kill_process(pid, Signal::KILL).unwrap();
                }
                left = left.saturating_sub(n).max(1);
            }
        });
        Agent {
            child,
            stdin: Some(stdin),
            keeper: Some(keeper),
        }
    }

    fn lines(&self) -> Vec<Line> {
        let mut all = Vec::new();
        for run in 1..=self.runs {
            let file = fs::File::open(self.out(run)).unwrap();
            for line in BufReader::new(file).split(b'\n') {
                // The last one of a run that was killed may be torn.
                if let Ok(line) = serde_json::from_slice(&line.unwrap()) {
                    all.push(line);
                }
            }
        }
        all
    }
}

struct Agent {
    child: Child,
    stdin: Option<ChildStdin>,
    keeper: Option<JoinHandle<()>>,
}

impl Agent {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        match kill_process(pid, signal) {
            // It may have ended by itself.
            Ok(()) | Err(_) => {}
        }
    }

    /// Its exit code, when it and its output are at their ends.
    fn end(mut self) -> Option<i32> {
        drop(self.stdin.take());
        // Waited for last: until then the id that the keeper kills is this process and no other one.
        self.keeper.take().unwrap().join().unwrap();
        self.child.wait().unwrap().code()
    }
}

fn end(lines: &[Line]) -> Option<TurnEnd> {
    lines.iter().rev().find_map(|line| match &line.chunk {
        Chunk::TurnEnded { end, .. } => Some(end.clone()),
        _ => None,
    })
}

/// Every call and its one result.
fn results(lines: &[Line]) -> BTreeMap<(String, String), String> {
    let mut results = BTreeMap::new();
    for line in lines {
        if let Chunk::Result { call, output, .. } = &line.chunk {
            let key = (line.step.to_string(), call.clone());
            assert_eq!(
                results.insert(key, output.clone()),
                None,
                "two results: {call}"
            );
        }
    }
    for line in lines {
        if let Chunk::Block(Block::Call { id, .. }) = &line.chunk {
            let key = (line.step.to_string(), id.clone());
            assert!(results.contains_key(&key), "no result: {id}");
        }
    }
    results
}

#[test]
fn every_wire_format_with_every_kind_of_trouble() {
    for provider in PROVIDERS {
        let model = Model::start(&json!([
            {"thinking": "I should look.", "text": "I look.", "tool": "list_files"},
            {"status": 529, "message": "busy", "headers": {"retry-after-ms": "5"}},
            {"text": "Cut.", "tool": "shell", "command": "echo never >> log", "cut": "mid_stream"},
            {"cut": "before_answer", "text": "x"},
            {"blocks": [
                {"text": "Both."},
                {"tool": "shell", "command": "echo one >> log"},
                {"tool": "write", "path": "new.txt", "content": "hello\n"},
            ]},
            {"text": "Broken.", "malformed": true},
            {"text": "Finished.", "repeat": true},
        ]));
        let mut task = Task::new(&model, provider);
        let code = task.start(Some("Do it.")).end();
        let lines = task.lines();
        let told = format!("{provider:?}: {lines:#?}");
        assert_eq!(
            (code, end(&lines)),
            (Some(0), Some(TurnEnd::Done)),
            "{told}"
        );
        assert_eq!(
            (task.read("log").as_str(), task.read("new.txt").as_str()),
            ("one\n", "hello\n")
        );
        results(&lines);
        let waits = lines
            .iter()
            .filter(|line| matches!(line.chunk, Chunk::Waiting { .. }))
            .count();
        assert!(waits >= 4, "{told}");
    }
}

/// Ended at any moment by a signal that nothing can be done against, and started again until the turn
/// is over: nothing runs twice, nothing closed is lost, nothing is left open.
#[test]
fn row_1_kill_9_at_any_moment() {
    const ROUNDS: u64 = 30;
    const STEPS: usize = 6;
    let (mut kills, mut interrupted_all, mut runs) = (0, 0, 0);
    for seed in 0..ROUNDS {
        let mut random = Random::new(seed);
        let steps: Vec<Value> = (0..STEPS)
            .map(|n| {
                json!({"slow_ms": 1, "thinking": "hm", "text": format!("step {n}"), "tool": "shell",
                    "command": format!("echo {n} >> log; sleep 0.0{}", n % 3)})
            })
            .chain([json!({"text": "Finished.", "repeat": true})])
            .collect();
        let model = Model::start(&json!(steps));
        let provider = PROVIDERS[random.below(3)];
        let mut task = Task::new(&model, provider);
        let mut prompt = Some("Do it.");
        loop {
            runs += 1;
            let agent = task.start_and_kill(prompt, 1 + random.below(5_000));
            let code = agent.end();
            kills += u64::from(code.is_none());
            let lines = task.lines();
            let turned = lines
                .iter()
                .any(|line| matches!(line.chunk, Chunk::Turn { .. }));
            prompt = if turned { None } else { Some("Do it.") };
            if end(&lines).is_some() {
                break;
            }
        }
        let lines = task.lines();
        assert_eq!(end(&lines), Some(TurnEnd::Done), "seed {seed}");
        interrupted_all += check(&task, &lines, seed);
    }
    println!(
        "{ROUNDS} turns in {runs} processes, {kills} killed, {interrupted_all} calls interrupted"
    );
    assert!(kills > ROUNDS);
}

/// The same while the conversation is compacted again and again: each beginning becomes notes once, and
/// what follows goes on behind it.
#[test]
fn row_1_kill_9_at_any_moment_of_a_compaction() {
    const ROUNDS: u64 = 15;
    const STEPS: usize = 12;
    let (mut kills, mut runs, mut notes_all) = (0, 0, 0);
    for seed in 0..ROUNDS {
        let mut random = Random::new(1000 + seed);
        let steps: Vec<Value> = (0..STEPS)
            .map(|n| {
                // The limit is near behind each of them, and two are enough to be worth notes.
                let command = format!("echo {n} >> log; seq -f 'line %05g of it' 1 400");
                json!({"text": format!("step {n}"), "tool": "shell", "command": command,
                    "usage": {"input": 2_300}})
            })
            .chain([json!({"text": "Finished.", "repeat": true})])
            .collect();
        let model = Model::start(&json!(steps));
        let mut task = Task::new(&model, PROVIDERS[random.below(3)]);
        task.opening["keys"]["k"]["models"] = json!([{"match": "*", "context_tokens": 2_500}]);
        let mut prompt = Some("Do it.");
        loop {
            runs += 1;
            let agent = task.start_and_kill(prompt, 1 + random.below(30_000));
            let code = agent.end();
            kills += u64::from(code.is_none());
            let lines = task.lines();
            let turned = |line: &Line| matches!(line.chunk, Chunk::Turn { .. });
            prompt = (!lines.iter().any(turned)).then_some("Do it.");
            if end(&lines).is_some() {
                break;
            }
        }
        let lines = task.lines();
        assert_eq!(end(&lines), Some(TurnEnd::Done), "seed {seed}");
        check(&task, &lines, seed);
        let notes: Vec<StepId> = lines
            .iter()
            .filter_map(|line| match &line.chunk {
                Chunk::Compacted { from, .. } => Some(*from),
                _ => None,
            })
            .collect();
        let forward = notes.windows(2).all(|pair| pair[0] < pair[1]);
        assert!(forward, "seed {seed}: one is told twice: {notes:?}");
        notes_all += notes.len();
    }
    println!("{ROUNDS} turns in {runs} processes, {kills} killed, {notes_all} compactions");
    assert!(kills > ROUNDS && notes_all as u64 > 2 * ROUNDS);
}

/// Which commands ran is what the record says ran. How many were interrupted.
fn check(task: &Task, lines: &[Line], seed: u64) -> usize {
    let results = results(lines);
    let log = task.read("log");
    let mut interrupted = 0;
    for line in lines {
        let Chunk::Block(Block::Call { id, input, .. }) = &line.chunk else {
            continue;
        };
        let input: Value = serde_json::from_str(input).unwrap();
        let command = input["command"].as_str().unwrap();
        let number = command.split(' ').nth(1).unwrap();
        let times = log.lines().filter(|line| *line == number).count();
        let output = &results[&(line.step.to_string(), id.clone())];
        if output.contains("was interrupted") {
            interrupted += 1;
            assert!(times <= 1, "seed {seed}: {number} ran {times} times");
        } else if output.contains("was not run") {
            // The step was cut; the script goes on with its next one.
            assert_eq!(times, 0, "seed {seed}: {number}");
        } else {
            assert_eq!(times, 1, "seed {seed}: {number}: {output}");
        }
    }
    interrupted
}

#[test]
fn row_4_the_polite_signal_stops_it_within_a_second() {
    // Another run of this test on the same machine has another one.
    let mark = format!("86460.{}", std::process::id());
    let command = format!("trap '' TERM; echo > ../begun; sleep {mark}; sleep {mark}");
    let model = Model::start(&json!([{"tool": "shell", "command": command}]));
    let mut task = Task::new(&model, PROVIDERS[0]);
    let begun = task.dir.path().join("begun");
    let made = Command::new("mkfifo").arg(&begun).status().unwrap();
    assert!(made.success());
    let agent = task.start(Some("Go."));
    // Comes back when the command writes into it.
    fs::read(begun).unwrap();
    let asked = Instant::now();
    agent.signal(Signal::TERM);
    let code = agent.end();
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    let lines = task.lines();
    assert_eq!((code, end(&lines)), (Some(0), Some(TurnEnd::Stopped)));
    let told = results(&lines).into_values().next().unwrap();
    assert!(told.contains("stopped by whoever watches"), "{told}");
    assert!(!runs(format!("sleep\0{mark}\0").as_bytes()));
}

fn served(tools: &[&str]) -> Value {
    let command: Vec<&str> = [SERVER].iter().chain(tools).copied().collect();
    json!({"command": command})
}

fn runs(command: &[u8]) -> bool {
    let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.any(|line| line.starts_with(command))
}

fn told(lines: &[Line]) -> Vec<String> {
    let results = lines.iter().filter_map(|line| match &line.chunk {
        Chunk::Result { output, .. } => Some(output.clone()),
        _ => None,
    });
    results.collect()
}

#[test]
fn tools_of_a_server_are_used_and_nothing_of_it_is_left() {
    let call = |tool: &str| json!({"tool": format!("files__{tool}"), "args": {"text": "hello"}});
    let mut steps: Vec<Value> = ["echo", "env", "fail", "flood", "leave", "deny_me"]
        .into_iter()
        .map(call)
        .collect();
    steps.push(json!({"text": "Finished.", "repeat": true}));
    let model = Model::start(&json!(steps));
    let mut task = Task::new(&model, PROVIDERS[0]);
    // A variable that cargo sets: as good as a key.
    task.opening["keys"]["k"]["key"] = json!({"from": "CARGO_PKG_NAME"});
    task.opening["rules"]["layers"][0]["rules"] =
        json!([{"group": "mcp", "pattern": "files__deny*", "action": "deny"}]);
    let mut files = served(&[
        "echo",
        "env",
        "fail",
        "flood",
        "leave",
        "deny_me",
        "odd name!",
    ]);
    files["env"] = json!({"OWN_OF_THE_SERVER": "1"});
    let dead = json!({"command": ["sh", "-c", "echo no licence >&2; exit 1"]});
    task.opening["servers"] = json!({"files": files, "dead": dead});
    let code = task.start(Some("Use it.")).end();
    let lines = task.lines();
    let (code, end) = (code, end(&lines));
    assert_eq!((code, end), (Some(0), Some(TurnEnd::Done)), "{lines:#?}");
    let told = told(&lines);
    let [echo, env, fail, flood, leave, deny] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(echo, "hello");
    let has = |name: &str| env.lines().any(|line| line == name);
    assert!(
        has("PATH") && has("OWN_OF_THE_SERVER") && !has("CARGO_PKG_NAME"),
        "{env}"
    );
    assert_eq!(fail, "error: it failed");
    assert!(flood.len() < 4_000 && flood.contains("files__flood gave 1200000 characters"));
    assert!(leave.starts_with("left Ok("), "{leave}");
    assert!(deny.contains("a rule for mcp denies it"), "{deny}");
    let own = format!("{SERVER}\0echo\0env");
    assert!(!runs(b"sleep\x0086462") && !runs(own.as_bytes()));
    let notices: Vec<&str> = lines
        .iter()
        .filter_map(|line| match &line.chunk {
            Chunk::Notice { text } => Some(text.as_str()),
            _ => None,
        })
        .collect();
    let [notice] = notices[..] else {
        panic!("{notices:?}");
    };
    assert!(
        notice.starts_with("MCP server dead is not there"),
        "{notice}"
    );
    assert!(notice.ends_with("; it said: no licence"), "{notice}");
    let offered = &model.asked()[0]["tools"];
    let offered: Vec<&str> = offered
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let own = offered.iter().position(|name| *name == "todo").unwrap();
    assert_eq!(
        offered[own + 1..],
        [
            "files__deny_me",
            "files__echo",
            "files__env",
            "files__fail",
            "files__flood",
            "files__leave",
            "files__odd_name_",
        ]
    );
}

#[test]
fn row_14_a_server_that_dies_takes_nobody_along() {
    let call = |tool: &str| json!({"tool": format!("s__{tool}"), "args": {"text": "x"}});
    let model = Model::start(&json!([
        call("echo"), call("die"), call("echo"), {"text": "Finished.", "repeat": true},
    ]));
    let mut task = Task::new(&model, PROVIDERS[2]);
    task.opening["servers"] = json!({"s": served(&["echo", "die"])});
    assert_eq!(task.start(Some("Use it.")).end(), Some(0));
    // Another process of the same conversation has another server; what the model knows stays.
    task.opening["servers"] = json!({"s": served(&["new", "echo"])});
    assert_eq!(task.start(Some("Again.")).end(), Some(0));
    let lines = task.lines();
    let told = told(&lines);
    assert_eq!(told[0], "x");
    assert!(told[1].starts_with("error: ask MCP server s: "), "{told:?}");
    assert!(told[1].ends_with("; it said: out of memory"), "{told:?}");
    assert!(told[2].contains("losed"), "{told:?}");
    let asked = model.asked();
    assert_eq!(asked.len(), 5);
    assert!(
        asked
            .iter()
            .all(|later| later["tools"] == asked[0]["tools"])
    );
}

#[test]
fn row_4_a_stop_ends_a_call_of_a_server_and_the_server() {
    let model = Model::start(&json!([{"tool": "s__hang", "args": {"text": "../begun"}}]));
    let mut task = Task::new(&model, PROVIDERS[1]);
    let begun = task.dir.path().join("begun");
    assert!(
        Command::new("mkfifo")
            .arg(&begun)
            .status()
            .unwrap()
            .success()
    );
    task.opening["servers"] = json!({"s": served(&["hang", "only-of-this-test"])});
    let agent = task.start(Some("Go."));
    fs::read(begun).unwrap();
    let asked = Instant::now();
    agent.signal(Signal::TERM);
    let code = agent.end();
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    let lines = task.lines();
    assert_eq!((code, end(&lines)), (Some(0), Some(TurnEnd::Stopped)));
    assert!(told(&lines)[0].contains("stopped by whoever watches"));
    let own = format!("{SERVER}\0hang\0only-of-this-test");
    assert!(!runs(own.as_bytes()));
}

#[test]
fn row_4_a_stop_ends_a_search_that_nobody_answers() {
    let model = Model::start(&json!([{"tool": "web_search", "args": {"query": "x"}}]));
    let engine = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut task = Task::new(&model, PROVIDERS[0]);
    task.opening["reach"] = json!("everything");
    let url = format!("http://{}", engine.local_addr().unwrap());
    task.opening["web"] = json!({"search": {"shape": "searxng", "url": url}});
    let agent = task.start(Some("Go."));
    let (mut asking, _) = engine.accept().unwrap();
    asking.read_exact(&mut [0]).unwrap();
    let asked = Instant::now();
    agent.signal(Signal::TERM);
    let code = agent.end();
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    let lines = task.lines();
    assert_eq!((code, end(&lines)), (Some(0), Some(TurnEnd::Stopped)));
    assert!(told(&lines)[0].contains("stopped by whoever watches"));
}

/// A line without an end is as much as many lines.
#[test]
fn row_9_memory_is_bounded_whatever_commands_print() {
    const AGENTS: usize = 6;
    const KILOBYTES_MAX: u64 = 64 << 10;
    let shell = |command: &str| json!({"tool": "shell", "command": command});
    let script = json!([
        shell("yes abcdefghijklmnopqrstuvwxyz | head -c 100000000"),
        shell("head -c 100000000 /dev/zero | tr '\\0' x"),
        shell("grep VmHWM /proc/$PPID/status"),
        {"text": "Finished.", "repeat": true},
    ]);
    let models: Vec<Model> = (0..AGENTS).map(|_| Model::start(&script)).collect();
    let mut tasks: Vec<(Task, Agent)> = Vec::new();
    for model in &models {
        let mut task = Task::new(model, PROVIDERS[2]);
        task.opening["live"] = json!(true);
        let agent = task.start(Some("Print."));
        tasks.push((task, agent));
    }
    let mut peaks = Vec::new();
    for (task, agent) in tasks {
        assert_eq!(agent.end(), Some(0));
        let told = told(&task.lines());
        let [_, _, status] = &told[..] else {
            panic!("{told:?}");
        };
        let kilobytes = status
            .split("VmHWM:")
            .nth(1)
            .unwrap()
            .trim_start_matches("\\t");
        let kilobytes: u64 = kilobytes
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap();
        peaks.push(kilobytes);
    }
    println!("{AGENTS} agents, 200 MB printed in each: at most {peaks:?} kB");
    assert!(peaks.iter().all(|peak| *peak < KILOBYTES_MAX), "{peaks:?}");
}

#[test]
fn what_cannot_be_opened_is_an_error_on_standard_error() {
    for (input, part) in [
        ("", "open: nothing was said"),
        ("{\"stop\":{}}\n", "the first order is not to open"),
        ("nonsense\n", "read an order"),
    ] {
        let mut child = Command::new(AGENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(part) && output.stdout.is_empty(), "{said}");
    }
}
