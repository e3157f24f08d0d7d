//! Kills the real engine at random instants with several live jobs, again and again, and checks the
//! invariants: one end per run, no execution twice, no byte of output missing or doubled, no process
//! left. Must not stop early at a violation: it counts them all, prints their tasks, and then fails.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::build::{need_git, program};

const JOBS: usize = 6;
const KILLS_PER_SCENARIO: usize = 8;
/// Kills come at random instants of this span after an engine serves.
const SPAN_MS: u64 = 150;
const SCENARIO_LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Default)]
struct Count {
    scenarios: usize,
    kills: usize,
    runs: usize,
    lost: usize,
    doubled: usize,
    leaked: usize,
}

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let (mut kills, mut seed) = (200, std::process::id().into());
    let mut args = args.iter();
    while let Some(flag) = args.next() {
        let value = args
            .next()
            .with_context(|| format!("{flag} wants a number"))?;
        match *flag {
            "--count" => kills = value.parse().context("--count wants a number")?,
            "--seed" => seed = value.parse().context("--seed wants a number")?,
            other => bail!("unknown flag {other}; there are --count, --seed"),
        }
    }
    need_git()?;
    let dispatch = program("dispatch", "dispatch", false)?;
    let agent = program("dispatch-test-programs", "fake-agent", false)?;
    let placements: &[&str] = if can_cage(&dispatch)? {
        &["cage", "host", "listed"]
    } else {
        println!("SKIPPED: scenarios in the cage; `dispatch doctor` tells what is missing here");
        &["host"]
    };
    println!("seed {seed}; placements {}", placements.join(" and "));
    let mut random = Random(seed);
    let mut count = Count::default();
    let begun = Instant::now();
    while count.kills < kills {
        let wanted = KILLS_PER_SCENARIO.min(kills - count.kills);
        // In turns: a fence is killed around, nothing is, and a fence with a sidecar beside it.
        let placement = placements[count.scenarios % placements.len()];
        let scenario = Scenario::new(&dispatch, &agent, placement)?;
        scenario.play(wanted, &mut random, &mut count)?;
    }
    println!(
        "scenarios {}  kills {}  runs {}  lost {}  doubled {}  leaked {}  ({:.0} s)",
        count.scenarios,
        count.kills,
        count.runs,
        count.lost,
        count.doubled,
        count.leaked,
        begun.elapsed().as_secs_f64()
    );
    ensure!(
        count.lost + count.doubled + count.leaked == 0,
        "an invariant does not hold (seed {seed})"
    );
    Ok(())
}

/// Xorshift: the same seed gives the same instants.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % limit
    }
}

struct Scenario {
    place: tempfile::TempDir,
    dispatch: PathBuf,
}

impl Scenario {
    fn new(dispatch: &Path, agent: &Path, placement: &str) -> Result<Self> {
        let place = tempfile::Builder::new()
            .prefix("dispatch-crash-")
            .tempdir()?;
        let scenario = Self {
            place,
            dispatch: dispatch.to_owned(),
        };
        fs::create_dir(scenario.path("home"))?;
        fs::create_dir(scenario.path("repo"))?;
        // What lets the jobs go: theirs to look at, in a cage too.
        fs::create_dir(scenario.path("gates"))?;
        // Nothing is tried again: a run that is lost must be seen.
        fs::write(
            scenario.path("home/dispatch.toml"),
            format!(
                "[task]\nagent = \"fake\"\n[gate]\nretries_max = 0\nload_per_core_max = 0\n[pools.test]\nslots = {JOBS}\n[agents.fake]\ndriver = \"plain\"\n\
                 program = \"{}\"\npool = \"test\"\nplacement = \"{placement}\"\npaths = [{:?}]\n\
                 [placements.listed]\nwrap = \"cage\"\nnetwork = {{ allow = [\"a.invalid\"] }}\n",
                agent.display(),
                scenario.path("gates")
            ),
        )?;
        fs::write(scenario.path("repo/Makefile"), "check:\n\ttest -f result\n")?;
        for args in [
            &["init", "-q", "-b", "main"][..],
            &["add", "-A"],
            &[
                "-c",
                "user.name=x",
                "-c",
                "user.email=x@example.invalid",
                "commit",
                "-qm",
                "x",
            ],
        ] {
            let status = Command::new("git")
                .args(args)
                .current_dir(scenario.path("repo"))
                .status()?;
            ensure!(status.success(), "git {args:?} failed");
        }
        Ok(scenario)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.dispatch);
        command
            .args(args)
            .current_dir(self.path("repo"))
            .env("DISPATCH_HOME", self.path("home"));
        command.stdin(Stdio::null());
        command
    }

    fn serve(&self) -> Result<Child> {
        let begun = Instant::now();
        loop {
            let mut child = self
                .command(&["serve"])
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?;
            let mut said = String::new();
            if let Some(stderr) = child.stderr.take() {
                BufReader::new(stderr).read_line(&mut said)?;
            }
            if said.contains(" serves ") {
                return Ok(child);
            }
            child.wait()?;
            ensure!(
                begun.elapsed() < SCENARIO_LIMIT,
                "the engine does not start: {said}"
            );
        }
    }

    /// Several live jobs that end when they are let go, and an engine killed again and again.
    fn play(&self, kills: usize, random: &mut Random, count: &mut Count) -> Result<()> {
        let mut engine = self.serve()?;
        for n in 0..JOBS {
            let lines = 200 * (n + 1);
            let task = format!(
                "job {n}\n@append count ran\n@lines {lines}\n@await {}\n@write result {n}\n@lines {lines}\n@say done\n",
                self.path(&format!("gates/go{n}")).display(),
            );
            let output = self
                .command(&["run", "--detach", "--json", &task])
                .output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "dispatch run --detach: {said}");
        }
        for kill in 0..kills {
            // Jobs end in the middle of it all, one by one.
            fs::write(self.path(&format!("gates/go{}", kill % JOBS)), "")?;
            std::thread::sleep(Duration::from_millis(random.below(SPAN_MS)));
            engine.kill()?;
            engine.wait()?;
            count.kills += 1;
            engine = self.serve()?;
        }
        for n in 0..JOBS {
            fs::write(self.path(&format!("gates/go{n}")), "")?;
        }
        let tasks = self.wait_for_all()?;
        engine.kill()?;
        engine.wait()?;
        count.scenarios += 1;
        self.judge(&tasks, count)
    }

    fn list(&self) -> Result<Vec<Value>> {
        let output = self.command(&["list", "--all", "--json"]).output()?;
        let list: Value = serde_json::from_slice(&output.stdout).context("read the list")?;
        Ok(list.as_array().cloned().unwrap_or_default())
    }

    fn wait_for_all(&self) -> Result<Vec<Value>> {
        let ids: Vec<String> = self
            .list()?
            .iter()
            .filter_map(|task| task["id"].as_str().map(Into::into))
            .collect();
        let mut args = vec!["wait"];
        args.extend(ids.iter().map(String::as_str));
        let output = self.command(&args).output()?;
        let tasks = self.list()?;
        let open = |task: &&Value| {
            !matches!(
                task["state"].as_str(),
                Some("completed" | "failed" | "stopped" | "lost" | "blocked")
            )
        };
        ensure!(
            tasks.iter().filter(open).count() == 0,
            "tasks are open after `wait`: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(tasks)
    }

    fn judge(&self, tasks: &[Value], count: &mut Count) -> Result<()> {
        let mut out = std::io::stdout().lock();
        count.lost += JOBS.saturating_sub(tasks.len());
        let ends = self.ends()?;
        for task in tasks {
            let (id, title) = (
                task["id"].as_str().unwrap_or(""),
                task["title"].as_str().unwrap_or(""),
            );
            let n: usize = title
                .trim_start_matches("job ")
                .parse()
                .context("a task's number")?;
            count.runs += 1;
            if task["state"] != "completed" || task["verified"] != "yes" {
                count.lost += 1;
                writeln!(out, "lost: {task}")?;
            }
            let workspace = task["workspace"]
                .as_str()
                .context("a task has a workspace")?;
            let executions = fs::read_to_string(Path::new(workspace).join("count"))?
                .lines()
                .count();
            let ended = ends.iter().filter(|end| *end == id).count();
            if executions != 1 || ended != 1 {
                count.doubled += 1;
                writeln!(
                    out,
                    "doubled: {executions} executions, {ended} ends: {task}"
                )?;
            }
            let lines: String = (0..200 * (n + 1)).map(|n| format!("line {n}\n")).collect();
            let log = task["runs"][0]["log"].as_str().context("a run has a log")?;
            if fs::read_to_string(log)? != format!("{lines}{lines}done\n") {
                count.lost += 1;
                writeln!(out, "output is not what it said: {task}")?;
            }
            let left = alive(id);
            if !left.is_empty() {
                count.leaked += left.len();
                writeln!(out, "leaked: processes {} of {id}", left.join(" "))?;
            }
        }
        Ok(())
    }

    /// Tasks of all `finished` events, from the log itself.
    fn ends(&self) -> Result<Vec<String>> {
        let output = self.command(&["events", "--json"]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut ends = Vec::new();
        for line in text.lines() {
            let event: Value = serde_json::from_str(line).context("read an event")?;
            if event["kind"] == "finished" {
                ends.extend(event["task"].as_str().map(ToOwned::to_owned));
            }
        }
        Ok(ends)
    }
}

/// Whether this machine has any fence at all.
fn can_cage(dispatch: &Path) -> Result<bool> {
    let home = tempfile::tempdir()?;
    let output = Command::new(dispatch)
        .args(["doctor", "--json"])
        .env("DISPATCH_HOME", home.path())
        .stdin(Stdio::null())
        .output()?;
    let found: Value = serde_json::from_slice(&output.stdout).context("read what doctor found")?;
    let mut rows = found.as_array().into_iter().flatten();
    Ok(rows.any(|row| row["what"] == "cage" && row["state"] != "missing"))
}

/// Processes that carry the task's mark.
fn alive(task: &str) -> Vec<String> {
    let mark = format!("DISPATCH_JOB={task}-");
    let Ok(listed) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let names =
        listed.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
    names
        .filter(|pid| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ
                .split(|b| *b == 0)
                .any(|entry| entry.starts_with(mark.as_bytes()))
        })
        .collect()
}
