//! The main job, shown: a fix that passes its check, a question that is answered, and an engine that
//! is killed in the middle. Offline and without a key: the agent is our own, and what its model answers
//! was written down before; a server of the tests says it again.
//! Must not fake an outcome: what it prints is what the real binary said.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::build::{bubblewrap, need_git, path_with, program};

const CALC: &str = "pub fn add(a: i32, b: i32) -> i32 {\n    a - b\n}\n\n#[cfg(test)]\nmod tests {\n    \
                    #[test]\n    fn adds() {\n        assert_eq!(super::add(2, 2), 4);\n    }\n}\n";

/// Steps of what part 3 works on.
const STEPS: usize = 20;

/// What a model answers in each part, one entry a question. Only the answers are recorded: the tools
/// that they call run, in the cage, and the checks judge what came of it.
fn answers() -> [(&'static str, Value); 3] {
    let edits = json!([{"old": "a - b", "new": "a + b"}]);
    let busy = format!(
        "echo ran >> started.txt; for n in $(seq {STEPS}); do echo working $n; sleep 0.2; done"
    );
    [
        (
            "fix",
            json!([
                {"text": "I look at the code and its test first.", "tool": "read_file", "args": {"path": "src/lib.rs"}},
                {"text": "It subtracts.", "tool": "edit_file", "args": {"path": "src/lib.rs", "edits": edits}},
                {"tool": "shell", "command": "cargo test --offline --quiet"},
                {"text": "add() subtracted; it adds now, and the test passes.", "repeat": true},
            ]),
        ),
        (
            "question",
            json!([
                {"text": "Nothing here says which zone.", "tool": "write", "path": "BLOCKED.md",
                 "content": "Which time zone should it be?\n"},
                {"text": "I have asked, and stop here."},
                {"tool": "write", "path": "ZONE", "content": "UTC\n"},
                {"text": "Written down, as you said.", "repeat": true},
            ]),
        ),
        (
            "busy",
            json!([
                {"tool": "shell", "command": busy},
                {"tool": "write", "path": "busy.txt", "content": "done\n"},
                {"text": "All of it is done.", "repeat": true},
            ]),
        ),
    ]
}

/// The server that says them. It ends with its standard input.
struct Model {
    server: Child,
    url: String,
}

impl Model {
    fn start(place: &Path) -> Result<Self> {
        let scripts = place.join("answers");
        fs::create_dir_all(&scripts)?;
        for (name, steps) in answers() {
            fs::write(scripts.join(format!("{name}.json")), steps.to_string())?;
        }
        let mut server = Command::new(program("dispatch-test-programs", "fake-model", false)?)
            .arg("--scripts")
            .arg(scripts)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the recorded model")?;
        let out = server.stdout.take().context("it has an output")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        let said: Value = serde_json::from_str(&line).context("read where the model is")?;
        let url = said["url"]
            .as_str()
            .context("it has an address")?
            .to_owned();
        Ok(Self { server, url })
    }

    /// A key for each part, which asks for nothing.
    fn keys(&self) -> String {
        let key = |(name, _)| {
            let url = &self.url;
            format!(
                "[keys.{name}]\nprovider = \"compatible\"\nbase_url = \"{url}/s/{name}/v1\"\n\
                 auth = \"none\"\n"
            )
        };
        answers().map(key).concat()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // Ended already, or ended now.
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

struct Demo {
    /// With bubblewrap on it, so that the cage is whole.
    path: std::ffi::OsString,
    dispatch: PathBuf,
    home: PathBuf,
    project: PathBuf,
}

pub(crate) fn run() -> Result<()> {
    need_git()?;
    println!("building dispatch ...");
    let dispatch = program("dispatch", "dispatch", false)?;
    let path = match bubblewrap() {
        Ok(dir) => path_with(&dir)?,
        Err(error) => {
            println!("note: {error}; the fence is Landlock and seccomp alone");
            std::env::var_os("PATH").unwrap_or_default()
        }
    };
    let place = tempfile::Builder::new()
        .prefix("dispatch-demo-")
        .tempdir()?;
    let home = place.path().join("home");
    let project = place.path().join("calc");
    let demo = Demo {
        path,
        dispatch,
        home,
        project,
    };
    let model = Model::start(place.path())?;
    demo.set_up(&model)?;
    demo.fix()?;
    demo.question()?;
    demo.crash()?;
    println!(
        "\nThat was the main job. Everything lived in a temporary folder that is removed now."
    );
    Ok(())
}

fn title(text: &str) {
    println!("\n\u{2500}\u{2500} {text}");
}

impl Demo {
    fn set_up(&self, model: &Model) -> Result<()> {
        title("a small project with a failing test, in a temporary folder");
        fs::create_dir_all(&self.home)?;
        fs::create_dir_all(self.project.join("src"))?;
        let manifest =
            "[package]\nname = \"calc\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n[workspace]\n";
        fs::write(self.project.join("Cargo.toml"), manifest)?;
        fs::write(self.project.join(".gitignore"), "target/\n")?;
        fs::write(self.project.join("src/lib.rs"), CALC)?;
        for args in [
            &["init", "-q", "-b", "main"][..],
            &["add", "-A"],
            &[
                "-c",
                "user.name=You",
                "-c",
                "user.email=you@example.invalid",
                "commit",
                "-qm",
                "calc",
            ],
        ] {
            let status = Command::new("git")
                .args(args)
                .current_dir(&self.project)
                .status()?;
            ensure!(status.success(), "git {args:?} failed");
        }
        let config = format!(
            "# The demo's models: answers that were written down before, said by a local server.\n\
             [task]\nagent = \"native\"\n{}",
            model.keys()
        );
        fs::write(self.home.join("dispatch.toml"), config)?;
        println!(
            "The agent is Dispatch's own. NOTE: no model is asked here. What it would answer is"
        );
        println!(
            "recorded, so that this needs no key and no network; tools, fence, checks and git are real."
        );
        Ok(())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.dispatch);
        command
            .args(args)
            .current_dir(&self.project)
            .env("PATH", &self.path)
            .env("DISPATCH_HOME", &self.home);
        command
    }

    /// Shows a command and what it prints, and says how it ended.
    fn show(&self, args: &[&str]) -> Result<i32> {
        let quoted = |arg: &&str| {
            if arg.contains([' ', '\n']) {
                format!("\"{}\"", arg.replace('\n', "\\n"))
            } else {
                (*arg).to_owned()
            }
        };
        println!(
            "\n$ dispatch {}",
            args.iter().map(quoted).collect::<Vec<_>>().join(" ")
        );
        let status = self.command(args).stdin(Stdio::null()).status()?;
        Ok(status.code().unwrap_or(-1))
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        let output = self.command(args).stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        serde_json::from_slice(&output.stdout).with_context(|| format!("read {args:?}: {said}"))
    }

    fn newest(&self) -> Result<(String, Value)> {
        let list = self.json(&["list", "--json"])?;
        let task = list.as_array().and_then(|tasks| {
            tasks
                .iter()
                .max_by_key(|task| task["created_at"].as_str().map(ToOwned::to_owned))
        });
        let task = task.context("the list is empty")?.clone();
        let id = task["id"].as_str().context("a task has an id")?.to_owned();
        Ok((id, task))
    }

    fn fix(&self) -> Result<()> {
        title(
            "1. a task in, a branch out: the fix passes `cargo test`, which Dispatch found by itself",
        );
        let task = "Make the failing test pass";
        let code = self.show(&["run", "--model", "fix/recorded", task])?;
        let (id, task) = self.newest()?;
        ensure!(
            code == 0,
            "it should be completed (exit code 0), and was {code}"
        );
        ensure!(
            task["verified"] == "yes",
            "its check should vouch for it: {}",
            task["verified"]
        );
        self.show(&["diff", &id])?;
        ensure!(self.show(&["apply", &id])? == 0, "apply failed");
        let source = fs::read_to_string(self.project.join("src/lib.rs"))?;
        ensure!(source == CALC, "apply must not touch the checkout");
        println!("\nyour checkout is as it was; the result is a branch beside it:");
        let branch = Command::new("git")
            .args(["log", "--oneline", "--all"])
            .current_dir(&self.project)
            .status()?;
        ensure!(branch.success(), "git log failed");
        Ok(())
    }

    fn question(&self) -> Result<()> {
        title("2. a task that is stuck asks, and goes on with the answer in the same workspace");
        let task = "Write down the zone";
        let model = "question/recorded";
        let code = self.show(&["run", "--model", model, "--no-checks", task])?;
        ensure!(
            code == 3,
            "it should be blocked (exit code 3), and was {code}"
        );
        let (id, _) = self.newest()?;
        let code = self.show(&["answer", &id, "use UTC"])?;
        ensure!(code == 0, "the answer should be taken, and was {code}");
        let code = self.show(&["wait", &id])?;
        ensure!(code == 0, "it should be completed, and was {code}");
        self.show(&["diff", &id])?;
        Ok(())
    }

    fn crash(&self) -> Result<()> {
        title("3. kill -9 in the middle: the agent goes on, and the next engine picks it up");
        let mut engine = self.serve()?;
        // In its workspace: the agent is in a cage, and writes nowhere else.
        let model = "busy/recorded";
        self.show(&[
            "run",
            "--model",
            model,
            "--detach",
            "--no-checks",
            "Be busy",
        ])?;
        let (id, _) = self.newest()?;
        let begun = std::time::Instant::now();
        let count = loop {
            let task = self.json(&["show", &id, "--json"])?;
            let count = task["workspace"]
                .as_str()
                .map(|w| Path::new(w).join("started.txt"));
            if let Some(count) = count.filter(|count| count.exists()) {
                break count;
            }
            ensure!(begun.elapsed().as_secs() < 60, "the agent did not start");
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        println!(
            "\n$ kill -9 {}        # the engine, while the agent works",
            engine.id()
        );
        engine.kill()?;
        engine.wait()?;
        self.show(&["list"])?;
        println!(
            "\nno engine lives now, and the agent does; any verb that needs an engine starts one:"
        );
        let code = self.show(&["wait", &id])?;
        ensure!(code == 0, "it should be completed, and was {code}");
        let task = self.json(&["show", &id, "--json"])?;
        let log = task["runs"][0]["log"]
            .as_str()
            .context("a run has a log")?
            .to_owned();
        let log = fs::read_to_string(Path::new(&log))?;
        // Each call says so before it begins.
        let calls = log.lines().filter(|l| l.contains("{\"running\":")).count();
        let last = format!("working {STEPS}\\n");
        let whole = log.contains(&last);
        let runs = fs::read_to_string(&count)?.lines().count();
        println!("\nexecutions of the command: {runs}; calls of the agent: {calls} of 2");
        if runs != 1 || calls != 2 || !whole {
            bail!("something was lost or doubled");
        }
        Ok(())
    }

    /// An engine of our own, so that we know its process number.
    fn serve(&self) -> Result<Child> {
        // The one of the tasks before leaves when it has nothing to do.
        let begun = std::time::Instant::now();
        loop {
            let mut child = self
                .command(&["serve"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?;
            let mut line = String::new();
            if let Some(stderr) = child.stderr.take() {
                BufReader::new(stderr).read_line(&mut line)?;
            }
            if line.contains(" serves ") {
                return Ok(child);
            }
            child.wait()?;
            ensure!(begun.elapsed().as_secs() < 30, "the engine did not start");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}
