//! The main job: a task in, a branch out, and how it ends when it does not end well.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{
    schema,
    world::{TestWorld, ended, pid_of},
};

const CHECK: &str = "[checks.quick]\nrank = 5\nmarkers = [{ file = \"check.sh\" }]\n\
                     files = [\"check.sh\"]\nsteps = [{ name = \"quick\", argv = [\"sh\", \"check.sh\"] }]\n";

#[test]
fn a_task_in_a_branch_out_and_the_checkout_is_left_alone() {
    let world = TestWorld::with_config(CHECK);
    fs::write(world.repo().join("check.sh"), "grep -q hi out.txt\n").unwrap();
    world.commit();
    // Work in progress of a person: one file staged, one changed, one new.
    fs::write(world.repo().join("staged.txt"), "staged\n").unwrap();
    world.git(&["add", "staged.txt"]);
    fs::write(
        world.repo().join("README.md"),
        "In the middle of something.\n",
    )
    .unwrap();
    fs::write(world.repo().join("new.txt"), "new\n").unwrap();
    let head = world.git(&["rev-parse", "HEAD"]);
    let status = world.git(&["status", "--porcelain"]);
    let index = || fs::read(world.repo().join(".git/index")).unwrap();
    let before = index();

    let labels = ["--org", "o", "--issue", "7", "--pr", "8", "--tag", "t"];
    let args = [
        "run",
        "--json",
        "Do it now\n> say hello\n> write out.txt hi",
    ];
    let done = world.dispatch(&[&args[..], &labels].concat()).exits(0);
    let done = done.says(&["3 uncommitted file(s)"]);
    let task = done.json();
    schema::task(&task);
    assert_eq!(task["state"], "completed");
    assert_eq!(task["title"], "Do it now");
    assert_eq!(task["verified"], "yes");
    assert_eq!(task["changed"], true);
    assert_eq!(task["base"], head.as_str());
    assert_eq!(
        task["repo"],
        world.repo().canonicalize().unwrap().to_str().unwrap()
    );
    assert_eq!((&task["org"], &task["issue"]), (&json!("o"), &json!(7)));
    assert_eq!((&task["pr"], &task["tag"]), (&json!(8), &json!("t")));
    let stat = json!({"files": 1, "insertions": 1, "deletions": 0});
    assert_eq!(task["diffstat"], stat);
    let run = &task["runs"][0];
    assert_eq!(
        (&run["n"], &run["cause"]),
        (&json!(1), &json!("dispatched"))
    );
    assert_eq!(
        (&run["exit"], &run["pid"]),
        (&json!({"code": 0}), &Value::Null)
    );
    let passed = json!([{"name": "quick.quick", "state": "passed", "exit": {"code": 0}}]);
    assert_eq!(run["checks"], passed);
    let log = fs::read_to_string(run["log"].as_str().unwrap()).unwrap();
    assert_eq!(log, "hello\n");

    let id = task["id"].as_str().unwrap();
    let diff = world.dispatch(&["diff", id]).exits(0).out;
    assert!(diff.contains("+hi"), "{diff}");
    let applied = world.dispatch(&["apply", id, "--json"]).exits(0).json();
    let keys: Vec<&String> = applied.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["repo", "branch", "commit"]);
    let branch = applied["branch"].as_str().unwrap();
    assert_eq!(
        branch,
        format!("dispatch/do-it-now-{}", task["short"].as_str().unwrap())
    );
    assert_eq!(index(), before, "the index is not touched");
    assert_eq!(
        world.git(&["rev-parse", branch]),
        applied["commit"].as_str().unwrap()
    );
    assert_eq!(world.git(&["show", &format!("{branch}:out.txt")]), "hi");
    assert_eq!(world.git(&["rev-parse", &format!("{branch}~1")]), head);
    assert_eq!(world.git(&["rev-parse", "HEAD"]), head);
    assert_eq!(world.git(&["symbolic-ref", "HEAD"]), "refs/heads/main");
    assert_eq!(world.git(&["status", "--porcelain"]), status);
    let again = world.dispatch(&["apply", id, "--json"]).exits(0).json();
    assert_eq!(again["commit"], applied["commit"]);
}

#[test]
fn a_check_that_fails_fails_the_task() {
    let world = TestWorld::with_config(CHECK);
    fs::write(world.repo().join("check.sh"), "echo seen; exit 3\n").unwrap();
    world.commit();
    let orders = "Do it\n> write out.txt hi\n> write check.sh echo seen; exit 3 # mine";
    let task = world.dispatch(&["run", "--json", orders]).exits(1).json();
    schema::task(&task);
    assert_eq!(
        (&task["state"], &task["verified"]),
        (&json!("failed"), &json!("no"))
    );
    assert_eq!(task["checks_touched"], json!(["check.sh"]));
    let failed = json!([{"name": "quick.quick", "state": "failed", "exit": {"code": 3}}]);
    assert_eq!(task["runs"][0]["checks"], failed);
    let id = task["id"].as_str().unwrap();
    // By its whole name, or by its step's as long as no other check has the same.
    for name in ["quick.quick", "quick"] {
        let log = world.dispatch(&["logs", id, "--check", name]).exits(0).out;
        assert_eq!(log, "seen\n");
    }
    let done = world.dispatch(&["logs", id, "--check", "nope"]).exits(2);
    done.says(&["quick.quick"]);
    let named = [
        "run",
        "--check",
        "quick",
        "--json",
        "Do it\n> write out.txt hi",
    ];
    let task = world.dispatch(&named).exits(1).json();
    assert_eq!(task["runs"][0]["checks"], failed);
    let unchecked = ["run", "--no-checks", "--json", "Do it\n> write out.txt hi"];
    let task = world.dispatch(&unchecked).exits(0).json();
    assert_eq!(task["verified"], "not_verified");
}

#[test]
fn nothing_changed_is_a_failure_that_names_the_flag() {
    let world = TestWorld::new();
    let orders = "Look at it\n> say all is well";
    world.dispatch(&["run", orders]).exits(1).says(&[
        "nothing changed",
        "--expects report",
        "--expects either",
    ]);
    let args = ["run", "--json", "--expects", "report", orders];
    let task = world.dispatch(&args).exits(0).json();
    schema::task(&task);
    assert_eq!(
        (&task["changed"], &task["state"]),
        (&json!(false), &json!("completed"))
    );
    assert_eq!(task["reason"], "all is well");

    let task = world
        .dispatch(&["run", "--json", "x\n> dance"])
        .exits(1)
        .json();
    schema::task(&task);
    assert_eq!(task["runs"][0]["exit"], json!({"code": 1}));
    let args = ["run", "--expects", "report", "x\n> count f"];
    world.dispatch(&args).exits(1);
}

#[test]
fn a_question_is_answered_and_the_task_goes_on() {
    let world = TestWorld::new();
    let orders = "Zones\n> write before.txt x\n> ask Which zone?\n> answer-into zone.txt";
    let task = world.dispatch(&["run", "--json", orders]).exits(3).json();
    schema::task(&task);
    assert_eq!(task["question"], "Which zone?");
    let id = task["id"].as_str().unwrap();
    world
        .dispatch(&["wait", id])
        .exits(3)
        .says(&["Which zone?"]);

    let answered = world
        .dispatch(&["answer", id, "use UTC", "--json"])
        .exits(0)
        .json();
    schema::task(&answered);
    assert_eq!(answered["runs"][1]["cause"], "answer");
    let task = world.dispatch(&["wait", id, "--json"]).exits(0).json();
    schema::task(&task);
    assert_eq!(
        (&task["question"], &task["state"]),
        (&Value::Null, &json!("completed"))
    );
    let diff = world.dispatch(&["diff", id]).exits(0).out;
    assert!(
        diff.contains("+use UTC") && diff.contains("before.txt"),
        "{diff}"
    );
    assert!(!diff.contains("BLOCKED.md"), "{diff}");
    let applied = world.dispatch(&["apply", id, "--json"]).exits(0).json();
    let branch = applied["branch"].as_str().unwrap();
    let tree = world.git(&["ls-tree", "--name-only", "-r", branch]);
    assert_eq!(tree, "README.md\nbefore.txt\nzone.txt");
    world.dispatch(&["answer", id, "again"]).exits(2);
}

#[test]
fn an_answer_can_come_by_standard_input_and_be_followed() {
    let world = TestWorld::new();
    let orders = "Zones\n> ask Which zone?\n> answer-into zone.txt\n";
    let blocked = world.dispatch_fed(orders, &["run", "--json", "-"]).exits(3);
    let task = blocked.json();
    let id = task["id"].as_str().unwrap();
    let done = world.dispatch_fed("CET\n", &["answer", id, "--follow", "--json", "-"]);
    schema::task(&done.exits(0).json());
    let diff = world.dispatch(&["diff", id]).exits(0).out;
    assert!(diff.contains("+CET"), "{diff}");
}

#[test]
fn a_live_run_is_stopped() {
    let world = TestWorld::new();
    let mut run = world.follow(&["run", "--agent", "gated", "Wait for it"]);
    run.until("agent started");
    let tasks = world.dispatch(&["list", "--json"]).exits(0).json();
    let task = &tasks[0];
    schema::task(task);
    assert_eq!(task["state"], "running");
    let (id, keeper) = (
        task["id"].as_str().unwrap(),
        pid_of(&task["runs"][0]["pid"]),
    );
    world.dispatch(&["stop", id]).exits(0).says(&["stopped"]);
    run.end().exits(4);
    ended(keeper);
    let task = world.dispatch(&["wait", id, "--json"]).exits(4).json();
    schema::task(&task);
    assert_eq!(task["runs"][0]["pid"], Value::Null);
    assert_eq!(world.counted(), 0);

    let other = world.detach(&["x\n> write out.txt hi"]);
    let both = world
        .dispatch(&["wait", &other, id, "--json"])
        .exits(4)
        .json();
    assert_eq!(both.as_array().unwrap().len(), 2);
}

#[test]
fn interrupting_a_run_stops_its_task_and_a_hang_up_does_not() {
    let world = TestWorld::new();
    let mut run = world.follow(&["run", "--agent", "gated", "Interrupted"]);
    run.until("agent started");
    run.signal(Signal::INT);
    run.end().exits(4).says(&["stopping; again to kill it"]);

    let mut run = world.follow(&["run", "--agent", "gated", "Hung up"]);
    run.until("agent started");
    run.signal(Signal::HUP);
    assert_eq!(run.end().code, None);
    let running = world.dispatch(&["list", "--state", "running", "--json"]);
    let tasks = running.exits(0).json();
    world.open_gate();
    world
        .dispatch(&["wait", tasks[0]["id"].as_str().unwrap()])
        .exits(0);
    assert_eq!(world.counted(), 1);
}

#[test]
fn one_workspace_has_one_agent() {
    let world = TestWorld::new();
    let id = world.begun(&["--workspace", "shared"]);
    let args = ["run", "--workspace", "shared", "x\n> write out.txt hi"];
    let short = world.show(&id)["short"].as_str().unwrap().to_owned();
    world.dispatch(&args).exits(2).says(&["shared", &short]);
    world.open_gate();
    world.dispatch(&["wait", &id]).exits(0);
    let tasks = world.dispatch(&["list", "--all", "--json"]).exits(0).json();
    assert_eq!(tasks.as_array().unwrap().len(), 1);
}

/// Not even to count what is not committed: a checkout may come from anywhere.
#[test]
fn a_repositorys_filters_do_not_run() {
    let world = TestWorld::with_config(CHECK);
    fs::write(world.repo().join(".gitattributes"), "*.md filter=evil\n").unwrap();
    world.commit();
    let canary = world.repo().join("../canary");
    let command = format!("touch {}; cat", canary.display());
    for key in [
        "filter.evil.clean",
        "filter.evil.smudge",
        "filter.a.b c.process",
    ] {
        world.git(&["config", key, &command]);
    }
    world.git(&["config", "filter.evil.required", "true"]);
    // Touched, and as long as before: only its content can tell.
    let readme = world.repo().join("README.md");
    fs::write(&readme, fs::read(&readme).unwrap()).unwrap();
    fs::write(world.repo().join("new.txt"), "new\n").unwrap();
    let done = world.dispatch(&["run", "--no-checks", "> write out.txt hi"]);
    done.exits(0).says(&["1 uncommitted file(s)"]);
    assert!(!canary.exists());
}

/// Of what the person configured it may choose; anything else is refused before anything starts.
#[test]
fn a_repositorys_own_file_chooses_among_names_only() {
    let world = TestWorld::with_config(CHECK);
    let file = world.repo().join("dispatch.toml");
    fs::write(&file, "[task]\nexpects = \"report\"\n").unwrap();
    world.dispatch(&["run", "> say nothing to change"]).exits(0);
    // A flag says more.
    let done = world.dispatch(&["run", "--expects", "change", "> say nothing"]);
    done.exits(1);
    fs::write(&file, "[agents.codex]\nprogram = \"/tmp/evil\"\n").unwrap();
    let refused = world.dispatch(&["run", "> say x"]).exits(2);
    refused.says(&["agents.codex", "allowed are task.agent"]);
    fs::write(&file, "[task]\nagent = \"nobody\"\n").unwrap();
    world
        .dispatch(&["run", "> say x"])
        .exits(2)
        .says(&["nobody"]);
    // An agent without a fence is the person's own choice.
    fs::write(&file, "[task]\nagent = \"gated\"\n").unwrap();
    let refused = world.dispatch(&["run", "> say x"]).exits(2);
    refused.says(&["its placement is host", "--agent gated"]);
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
    world.dispatch(&["run", "> say x"]).exits(2);
}

/// Whoever sends a task, the repository's own file says the same of it.
#[test]
fn a_repositorys_own_file_counts_for_a_task_that_comes_over_the_socket() {
    let world = TestWorld::with_config(CHECK);
    let file = world.repo().join("dispatch.toml");
    // An engine that stays.
    world.begun(&[]);
    fs::write(
        &file,
        "[task]\nexpects = \"report\"\n[limits]\nidle_s = 7\n",
    )
    .unwrap();
    let repo = world.repo();
    let post = |more: &str| {
        let task = format!("{{\"task\": \"> say x\", \"repo\": {repo:?}{more}}}");
        world.http("POST", "/v1/tasks", &task).unwrap()
    };
    let (status, task) = post("");
    assert_eq!(status, 202, "{task}");
    let id = task["id"].as_str().unwrap();
    // A task that must change something would fail.
    let task = world.dispatch(&["wait", id, "--json"]).exits(0).json();
    assert_eq!(task["limits"], serde_json::json!({"idle_s": 7}));
    let (_, task) = post(", \"limits\": {\"idle_s\": 5}, \"expects\": \"either\"");
    assert_eq!(task["limits"], serde_json::json!({"idle_s": 5}));
    fs::write(&file, "[agents.codex]\nprogram = \"/tmp/evil\"\n").unwrap();
    let (status, problem) = post("");
    assert_eq!((status, &problem["code"]), (400, &"bad_project".into()));
    fs::write(&file, "[task]\nagent = \"gated\"\n").unwrap();
    let (_, problem) = post("");
    assert!(
        problem["detail"].as_str().unwrap().contains("no fence"),
        "{problem}"
    );
    world.open_gate();
}

#[test]
fn limits_are_lowered_by_a_repository_or_a_flag_and_raised_by_neither() {
    let agent = "[agents.limits]\ndriver = \"plain\"\nprogram = \"sh\"\npool = \"default\"\n\
                 args = [\"-c\", \"cat > /dev/null; echo agent has $(ulimit -n)\"]\n\
                 [checks.files]\nrank = 1\nmarkers = []\n\
                 steps = [{ name = \"n\", argv = [\"sh\", \"-c\", \"echo check has $(ulimit -n)\"] }]\n";
    let world = TestWorld::with_config(agent);
    let file = world.repo().join("dispatch.toml");
    fs::write(&file, "[limits]\nopen_files_max = 111\n").unwrap();
    let run = |more: &[&str]| {
        let args = [
            "run",
            "--json",
            "--agent",
            "limits",
            "--expects",
            "report",
            "--check",
            "files",
        ];
        world.dispatch(&[&args[..], more, &["look"]].concat())
    };
    let said = |task: &serde_json::Value| {
        let id = task["id"].as_str().unwrap();
        let agent = world.dispatch(&["logs", id]).exits(0).out;
        agent
            + &world
                .dispatch(&["logs", id, "--check", "files.n"])
                .exits(0)
                .out
    };
    let text = said(&run(&[]).exits(0).json());
    assert!(
        text.contains("agent has 111") && text.contains("check has 111"),
        "{text}"
    );
    let text = said(&run(&["--limit", "open_files_max=77"]).exits(0).json());
    assert!(text.contains("agent has 77"), "{text}");
    run(&["--limit", "open_files_max=99999999"])
        .exits(2)
        .says(&["allows 65536 at most", "no request can raise"]);
    run(&["--limit", "queue_max=1"])
        .exits(2)
        .says(&["wall_clock_s"]);
    run(&["--limit", "idle_s"]).exits(2).says(&["NAME=NUMBER"]);
    fs::write(&file, "[limits]\nopen_files_max = 99999999\n").unwrap();
    run(&[])
        .exits(2)
        .says(&["limits.open_files_max = 99999999", "may only lower"]);
}
