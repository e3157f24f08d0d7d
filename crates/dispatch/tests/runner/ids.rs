//! Which task a person means: unique prefixes, as in git.

use std::collections::HashMap;

use super::world::TestWorld;

#[test]
fn ambiguous_prefixes_list_the_matches_and_unknown_ones_the_open_tasks() {
    let world = TestWorld::new();
    world
        .dispatch(&["show", "77"])
        .exits(2)
        .says(&["no task is open"]);
    world.dispatch(&["freeze"]).exits(0);
    // Of 17 tasks two share their first digit; usually it takes five.
    let mut by_digit: HashMap<char, String> = HashMap::new();
    let mut n = 0;
    let (first, second) = loop {
        n += 1;
        let title = format!("Title number {n}");
        let id = world.detach(&["--title", &title, "x\n> write out.txt hi"]);
        let digit = id.chars().next().unwrap();
        if let Some(other) = by_digit.insert(digit, id.clone()) {
            break (other, id);
        }
    };
    let titles = [&first, &second].map(|id| world.show(id)["title"].as_str().unwrap().to_owned());
    for verb in ["show", "logs", "diff", "stop", "wait", "apply", "rm"] {
        let done = world.dispatch(&[verb, &first[..1]]).exits(2);
        assert_eq!(done.out, "");
        done.says(&[&titles[0], &titles[1], "more digits"]);
    }
    let short = world.show(&first)["short"].as_str().unwrap().to_owned();
    assert_eq!(world.show(&short)["id"], first.as_str());
    assert_eq!(world.show(&first.to_uppercase())["id"], first.as_str());

    let free = (0..256).map(|n| format!("{n:02x}"));
    let unknown = free.filter(|p| !first.starts_with(p) && !second.starts_with(p));
    let all: Vec<String> = by_digit.into_values().collect();
    let unknown = unknown
        .into_iter()
        .find(|p| !all.iter().any(|id| id.starts_with(p)));
    let done = world.dispatch(&["show", &unknown.unwrap()]).exits(2);
    done.says(&["there is none", "open tasks", "Title number 1", "queued"]);
    world.dispatch(&["show", "not-hex"]).exits(2);
    world.dispatch(&["show", ""]).exits(2);
}
