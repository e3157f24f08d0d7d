//! Logins of accounts, in the cage with bubblewrap and without: what one task of an account renews
//! the next one has, and nobody else sees it. A fence that this machine cannot have is skipped
//! loudly. Must not sleep, and must not look at a login of the person's own.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test, and what it skips it says loudly"
)]

mod world;

use std::{
    fs,
    path::{Path, PathBuf},
};

use dispatch_core::{
    id::AgentName,
    task::{ChecksAsked, Expects, Placement, TaskSpec, Wrap},
};
use dispatch_engine::{
    engine::{Engine, Secrets, Settings},
    logins::Account,
    view::TaskView,
};
use world::{AGENT, World, finished, outcome, reason, run};

const TOKEN: &str = "token-of-the-first-day";

/// From a private home, as the agent has one and each check: whoever may see it finds it so.
const BY_PATH: &str = "cat $HOME/../../../logins/work/store/auth.json";

/// As a CLI renews a login that is a link: beside the real file, then by rename.
const RENEW: &str = "set -e\nfile=$(readlink \"$HOME/.cli/auth.json\")\ncat \"$file\"\n\
    echo a conversation > \"$HOME/.cli/history\"\n\
    echo renewed-in-a-task > \"$file.new\"\nmv \"$file.new\" \"$file\"\n";
const LOOK: &str = "cat \"$HOME/.cli/auth.json\"\nls \"$HOME/.cli\"\n";
/// As a CLI does it that knows nothing of links.
const REPLACE: &str = "set -e\necho renewed-past-the-link > \"$HOME/.cli/new\"\n\
    mv \"$HOME/.cli/new\" \"$HOME/.cli/auth.json\"\n";

/// With each way to leave a link that the fence has to refuse.
const PLANT: &str = "file=$(readlink \"$HOME/.cli/auth.json\")\nstore=$(dirname \"$file\")\n\
    try() { what=$1; shift; if \"$@\" 2>/dev/null; then echo \"$what: GOT OUT\"; \
    else echo \"$what: refused\"; fi; }\n\
    try link ln -s /etc/hostname \"$store/x\"\n\
    ln -s /etc/hostname \"$HOME/x\"\ntry 'moved link' mv -T \"$HOME/x\" \"$store/y\"\n\
    try fifo mkfifo \"$store/z\"\n";

struct Stage {
    world: World,
    engine: Engine,
    account: Account,
}

impl Stage {
    /// Agents `first` and `second` share an account; `stranger` has one of its own.
    async fn set(bwrap: Option<PathBuf>) -> Self {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let agent = |name: &str, account: &str| {
            format!(
                "[agents.{name}]\ndriver = \"plain\"\nprogram = \"{AGENT}\"\npool = \"test\"\n\
                 [agents.{name}.login]\nargs = []\nfiles = [\".cli/auth.json\"]\n\
                 account = \"{account}\"\n"
            )
        };
        let agents = [("first", "work"), ("second", "work"), ("stranger", "other")];
        let text: String = agents.map(|(name, account)| agent(name, account)).concat();
        let check = format!(
            "[checks.blind]\nrank = 1\nmarkers = []\n\
             steps = [{{ name = \"cat\", argv = [\"/bin/sh\", \"-c\", \"! {BY_PATH}\"] }}]\n"
        );
        let world = World::below(place, &format!("{text}{check}"));
        let account = Account::of(&world.data(), "work");
        let file = account.store().join("auth.json");
        for (name, script) in [
            ("renew.sh", RENEW),
            ("look.sh", LOOK),
            ("replace.sh", REPLACE),
            ("by-path.sh", BY_PATH),
            ("plant.sh", PLANT),
        ] {
            world.commit(name, script);
        }
        fs::create_dir_all(world.data()).unwrap();
        account.make().unwrap();
        fs::write(file, TOKEN).unwrap();
        let settings = Settings {
            bwrap,
            ..world.settings()
        };
        let engine = Engine::open(settings).await.unwrap();
        Self {
            world,
            engine,
            account,
        }
    }

    fn spec(&self, agent: &str, orders: &[&str]) -> TaskSpec {
        TaskSpec {
            agent: agent.parse::<AgentName>().unwrap(),
            placement: Placement::of(Wrap::Cage),
            expects: Expects::Either,
            checks: ChecksAsked::None,
            ..self.world.spec(orders)
        }
    }

    async fn run(&self, agent: &str, orders: &[&str]) -> (TaskView, String) {
        let view = run(&self.engine, self.spec(agent, orders)).await;
        let done = outcome(&view).word();
        let dir = self
            .world
            .data()
            .join("runs")
            .join(format!("{}-1", view.task.id));
        let said = fs::read_to_string(dir.join("agent/out")).unwrap();
        assert_eq!(done, "completed", "{}: {said}", reason(&view));
        (view, said)
    }

    fn kept(&self) -> String {
        fs::read_to_string(self.account.store().join("auth.json")).unwrap()
    }
}

/// One stage with each fence that this machine can have.
async fn stages() -> Vec<Stage> {
    let bwrap = dispatch_test_programs::bubblewrap();
    if bwrap.is_none() {
        eprintln!("SKIPPED: bubblewrap is not installed (apt-get install bubblewrap)");
    }
    let mut stages = vec![Stage::set(None).await];
    if bwrap.is_some() {
        stages.push(Stage::set(bwrap).await);
    }
    stages
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_task_renews_the_next_one_has_and_nothing_else_of_it() {
    for stage in stages().await {
        // A token is masked by its value, whoever prints it.
        let text = format!("{{\"access_token\": \"{TOKEN}-2\"}}");
        fs::write(stage.account.store().join("auth.json"), text).unwrap();
        let (_, said) = stage.run("first", &["sh look.sh"]).await;
        assert!(
            said.contains("access_token") && !said.contains(TOKEN),
            "{said}"
        );
        fs::write(stage.account.store().join("auth.json"), TOKEN).unwrap();
        let (_, said) = stage.run("first", &["sh renew.sh"]).await;
        assert!(said.contains(TOKEN), "{said}");
        assert_eq!(stage.kept(), "renewed-in-a-task\n");
        let (_, said) = stage.run("second", &["sh look.sh"]).await;
        assert!(said.contains("renewed-in-a-task"), "{said}");
        assert!(!said.contains("history"), "the other's transcript: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_such_account_does_not_see_it() {
    for stage in stages().await {
        let file = stage.account.store().join("auth.json");
        let read = format!("escape other-login read {}", file.display());
        let write = format!("escape other-login write {}", file.display());
        let (_, said) = stage.run("stranger", &[&read, &write]).await;
        assert_eq!(said.matches("other-login: refused").count(), 2, "{said}");
        // Neither does a check of a task that does.
        let (_, said) = stage.run("first", &["sh by-path.sh"]).await;
        assert!(said.contains(TOKEN), "{said}");
        let checked = TaskSpec {
            checks: ChecksAsked::Named(vec!["blind".parse().unwrap()]),
            ..stage.spec("first", &["write it x", "say done"])
        };
        let view = run(&stage.engine, checked).await;
        let last = view.task.last_run().unwrap();
        assert_eq!(outcome(&view).word(), "completed", "{}", reason(&view));
        assert_eq!(last.checks.len(), 1, "{:?}", last.checks);
        assert_eq!(stage.kept(), TOKEN);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tasks_of_an_account_have_it_at_the_same_time() {
    for stage in stages().await {
        let store = stage.account.store();
        let at = |name: &str| store.join(name).display().to_string();
        let meet = |mine: &str, theirs: &str| {
            let orders = [
                format!("write {} x", at(mine)),
                format!("await {}", at(theirs)),
                "say done".into(),
            ];
            let orders: Vec<&str> = orders.iter().map(String::as_str).collect();
            stage.spec("first", &orders)
        };
        let mut runs = Vec::new();
        for spec in [meet("a", "b"), meet("b", "a")] {
            runs.push(stage.engine.dispatch(spec, Secrets::new()).await.unwrap());
        }
        for one in runs {
            let view = finished(&stage.engine, one).await;
            assert_eq!(outcome(&view).word(), "completed", "{}", reason(&view));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_written_past_the_link_is_not_lost() {
    for stage in stages().await {
        let (view, _) = stage.run("first", &["sh replace.sh", "say done"]).await;
        assert_eq!(stage.kept(), "renewed-past-the-link\n");
        let noted = view
            .task
            .notes
            .iter()
            .any(|note| note.contains("auth.json"));
        assert!(noted, "{:?}", view.task.notes);
        let (_, said) = stage.run("second", &["sh look.sh"]).await;
        assert!(said.contains("renewed-past-the-link"), "{said}");
    }
}

/// What is shared is also written by programs outside of any fence: the vendor's login, an agent
/// whose placement is `host`. They must not be led through a link.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_task_can_leave_a_link_where_others_write() {
    for stage in stages().await {
        let file = stage.account.store().join("auth.json");
        let outside = stage.world.home.path().join("theirs");
        fs::write(&outside, "theirs").unwrap();
        let (_, said) = stage.run("first", &["sh plant.sh"]).await;
        for attempt in ["link", "moved link", "fifo"] {
            assert!(said.contains(&format!("{attempt}: refused")), "{said}");
        }
        assert!(stage.account.is_plain() && stage.kept() == TOKEN);
        // As on a kernel without Landlock.
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink(&outside, &file).unwrap();
        let unfenced = TaskSpec {
            placement: Placement::of(Wrap::Host),
            ..stage.spec("first", &["sh renew.sh"])
        };
        let view = run(&stage.engine, unfenced).await;
        assert!(reason(&view).contains("holds a link"), "{}", reason(&view));
        assert_eq!(fs::read_to_string(&outside).unwrap(), "theirs");
    }
}
