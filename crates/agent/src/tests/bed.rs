//! An agent in a test: its opening, its standard input, and somebody who keeps its output as a keeper
//! does. Must not wait without a limit.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{BufRead, BufReader, PipeWriter, Write, pipe},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use dispatch_core::native::{Block, Chunk, Line, TurnEnd};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

use crate::{
    agent::{self, AgentError},
    clock::Clock,
    provider::Provider,
};

/// Far more than any test needs, and less than anybody waits.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// An MCP server that offers a tool and answers no call of it, and goes on when its input ends and
/// when it is asked to end.
const DEAF: &str = r#"trap '' TERM; read l
echo '{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"deaf","version":"1"}}}'
read l; read l
echo '{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"t","inputSchema":{"type":"object"}}]}}'
while :; do sleep MARK; done"#;

/// The mark is how it is found among the processes of this machine.
pub(super) fn deaf(mark: &str) -> Value {
    json!({"deaf": {"command": ["sh", "-c", DEAF.replace("MARK", mark)]}})
}

/// A task's directory, whose runs come one after the other.
#[derive(Debug)]
pub(crate) struct Bed {
    pub(crate) dir: TempDir,
    runs: usize,
    /// What was said in earlier runs, for the next one.
    pub(crate) resume: bool,
    pub(crate) opening: Value,
    pub(crate) clock: Clock,
}

impl Bed {
    /// `keys`: names and providers, in the order of the chain.
    pub(crate) fn new(keys: &[(&str, &str, &Provider)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("work")).unwrap();
        let chain: Vec<Value> = keys
            .iter()
            .map(|(name, ..)| json!({"key": name, "model": format!("model-{name}"), "effort": "low"}))
            .collect();
        let tables: BTreeMap<&str, Value> = keys
            .iter()
            .map(|(name, kind, provider)| (*name, provider.table(kind)))
            .collect();
        let opening = json!({
            "version": 1, "session": "s1", "cwd": dir.path().join("work"),
            "spill": dir.path().join("spill"), "chain": chain, "keys": tables,
            "limits": {"steps_max": 50, "tokens_max": 0, "cost_usd_max": 0.0, "wall_clock_ms": 0,
                "retry_ms": 1000, "wait_ms_max": 60_000, "ask_wait_ms": 5_000},
            "rules": {"layers": [{"otherwise": "allow"}]},
        });
        Self {
            dir,
            runs: 0,
            resume: true,
            opening,
            clock: Clock::default(),
        }
    }

    /// One that does not wait for providers.
    pub(crate) fn quick(keys: &[(&str, &str, &Provider)]) -> Self {
        Self {
            clock: Clock::jumping(),
            ..Self::new(keys)
        }
    }

    pub(crate) fn work(&self, name: &str) -> PathBuf {
        self.dir.path().join("work").join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.work(name)).unwrap_or_default()
    }

    /// The output of a run, which is counted from 1.
    pub(crate) fn out(&self, run: usize) -> PathBuf {
        self.dir.path().join(format!("out-{run}"))
    }

    pub(crate) fn start(&mut self, prompt: Option<&str>) -> Live {
        let mut opening = self.opening.clone();
        opening["prompt"] = json!(prompt);
        if self.resume {
            let earlier: Vec<PathBuf> = (1..=self.runs).map(|run| self.out(run)).collect();
            opening["resume"] = json!(earlier);
        }
        self.runs += 1;
        let out = self.out(self.runs);
        let (input, orders) = pipe().unwrap();
        let (reader, output) = pipe().unwrap();
        let (sender, lines) = mpsc::unbounded_channel();
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(out)
            .unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n') {
                let mut line = line.unwrap();
                line.push(b'\n');
                file.write_all(&line).unwrap();
                let line: Line = serde_json::from_slice(&line).unwrap();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let agent = tokio::spawn(agent::run(self.clock.clone(), input, output));
        let mut live = Live {
            orders: Some(orders),
            lines,
            seen: Vec::new(),
            agent,
        };
        live.order(&json!({"open": opening}));
        live
    }

    /// One whole run with nothing said to it after its prompt.
    pub(crate) async fn run(&mut self, prompt: Option<&str>) -> Vec<Line> {
        let mut live = self.start(prompt);
        live.close();
        live.end().await
    }
}

#[derive(Debug)]
pub(crate) struct Live {
    orders: Option<PipeWriter>,
    lines: mpsc::UnboundedReceiver<Line>,
    pub(crate) seen: Vec<Line>,
    agent: JoinHandle<Result<ExitCode, AgentError>>,
}

impl Live {
    pub(crate) fn order(&mut self, order: &Value) {
        let line = format!("{order}\n");
        self.orders
            .as_mut()
            .unwrap()
            .write_all(line.as_bytes())
            .unwrap();
    }

    pub(crate) fn say(&mut self, id: u64, text: &str) {
        self.order(&json!({"say": {"id": id, "text": text}}));
    }

    pub(crate) fn close(&mut self) {
        self.orders = None;
    }

    pub(crate) async fn next(&mut self) -> Option<Chunk> {
        let line = timeout(LIMIT, self.lines.recv())
            .await
            .expect("nothing came");
        let line = line?;
        self.seen.push(line.clone());
        Some(line.chunk)
    }

    /// Some more lines, as long as it is doing something.
    pub(crate) async fn some(&mut self, lines: usize) {
        let idle = |line: &Line| matches!(line.chunk, Chunk::TurnEnded { .. });
        for _ in 0..lines {
            if self.seen.last().is_some_and(idle) || self.next().await.is_none() {
                return;
            }
        }
    }

    pub(crate) async fn until(&mut self, what: impl Fn(&Chunk) -> bool) -> Chunk {
        loop {
            let chunk = self.next().await;
            let chunk = chunk.unwrap_or_else(|| panic!("it ended: {:#?}", self.seen));
            if what(&chunk) {
                return chunk;
            }
        }
    }

    pub(crate) async fn ended(&mut self) -> TurnEnd {
        let end = self
            .until(|chunk| matches!(chunk, Chunk::TurnEnded { .. }))
            .await;
        match end {
            Chunk::TurnEnded { end, .. } => end,
            other => panic!("{other:?}"),
        }
    }

    /// All it said, after it has left.
    pub(crate) async fn end(mut self) -> Vec<Line> {
        while self.next().await.is_some() {}
        let left = timeout(LIMIT, &mut self.agent)
            .await
            .expect("it does not leave");
        left.unwrap().unwrap();
        self.seen
    }

    pub(crate) async fn error(mut self) -> String {
        self.close();
        let left = timeout(LIMIT, &mut self.agent)
            .await
            .expect("it does not leave");
        left.unwrap().unwrap_err().to_string()
    }

    /// As kill -9 would, but for its threads.
    pub(crate) fn kill(self) {
        self.agent.abort();
    }
}

pub(crate) fn is_running(chunk: &Chunk) -> bool {
    matches!(chunk, Chunk::Running { .. })
}

/// The calls of a record and their results, by step and id. What every record must hold: each call
/// of a turn that ended has one result, and each result a call.
pub(crate) fn results(lines: &[Line]) -> BTreeMap<(String, String), String> {
    let mut calls = Vec::new();
    let mut results = BTreeMap::new();
    let mut ended = true;
    for line in lines {
        match &line.chunk {
            Chunk::Turn { .. } => ended = false,
            Chunk::TurnEnded { .. } => ended = true,
            Chunk::Block(Block::Call { id, .. }) => calls.push((line.step.to_string(), id.clone())),
            Chunk::Result { call, output, .. } => {
                let key = (line.step.to_string(), call.clone());
                assert!(calls.contains(&key), "a result without a call: {key:?}");
                let before = results.insert(key.clone(), output.clone());
                assert_eq!(before, None, "two results for {key:?}");
            }
            _ => {}
        }
    }
    if ended {
        for call in &calls {
            assert!(results.contains_key(call), "no result for {call:?}");
        }
    }
    results
}

pub(crate) fn texts(lines: &[Line]) -> Vec<String> {
    let texts = lines.iter().filter_map(|line| match &line.chunk {
        Chunk::Block(Block::Text { text, .. }) => Some(text.clone()),
        _ => None,
    });
    texts.collect()
}

/// How the last turn ended.
pub(crate) fn end(lines: &[Line]) -> TurnEnd {
    let mut ends = lines.iter().rev().filter_map(|line| match &line.chunk {
        Chunk::TurnEnded { end, .. } => Some(end.clone()),
        _ => None,
    });
    ends.next()
        .unwrap_or_else(|| panic!("no turn ended: {lines:#?}"))
}
