//! The gate with a real engine, real jobs and a clock that the test sets: pauses, rates, dependencies,
//! budgets and retries, across restarts.
//! Must not sleep.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; a failure is a failed test"
)]

mod world;

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use dispatch_core::{
    Millis,
    event::{Event, Kind, Scope},
    gate::{MicroUsd, Pool},
    id::{RunId, TaskId},
    outcome::{Failure, Outcome, Stop},
    schedule::{Waiting, Why},
    task::TaskSpec,
};
use dispatch_engine::{
    clock::{Clock, SetClock},
    engine::{Engine, Secrets},
    jobdir::JobDir,
    reader::Reader,
    view::{Force, VerbError},
};
use world::{World, finished, outcome, patient, reason, until};

/// Noon of some day.
const NOON: Millis = 20_000 * 86_400_000 + 43_200_000;
const MINUTE: Millis = 60_000;

struct Gate {
    world: World,
    clock: SetClock,
}

impl Gate {
    fn new() -> Self {
        Self::with("")
    }

    /// `extra` goes into the table of the agent.
    fn with(extra: &str) -> Self {
        Self {
            world: World::with(extra),
            clock: SetClock::at(NOON),
        }
    }

    /// A program of the test's own speaks as `driver` would, one line of shell for each of its runs.
    fn speaking(driver: &str, runs: &[&str]) -> Self {
        let mut gate = Self::new();
        let script = gate.world.home.path().join("agent.sh");
        let count = gate.path("count");
        let mut text = format!(
            "#!/bin/sh\necho x >> {count}\nn=$(wc -l < {count})\ncase $n in\n",
            count = count.display()
        );
        for (index, line) in runs.iter().enumerate() {
            text.push_str(&format!("{}) {line} ;;\n", index + 1));
        }
        text.push_str("esac\n");
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let agent = gate.world.config.agents.get_mut(&"fake".parse().unwrap());
        let agent = agent.unwrap();
        agent.program = script.to_string_lossy().into_owned();
        agent.driver = serde_json::from_str(&format!("\"{driver}\"")).unwrap();
        gate.world.config.gate.retries_max = 3;
        gate
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.home.path().join(name)
    }

    fn pool(&mut self) -> &mut Pool {
        let pools = &mut self.world.config.pools;
        pools.get_mut(&"test".parse().unwrap()).unwrap()
    }

    async fn engine(&self) -> Engine {
        let mut settings = self.world.settings();
        settings.clock = Clock::Set(self.clock.clone());
        Engine::open(settings).await.unwrap()
    }

    fn events(&self) -> Vec<Event> {
        let reader = Reader::open(&self.world.data()).unwrap();
        reader.events(0, 10_000).unwrap()
    }
}

async fn queue(engine: &Engine, spec: TaskSpec) -> RunId {
    engine.dispatch(spec, Secrets::new()).await.unwrap()
}

async fn waiting(engine: &Engine, task: TaskId) -> Waiting {
    engine.task(task).await.unwrap().waits.unwrap()
}

/// Until that run of a task has started.
async fn started(engine: &Engine, run: RunId) {
    let mut events = engine.events(0);
    let wait = async {
        loop {
            match events.next().await.unwrap() {
                dispatch_engine::view::Told::Event(event)
                    if event.subject.run() == Some(run)
                        && matches!(event.kind, Kind::Started { .. }) =>
                {
                    return;
                }
                _ => {}
            }
        }
    };
    patient(wait).await;
}

const LIMITED: &str = r#"echo '{"type":"turn.failed","error":{"message":"Rate limit reached. Please try again in 600s."}}'"#;
const AWAY: &str =
    r#"echo '{"type":"turn.failed","error":{"message":"unexpected status 503 Unavailable"}}'"#;
const DONE: &str = r#"echo hi > made; echo '{"type":"turn.completed","usage":{}}'"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_pauses_the_pool_over_a_restart_and_the_task_goes_on_by_itself() {
    let mut gate = Gate::speaking("codex", &[LIMITED, DONE, DONE]);
    // The provider's time counts from the end of the job, which its keeper writes down.
    let now = Clock::System.now();
    gate.clock = SetClock::at(now);
    let engine = gate.engine().await;
    let run = queue(&engine, gate.world.spec(&[])).await;
    let view = finished(&engine, run).await;
    let first = &view.task.runs[0].state;
    assert_eq!(first.word(), "failed", "{first:?}");
    let other = queue(&engine, gate.world.spec(&[])).await;
    let paused = waiting(&engine, run.task).await;
    assert_eq!(paused.why, Why::Paused);
    assert!(
        paused.text.contains("the provider said so"),
        "{}",
        paused.text
    );
    let at = paused.until.unwrap();
    // With a jitter of at most 30 s, and what the test took.
    assert!(
        (now + 10 * MINUTE..now + 11 * MINUTE).contains(&at),
        "{at} at {now}"
    );
    engine.shutdown().await.unwrap();

    let engine = gate.engine().await;
    assert_eq!(
        waiting(&engine, run.task).await,
        paused,
        "a restart changes nothing"
    );
    assert_eq!(waiting(&engine, other.task).await.why, Why::Paused);
    gate.clock.set(at - 1);
    // A question to the actor, so that it has looked at the clock.
    assert_eq!(waiting(&engine, run.task).await.why, Why::Paused);
    gate.clock.set(at);
    let again = RunId { n: 2, ..run };
    let view = finished(&engine, again).await;
    assert_eq!(outcome(&view).word(), "completed", "{}", reason(&view));
    assert_eq!(finished(&engine, other).await.task.runs.len(), 1);

    let events = gate.events();
    let paused: Vec<&Event> = events
        .iter()
        .filter(|event| matches!(event.kind, Kind::PoolPaused { .. }))
        .collect();
    assert_eq!(paused.len(), 1, "{paused:?}");
    let Kind::PoolPaused { pool, until, .. } = &paused[0].kind else {
        unreachable!()
    };
    assert_eq!((pool.as_str(), *until), ("test", at));
    // The end and the run that follows it were made durable together.
    let ended = events
        .iter()
        .position(|e| matches!(e.kind, Kind::Finished { .. }));
    let queued = |e: &&Event| matches!(e.kind, Kind::RunQueued { .. });
    let next = &events[ended.unwrap()..ended.unwrap() + 3];
    assert!(next.iter().any(|e| queued(&e)), "{next:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_is_away_is_tried_a_few_times_and_then_the_task_is_given_up() {
    let gate = Gate::speaking("codex", &[AWAY; 9]);
    let engine = gate.engine().await;
    let mut run = queue(&engine, gate.world.spec(&[])).await;
    for _ in 0..3 {
        finished(&engine, run).await;
        let waits = waiting(&engine, run.task).await;
        assert_eq!(waits.why, Why::Retry, "{}", waits.text);
        gate.clock.set(waits.until.unwrap());
        run.n += 1;
    }
    let view = finished(&engine, run).await;
    let Outcome::Failed(Failure::GaveUp { runs: 4, history }) = outcome(&view) else {
        panic!("{:?}", outcome(&view));
    };
    assert_eq!(history.matches("status 503").count(), 4, "{history}");
    assert_eq!(view.task.runs.len(), 4);
    // A person may want it all the same, and does not wait for that.
    let again = engine.retry(run.task, Secrets::new()).await.unwrap();
    assert_eq!(again.n, 5);
    finished(&engine, again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_run_is_tried_again_in_its_workspace() {
    let mut gate = Gate::new();
    gate.world.config.gate.retries_max = 1;
    let engine = gate.engine().await;
    let orders = ["append runs x", "say up", "hang"];
    let mut run = queue(&engine, gate.world.spec(&orders)).await;
    for last in [false, true] {
        started(&engine, run).await;
        let dir = gate.world.data().join("runs").join(run.to_string());
        let dir = JobDir::at(dir.join("agent"));
        let keeper = dir.group().unwrap().unwrap().keeper;
        let keeper = rustix::process::Pid::from_raw(keeper).unwrap();
        let workspace = engine.task(run.task).await.unwrap().task.workspace;
        let runs = workspace.unwrap().path.join("runs");
        let expected = "x\n".repeat(run.n as usize);
        while fs::read_to_string(&runs).unwrap_or_default() != expected {
            tokio::task::yield_now().await;
        }
        rustix::process::kill_process(keeper, rustix::process::Signal::KILL).unwrap();
        let view = finished(&engine, run).await;
        assert_eq!(gate.world.alive(run.task).len(), 0);
        if last {
            assert!(
                reason(&view).starts_with("gave up after 2 runs"),
                "{}",
                reason(&view)
            );
            return;
        }
        let waits = waiting(&engine, run.task).await;
        assert_eq!(waits.why, Why::Retry);
        gate.clock.set(waits.until.unwrap());
        run.n += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_and_slots_of_a_model_hold_and_say_so() {
    let mut gate = Gate::new();
    gate.pool().min_delay_s = 60;
    gate.pool().slots.models.insert("m".parse().unwrap(), 1);
    let engine = gate.engine().await;
    let mut with_model = gate.world.spec(&["env DISPATCH_MODEL", "hang"]);
    with_model.terms.model = Some("m".parse().unwrap());
    let first = queue(&engine, with_model.clone()).await;
    let second = queue(&engine, with_model).await;
    let third = queue(&engine, gate.world.spec(&["write a b"])).await;
    started(&engine, first).await;
    let rate = waiting(&engine, third.task).await;
    assert_eq!((rate.why, rate.until), (Why::Rate, Some(NOON + MINUTE)));
    let view = engine.task(third.task).await.unwrap();
    assert_eq!(view.place, Some(2));
    gate.clock.set(NOON + MINUTE);
    // The second has no slot of its model, and holds nobody up.
    finished(&engine, third).await;
    gate.clock.set(NOON + 2 * MINUTE);
    let busy = waiting(&engine, second.task).await;
    assert_eq!(busy.text, "pool test: 1 of 1 busy with m");
    let log = engine.task(first.task).await.unwrap().jobs[0].log.clone();
    while fs::read_to_string(&log).unwrap() != "DISPATCH_MODEL=m\n" {
        tokio::task::yield_now().await;
    }
    // What it was told when it was queued is an event.
    let told = until(&engine, second.task, |kind| {
        matches!(kind, Kind::Waits { .. })
    })
    .await;
    assert!(
        matches!(&told.kind, Kind::Waits { reason, until: Some(at) }
            if reason.contains("its rate allows") && *at == NOON + MINUTE),
        "{told:?}"
    );
    engine.stop(second.task, Force::Ask).await.unwrap();
    engine.stop(first.task, Force::Kill).await.unwrap();
    finished(&engine, first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quick_failures_pause_the_pool_and_a_retry_by_a_person_waits_like_any_other() {
    let mut gate = Gate::new();
    gate.world.config.gate.fail_runs = 3;
    let engine = gate.engine().await;
    let mut last = None;
    for _ in 0..3 {
        let run = queue(&engine, gate.world.spec(&["exit 1"])).await;
        finished(&engine, run).await;
        last = Some(run);
    }
    let last = last.unwrap();
    let run = engine.retry(last.task, Secrets::new()).await.unwrap();
    let waits = waiting(&engine, run.task).await;
    assert_eq!(
        (waits.why, waits.until),
        (Why::Paused, Some(NOON + 30 * MINUTE))
    );
    let paused = gate
        .events()
        .into_iter()
        .find_map(|event| match event.kind {
            Kind::PoolPaused {
                pool,
                until,
                reason,
            } => Some((pool, until, reason)),
            _ => None,
        });
    let (pool, at, why) = paused.unwrap();
    assert_eq!((pool.as_str(), at), ("test", NOON + 30 * MINUTE));
    assert_eq!(why, "3 runs in a row failed within 60 s of their start");
    gate.clock.set(at);
    let view = finished(&engine, run).await;
    assert_eq!(view.task.runs.len(), 2);
    let first = view.task.workspace.unwrap().path;
    assert!(first.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_starts_after_another_or_fails_with_it() {
    let gate = Gate::new();
    let engine = gate.engine().await;
    let first = queue(&engine, gate.world.spec(&["write a b", "hang"])).await;
    let after = |orders: &[&str], run: RunId| {
        let mut spec = gate.world.spec(orders);
        spec.terms.after = vec![run.task];
        spec
    };
    let second = queue(&engine, after(&["write c d"], first)).await;
    let third = queue(&engine, after(&["write e f"], second)).await;
    started(&engine, first).await;
    let short = engine.task(first.task).await.unwrap().short;
    assert_eq!(
        waiting(&engine, second.task).await.text,
        format!("after {short} (running)")
    );
    engine.stop(first.task, Force::Kill).await.unwrap();
    for run in [second, third] {
        let view = finished(&engine, run).await;
        assert!(
            reason(&view).contains("had to complete before"),
            "{}",
            reason(&view)
        );
        assert_eq!(view.task.workspace, None, "nothing of it ever ran");
    }
    // What cannot complete is not waited for.
    let refused = engine.dispatch(after(&[], first), Secrets::new()).await;
    assert!(
        matches!(refused, Err(VerbError::BadInput { .. })),
        "{refused:?}"
    );
    let refused = engine.retry(second.task, Secrets::new()).await;
    assert!(refused.unwrap_err().to_string().contains("dispatch retry"));
    let nobody = RunId {
        task: TaskId::from_bits(7),
        n: 1,
    };
    let refused = engine.dispatch(after(&[], nobody), Secrets::new()).await;
    assert!(
        matches!(refused, Err(VerbError::NoSuchTask { .. })),
        "{refused:?}"
    );

    let fine = queue(&engine, gate.world.spec(&["write a b"])).await;
    let next = queue(&engine, after(&["write c d"], fine)).await;
    assert_eq!(outcome(&finished(&engine, next).await).word(), "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_can_be_frozen() {
    let gate = Gate::new();
    let engine = gate.engine().await;
    let repo = Scope::Repo(gate.world.repo().to_string_lossy().into_owned());
    for (scope, text) in [
        (Scope::All, "frozen by you"),
        (
            Scope::Pool("test".parse().unwrap()),
            "pool test: frozen by you",
        ),
        (repo, "repository frozen by you"),
    ] {
        engine.set_frozen(true, scope.clone()).await.unwrap();
        let run = queue(&engine, gate.world.spec(&["write a b"])).await;
        assert_eq!(waiting(&engine, run.task).await.text, text);
        engine.set_frozen(false, scope).await.unwrap();
        assert_eq!(outcome(&finished(&engine, run).await).word(), "completed");
    }
    let unknown = Scope::Pool("nope".parse().unwrap());
    let refused = engine
        .set_frozen(true, unknown)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("there are anthropic, coderabbit"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_over_its_budget_is_warned_of_and_stopped_while_it_works() {
    let says = |n, tokens| {
        format!(
            r#"echo '{{"type":"assistant","message":{{"id":"m{n}","content":[],"usage":{{"input_tokens":{tokens}}}}},"parent_tool_use_id":null}}'"#
        )
    };
    let line = format!(
        "{}; {}; while read x; do :; done; sleep 1000",
        says(1, 90),
        says(2, 20)
    );
    let gate = Gate::speaking("claude", &[&line]);
    let engine = gate.engine().await;
    let mut spec = gate.world.spec(&[]);
    spec.terms.budget_tokens = 100;
    let run = queue(&engine, spec).await;
    let view = finished(&engine, run).await;
    assert_eq!(*outcome(&view), Outcome::Stopped(Stop::Budget));
    assert_eq!(gate.world.alive(run.task).len(), 0);
    let warned = until(&engine, run.task, |kind| {
        matches!(kind, Kind::BudgetWarned { .. })
    })
    .await;
    assert!(
        matches!(&warned.kind, Kind::BudgetWarned { spent, .. } if spent == "90 of 100 tokens"),
        "{warned:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_of_the_day_warns_and_then_starts_nothing_until_the_next() {
    let ended = |usd| {
        format!(
            r#"echo hi > made; echo '{{"type":"result","subtype":"success","is_error":false,"result":"ok","total_cost_usd":{usd}}}'"#
        )
    };
    let mut gate = Gate::speaking("claude", &[&ended(0.85), &ended(0.2), &ended(0.1)]);
    gate.pool().day_usd = MicroUsd::try_from(1.0).unwrap();
    let engine = gate.engine().await;
    for _ in 0..2 {
        let run = queue(&engine, gate.world.spec(&[])).await;
        let view = finished(&engine, run).await;
        assert_eq!(outcome(&view).word(), "completed", "{}", reason(&view));
    }
    let run = queue(&engine, gate.world.spec(&[])).await;
    let waits = waiting(&engine, run.task).await;
    assert_eq!(
        (waits.why, waits.until),
        (Why::Budget, Some(NOON + 720 * MINUTE))
    );
    assert!(waits.text.contains("1.05 of 1.00 USD"), "{}", waits.text);
    let warned: Vec<String> = gate
        .events()
        .into_iter()
        .filter_map(|event| match event.kind {
            Kind::BudgetWarned { what, spent } => Some(format!("{what}: {spent}")),
            _ => None,
        })
        .collect();
    assert_eq!(warned, ["day of pool test: 0.85 of 1.00 USD"]);
    gate.clock.set(NOON + 720 * MINUTE);
    finished(&engine, run).await;
}
