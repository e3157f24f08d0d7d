//! `dispatch login`: a scripted vendor's program is run as it should be, and what it leaves is used.

use std::{fs, os::unix::fs::PermissionsExt};

use super::world::{TestWorld, files};

/// What it was given goes to its output; its login is written as Codex does it, or as it is told.
const VENDOR: &str = "#!/bin/sh\n\
    echo \"given: $*\"\nenv | sed 's/^/env: /'\n\
    case \"$3\" in\n\
    fail) exit 7 ;;\n\
    nothing) exit 0 ;;\n\
    rename) echo by-rename > \"$HOME/new\"; mv \"$HOME/new\" \"$CODEX_HOME/auth.json\" ;;\n\
    *) echo through-the-link > \"$CODEX_HOME/auth.json\" ;;\n\
    esac\n";

fn world() -> TestWorld {
    let world = TestWorld::with_config(
        "[agents.mine]\ndriver = \"codex\"\nprogram = \"vendor\"\npool = \"default\"\n\
         env = { MY_KEY = { from = \"MY_KEY\", optional = true } }\n\
         [agents.mine.login]\nargs = [\"log\", \"in\"]\nfiles = [\".codex/auth.json\"]\n",
    );
    let bin = world.path("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("vendor"), VENDOR).unwrap();
    fs::set_permissions(bin.join("vendor"), fs::Permissions::from_mode(0o755)).unwrap();
    world
}

fn path(world: &TestWorld) -> String {
    let path = std::env::var("PATH").unwrap();
    format!("{}:{path}", world.path("bin").display())
}

fn kept(world: &TestWorld, account: &str) -> String {
    let file = world.home().join("data/logins").join(account);
    fs::read_to_string(file.join("store/auth.json")).unwrap_or_default()
}

#[test]
fn the_vendor_logs_in_and_its_login_is_kept_for_the_account() {
    let world = world();
    let path = path(&world);
    let env = [
        ("PATH", path.as_str()),
        ("MY_KEY", "k3y"),
        ("TERM", "vt100"),
    ];
    let before = files(&world.path("person"));
    let done = world.dispatch_with(&env, &["login", "mine", "--", "--device"]);
    let done = done.exits(0);
    assert!(done.out.contains("given: log in --device\n"), "{done:?}");
    assert!(done.out.contains("logged in: account mine") && done.out.contains("tasks of mine"));
    assert_eq!(kept(&world, "mine"), "through-the-link\n");
    // Of the person's environment only what a login needs, and a home of its own.
    assert!(done.out.contains("env: TERM=vt100"), "{done:?}");
    assert!(!done.out.contains("MY_KEY") && !done.out.contains("DISPATCH_HOME"));
    assert!(
        !done
            .out
            .contains(&format!("env: HOME={}\n", world.path("person").display()))
    );
    assert_eq!(files(&world.path("person")), before);
    // Nothing but the login is left, and only its owner can look.
    let logins = world.home().join("data/logins");
    assert_eq!(files(&logins), [logins.join("mine/store/auth.json")]);
    let mode = fs::metadata(logins.join("mine"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);

    let rows = world
        .dispatch_with(&env, &["login", "--status", "--json"])
        .exits(0)
        .json();
    let mine = rows
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["agent"] == "mine")
        .unwrap();
    assert_eq!(
        (&mine["account"], &mine["present"]),
        (&"mine".into(), &true.into())
    );
    let codex = rows
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["agent"] == "codex")
        .unwrap();
    assert_eq!(codex["present"], false);
    let doctor = world.dispatch_with(&env, &["doctor", "--json"]).json();
    let row = |what: &str| {
        let rows = doctor.as_array().unwrap().iter();
        rows.clone().find(|row| row["what"] == what).cloned()
    };
    assert_eq!(row("login mine").unwrap()["state"], "ok");
    assert_eq!(row("agent mine").unwrap()["state"], "ok");
}

#[test]
fn an_account_of_another_name_and_a_login_by_rename() {
    let world = world();
    let path = path(&world);
    let env = [("PATH", path.as_str())];
    let args = ["login", "mine", "--account", "work", "--", "rename"];
    let done = world.dispatch_with(&env, &args).exits(0);
    assert_eq!(kept(&world, "work"), "by-rename\n");
    assert!(done.out.contains("set `account = \"work\"`"), "{done:?}");
}

#[test]
fn a_login_that_did_not_happen_is_said() {
    let world = world();
    let path = path(&world);
    let env = [("PATH", path.as_str())];
    let log_in = |how: &str| world.dispatch_with(&env, &["login", "mine", "--", how]);
    log_in("fail")
        .exits(1)
        .says(&["vendor ended with exit status: 7"]);
    log_in("nothing")
        .exits(1)
        .says(&["left no auth.json", "keychain", "claude setup-token"]);
    assert_eq!(kept(&world, "mine"), "");
    world
        .dispatch(&["login", "mine"])
        .exits(2)
        .says(&["\"vendor\" is not on PATH"]);
    world
        .dispatch(&["login", "scripted"])
        .exits(2)
        .says(&["its table has no login", "[agents.scripted.env]"]);
    world.dispatch(&["login"]).exits(2);
}

/// A person who is logged in for themselves is told that this is another login.
#[test]
fn the_persons_own_login_is_not_used_and_doctor_says_so() {
    let world = world();
    let path = path(&world);
    fs::create_dir(world.path("person/.codex")).unwrap();
    fs::write(world.path("person/.codex/auth.json"), "theirs").unwrap();
    let done = world.dispatch_with(&[("PATH", path.as_str())], &["doctor"]);
    done.says(&[
        "your own login (~/.codex/auth.json) is not used",
        "`dispatch login mine`",
    ]);
}
