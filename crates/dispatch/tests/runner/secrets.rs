//! Values taken from a person's environment: asked for, handed on, and written nowhere.

use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::Path,
};

use serde_json::json;

use super::world::{TestWorld, files};

const SECRET: &str = "sesame-4b1e7c";
const AGENT: &str = "[agents.keyed]\ndriver = \"plain\"\nprogram = \"sh\"\n\
    args = [\"-c\", \"cat > /dev/null; echo my key is $KEY; test \\\"$KEY\\\" && echo yes > out.txt\"]\n\
    pool = \"default\"\nplacement = \"host\"\nenv = { KEY = { from = \"E2E_KEY\" } }\n";

fn world() -> TestWorld {
    TestWorld::with_config(AGENT)
}

#[test]
fn a_missing_secret_is_named() {
    let world = world();
    let done = world.dispatch(&["run", "--agent", "keyed", "x"]).exits(2);
    done.says(&["E2E_KEY", "hint: ", "optional = true"]);
    assert!(!world.home().join("data").exists());
}

#[test]
fn a_given_secret_is_in_no_file() {
    let world = world();
    let args = ["run", "--agent", "keyed", "--json", "x"];
    let done = world.dispatch_with(&[("E2E_KEY", SECRET)], &args).exits(0);
    assert_eq!(done.json()["state"], "completed");
    let pid = world.engine().unwrap().as_raw_pid();
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environ).contains(SECRET));
    world.shut_down();
    let found = files(&world.home());
    assert!(found.len() > 10, "{found:?}");
    for file in found {
        let bytes = fs::read(&file).unwrap();
        let held = String::from_utf8_lossy(&bytes).contains(SECRET);
        assert!(!held, "{} holds it", file.display());
    }
    assert!(!format!("{done:?}").contains(SECRET), "{done:?}");
}

#[test]
fn after_a_restart_a_queued_run_asks_and_any_verb_gives() {
    let world = world();
    world.dispatch(&["freeze"]).exits(0);
    let args = ["run", "--agent", "keyed", "--detach", "--json", "x"];
    let task = world
        .dispatch_with(&[("E2E_KEY", SECRET)], &args)
        .exits(0)
        .json();
    let id = task["id"].as_str().unwrap();
    world.kill_engine();
    world.dispatch(&["thaw"]).exits(0);
    let task = world.show(id);
    assert_eq!(task["state"], "queued");
    assert_eq!(task["reason"], "needs E2E_KEY from you");
    assert_eq!(
        world.http("GET", "/v1/needs", ""),
        Some((200, json!(["E2E_KEY"])))
    );
    // What it does not ask for is not given, and an empty value is none.
    world
        .dispatch_with(&[("E2E_KEY", ""), ("OTHER", "x")], &["thaw"])
        .exits(0);
    assert_eq!(world.show(id)["state"], "queued");
    world
        .dispatch_with(&[("E2E_KEY", SECRET)], &["wait", id])
        .exits(0);
    assert_eq!(world.http("GET", "/v1/needs", ""), Some((200, json!([]))));
}

/// A quote, a slash, a backslash, two lines and a letter that is not ASCII: all that is written in
/// more than one way.
const CANARY: &str = "canary/9f\"2c\\x-\u{f6}4b1e\nsecond-line-77aa";
/// What no reader may find: the whole of it, and each of its lines, as it is and as JSON has it.
const TRACES: [&str; 6] = [
    "canary/9",
    "canary/9f\"2c",
    "canary/9f\\\"2c",
    "canary\\/9f",
    "canary/9f\\\\\\\"2c",
    "second-line-77aa",
];
/// Prints what lies in a directory, each file by a write of its own; writes its secret into a file
/// of its workspace that a check prints; and waits, so that its keeper can be looked at.
const LOUD: &str = "for piece in $PIECES/*; do cat $piece; done; printf 'error %s\\n' \"$KEY\" >&2; \
    printf %s \"$KEY\" > taken.txt; cat > /dev/null; echo begun; read line < $GATE; \
    printf 'last words: %s\\n' \"$KEY\"";

/// The secret whole, in two, byte by byte, and as JSON has it once and twice.
fn pieces(into: &Path) {
    let mut pieces = vec![format!("whole {CANARY}\n").into_bytes()];
    let raw = CANARY.as_bytes();
    for cut in [3, 9, raw.len() - 2] {
        pieces.push([b"cut ", &raw[..cut]].concat());
        pieces.push([&raw[cut..], b"\n"].concat());
    }
    pieces.push(b"bytes ".to_vec());
    pieces.extend(raw.iter().map(|byte| vec![*byte]));
    let once = json!({ "k": CANARY }).to_string();
    let narrow = once.replace('\u{f6}', "\\u00f6");
    pieces.push(format!("\njson {once}\njson {narrow}\n").into_bytes());
    let twice = [json!(once).to_string(), json!(narrow).to_string()];
    pieces.push(format!("twice {}\ntwice {}\n", twice[0], twice[1]).into_bytes());
    pieces.push(format!("php {}\n", narrow.replace('/', "\\/")).into_bytes());
    pieces.push(format!("token ghp_{} end\n", "a1".repeat(18)).into_bytes());
    fs::create_dir(into).unwrap();
    for (n, piece) in pieces.iter().enumerate() {
        fs::write(into.join(format!("{n:03}")), piece).unwrap();
    }
}

fn holds(bytes: &[u8], what: &str) -> bool {
    bytes
        .windows(what.len())
        .any(|part| part == what.as_bytes())
}

#[track_caller]
fn is_clean(bytes: &[u8], what: &str) {
    let token = format!("ghp_{}", "a1".repeat(18));
    for trace in TRACES.into_iter().chain([token.as_str()]) {
        let shown = String::from_utf8_lossy(bytes);
        assert!(!holds(bytes, trace), "{what} shows {trace}: {shown}");
    }
}

/// The argv of every process whose argv names a directory below this one.
fn argvs(below: &Path) -> Vec<Vec<u8>> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .filter(|argv| holds(argv, below.to_str().unwrap()))
        .collect()
}

#[test]
fn canary_secret() {
    let world = TestWorld::with_config(&format!(
        "[agents.loud]\ndriver = \"plain\"\nprogram = \"sh\"\nargs = [\"-c\", {LOUD:?}]\n\
         pool = \"default\"\nplacement = \"host\"\n\
         [checks.leak]\nrank = 1\nmarkers = [{{ file = \"README.md\" }}]\nfiles = []\n\
         steps = [{{ name = \"cat\", argv = [\"cat\", \"taken.txt\"] }}]\n"
    ));
    let (gate, printed) = (world.path("gate"), world.path("pieces"));
    pieces(&printed);
    let config = world.home().join("dispatch.toml");
    let text = fs::read_to_string(&config).unwrap();
    let env = format!(
        "[agents.loud.env]\nKEY = {{ from = \"E2E_KEY\" }}\nGATE = {gate:?}\nPIECES = {printed:?}\n{text}"
    );
    fs::write(&config, env).unwrap();
    // Its title would end within the secret.
    let task = format!("{}Keep {CANARY} for yourself", "long ".repeat(11));
    let given = [("E2E_KEY", CANARY)];
    let args = [
        "run", "--agent", "loud", "--check", "leak", "--detach", "--json", &task,
    ];
    let started = world.dispatch_with(&given, &args).exits(0);
    is_clean(started.out.as_bytes(), "run --json");
    let id = started.json()["id"].as_str().unwrap().to_owned();
    world.follow(&["logs", "-f", &id]).until("begun");
    let keepers = argvs(&world.home());
    assert!(!keepers.is_empty());
    for argv in keepers {
        is_clean(&argv, "argv");
    }
    world.open_gate();
    let waited = world.dispatch(&["wait", &id]);
    assert_eq!(world.show(&id)["state"], "completed", "{waited:?}");

    for args in [
        &["logs", &id][..],
        &["logs", "--err", &id],
        &["logs", "--check", "cat", &id],
        &["events"],
        &["events", "--json"],
        &["show", "--json", &id],
        &["show", &id],
        &["list"],
        &["list", "--json"],
    ] {
        let done = world.dispatch(args).exits(0);
        is_clean(done.out.as_bytes(), &args.join(" "));
        is_clean(done.err.as_bytes(), &args.join(" "));
    }
    let logs = world.dispatch(&["logs", &id]).out;
    for line in [
        "whole ***",
        "cut ***",
        "bytes ***",
        "token *** end",
        "last words: ***",
    ] {
        assert!(
            logs.lines().any(|shown| shown == line),
            "no {line:?} in {logs}"
        );
    }
    assert_eq!(logs.matches("json {\"k\":\"***\"}").count(), 2, "{logs}");
    assert_eq!(
        logs.matches("twice \"{\\\"k\\\":\\\"***\\\"}\"").count(),
        2,
        "{logs}"
    );
    assert_eq!(world.dispatch(&["logs", "--err", &id]).out, "error ***\n");
    assert_eq!(world.dispatch(&["logs", "--check", "cat", &id]).out, "***");

    world.shut_down();
    let mut seen = 0;
    for file in files(&world.home()) {
        let below = file.strip_prefix(world.home()).unwrap();
        // Where the agent itself wrote it: its checkout. What was kept of that is in the vault, packed.
        if below.starts_with("data/workspaces") || below == Path::new("dispatch.toml") {
            continue;
        }
        seen += 1;
        is_clean(&fs::read(&file).unwrap(), &file.display().to_string());
        is_clean(file.as_os_str().as_bytes(), "a path");
    }
    assert!(seen > 10, "{seen} files");
}

#[test]
fn a_secret_in_the_name_of_a_repository_is_refused() {
    let world = world();
    let token = format!("https://x:ghp_{}@host.invalid/r.git", "a1".repeat(18));
    let args = ["run", "--agent", "keyed", "--repo", &token, "x"];
    let done = world.dispatch_with(&[("E2E_KEY", SECRET)], &args);
    assert_ne!(done.code, Some(0));
    let done = done.says(&["holds a secret"]);
    assert!(!done.err.contains("ghp_"), "{done:?}");
}

fn sourced(value: &str) -> TestWorld {
    TestWorld::with_config(&AGENT.replace("{ from = \"E2E_KEY\" }", value))
}

/// From a file: refused while others can read it, then taken, and again after a restart.
#[test]
fn a_secret_comes_from_a_file() {
    let world = sourced("{ file = \"KEYFILE\" }");
    let key = world.path("key");
    let config = world.home().join("dispatch.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("KEYFILE", key.to_str().unwrap())).unwrap();
    fs::write(&key, format!("{SECRET}\n")).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let refused = world.dispatch(&["run", "--agent", "keyed", "x"]).exits(2);
    let refused = refused.says(&["mode 0644", "hint: `chmod 600 "]);
    assert!(!refused.err.contains(SECRET));

    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    world.dispatch(&["freeze"]).exits(0);
    let args = ["run", "--agent", "keyed", "--detach", "--json", "x"];
    let task = world.dispatch(&args).exits(0).json();
    let id = task["id"].as_str().unwrap();
    world.kill_engine();
    fs::rename(&key, world.path("away")).unwrap();
    let thawed = world.dispatch(&["thaw"]).exits(0);
    thawed.says(&["keyed/KEY"]);
    assert_eq!(world.show(id)["reason"], "needs keyed/KEY from you");
    fs::rename(world.path("away"), &key).unwrap();
    world.dispatch(&["wait", id]).exits(0);
    assert_eq!(world.dispatch(&["logs", id]).out, "my key is ***\n");
}

#[test]
fn a_secret_comes_from_a_command() {
    let world = sourced("{ command = [\"printf\", \"%s\\\\n\", \"sesame-4b1e7c\"] }");
    let args = ["run", "--agent", "keyed", "--json", "x"];
    let done = world.dispatch(&args).exits(0).json();
    let id = done["id"].as_str().unwrap();
    assert_eq!(world.dispatch(&["logs", id]).out, "my key is ***\n");
    let world = sourced("{ command = [\"sh\", \"-c\", \"echo half-a-secret; exit 3\"] }");
    let refused = world.dispatch(&args).exits(2);
    let refused = refused.says(&[
        "run sh for keyed/KEY",
        "exit status: 3",
        "hint: run sh yourself",
    ]);
    assert!(!format!("{refused:?}").contains("half-a-secret"));
}
