//! What a task starts from: branches, pull requests, tags, and names of repositories.
//! Must not need a forge: a repository with a forge's references is one.

use std::fs;

use serde_json::{Value, json};

use super::{schema, world::TestWorld};

const WRITE: &str = "Do it\n> write out.txt hi";

/// A repository whose pull request 7 is one commit beyond the tag `v1`, which is not on `main`.
fn forge(more: &str) -> (TestWorld, String) {
    let world = TestWorld::with_config(more);
    let main = world.git(&["rev-parse", "HEAD"]);
    fs::write(world.repo().join("side.txt"), "side\n").unwrap();
    world.commit();
    world.git(&["branch", "side"]);
    world.git(&["tag", "-a", "-m", "one", "v1"]);
    fs::write(world.repo().join("pull.txt"), "pull\n").unwrap();
    world.commit();
    world.git(&["update-ref", "refs/pull/7/head", "HEAD"]);
    world.git(&["reset", "-q", "--hard", &main]);
    (world, main)
}

fn run(world: &TestWorld, args: &[&str]) -> Value {
    let all = [&["run", "--json"][..], args, &[WRITE]].concat();
    let task = world.dispatch(&all).exits(0).json();
    schema::task(&task);
    task
}

#[test]
fn a_task_starts_from_a_branch_a_pull_request_or_a_tag() {
    let (world, main) = forge("");
    let commit = |name: &str| world.git(&["rev-parse", &format!("{name}^{{commit}}")]);
    for (args, base, from, name) in [
        (&["--org", "o"][..], main, "head", None),
        (
            &["--branch", "side"],
            commit("side"),
            "branch side",
            Some("core/repo/side"),
        ),
        (
            &["--pr", "7"],
            commit("refs/pull/7/head"),
            "pr 7",
            Some("core/repo/pr-7"),
        ),
        (
            &["--tag", "v1"],
            commit("v1"),
            "tag v1",
            Some("core/repo/v1"),
        ),
    ] {
        let task = run(&world, args);
        assert_eq!((&task["base"], &task["from"]), (&json!(base), &json!(from)));
        let workspace = std::path::Path::new(task["workspace"].as_str().unwrap());
        assert_eq!(workspace.join("pull.txt").exists(), from == "pr 7");
        assert_eq!(workspace.join("side.txt").exists(), from != "head");
        if let Some(name) = name {
            assert_eq!(task["workspace_name"], name);
        }
        let id = task["id"].as_str().unwrap();
        let diff = world.dispatch(&["diff", id]).exits(0).out;
        assert!(diff.contains("+hi") && !diff.contains("pull"), "{diff}");
        let applied = world.dispatch(&["apply", id]);
        if from == "tag v1" {
            let told = applied.exits(2);
            let words = [
                "it started from the tag v1",
                "dispatch diff",
                "start from a branch",
            ];
            told.says(&words);
            continue;
        }
        applied.exits(0);
        let branch = task["branch"].as_str().unwrap();
        assert_eq!(commit(&format!("{branch}~1")), base);
    }
}

#[test]
fn what_is_not_there_is_named_and_what_excludes_each_other_refused() {
    let (world, _) = forge("");
    for (args, words) in [
        (
            ["--pr", "9"],
            ["refs/pull/9/head", "refs/merge-requests/9/head"],
        ),
        (
            ["--branch", "none"],
            ["refs/heads/none", "find branch none"],
        ),
        (["--tag", "v9"], ["refs/tags/v9", "find tag v9"]),
    ] {
        let all = [&["run"][..], &args, &[WRITE]].concat();
        world.dispatch(&all).exits(1).says(&words);
    }
    for (args, one, other) in [
        (&["--pr", "7", "--tag", "v1"][..], "--pr", "--tag"),
        (&["--pr", "7", "--branch", "x"], "--pr", "--branch"),
        (&["--tag", "v1", "--branch", "x"], "--tag", "--branch"),
        (&["--queue", "--supersede"], "--queue", "--supersede"),
    ] {
        let all = [&["run"][..], args, &[WRITE]].concat();
        world.dispatch(&all).exits(2).says(&[one, other]);
    }
    for (args, word) in [
        (["--branch", "a..b"], "a..b"),
        (["--tag", "../../x"], "../../x"),
        (["--pr", "0"], "pull request 0"),
    ] {
        let all = [&["run"][..], &args, &[WRITE]].concat();
        world.dispatch(&all).exits(2).says(&[word]);
    }
}

#[test]
fn repositories_have_names() {
    let (world, main) = forge("");
    let bare = world.path("named.git");
    world.git(&["clone", "-q", "--bare", ".", bare.to_str().unwrap()]);
    let config = world.home().join("dispatch.toml");
    let text = fs::read_to_string(&config).unwrap();
    let named = format!(
        "{text}\n[repos.here]\npath = {:?}\norg = \"acme\"\n\
         [repos.other]\npath = {bare:?}\ndefault_branch = \"side\"\n",
        world.repo()
    );
    fs::write(&config, named).unwrap();
    let task = run(&world, &["--repo", "here", "--issue", "5"]);
    assert_eq!(
        (&task["base"], &task["org"]),
        (&json!(main), &json!("acme"))
    );
    assert_eq!(task["workspace_name"], "acme/repo/task-5");
    let task = run(&world, &["--repo", "other"]);
    assert_eq!(task["base"], world.git(&["rev-parse", "side"]));
    assert_eq!(task["repo"], bare.to_str().unwrap());
    assert_eq!(task["from"], "branch side");
    let all = ["run", "--repo", "nope", WRITE];
    world
        .dispatch(&all)
        .exits(2)
        .says(&["nope", "configured are here, other"]);
}

#[test]
fn a_second_task_on_a_live_workspace_is_refused_queued_or_supersedes() {
    let (world, _) = forge("");
    let pr = &["--pr", "7"];
    let first = world.begun(pr);
    let refused = [&["run"][..], pr, &[WRITE]].concat();
    let words = ["core/repo/pr-7", &first, "--queue", "--supersede"];
    world.dispatch(&refused).exits(2).says(&words);
    // Other work goes on beside it.
    run(&world, &["--branch", "side"]);
    let second = world.detach(&["--pr", "7", "--queue", WRITE]);
    let queued = world.show(&second);
    assert_eq!(
        (&queued["state"], &queued["behind"]),
        (&json!("queued"), &json!(first))
    );
    let reason = queued["reason"].as_str().unwrap();
    assert!(
        reason.contains("which is running and has the workspace core/repo/pr-7"),
        "{reason}"
    );
    assert_eq!(queued["waiting"]["why"], "workspace");
    world.open_gate();
    let ended = world.dispatch(&["wait", "--json", &second]).exits(0).json();
    assert_eq!(ended["state"], "completed");
    assert_eq!(world.show(&first)["state"], "completed");

    let third = world.begun(pr);
    let before = world.show(&third);
    let fourth = run(&world, &["--pr", "7", "--supersede"]);
    assert_eq!(fourth["behind"], third.as_str());
    assert_ne!(fourth["workspace"], before["workspace"]);
    let third = world.show(&third);
    assert_eq!(
        (&third["state"], &third["workspace"]),
        (&json!("stopped"), &before["workspace"])
    );
    assert!(
        third["notes"].to_string().contains("superseded by task"),
        "{third}"
    );
    // What it held is under a ref, whatever becomes of its workspace.
    let vaults = world.home().join("data/vaults");
    let vault = fs::read_dir(vaults)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let vault = vault.into_iter().find(|path| path.is_dir()).unwrap();
    let kept = format!(
        "refs/dispatch/snapshots/{}/1",
        third["id"].as_str().unwrap()
    );
    let vault = vault.to_str().unwrap();
    world.git(&["--git-dir", vault, "rev-parse", "--verify", &kept]);
}

/// A directory without git beside the repository, with what copies easily lose.
fn notes(world: &TestWorld) -> std::path::PathBuf {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let notes = world.path("notes");
    fs::create_dir_all(notes.join("deep/er")).unwrap();
    fs::write(notes.join(".gitignore"), "*.log\n").unwrap();
    fs::write(notes.join(".gitattributes"), "* text eol=crlf\n").unwrap();
    fs::write(notes.join("ignored.log"), "a log\n").unwrap();
    fs::write(notes.join("crlf.txt"), "one\r\ntwo\n").unwrap();
    fs::write(notes.join("deep/er/old.txt"), "old\n").unwrap();
    fs::write(notes.join("run.sh"), "echo hi\n").unwrap();
    fs::set_permissions(notes.join("run.sh"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("deep", notes.join("link")).unwrap();
    notes.canonicalize().unwrap()
}

fn tree(dir: &std::path::Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = super::world::files(dir)
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            (name, fs::read(path).unwrap())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_directory_without_git_is_copied_and_written_back_after_a_yes() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = TestWorld::new();
    let notes = notes(&world);
    let before = tree(&notes);
    let orders =
        "Tidy up\n> write deep/file.log hi\n> write crlf.txt three\n> write run.sh echo ho";
    let args = ["run", "--json", "--dir", notes.to_str().unwrap(), orders];
    let task = world.dispatch(&args).exits(0).json();
    schema::task(&task);
    assert_eq!(
        (&task["from"], &task["repo"]),
        (&json!("folder"), &json!(notes))
    );
    assert_eq!(tree(&notes), before, "it is never worked on in place");
    let workspace = std::path::Path::new(task["workspace"].as_str().unwrap());
    assert_eq!(fs::read(workspace.join("ignored.log")).unwrap(), b"a log\n");
    assert_eq!(
        fs::read_link(workspace.join("link")).unwrap().to_str(),
        Some("deep")
    );
    let id = task["id"].as_str().unwrap();
    assert_eq!(task["diffstat"]["files"], 3, "{}", task["notes"]);
    world
        .dispatch(&["diff", id])
        .exits(0)
        .says(&["deep/file.log", "-two", "+three"]);

    // Nobody to ask is no yes, and neither is something that has changed since.
    world.dispatch(&["apply", id]).exits(2).says(&["--yes"]);
    fs::write(notes.join("crlf.txt"), "mine\n").unwrap();
    let told = world.dispatch(&["apply", id, "--yes"]).exits(1);
    told.says(&["crlf.txt has changed there", "nothing was written"]);
    assert!(!notes.join("deep/file.log").exists());
    fs::write(notes.join("crlf.txt"), "one\r\ntwo\n").unwrap();
    fs::write(notes.join("other.txt"), "of no concern\n").unwrap();
    let done = world
        .dispatch(&["apply", id, "--yes", "--json"])
        .exits(0)
        .json();
    assert_eq!((&done["files"], &done["repo"]), (&json!(3), &json!(notes)));
    assert_eq!(fs::read(notes.join("deep/file.log")).unwrap(), b"hi\n");
    assert_eq!(fs::read(notes.join("crlf.txt")).unwrap(), b"three\n");
    let script = fs::metadata(notes.join("run.sh")).unwrap();
    assert_eq!(script.permissions().mode() & 0o777, 0o750);
    assert_eq!(fs::read(notes.join("deep/er/old.txt")).unwrap(), b"old\n");
    // A second time finds it done.
    world.dispatch(&["apply", id, "--yes"]).exits(0);

    // The same snapshot and undo as everything else.
    world.dispatch(&["rm", id]).exits(0);
    assert!(!workspace.exists());
    world.dispatch(&["undo", id]).exits(0);
    assert_eq!(fs::read(workspace.join("crlf.txt")).unwrap(), b"three\n");
    assert_eq!(fs::read(workspace.join("ignored.log")).unwrap(), b"a log\n");
}

#[test]
fn a_directory_that_is_too_much_or_ours_is_refused() {
    let world = TestWorld::with_config("[limits]\nfolder_files = 3\n");
    let notes = notes(&world);
    let args = ["run", "--dir", notes.to_str().unwrap(), WRITE];
    world
        .dispatch(&args)
        .exits(1)
        .says(&["limits.folder_files", "3 files"]);
    let home = world.home();
    let args = ["run", "--dir", home.to_str().unwrap(), WRITE];
    world.dispatch(&args).exits(1).says(&["lie in each other"]);
    world
        .dispatch(&["run", "--dir", "/no/such", WRITE])
        .exits(2)
        .says(&["/no/such"]);
    let args = ["run", "--dir", "/tmp", "--branch", "x", WRITE];
    world.dispatch(&args).exits(2).says(&["--dir", "--branch"]);
}

#[test]
fn without_a_repository_the_answer_is_the_result() {
    let world = TestWorld::new();
    let orders = "Say it\n> say 42";
    let task = world
        .dispatch(&["run", "--no-repo", "--json", orders])
        .exits(0)
        .json();
    schema::task(&task);
    let state = (&task["state"], &task["from"], &task["changed"]);
    assert_eq!(
        state,
        (&json!("completed"), &json!("nothing"), &json!(false))
    );
    assert_eq!(task["reason"], "42");
    let name = task["workspace_name"].as_str().unwrap();
    assert!(name.starts_with("core/none/say-it-"), "{name}");
    let expects = ["--expects", "either", "Both\n> write a.txt b\n> say done"];
    let task = world.dispatch(&[&["run", "--no-repo", "--json"][..], &expects].concat());
    let task = task.exits(0).json();
    let id = task["id"].as_str().unwrap();
    world
        .dispatch(&["apply", id, "--yes"])
        .exits(2)
        .says(&["--to PATH"]);
    let out = world.path("out");
    fs::create_dir(&out).unwrap();
    let to = ["apply", id, "--yes", "--to", out.to_str().unwrap()];
    world.dispatch(&to).exits(0).says(&["1 file(s)"]);
    assert_eq!(fs::read(out.join("a.txt")).unwrap(), b"b\n");
}

#[test]
fn a_dry_run_shows_everything_and_touches_nothing() {
    let marker = "marker_of_a_secret_command";
    let (world, main) = forge("");
    let config = world.home().join("dispatch.toml");
    let text = fs::read_to_string(&config).unwrap();
    let ran = world.path(marker);
    let agent = format!(
        "{text}\n[agents.keyed]\ndriver = \"plain\"\nprogram = \"sh\"\nargs = [\"-c\", \"true\"]\n\
         pool = \"default\"\nenv = {{ K = {{ command = [\"touch\", {ran:?}] }} }}\n"
    );
    fs::write(&config, agent).unwrap();
    // First where there is no data at all, then beside a store that is in use.
    for first in [true, false] {
        let look = || {
            (
                tree(&world.home()),
                tree(&world.repo()),
                tree(&world.path("person")),
            )
        };
        let before = look();
        let dry = |args: &[&str]| {
            let all = [
                &["run", "--dry-run", "--json", "--agent", "keyed"][..],
                args,
                &[WRITE],
            ];
            world.dispatch(&all.concat()).exits(0).json()
        };
        let plan = dry(&[]);
        assert_eq!(
            (&plan["from"], &plan["base"]),
            (&json!("head"), &json!(main))
        );
        assert!(plan["prompt"].as_str().unwrap().contains(WRITE), "{plan}");
        assert_eq!(plan["argv"].as_array().unwrap().last().unwrap(), "true");
        assert_eq!(
            (&plan["placement"], &plan["pool"]),
            (&json!("cage"), &json!("default"))
        );
        assert_eq!(plan["takes"], json!(["keyed/K"]));
        assert_eq!(plan["slots"], 4);
        let fence = plan["would_enforce"].as_str().unwrap();
        assert!(fence.contains("network: full"), "{fence}");
        let pull = dry(&["--pr", "7", "--issue", "5"]);
        assert_eq!(pull["base"], world.git(&["rev-parse", "refs/pull/7/head"]));
        assert_eq!(pull["workspace_name"], "core/repo/pr-7");
        assert_eq!(dry(&["--tag", "nope"])["base"], Value::Null);
        let shown = world
            .dispatch(&["run", "--dry-run", "--no-repo", "Hello"])
            .exits(0);
        shown.says(&["from       nothing", "nothing was started"]);
        assert_eq!(look(), before);
        assert!(!ran.exists(), "it ran a command that hands out a secret");
        if first {
            assert!(!world.home().join("data").exists());
            run(&world, &[]);
            world.shut_down();
        }
    }
}

#[test]
fn a_dry_run_shows_the_prompt_that_a_run_gets() {
    let (world, _) = forge("");
    let folder = world.path("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("Makefile"), "check:\n\ttrue\n").unwrap();
    let folder = folder.to_str().unwrap();
    // A repository's own words count where its people wrote them, and not in a pull request.
    let own = world.repo().join(".dispatch/templates");
    fs::create_dir_all(&own).unwrap();
    fs::write(own.join("coding.md"), "Words of the repository.\n").unwrap();
    world.commit();
    world.git(&["update-ref", "refs/pull/8/head", "HEAD"]);
    for (args, own) in [
        (&[][..], true),
        (&["--branch", "side"], false),
        (&["--pr", "8"], false),
        (&["--tag", "v1"], false),
        (&["--dir", folder], false),
        (&["--no-repo"], false),
        (&["--expects", "review"], false),
    ] {
        let dry = [&["run", "--dry-run", "--json"][..], args, &[WRITE]].concat();
        let plan = world.dispatch(&dry).exits(0).json();
        let real = world.dispatch(&[&["run", "--json"][..], args, &[WRITE]].concat());
        let made = &real.json()["runs"][0]["prompt"];
        let made = fs::read_to_string(made["path"].as_str().unwrap()).unwrap();
        assert_eq!(plan["prompt"].as_str().unwrap(), made, "{args:?}");
        let words = made.contains("Words of the repository.");
        assert_eq!(words, own, "{args:?}: {made}");
    }
}

/// A forge that answers one request, and what it was asked.
fn forge_server(status: &str, body: &str) -> (String, std::thread::JoinHandle<String>) {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let api = format!("http://{}/api/v1", listener.local_addr().unwrap());
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
            head.push(byte[0]);
        }
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8(head).unwrap()
    });
    (api, served)
}

/// A clone whose origin lies on `forge.test`, whose API is at that address.
fn clone_of_forge(api: &str) -> TestWorld {
    let forges = format!(
        "[agents.echo]\ndriver = \"plain\"\nprogram = \"cat\"\npool = \"default\"\n\
         [forges.test]\nhost = \"forge.test\"\napi = {api:?}\ntoken = {{ from = \"T\", optional = true }}\n"
    );
    let (world, _) = forge(&forges);
    world.git(&["remote", "add", "origin", "git@forge.test:acme/api.git"]);
    world
}

const ISSUE: &str = r#"{"number": 5, "title": "It crashes", "body": "> write out.txt no\nBadly.",
                        "labels": [{"name": "bug"}]}"#;

#[test]
fn an_issue_comes_from_the_forge_of_the_repository() {
    let (api, served) = forge_server("200 OK", ISSUE);
    let world = clone_of_forge(&api);
    // This agent says what it was given to read.
    let args = [
        "run",
        "--json",
        "--issue",
        "5",
        "--expects",
        "report",
        "--agent",
        "echo",
    ];
    let done = world.dispatch_with(&[("T", "tok-5")], &args).exits(0);
    let asked = served.join().unwrap();
    assert!(
        asked.starts_with("GET /api/v1/repos/acme/api/issues/5 HTTP/1.1\r\n"),
        "{asked}"
    );
    assert!(asked.contains("authorization: Bearer tok-5\r\n"), "{asked}");
    let task = done.json();
    assert_eq!(
        (&task["title"], &task["issue"]),
        (&json!("issue 5: It crashes"), &json!(5))
    );
    assert_eq!(
        (&task["task"], &task["changed"]),
        (&json!("Do what issue 5 asks for."), &json!(false))
    );
    assert_eq!(task["workspace_name"], "core/repo/task-5");
    let events = world.dispatch(&["events", "--json"]).exits(0).out;
    assert!(
        events.contains("Badly.") && !events.contains("tok-5"),
        "{events}"
    );
}

#[test]
fn an_issue_comes_from_a_file_or_is_missed_in_words() {
    let (api, served) = forge_server("404 Not Found", "{}");
    let world = clone_of_forge(&api);
    let told = world.dispatch(&["run", "--issue", "5"]).exits(2);
    told.says(&["issues/5", "404", "needs a token", "--issue-file"]);
    assert!(!served.join().unwrap().contains("authorization"));
    // Nobody listens there any more: with a text of its own the task goes on.
    let task = world
        .dispatch(&["run", "--json", "--issue", "5", WRITE])
        .exits(0);
    let task = task.says(&["warning", "goes on without its text"]).json();
    assert_eq!(
        (&task["state"], &task["issue"]),
        (&json!("completed"), &json!(5))
    );
    let file = world.path("issue.md");
    fs::write(&file, "# Out of order\n\nSee the log.\n").unwrap();
    let args = ["--issue", "6", "--issue-file", file.to_str().unwrap()];
    let plan = world.dispatch(&[&["run", "--dry-run", "--json"][..], &args].concat());
    let plan = plan.exits(0).json();
    let prompt = plan["prompt"].as_str().unwrap();
    assert!(
        prompt.contains("| Title: Out of order") && prompt.contains("| See the log."),
        "{prompt}"
    );
    assert_eq!(plan["title"], "issue 6: Out of order");
    let args = [
        "run",
        "--dry-run",
        "--json",
        "--issue",
        "6",
        "--issue-file",
        "-",
    ];
    let plan = world.dispatch_fed(ISSUE, &args).exits(0).json();
    assert!(
        plan["prompt"].as_str().unwrap().contains("| Labels: bug"),
        "{plan}"
    );
    world
        .dispatch(&["run", "--issue-file", "x", "y"])
        .exits(2)
        .says(&["--issue"]);
    world.git(&["remote", "remove", "origin"]);
    world
        .dispatch(&["run", "--issue", "5"])
        .exits(2)
        .says(&["no forge is configured"]);
}
