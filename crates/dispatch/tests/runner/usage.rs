//! Mistakes of a person: exit 2, every problem at once, and nothing is started for them.

use std::fs;

use super::world::TestWorld;

#[test]
fn mistakes_of_usage_exit_2_and_say_what_there_is() {
    let world = TestWorld::new();
    world
        .dispatch(&["run", "--no-such-flag", "x"])
        .exits(2)
        .says(&["--no-such-flag"]);
    world.dispatch(&["no-such-verb"]).exits(2);
    world.dispatch(&["run"]).exits(2).says(&["TASK"]);
    world.dispatch(&["wait"]).exits(2);
    world
        .dispatch(&["run", "--agent", "nobody", "x"])
        .exits(2)
        .says(&["nobody", "claude", "codex", "gated", "scripted"]);
    world
        .dispatch(&["run", "--expects", "wonders", "x"])
        .exits(2)
        .says(&["wonders", "change", "report", "either"]);
    world
        .dispatch(&["run", "--check", "nothing", "x"])
        .exits(2)
        .says(&["rust", "go"]);
    world.dispatch(&["run", " \n"]).exits(2).says(&["empty"]);
    world
        .dispatch(&["run", "--workspace", "../up", "x"])
        .exits(2);
    let nowhere = world.path("person");
    let args = ["run", "--repo", nowhere.to_str().unwrap(), "x"];
    world
        .dispatch(&args)
        .exits(2)
        .says(&["git repository", "hint: "]);
    world
        .dispatch(&["run", "--repo", "no/such/path", "x"])
        .exits(2);
    world
        .dispatch(&["clean", "--state", "completed", "--older-than", "soon"])
        .exits(2);
    assert!(
        !world.home().join("data").exists(),
        "nothing was started for it"
    );
}

#[test]
fn an_agent_that_is_not_installed_is_told_with_a_way_to_get_it() {
    let agent = "[agents.ghost]\ndriver = \"plain\"\nprogram = \"no-such-program-here\"\n\
                 args = []\npool = \"default\"\nplacement = \"host\"\n";
    let world = TestWorld::with_config(agent);
    let done = world.dispatch(&["run", "--agent", "ghost", "x"]).exits(2);
    done.says(&["no-such-program-here", "hint: "]);
    assert!(!world.home().join("data").exists());
}

#[test]
fn every_problem_of_the_configuration_is_told_at_once() {
    let world = TestWorld::new();
    let config = "[task]\nagnt = \"x\"\n\n[limits]\nidle_s = \"long\"\n\n\
                  [agents.odd]\ndriver = \"telepathy\"\nprogram = \"x\"\n";
    fs::write(world.home().join("dispatch.toml"), config).unwrap();
    for args in [&["config", "check"][..], &["list"], &["run", "x"]] {
        let done = world.dispatch(args).exits(2);
        let done = done.says(&["agnt", "agent", "expects", "idle_s", "telepathy", "plain"]);
        assert_eq!(done.out, "");
    }
    fs::write(world.home().join("dispatch.toml"), "[task\n").unwrap();
    world
        .dispatch(&["config", "check"])
        .exits(2)
        .says(&["dispatch.toml"]);
    world.dispatch(&["completions", "bash"]).exits(0);
    fs::remove_file(world.home().join("dispatch.toml")).unwrap();
    world.dispatch(&["config", "check"]).exits(0);
}
