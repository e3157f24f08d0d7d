//! Faults of a provider, tools, permissions, messages, stops and kills, in an order that nobody chose:
//! a conversation with all of them ends, and what it says happened is what happened.
//! Must not wait for a time: what is done is done when the agent has said so many bytes.

use std::collections::BTreeSet;

use super::*;

/// For many more: `DISPATCH_INTERLEAVINGS=5000`.
const ROUNDS: u64 = 60;
const STEPS: usize = 8;
/// After so many processes of one conversation nothing is done to it any more.
const PROCESSES_MAX: usize = 12;
const DEED_WITHIN_BYTES: usize = 4_000;

#[derive(Clone, Copy, Debug)]
enum Deed {
    Say,
    Stop,
    Kill,
}

#[derive(Debug, Default)]
struct Counts {
    processes: usize,
    messages: usize,
    stops: usize,
    kills: usize,
    asked: usize,
    denied: usize,
    faults: usize,
    cut: usize,
    interrupted: usize,
}

/// A provider that fails in every way between steps that do something, each with its number.
fn script(random: &mut Random) -> Vec<Value> {
    let mut steps = Vec::new();
    for n in 0..STEPS {
        match random.below(10) {
            0 => steps.push(json!({"status": 529, "message": "busy"})),
            1 => steps.push(json!({"status": 429, "message": "slow down",
                "headers": {"retry-after-ms": "5"}})),
            2 => steps.push(json!({"status": 500, "message": "broken"})),
            3 => steps.push(json!({"cut": "before_answer", "text": "x"})),
            4 => steps.push(json!({"text": "Broken.", "malformed": true})),
            _ => {}
        }
        let shell =
            json!({"tool": "shell", "command": format!("echo {n} >> log; sleep 0.0{}", n % 3)});
        let write = json!({"tool": "write", "path": format!("file-{n}"), "content": "x\n"});
        let look = json!({"tool": "list_files"});
        let blocks = match random.below(4) {
            0 => json!([shell]),
            1 => json!([{"text": format!("step {n}")}, look, shell, look]),
            2 => json!([{"thinking": "hm"}, write]),
            _ => json!([shell, look, look, write]),
        };
        let mut step = json!({"blocks": blocks});
        match random.below(8) {
            0 => step["cut"] = json!("mid_stream"),
            1 => step["slow_ms"] = json!(1),
            _ => {}
        }
        steps.push(step);
    }
    steps.push(json!({"text": "Finished.", "repeat": true}));
    steps
}

/// What whoever keeps and drives the agent knows of one conversation.
struct Driver<'a> {
    task: Task,
    random: &'a mut Random,
    counts: &'a mut Counts,
    /// The last number that was given to a message.
    last_said: u64,
    heard: Vec<u64>,
    turns: usize,
    ended: Vec<TurnEnd>,
}

impl Driver<'_> {
    fn is_done(&self) -> bool {
        let last = self.ended.last();
        self.turns == self.ended.len() && last == Some(&TurnEnd::Done) && self.unheard().is_empty()
    }

    fn unheard(&self) -> Vec<u64> {
        let unheard = (1..=self.last_said).filter(|id| !self.heard.contains(id));
        unheard.collect()
    }

    /// One process, with at most one thing done to it, from its start to its end.
    fn process(&mut self, deed: Option<Deed>) {
        let open = self.turns > self.ended.len();
        let earlier: Vec<PathBuf> = (1..=self.task.runs).map(|run| self.task.out(run)).collect();
        self.task.opening["resume"] = json!(earlier);
        self.task.opening["prompt"] = if open { Value::Null } else { json!("Do it.") };
        self.task.runs += 1;
        self.counts.processes += 1;
        let mut child = Command::new(AGENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take();
        tell(&mut input, &json!({"open": self.task.opening}));
        for id in self.unheard() {
            tell(
                &mut input,
                &json!({"say": {"id": id, "text": format!("message {id}")}}),
            );
        }
        let mut output = child.stdout.take().unwrap();
        let mut file = fs::File::create(self.task.out(self.task.runs)).unwrap();
        let mut deed = deed.map(|deed| (1 + self.random.below(DEED_WITHIN_BYTES), deed));
        let (mut chunk, mut said, mut line) = ([0; 512], 0, Vec::new());
        loop {
            let n = output.read(&mut chunk).unwrap();
            if n == 0 {
                break;
            }
            file.write_all(&chunk[..n]).unwrap();
            said += n;
            for byte in &chunk[..n] {
                line.push(*byte);
                if *byte == b'\n' {
                    self.react(&serde_json::from_slice(&line).unwrap(), &mut input);
                    line.clear();
                }
            }
            if let Some((_, deed)) = deed.take_if(|(at, _)| *at <= said) {
                self.do_to(&child, deed, &mut input);
            }
        }
        child.wait().unwrap();
    }

    fn react(&mut self, line: &Line, input: &mut Option<ChildStdin>) {
        match &line.chunk {
            Chunk::Turn { said } => {
                assert_eq!(self.turns, self.ended.len(), "two turns at once");
                self.turns += 1;
                self.hears(said);
            }
            Chunk::Said { said } => self.hears(said),
            Chunk::Asked { id, .. } => {
                let allow = self.random.below(3) > 0;
                self.counts.asked += 1;
                self.counts.denied += usize::from(!allow);
                tell(
                    input,
                    &json!({"answer": {"id": id, "allow": allow, "why": "by chance"}}),
                );
            }
            Chunk::TurnEnded { end, .. } => {
                self.ended.push(end.clone());
                if *end != TurnEnd::Done || self.unheard().is_empty() {
                    drop(input.take());
                }
            }
            _ => {}
        }
    }

    fn hears(&mut self, said: &[dispatch_core::native::Message]) {
        self.heard
            .extend(said.iter().map(|message| message.id).filter(|id| *id > 0));
    }

    fn do_to(&mut self, child: &Child, deed: Deed, input: &mut Option<ChildStdin>) {
        match deed {
            Deed::Say => {
                self.counts.messages += 1;
                self.last_said += 1;
                let id = self.last_said;
                tell(
                    input,
                    &json!({"say": {"id": id, "text": format!("message {id}")}}),
                );
            }
            Deed::Stop => {
                self.counts.stops += 1;
                tell(input, &json!({"stop": {}}));
            }
            Deed::Kill => {
                self.counts.kills += 1;
                // Not waited for yet, so the id is still its own.
                kill_process(Pid::from_child(child), Signal::KILL).unwrap();
            }
        }
    }
}

/// It may have ended by itself.
fn tell(input: &mut Option<ChildStdin>, order: &Value) {
    if let Some(input) = input {
        match writeln!(input, "{order}") {
            Ok(()) | Err(_) => {}
        }
    }
}

#[test]
fn faults_tools_messages_stops_and_kills_in_any_order() {
    let rounds = std::env::var("DISPATCH_INTERLEAVINGS");
    let rounds = rounds.map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let mut counts = Counts::default();
    for seed in 0..rounds {
        let mut random = Random::new(seed);
        let model = Model::start(&json!(script(&mut random)));
        let provider = PROVIDERS[random.below(3)];
        let mut task = Task::new(&model, provider);
        task.opening["rules"]["layers"][0]["rules"] =
            json!([{"group": "edit", "pattern": "*", "action": "ask"}]);
        let mut driver = Driver {
            task,
            random: &mut random,
            counts: &mut counts,
            last_said: 0,
            heard: Vec::new(),
            turns: 0,
            ended: Vec::new(),
        };
        for process in 0.. {
            assert!(process < 2 * PROCESSES_MAX, "seed {seed} does not end");
            let deed = match driver.random.below(8) {
                _ if process >= PROCESSES_MAX => None,
                0..3 => Some(Deed::Kill),
                3..5 => Some(Deed::Say),
                5 => Some(Deed::Stop),
                _ => None,
            };
            driver.process(deed);
            if driver.is_done() {
                break;
            }
        }
        let increasing = driver.heard.is_sorted_by(|a, b| a < b);
        assert!(increasing, "seed {seed}: heard {:?}", driver.heard);
        let task = driver.task;
        what_it_says_is_so(&task, &mut counts, seed);
    }
    println!("{rounds} conversations: {counts:?}");
    let Counts {
        messages,
        stops,
        kills,
        denied,
        faults,
        interrupted,
        ..
    } = counts;
    for (what, count) in [
        ("messages", messages),
        ("stops", stops),
        ("kills", kills),
        ("denied", denied),
        ("faults", faults),
        ("interrupted", interrupted),
    ] {
        assert!(count > 0, "of {what} there was none: nothing is shown");
    }
}

/// Each call has one result, and the files say the same as the results.
fn what_it_says_is_so(task: &Task, counts: &mut Counts, seed: u64) {
    let lines = task.lines();
    let results = results(&lines);
    let log = task.read("log");
    let (mut asked_for, mut known) = (BTreeSet::new(), 0);
    for line in &lines {
        match &line.chunk {
            Chunk::Waiting { .. } => counts.faults += 1,
            Chunk::StepEnded(dispatch_core::native::StepEnd::Cut { .. }) => counts.cut += 1,
            _ => {}
        }
        let Chunk::Block(Block::Call {
            id, input, name, ..
        }) = &line.chunk
        else {
            continue;
        };
        let input: Value = serde_json::from_str(input).unwrap();
        let output = &results[&(line.step.to_string(), id.clone())];
        let happened = if let Some(command) = input["command"].as_str() {
            let number = command.split(' ').nth(1).unwrap().to_owned();
            let times = log.lines().filter(|line| *line == number).count();
            assert!(
                asked_for.insert(number),
                "seed {seed}: the script says each once"
            );
            times
        } else if let Some(path) = input["path"].as_str().filter(|_| name == "write_file") {
            usize::from(task.dir.path().join("work").join(path).exists())
        } else {
            continue;
        };
        known += usize::from(input["command"].is_string()) * happened;
        let told = format!("seed {seed}: {name} {input}: {happened} times: {output}");
        if output.contains("was interrupted") || output.contains("stopped by whoever watches") {
            counts.interrupted += 1;
            assert!(happened <= 1, "{told}");
        } else if output.contains("was not run") || output.contains("not permitted") {
            assert_eq!(happened, 0, "{told}");
        } else {
            assert_eq!(happened, 1, "{told}");
        }
    }
    assert_eq!(
        log.lines().count(),
        known,
        "seed {seed}: something ran that nobody asked for"
    );
}
