//! Tests of all tools that open files, against what is in a directory and is no file, or has no end.
//! Must not wait for any of it.

use std::{os::unix::fs::symlink, time::Duration};

use serde_json::{Value, json};
use tokio::time::timeout;

use super::testing::Bench;

/// Longer than any of them takes.
const PATIENCE: Duration = Duration::from_secs(10);

async fn run(bench: &Bench, tool: &str, input: Value) -> Result<String, String> {
    let done = timeout(PATIENCE, bench.run(tool, input)).await;
    done.unwrap_or_else(|_| panic!("{tool} waits"))
}

#[tokio::test]
async fn no_tool_waits_for_a_pipe() {
    let bench = Bench::new();
    bench.write("a.txt", "word\n");
    bench.pipe("pipe");
    symlink("pipe", bench.path("link")).unwrap();
    let patch = "*** Begin Patch\n*** Update File: pipe\n@@\n-a\n+b\n*** End Patch";
    for (tool, input) in [
        ("read_file", json!({"path": "pipe"})),
        ("read_file", json!({"path": "link"})),
        ("read_file_slice", json!({"path": "pipe", "line": 1})),
        ("write_file", json!({"path": "pipe", "content": "x"})),
        (
            "edit_file",
            json!({"path": "pipe", "edits": [{"old": "a", "new": "b"}]}),
        ),
        ("apply_patch", json!({"patch": patch})),
    ] {
        let wrong = run(&bench, tool, input).await.unwrap_err();
        assert!(wrong.ends_with("pipe: it is no file"), "{tool}: {wrong}");
    }
    let found = run(&bench, "search_code", json!({"query": "word"}))
        .await
        .unwrap();
    assert!(found.contains("a.txt"), "{found}");
    let found = run(
        &bench,
        "search_code",
        json!({"query": "word", "path": "pipe"}),
    )
    .await;
    assert_eq!(found.unwrap(), "nothing found");
}

/// What a repository names to be ignored is read by the tools, too.
#[tokio::test]
async fn no_tool_waits_for_a_list_of_what_is_ignored() {
    let bench = Bench::new();
    bench.write("a.txt", "word\n");
    bench.write("odd/b.txt", "word\n");
    bench.write("endless/c.txt", "word\n");
    bench.pipe("odd/.gitignore");
    symlink("/dev/zero", bench.path("endless/.ignore")).unwrap();
    for (tool, input) in [
        ("search_code", json!({"query": "word"})),
        ("list_files", json!({"glob": "**/*.txt"})),
    ] {
        let told = run(&bench, tool, input).await.unwrap();
        assert!(
            told.contains("a.txt") && !told.contains("b.txt"),
            "{tool}: {told}"
        );
        let why = "2 directories are left out: what they name to be ignored cannot be read";
        assert!(told.contains(why), "{tool}: {told}");
    }
    let wrong = run(&bench, "list_files", json!({"path": "odd"}))
        .await
        .unwrap_err();
    assert!(
        wrong.contains("what odd names to be ignored cannot be read"),
        "{wrong}"
    );
    let wrong = run(&bench, "search_code", json!({"query": "x", "path": "odd"})).await;
    assert!(wrong.unwrap_err().contains("what odd names to be ignored"));
    let all = run(&bench, "list_files", json!({"path": "odd", "all": true}))
        .await
        .unwrap();
    assert!(all.contains("b.txt"), "{all}");
}

/// Such a line would be held whole.
#[tokio::test]
async fn a_line_without_an_end_is_not_searched() {
    let bench = Bench::new();
    let mut long = b"word\n".to_vec();
    long.resize(24 << 20, b'x');
    long.extend(b"\nword\n");
    bench.write("long.txt", &long);
    bench.write("short.txt", "word\n");
    let told = run(&bench, "search_code", json!({"query": "word"}))
        .await
        .unwrap();
    assert!(told.contains("short.txt (text, 1 matches"), "{told}");
    assert!(told.contains("long.txt (text, 1 matches"), "{told}");
    assert!(
        told.contains("[1 files were not searched to their end: a line of theirs is too long]"),
        "{told}"
    );
}
