//! Measures our own agent against a model server that answers at once: `bench-native DISPATCH [CLAUDE]`.
//! From its start to the first byte a provider gets, what it holds while it waits, how fast a stream
//! goes through it, a search beside `rg`, and a hundred of them with commands that print without end.
//! Must not assert, and must not be run beside other work: it measures.
#![expect(clippy::print_stdout, reason = "figures are printed")]

#[path = "bench/provider.rs"]
mod provider;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use dispatch_core::native::{Chunk, Line};
use provider::{Answer, Provider};
use serde_json::json;

const STARTS: usize = 21;
/// A rival takes a second for each.
const STARTS_RIVAL: usize = 5;
/// From its question to the look at its memory.
const SETTLED: Duration = Duration::from_secs(1);
const IDLE: usize = 7;
const ROUNDS: usize = 7;
const TOKENS: usize = 100_000;
/// A pace that no provider has today, in pieces of ten milliseconds.
const TOKENS_PACED: usize = 10_000;
const TOKENS_PER_TICK: usize = 50;
const TICK: Duration = Duration::from_millis(10);
const FILES: usize = 5000;
const FILE_LINES: usize = 200;
const SEARCHED: &str = "fn needle_[0-9]+";
const AGENTS: usize = 100;
const STEPS_EACH: usize = 4;
/// Of one command; four of them are the gigabyte.
const PRINTED_BYTES: u64 = 250_000_000;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (dispatch, claude) = match args.as_slice() {
        [dispatch] => (dispatch, None),
        [dispatch, claude] => (dispatch, Some(PathBuf::from(claude))),
        _ => bail!("bench-native DISPATCH [CLAUDE]"),
    };
    let place = std::env::temp_dir().join(format!("bench-native-{}", std::process::id()));
    fs::create_dir_all(&place)?;
    let bench = Bench {
        dispatch: PathBuf::from(dispatch),
        place: place.clone(),
    };
    bench.starts(claude.as_deref())?;
    bench.idle()?;
    bench.passed_through()?;
    bench.searches()?;
    bench.loud()?;
    fs::remove_dir_all(place)?;
    Ok(())
}

struct Bench {
    dispatch: PathBuf,
    place: PathBuf,
}

/// An agent at work, and the lines it says.
struct Agent {
    child: Child,
    /// Held open: its end would be the end of the agent.
    input: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Agent {
    fn line(&mut self) -> Result<Option<Line>> {
        let mut line = String::new();
        match self.lines.read_line(&mut line)? {
            0 => Ok(None),
            _ => Ok(Some(serde_json::from_str(&line)?)),
        }
    }

    fn until(&mut self, wanted: impl Fn(&Chunk) -> bool) -> Result<Chunk> {
        while let Some(line) = self.line()? {
            if wanted(&line.chunk) {
                return Ok(line.chunk);
            }
        }
        bail!("the agent ended before it said what is waited for")
    }

    /// Kilobytes by the name of a line in its `status`.
    fn kilobytes(&self, name: &str) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.context("no such line")?.trim_start_matches(':').trim();
        Ok(value.trim_end_matches(" kB").trim().parse()?)
    }

    fn end(mut self) -> Result<()> {
        self.child.kill()?;
        drop(self.input);
        self.child.wait()?;
        Ok(())
    }
}

impl Bench {
    fn agent(&self, provider: &Provider, cwd: &Path) -> Result<Agent> {
        let opening = json!({"open": {
            "version": 1, "session": "s", "cwd": cwd, "spill": self.place.join("spill"),
            "prompt": "Do it.",
            "chain": [{"key": "k", "model": "m"}],
            "keys": {"k": {"provider": "compatible", "base_url": format!("{}/v1", provider.url()),
                "auth": "none"}},
            "limits": {"steps_max": 100, "tokens_max": 0, "cost_usd_max": 0.0, "wall_clock_ms": 0,
                "retry_ms": 5, "wait_ms_max": 60_000, "ask_wait_ms": 1000},
            "rules": {"layers": [{"otherwise": "allow"}]},
            "live": true,
        }});
        let mut child = Command::new(&self.dispatch)
            .arg("agent")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().context("a pipe")?;
        writeln!(input, "{opening}")?;
        let lines = BufReader::new(child.stdout.take().context("a pipe")?);
        Ok(Agent {
            child,
            input,
            lines,
        })
    }

    fn work(&self, name: &str) -> Result<PathBuf> {
        let work = self.place.join(name);
        fs::create_dir_all(&work)?;
        Ok(work)
    }

    /// Beside `curl`, which knows its request already, and Claude Code.
    fn starts(&self, claude: Option<&Path>) -> Result<()> {
        let (provider, work) = (Provider::start()?, self.work("starts")?);
        let (mut ours, mut curl, mut rival) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..STARTS {
            let begun = Instant::now();
            let agent = self.agent(&provider, &work)?;
            ours.push(ms(provider.first_byte()?.duration_since(begun)));
            agent.end()?;
            let begun = Instant::now();
            let mut command = Command::new("curl");
            command.args(["-s", "-d", "{}"]).arg(provider.url());
            curl.push(first_byte(command, &provider, begun)?);
        }
        for _ in 0..STARTS_RIVAL {
            let Some(claude) = claude else { break };
            let begun = Instant::now();
            let mut command = Command::new(claude);
            command
                .args(["-p", "hi"])
                .current_dir(&work)
                .env("HOME", self.work("home")?)
                .env("ANTHROPIC_BASE_URL", provider.url())
                .env("ANTHROPIC_API_KEY", "key")
                .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1");
            rival.push(first_byte(command, &provider, begun)?);
        }
        let what = "start to the first byte of a request";
        let ours = figure(&format!("our agent: {what}"), ours, "ms");
        let curl = figure(&format!("curl: {what}"), curl, "ms");
        println!("ratio to curl: {:.2}", ours / curl);
        if claude.is_none() {
            println!("SKIPPED: Claude Code beside ours: it is not installed");
            return Ok(());
        }
        let rival = figure(&format!("Claude Code: {what}"), rival, "ms");
        println!("ratio to Claude Code: {:.3}", ours / rival);
        Ok(())
    }

    fn idle(&self) -> Result<()> {
        let (provider, work) = (Provider::start()?, self.work("idle")?);
        let (mut all, mut own) = (Vec::new(), Vec::new());
        for _ in 0..IDLE {
            let agent = self.agent(&provider, &work)?;
            provider.first_byte()?;
            thread::sleep(SETTLED);
            all.push(agent.kilobytes("VmRSS")? / 1000.0);
            own.push(agent.kilobytes("RssAnon")? / 1000.0);
            agent.end()?;
        }
        figure("memory of an agent that waits (RSS)", all, "MB");
        figure("of it its own, not the program's file", own, "MB");
        Ok(())
    }

    /// From the first byte that is sent to the line that closes the text, beside a reader that only reads.
    fn passed_through(&self) -> Result<()> {
        let work = self.work("stream")?;
        let fast = Answer::tokens(TOKENS, None);
        let paced = Answer::tokens(TOKENS_PACED, Some((TOKENS_PER_TICK, TICK)));
        for (name, tokens, answer) in [
            ("5,000 tokens/s", TOKENS_PACED, paced),
            ("as fast as it goes", TOKENS, fast),
        ] {
            let (mut raw, mut ours) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                let provider = Provider::start()?;
                provider.answer(answer.clone());
                let mut stream = TcpStream::connect(provider.address())?;
                stream.write_all(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n")?;
                let begun = provider.sending()?;
                let mut sink = [0; 1 << 16];
                while stream.read(&mut sink)? > 0 {}
                raw.push(per_second(tokens, begun.elapsed()));

                provider.answer(answer.clone());
                let mut agent = self.agent(&provider, &work)?;
                let begun = provider.sending()?;
                agent.until(|chunk| matches!(chunk, Chunk::Block(_)))?;
                ours.push(per_second(tokens, begun.elapsed()));
                agent.end()?;
            }
            let raw = figure(
                &format!("a stream that comes with {name}: read"),
                raw,
                "tokens/s",
            );
            let ours = figure("through our agent", ours, "tokens/s");
            println!("ratio: {:.3}", ours / raw);
        }
        Ok(())
    }

    /// From the line before it to the line of its result. Cold: nothing of the files is in memory.
    fn searches(&self) -> Result<()> {
        let work = self.work("searched")?;
        tree(&work)?;
        let call = Answer::call("search_code", &json!({"query": SEARCHED}));
        for cold in [true, false] {
            let (mut rg, mut ours) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                let provider = Provider::start()?;
                provider.answer(call.clone());
                if cold && !forget_files() {
                    println!("SKIPPED: a cold search: only root can empty the page cache");
                    break;
                }
                let mut agent = self.agent(&provider, &work)?;
                agent.until(|chunk| matches!(chunk, Chunk::Running { .. }))?;
                let begun = Instant::now();
                let result = agent.until(|chunk| matches!(chunk, Chunk::Result { .. }))?;
                ours.push(ms(begun.elapsed()));
                let found =
                    matches!(&result, Chunk::Result { output, .. } if output.contains("needle_"));
                ensure!(found, "nothing was found: {result:?}");
                agent.end()?;
                if cold {
                    forget_files();
                }
                let begun = Instant::now();
                let found = Command::new("rg")
                    .args(["--no-config", "--line-number", SEARCHED])
                    .arg(&work)
                    .output();
                match found {
                    Ok(found) => ensure!(found.status.success(), "rg: {found:?}"),
                    Err(_) => continue,
                }
                rg.push(ms(begun.elapsed()));
            }
            if ours.is_empty() {
                continue;
            }
            let how = if cold { "cold" } else { "warm" };
            let ours = figure(&format!("search_code, {FILES} files, {how}"), ours, "ms");
            if rg.is_empty() {
                println!("SKIPPED: rg beside it: it is not installed (apt-get install ripgrep)");
                continue;
            }
            let rg = figure(&format!("rg, the same, {how}"), rg, "ms");
            println!("ratio: {:.2}", ours / rg);
        }
        Ok(())
    }

    /// A hundred at once, each with a gigabyte of what its commands print.
    fn loud(&self) -> Result<()> {
        let work = self.work("loud")?;
        let begun = Instant::now();
        let command = format!("yes abcdefghijklmnopqrstuvwxyz | head -c {PRINTED_BYTES}");
        let call = Answer::call(
            "run_shell",
            &json!({"command": command, "timeout": 3_600_000}),
        );
        let peaks: Result<Vec<f64>> = thread::scope(|scope| {
            let agents: Vec<_> = (0..AGENTS)
                .map(|_| {
                    scope.spawn(|| {
                        let provider = Provider::start()?;
                        for _ in 0..STEPS_EACH {
                            provider.answer(call.clone());
                        }
                        provider.answer(Answer::tokens(1, None));
                        let mut agent = self.agent(&provider, &work)?;
                        let mut peak = 0.0;
                        let results = agent_results(&mut agent, &mut peak)?;
                        ensure!(results == STEPS_EACH, "{results} results");
                        agent.end()?;
                        Ok(peak)
                    })
                })
                .collect();
            agents
                .into_iter()
                .map(|agent| agent.join().map_err(|_| anyhow::anyhow!("a thread died"))?)
                .collect()
        });
        let peaks = peaks?;
        let bytes = u64::try_from(AGENTS * STEPS_EACH)? * PRINTED_BYTES;
        println!(
            "{AGENTS} agents at once, {} GB printed by their commands in {:.0} s:",
            bytes / 1_000_000_000,
            begun.elapsed().as_secs_f64()
        );
        figure("peak memory of each (RSS)", peaks, "MB");
        Ok(())
    }
}

/// How many calls were answered until the turn was over, and the most memory it ever had.
fn agent_results(agent: &mut Agent, peak_mb: &mut f64) -> Result<usize> {
    let mut results = 0;
    while let Some(line) = agent.line()? {
        match line.chunk {
            Chunk::Result { failed, output, .. } => {
                ensure!(!failed, "a command failed: {output}");
                results += 1;
                *peak_mb = agent.kilobytes("VmHWM")? / 1000.0;
            }
            Chunk::TurnEnded { .. } => return Ok(results),
            _ => {}
        }
    }
    bail!("the agent ended in the middle of its turn")
}

fn first_byte(mut command: Command, provider: &Provider, begun: Instant) -> Result<f64> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let asked = provider.first_byte();
    child.kill()?;
    child.wait()?;
    Ok(ms(asked?.duration_since(begun)))
}

/// Files as a program has them; one in a hundred has what is searched.
fn tree(work: &Path) -> Result<()> {
    fs::create_dir_all(work.join(".git"))?;
    for n in 0..FILES {
        let dir = work.join(format!("src/part_{}", n % 50));
        fs::create_dir_all(&dir)?;
        let mut text = String::new();
        for line in 0..FILE_LINES {
            text.push_str(&format!(
                "    let value_{line} = compute(input_{n}, {line});\n"
            ));
        }
        if n % 100 == 0 {
            text.push_str(&format!("fn needle_{n}() {{}}\n"));
        }
        fs::write(dir.join(format!("file_{n}.rs")), text)?;
    }
    Ok(())
}

fn forget_files() -> bool {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
fn per_second(tokens: usize, time: Duration) -> f64 {
    tokens as f64 / time.as_secs_f64()
}

/// Median, least, most.
fn figure(name: &str, mut samples: Vec<f64>, unit: &str) -> f64 {
    samples.sort_by(f64::total_cmp);
    let p50 = samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN);
    let [least, most] = [samples.first(), samples.last()].map(|s| s.copied().unwrap_or(f64::NAN));
    println!(
        "{name}: {p50:.1} {unit} ({least:.1} to {most:.1}, n = {})",
        samples.len()
    );
    p50
}
