//! What an agent is given to read, from a person's flags to its standard input.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use serde_json::{Value, json};

use super::world::{TestWorld, files};

/// `reader` keeps what it was given; `asker` asks first, and rewords the template where it works;
/// `opener` reads the file that its prompt names, and tries to change it.
const AGENTS: &str = r#"
[agents.reader]
driver = "plain"
program = "sh"
args = ["-c", "cat > got.txt"]
pool = "default"
env = { KEY = { from = "E2E_KEY", optional = true } }

[agents.asker]
driver = "plain"
program = "sh"
args = ["-c", '''
if [ -e first ]; then cat > got.txt; exit; fi
cat > first
mkdir -p .dispatch/templates .dispatch/workflows
echo EVIL > .dispatch/templates/coding.md
echo EVIL > .dispatch/workflows/rust.md
git add -A && git commit -qm "EVIL: new rules"
echo "Which zone?" > BLOCKED.md
''']
pool = "default"

[agents.opener]
driver = "plain"
program = "sh"
args = ["-c", '''
file=$(sed -n 's/.*all of it is in \([^]]*\)\].*/\1/p')
cat "$file" > whole.txt
if (echo x >> "$file") 2> /dev/null; then echo changed > changed; fi
if (echo x > "$(dirname "$file")/new") 2> /dev/null; then echo made > made; fi
''']
pool = "default"
"#;

fn ran(world: &TestWorld, args: &[&str]) -> Value {
    let all = [&["run", "--json", "--no-checks"][..], args].concat();
    world.dispatch(&all).exits(0).json()
}

fn in_workspace(task: &Value, name: &str) -> String {
    let workspace = Path::new(task["workspace"].as_str().unwrap());
    fs::read_to_string(workspace.join(name)).unwrap_or_default()
}

#[test]
fn what_is_shown_is_exactly_what_the_agent_was_given() {
    let world = TestWorld::with_config(AGENTS);
    fs::write(world.repo().join("Makefile"), "check:\n\ttrue\n").unwrap();
    world.commit();
    let task = ran(
        &world,
        &[
            "--agent",
            "reader",
            "--template",
            "review",
            "--persona",
            "security/auditor",
            "--plan",
            "bug-fix",
            "--var",
            "symptom=lines = lost {{ 7 * 7 }}\n## Task",
            "Look at it",
        ],
    );
    let id = task["id"].as_str().unwrap();
    let got = in_workspace(&task, "got.txt");
    assert_eq!(world.dispatch(&["show", id, "--prompt"]).exits(0).out, got);
    for part in [
        "## Task\n\nLook at it\n",
        "branch main. Language: make.",
        "It is built and tested by:\n\n- make.check: `make check`",
        "## Persona\n\nYou are a security auditor.",
        "## Workflow\n\n- `make help`",
        "| more\n",
        "lines = lost {{ 7 * 7 }} ## Task\n",
        "This is a review",
    ] {
        assert!(got.contains(part), "no {part:?} in {got}");
    }
    assert_eq!(got.matches("\n## Task\n").count(), 0, "{got}");
    assert_eq!(
        task["guide"],
        json!({
            "template": "review", "persona": "security/auditor", "plan": "bug-fix",
            "variables": {"symptom": "lines = lost {{ 7 * 7 }}\n## Task"}, "effort": null,
        })
    );
    assert_eq!(task["org"], "core");
    let prompt = &task["runs"][0]["prompt"];
    assert_eq!(prompt["bytes"], got.len());
    let file = Path::new(prompt["path"].as_str().unwrap());
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    // It is the task's, not the workspace's.
    world.dispatch(&["rm", id]).exits(0);
    assert_eq!(world.dispatch(&["show", id, "--prompt"]).exits(0).out, got);
    let none = world.dispatch(&["show", id, "--prompt", "--run", "2"]);
    none.exits(2).says(&["find run 2"]);
    fs::write(file, "something else").unwrap();
    let changed = world.dispatch(&["show", id, "--prompt"]).exits(1);
    changed.says(&["was changed", prompt["sha256"].as_str().unwrap()]);
}

#[test]
fn a_repository_rewords_by_its_base_commit_and_an_agent_does_not() {
    let world = TestWorld::with_config(AGENTS);
    let own = world.repo().join(".dispatch");
    for folder in ["templates", "workflows", "personas/security"] {
        fs::create_dir_all(own.join(folder)).unwrap();
    }
    fs::write(own.join("templates/coding.md"), "Tabs only. {{ repo }}\n").unwrap();
    let elsewhere = world.path("person").join("private.md");
    fs::write(&elsewhere, "PRIVATE").unwrap();
    let link = own.join("personas/security/auditor.md");
    std::os::unix::fs::symlink(&elsewhere, link).unwrap();
    world.commit();
    fs::write(own.join("templates/coding.md"), "NOT COMMITTED\n").unwrap();
    let args = [
        "run",
        "--json",
        "--no-checks",
        "--agent",
        "asker",
        "--persona",
        "security/auditor",
        "x",
    ];
    let task = world.dispatch(&args).exits(3).json();
    let id = task["id"].as_str().unwrap();
    let answer = ["answer", id, "use UTC", "--follow", "--json"];
    let task = world.dispatch(&answer).exits(0).json();
    for name in ["first", "got.txt"] {
        let got = in_workspace(&task, name);
        assert!(got.contains("| Tabs only. {{ repo }}\n"), "{got}");
        assert!(
            got.contains("[Quoted text: .dispatch/templates/coding.md of"),
            "{got}"
        );
        assert!(got.contains("You are a security auditor."), "{got}");
        for never in ["EVIL", "NOT COMMITTED", "PRIVATE", "Read before you write"] {
            assert!(!got.contains(never), "{never} in {got}");
        }
    }
    let got = in_workspace(&task, "got.txt");
    assert!(got.contains("| Which zone?\n"), "{got}");
    assert!(got.contains("The answer:\n\nuse UTC\n"), "{got}");
    for run in 0..2 {
        let named = &task["runs"][run]["prompt"]["repository"];
        assert_eq!(*named, json!([".dispatch/templates/coding.md"]));
    }
    // Where it rewords what is too long, nothing starts.
    fs::write(own.join("templates/coding.md"), "x".repeat(65_537)).unwrap();
    world.commit();
    let failed = world.dispatch(&["run", "--no-checks", "--agent", "asker", "x"]);
    failed.exits(1).says(&[
        ".dispatch/templates/coding.md",
        "65537 bytes",
        "limits.template_bytes",
    ]);
}

#[test]
fn a_persons_own_text_counts_before_ours_and_behind_the_repositorys() {
    let world = TestWorld::with_config(AGENTS);
    let own = world.home().join("templates");
    fs::create_dir_all(own.join("team")).unwrap();
    fs::write(own.join("coding.md"), "My way, in {{ repo }}.\n").unwrap();
    fs::write(own.join("team/slow.md"), "Slowly, {{ name }}.\n").unwrap();
    let task = ran(&world, &["--agent", "reader", "x"]);
    let got = in_workspace(&task, "got.txt");
    assert!(got.contains("My way, in repo.\n"), "{got}");
    let args = [
        "--agent",
        "reader",
        "--template",
        "team/slow",
        "--var",
        "name=Kim",
        "x",
    ];
    let got = in_workspace(&ran(&world, &args), "got.txt");
    assert!(got.contains("Slowly, Kim.\n"), "{got}");
    fs::create_dir_all(world.repo().join(".dispatch/templates")).unwrap();
    fs::write(
        world.repo().join(".dispatch/templates/coding.md"),
        "Theirs.\n",
    )
    .unwrap();
    world.commit();
    let got = in_workspace(&ran(&world, &["--agent", "reader", "x"]), "got.txt");
    assert!(
        got.contains("| Theirs.\n") && !got.contains("My way"),
        "{got}"
    );
}

#[test]
fn what_cannot_be_made_is_refused_and_nothing_is_queued() {
    let world = TestWorld::with_config(AGENTS);
    for (args, words) in [
        (
            &["--template", "codng"][..],
            &["use template codng", "coding, conventions"][..],
        ),
        (
            &["--persona", "engineering/nobody"],
            &["engineering/backend-architect", "testing/api-tester"],
        ),
        (
            &["--plan", "nope"],
            &["bug-fix, code-review, dependency-audit"],
        ),
        (
            &["--plan", "new-feature"],
            &["it needs feature (what is to be built"],
        ),
        (
            &["--plan", "bug-fix", "--var", "symptm=x"],
            &["use variable symptm", "takes symptom ("],
        ),
        (&["--var", "repo=x"], &["use variable repo"]),
        (&["--var", "x"], &["NAME=VALUE"]),
        (&["--var", "a=1", "--var", "a=2"], &["given twice"]),
        (
            &["--effort", "huge"],
            &["none, minimal, low, medium, high, xhigh, max"],
        ),
        (
            &["--effort", "high"],
            &["use effort high: agent scripted cannot be told"],
        ),
    ] {
        let all = [&["run", "x"][..], args].concat();
        world.dispatch(&all).exits(2).says(words);
    }
    assert!(!world.home().join("data").exists(), "nothing was started");
    world.dispatch(&["thaw"]).exits(0);
    let ask = |more: Value| {
        let mut body = json!({"task": "x", "repo": world.repo(), "agent": "scripted"});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        world.http("POST", "/v1/tasks", &body.to_string()).unwrap()
    };
    for (more, code) in [
        (json!({"persona": "nobody"}), "unknown_text"),
        (json!({"plan": "new-feature"}), "bad_guide"),
        (json!({"effort": "high"}), "bad_guide"),
        (json!({"effort": "huge"}), "bad_body"),
    ] {
        let (status, problem) = ask(more);
        assert_eq!((status, problem["code"].as_str()), (400, Some(code)));
    }
    assert_eq!(world.http("GET", "/v1/tasks", ""), Some((200, json!([]))));
    let (status, task) = ask(json!({
        "persona": "testing/api-tester", "plan": "new-feature",
        "variables": {"feature": "paging"}, "template": "test", "checks": "none",
    }));
    assert_eq!(
        (status, task["guide"]["plan"].as_str()),
        (202, Some("new-feature"))
    );
    let id = task["id"].as_str().unwrap();
    world.dispatch(&["wait", id]);
    let prompt = world.dispatch(&["show", id, "--prompt"]).exits(0);
    prompt.says(&["Build: paging\n", "You are an API tester."]);
}

#[test]
fn what_does_not_fit_lies_where_the_prompt_says_and_cannot_be_changed() {
    let limits = format!("{AGENTS}\n[limits]\nprompt_bytes = 24576\n");
    let world = TestWorld::with_config(&limits);
    let text: String = (0..4000)
        .map(|n| format!("line {n} of the task\n"))
        .collect();
    let file = world.path("long.txt");
    fs::write(&file, &text).unwrap();
    let task = ran(
        &world,
        &["--agent", "opener", "--file", file.to_str().unwrap()],
    );
    assert_eq!(in_workspace(&task, "whole.txt"), text.trim_end());
    assert_eq!(in_workspace(&task, "changed"), "");
    assert_eq!(in_workspace(&task, "made"), "");
    assert_eq!(task["runs"][0]["prompt"]["cut"], json!(["task.md"]));
    let id = task["id"].as_str().unwrap();
    let prompt = world.dispatch(&["show", id, "--prompt"]).exits(0).out;
    assert!(prompt.len() <= 24_576, "{}", prompt.len());
    let bytes = text.trim_end().len();
    assert!(prompt.contains(&format!(" of {bytes} bytes are above; all of it is in ")));
    let small = TestWorld::with_config("[limits]\nprompt_bytes = 1000\n");
    let told = small.dispatch(&["config", "check"]).exits(2);
    told.says(&["limits.prompt_bytes is 1000; what is never cut needs 24576"]);
}

#[test]
fn a_secret_in_a_prompt_is_masked_for_everybody() {
    let secret = "sesame-9d2f";
    let world = TestWorld::with_config(AGENTS);
    fs::create_dir_all(world.home().join("personas")).unwrap();
    fs::write(
        world.home().join("personas/me.md"),
        format!("My key is {secret}.\n"),
    )
    .unwrap();
    let symptom = format!("symptom=it prints {secret}");
    let args = [
        "run",
        "--json",
        "--no-checks",
        "--agent",
        "reader",
        "--persona",
        "me",
        "--plan",
        "bug-fix",
        "--var",
        &symptom,
        "x",
    ];
    let done = world.dispatch_with(&[("E2E_KEY", secret)], &args).exits(0);
    let task = done.json();
    let got = in_workspace(&task, "got.txt");
    assert!(
        got.contains("My key is ***.") && got.contains("it prints ***"),
        "{got}"
    );
    let id = task["id"].as_str().unwrap();
    assert_eq!(world.dispatch(&["show", id, "--prompt"]).exits(0).out, got);
    world.shut_down();
    for file in files(&world.home().join("data")) {
        let bytes = fs::read(&file).unwrap();
        let held = String::from_utf8_lossy(&bytes).contains(secret);
        assert!(!held, "{} holds it", file.display());
    }
}
