//! The golden run, killed right after every event and right before every call to a site: afterwards
//! one terminal outcome, no second execution, no byte of output missing or doubled.
//! Must not sleep.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; a failure is a failed test"
)]

mod world;

use std::{fs, os::unix::process::ExitStatusExt, process::Command};

use dispatch_core::{event::Kind, outcome::Outcome};
use dispatch_engine::reader::Reader;
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
