//! Where a task runs: the cage unless a configuration says otherwise, and every surface says which.

use std::fs;

use super::{schema, world::TestWorld};

const LOCKED: &str = "[placements.locked]\nwrap = \"cage\"\nnetwork = \"none\"\n\
    [placements.listed]\nwrap = \"cage\"\nnetwork = { allow = [\"a.invalid\", \"*.b.invalid:8443\"] }\n";

fn fence(task: &serde_json::Value) -> String {
    task["enforced"].as_str().unwrap().to_owned()
}

#[test]
fn the_cage_is_the_default_and_what_holds_is_shown() {
    let world = TestWorld::with_config(LOCKED);
    let args = ["run", "--json", "--no-checks", "> write out.txt hi"];
    let task = world.dispatch(&args).exits(0).json();
    schema::task(&task);
    assert_eq!(task["placement"], "cage");
    let said = fence(&task);
    assert!(
        said.contains("landlock(abi ") && said.contains("network: full"),
        "{said}"
    );
    let id = task["id"].as_str().unwrap();
    world
        .dispatch(&["show", id])
        .exits(0)
        .says(&["cage (", "seccomp"]);
    let args = [
        "run",
        "--json",
        "--no-checks",
        "--placement",
        "locked",
        "> write b c",
    ];
    let task = world.dispatch(&args).exits(0).json();
    assert_eq!(task["placement"], "locked");
    assert!(fence(&task).contains("network: none"), "{}", fence(&task));
    let args = [
        "run",
        "--json",
        "--no-checks",
        "--placement",
        "listed",
        "> write c d",
    ];
    let task = world.dispatch(&args);
    let bubblewrap = std::env::split_paths(&std::env::var_os("PATH").unwrap())
        .any(|dir| dir.join("bwrap").is_file());
    if bubblewrap {
        let task = task.exits(0).json();
        schema::task(&task);
        let hosts = serde_json::json!(["a.invalid", "*.b.invalid:8443"]);
        assert_eq!(task["allow"], hosts);
        assert!(
            fence(&task).contains("network: allow(2 hosts)"),
            "{}",
            fence(&task)
        );
    } else {
        // Nothing else can hold a list, so nothing starts.
        let task = task.exits(1).json();
        assert!(
            task["reason"]
                .as_str()
                .unwrap()
                .contains("needs bubblewrap"),
            "{task}"
        );
    }
    // A dot is no name of a placement, and a typo lists what there is.
    let refused = world
        .dispatch(&["run", "--placement", "lokced", "> say x"])
        .exits(2);
    refused.says(&["lokced", "cage, container, host, listed, locked"]);
}

#[test]
fn no_fence_is_only_had_by_name_and_warned_of() {
    let world = TestWorld::new();
    let host = [
        "run",
        "--no-checks",
        "--placement",
        "host",
        "> write out.txt hi",
    ];
    let refused = world.dispatch(&host).exits(2);
    refused.says(&["task.allow_host is false"]);
    assert!(
        !world.home().join("data/tasks").exists(),
        "nothing was made for it"
    );
    let file = world.home().join("dispatch.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        text.replacen("[task]\n", "[task]\nallow_host = true\n", 1),
    )
    .unwrap();
    let done = world.dispatch(&host).exits(0);
    done.says(&["placement host", "no fence around it", "nothing (host)"]);
}

/// `program = "sh", args = ["/home/me/agent.sh"]`: the script is the agent, and it is seen; what lies
/// beside it is not.
#[test]
fn a_script_that_an_interpreter_is_given_is_seen_in_the_cage() {
    let world = TestWorld::new();
    let script = world.path("agent.sh");
    fs::write(
        &script,
        "cat > /dev/null; cat \"${0%/*}/beside\" || echo made > out.txt\n",
    )
    .unwrap();
    fs::write(world.path("beside"), "not for it\n").unwrap();
    let file = world.home().join("dispatch.toml");
    let text = fs::read_to_string(&file).unwrap();
    let agent = format!(
        "[agents.script]\ndriver = \"plain\"\nprogram = \"sh\"\nargs = [{script:?}]\npool = \"default\"\n"
    );
    fs::write(&file, text + &agent).unwrap();
    let args = ["run", "--json", "--no-checks", "--agent", "script", "x"];
    let task = world.dispatch(&args).exits(0).json();
    assert_eq!(task["changed"], true, "{task}");
}
