//! What an agent asks permission for, with a real engine and real jobs: asked once, answered once, by
//! whoever is first, and never waited for longer than its time. The agent is scripted and writes down
//! what it is answered.
//! Must not sleep.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; a failure is a failed test"
)]

mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, UNIX_EPOCH},
};

use dispatch_core::{
    ask::{ASKS_MAX, Ask, AskId, By, Fate, OPEN_MAX, Permissions},
    config::AgentProfile,
    event::Kind,
    id::{RunId, TaskId},
    job::{Invocation, JobId, Offset, Order, Part},
    message::Sender,
    task::{Expects, TaskSpec, Terms},
};
use dispatch_engine::{
    clock::{Clock, SetClock},
    engine::{Engine, Secrets, Settings, Sites},
    jobdir::JobDir,
    sites::{BoxFuture, Follow, Site, Start, local::Local},
    view::{Force, TaskView},
};
use world::{AGENT, World, finished, outcome, patient, talk, until};

const NOW: u64 = 1_000_000_000_000;

fn world() -> World {
    World::with(&format!(
        "[agents.talker]\ndriver = \"claude\"\nprogram = \"{AGENT}\"\npool = \"test\"\n\
         placement = \"host\"\n"
    ))
}

fn path(world: &World) -> PathBuf {
    world.home.path().join("answers")
}

fn answers(world: &World) -> String {
    fs::read_to_string(path(world)).unwrap_or_default()
}

/// Orders whose `ANSWERS` is the file that the agent writes answers into.
fn spec(world: &World, permissions: Permissions, orders: &[&str]) -> TaskSpec {
    let path = path(world).display().to_string();
    let orders: Vec<String> = orders.iter().map(|o| o.replace("ANSWERS", &path)).collect();
    let orders: Vec<&str> = orders.iter().map(String::as_str).collect();
    TaskSpec {
        agent: "talker".parse().unwrap(),
        expects: Expects::Either,
        terms: Terms {
            permissions,
            ..Terms::default()
        },
        ..world.spec(&orders)
    }
}

async fn dispatched(engine: &Engine, spec: TaskSpec) -> RunId {
    engine.dispatch(spec, Secrets::new()).await.unwrap()
}

/// Until the ask of that number is in the log.
async fn asked(engine: &Engine, task: TaskId, number: u32) -> Ask {
    let fits = |kind: &Kind| matches!(kind, Kind::PermissionAsked { ask, .. } if ask.0 == number);
    until(engine, task, fits).await;
    let view = engine.task(task).await.unwrap();
    view.task.ask(AskId(number)).unwrap().clone()
}

fn fates(view: &TaskView) -> Vec<&Fate> {
    view.task.asks.iter().map(|ask| &ask.fate).collect()
}

fn answered(allow: bool, by: By) -> Fate {
    Fate::Answered {
        allow,
        by,
        why: None,
        always: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_allows_and_denies_in_any_order() {
    let world = world();
    let engine = world.engine().await;
    let orders = [
        "asks ANSWERS Bash make all",
        "asks ANSWERS Write b.txt",
        "answers ANSWERS 2",
    ];
    let run = dispatched(&engine, spec(&world, Permissions::Ask, &orders)).await;
    asked(&engine, run.task, 2).await;
    let view = engine.task(run.task).await.unwrap();
    let open: Vec<_> = view.task.open_asks().collect();
    assert_eq!(open.len(), 2);
    assert_eq!(open[0].tool, "Bash");
    assert_eq!(open[0].input, "{\"command\":\"make all\"}");
    assert_eq!((open[0].owner, open[0].run), (Sender::Person, 1));
    // It counts from when the agent was heard, and the log's time is that of writing it down.
    let wait_ms = open[0].until - open[0].at;
    assert!((540_000..=600_000).contains(&wait_ms), "{wait_ms}");
    let why = Some("not that file".to_owned());
    engine
        .permit(run.task, AskId(2), false, why.clone())
        .await
        .unwrap();
    for (ask, words) in [
        (2, "ask 2 is denied already; 1 (Bash) waits for one"),
        (7, "ask 7 is not known; 1 (Bash) waits for one"),
    ] {
        let again = engine.permit(run.task, AskId(ask), true, None).await;
        let error = again.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    engine.permit(run.task, AskId(1), true, None).await.unwrap();
    let view = finished(&engine, run).await;
    assert_eq!(outcome(&view).word(), "completed");
    assert_eq!(
        answers(&world),
        "ask-2 deny It was denied by a person: not that file\nask-1 allow make all\n"
    );
    let by = By::Person;
    let allow = false;
    let denied = Fate::Answered {
        allow,
        by,
        why,
        always: false,
    };
    assert_eq!(fates(&view), [&answered(true, By::Person), &denied]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_answers_is_denied_and_the_run_goes_on() {
    let world = world();
    let clock = SetClock::at(NOW);
    let engine = Engine::open(Settings {
        clock: Clock::Set(clock.clone()),
        ..world.settings()
    });
    let engine = engine.await.unwrap();
    let orders = ["ask ANSWERS Bash make", "write a.txt one"];
    let run = dispatched(&engine, spec(&world, Permissions::Ask, &orders)).await;
    let ask = asked(&engine, run.task, 1).await;
    assert_eq!(ask.until, NOW + 600_000);
    clock.set(ask.until - 1);
    assert!(
        engine
            .task(run.task)
            .await
            .unwrap()
            .task
            .ask(ask.id)
            .unwrap()
            .is_open()
    );
    clock.set(ask.until);
    let view = finished(&engine, run).await;
    assert_eq!(outcome(&view).word(), "completed");
    assert_eq!(fates(&view), [&answered(false, By::Deadline)]);
    assert!(answers(&world).starts_with("ask-1 deny Nobody answered in time"));
    // Too late is an error, and changes nothing.
    let late = engine.permit(run.task, ask.id, true, None).await;
    assert!(late.unwrap_err().to_string().contains("is denied already"));
}

/// With real time and a real keeper: the answer comes before its silence would end the agent.
#[tokio::test(flavor = "multi_thread")]
async fn a_short_idle_limit_shortens_the_wait() {
    let mut world = world();
    world.config.limits.idle_s = 2;
    let engine = world.engine().await;
    let orders = ["ask ANSWERS Bash make", "say on"];
    let run = dispatched(&engine, spec(&world, Permissions::Ask, &orders)).await;
    let ask = asked(&engine, run.task, 1).await;
    let wait_ms = ask.until - ask.at;
    assert!((1000..=1500).contains(&wait_ms), "{wait_ms}");
    let view = finished(&engine, run).await;
    assert_eq!(outcome(&view).word(), "completed");
    assert_eq!(fates(&view), [&answered(false, By::Deadline)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_engine_finds_the_ask_as_it_was() {
    let world = world();
    let clock = SetClock::at(NOW);
    let settings = || Settings {
        clock: Clock::Set(clock.clone()),
        ..world.settings()
    };
    let engine = Engine::open(settings()).await.unwrap();
    let orders = [
        "ask ANSWERS Bash one",
        "ask ANSWERS Bash two",
        "ask ANSWERS Bash three",
    ];
    let run = dispatched(&engine, spec(&world, Permissions::Ask, &orders)).await;
    let first = asked(&engine, run.task, 1).await;
    engine.shutdown().await.unwrap();
    clock.set(NOW + 60_000);
    let engine = Engine::open(settings()).await.unwrap();
    let view = engine.task(run.task).await.unwrap();
    assert_eq!(view.task.ask(AskId(1)), Some(&first));
    engine.permit(run.task, AskId(1), true, None).await.unwrap();
    let second = asked(&engine, run.task, 2).await;
    engine.shutdown().await.unwrap();
    // Its time is over while no engine is there.
    clock.set(second.until + 1);
    let engine = Engine::open(settings()).await.unwrap();
    let late = engine.permit(run.task, AskId(2), true, None).await;
    assert!(late.is_err());
    asked(&engine, run.task, 3).await;
    engine.permit(run.task, AskId(3), true, None).await.unwrap();
    let view = finished(&engine, run).await;
    let fates = fates(&view);
    assert_eq!(
        fates,
        [
            &answered(true, By::Person),
            &answered(false, By::Deadline),
            &answered(true, By::Person)
        ]
    );
    let answers = answers(&world);
    let ids: Vec<&str> = answers
        .lines()
        .map(|line| line.split(' ').take(2).last().unwrap())
        .collect();
    assert_eq!(ids, ["allow", "deny", "allow"], "{answers}");
}

/// What it asked while no engine was there has waited since then, as its keeper counts: it is asked for
/// the rest of its time, and denied when there is none.
#[tokio::test(flavor = "multi_thread")]
async fn an_ask_that_no_engine_heard_has_waited_since_it_was_written() {
    for (ago_ms, open) in [(200_000, true), (700_000, false)] {
        let world = world();
        let settings = || Settings {
            clock: Clock::Set(SetClock::at(NOW)),
            ..world.settings()
        };
        let engine = Engine::open(settings()).await.unwrap();
        let (home, pipe) = talk::pipe();
        let reads = home.path().join("reads");
        let begun = format!("append {} x", reads.display());
        let waits = format!("append {} x", pipe.display());
        let orders = [&begun, &waits, "ask ANSWERS Bash make"];
        let run = dispatched(&engine, spec(&world, Permissions::Ask, &orders)).await;
        let started = |kind: &Kind| matches!(kind, Kind::Started { .. });
        until(&engine, run.task, started).await;
        // An engine that goes before has not told it anything yet.
        let read = async {
            while !reads.exists() {
                tokio::task::yield_now().await;
            }
        };
        patient(read).await;
        engine.shutdown().await.unwrap();
        let waiting = tokio::task::spawn_blocking(move || fs::read_to_string(pipe));
        patient(waiting).await.unwrap().unwrap();
        let part = Part::Agent;
        let job = JobDir::of(&world.data(), &JobId { run, part });
        let wrote = async {
            while !fs::read_to_string(job.file("out"))
                .unwrap()
                .contains("can_use_tool")
            {
                tokio::task::yield_now().await;
            }
        };
        patient(wrote).await;
        for name in ["out", "err"] {
            let file = fs::File::open(job.file(name)).unwrap();
            let then = UNIX_EPOCH + Duration::from_millis(NOW - ago_ms);
            file.set_modified(then).unwrap();
        }
        let engine = Engine::open(settings()).await.unwrap();
        let ask = asked(&engine, run.task, 1).await;
        assert_eq!(ask.until, NOW - ago_ms + 600_000);
        if open {
            engine.permit(run.task, ask.id, true, None).await.unwrap();
        }
        let view = finished(&engine, run).await;
        let by = if open { By::Person } else { By::Deadline };
        assert_eq!(fates(&view), [&answered(open, by)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_closes_what_is_asked() {
    let world = world();
    let engine = world.engine().await;
    let orders = ["ask ANSWERS Bash make"];
    let run = dispatched(&engine, spec(&world, Permissions::Ask, &orders)).await;
    asked(&engine, run.task, 1).await;
    engine.stop(run.task, Force::Kill).await.unwrap();
    let view = engine.task(run.task).await.unwrap();
    assert_eq!(fates(&view), [&Fate::Closed]);
    let error = engine.permit(run.task, AskId(1), true, None).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("ask 1 is closed"), "{error}");
    let view = finished(&engine, run).await;
    assert_eq!(outcome(&view).word(), "stopped");
    assert_eq!(answers(&world), "");
    // The next run asks anew, under a number of its own.
    engine.retry(run.task, Secrets::new()).await.unwrap();
    let again = asked(&engine, run.task, 2).await;
    assert_eq!(again.run, 2);
    engine.permit(run.task, again.id, true, None).await.unwrap();
    let view = finished(&engine, RunId { n: 2, ..run }).await;
    assert_eq!(outcome(&view).word(), "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_takes_back_is_asked_no_more() {
    let world = world();
    let engine = world.engine().await;
    let orders = [
        "asks ANSWERS Bash one",
        "asks ANSWERS Bash two",
        "unask",
        "answers ANSWERS 1",
    ];
    let run = dispatched(&engine, spec(&world, Permissions::Ask, &orders)).await;
    let closed = |kind: &Kind| matches!(kind, Kind::PermissionAnswered { ask, .. } if ask.0 == 2);
    until(&engine, run.task, closed).await;
    assert!(engine.permit(run.task, AskId(2), true, None).await.is_err());
    engine.permit(run.task, AskId(1), true, None).await.unwrap();
    let view = finished(&engine, run).await;
    assert_eq!(
        fates(&view),
        [&answered(true, By::Person), &answered(false, By::Agent)]
    );
    assert_eq!(answers(&world), "ask-1 allow one\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_asking_anybody_it_is_allowed_or_denied_at_once() {
    for (permissions, word) in [(Permissions::Allow, "allow"), (Permissions::Deny, "deny")] {
        let world = world();
        let engine = world.engine().await;
        let orders = ["ask ANSWERS Bash make"];
        let run = dispatched(&engine, spec(&world, permissions, &orders)).await;
        let view = finished(&engine, run).await;
        assert_eq!(outcome(&view).word(), "completed");
        assert_eq!(view.task.asks, []);
        let answers = answers(&world);
        assert!(answers.starts_with(&format!("ask-1 {word} ")), "{answers}");
    }
}

/// What a task was to be asked for, it is asked for by whoever goes on with it.
#[tokio::test(flavor = "multi_thread")]
async fn another_agent_is_not_looser() {
    let mut world = world();
    let name = |name: &str| name.parse::<dispatch_core::id::AgentName>().unwrap();
    let talker = world.config.agents[&name("talker")].clone();
    for (other, permissions) in [("loose", Permissions::Allow), ("strict", Permissions::Ask)] {
        let profile = AgentProfile {
            permissions,
            ..talker.clone()
        };
        world.config.agents.insert(name(other), profile);
    }
    let engine = world.engine().await;
    let go_on = async |task, agent: &str| {
        let agent = world.config.select(agent).unwrap();
        engine.resume(task, Some(agent), Secrets::new()).await
    };
    for (first, agent, then) in [
        (Permissions::Allow, "strict", Permissions::Ask),
        (Permissions::Allow, "loose", Permissions::Allow),
        (Permissions::Deny, "strict", Permissions::Deny),
        (Permissions::Ask, "loose", Permissions::Ask),
    ] {
        let run = dispatched(&engine, spec(&world, first, &["say hello"])).await;
        finished(&engine, run).await;
        let view = finished(&engine, go_on(run.task, agent).await.unwrap()).await;
        assert_eq!(view.task.spec.terms.permissions, then, "{first:?} {agent}");
    }
    let run = dispatched(&engine, spec(&world, Permissions::Ask, &["say hello"])).await;
    finished(&engine, run).await;
    let error = go_on(run.task, "fake").await.unwrap_err().to_string();
    assert!(error.contains("asks for no permission (plain)"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sub_task_whose_parent_cannot_answer_asks_a_person() {
    let world = world();
    let engine = world.engine().await;
    let parent = dispatched(&engine, spec(&world, Permissions::Ask, &["say hello"])).await;
    finished(&engine, parent).await;
    let child = TaskSpec {
        parent: Some(parent.task),
        ..spec(&world, Permissions::Ask, &["ask ANSWERS Bash make"])
    };
    let run = dispatched(&engine, child).await;
    let ask = asked(&engine, run.task, 1).await;
    assert_eq!(ask.owner, Sender::Person);
    engine.permit(run.task, ask.id, true, None).await.unwrap();
    finished(&engine, run).await;
}

/// An agent that asks without end fills neither the memory nor the log, and every one is answered.
#[tokio::test(flavor = "multi_thread")]
async fn there_is_an_end_to_asking() {
    let world = world();
    let engine = world.engine().await;
    let more = 7;
    let mut orders = vec!["asks ANSWERS Bash x"; ASKS_MAX + more];
    let denied = format!("answers ANSWERS {}", ASKS_MAX + more - OPEN_MAX);
    orders.push(&denied);
    let (_home, pipe) = talk::pipe();
    let waits = format!("append {} x", pipe.display());
    orders.push(&waits);
    let rest = format!("answers ANSWERS {OPEN_MAX}");
    orders.push(&rest);
    let run = dispatched(&engine, spec(&world, Permissions::Ask, &orders)).await;
    asked(&engine, run.task, u32::try_from(ASKS_MAX).unwrap()).await;
    let waiting = tokio::task::spawn_blocking(move || fs::read_to_string(pipe));
    patient(waiting).await.unwrap().unwrap();
    let view = engine.task(run.task).await.unwrap();
    assert_eq!(view.task.asks.len(), ASKS_MAX);
    let open: Vec<AskId> = view.task.open_asks().map(|ask| ask.id).collect();
    assert_eq!(open.len(), OPEN_MAX);
    engine.shutdown().await.unwrap();
    // A replay of all of it says nothing twice.
    let engine = world.engine().await;
    for ask in open {
        engine.permit(run.task, ask, true, None).await.unwrap();
    }
    let view = finished(&engine, run).await;
    assert_eq!(outcome(&view).word(), "completed");
    let answers = answers(&world);
    let count = |word: &str| answers.lines().filter(|line| line.contains(word)).count();
    assert_eq!(count(" allow "), OPEN_MAX);
    assert_eq!(count("which is all it may ask"), more);
    assert_eq!(count(" deny "), ASKS_MAX + more - OPEN_MAX);
    assert_eq!(count("stray"), 0);
    assert!(view.task.asks.len() <= dispatch_core::ask::SETTLED_MAX);
}

/// This machine, where an order to say something goes wrong the first times it is tried, each in its way:
/// not told, or told and not answered.
#[derive(Debug)]
struct Flaky {
    site: Local,
    tried: Mutex<BTreeMap<u64, u32>>,
}

impl Flaky {
    fn sites(world: &World) -> (Arc<Self>, Sites) {
        let settings = world.settings();
        let flaky = Arc::new(Self {
            site: Local::new(settings.data, settings.keeper),
            tried: Mutex::default(),
        });
        let site = Arc::clone(&flaky) as Arc<dyn Site>;
        (flaky, Sites::from([("local".parse().unwrap(), site)]))
    }

    fn tries(&self) -> Vec<(u64, u32)> {
        let tried = self.tried.lock().unwrap();
        tried.iter().map(|(id, times)| (*id, *times)).collect()
    }
}

impl Site for Flaky {
    fn put<'a>(&'a self, path: &'a Path, bytes: &'a [u8]) -> BoxFuture<'a, io::Result<()>> {
        self.site.put(path, bytes)
    }

    fn start<'a>(&'a self, job: &'a JobId, what: &'a Invocation) -> BoxFuture<'a, Start> {
        self.site.start(job, what)
    }

    fn follow<'a>(
        &'a self,
        job: &'a JobId,
        from: Offset,
    ) -> BoxFuture<'a, io::Result<Box<dyn Follow>>> {
        self.site.follow(job, from)
    }

    fn given<'a>(&'a self, job: &'a JobId) -> BoxFuture<'a, io::Result<BTreeSet<u64>>> {
        self.site.given(job)
    }

    fn order<'a>(&'a self, job: &'a JobId, order: &'a Order) -> BoxFuture<'a, io::Result<()>> {
        let Order::Say { id, .. } = order else {
            return self.site.order(job, order);
        };
        let mut tried = self.tried.lock().unwrap();
        let times = tried.entry(*id).or_default();
        *times += 1;
        let times = *times;
        drop(tried);
        Box::pin(async move {
            match times {
                1 => Err(io::Error::from_raw_os_error(24)),
                2 => {
                    self.site.order(job, order).await?;
                    Err(io::ErrorKind::TimedOut.into())
                }
                _ => self.site.order(job, order).await,
            }
        })
    }
}

/// Whatever is for an agent's input reaches it once, however often its keeper could not be told: its first
/// words, a person's answer, and what its driver says by itself.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_could_not_be_given_is_given_again() {
    for (permissions, order) in [(Permissions::Ask, 2 << 32 | 1), (Permissions::Allow, 1)] {
        let world = world();
        let (flaky, sites) = Flaky::sites(&world);
        let engine = world.engine_with(sites).await;
        let orders = ["ask ANSWERS Bash make"];
        let run = dispatched(&engine, spec(&world, permissions, &orders)).await;
        if permissions == Permissions::Ask {
            let ask = asked(&engine, run.task, 1).await;
            engine.permit(run.task, ask.id, true, None).await.unwrap();
        }
        let view = finished(&engine, run).await;
        assert_eq!(outcome(&view).word(), "completed");
        assert_eq!(answers(&world), "ask-1 allow make\n");
        assert_eq!(flaky.tries(), [(0, 3), (order, 3)]);
    }
}
