//! What is said to a task with a real engine and real jobs: heard once, in order, by the agent that
//! runs or by the next run; kept, withdrawn, held. The agents are scripted and write down what they
//! hear.
//! Must not sleep.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; a failure is a failed test"
)]

mod world;

use std::{fs, path::PathBuf};

use dispatch_core::{
    config::Selection,
    event::Kind,
    id::{RunId, TaskId},
    message::{Delivery, Fate, MessageId, Sender},
    outcome::Outcome,
    run::RunCause,
    task::{Effort, Expects, TaskSpec, Tuning},
};
use dispatch_engine::{
    attachments::NewFile,
    clock::{Clock, SetClock},
    engine::{Engine, Secrets, Settings},
    view::{Force, Given, Heard, Spoken, TaskView, VerbError},
};
use world::{AGENT, World, finished, outcome, patient, talk, until};

/// `talker` can be spoken to while it runs, `fake` cannot and has no session.
fn world() -> World {
    World::with(&format!(
        "[agents.talker]\ndriver = \"claude\"\nprogram = \"{AGENT}\"\npool = \"test\"\n\
         placement = \"host\"\n"
    ))
}

fn path(world: &World, name: &str) -> PathBuf {
    world.home.path().join(name)
}

fn read(world: &World, name: &str) -> String {
    fs::read_to_string(path(world, name)).unwrap_or_default()
}

fn order(world: &World, order: &str, name: &str, rest: &str) -> String {
    format!("{order} {} {rest}", path(world, name).display())
}

fn spec(world: &World, agent: &str, orders: &[String]) -> TaskSpec {
    let orders: Vec<&str> = orders.iter().map(String::as_str).collect();
    TaskSpec {
        agent: agent.parse().unwrap(),
        expects: Expects::Either,
        ..world.spec(&orders)
    }
}

async fn started(engine: &Engine, spec: TaskSpec) -> RunId {
    let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
    until(engine, run.task, |kind| {
        matches!(kind, Kind::Started { .. })
    })
    .await;
    run
}

async fn say_as(engine: &Engine, task: TaskId, from: Sender, text: &str) -> Spoken {
    let said = engine.say(task, text.into(), from, Secrets::new());
    patient(said).await.unwrap()
}

async fn say(engine: &Engine, task: TaskId, text: &str) -> Heard {
    say_as(engine, task, Sender::Person, text).await.how
}

async fn end(engine: &Engine, task: TaskId, n: u32) -> TaskView {
    finished(engine, RunId { task, n }).await
}

fn fates(view: &TaskView) -> Vec<Fate> {
    view.task.messages.iter().map(|m| m.fate).collect()
}

const INTERRUPT: Fate = Fate::Delivered(Delivery::Interrupt);
const CONTINUATION: Fate = Fate::Delivered(Delivery::Continuation);

#[tokio::test(flavor = "multi_thread")]
async fn a_running_agent_hears_what_is_said() {
    let world = world();
    let engine = world.engine().await;
    let hear = order(&world, "hear", "heard", "2");
    let run = started(&engine, spec(&world, "talker", &[hear])).await;
    assert_eq!(say(&engine, run.task, "use UTC").await, Heard::Delivered);
    assert_eq!(say(&engine, run.task, "please").await, Heard::Delivered);
    let view = finished(&engine, run).await;
    assert_eq!(outcome(&view).word(), "completed");
    assert_eq!(read(&world, "heard"), "use UTC\nplease\n");
    assert_eq!(fates(&view), [INTERRUPT, INTERRUPT]);
    assert_eq!(view.task.runs.len(), 1);
}

/// A run has files and a model from its start only. What is said after that waits too: in order.
#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_fresh_start_is_not_said_in_the_middle_of_a_run() {
    let world = world();
    let engine = world.engine().await;
    let run = started(&engine, spec(&world, "talker", &["hang".to_owned()])).await;
    assert_eq!(say(&engine, run.task, "before").await, Heard::Delivered);
    let attached = format!("@attached {}", path(&world, "read").display());
    let with_file = Given {
        files: vec![NewFile {
            name: "a.txt".into(),
            bytes: b"new".to_vec(),
        }],
        ..Given::default()
    };
    let with_model = Given {
        tuning: Tuning {
            model: "m".parse().ok(),
            effort: None,
            chain: None,
        },
        ..Given::default()
    };
    for (text, given) in [
        (&*attached, with_file),
        ("and think", with_model),
        ("and now", Given::default()),
    ] {
        let said = engine.say(run.task, text.into(), Sender::Person, given);
        assert_eq!(patient(said).await.unwrap().how, Heard::Queued, "{text}");
    }
    let view = engine.task(run.task).await.unwrap();
    assert_eq!(fates(&view)[1..], [Fate::Waiting; 3]);
    assert_eq!(view.task.spec.terms.model, None);
    engine.stop(run.task, Force::Kill).await.unwrap();
    let view = finished(&engine, run).await;
    assert_eq!(view.task.spec.terms.model, "m".parse().ok());
    let next = engine.resume(run.task, None, Secrets::new()).await.unwrap();
    let view = finished(&engine, next).await;
    assert_eq!(fates(&view)[1..], [CONTINUATION; 3]);
    assert_eq!(read(&world, "read"), "new\n");
}

/// One that waits for the gate has not begun: it takes files and model along.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_waits_takes_files_and_model_along() {
    let world = world();
    let engine = world.engine().await;
    engine.set_frozen(true, Default::default()).await.unwrap();
    let task = spec(
        &world,
        "fake",
        &[order(&world, "attached", "read", "").trim().to_owned()],
    );
    let run = engine.dispatch(task, Secrets::new()).await.unwrap();
    let given = Given {
        files: vec![NewFile {
            name: "a.txt".into(),
            bytes: b"new".to_vec(),
        }],
        tuning: Tuning {
            model: "m".parse().ok(),
            effort: None,
            chain: None,
        },
        ..Given::default()
    };
    let said = engine.say(
        run.task,
        "@env DISPATCH_MODEL".into(),
        Sender::Person,
        given,
    );
    assert_eq!(patient(said).await.unwrap().how, Heard::Queued);
    engine.set_frozen(false, Default::default()).await.unwrap();
    let view = finished(&engine, run).await;
    assert_eq!(
        (fates(&view), view.task.runs.len()),
        (vec![CONTINUATION], 1)
    );
    assert_eq!(read(&world, "read"), "new\n");
    let out = fs::read_to_string(&view.jobs[0].log).unwrap();
    assert!(out.contains("DISPATCH_MODEL=m"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cannot_be_spoken_to_hears_it_with_its_next_run() {
    let world = world();
    let engine = world.engine().await;
    let orders = [
        order(&world, "append", "count", "ran"),
        order(&world, "await", "go", ""),
        "say done".to_owned(),
    ];
    let run = started(&engine, spec(&world, "fake", &orders)).await;
    let append = |text| format!("@{}", order(&world, "append", "heard", text));
    assert_eq!(say(&engine, run.task, &append("one")).await, Heard::Queued);
    assert_eq!(say(&engine, run.task, &append("two")).await, Heard::Queued);
    fs::write(path(&world, "go"), "").unwrap();
    let view = end(&engine, run.task, 2).await;
    assert_eq!(read(&world, "heard"), "one\ntwo\n");
    assert_eq!(read(&world, "count"), "ran\nran\n");
    assert_eq!(fates(&view), [CONTINUATION, CONTINUATION]);
    // One without a session is told again, in a later run, what it was told before.
    assert_eq!(
        say(&engine, run.task, &append("three")).await,
        Heard::Queued
    );
    end(&engine, run.task, 3).await;
    assert_eq!(read(&world, "heard"), "one\ntwo\none\ntwo\nthree\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_while_it_waits_comes_with_its_first_words() {
    let world = world();
    let engine = world.engine().await;
    engine.set_frozen(true, Default::default()).await.unwrap();
    let task = spec(&world, "fake", &["say hello".to_owned()]);
    let run = engine.dispatch(task, Secrets::new()).await.unwrap();
    let append = format!("@{}", order(&world, "append", "heard", "first"));
    assert_eq!(say(&engine, run.task, &append).await, Heard::Queued);
    engine.set_frozen(false, Default::default()).await.unwrap();
    let view = finished(&engine, run).await;
    assert_eq!(read(&world, "heard"), "first\n");
    assert_eq!(
        (fates(&view), view.task.runs.len()),
        (vec![CONTINUATION], 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_task_goes_on_in_its_session_and_workspace() {
    let world = world();
    let engine = world.engine().await;
    let orders = ["write a.txt one".to_owned(), "env HOME".to_owned()];
    let run = started(&engine, spec(&world, "talker", &orders)).await;
    let first = finished(&engine, run).await;
    let more = "@append a.txt two";
    assert_eq!(say(&engine, run.task, more).await, Heard::Queued);
    let view = end(&engine, run.task, 2).await;
    let last = view.task.last_run().unwrap();
    assert_eq!(last.cause, RunCause::Said { by_person: true });
    assert_eq!(
        view.task.workspace.as_ref().unwrap().path,
        first.task.workspace.unwrap().path
    );
    // Only the message is new to it: the first orders were not given again.
    let file = view.task.workspace.unwrap().path.join("a.txt");
    assert_eq!(fs::read_to_string(file).unwrap(), "one\ntwo\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_stop_it_is_kept_until_a_person_says_more() {
    let world = world();
    let engine = world.engine().await;
    let run = started(&engine, spec(&world, "fake", &["hang".to_owned()])).await;
    let append = |text| format!("@{}", order(&world, "append", "heard", text));
    let other = Sender::Task(TaskId::from_bits(7));
    let first = say_as(&engine, run.task, Sender::Person, "@exit 0").await;
    assert_eq!(first.how, Heard::Queued);
    engine.unsay(run.task, first.message).await.unwrap();
    assert_eq!(say(&engine, run.task, &append("one")).await, Heard::Queued);
    engine.stop(run.task, Force::Kill).await.unwrap();
    let view = finished(&engine, run).await;
    assert_eq!(fates(&view), [Fate::Cancelled, Fate::Waiting]);
    assert!(
        view.task
            .notes
            .iter()
            .any(|note| note.contains("wait until a person"))
    );
    let held = say_as(&engine, run.task, other, &append("two")).await;
    assert_eq!(held.how, Heard::Held);
    assert_eq!(engine.task(run.task).await.unwrap().task.runs.len(), 1);
    // The agent goes on with another one, which does not hang.
    let resumed = "@exit 0";
    assert_eq!(say(&engine, run.task, resumed).await, Heard::Queued);
    let taken =
        |kind: &Kind| matches!(kind, Kind::MessageDelivered { message, .. } if message.0 == 4);
    until(&engine, run.task, taken).await;
    let view = engine.task(run.task).await.unwrap();
    let by: Vec<_> = view
        .task
        .messages
        .iter()
        .map(|m| m.taken.map(|t| t.run))
        .collect();
    assert_eq!(by, [None, Some(2), Some(2), Some(2)]);
    engine.stop(run.task, Force::Kill).await.unwrap();
    end(&engine, run.task, 2).await;
}

/// In the input of an agent that ended without reading it: it waits again, and is heard once.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_did_not_take_up_before_its_end_is_not_lost() {
    let world = world();
    let engine = world.engine().await;
    let (_home, pipe) = talk::pipe();
    let orders = [
        order(&world, "hear", "heard", "1"),
        format!("append {} taken", pipe.display()),
        "hang".to_owned(),
    ];
    let run = started(&engine, spec(&world, "talker", &orders)).await;
    assert_eq!(say(&engine, run.task, "taken up").await, Heard::Delivered);
    let taken = tokio::task::spawn_blocking(move || fs::read_to_string(pipe));
    assert_eq!(patient(taken).await.unwrap().unwrap(), "taken\n");
    let more = format!("@{}", order(&world, "append", "heard", "not taken up"));
    assert_eq!(say(&engine, run.task, &more).await, Heard::Delivered);
    engine.stop(run.task, Force::Kill).await.unwrap();
    let view = finished(&engine, run).await;
    assert_eq!(fates(&view), [INTERRUPT, Fate::Waiting]);
    assert_eq!(say(&engine, run.task, "go on").await, Heard::Queued);
    let view = end(&engine, run.task, 2).await;
    assert_eq!(fates(&view), [INTERRUPT, CONTINUATION, CONTINUATION]);
    assert_eq!(read(&world, "heard"), "taken up\nnot taken up\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_withdrawn_until_a_run_has_it() {
    let world = world();
    let engine = world.engine().await;
    let done = spec(&world, "talker", &["say done".to_owned()]);
    let run = started(&engine, done).await;
    finished(&engine, run).await;
    engine.set_frozen(true, Default::default()).await.unwrap();
    let spoken = say_as(&engine, run.task, Sender::Person, "@exit 1").await;
    engine.unsay(run.task, spoken.message).await.unwrap();
    engine.set_frozen(false, Default::default()).await.unwrap();
    // The run that was queued for it alone is called off, and the task is as it was.
    let view = engine.task(run.task).await.unwrap();
    assert_eq!(outcome(&view).word(), "completed");
    assert_eq!(view.task.runs.len(), 2);
    assert!(view.task.runs[1].started_at.is_none());
    let spoken = say_as(&engine, run.task, Sender::Person, "go on").await;
    end(&engine, run.task, 3).await;
    for (message, words) in [
        (spoken.message, "is delivered already"),
        (MessageId(1), "is cancelled already"),
        (MessageId(9), "is not known"),
    ] {
        let error = engine.unsay(run.task, message).await.unwrap_err();
        assert!(matches!(error, VerbError::Nothing { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// Whatever comes first, the answer is true: withdrawn and never heard, or refused and heard.
#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawal_that_races_with_the_delivery_is_true() {
    let world = world();
    let engine = world.engine().await;
    let hear = order(&world, "hear", "heard", "1");
    let run = started(&engine, spec(&world, "talker", &[hear])).await;
    let mut kept = Vec::new();
    for n in 1..=20 {
        let text = format!("race {n}");
        let saying = engine.say(run.task, text.clone(), Sender::Person, Secrets::new());
        let (said, unsaid) = tokio::join!(saying, engine.unsay(run.task, MessageId(n)));
        match said {
            Ok(_) if unsaid.is_err() => kept.push(text),
            Ok(_) => {}
            // It is over by now, and the next run may be on its way.
            Err(error) => panic!("{error}"),
        }
    }
    engine
        .say(run.task, "last".into(), Sender::Person, Secrets::new())
        .await
        .unwrap();
    kept.push("last".into());
    patient(engine.idle()).await;
    let view = engine.task(run.task).await.unwrap();
    let delivered: Vec<String> = view
        .task
        .messages
        .iter()
        .filter(|message| matches!(message.fate, Fate::Delivered(_)))
        .map(|message| message.text.clone())
        .collect();
    assert_eq!(delivered, kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_to_a_blocked_task_starts_its_next_run() {
    let world = world();
    let engine = world.engine().await;
    let block = "write BLOCKED.md which?".to_owned();
    let run = started(&engine, spec(&world, "talker", &[block])).await;
    let view = finished(&engine, run).await;
    assert!(matches!(outcome(&view), Outcome::Blocked { .. }));
    assert_eq!(
        say(&engine, run.task, "@write a.txt that").await,
        Heard::Queued
    );
    let view = end(&engine, run.task, 2).await;
    assert_eq!(outcome(&view).word(), "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_wake_a_task_only_so_often() {
    let mut world = world();
    world.config.limits.wakes_max = 2;
    let engine = world.engine().await;
    let run = started(&engine, spec(&world, "talker", &["say hi".to_owned()])).await;
    finished(&engine, run).await;
    let other = Sender::Task(TaskId::from_bits(7));
    for n in 2..=3 {
        assert_eq!(
            say_as(&engine, run.task, other, "well?").await.how,
            Heard::Queued
        );
        end(&engine, run.task, n).await;
    }
    assert_eq!(
        say_as(&engine, run.task, other, "and?").await.how,
        Heard::Held
    );
    let view = engine.task(run.task).await.unwrap();
    assert!(view.task.notes.last().unwrap().contains("limits.wakes_max"));
    assert_eq!(view.task.runs.len(), 3);
    // A person's word brings what was held along, and refills the budget.
    assert_eq!(say(&engine, run.task, "go on").await, Heard::Queued);
    end(&engine, run.task, 4).await;
    assert_eq!(
        say_as(&engine, run.task, other, "more").await.how,
        Heard::Queued
    );
    let view = end(&engine, run.task, 5).await;
    assert!(fates(&view).iter().all(|fate| *fate == CONTINUATION));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_that_retention_removed_is_brought_back() {
    let world = world();
    let clock = SetClock::at(1_000_000_000_000);
    let settings = || Settings {
        clock: Clock::Set(clock.clone()),
        ..world.settings()
    };
    let engine = Engine::open(settings()).await.unwrap();
    let write = "write a.txt kept".to_owned();
    let run = started(&engine, spec(&world, "talker", &[write])).await;
    finished(&engine, run).await;
    engine.shutdown().await.unwrap();
    clock.set(1_000_000_000_000 + 15 * 86_400_000);
    let engine = Engine::open(settings()).await.unwrap();
    until(&engine, run.task, |kind| *kind == Kind::WorkspaceRemoved).await;
    assert_eq!(
        say(&engine, run.task, "@append a.txt more").await,
        Heard::Queued
    );
    let view = end(&engine, run.task, 2).await;
    let file = view.task.workspace.unwrap().path.join("a.txt");
    assert_eq!(fs::read_to_string(file).unwrap(), "kept\nmore\n");
    engine.remove(run.task).await.unwrap();
    let said = engine
        .say(run.task, "x".into(), Sender::Person, Secrets::new())
        .await;
    assert!(said.unwrap_err().to_string().contains("dispatch undo"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_agent_goes_on_and_is_told_everything() {
    let world = world();
    let engine = world.engine().await;
    let first = order(&world, "append", "count", "task");
    let run = started(&engine, spec(&world, "talker", &[first])).await;
    finished(&engine, run).await;
    let message = format!("@{}", order(&world, "append", "count", "message"));
    say(&engine, run.task, &message).await;
    end(&engine, run.task, 2).await;
    assert_eq!(read(&world, "count"), "task\nmessage\n");
    let fake = world.config.select("fake").unwrap();
    let resumed = engine.resume(run.task, Some(fake), Secrets::new()).await;
    let view = finished(&engine, resumed.unwrap()).await;
    assert_eq!(read(&world, "count"), "task\nmessage\ntask\nmessage\n");
    assert_eq!(view.task.spec.agent.as_str(), "fake");
    let cause = &view.task.last_run().unwrap().cause;
    let was = matches!(cause, RunCause::Resumed { agent, ended }
        if agent.as_str() == "talker" && ended.starts_with("completed: "));
    assert!(was, "{cause:?}");
    assert_eq!(view.task.session_for(4), None);
    let nobody = Selection {
        agent: "nobody".parse().unwrap(),
        ..world.config.select("fake").unwrap()
    };
    let nobody = engine.resume(run.task, Some(nobody), Secrets::new()).await;
    assert!(matches!(nobody, Err(VerbError::BadInput { .. })));
}

/// How hard an agent was to think is not always what another one can be told.
#[tokio::test(flavor = "multi_thread")]
async fn an_effort_is_one_that_the_agent_of_the_next_run_takes() {
    let world = world();
    let engine = world.engine().await;
    let with = |effort| Given {
        tuning: Tuning {
            model: None,
            effort: Some(effort),
            chain: None,
        },
        ..Given::default()
    };
    let task = |agent| spec(&world, agent, &["say done".to_owned()]);
    let refused = engine.dispatch(task("fake"), with(Effort::High)).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("agent fake cannot be told"), "{refused}");
    let run = engine.dispatch(task("talker"), with(Effort::Max)).await;
    let run = run.unwrap();
    finished(&engine, run).await;
    engine.set_frozen(true, Default::default()).await.unwrap();
    let select = |agent| world.config.select(agent).unwrap();
    for (agent, given, words) in [
        (
            "codex",
            Given::default(),
            "takes minimal, low, medium, high, xhigh",
        ),
        (
            "codex",
            with(Effort::Max),
            "use effort max: agent codex takes",
        ),
        ("fake", Given::default(), "agent fake cannot be told"),
    ] {
        let refused = engine.resume(run.task, Some(select(agent)), given).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(words), "{agent}: {refused}");
    }
    for effort in [Effort::Minimal, Effort::Max] {
        let said = engine.say(run.task, "more".into(), Sender::Person, with(effort));
        assert_eq!(said.await.is_err(), effort == Effort::Minimal);
    }
    let task = engine.task(run.task).await.unwrap().task;
    assert_eq!(
        (task.spec.agent.as_str(), task.messages.len()),
        ("talker", 1)
    );
    engine.unsay(run.task, MessageId(1)).await.unwrap();
    let codex = engine.resume(run.task, Some(select("codex")), with(Effort::High));
    codex.await.unwrap();
    let task = engine.task(run.task).await.unwrap().task;
    assert_eq!(task.spec.agent.as_str(), "codex");
    assert_eq!(task.spec.guide.effort, Some(Effort::High));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_reaches_what_the_task_asked_for() {
    let world = world();
    let engine = world.engine().await;
    let hang = || spec(&world, "fake", &["hang".to_owned()]);
    let parent = started(&engine, hang()).await;
    let child = |parent: RunId| TaskSpec {
        parent: Some(parent.task),
        ..hang()
    };
    let child = started(&engine, child(parent)).await;
    let grandchild = started(
        &engine,
        TaskSpec {
            parent: Some(child.task),
            ..hang()
        },
    )
    .await;
    let other = started(&engine, hang()).await;
    engine.stop(parent.task, Force::Kill).await.unwrap();
    for run in [parent, child, grandchild] {
        assert_eq!(outcome(&finished(&engine, run).await).word(), "stopped");
    }
    assert!(engine.task(other.task).await.unwrap().task.is_open());
    let last = started(&engine, hang()).await;
    let all = engine.stop_all(Force::Kill).await.unwrap();
    assert_eq!(all.len(), 2);
    for run in [other, last] {
        assert!(all.contains(&run.task));
        assert_eq!(outcome(&finished(&engine, run).await).word(), "stopped");
    }
    assert_eq!(engine.stop_all(Force::Ask).await.unwrap(), []);
}
