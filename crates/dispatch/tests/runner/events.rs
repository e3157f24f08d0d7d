//! The audit: one JSON object a line, no event left out and none twice.

use serde_json::Value;

use super::{schema::is_time, world::TestWorld};

fn events(world: &TestWorld, args: &[&str]) -> Vec<Value> {
    let done = world
        .dispatch(&[&["events", "--json"][..], args].concat())
        .exits(0);
    let line = |line: &str| serde_json::from_str(line).unwrap();
    done.out.lines().map(line).collect()
}

fn seqs(events: &[Value]) -> Vec<u64> {
    events
        .iter()
        .map(|event| event["seq"].as_u64().unwrap())
        .collect()
}

#[test]
fn the_audit_has_every_event_once_and_in_order() {
    let world = TestWorld::new();
    let first = world.detach(&["x\n> say hi\n> write out.txt hi"]);
    let second = world.detach(&["y\n> ask Why?"]);
    world.dispatch(&["wait", &first, &second]).exits(3);
    let all = events(&world, &[]);
    let last = u64::try_from(all.len()).unwrap();
    assert_eq!(seqs(&all), (1..=last).collect::<Vec<_>>());
    for event in &all {
        let keys: Vec<&String> = event.as_object().unwrap().keys().collect();
        assert_eq!(keys[..5], ["seq", "at", "task", "run", "kind"], "{event}");
        assert!(is_time(event["at"].as_str().unwrap()), "{event}");
        let task = event["task"].as_str();
        assert!(task.is_none_or(|task| task.len() == 16), "{event}");
        assert!(event["run"].is_null() || event["run"].is_u64(), "{event}");
    }
    let shown = world.show(&first);
    assert!(shown["seq"].as_u64().unwrap() >= last);

    let rest = events(&world, &["--after", "5"]);
    assert_eq!(rest, all[5..]);
    assert!(events(&world, &["--after", "9999"]).is_empty());
    let mine = events(&world, &["--task", &first]);
    let wanted: Vec<Value> = all
        .iter()
        .filter(|e| e["task"] == *first)
        .cloned()
        .collect();
    assert_eq!(mine, wanted);
    let kinds: Vec<&str> = mine.iter().map(|e| e["kind"].as_str().unwrap()).collect();
    assert_eq!(
        (kinds[0], *kinds.last().unwrap()),
        ("task_created", "finished")
    );
    let part = events(
        &world,
        &["--task", &first, "--after", &seqs(&mine)[1].to_string()],
    );
    assert_eq!(part, mine[2..]);
    world.dispatch(&["events", "--task", "zz"]).exits(2);

    // Followed: history, then what happens, across the death of an engine.
    let mut following = world.follow(&["events", "-f", "--json", "--after", "2"]);
    following.until("\"finished\"");
    world.dispatch(&["freeze"]).exits(0);
    following.until("frozen_set");
    world.kill_engine();
    world.dispatch(&["thaw"]).exits(0);
    following.until("\"frozen\":false");
    following.signal(rustix::process::Signal::INT);
    let heard: Vec<u64> = following
        .end()
        .out
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["seq"]
                .as_u64()
                .unwrap()
        })
        .collect();
    let end = heard.last().unwrap() + 1;
    assert_eq!(heard, (3..end).collect::<Vec<_>>());
}
