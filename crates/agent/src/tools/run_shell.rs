//! `run_shell`: a line of shell in the workspace. Somebody waits for it, or it goes on by itself.
//! Must not keep a person's message waiting: a command that is waited for is left to itself then.

use std::{sync::Arc, time::Duration};

use dispatch_core::rules::{Group, Subject};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Given, Planned, Run, Tool, Wrong,
    jobs::{Job, Jobs, Order},
    schema,
};

const TIMEOUT_USUAL: Duration = Duration::from_secs(120);
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
/// What is told of a command that goes on.
const SO_FAR_CHARS: usize = 500;

pub(super) const TOOL: Tool = Tool {
    name: "run_shell",
    line: "run a command in a shell",
    help: "Runs a line of bash in the workspace and answers with what it printed and its exit code, \
           as JSON. It may take two minutes, or as long as timeout says; then everything it started \
           is ended. What it leaves running in its background is ended with it: for a server or \
           anything that is to go on, set background, and use shell_jobs to see how it does. Its \
           input is empty.",
    group: Group::Shell,
    safe: false,
    schema: schema::<Input>,
    plan,
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The command.
    command: String,
    /// How many milliseconds it may take. Without it 120000; a background command may go on.
    #[serde(default)]
    #[schemars(range(min = 1))]
    timeout: Option<u64>,
    /// Do not wait for it. Its input stays open for shell_jobs.
    #[serde(default)]
    background: bool,
}

/// Ends what nobody waits for any more, unless it was left to itself.
struct Waited(Option<Arc<Job>>);

impl Drop for Waited {
    fn drop(&mut self) {
        if let Some(job) = &self.0 {
            job.kill();
        }
    }
}

fn plan(given: &Given) -> Result<Planned, Wrong> {
    let input: Input = given.parse()?;
    if input.command.trim().is_empty() {
        return Err(Wrong::new("the command is empty"));
    }
    let subject = Subject::Command(input.command.clone());
    Ok(Planned::new(vec![subject], |run| run_command(run, input)))
}

async fn run_command(run: Run, input: Input) -> Result<String, Wrong> {
    let asked = input.timeout.map(Duration::from_millis);
    let limit = match (asked, input.background) {
        (Some(limit), _) => Some(limit.min(TIMEOUT_MAX)),
        (None, true) => None,
        (None, false) => Some(TIMEOUT_USUAL),
    };
    let order = Order {
        call: run.call,
        command: input.command,
        limit,
        open_input: input.background,
    };
    let place = &run.place;
    let job = Jobs::start(place, order)?;
    if input.background {
        return Ok(format!(
            "{} is running; shell_jobs tells how it does",
            job.id
        ));
    }
    let mut waited = Waited(Some(Arc::clone(&job)));
    tokio::select! {
        biased;
        ended = job.wait() => {
            place.jobs.forget(&job);
            Ok(job.told(&ended))
        }
        () = place.spoken_to() => {
            waited.0 = None;
            Ok(left(&job))
        }
    }
}

fn left(job: &Job) -> String {
    let (out, err) = job.last(SO_FAR_CHARS);
    let mut text = format!(
        "Somebody has said something, so this command goes on by itself as {}; shell_jobs tells how \
         it does.\ncommand: {}",
        job.id, job.command
    );
    for (name, part) in [("stdout", out), ("stderr", err)] {
        if !part.is_empty() {
            text.push_str(&format!("\n{name} so far ends with:\n{part}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::{Value, json};
    use tokio::time::timeout;

    use super::*;
    use crate::tools::testing::Bench;

    async fn json_of(bench: &Bench, input: Value) -> Value {
        serde_json::from_str(&bench.told("run_shell", input).await).unwrap()
    }

    /// Whether a process with this text in its command line is there.
    fn runs(mark: &str) -> bool {
        let all = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
            .any(|line| String::from_utf8_lossy(&line).contains(mark))
    }

    async fn gone(mark: &str) {
        let gone = async {
            while runs(mark) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(5), gone).await.expect(mark);
    }

    #[tokio::test]
    async fn a_command_says_what_it_printed_and_how_it_ended() {
        let bench = Bench::new();
        bench.write("a.txt", "hi\n");
        let told = json_of(&bench, json!({"command": "cat a.txt; echo no >&2; exit 3"})).await;
        assert_eq!(
            told,
            json!({"stdout": "hi\n", "stderr": "no\n", "exitCode": 3})
        );
        let told = json_of(&bench, json!({"command": "kill -9 $$"})).await;
        assert_eq!(told["error"], "it was ended by signal 9");
        assert_eq!(told["exitCode"], Value::Null);
        let told = json_of(
            &bench,
            json!({"command": "cat; echo ${CARGO_MANIFEST_DIR:-hidden}"}),
        )
        .await;
        assert_eq!(told["stdout"], "hidden\n");
        assert!(
            bench
                .wrong("run_shell", json!({"command": " "}))
                .await
                .contains("empty")
        );
    }

    #[tokio::test]
    async fn all_of_it_ends_when_its_time_is_over() {
        let bench = Bench::new();
        let command = "trap '' TERM; sleep 86401 & (sleep 86401; true) & echo begun; sleep 86401";
        let begun = Instant::now();
        let told = json_of(&bench, json!({"command": command, "timeout": 100})).await;
        assert_eq!(told["stdout"], "begun\n");
        assert!(
            told["error"].as_str().unwrap().contains("after 100 ms"),
            "{told}"
        );
        assert!(begun.elapsed() < Duration::from_secs(3));
        gone("86401").await;
    }

    #[tokio::test]
    async fn what_it_leaves_behind_ends_with_it_and_does_not_hold_it() {
        let bench = Bench::new();
        let begun = Instant::now();
        let told = json_of(&bench, json!({"command": "sleep 86402 & echo done"})).await;
        assert_eq!(
            (&told["stdout"], &told["exitCode"]),
            (&json!("done\n"), &json!(0))
        );
        assert!(begun.elapsed() < Duration::from_secs(3));
        gone("86402").await;
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_ends_its_command() {
        let bench = Bench::new();
        let call = bench.run("run_shell", json!({"command": "sleep 86403"}));
        assert!(timeout(Duration::from_millis(100), call).await.is_err());
        gone("86403").await;
    }

    #[tokio::test]
    async fn a_message_is_not_kept_waiting() {
        let bench = Bench::new();
        let command = "echo begun; read -t 3 x < <(sleep 86404); echo end";
        let call = bench.told("run_shell", json!({"command": command}));
        let speak = async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            bench.messages.send_replace(1);
        };
        let (told, ()) = tokio::join!(call, speak);
        assert!(told.contains("goes on by itself as job-1"), "{told}");
        assert!(told.contains("stdout so far ends with:\nbegun"), "{told}");
        assert!(bench.place.jobs.get("job-1").unwrap().ended().is_none());
        bench.place.end().await;
        gone("86404").await;
    }

    /// However much it prints, it takes no more memory, and the result is short.
    #[tokio::test]
    async fn a_flood_is_cut_and_kept_up_to_a_limit() {
        let bench = Bench::new();
        let before = resident_kib();
        let command = "head -c 100000000 /dev/zero | tr '\\0' 'x'; echo; echo the end";
        let told = bench
            .told("run_shell", json!({"command": command, "timeout": 60000}))
            .await;
        let grown = resident_kib().saturating_sub(before);
        assert!(
            told.len() < 5_000 && told.contains("100000009 bytes"),
            "{told}"
        );
        assert!(
            told.contains("the end") && told.contains("Some of it is lost"),
            "{told}"
        );
        assert!(grown < 40_000, "{grown} KiB more");
    }

    fn resident_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}
