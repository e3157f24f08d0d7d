//! What a task starts from, where the engine dies or upstream is away. Must not sleep.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; a failure is a failed test"
)]

mod world;

use std::fs;

use dispatch_core::{
    event::Kind,
    outcome::{Outcome, Stop},
    schedule::Why,
    task::{Base, Expects, Taken, TaskSpec},
};
use dispatch_engine::{
    engine::Secrets,
    view::{Force, VerbError},
};
use world::{World, finished, git, outcome, patient, reason, run, until};

fn on_pr(world: &World, orders: &[&str], taken: Taken) -> TaskSpec {
    let mut spec = world.spec(orders);
    spec.base = Base::Pr { number: 7 };
    spec.turn.taken = taken;
    spec
}

fn with_pr() -> World {
    let world = World::new();
    git(&world.repo(), &["update-ref", "refs/pull/7/head", "HEAD"]);
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_away_is_told_with_the_age_of_the_mirror() {
    let world = with_pr();
    let engine = world.engine().await;
    run(&engine, world.spec(&["write a b"])).await;
    let away = world.home.path().join("away");
    fs::rename(world.repo(), &away).unwrap();
    let view = run(&engine, world.spec(&["write a b"])).await;
    assert_eq!(outcome(&view).word(), "completed", "{}", reason(&view));
    let note = view
        .task
        .notes
        .iter()
        .find(|note| note.starts_with("the mirror is "));
    assert!(note.unwrap().contains("does not answer"), "{note:?}");
    // What the mirror has never had is not made up.
    let view = run(&engine, on_pr(&world, &["write a b"], Taken::Refuse)).await;
    assert_eq!(outcome(&view).word(), "failed", "{}", reason(&view));
    // A directory is copied now or not at all.
    let mut spec = world.spec(&["write a b"]);
    spec.base = Base::Folder;
    let view = run(&engine, spec).await;
    assert_eq!(outcome(&view).word(), "failed", "{}", reason(&view));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_survives_the_engine() {
    let world = with_pr();
    let engine = world.engine().await;
    let first = on_pr(&world, &["write a b", "hang"], Taken::Refuse);
    let first = engine.dispatch(first, Secrets::new()).await.unwrap();
    let started = |kind: &Kind| matches!(kind, Kind::Started { .. });
    until(&engine, first.task, started).await;
    let second = on_pr(&world, &["write c d"], Taken::Queue);
    let second = engine.dispatch(second, Secrets::new()).await.unwrap();
    engine.shutdown().await.unwrap();
    let engine = world.engine().await;
    let view = engine.task(second.task).await.unwrap();
    assert_eq!(view.task.spec.turn.behind, Some(first.task));
    let waits = view.waits.unwrap();
    assert_eq!(waits.why, Why::Workspace);
    assert!(
        waits.text.contains("has the workspace local/repo/pr-7"),
        "{waits:?}"
    );
    patient(engine.stop(first.task, Force::Ask)).await.unwrap();
    let view = finished(&engine, second).await;
    assert_eq!(outcome(&view).word(), "completed", "{}", reason(&view));
    let first = engine.task(first.task).await.unwrap();
    assert_eq!(*outcome(&first), Outcome::Stopped(Stop::ByPerson));
    assert!(
        first.task.result().unwrap().commit.is_some(),
        "what it did is kept"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_superseded_cannot_go_on_beside_the_new_one() {
    let world = with_pr();
    let engine = world.engine().await;
    let asks = on_pr(&world, &["write BLOCKED.md Which_zone?"], Taken::Refuse);
    let first = run(&engine, asks).await.task.id;
    let queued = on_pr(&world, &["write c d"], Taken::Queue);
    let queued = engine.dispatch(queued, Secrets::new()).await.unwrap();
    let waits = engine.task(queued.task).await.unwrap().waits.unwrap();
    assert!(waits.text.contains("which is blocked"), "{waits:?}");
    let newest = on_pr(&world, &["write e f", "hang"], Taken::Supersede);
    let newest = engine.dispatch(newest, Secrets::new()).await.unwrap();
    let started = |kind: &Kind| matches!(kind, Kind::Started { .. });
    until(&engine, newest.task, started).await;
    let queued = engine.task(queued.task).await.unwrap();
    assert_eq!(*outcome(&queued), Outcome::Stopped(Stop::ByPerson));
    let answered = engine.answer(first, "UTC".into(), Secrets::new()).await;
    assert!(
        matches!(answered, Err(VerbError::WrongState { .. })),
        "{answered:?}"
    );
    patient(engine.stop(newest.task, Force::Kill))
        .await
        .unwrap();
    finished(&engine, newest).await;
    let run = engine
        .answer(first, "UTC".into(), Secrets::new())
        .await
        .unwrap();
    finished(&engine, run).await;
}

/// What has failed has given its workspace back, and gets it again only when nobody else has it.
#[tokio::test(flavor = "multi_thread")]
async fn another_run_waits_for_nobody_but_shares_with_nobody() {
    let world = with_pr();
    let engine = world.engine().await;
    let first = run(&engine, on_pr(&world, &["exit 3"], Taken::Refuse)).await;
    assert_eq!(outcome(&first).word(), "failed", "{}", reason(&first));
    let second = run(&engine, on_pr(&world, &["exit 3"], Taken::Refuse)).await;
    let third = on_pr(&world, &["write c d", "hang"], Taken::Refuse);
    let third = engine.dispatch(third, Secrets::new()).await.unwrap();
    for task in [first.task.id, second.task.id] {
        let refused = engine.retry(task, Secrets::new()).await;
        assert!(
            matches!(refused, Err(VerbError::WrongState { .. })),
            "{refused:?}"
        );
    }
    patient(engine.stop(third.task, Force::Kill)).await.unwrap();
    finished(&engine, third).await;
    // The older of two counts as well as the newer.
    let hangs = on_pr(&world, &["hang"], Taken::Refuse);
    let hangs = engine.dispatch(hangs, Secrets::new()).await.unwrap();
    let refused = engine.retry(third.task, Secrets::new()).await;
    assert!(refused.is_err(), "{refused:?}");
    patient(engine.stop(hangs.task, Force::Kill)).await.unwrap();
    finished(&engine, hangs).await;
    let again = engine.retry(third.task, Secrets::new()).await.unwrap();
    let refused = engine.retry(hangs.task, Secrets::new()).await;
    assert!(refused.is_err(), "an older one has it: {refused:?}");
    patient(engine.stop(again.task, Force::Kill)).await.unwrap();
    finished(&engine, again).await;
}

/// Killed anywhere between the copy and its event, the task has one base.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_changes_while_the_engine_is_away_is_the_one_of_the_first_copy() {
    let world = World::new();
    let folder = world.home.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a"), "one\n").unwrap();
    let mut spec = world.spec(&["write b two", "hang"]);
    spec.base = Base::Folder;
    spec.expects = Expects::Change;
    spec.repo = folder.to_string_lossy().into_owned();
    let engine = world.engine().await;
    let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
    until(&engine, run.task, |kind| {
        matches!(kind, Kind::Started { .. })
    })
    .await;
    engine.shutdown().await.unwrap();
    fs::write(folder.join("a"), "changed\n").unwrap();
    let engine = world.engine().await;
    patient(engine.stop(run.task, Force::Kill)).await.unwrap();
    finished(&engine, run).await;
    let diff = engine.diff(run.task).await.unwrap();
    assert!(diff.contains("+two") && !diff.contains("changed"), "{diff}");
    assert!(
        engine.apply(run.task, None).await.is_err(),
        "it is no repository"
    );
    let written = engine.write_back(run.task, None).await.unwrap();
    assert_eq!((written.files, written.folder), (1, folder.clone()));
    assert_eq!(fs::read(folder.join("a")).unwrap(), b"changed\n");
    assert_eq!(fs::read(folder.join("b")).unwrap(), b"two\n");
    // Gone and back again, as every workspace.
    engine.remove(run.task).await.unwrap();
    let back = engine.undo(run.task).await.unwrap();
    assert_eq!(fs::read(back.join("a")).unwrap(), b"one\n");
}
