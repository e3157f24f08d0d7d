//! The helper world of the engine's tests: a data directory, a real repository, a fake agent.
//! Must not sleep, and must not read the person's own git configuration.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

pub mod model;
pub mod net;
pub mod permit;
pub mod pieces;
pub mod talk;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use dispatch_core::{
    config::{self, Config, Layer},
    event::{Event, Kind},
    id::{RunId, TaskId},
    outcome::Outcome,
    task::{Base, ChecksAsked, Expects, Labels, Placement, TaskSpec, Terms, Turn, Wrap, title_of},
};
use dispatch_engine::{
    clock::Clock,
    containers::Runtimes,
    engine::{Engine, Observer, Secrets, Settings, Sites},
    sites::local::Keeper,
    view::{TaskView, Told},
};

pub const AGENT: &str = env!("CARGO_BIN_EXE_fake-agent");
const PATIENCE: Duration = Duration::from_secs(60);

pub struct World {
    pub home: tempfile::TempDir,
    pub config: Config,
}

pub fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

impl World {
    pub fn new() -> Self {
        Self::with("")
    }

    pub fn with(extra: &str) -> Self {
        Self::below(&std::env::temp_dir(), extra)
    }

    /// Elsewhere than in the temporary directory, which some agents treat in a way of their own.
    pub fn below(parent: &Path, extra: &str) -> Self {
        let home = tempfile::tempdir_in(parent).unwrap();
        let repo = home.path().join("repo");
        fs::create_dir(&repo).unwrap();
        git(&repo, &["init", "-q", "-b", "main"]);
        git(&repo, &["config", "user.name", "Tester"]);
        git(&repo, &["config", "user.email", "tester@example.invalid"]);
        fs::write(repo.join("README.md"), "hello\n").unwrap();
        fs::write(repo.join(".gitignore"), "build/\n").unwrap();
        git(&repo, &["add", "."]);
        git(&repo, &["commit", "-qm", "first"]);
        let text = format!(
            "[pools.test]\nslots = 8\n[agents.fake]\ndriver = \"plain\"\nprogram = \"{AGENT}\"\n\
             pool = \"test\"\nplacement = \"host\"\n{extra}"
        );
        let (mut config, _) = config::load(&[Layer {
            source: "test",
            text: &text,
        }])
        .unwrap();
        // A test that is about these says so; the others end runs badly on purpose, on a busy machine.
        (config.gate.retries_max, config.gate.fail_runs) = (0, 0);
        config.gate.load_per_core_max = 0;
        Self { home, config }
    }

    pub fn repo(&self) -> PathBuf {
        self.home.path().join("repo")
    }

    pub fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    pub fn commit(&self, file: &str, text: &str) {
        let path = self.repo().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        git(&self.repo(), &["add", "-A"]);
        git(&self.repo(), &["commit", "-qm", file]);
    }

    pub fn settings(&self) -> Settings {
        let path = std::env::var("PATH").unwrap();
        Settings {
            data: self.data(),
            config: self.config.clone(),
            version: "test".into(),
            git: "git".into(),
            job_env: BTreeMap::from([("PATH".into(), path), ("LANG".into(), "C.UTF-8".into())]),
            program_env: BTreeMap::new(),
            keeper: Keeper::program(AGENT.into()),
            bwrap: None,
            runtimes: Runtimes::default(),
            sidecar: vec![AGENT.into(), "sidecar".into()],
            door: None,
            definitions: None,
            observer: Observer::default(),
            clock: Clock::default(),
        }
    }

    pub async fn engine(&self) -> Engine {
        Engine::open(self.settings()).await.unwrap()
    }

    pub async fn engine_with(&self, sites: Sites) -> Engine {
        Engine::with_sites(self.settings(), sites).await.unwrap()
    }

    pub fn spec(&self, orders: &[&str]) -> TaskSpec {
        let text = orders
            .iter()
            .map(|order| format!("@{order}\n"))
            .collect::<String>();
        TaskSpec {
            title: title_of(&text),
            text,
            repo: self.repo().to_string_lossy().into_owned(),
            base: Base::Head,
            agent: "fake".parse().unwrap(),
            pool: "test".parse().unwrap(),
            placement: Placement::of(Wrap::Host),
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
        }
    }

    /// Every file of a name below the data directory's processes: who still carries this task's mark.
    pub fn alive(&self, task: TaskId) -> Vec<String> {
        let mark = format!("DISPATCH_JOB={task}-");
        let carries = |pid: &String| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ
                .split(|b| *b == 0)
                .any(|entry| entry.starts_with(mark.as_bytes()))
        };
        let listed = fs::read_dir("/proc").unwrap();
        listed
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .filter(carries)
            .collect()
    }
}

pub async fn patient<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .unwrap_or_else(|_| panic!("it takes too long"))
}

/// Waits until an event of the task fits.
pub async fn until(engine: &Engine, task: TaskId, fits: impl Fn(&Kind) -> bool) -> Event {
    let mut events = engine.events(0);
    let wait = async {
        loop {
            match events.next().await {
                Some(Told::Event(event))
                    if event.subject.task() == Some(task) && fits(&event.kind) =>
                {
                    return (*event).clone();
                }
                Some(_) => {}
                None => panic!("the engine has ended"),
            }
        }
    };
    patient(wait).await
}

pub async fn finished(engine: &Engine, run: RunId) -> TaskView {
    let ends = |event: &Event| event.subject.run() == Some(run);
    let mut events = engine.events(0);
    let wait = async {
        loop {
            match events.next().await {
                Some(Told::Event(event))
                    if ends(&event) && matches!(event.kind, Kind::Finished { .. }) =>
                {
                    return;
                }
                Some(_) => {}
                None => panic!("the engine has ended"),
            }
        }
    };
    patient(wait).await;
    engine.task(run.task).await.unwrap()
}

pub async fn run(engine: &Engine, spec: TaskSpec) -> TaskView {
    let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
    finished(engine, run).await
}

pub fn outcome(view: &TaskView) -> &Outcome {
    view.task.outcome().unwrap()
}

pub fn reason(view: &TaskView) -> String {
    outcome(view).reason()
}
