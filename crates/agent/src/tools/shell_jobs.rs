//! `shell_jobs`: commands that go on by themselves: which there are, what they print, their input,
//! their end. Must not wait longer than it was asked to, nor keep a person's message waiting.

use std::{fmt::Write as _, time::Duration};

use dispatch_core::rules::{Group, Subject};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::sleep;

use super::{
    Given, Planned, Run, Tool, Wrong,
    jobs::{Ended, Job},
    schema,
};

const LAST_CHARS_USUAL: usize = 2_000;
const LAST_CHARS_MAX: usize = 8_000;
const WAIT_USUAL: Duration = Duration::from_secs(60);
const WAIT_MAX: Duration = Duration::from_secs(600);
const COMMAND_CHARS: usize = 200;

pub(super) const TOOL: Tool = Tool {
    name: "shell_jobs",
    line: "see and control commands that go on by themselves",
    help: "For commands started with background, or left to themselves: `list` all of them, `tail` \
           what one printed last, `wait` for its end (a minute, or as long as timeout says) and get \
           its whole result, `stdin` to give it input, `kill` it and all it started. Wait instead \
           of looking again and again.",
    group: Group::Shell,
    safe: false,
    schema: schema::<Input>,
    plan,
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// What to do.
    action: Action,
    /// Which one, such as job-3; for all but list.
    #[serde(default)]
    job: Option<String>,
    /// For stdin: the text, with a line end where one is wanted.
    #[serde(default)]
    input: Option<String>,
    /// For stdin: nothing more will come.
    #[serde(default)]
    close: bool,
    /// For tail: how many characters, at most 8000.
    #[serde(default)]
    chars: Option<usize>,
    /// For wait: how many milliseconds, at most 600000.
    #[serde(default)]
    timeout: Option<u64>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Action {
    List,
    Tail,
    Wait,
    Stdin,
    Kill,
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Tail => "tail",
            Self::Wait => "wait",
            Self::Stdin => "stdin",
            Self::Kill => "kill",
        }
    }
}

fn plan(given: &Given) -> Result<Planned, Wrong> {
    let input: Input = given.parse()?;
    let job = input.job.as_deref().unwrap_or_default();
    let what = format!("{} {job}", input.action.word());
    let mut subjects = vec![Subject::name(what.trim_end())];
    // A shell that hears it runs it.
    if let (Action::Stdin, Some(line)) = (input.action, &input.input) {
        subjects.push(Subject::Command(line.trim_end().to_owned()));
    }
    Ok(Planned::new(subjects, |run| act(run, input)))
}

async fn act(run: Run, input: Input) -> Result<String, Wrong> {
    let place = &run.place;
    if matches!(input.action, Action::List) {
        let lines: Vec<String> = place.jobs.all().iter().map(|job| line(job)).collect();
        let none = || "no command is running, and none was".to_owned();
        return Ok(if lines.is_empty() {
            none()
        } else {
            lines.join("\n")
        });
    }
    let id = input
        .job
        .as_deref()
        .ok_or_else(|| Wrong::new("say which job"))?;
    let job = place.jobs.get(id)?;
    match input.action {
        Action::List | Action::Tail => {
            let chars = input.chars.unwrap_or(LAST_CHARS_USUAL).min(LAST_CHARS_MAX);
            let (out, err) = job.last(chars);
            Ok(format!(
                "{}\nstdout ends with:\n{out}\nstderr ends with:\n{err}",
                line(&job)
            ))
        }
        Action::Wait => {
            let limit = input
                .timeout
                .map_or(WAIT_USUAL, Duration::from_millis)
                .min(WAIT_MAX);
            tokio::select! {
                biased;
                ended = job.wait() => Ok(job.told(&ended)),
                () = place.spoken_to() => {
                    Ok(format!("somebody has said something; {}", line(&job)))
                }
                () = sleep(limit) => Ok(line(&job)),
            }
        }
        Action::Stdin => {
            let text = input.input.unwrap_or_default();
            job.say(&text, input.close).await?;
            Ok(format!("gave {id} {} bytes", text.len()))
        }
        Action::Kill => {
            job.kill();
            Ok(job.told(&job.wait().await))
        }
    }
}

fn line(job: &Job) -> String {
    let how = match job.ended() {
        None => "is running".to_owned(),
        Some(Ended::Code(code)) => format!("ended with code {code}"),
        Some(Ended::Signal(signal)) => format!("was ended by signal {signal}"),
        Some(Ended::TimedOut(_)) => "ran out of time".to_owned(),
        Some(Ended::Killed) => "was told to end".to_owned(),
        Some(Ended::Unknown(why)) => format!("ended, and how is not known: {why}"),
    };
    let (seconds, bytes) = (job.seconds(), job.bytes());
    let command: String = job.command.chars().take(COMMAND_CHARS).collect();
    let mut text = format!("{} {how}", job.id);
    match write!(
        text,
        ", begun {seconds} s ago, {bytes} bytes printed: {command}"
    ) {
        // Writing into a text does not fail.
        Ok(()) | Err(_) => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::tools::testing::Bench;

    async fn start(bench: &Bench, command: &str) {
        let told = bench
            .told("run_shell", json!({"command": command, "background": true}))
            .await;
        assert!(told.contains("is running"), "{told}");
    }

    #[tokio::test]
    async fn a_command_in_the_background_can_be_spoken_to_and_waited_for() {
        let bench = Bench::new();
        let job = |input| bench.told("shell_jobs", input);
        assert_eq!(
            job(json!({"action": "list"})).await,
            "no command is running, and none was"
        );
        start(&bench, "while read line; do echo got $line; done; exit 4").await;
        job(json!({"action": "stdin", "job": "job-1", "input": "a\n"})).await;
        let waited = job(json!({"action": "wait", "job": "job-1", "timeout": 50})).await;
        assert!(waited.starts_with("job-1 is running"), "{waited}");
        job(json!({"action": "stdin", "job": "job-1", "input": "b\n", "close": true})).await;
        let told: Value =
            serde_json::from_str(&job(json!({"action": "wait", "job": "job-1"})).await).unwrap();
        assert_eq!(
            told,
            json!({"stdout": "got a\ngot b\n", "stderr": "", "exitCode": 4})
        );
        let tail = job(json!({"action": "tail", "job": "job-1", "chars": 6})).await;
        assert!(
            tail.contains("ended with code 4") && tail.contains(":\ngot b\n"),
            "{tail}"
        );
        let list = job(json!({"action": "list"})).await;
        assert!(
            list.contains("16 bytes printed") || list.contains("12 bytes printed"),
            "{list}"
        );
        let closed = bench
            .wrong(
                "shell_jobs",
                json!({"action": "stdin", "job": "job-1", "input": "x"}),
            )
            .await;
        assert_eq!(closed, "error: the input of job-1 is closed");
    }

    #[tokio::test]
    async fn one_is_ended_and_the_others_go_on() {
        let bench = Bench::new();
        start(&bench, "echo a; sleep 86410").await;
        start(&bench, "sleep 86411").await;
        let told = bench
            .told("shell_jobs", json!({"action": "kill", "job": "job-1"}))
            .await;
        assert!(told.contains("it was told to end"), "{told}");
        let list = bench.told("shell_jobs", json!({"action": "list"})).await;
        assert!(
            list.contains("job-1 was told") && list.contains("job-2 is running"),
            "{list}"
        );
        for (input, part) in [
            (
                json!({"action": "tail", "job": "job-9"}),
                "there are job-1, job-2",
            ),
            (json!({"action": "kill"}), "say which job"),
            (json!({"action": "fly"}), "unknown variant `fly`"),
        ] {
            let wrong = bench.wrong("shell_jobs", input).await;
            assert!(wrong.contains(part), "{wrong}");
        }
        bench.place.end().await;
        let list = bench.told("shell_jobs", json!({"action": "list"})).await;
        assert!(!list.contains("is running"), "{list}");
    }

    #[tokio::test]
    async fn there_is_room_for_so_many() {
        let bench = Bench::new();
        for _ in 0..32 {
            start(&bench, "sleep 86412").await;
        }
        let input = json!({"command": "true"});
        let wrong = bench.wrong("run_shell", input.clone()).await;
        assert!(wrong.contains("32 commands are running"), "{wrong}");
        bench.place.end().await;
        assert!(bench.run("run_shell", input).await.is_ok());
    }
}
