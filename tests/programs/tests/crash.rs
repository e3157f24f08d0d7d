//! The golden run, killed right after every event and right before every call to a site: afterwards
//! one terminal outcome, no second execution, no byte of output missing or doubled.
//! Must not sleep.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; a failure is a failed test"
)]

mod world;

use std::{fs, os::unix::process::ExitStatusExt, process::Command};

use dispatch_core::{
    event::{Event, Kind},
    family::EndId,
    message::{Fate, Message},
    outcome::Outcome,
};
use dispatch_engine::{reader::Reader, view::TaskView};
use world::{AGENT, World};

const CRASH_ENGINE: &str = env!("CARGO_BIN_EXE_crash-engine");
/// Far above what the golden run needs; a run that never ends by itself is a failure.
const POINTS_MAX: u64 = 200;

/// What the task starts from.
const BASES: [&str; 3] = ["head", "pr", "folder"];

/// `how`: what the task starts from, and whether there is a sidecar.
fn engine(world: &World, which: &str, n: u64, how: &[&str]) -> bool {
    let output = Command::new(CRASH_ENGINE)
        .arg(world.home.path())
        .args([AGENT, which, &n.to_string()])
        .args(how)
        .output()
        .unwrap();
    let killed = output.status.signal() == Some(9);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        killed || output.status.success(),
        "{which} {n}: {} {said}",
        output.status
    );
    killed
}

fn holds(world: &World, at: &str) {
    let reader = Reader::open(&world.data()).unwrap();
    let tasks = reader.tasks().unwrap();
    assert_eq!(tasks.len(), 1, "{at}");
    let task = &tasks[0].task;
    let expected = Outcome::Completed {
        summary: "done".into(),
    };
    let outcome = task.outcome();
    let summary = match outcome {
        Some(Outcome::Completed { summary }) => summary.lines().last().unwrap_or(""),
        other => panic!("{at}: {other:?}, notes {:?}", task.notes),
    };
    assert_eq!(
        Outcome::Completed {
            summary: summary.into()
        },
        expected,
        "{at}"
    );
    let events = reader.events(0, 10_000).unwrap();
    let finished = events
        .iter()
        .filter(|e| matches!(e.kind, Kind::Finished { .. }))
        .count();
    assert_eq!(finished, 1, "{at}");
    let bugs = events
        .iter()
        .filter(|e| matches!(&e.kind, Kind::Noted { text } if text.starts_with("bug")));
    assert_eq!(
        bugs.collect::<Vec<_>>(),
        Vec::<&dispatch_core::event::Event>::new(),
        "{at}"
    );
    assert_eq!(
        fs::read_to_string(world.home.path().join("count")).unwrap(),
        "ran\n",
        "{at}"
    );
    let lines: String = (0..500).map(|n| format!("line {n}\n")).collect();
    let out = fs::read_to_string(&tasks[0].jobs[0].log).unwrap();
    assert_eq!(out, format!("{lines}done\n"), "{at}");
    assert_eq!(task.result().unwrap().files, 2, "{at}");
    assert_eq!(world.alive(task.id), [""; 0], "{at}");
}

/// A repository with a pull request, and a directory of the same files.
fn new_world() -> World {
    let world = World::new();
    let check = "check:\n\ttest -f a.txt\n";
    world.commit("Makefile", check);
    world::git(&world.repo(), &["update-ref", "refs/pull/7/head", "HEAD"]);
    let folder = world.home.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("Makefile"), check).unwrap();
    world
}

fn kill_at_every(which: &str, how: &[&str]) -> u64 {
    for n in 1..POINTS_MAX {
        let world = new_world();
        let killed = engine(&world, which, n, how);
        if killed {
            // What a person does meanwhile is not what the task started from.
            fs::write(world.home.path().join("folder/new"), "new\n").unwrap();
            assert!(!engine(&world, "never", 0, how), "{how:?} {which} {n}");
        }
        holds(&world, &format!("{how:?} {which} {n}"));
        if !killed {
            return n - 1;
        }
    }
    panic!("more than {POINTS_MAX} points")
}

/// They wait for processes most of the time, so all bases go at once.
fn for_every_base(test: impl Fn(&str) + Sync) {
    std::thread::scope(|scope| {
        for base in BASES {
            let test = &test;
            scope.spawn(move || test(base));
        }
    });
}

#[test]
fn killed_after_every_event() {
    for_every_base(|base| assert!(kill_at_every("event", &[base]) >= 6));
}

#[test]
fn killed_before_every_call_to_a_site() {
    for_every_base(|base| assert!(kill_at_every("call", &[base]) >= 6));
}

/// With a sidecar beside the agent, which ends with the run and is never doubled either.
#[test]
fn killed_with_a_sidecar_after_every_event() {
    assert!(kill_at_every("event", &["head", "sidecar"]) >= 6);
}

#[test]
fn killed_with_a_sidecar_before_every_call_to_a_site() {
    assert!(kill_at_every("call", &["head", "sidecar"]) >= 9);
}

/// Two messages in a task's life: each heard once, in order, by the agent that runs or by the next
/// run, and by no run besides.
fn messages_at_every(which: &str, scene: &str, runs: &str) {
    for n in 1..POINTS_MAX {
        let world = World::new();
        let killed = engine(&world, which, n, &["head", scene]);
        if killed {
            assert!(!engine(&world, "never", 0, &["head", scene]), "{which} {n}");
        }
        let at = format!("{scene}, {which} {n}");
        let read = |name: &str| fs::read_to_string(world.home.path().join(name)).unwrap();
        assert_eq!(read("heard"), "one\ntwo\n", "{at}");
        let ran = read("count");
        // The next run may have begun between the two messages; the second has one of its own then.
        assert!(ran.starts_with(runs), "{at}: {ran}");
        let reader = Reader::open(&world.data()).unwrap();
        let task = &reader.tasks().unwrap()[0].task;
        assert_eq!(ran.lines().count(), task.runs.len(), "{at}");
        assert_eq!(task.outcome().unwrap().word(), "completed", "{at}");
        let delivered = |message: &Message| matches!(message.fate, Fate::Delivered(_));
        assert!(
            task.messages.iter().all(delivered),
            "{at}: {:?}",
            task.messages
        );
        let events = reader.events(0, 10_000).unwrap();
        let bug =
            |event: &&Event| matches!(&event.kind, Kind::Noted { text } if text.starts_with("bug"));
        assert_eq!(events.iter().find(bug), None, "{at}");
        assert_eq!(world.alive(task.id), [""; 0], "{at}");
        if !killed {
            return;
        }
    }
    panic!("more than {POINTS_MAX} points")
}

#[test]
fn messages_to_a_running_agent_killed_after_every_event() {
    messages_at_every("event", "running", "ran\n");
}

#[test]
fn messages_to_a_running_agent_killed_before_every_call_to_a_site() {
    messages_at_every("call", "running", "ran\n");
}

#[test]
fn messages_for_the_next_run_killed_after_every_event() {
    messages_at_every("event", "next", "ran\nran\n");
}

/// Two permissions in a run's life: each asked once, and answered once with what was answered first.
fn asks_at_every(which: &str) -> u64 {
    for n in 1..POINTS_MAX {
        let world = World::new();
        let killed = engine(&world, which, n, &["head", "asking"]);
        if killed {
            assert!(!engine(&world, "never", 0, &["head", "asking"]), "{n}");
        }
        asks_hold(&world, &format!("{which} {n}"));
        if !killed {
            return n - 1;
        }
    }
    panic!("more than {POINTS_MAX} points")
}

/// A file with the task, another one with a message: each is there for the runs it is for, and nothing
/// of a start that was cut short is.
fn attachments_at_every(which: &str) {
    for n in 1..POINTS_MAX {
        let world = World::new();
        let killed = engine(&world, which, n, &["head", "attached"]);
        if killed {
            let went = engine(&world, "never", 0, &["head", "attached"]);
            assert!(!went, "{which} {n}");
        }
        let at = format!("{which} {n}");
        let read = |name: &str| fs::read_to_string(world.home.path().join(name)).unwrap();
        assert_eq!(read("heard"), "one\none\ntwo\n", "{at}");
        assert_eq!(read("count"), "ran\nran\n", "{at}");
        let reader = Reader::open(&world.data()).unwrap();
        let task = &reader.tasks().unwrap()[0];
        let told = task.attached.iter().map(|(file, ..)| file.name.as_str());
        assert_eq!(told.collect::<Vec<_>>(), ["one.txt", "two.txt"], "{at}");
        let tasks = fs::read_dir(world.data().join("tasks")).unwrap();
        let kept = tasks.flat_map(|own| {
            let folders = fs::read_dir(own.unwrap().path().join("attachments"));
            folders.into_iter().flatten()
        });
        assert_eq!(kept.count(), 2, "{at}");
        if !killed {
            return;
        }
    }
    panic!("more than {POINTS_MAX} points")
}

fn asks_hold(world: &World, at: &str) {
    let read = |name: &str| fs::read_to_string(world.home.path().join(name)).unwrap();
    let answers = "ask-1 allow make\nask-2 deny It was denied by a person: not this\n";
    assert_eq!(read("answers"), answers, "{at}");
    assert_eq!(read("count"), "ran\n", "{at}");
    let reader = Reader::open(&world.data()).unwrap();
    let task = &reader.tasks().unwrap()[0].task;
    assert_eq!(task.outcome().unwrap().word(), "completed", "{at}");
    let words: Vec<_> = task.asks.iter().map(|ask| (ask.id.0, ask.word())).collect();
    assert_eq!(words, [(1, "allowed"), (2, "denied")], "{at}");
    let events = reader.events(0, 10_000).unwrap();
    let bug =
        |event: &&Event| matches!(&event.kind, Kind::Noted { text } if text.starts_with("bug"));
    assert_eq!(events.iter().find(bug), None, "{at}");
    assert_eq!(world.alive(task.id), [""; 0], "{at}");
}

#[test]
fn permissions_asked_killed_after_every_event() {
    assert!(asks_at_every("event") >= 12);
}

#[test]
fn permissions_asked_killed_before_every_call_to_a_site() {
    assert!(asks_at_every("call") >= 6);
}

/// And twice: once around an ask, once while the next engine replays it.
#[test]
fn permissions_asked_killed_again_while_it_recovers() {
    for (first, second) in [(7, 2), (8, 2), (8, 3), (9, 3), (10, 2), (11, 4), (12, 3)] {
        let world = World::new();
        engine(&world, "event", first, &["head", "asking"]);
        engine(&world, "event", second, &["head", "asking"]);
        engine(&world, "call", 3, &["head", "asking"]);
        engine(&world, "call", 5, &["head", "asking"]);
        assert!(!engine(&world, "never", 0, &["head", "asking"]));
        asks_hold(&world, &format!("{first}, then {second}"));
    }
}

/// Two tasks that an agent asked for, and how it hears of their ends: every end once, by one way; no
/// child lost, none doubled; and the task is done only when it has heard of both.
fn family_at_every(which: &str, scene: &str) -> u64 {
    for n in 1..POINTS_MAX {
        let world = World::new();
        let killed = engine(&world, which, n, &["head", scene]);
        if killed {
            assert!(!engine(&world, "never", 0, &["head", scene]), "{scene} {n}");
        }
        family_holds(&world, scene, &format!("{scene}, {which} {n}"));
        if !killed {
            return n - 1;
        }
    }
    panic!("more than {POINTS_MAX} points")
}

fn family_holds(world: &World, scene: &str, at: &str) {
    let read = |name: &str| fs::read_to_string(world.home.path().join(name)).unwrap();
    let counts = ["count", "count-a", "count-b"].map(read);
    assert_eq!(counts, ["ran\n", "ran\n", "ran\n"], "{at}");
    let reader = Reader::open(&world.data()).unwrap();
    let tasks = reader.tasks().unwrap();
    let (lead, children) = tasks.split_first().unwrap();
    assert_eq!(children.len(), 2, "{at}");
    for view in &tasks {
        assert!(view.task.is_done(), "{at}: {:?}", view.task);
        assert_eq!(view.task.outcome().unwrap().word(), "completed", "{at}");
        assert_eq!(world.alive(view.task.id), [""; 0], "{at}");
    }
    let end = |view: &TaskView| EndId {
        child: view.task.id,
        run: 1,
    };
    let mut ends: Vec<EndId> = children.iter().map(end).collect();
    let events = reader.events(0, 10_000).unwrap();
    let bug =
        |event: &&Event| matches!(&event.kind, Kind::Noted { text } if text.starts_with("bug"));
    assert_eq!(events.iter().find(bug), None, "{at}");
    let waited = events.iter().flat_map(|event| match &event.kind {
        Kind::EndsDelivered { ends } => ends.clone(),
        _ => Vec::new(),
    });
    let told = events.iter().flat_map(|event| match &event.kind {
        Kind::MessageQueued { ends, .. } => ends.clone(),
        _ => Vec::new(),
    });
    let (mut waited, mut told): (Vec<_>, Vec<_>) = (waited.collect(), told.collect());
    for list in [&mut ends, &mut waited, &mut told] {
        list.sort();
    }
    let (all, none) = (ends, Vec::<EndId>::new());
    let runs = lead.task.runs.len();
    match scene {
        "waiting" => {
            // It listens, and what it waits for when an engine ends it asks the next one for: that one
            // may have told it by then. Either way each end has one way only.
            let mut either = [waited, told].concat();
            either.sort();
            assert_eq!(either, all, "{at}");
            assert!(runs <= 2, "{at}");
            let words = read("waited");
            for view in children {
                assert_eq!(
                    words.matches(&view.task.id.to_string()).count(),
                    1,
                    "{at}: {words}"
                );
            }
        }
        "told" => {
            assert_eq!((waited, told), (none, all), "{at}");
            // The second end may come when the agent has said its last word.
            assert!(runs <= 2, "{at}");
        }
        _ => {
            assert_eq!((waited, told, runs), (none, all, 2), "{at}");
            assert!(lead.task.runs[0].parked, "{at}");
            let queued = |event: &&Event| matches!(event.kind, Kind::MessageQueued { .. });
            assert_eq!(
                events.iter().filter(queued).count(),
                1,
                "{at}: told together"
            );
        }
    }
    let delivered = |message: &Message| matches!(message.fate, Fate::Delivered(_));
    assert!(
        lead.task.messages.iter().all(delivered),
        "{at}: {:?}",
        lead.task.messages
    );
}

#[test]
fn children_that_are_waited_for_killed_after_every_event() {
    assert!(family_at_every("event", "waiting") >= 20);
}

#[test]
fn children_whose_ends_are_told_killed_after_every_event() {
    assert!(family_at_every("event", "told") >= 20);
}

#[test]
fn children_of_a_parked_parent_killed_after_every_event() {
    assert!(family_at_every("event", "parked") >= 20);
}

#[test]
fn children_of_a_parked_parent_killed_before_every_call_to_a_site() {
    assert!(family_at_every("call", "parked") >= 9);
}

/// And twice: once somewhere in the family's life, once while the next engine recovers.
#[test]
fn families_killed_again_while_they_recover() {
    for scene in ["waiting", "told", "parked"] {
        for (first, second) in [(12, 2), (16, 3), (20, 4), (24, 2), (28, 5)] {
            let world = World::new();
            engine(&world, "event", first, &["head", scene]);
            engine(&world, "event", second, &["head", scene]);
            engine(&world, "call", 4, &["head", scene]);
            assert!(!engine(&world, "never", 0, &["head", scene]));
            family_holds(&world, scene, &format!("{scene}: {first}, then {second}"));
        }
    }
}

#[test]
fn attachments_killed_after_every_event() {
    attachments_at_every("event");
}

#[test]
fn attachments_killed_before_every_call_to_a_site() {
    attachments_at_every("call");
}

/// And twice: once when something is on its way, once while the next engine replays it.
#[test]
fn messages_killed_again_while_it_recovers() {
    for (first, second) in [(6, 2), (7, 2), (8, 2), (8, 3), (9, 2), (9, 4), (10, 3)] {
        let world = World::new();
        engine(&world, "event", first, &["head", "running"]);
        engine(&world, "event", second, &["head", "running"]);
        engine(&world, "call", 3, &["head", "running"]);
        assert!(!engine(&world, "never", 0, &["head", "running"]));
        let heard = fs::read_to_string(world.home.path().join("heard")).unwrap();
        assert_eq!(heard, "one\ntwo\n", "{first}, then {second}");
    }
}

/// And twice: once in the run, once in the recovery.
#[test]
fn killed_again_while_it_recovers() {
    for_every_base(|base| {
        for (first, second) in [(4, 2), (5, 3), (6, 2), (8, 1)] {
            let world = new_world();
            engine(&world, "call", first, &[base]);
            engine(&world, "call", second, &[base]);
            engine(&world, "event", 2, &[base]);
            assert!(!engine(&world, "never", 0, &[base]));
            holds(&world, &format!("{base}: calls {first}, then {second}"));
        }
    });
}
