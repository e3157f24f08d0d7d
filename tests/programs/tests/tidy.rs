//! What no compiler checks: crate edges, heads of files, names that grow without limit.
//! Must not judge style that rustfmt or clippy can judge.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; a failure is a failed test"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap()
        .to_owned()
}

fn sources() -> Vec<PathBuf> {
    let mut open: Vec<PathBuf> = ["crates", "xtask", "tests/programs"]
        .iter()
        .map(|dir| root().join(dir))
        .collect();
    let mut found = Vec::new();
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && name != "node_modules" {
                open.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                found.push(path);
            }
        }
    }
    found
}

/// ARCHITECTURE.md says per edge what it makes impossible; a new edge is a decision.
#[test]
fn crates_depend_as_the_house_allows() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap().to_owned();
        let own = edges.entry(name).or_default();
        for dependency in package["dependencies"].as_array().unwrap() {
            if dependency["kind"].is_null() && dependency["path"].is_string() {
                own.insert(dependency["name"].as_str().unwrap().to_owned());
            }
        }
    }
    let own = |name: &str| edges[name].iter().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(own("dispatch-core"), [""; 0]);
    assert_eq!(own("dispatch-engine"), ["dispatch-core"]);
    assert!(
        own("dispatch-agent")
            .iter()
            .all(|name| *name == "dispatch-core")
    );
    assert_eq!(
        own("dispatch"),
        [
            "dispatch-agent",
            "dispatch-core",
            "dispatch-engine",
            "dispatch-sidecar"
        ]
    );
    assert_eq!(own("dispatch-sidecar"), ["dispatch-core"]);
    assert_eq!(
        edges.len(),
        7,
        "a package more needs a line in ARCHITECTURE.md: {edges:?}"
    );
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = |path: &PathBuf| !fs::read_to_string(path).unwrap().starts_with("//!");
    let silent: Vec<PathBuf> = sources().into_iter().filter(silent).collect();
    assert_eq!(silent, Vec::<PathBuf>::new());
}

#[test]
fn no_file_has_a_name_that_takes_everything() {
    let vague = [
        "util", "utils", "common", "helpers", "manager", "service", "misc",
    ];
    let bad = |path: &PathBuf| {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        vague
            .iter()
            .any(|word| stem.split('_').any(|part| part == *word))
    };
    let bad: Vec<PathBuf> = sources().into_iter().filter(bad).collect();
    assert_eq!(bad, Vec::<PathBuf>::new());
}

#[test]
fn the_picture_fits_in_one_reading() {
    let lines = fs::read_to_string(root().join("ARCHITECTURE.md"))
        .unwrap()
        .lines()
        .count();
    assert!(lines <= 250, "ARCHITECTURE.md has {lines} lines");
}
