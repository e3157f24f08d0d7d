//! An engine that kills itself where it is told to: right after its n-th event is durable, or right
//! before its n-th call to a site. `crash-engine HOME AGENT (event|call|never) N (head|pr|folder)
//! [sidecar|running|next|asking|attached|waiting|told|parked]` goes on with what the log in HOME holds, dispatches the golden
//! task when there is none, and leaves when all is done. With `running` or `next` behind it, messages are
//! said to that task: to its running agent, or to one that hears them with its next run. With `asking` its
//! agent asks for two permissions, and is given one. With `attached` a file comes with the task, and
//! another one with a message. With the last three its agent asks for two tasks, and is their voice: it
//! waits for them, is told of their ends while it runs, or ends its run and is told with its next one.
//! Must not clean up: it dies by SIGKILL, like a real crash.
#![expect(clippy::print_stdout, reason = "the test reads the outcome")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result, bail};
use dispatch_core::{
    ask::Permissions,
    config::{self, Layer},
    event::Kind,
    id::RunId,
    job::{Invocation, JobId, Offset, Order},
    keys::RequestKey,
    message::Sender,
    task::{Base, ChecksAsked, Expects, Labels, Placement, TaskSpec, Terms, Turn, Wrap},
};
use dispatch_engine::{
    attachments::NewFile,
    clock::Clock,
    containers::Runtimes,
    engine::{Engine, Observer, Secrets, Settings, Sites},
    sites::{
        BoxFuture, Follow, Site, Start,
        local::{Keeper, Local},
    },
    view::{Given, Told, Until},
};

fn die() -> ! {
    // The only way out that lets nothing run: no destructor, no flush.
    let killed =
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    unreachable!("SIGKILL to oneself: {killed:?}")
}

/// Counts, and dies when the count is reached.
#[derive(Debug)]
struct Fuse(AtomicU64);

impl Fuse {
    fn burn(&self) {
        if self.0.fetch_sub(1, Ordering::SeqCst) == 1 {
            die();
        }
    }
}

/// The local site, with a fuse before each call.
#[derive(Debug)]
struct Fused {
    site: Local,
    fuse: Arc<Fuse>,
}

impl Site for Fused {
    fn put<'a>(&'a self, path: &'a Path, bytes: &'a [u8]) -> BoxFuture<'a, io::Result<()>> {
        self.fuse.burn();
        self.site.put(path, bytes)
    }

    fn start<'a>(&'a self, job: &'a JobId, what: &'a Invocation) -> BoxFuture<'a, Start> {
        self.fuse.burn();
        self.site.start(job, what)
    }

    fn follow<'a>(
        &'a self,
        job: &'a JobId,
        from: Offset,
    ) -> BoxFuture<'a, io::Result<Box<dyn Follow>>> {
        self.fuse.burn();
        self.site.follow(job, from)
    }

    fn given<'a>(&'a self, job: &'a JobId) -> BoxFuture<'a, io::Result<BTreeSet<u64>>> {
        self.fuse.burn();
        self.site.given(job)
    }

    fn order<'a>(&'a self, job: &'a JobId, order: &'a Order) -> BoxFuture<'a, io::Result<()>> {
        self.fuse.burn();
        self.site.order(job, order)
    }
}

const ASK_AGAIN: std::time::Duration = std::time::Duration::from_millis(5);

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (args, sidecar, scene) = match args.as_slice() {
        [args @ .., word] if word == "sidecar" => (args, true, Scene::Golden),
        [args @ .., word] if word == "running" => (args, false, Scene::Running),
        [args @ .., word] if word == "next" => (args, false, Scene::Next),
        [args @ .., word] if word == "asking" => (args, false, Scene::Asking),
        [args @ .., word] if word == "attached" => (args, false, Scene::Attached),
        [args @ .., word] if word == "waiting" => (args, false, Scene::Family(Ends::Waiting)),
        [args @ .., word] if word == "told" => (args, false, Scene::Family(Ends::Told)),
        [args @ .., word] if word == "parked" => (args, false, Scene::Family(Ends::Parked)),
        args => (args, false, Scene::Golden),
    };
    let [home, agent, which, n, from] = args else {
        bail!(
            "crash-engine HOME AGENT (event|call|never) N (head|pr|folder) \
             [sidecar|running|next|asking|attached|waiting|told|parked]"
        );
    };
    let home = PathBuf::from(home);
    let n: u64 = n.parse().context("N")?;
    let (events, calls) = match which.as_str() {
        "event" => (n, u64::MAX),
        "call" => (u64::MAX, n),
        "never" => (u64::MAX, u64::MAX),
        other => bail!("{other}: there are event, call, never"),
    };
    let fuse = Arc::new(Fuse(AtomicU64::new(calls)));
    let events = Arc::new(Fuse(AtomicU64::new(events)));
    let data = home.join("data");
    let keeper = Keeper::program(agent.into());
    let site = Fused {
        site: Local::new(data.clone(), keeper.clone()),
        fuse,
    };
    let sites = Sites::from([("local".parse()?, Arc::new(site) as Arc<dyn Site>)]);
    // A run that has a sidecar without needing a fence: its key is kept outside.
    let broker = "env = { KEY = { from = \"KEY\" } }\n[agents.fake.broker]\nkey = \"KEY\"\n\
                  base_url = \"URL\"\nupstream = \"http://127.0.0.1:9\"\n";
    let broker = if sidecar { broker } else { "" };
    let secrets = Secrets::from([("KEY".to_owned(), "not-a-real-key".into())]);
    let text = format!(
        "[gate]\nretries_max = 0\nload_per_core_max = 0\n[pools.test]\nslots = 8\n[agents.fake]\ndriver = \"plain\"\nprogram = \"{agent}\"\n\
         pool = \"test\"\nplacement = \"host\"\n{broker}[agents.talker]\ndriver = \"claude\"\n\
         program = \"{agent}\"\npool = \"test\"\nplacement = \"host\"\n[grants.lead]\n\
         tools = [\"dispatch\", \"wait\"]\nagents = [\"any\"]\nchildren_max = 2\n\
         children_live_max = 2\n"
    );
    let layer = Layer {
        source: "test",
        text: &text,
    };
    let (config, _) = config::load(&[layer]).map_err(|p| anyhow::anyhow!("{p:?}"))?;
    let settings = Settings {
        data,
        config,
        version: "test".into(),
        git: "git".into(),
        job_env: BTreeMap::from([("PATH".into(), std::env::var("PATH")?)]),
        program_env: BTreeMap::new(),
        keeper,
        bwrap: None,
        runtimes: Runtimes::default(),
        sidecar: vec![agent.clone(), "sidecar".into()],
        door: None,
        definitions: None,
        observer: Observer(Some(Arc::new(move |_| events.burn()))),
        clock: Clock::default(),
    };
    let engine = Engine::with_sites(settings, sites).await?;
    let spec = match scene {
        Scene::Golden => golden(&home, from)?,
        Scene::Running => listening(&home)?,
        Scene::Next => waiting(&home, "")?,
        Scene::Attached => waiting(&home, &home.join("heard").to_string_lossy())?,
        Scene::Asking => asking(&home)?,
        Scene::Family(ends) => lead(&home, &engine, ends)?,
    };
    let given = Given {
        files: scene.files("one"),
        key: key("the task"),
        ..secrets.clone().into()
    };
    engine.dispatch(spec, given).await?;
    if scene == Scene::Asking {
        permit(&engine).await?;
    }
    if let Scene::Family(ends) = scene {
        family(&engine, &home, ends).await?;
    }
    speak(&engine, &home, scene).await?;
    // A run that comes back without its key asks for it at a time that no event tells.
    let provide = async {
        loop {
            match engine.provide(secrets.clone()).await {
                Ok(()) => tokio::time::sleep(ASK_AGAIN).await,
                Err(error) => return error,
            }
        }
    };
    tokio::select! {
        () = engine.idle() => {}
        error = provide, if sidecar => bail!("provide the key: {error}"),
    }
    for view in engine.tasks().await? {
        let outcome = view.task.outcome().context("idle and not finished")?;
        println!("{} {}", view.task.id, outcome.word());
    }
    engine.shutdown().await?;
    Ok(())
}

/// What is done beside dispatching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scene {
    Golden,
    Running,
    Next,
    Asking,
    Attached,
    Family(Ends),
}

/// How an agent hears of what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Waiting,
    Told,
    Parked,
}

impl Scene {
    fn files(self, content: &str) -> Vec<NewFile> {
        let file = NewFile {
            name: format!("{content}.txt"),
            bytes: content.into(),
        };
        (self == Self::Attached)
            .then_some(file)
            .into_iter()
            .collect()
    }
}

/// Every engine is asked the same again, as by a program that never heard whether the last one did it.
fn key(of: &str) -> Option<RequestKey> {
    Some(RequestKey {
        key: of.to_owned(),
        request: of.to_owned(),
    })
}

fn asked_as(name: &str) -> Given {
    Given {
        key: key(name),
        ..Given::default()
    }
}

async fn speak(engine: &Engine, home: &Path, scene: Scene) -> Result<()> {
    let heard = home.join("heard").to_string_lossy().into_owned();
    let messages = match scene {
        Scene::Golden | Scene::Asking | Scene::Family(_) => return Ok(()),
        Scene::Running => vec!["one".to_owned(), "two".to_owned()],
        Scene::Next => vec![
            format!("@append {heard} one"),
            format!("@append {heard} two"),
        ],
        Scene::Attached => vec!["look at this".to_owned()],
    };
    let tasks = engine.tasks().await?;
    let task = tasks.first().context("a task")?.task.id;
    let mut events = engine.events(0);
    while let Some(told) = events.next().await {
        if let Told::Event(event) = told
            && matches!(event.kind, Kind::Started { .. })
        {
            break;
        }
    }
    for text in messages {
        let given = Given {
            files: scene.files("two"),
            key: key(&text),
            ..Given::default()
        };
        engine.say(task, text, Sender::Person, given).await?;
    }
    Ok(std::fs::write(home.join("go"), "")?)
}

/// Answers what waits, until nothing can: the first ask is allowed, the second denied.
async fn permit(engine: &Engine) -> Result<()> {
    let tasks = engine.tasks().await?;
    let task = tasks.first().context("a task")?.task.id;
    let mut events = engine.events(0);
    loop {
        let view = engine.task(task).await?;
        if !view.task.is_open() {
            return Ok(());
        }
        for ask in view.task.open_asks() {
            let allow = ask.id.0 == 1;
            let why = (!allow).then(|| "not this".to_owned());
            engine.permit(task, ask.id, allow, why).await?;
        }
        if events.next().await.is_none() {
            bail!("the engine has ended");
        }
    }
}

/// As an agent would that asks again for what it got no answer to.
async fn family(engine: &Engine, home: &Path, ends: Ends) -> Result<()> {
    let by = RunId {
        task: engine.tasks().await?.first().context("a task")?.task.id,
        n: 1,
    };
    // Its process waits until then, so it is there to ask.
    if !home.join("go").exists() {
        reached(engine, by, |kind| matches!(kind, Kind::Started { .. })).await?;
        let acting = engine.on_behalf_of(by);
        let mut children = Vec::new();
        for name in ["a", "b"] {
            let asked = acting
                .dispatch(child(home, name, ends)?, asked_as(name))
                .await?;
            children.push(asked.task);
        }
        if ends == Ends::Waiting {
            let waited = acting.wait(children.clone(), Until::All, u64::MAX).await?;
            let heard = home.join("waited");
            std::fs::write(heard, waited.words)?;
        }
        if ends == Ends::Told {
            for task in children {
                engine.wait(vec![task], Until::All, u64::MAX).await?;
            }
        }
        std::fs::write(home.join("go"), "")?;
    }
    if ends == Ends::Parked {
        reached(engine, by, |kind| matches!(kind, Kind::Finished { .. })).await?;
        std::fs::write(home.join("child"), "")?;
    }
    Ok(())
}

async fn reached(engine: &Engine, run: RunId, fits: impl Fn(&Kind) -> bool) -> Result<()> {
    let mut events = engine.events(0);
    while let Some(told) = events.next().await {
        if let Told::Event(event) = told
            && event.subject.run() == Some(run)
            && fits(&event.kind)
        {
            return Ok(());
        }
    }
    bail!("the engine has ended")
}

/// It writes down what it hears of ends while it runs, and ends when it may.
fn lead(home: &Path, engine: &Engine, ends: Ends) -> Result<TaskSpec> {
    let (count, go) = (home.join("count"), home.join("go"));
    let heard = home.join("heard");
    let hear = match ends {
        Ends::Told => format!("@hear {} 1\n", heard.display()),
        Ends::Waiting | Ends::Parked => String::new(),
    };
    let mut spec = TaskSpec {
        text: format!(
            "@append {} ran\n{hear}@await {}\n",
            count.display(),
            go.display()
        ),
        agent: "talker".parse()?,
        checks: ChecksAsked::None,
        expects: Expects::Either,
        ..golden(home, "head")?
    };
    let grants = &engine.config().grants;
    let (_, offer) = grants
        .iter()
        .find(|(name, _)| name.as_str() == "lead")
        .context("a grant")?;
    spec.terms.grant = Some(Box::new(offer.to(&spec)));
    Ok(spec)
}

/// It counts how often it ran; for a parked asker it waits until that is parked.
fn child(home: &Path, name: &str, ends: Ends) -> Result<TaskSpec> {
    let count = home.join(format!("count-{name}"));
    let wait = match ends {
        Ends::Parked => format!("@await {}\n", home.join("child").display()),
        Ends::Waiting | Ends::Told => String::new(),
    };
    Ok(TaskSpec {
        title: name.into(),
        text: format!(
            "@append {} ran\n{wait}@say {name} is done\n",
            count.display()
        ),
        checks: ChecksAsked::None,
        expects: Expects::Either,
        ..golden(home, "head")?
    })
}

/// Asks twice, and writes down what it was answered.
fn asking(home: &Path) -> Result<TaskSpec> {
    let (count, answers) = (home.join("count"), home.join("answers"));
    let (count, answers) = (count.display(), answers.display());
    Ok(TaskSpec {
        text: format!(
            "@append {count} ran\n@write a.txt one\n@ask {answers} Bash make\n@say between\n\
             @ask {answers} Write b.txt\n"
        ),
        agent: "talker".parse()?,
        checks: ChecksAsked::None,
        terms: Terms {
            permissions: Permissions::Ask,
            ..Terms::default()
        },
        ..golden(home, "head")?
    })
}

/// Writes down what it hears while it runs, and ends when it has heard two messages.
fn listening(home: &Path) -> Result<TaskSpec> {
    let (count, heard) = (home.join("count"), home.join("heard"));
    Ok(TaskSpec {
        text: format!(
            "@append {} ran\n@write a.txt one\n@hear {} 2\n",
            count.display(),
            heard.display()
        ),
        agent: "talker".parse()?,
        checks: ChecksAsked::None,
        ..golden(home, "head")?
    })
}

/// Hears nothing until its next run; what is attached it writes into `attached`.
fn waiting(home: &Path, attached: &str) -> Result<TaskSpec> {
    let (count, go) = (home.join("count"), home.join("go"));
    let attached = match attached {
        "" => String::new(),
        path => format!("@attached {path}\n"),
    };
    Ok(TaskSpec {
        text: format!(
            "@append {} ran\n@write a.txt one\n{attached}@await {}\n@say done\n",
            count.display(),
            go.display()
        ),
        checks: ChecksAsked::None,
        ..golden(home, "head")?
    })
}

/// Output, a commit of its own, a change beside it, a check; and a count of how often it ran.
fn golden(home: &Path, from: &str) -> Result<TaskSpec> {
    let (base, repo) = match from {
        "head" => (Base::Head, "repo"),
        "pr" => (Base::Pr { number: 7 }, "repo"),
        "folder" => (Base::Folder, "folder"),
        other => bail!("{other}: there are head, pr, folder"),
    };
    let count = home.join("count");
    let text = format!(
        "@append {} ran\n@lines 500\n@write a.txt one\n@git add a.txt\n@git commit -qm theirs\n\
         @write b.txt two\n@say done\n",
        count.display()
    );
    Ok(TaskSpec {
        title: "golden".into(),
        text,
        repo: home.join(repo).to_string_lossy().into_owned(),
        base,
        agent: "fake".parse()?,
        pool: "test".parse()?,
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
    })
}
