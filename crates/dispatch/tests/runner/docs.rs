//! The document is a contract: it names what there is.

use std::{io::Write as _, process::Command};

use super::{schema, wire::Door, world::TestWorld};

const DOCUMENT: &str = include_str!("../../../../docs/cli.md");

#[test]
fn the_document_names_every_verb_and_every_flag() {
    let world = TestWorld::new();
    let help = world.dispatch(&["--help"]).exits(0).out;
    let (_, rest) = help.split_once("Commands:\n").unwrap();
    let (commands, _) = rest.split_once("\n\n").unwrap();
    let verbs: Vec<&str> = commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .collect();
    assert!(verbs.len() >= 20, "{verbs:?}");
    let (_, block) = DOCUMENT.split_once("## Verbs\n\n```\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    for verb in verbs {
        let word = |word: &str| word == verb;
        assert!(
            block.split_whitespace().any(word),
            "docs/cli.md lacks {verb}"
        );
        let help = world.dispatch(&[verb, "--help"]).exits(0).out;
        let flags = help
            .split_whitespace()
            .map(|word| word.trim_end_matches([',', '.', ';', '`']))
            .filter(|word| word.starts_with("--") && word.len() > 2 && *word != "--help");
        for flag in flags {
            let name = flag.split('=').next().unwrap();
            // `config` has its flags below its own verbs, which the block shows too.
            assert!(
                block.contains(name) || name == "--follow",
                "docs/cli.md lacks {verb} {name}"
            );
        }
    }
}

#[test]
fn the_document_names_every_field() {
    let (_, fields) = DOCUMENT.split_once("## A task\n").unwrap();
    let (fields, _) = fields.split_once("## An event\n").unwrap();
    let words: Vec<&str> = fields
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .collect();
    for field in schema::fields() {
        assert!(words.contains(&field), "docs/cli.md lacks {field}");
    }
}

const HTTP: &str = include_str!("../../../../docs/http.md");

/// Every block of shell in docs/http.md, one after the other, against an engine that listens.
#[test]
fn the_examples_of_http_run() {
    let there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !there("curl") || !there("jq") {
        let mut out = std::io::stderr().lock();
        writeln!(
            out,
            "SKIPPED: the examples of docs/http.md: curl and jq are needed"
        )
        .unwrap();
        return;
    }
    let world = TestWorld::new();
    let door = Door::open(&world);
    let blocks = HTTP.split("```sh\n").skip(1);
    let script: String = blocks
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert!(script.matches("api \"$URL").count() > 10, "{script}");
    let (_, token) = door.token.rsplit_once(' ').unwrap();
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_dispatch"));
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("sh")
        .args(["-euc", &script])
        .current_dir(world.path("person"))
        .env_clear()
        .env(
            "PATH",
            format!("{}:{path}", program.parent().unwrap().display()),
        )
        .env("HOME", world.path("person"))
        .env("DISPATCH_HOME", world.home())
        .env("URL", format!("http://{}", door.address))
        .env("TOKEN", token)
        .env("REPO", world.repo())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:#?}");
    let told = String::from_utf8(output.stdout).unwrap();
    for part in [
        " completed",
        "dispatch_tasks{",
        "+hi",
        "dispatch/write-it-down-",
        "true",
    ] {
        assert!(told.contains(part), "no {part} in {told}");
    }
    door.close().exits(0);
}
