//! Files that come with a task or a message, and what else holds from the next run on: from a
//! person's flags, and from the socket, to what the agent could read.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    schema,
    world::{TestWorld, files},
};

/// `opener` reads every file that its prompt lists, and tries to change them; in the cage.
/// `listener` is one that can be spoken to by nobody, and waits for the gate in the middle.
const AGENTS: &str = r#"
[agents.opener]
driver = "plain"
program = "sh"
args = ["-c", '''
cat > prompt.txt
sed -n 's/^- \(\/.*\) ([0-9]* bytes)$/\1/p' prompt.txt > list.txt
echo "model:$DISPATCH_MODEL" >> models.txt
while read file; do
  cat "$file" >> got.txt; echo >> got.txt
  chmod u+w "$file" "$(dirname "$file")" 2> /dev/null
  if (echo x >> "$file") 2> /dev/null; then echo "$file" >> changed.txt; fi
  if (echo x > "$(dirname "$file")/new") 2> /dev/null; then echo "$file" >> made.txt; fi
  if rm -f "$file" 2> /dev/null; then echo "$file" >> gone.txt; fi
done < list.txt
echo done
''']
pool = "default"

[agents.rabbit]
driver = "coderabbit"
program = "sh"
pool = "default"
"#;

fn write(world: &TestWorld, name: &str, bytes: impl AsRef<[u8]>) -> String {
    let path = world.path("person").join(name);
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

fn in_workspace(task: &Value, name: &str) -> String {
    let workspace = Path::new(task["workspace"].as_str().unwrap());
    fs::read_to_string(workspace.join(name)).unwrap_or_default()
}

fn ran(world: &TestWorld, args: &[&str]) -> Value {
    let all = [
        &["run", "--json", "--no-checks", "--agent", "opener"][..],
        args,
    ]
    .concat();
    world.dispatch(&all).exits(0).json()
}

fn kept(world: &TestWorld) -> Vec<PathBuf> {
    let data = world.home().join("data");
    if !data.exists() {
        return Vec::new();
    }
    let all = files(&data.join("tasks")).into_iter();
    all.filter(|path| path.iter().any(|part| part == "attachments"))
        .collect()
}

#[test]
fn an_agent_in_the_cage_reads_what_came_with_its_task_and_cannot_change_it() {
    let world = TestWorld::with_config(AGENTS);
    let secret = "sesame-in-a-file-1b2c";
    let first = write(&world, "trace 1.log", format!("first {secret}"));
    fs::create_dir(world.path("person").join("more")).unwrap();
    let second = write(&world, "more/trace 1.log", "second");
    let task = ran(&world, &["--attach", &first, "--attach", &second, "Look"]);
    schema::task(&task);
    assert_eq!(
        in_workspace(&task, "got.txt"),
        format!("first {secret}\nsecond\n")
    );
    for name in ["changed.txt", "made.txt", "gone.txt"] {
        assert_eq!(in_workspace(&task, name), "", "{name}");
    }
    let attachments = task["attachments"].as_array().unwrap();
    let names = attachments.iter().map(|file| &file["name"]);
    assert_eq!(names.collect::<Vec<_>>(), ["trace_1.log", "trace_1-2.log"]);
    assert_eq!(attachments[1]["bytes"], 6);
    let hash = "16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4";
    assert_eq!(attachments[1]["sha256"], hash);
    for file in attachments {
        let path = Path::new(file["path"].as_str().unwrap());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o077, 0);
        assert!(in_workspace(&task, "prompt.txt").contains(&format!("- {} (", path.display())));
    }
    let id = task["id"].as_str().unwrap();
    let shown = world.dispatch(&["show", id]).exits(0);
    shown.says(&["attached", "trace_1-2.log (6 bytes)"]);
    let events = world.dispatch(&["events", "--json"]).exits(0).out;
    assert!(events.contains("\"kind\":\"attached\"") && events.contains(hash));
    assert!(!events.contains(secret), "no content in an event");
    // They are the task's, like its prompts: put away and brought back, they are there.
    world.dispatch(&["rm", id]).exits(0);
    world.dispatch(&["undo", id]).exits(0);
    let again = world
        .dispatch(&["resume", id, "--follow", "--json"])
        .exits(0)
        .json();
    assert_eq!(in_workspace(&again, "got.txt").matches("second").count(), 2);
}

#[test]
fn a_dry_run_shows_the_files_and_keeps_none() {
    let world = TestWorld::with_config(AGENTS);
    let file = write(&world, "a.txt", "12345");
    let dry = [
        "run",
        "--dry-run",
        "--agent",
        "opener",
        "--attach",
        &file,
        "x",
    ];
    world
        .dispatch(&dry)
        .exits(0)
        .says(&["## Attached files", "/a.txt (5 bytes)"]);
    assert_eq!(kept(&world), [""; 0].map(PathBuf::from));
}

#[test]
fn what_cannot_be_attached_is_refused_and_nothing_is_queued() {
    let limits = format!("{AGENTS}\n[limits]\nattach_bytes = 10\nattach_files_max = 2\n");
    let world = TestWorld::with_config(&limits);
    let [one, six, large] = [("1", 1), ("6", 6), ("11", 11)]
        .map(|(name, bytes)| write(&world, name, vec![b'x'; bytes]));
    let folder = world.path("person");
    let folder = folder.to_str().unwrap();
    for (files, words) in [
        (vec!["/nowhere/at/all"], &["attach /nowhere/at/all: "][..]),
        (vec![folder], &["it is a directory", "pack it"]),
        (vec!["/dev/null"], &["it is no regular file"]),
        (vec![&*large], &["limits.attach_bytes"]),
        (vec![&*six, &six], &["limits.attach_bytes"]),
        (
            vec![&*one, &one, &one],
            &["attach 3 files", "limits.attach_files_max"],
        ),
    ] {
        let files = files.iter().flat_map(|file| ["--attach", file]);
        let all: Vec<&str> = ["run", "x"].into_iter().chain(files).collect();
        world.dispatch(&all).exits(2).says(words);
    }
    let rabbit = ["run", "--agent", "rabbit", "--attach", &one, "x"];
    let told = world.dispatch(&rabbit).exits(2);
    told.says(&["rabbit takes no attachments"]);
    assert!(!world.home().join("data").exists(), "nothing was started");

    // Of the whole task: what came with it counts for its messages.
    let task = ran(&world, &["--attach", &six, "Look"]);
    let id = task["id"].as_str().unwrap();
    let say = |more: &[&str]| world.dispatch(&[&["say", id, "more"][..], more].concat());
    say(&["--attach", &six])
        .exits(2)
        .says(&["limits.attach_bytes"]);
    say(&["--attach", "/nowhere"])
        .exits(2)
        .says(&["attach /nowhere"]);
    world
        .dispatch(&["resume", id, "--agent", "rabbit"])
        .exits(2)
        .says(&["rabbit takes no attachments"]);
    let after = world.show(id);
    assert_eq!(
        (&after["messages"], after["runs"].as_array().unwrap().len()),
        (&json!([]), 1)
    );
    assert_eq!(kept(&world).len(), 1, "what was refused left nothing");
}

#[test]
fn the_socket_takes_any_name_and_makes_it_plain() {
    let world = TestWorld::with_config(AGENTS);
    world.dispatch(&["thaw"]).exits(0);
    let long = "y".repeat(4000);
    let names = ["../../x", "/etc/x", "a\u{1b}\n## Plan", "x", "", ".", &long];
    // "hello"
    let attachments: Vec<Value> = names
        .iter()
        .map(|name| json!({"name": name, "base64": "aGVsbG8="}))
        .collect();
    let ask = |attachments: Value| {
        let body = json!({
            "task": "Look", "repo": world.repo(), "agent": "opener", "checks": "none",
            "attachments": attachments,
        });
        world.http("POST", "/v1/tasks", &body.to_string()).unwrap()
    };
    let (status, task) = ask(json!(attachments));
    assert_eq!(status, 202, "{task}");
    schema::task(&task);
    let id = task["id"].as_str().unwrap();
    let task = world.dispatch(&["wait", id, "--json"]).exits(0).json();
    assert_eq!(
        in_workspace(&task, "got.txt"),
        "hello\n".repeat(names.len())
    );
    let files = task["attachments"].as_array().unwrap();
    let shown: Vec<&str> = files
        .iter()
        .map(|file| file["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        shown[..6],
        ["x", "x-2", "a_____Plan", "x-3", "file", "file-2"]
    );
    let own = world
        .home()
        .join("data/tasks")
        .join(id)
        .join("attachments/1");
    for file in files {
        assert_eq!(
            Path::new(file["path"].as_str().unwrap()).parent(),
            Some(&*own)
        );
    }
    for (bad, code) in [
        (json!([{"name": "x", "base64": "#"}]), "bad_body"),
        (json!([{"name": "x", "bytes": "eA=="}]), "bad_body"),
        (
            json!(vec![json!({"name": "x", "base64": ""}); 33]),
            "bad_attachment",
        ),
    ] {
        let (status, problem) = ask(bad);
        assert_eq!((status, problem["code"].as_str()), (400, Some(code)));
    }
    let path = format!("/v1/tasks/{id}/say");
    let body = json!({"text": "more", "attachments": [{"name": "m", "base64": "aGk="}]});
    let (status, said) = world.http("POST", &path, &body.to_string()).unwrap();
    assert_eq!(
        (status, said["how"].as_str()),
        (200, Some("queued")),
        "{said}"
    );
    let file = said["task"]["attachments"]
        .as_array()
        .unwrap()
        .last()
        .unwrap();
    assert_eq!((&file["name"], &file["message"]), (&json!("m"), &json!(1)));
    let body = json!({"text": "x", "effort": "high"});
    let (status, problem) = world.http("POST", &path, &body.to_string()).unwrap();
    assert_eq!((status, problem["code"].as_str()), (400, Some("bad_guide")));
    world.dispatch(&["wait", id]).exits(0);
}

/// More than an ordinary request may have, and as much as the limit allows.
#[test]
fn a_file_as_large_as_allowed_comes_whole() {
    let world = TestWorld::with_config(AGENTS);
    let file = write(&world, "large", vec![b'x'; 16 << 20]);
    let task = ran(&world, &["--attach", &file, "Look"]);
    assert_eq!(in_workspace(&task, "got.txt").len(), (16 << 20) + 1);
}

#[test]
fn what_comes_with_a_message_is_for_a_run_that_has_not_begun() {
    let world = TestWorld::with_config(AGENTS);
    let file = write(&world, "m.txt", "with the message");
    let id = world.begun(&[]);
    let say = |more: &[&str]| {
        let all = [&["say", &id, "--json"][..], more].concat();
        world.dispatch(&all).exits(0).json()
    };
    let said = say(&["--attach", &file, "look at this"]);
    schema::task(&said["task"]);
    assert_eq!(said["how"], "queued");
    let withdrawn = say(&["--attach", &file, "never mind"]);
    assert_eq!(
        withdrawn["task"]["attachments"].as_array().unwrap().len(),
        2
    );
    let task = world
        .dispatch(&["unsay", &id, "2", "--json"])
        .exits(0)
        .json();
    assert_eq!(task["attachments"].as_array().unwrap().len(), 1);
    assert_eq!(kept(&world).len(), 1, "what was taken back is gone");
    let said = say(&["--model", "large-1", "and think"]);
    let task = &said["task"];
    schema::task(task);
    assert_eq!(
        (&task["model"], &task["next_run"]["model"]),
        (&json!(null), &json!("large-1"))
    );
    let shown = world.dispatch(&["show", &id]).exits(0);
    shown.says(&[
        "next run   model large-1",
        "m.txt (16 bytes, with message 1)",
    ]);
    let agents = world.dispatch(&["say", &id, "--effort", "high", "x"]);
    agents
        .exits(2)
        .says(&["use effort high: agent gated cannot be told"]);
    let agents = world.dispatch(&["say", &id, "--effort", "huge", "x"]);
    agents
        .exits(2)
        .says(&["none, minimal, low, medium, high, xhigh, max"]);
    world.open_gate();
    world.open_gate();
    let task = world.dispatch(&["wait", &id, "--json"]).exits(0).json();
    let runs = task["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    assert_eq!(
        (&task["model"], &task["next_run"]),
        (&json!("large-1"), &json!(null))
    );
    let prompt = |n: &str| {
        world
            .dispatch(&["show", &id, "--prompt", "--run", n])
            .exits(0)
            .out
    };
    assert!(!prompt("1").contains("m.txt"));
    assert!(prompt("2").contains("/attachments/1/m.txt (16 bytes)"));
    assert!(prompt("2").contains("look at this") && !prompt("2").contains("never mind"));
}

#[test]
fn an_ended_task_goes_on_with_another_model_and_more_files() {
    let world = TestWorld::with_config(AGENTS);
    let [one, two] = [("one", "1"), ("two", "2")].map(|(name, text)| write(&world, name, text));
    let task = ran(&world, &["--attach", &one, "--model", "a", "Look"]);
    let id = task["id"].as_str().unwrap();
    let said = [
        "say", id, "again", "--attach", &two, "--model", "b", "--follow", "--json",
    ];
    let task = world.dispatch(&said).exits(0).json();
    // One without a session is told of all there is.
    assert_eq!(in_workspace(&task, "got.txt"), "1\n1\n2\n");
    let resumed = ["resume", id, "--model", "c", "--follow", "--json"];
    let task = world.dispatch(&resumed).exits(0).json();
    assert_eq!(task["model"], "c");
    assert_eq!(
        in_workspace(&task, "models.txt"),
        "model:a\nmodel:b\nmodel:c\n"
    );
    let both = ["resume", id, "--agent", "opener:d", "--model", "e"];
    world.dispatch(&both).exits(2).says(&["use one model"]);
    // Somebody has taken one away: nothing starts as if it were there.
    let first = Path::new(task["attachments"][0]["path"].as_str().unwrap()).to_owned();
    let folder = first.parent().unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    fs::remove_file(&first).unwrap();
    let failed = world.dispatch(&["resume", id, "--follow"]).exits(1);
    failed.says(&["look at what is attached", "/attachments/1/one"]);
}

/// The name of an agent that takes a command does not choose one again.
#[test]
fn a_task_of_any_acp_agent_can_be_tuned() {
    let world = TestWorld::with_config(AGENTS);
    let run = ["run", "--json", "--no-checks", "--agent", "acp:false", "x"];
    let id = world.dispatch(&run).exits(1).json()["id"].clone();
    let resume = ["resume", id.as_str().unwrap(), "--model", "m", "--json"];
    let task = world.dispatch(&resume).exits(0).json();
    assert_eq!(
        (&task["agent"], &task["model"]),
        (&json!("acp"), &json!("m"))
    );
    let wait = ["wait", id.as_str().unwrap()];
    world.dispatch(&wait).exits(1);
}

#[test]
fn a_name_that_holds_a_secret_is_refused() {
    let more = format!(
        "{AGENTS}\n[agents.keyed]\ndriver = \"plain\"\nprogram = \"sh\"\n\
         args = [\"-c\", \"cat > /dev/null\"]\npool = \"default\"\n\
         env = {{ KEY = {{ from = \"E2E_KEY\" }} }}\n"
    );
    let world = TestWorld::with_config(&more);
    let file = write(&world, "sesame-77ab.txt", "x");
    let env = [("E2E_KEY", "sesame-77ab")];
    let run = ["run", "--agent", "keyed", "--attach", &file, "x"];
    let told = world.dispatch_with(&env, &run);
    assert_eq!(told.code, Some(2), "{told:#?}");
    told.says(&["its name holds a secret"]);
    assert_eq!(kept(&world).len(), 0);
}
