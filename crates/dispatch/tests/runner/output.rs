//! What is printed, and for whom: one JSON value for scripts, no escapes for pipes.

use std::{
    fs::File,
    io::Read,
    process::{Command, Stdio},
};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::world::TestWorld;

#[test]
fn pipes_get_no_escapes_and_json_verbs_one_value() {
    let world = TestWorld::new();
    let run = world
        .dispatch(&["run", "x\n> say \u{1b}[31mred\n> write out.txt hi"])
        .exits(0);
    let tasks = world.dispatch(&["list", "--json"]).exits(0).json();
    let id = tasks[0]["id"].as_str().unwrap();
    let mut all = vec![run, world.dispatch(&["run", "x\n> say a"]).exits(1)];
    for args in [
        &["list"][..],
        &["show", id],
        &["diff", id],
        &["events"],
        &["agents"],
        &["doctor"],
        &["config", "show", "--sources"],
        &["--help"],
        &["run", "--help"],
        &["show", "nope"],
        &["run", "--agent", "nobody", "x"],
        &["run", "--flag"],
    ] {
        all.push(world.dispatch_with(&[("TERM", "xterm-256color")], args));
    }
    for done in all {
        assert!(
            !done.out.contains('\u{1b}') && !done.err.contains('\u{1b}'),
            "{done:?}"
        );
    }
    for args in [&["agents"][..], &["config", "show"], &["list"]] {
        let done = world.dispatch(&[args, &["--json"]].concat()).exits(0);
        assert!(
            done.json().is_array() && done.out.lines().count() == 1,
            "{done:?}"
        );
    }
    let doctor = world.dispatch(&["doctor", "--json"]).json();
    for row in doctor.as_array().unwrap() {
        let keys: Vec<&String> = row.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["what", "state", "found", "how"], "{row}");
        assert!(["ok", "info", "missing"].contains(&row["state"].as_str().unwrap()));
    }
    let agents = world.dispatch(&["agents", "--json"]).exits(0).json();
    for row in agents.as_array().unwrap() {
        let keys: Vec<&String> = row.as_object().unwrap().keys().collect();
        let wanted = [
            "name",
            "driver",
            "program",
            "found",
            "pool",
            "placement",
            "default",
        ];
        assert_eq!(keys, wanted, "{row}");
    }
    assert_eq!(
        world.dispatch(&["thaw", "--json"]).exits(0).out,
        "{\"frozen\":false}\n"
    );
}

/// What a command prints on a terminal.
fn on_terminal(mut command: Command) -> String {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let terminal = File::options().read(true).write(true).open(name).unwrap();
    let stderr = terminal.try_clone().unwrap();
    command
        .env("TERM", "xterm-256color")
        .stdout(terminal)
        .stderr(stderr);
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    // It holds our side of the terminal as long as it lives.
    drop(command);
    let mut text = Vec::new();
    // A terminal whose other side is closed ends with an error.
    drop(File::from(master).read_to_end(&mut text));
    assert!(child.wait().unwrap().success());
    String::from_utf8(text).unwrap()
}

#[test]
fn terminals_get_colours_unless_they_are_not_wanted() {
    let world = TestWorld::new();
    world.dispatch(&["run", "x\n> write out.txt hi"]).exits(0);
    let coloured = on_terminal(world.command(&["list"]));
    assert!(coloured.contains("\u{1b}["), "{coloured:?}");
    let mut plain = world.command(&["list"]);
    plain.env("NO_COLOR", "1");
    let plain = on_terminal(plain);
    assert!(
        plain.contains("completed") && !plain.contains('\u{1b}'),
        "{plain:?}"
    );
    let watched = on_terminal(world.command(&["run", "y\n> say hi\n> write out.txt hi"]));
    assert!(watched.contains("completed"), "{watched:?}");
}

#[test]
fn the_configuration_says_where_it_comes_from() {
    let world = TestWorld::new();
    let shown = world
        .dispatch(&["config", "show", "--sources"])
        .exits(0)
        .out;
    let file = world.home().join("dispatch.toml").display().to_string();
    let line = |key: &str| shown.lines().find(|line| line.starts_with(key)).unwrap();
    assert!(
        line("task.agent = ").contains(&file),
        "{}",
        line("task.agent = ")
    );
    assert!(line("task.expects = ").contains("defaults"));
    let values = shown.lines().filter(|line| !line.starts_with('#'));
    for line in values {
        assert!(line.contains(" = ") && line.contains("  # "), "{line}");
    }
    let bare = world.dispatch(&["config", "show"]).exits(0).out;
    assert!(!bare.contains("# defaults"));
    let rows = world
        .dispatch(&["config", "show", "--json"])
        .exits(0)
        .json();
    for row in rows.as_array().unwrap() {
        let keys: Vec<&String> = row.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["key", "value", "source"]);
    }
    assert!(!world.home().join("data").exists());
}

#[test]
fn completions_are_a_script_that_bash_reads() {
    let world = TestWorld::new();
    let script = world.dispatch(&["completions", "bash"]).exits(0).out;
    assert!(script.contains("_dispatch()") && script.contains("--detach"));
    let file = world.path("completions.bash");
    std::fs::write(&file, script).unwrap();
    match Command::new("bash").arg("-n").arg(file).status() {
        Ok(status) => assert!(status.success()),
        Err(_) => eprintln!("skipped: there is no bash here"),
    }
    for shell in ["elvish", "fish", "powershell", "zsh"] {
        assert!(
            !world
                .dispatch(&["completions", shell])
                .exits(0)
                .out
                .is_empty()
        );
    }
}
