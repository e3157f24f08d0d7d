//! What an agent asks permission for: `allow`, `deny`, and every place that shows it. The agent is a
//! script that speaks as Claude Code does.

use std::fs;

use serde_json::{Value, json};

use super::{
    schema,
    world::{TestWorld, files},
};

/// Asks for two permissions at once, waits for both answers, and keeps them in its workspace.
const ASKING: &str = r#"read -r prompt
echo '{"type":"system","subtype":"init","session_id":"s1"}'
for n in 1 2; do
  echo '{"type":"control_request","request_id":"a'$n'","request":{"subtype":"can_use_tool","tool_name":"Bash","input":{"command":"make '$n'"},"tool_use_id":"t'$n'"}}'
done
read -r answer; echo "$answer" > answers.txt
read -r answer; echo "$answer" >> answers.txt
echo '{"type":"result","subtype":"success","is_error":false,"result":"done"}'
cat > /dev/null
"#;

pub(crate) fn world(more: &str) -> TestWorld {
    TestWorld::with_config(&format!(
        "{more}\n[agents.asking]\ndriver = \"claude\"\nprogram = \"sh\"\n\
         args = []\npool = \"default\"\nplacement = \"host\"\npermissions = \"ask\"\n"
    ))
}

/// The driver gives options of Claude's, so the program is a file that takes no notice of them.
pub(crate) fn installed(world: &TestWorld) {
    use std::os::unix::fs::PermissionsExt;
    let path = world.path("asking");
    fs::write(&path, format!("#!/bin/sh\n{ASKING}")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let config = world.home().join("dispatch.toml");
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace(
        "program = \"sh\"\nargs = []",
        &format!("program = {path:?}\nargs = []"),
    );
    fs::write(config, text).unwrap();
}

pub(crate) fn asking(world: &TestWorld, more: &[&str]) -> String {
    installed(world);
    let args = [&["--agent", "asking", "--no-checks", "Build it"][..], more].concat();
    let id = world.detach(&args);
    let mut events = world.follow(&["events", "-f", "--task", &id]);
    events.until("asks 1 for Bash");
    events.until("asks 2 for Bash");
    id
}

#[test]
fn what_is_asked_is_shown_everywhere_and_answered_once() {
    let world = world("");
    let id = asking(&world, &[]);
    let task = world.show(&id);
    schema::task(&task);
    assert_eq!(
        (&task["state"], &task["permissions"]),
        (&json!("running"), &json!("ask"))
    );
    let ask = &task["asks"][0];
    assert_eq!(
        (&ask["state"], &ask["owner"]),
        (&json!("waiting"), &json!("person"))
    );
    assert_eq!(ask["input"], "{\"command\":\"make 1\"}");
    world
        .dispatch(&["list"])
        .exits(0)
        .says(&["needs you (1)", "asks 1: Bash", "and 1 more"]);
    world.dispatch(&["show", &id]).exits(0).says(&[
        "asked 1",
        "waits until",
        "{\"command\":\"make 2\"}",
        "dispatch allow",
        "dispatch deny",
    ]);
    // Several wait, so one has to be named; and only one that is there.
    world
        .dispatch(&["allow", &id])
        .exits(2)
        .says(&["2 asks wait", "1 (Bash {\"command\":\"make 1\"}), 2 (Bash"]);
    world
        .dispatch(&["allow", &id, "3"])
        .exits(2)
        .says(&["ask 3 is not known; 1 (Bash), 2 (Bash) wait for one"]);
    world.dispatch(&["allow", &id, "0"]).exits(2);
    let path = format!("/v1/tasks/{id}/asks/2");
    let (status, _) = world.http("POST", &path, r#"{"allow": "yes"}"#).unwrap();
    assert_eq!(status, 400);
    let (status, task) = world.http("POST", &path, r#"{"allow": true}"#).unwrap();
    assert_eq!(
        (status, &task["asks"][1]["state"]),
        (200, &json!("allowed"))
    );
    let (status, problem) = world.http("POST", &path, r#"{"allow": true}"#).unwrap();
    assert_eq!((status, &problem["code"]), (409, &json!("nothing_to_do")));
    let task = world
        .dispatch(&["deny", &id, "--why", "not today", "--json"])
        .exits(0)
        .json();
    schema::task(&task);
    let ask = &task["asks"][0];
    assert_eq!(
        (&ask["state"], &ask["by"], &ask["why"]),
        (&json!("denied"), &json!("person"), &json!("not today"))
    );
    world.dispatch(&["wait", &id]).exits(0);
    let workspace = world.show(&id)["workspace"].as_str().unwrap().to_owned();
    let answers = fs::read_to_string(format!("{workspace}/answers.txt")).unwrap();
    let heard: Vec<Value> = answers
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["response"].clone())
        .collect();
    assert_eq!(heard[0]["request_id"], "a2");
    assert_eq!(heard[0]["response"]["behavior"], "allow");
    assert_eq!(heard[1]["request_id"], "a1");
    let message = heard[1]["response"]["message"].as_str().unwrap();
    assert!(message.ends_with("not today"), "{message}");
    world
        .dispatch(&["allow", &id])
        .exits(2)
        .says(&["asks for nothing now"]);
    world.dispatch(&["list"]).exits(0).says(&["done (1)"]);
}

/// An agent that would have whoever answers read something else than what it does.
#[test]
fn what_is_asked_is_shown_as_it_is() {
    let world = world("");
    installed(&world);
    let script = world.path("asking");
    let text = fs::read_to_string(&script).unwrap();
    let trick = "rm x \\u202etset ekam\\u2066\\u200b";
    let tool = "\"tool_name\":\"Bash\\u000averified   yes\"";
    let text = text.replace("make '$n'", trick);
    let text = text.replace("\"tool_name\":\"Bash\"", tool);
    fs::write(&script, text).unwrap();
    let id = world.detach(&["--agent", "asking", "--no-checks", "Build it"]);
    let mut events = world.follow(&["events", "-f", "--task", &id]);
    let shown = "rm x \\u{202e}tset ekam\\u{2066}\\u{200b}";
    events.until(shown);
    world
        .follow(&["events", "-f", "--task", &id])
        .until("asks 2 for Bash\u{23ce}verified   yes (");
    for args in [&["show", &id][..], &["list"], &["allow", &id]] {
        let done = world.dispatch(args);
        let told = format!("{}{}", done.out, done.err);
        assert!(told.contains(shown), "{args:?} {told}");
        assert!(told.contains("Bash\u{23ce}verified"), "{args:?} {told}");
        assert!(
            !told.contains(['\u{202e}', '\u{2066}', '\u{200b}']),
            "{args:?} {told}"
        );
    }
    for ask in ["1", "2"] {
        world
            .dispatch(&["deny", &id, ask])
            .exits(0)
            .says(&["Bash\u{23ce}verified"]);
    }
    world.dispatch(&["wait", &id]).exits(0);
    // A program gets it as it is.
    assert_eq!(world.show(&id)["asks"][0]["tool"], "Bash\nverified   yes");
}

/// What is said to a denial may hold what the agent was given: the log has it masked, and so has the
/// agent's own input.
#[test]
fn a_secret_in_a_reason_is_in_no_file() {
    const SECRET: &str = "sesame-4b1e7c";
    let world = world("");
    installed(&world);
    let config = world.home().join("dispatch.toml");
    let text = fs::read_to_string(&config).unwrap();
    let text = format!("[agents.asking.env]\nKEY = {{ from = \"E2E_KEY\" }}\n{text}");
    fs::write(&config, text).unwrap();
    let given = [("E2E_KEY", SECRET)];
    let args = [
        "run",
        "--agent",
        "asking",
        "--no-checks",
        "--detach",
        "--json",
        "Build it",
    ];
    let task = world.dispatch_with(&given, &args).exits(0).json();
    let id = task["id"].as_str().unwrap();
    world
        .follow(&["events", "-f", "--task", id])
        .until("asks 2 for Bash");
    let why = format!("not with {SECRET}");
    for ask in ["1", "2"] {
        world.dispatch(&["deny", id, ask, "--why", &why]).exits(0);
    }
    let task = world.dispatch(&["wait", id, "--json"]).exits(0).json();
    assert_eq!(task["asks"][0]["why"], "not with ***");
    world.shut_down();
    for file in files(&world.home()) {
        let bytes = fs::read(&file).unwrap();
        let held = String::from_utf8_lossy(&bytes).contains(SECRET);
        assert!(!held, "{} holds it", file.display());
    }
}

/// A hook is told what waits, and not of what was answered before it could be told.
#[test]
fn a_hook_is_told_of_what_waits() {
    let world = world("");
    let notices = world.path("notices");
    let config = world.home().join("dispatch.toml");
    let text = fs::read_to_string(&config).unwrap();
    let line = format!(
        "cat >> {}; echo >> {}",
        notices.display(),
        notices.display()
    );
    let hook = format!(
        "[notify.me]\nkind = \"command\"\non = [\"asked\", \"completed\"]\n\
         command = [\"sh\", \"-c\", {line:?}]\n"
    );
    fs::write(&config, format!("{hook}{text}")).unwrap();
    let id = asking(&world, &[]);
    for ask in ["1", "2"] {
        world.dispatch(&["allow", &id, ask]).exits(0);
    }
    world.dispatch(&["wait", &id]).exits(0);
    // The engine leaves when all has been told.
    world.dispatch(&["serve", "--until-idle"]);
    let told = fs::read_to_string(&notices).unwrap();
    let told: Vec<Value> = told
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(told.last().unwrap()["on"], "completed");
    for notice in &told[..told.len() - 1] {
        assert_eq!(notice["on"], "asked");
        assert!(
            notice["text"].as_str().unwrap().contains(": Bash {"),
            "{notice}"
        );
    }
}

/// Nobody is there: the run ends by itself all the same, in whatever way it was started.
#[test]
fn a_headless_run_never_hangs() {
    let world = world("[limits]\nask_wait_s = 1\n");
    installed(&world);
    let args = [
        "run",
        "--here",
        "--agent",
        "asking",
        "--no-checks",
        "--json",
        "Build it",
    ];
    let task = world.dispatch(&args).exits(0).json();
    schema::task(&task);
    for ask in task["asks"].as_array().unwrap() {
        assert_eq!(
            (&ask["state"], &ask["by"]),
            (&json!("denied"), &json!("deadline"))
        );
    }
}

#[test]
fn a_task_may_say_so_itself_and_a_repository_only_be_stricter() {
    let world = world("");
    installed(&world);
    let permissions = |args: &[&str]| {
        let all = [&["run", "--json", "--no-checks", "Build it"][..], args].concat();
        let task = world.dispatch(&all).exits(0).json();
        (task["permissions"].clone(), task["asks"].clone())
    };
    let asking = ["--agent", "asking"];
    let with = |word| [&asking[..], &["--permissions", word]].concat();
    assert_eq!(permissions(&with("allow")), (json!("allow"), json!([])));
    assert_eq!(permissions(&with("deny")), (json!("deny"), json!([])));
    fs::write(
        world.repo().join("dispatch.toml"),
        "[task]\npermissions = \"deny\"\n",
    )
    .unwrap();
    assert_eq!(permissions(&asking), (json!("deny"), json!([])));
    // Whoever dispatches has the last word.
    assert_eq!(permissions(&with("allow")), (json!("allow"), json!([])));
    fs::remove_file(world.repo().join("dispatch.toml")).unwrap();
    world
        .dispatch(&["run", "--permissions", "ask", "Build it"])
        .exits(2)
        .says(&[
            "agent scripted asks for none (plain)",
            "there are acp, asking, claude",
        ]);
    world
        .dispatch(&["run", "--permissions", "never", "Build it"])
        .exits(2);
}
