//! The engine with real keepers, real git and a fake agent: every outcome, and nothing lost.
//! Must not sleep.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; a failure is a failed test"
)]

mod world;

use std::{fs, sync::Arc, task::Poll};

use dispatch_core::{
    event::{CheckState, Kind, Verified},
    outcome::{Failure, Outcome, Stop},
    task::{ChecksAsked, Expects},
};
use dispatch_engine::{
    attachments::NewFile,
    clock::{Clock, SetClock},
    engine::{Engine, Observer, OpenError, Secrets, Settings},
    view::{Force, Given, TaskView, VerbError},
};
use world::{World, finished, git, outcome, patient, reason, run, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_task_in_a_branch_out() {
    let world = World::new();
    let engine = world.engine().await;
    let view = run(&engine, world.spec(&["write new.txt hi", "say all done"])).await;
    assert_eq!(
        *outcome(&view),
        Outcome::Completed {
            summary: "all done".into()
        }
    );
    let last = view.task.last_run().unwrap();
    assert_eq!(last.verified, Verified::NotVerified);
    let sealed = last.sealed.clone().unwrap();
    assert_eq!(
        (sealed.files, sealed.insertions, sealed.deletions),
        (1, 1, 0)
    );

    let diff = engine.diff(view.task.id).await.unwrap();
    assert!(
        diff.contains("+++ b/new.txt") && diff.contains("+hi"),
        "{diff}"
    );

    let head = git(&world.repo(), &["rev-parse", "HEAD"]);
    let applied = engine.apply(view.task.id, None).await.unwrap();
    let again = engine.apply(view.task.id, None).await.unwrap();
    assert_eq!(applied, again);
    assert_eq!(
        git(&world.repo(), &["rev-parse", &applied.branch]).trim(),
        applied.commit
    );
    assert_eq!(git(&world.repo(), &["rev-parse", "HEAD"]), head);
    assert_eq!(git(&world.repo(), &["status", "--porcelain"]), "");
    assert!(!world.repo().join("new.txt").exists());
    assert_eq!(world.alive(view.task.id), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_own_commits_are_kept() {
    let world = World::new();
    let engine = world.engine().await;
    let orders = [
        "write a.txt 1",
        "git add a.txt",
        "git commit -qm theirs",
        "write b.txt 2",
        "say ok",
    ];
    let view = run(&engine, world.spec(&orders)).await;
    assert_eq!(outcome(&view).word(), "completed", "{}", reason(&view));
    let applied = engine.apply(view.task.id, None).await.unwrap();
    let log = git(&world.repo(), &["log", "--format=%s", &applied.branch]);
    let subjects: Vec<&str> = log.lines().collect();
    assert_eq!(
        (subjects[1], subjects[2], subjects.len()),
        ("theirs", "first", 3),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_blocks_and_its_answer_goes_on_in_the_same_workspace() {
    let world = World::new();
    let engine = world.engine().await;
    let orders = ["append runs x", "write BLOCKED.md Which_zone?", "exit 3"];
    let view = run(&engine, world.spec(&orders)).await;
    assert_eq!(
        *outcome(&view),
        Outcome::Blocked {
            question: "Which_zone?".into()
        }
    );
    let task = view.task.id;
    assert!(!engine.diff(task).await.unwrap().contains("BLOCKED.md"));
    let next = engine
        .answer(task, "@rm BLOCKED.md".into(), Secrets::new())
        .await
        .unwrap();
    let view = finished(&engine, next).await;
    // The same orders again: the old question was moved out, so this one is new.
    assert_eq!(
        *outcome(&view),
        Outcome::Blocked {
            question: "Which_zone?".into()
        }
    );
    assert_eq!(view.task.runs.len(), 2);
    // It is told what was asked, as the words of somebody else.
    let job = world.data().join("runs").join(format!("{task}-2/agent"));
    let given = fs::read_to_string(job.join("in")).unwrap_or_default();
    assert!(given.contains("| Which_zone?"), "{given}");
    let workspace = view.task.workspace.unwrap().path;
    assert_eq!(
        fs::read_to_string(workspace.join("runs")).unwrap(),
        "x\nx\n"
    );
    assert!(
        view.task
            .notes
            .iter()
            .any(|note| note.contains("Which_zone?")),
        "{:?}",
        view.task.notes
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_of_white_space_is_none() {
    let world = World::new();
    let engine = world.engine().await;
    let view = run(&engine, world.spec(&["write BLOCKED.md  ", "write x y"])).await;
    assert_eq!(outcome(&view).word(), "completed", "{}", reason(&view));
    assert_eq!(view.task.result().unwrap().files, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_that_are_no_success() {
    let world = World::new();
    let engine = world.engine().await;
    let view = run(&engine, world.spec(&["write x y", "exit 7"])).await;
    assert!(matches!(
        outcome(&view),
        Outcome::Failed(Failure::Exit { code: 7, .. })
    ));
    // What it did is kept all the same.
    assert!(view.task.result().unwrap().commit.is_some());

    let view = run(&engine, world.spec(&["say nothing to do"])).await;
    assert!(reason(&view).contains("--expects"), "{}", reason(&view));

    let mut spec = world.spec(&["say looks fine"]);
    spec.expects = Expects::Report;
    assert_eq!(outcome(&run(&engine, spec).await).word(), "completed");

    let view = run(&engine, world.spec(&["suicide"])).await;
    assert!(matches!(
        outcome(&view),
        Outcome::Failed(Failure::Signal { signal: 9 })
    ));

    let mut spec = world.spec(&[]);
    spec.repo = world
        .home
        .path()
        .join("nowhere")
        .to_string_lossy()
        .into_owned();
    let view = run(&engine, spec).await;
    assert!(
        matches!(outcome(&view), Outcome::Failed(Failure::Prepare { .. })),
        "{}",
        reason(&view)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_it_and_keeps_what_it_did() {
    let world = World::new();
    let engine = world.engine().await;
    let spec = world.spec(&["write half done", "say ready", "hang"]);
    let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
    until(&engine, run.task, |kind| {
        matches!(kind, Kind::Started { .. })
    })
    .await;
    let workspace = engine
        .task(run.task)
        .await
        .unwrap()
        .task
        .workspace
        .unwrap()
        .path;
    while !workspace.join("half").exists() {
        tokio::task::yield_now().await;
    }
    engine.stop(run.task, Force::Ask).await.unwrap();
    let view = finished(&engine, run).await;
    assert_eq!(*outcome(&view), Outcome::Stopped(Stop::ByPerson));
    assert_eq!(view.task.result().unwrap().files, 1);
    assert_eq!(world.alive(run.task), [""; 0]);
    let again = engine.stop(run.task, Force::Ask).await;
    assert!(matches!(again, Err(VerbError::WrongState { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_vouch_or_fail_and_say_what_was_touched() {
    let world = World::new();
    world.commit("Makefile", "check:\n\ttest -f wanted\n");
    let engine = world.engine().await;
    let view = run(&engine, world.spec(&["write wanted x"])).await;
    let last = view.task.last_run().unwrap();
    assert_eq!(
        (outcome(&view).word(), last.verified),
        ("completed", Verified::Yes)
    );
    assert_eq!(last.checks[0].state, CheckState::Passed);

    let view = run(
        &engine,
        world.spec(&["write other x", "write Makefile all:"]),
    )
    .await;
    // The marker is read from the base, the file from the tree: touching it shows.
    let last = view.task.last_run().unwrap();
    assert_eq!(last.verified, Verified::No);
    assert_eq!(last.sealed.as_ref().unwrap().checks_touched, ["Makefile"]);
    assert!(reason(&view).contains("make.check"), "{}", reason(&view));

    let mut spec = world.spec(&["write other x"]);
    spec.checks = ChecksAsked::None;
    let view = run(&engine, spec).await;
    assert_eq!(
        view.task.last_run().unwrap().verified,
        Verified::NotVerified
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_asks_to_be_killed_during_its_checks() {
    let world = World::new();
    world.commit(
        "Makefile",
        "check:\n\ttouch checking; while :; do read x < /dev/zero; done\n",
    );
    let engine = world.engine().await;
    let run = engine
        .dispatch(world.spec(&["write a b"]), Secrets::new())
        .await
        .unwrap();
    until(&engine, run.task, |kind| {
        matches!(kind, Kind::ChecksStarted { .. })
    })
    .await;
    engine.stop(run.task, Force::Kill).await.unwrap();
    let view = finished(&engine, run).await;
    assert_eq!(*outcome(&view), Outcome::Stopped(Stop::ByPerson));
    assert_eq!(world.alive(run.task), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_comes_back() {
    let world = World::new();
    let engine = world.engine().await;
    let view = run(
        &engine,
        world.spec(&["write kept yes", "write .gitignore *", "say ok"]),
    )
    .await;
    let task = view.task.id;
    let path = view.task.workspace.unwrap().path;
    fs::write(path.join("later"), "after the run\n").unwrap();
    engine.remove(task).await.unwrap();
    assert!(!path.exists());
    assert!(engine.remove(task).await.is_err());
    assert_eq!(engine.undo(task).await.unwrap(), path);
    assert_eq!(fs::read_to_string(path.join("kept")).unwrap(), "yes\n");
    assert_eq!(
        fs::read_to_string(path.join("later")).unwrap(),
        "after the run\n"
    );
    assert!(!engine.task(task).await.unwrap().task.removed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_task_is_stopped_before_it_is_removed() {
    let world = World::new();
    let engine = world.engine().await;
    let spec = world.spec(&["write kept yes", "hang"]);
    let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
    until(&engine, run.task, |kind| {
        matches!(kind, Kind::Started { .. })
    })
    .await;
    patient(engine.remove(run.task)).await.unwrap();
    let view = engine.task(run.task).await.unwrap();
    assert!(view.task.removed && view.task.workspace.unwrap().removed);
    assert_eq!(world.alive(run.task), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_asked_for_by_name_has_one_task() {
    let world = World::new();
    let engine = world.engine().await;
    let mut spec = world.spec(&["write BLOCKED.md Which_zone?"]);
    spec.workspace = Some("mine".parse().unwrap());
    let first = run(&engine, spec.clone()).await;
    let second = engine.dispatch(spec.clone(), Secrets::new()).await;
    let Err(VerbError::WorkspaceTaken { holder, .. }) = second else {
        panic!("{second:?}")
    };
    assert_eq!(holder, first.task.id);
    // Nobody works there any more: the name is free, and what lies there stays that task's.
    engine.remove(first.task.id).await.unwrap();
    let second = run(&engine, spec).await;
    let place = |view: &TaskView| view.task.workspace.clone().unwrap().path;
    assert_ne!(place(&first), place(&second));
    assert!(place(&second).is_dir());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_engine_for_a_data_directory() {
    let world = World::new();
    let engine = world.engine().await;
    let other = Engine::open(world.settings()).await;
    assert!(matches!(other, Err(OpenError::Busy { .. })));
    engine.shutdown().await.unwrap();
    world.engine().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_missing_holds_the_run_until_it_is_given() {
    let world = World::with("env = { KEY = { from = \"MY_KEY\" } }\n");
    let engine = world.engine().await;
    let spec = world.spec(&["env KEY", "write a b"]);
    let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
    let view = engine.task(run.task).await.unwrap();
    assert_eq!(view.waits.unwrap().text, "needs MY_KEY from you");
    assert_eq!(engine.needs().await.unwrap(), ["MY_KEY"]);
    let secrets = Secrets::from([("MY_KEY".into(), "sk-very-secret".into())]);
    engine.provide(secrets).await.unwrap();
    let view = finished(&engine, run).await;
    assert_eq!(reason(&view), "KEY=***");
    // Nowhere on disk.
    let found = std::process::Command::new("grep")
        .args(["-rl", "sk-very-secret"])
        .arg(world.home.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_workspace_loses_nothing_and_reaches_nothing() {
    let world = World::new();
    let engine = world.engine().await;
    let orders = [
        "write .gitignore *",
        "write work/kept.txt precious",
        "write nested/inner.txt also",
        "git init -q nested",
        "write exit x",
        "write lock x",
        "write .git/objects/info/alternates /etc",
        "rm .git",
        "say done",
    ];
    let view = run(&engine, world.spec(&orders)).await;
    assert_eq!(outcome(&view).word(), "completed", "{}", reason(&view));
    let diff = engine.diff(view.task.id).await.unwrap();
    assert!(
        diff.contains("+precious") && diff.contains("+also"),
        "{diff}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn old_snapshots_are_dropped_when_their_time_is_over_and_not_before() {
    let world = World::new();
    let engine = world.engine().await;
    let given = Given {
        files: vec![NewFile {
            name: "a.txt".into(),
            bytes: b"a".to_vec(),
        }],
        ..Given::default()
    };
    let begun = engine.dispatch(world.spec(&["write kept yes"]), given);
    let view = finished(&engine, begun.await.unwrap()).await;
    let (task, attached) = (view.task.id, view.attached[0].2.clone());
    engine.remove(task).await.unwrap();
    assert_eq!(fs::read(&attached).unwrap(), b"a");
    let snapshot = engine.task(task).await.unwrap().task.snapshots[0].clone();
    engine.shutdown().await.unwrap();

    // As if it had been made long ago: the same event with another time.
    let mut store = dispatch_engine::store::Store::open(&world.data()).unwrap();
    let kind = Kind::Snapshotted {
        keep_until: 1,
        refname: snapshot.refname.clone(),
        commit: snapshot.commit,
    };
    let subject = dispatch_core::event::Subject::Task(task);
    let seq = store.last() + 1;
    store
        .append(&[dispatch_core::event::Event {
            seq,
            at: 1,
            subject,
            kind,
        }])
        .unwrap();
    drop(store);

    let engine = world.engine().await;
    until(&engine, task, |kind| {
        matches!(kind, Kind::SnapshotDropped { .. })
    })
    .await;
    assert!(engine.undo(task).await.is_err());
    let view = engine.task(task).await.unwrap();
    assert_eq!(view.attached, []);
    let left = view.task.snapshots;
    assert!(
        left.iter().all(|left| left.refname != snapshot.refname),
        "{left:?}"
    );
    engine.shutdown().await.unwrap();
    world.engine().await.shutdown().await.unwrap();
    assert!(!attached.exists(), "nobody can read it any more");
}

fn with_a_file() -> Given {
    Given {
        files: vec![NewFile {
            name: "a.txt".into(),
            bytes: b"a".to_vec(),
        }],
        ..Given::default()
    }
}

/// What was put away before it began has files and nothing else: they are kept as long as the
/// workspace of another one would be, and what needs them does not run without.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_task_without_a_workspace_are_kept_as_long_as_a_snapshot() {
    const NOW: u64 = 1_000_000_000_000;
    const DAY_MS: u64 = 86_400_000;
    let world = World::new();
    let clock = SetClock::at(NOW);
    let settings = || Settings {
        clock: Clock::Set(clock.clone()),
        ..world.settings()
    };
    let engine = Engine::open(settings()).await.unwrap();
    engine.set_frozen(true, Default::default()).await.unwrap();
    let spec = world.spec(&["write kept yes"]);
    let task = engine.dispatch(spec, with_a_file()).await.unwrap().task;
    let attached = engine.task(task).await.unwrap().attached[0].2.clone();
    engine.remove(task).await.unwrap();
    let undone = engine.undo(task).await.unwrap_err().to_string();
    assert!(undone.contains("it is back in the list"), "{undone}");
    assert_eq!(fs::read(&attached).unwrap(), b"a");
    engine.retry(task, Secrets::new()).await.unwrap();
    engine.remove(task).await.unwrap();
    engine.shutdown().await.unwrap();

    let kept_ms = world.config.retention.snapshots_d * DAY_MS;
    clock.set(NOW + kept_ms);
    let engine = Engine::open(settings()).await.unwrap();
    engine.shutdown().await.unwrap();
    assert_eq!(fs::read(&attached).unwrap(), b"a", "not before");
    clock.set(NOW + kept_ms + 1);
    let engine = Engine::open(settings()).await.unwrap();
    until(&engine, task, |kind| *kind == Kind::AttachmentsDropped).await;
    assert_eq!(engine.task(task).await.unwrap().attached, []);
    assert!(!attached.exists());
    let undone = engine.undo(task).await.unwrap_err().to_string();
    assert!(undone.contains("cannot run again"), "{undone}");
    let again = engine.retry(task, Secrets::new()).await.unwrap_err();
    let again = again.to_string();
    assert!(
        again.contains("its attachments are not kept any more"),
        "{again}"
    );
}

/// An agent that takes its workspace away leaves nothing to keep.
#[tokio::test(flavor = "multi_thread")]
async fn files_go_with_a_workspace_of_which_nothing_is_kept() {
    let world = World::new();
    let engine = world.engine().await;
    for gone in [false, true] {
        let begun = engine.dispatch(world.spec(&["write kept yes"]), with_a_file());
        let view = finished(&engine, begun.await.unwrap()).await;
        let (task, attached) = (view.task.id, view.attached[0].2.clone());
        if gone {
            fs::remove_dir_all(view.task.workspace.unwrap().path).unwrap();
        }
        engine.remove(task).await.unwrap();
        assert_eq!(attached.exists(), !gone);
        let left = engine.task(task).await.unwrap().attached;
        assert_eq!(left.is_empty(), gone);
        assert_eq!(engine.undo(task).await.is_err(), gone);
    }
}

/// A verb that was there first is alone with the task: retention comes again another time.
#[tokio::test(flavor = "multi_thread")]
async fn retention_leaves_a_task_alone_that_somebody_works_on() {
    let world = World::new();
    let engine = world.engine().await;
    let begun = engine.dispatch(world.spec(&["write kept yes"]), with_a_file());
    let view = finished(&engine, begun.await.unwrap()).await;
    let (task, attached) = (view.task.id, view.attached[0].2.clone());
    engine.remove(task).await.unwrap();
    engine.shutdown().await.unwrap();

    // Its time is over. The engine waits with its first turn until an undo has begun.
    let clock = Clock::Set(SetClock::at(4_000_000_000_000));
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    // Once it is dropped nobody waits any more.
    let observer = move |_| assert!(wait.lock().unwrap().recv().is_err());
    let engine = Engine::open(Settings {
        clock,
        definitions: None,
        observer: Observer(Some(Arc::new(observer))),
        ..world.settings()
    });
    let engine = engine.await.unwrap();
    let mut undoing = std::pin::pin!(engine.undo(task));
    let begun = std::future::poll_fn(|cx| Poll::Ready(undoing.as_mut().poll(cx).is_pending()));
    assert!(begun.await);
    drop(go_on);
    undoing.await.unwrap();
    let view = engine.task(task).await.unwrap();
    assert_eq!((view.attached.len(), view.task.snapshots.len()), (1, 1));
    assert_eq!(fs::read(&attached).unwrap(), b"a");
    engine.shutdown().await.unwrap();
    world.engine().await.shutdown().await.unwrap();
    assert!(attached.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_ten_megabytes_and_bytes_that_are_no_text() {
    let world = World::new();
    let engine = world.engine().await;
    let orders = [
        "long-line 10000000",
        "garbage",
        "write a b",
        "say still here",
    ];
    let view = run(&engine, world.spec(&orders)).await;
    assert_eq!(outcome(&view).word(), "completed", "{}", reason(&view));
    assert!(reason(&view).ends_with("still here"));
    assert_eq!(
        fs::metadata(&view.jobs[0].log).unwrap().len(),
        10_000_001 + 6 + 11
    );
}

/// What only the agent's own repository held comes back too, and so does what no snapshot can hold.
#[tokio::test(flavor = "multi_thread")]
async fn stashes_side_branches_and_odd_files_survive_a_removal() {
    let world = World::new();
    let engine = world.engine().await;
    let orders = [
        "write mine.txt mine",
        "git add -A",
        "git stash -q",
        "git checkout -qb other",
        "write side.txt x",
        "git add -A",
        "git commit -qm side",
        "git checkout -q -",
        "write left over",
    ];
    let view = run(&engine, world.spec(&orders)).await;
    let (task, path) = (view.task.id, view.task.workspace.unwrap().path);
    for odd in [false, true] {
        if odd {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, path.join("pipe"), kind, mode, 0).unwrap();
        }
        engine.remove(task).await.unwrap();
        assert!(!path.exists());
        engine.undo(task).await.unwrap();
        assert!(git(&path, &["stash", "list"]).contains("stash@{0}"));
        assert!(git(&path, &["log", "--all", "--format=%s"]).contains("side"));
        assert_eq!(fs::read_to_string(path.join("left")).unwrap(), "over\n");
        assert_eq!(path.join("pipe").exists(), odd);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_that_is_gone_or_replaced_can_be_removed_and_so_can_one_without_upstream() {
    let world = World::new();
    let engine = world.engine().await;
    let decoy = world.home.path().join("decoy");
    fs::create_dir(&decoy).unwrap();
    fs::write(decoy.join("precious"), "p").unwrap();
    let view = run(&engine, world.spec(&["write a b"])).await;
    let path = view.task.workspace.unwrap().path;
    fs::remove_dir_all(&path).unwrap();
    std::os::unix::fs::symlink(&decoy, &path).unwrap();
    engine.remove(view.task.id).await.unwrap();
    assert!(fs::symlink_metadata(&path).is_err());
    assert!(decoy.join("precious").exists());

    let view = run(&engine, world.spec(&["write a b"])).await;
    fs::remove_dir_all(view.task.workspace.unwrap().path).unwrap();
    engine.remove(view.task.id).await.unwrap();

    let view = run(&engine, world.spec(&["write kept yes"])).await;
    fs::rename(world.repo(), world.home.path().join("moved")).unwrap();
    engine.remove(view.task.id).await.unwrap();
    let path = engine.undo(view.task.id).await.unwrap();
    assert_eq!(fs::read_to_string(path.join("kept")).unwrap(), "yes\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifo_for_a_head_holds_nothing_up() {
    let world = World::new();
    let engine = world.engine().await;
    let run = engine
        .dispatch(
            world.spec(&["write a b", "say ready", "await go"]),
            Secrets::new(),
        )
        .await
        .unwrap();
    until(&engine, run.task, |kind| {
        matches!(kind, Kind::Started { .. })
    })
    .await;
    let path = engine
        .task(run.task)
        .await
        .unwrap()
        .task
        .workspace
        .unwrap()
        .path;
    fs::remove_file(path.join(".git/HEAD")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, path.join(".git/HEAD"), kind, mode, 0).unwrap();
    fs::write(path.join("go"), "").unwrap();
    let view = finished(&engine, run).await;
    assert_eq!(outcome(&view).word(), "completed", "{}", reason(&view));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_is_a_link_is_not_followed_and_told() {
    let world = World::new();
    let engine = world.engine().await;
    let spec = world.spec(&["write a b", "say ready", "await go"]);
    let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
    until(&engine, run.task, |kind| {
        matches!(kind, Kind::Started { .. })
    })
    .await;
    let path = engine
        .task(run.task)
        .await
        .unwrap()
        .task
        .workspace
        .unwrap()
        .path;
    std::os::unix::fs::symlink("/etc/hostname", path.join("BLOCKED.md")).unwrap();
    fs::write(path.join("go"), "").unwrap();
    let view = finished(&engine, run).await;
    assert_eq!(outcome(&view).word(), "completed", "{}", reason(&view));
    let notes = &view.task.result().unwrap().notes;
    assert!(
        notes.iter().any(|note| note.contains("not a plain file")),
        "{notes:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_repository_carries_for_agents_is_told_before_one_starts() {
    let world = World::new();
    world.commit("CLAUDE.md", "be nice");
    world.commit(".claude/settings.json", "{}");
    world.commit(".claude/hooks/x.sh", "true");
    let engine = world.engine().await;
    let view = run(&engine, world.spec(&["write .mcp.json {}"])).await;
    let told: Vec<_> = view
        .task
        .carried
        .iter()
        .map(|item| (item.path.as_str(), item.can.word()))
        .collect();
    // What the agent itself writes is its result, not what it was given.
    assert_eq!(
        told,
        [
            ("CLAUDE.md", "instruct"),
            (".claude/hooks", "run_commands"),
            (".claude/settings.json", "run_commands"),
        ]
    );
    let plain = World::new();
    let engine = plain.engine().await;
    let view = run(&engine, plain.spec(&["write a b"])).await;
    assert!(view.task.carried.is_empty());
}

/// The next engine may know less than the one that started it: what it cannot follow does not live on.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_not_configured_any_more_is_ended() {
    let world = World::new();
    let engine = world.engine().await;
    let spec = world.spec(&["say here", "hang"]);
    let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
    until(&engine, run.task, |kind| {
        matches!(kind, Kind::Said { .. } | Kind::Started { .. })
    })
    .await;
    engine.shutdown().await.unwrap();
    assert!(!world.alive(run.task).is_empty());
    let mut settings = world.settings();
    settings.config.agents.clear();
    let engine = Engine::open(settings).await.unwrap();
    let view = finished(&engine, run).await;
    let prepare = matches!(outcome(&view), Outcome::Failed(Failure::Prepare { .. }));
    assert!(prepare, "{}", reason(&view));
    assert_eq!(world.alive(run.task), [""; 0]);
}
