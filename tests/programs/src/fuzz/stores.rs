//! What git prints and what lies in a job's directory. Git's words can hold names that an agent
//! chose; a job's directory can be damaged by a full disk.
//! Must not run git: the parsers alone.

use dispatch_engine::{
    fuzzing,
    git::{self, CommitId, RefName},
};

use super::{Shape, Target, holds, shape_of};

const ID: &str = "0123456789abcdef0123456789abcdef01234567";

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "git-entries",
        property: "an error, or an entry for each record, which reads back as it was",
        seeds: || {
            vec![
                entry_text("a b\tc"),
                [entry_text("x"), entry_text("\u{e9}\n")].concat(),
            ]
        },
        words: GIT_WORDS,
        check: entries,
    },
    Target {
        name: "git-changes",
        property: "an error, or a change for each two records: nothing is passed over",
        seeds: || {
            vec![
                change_text("a b"),
                [change_text("x"), change_text("-\u{e9}")].concat(),
            ]
        },
        words: GIT_WORDS,
        check: changes,
    },
    Target {
        name: "git-batch",
        property: "an error, or answers that read back as they were",
        seeds: || {
            vec![
                format!("{ID} blob 2\na\n\n{ID} missing\n{ID} tree 0\n\n").into_bytes(),
                format!("{ID} blob 5\nab\0\nc\n").into_bytes(),
            ]
        },
        words: GIT_WORDS,
        check: batch,
    },
    Target {
        name: "git-refs",
        property: "a name that is accepted is one that git accepts and that is no option; ids are hex",
        seeds: || {
            let texts = [
                "refs/heads/main".to_owned(),
                "feature/x-1.2".to_owned(),
                format!("ref: refs/heads/main\tHEAD\n{ID}\tHEAD\n{ID}\trefs/heads/main\n"),
                format!("worktree /a\0HEAD {ID}\0branch refs/heads/main\0\0worktree /b\0bare\0\0"),
                "3\t4\ta b\0-\t-\tpic.png\0".to_owned(),
                "git@example.org:group/name.git".to_owned(),
                "18446744073709551615\t1\ta\0".to_owned(),
            ];
            texts.map(String::into_bytes).to_vec()
        },
        words: GIT_WORDS,
        check: refs,
    },
    Target {
        name: "git-ignore",
        property: "no rule of an ignore file switches off the ones behind it",
        seeds: || {
            let texts = [
                "*.log\r\n/target/\nsub/deep\n[bad\n!keep.log\n# x\n\\#y\n",
                "\u{feff}**/a/**\n{a,b}\n[!a-z]?\\\n/\n!\n",
                "[[:alpha:]]*\n\\\n[]-a]\n***\n",
            ];
            texts.map(|text| text.as_bytes().to_vec()).to_vec()
        },
        words: &[
            "**",
            "*",
            "!",
            "/",
            "[",
            "]",
            "[!",
            "\\",
            "{",
            "}",
            ",",
            "?",
            "#",
            "[[:space:]]",
            "[z-a]",
        ],
        check: ignore,
    },
    Target {
        name: "job-files",
        property: "an error, or an exit or group that reads back as it was",
        seeds: || {
            let texts = [
                r#"{"exit":{"code":0},"stopped":null,"started_at":1,"ended_at":2,"out_bytes":3,"err_bytes":4,"leftovers":0,"problems":[]}"#,
                r#"{"exit":{"signal":9},"stopped":{"wall_clock":{"limit_ms":5}},"started_at":1,"ended_at":2,"out_bytes":3,"err_bytes":4,"leftovers":1,"problems":["x"]}"#,
                r#"{"boot_id":"b","keeper":1,"pgid":2,"start_ticks":3,"cgroup":"/sys/fs/cgroup/x"}"#,
            ];
            texts.map(|text| text.as_bytes().to_vec()).to_vec()
        },
        words: &[
            "by_person",
            "idle",
            "output_bytes",
            "budget",
            "shutdown",
            "lingered",
            "code",
            "signal",
        ],
        check: job_files,
    },
];

const GIT_WORDS: &[&str] = &[
    ID,
    "100644",
    "120000",
    "160000",
    "000000",
    "blob",
    " blob ",
    " tree ",
    " missing",
    "missing\n",
    "refs/heads/",
    "refs/tags/",
    "HEAD",
    "ref: ",
    "\tHEAD\n",
    ".lock",
    "@{",
    "..",
    "worktree ",
    "branch ",
    "-\t-\t",
    ":",
    " M",
    " R100",
    "18446744073709551615\t",
    "\x7f",
];

fn entry_text(path: &str) -> Vec<u8> {
    format!("100644 {ID} 0\t{path}\0").into_bytes()
}

fn change_text(path: &str) -> Vec<u8> {
    format!(":100644 000000 {ID} {ID} M\0{path}\0").into_bytes()
}

fn entries(bytes: &[u8]) -> Result<Shape, String> {
    let Ok(entries) = git::parse_entries(bytes) else {
        return Ok(0);
    };
    holds(entries.len() == git::records(bytes).count(), || {
        "a record was passed over".into()
    })?;
    let lines = entries.iter().map(|entry| {
        (
            Some((entry.mode.as_str(), &entry.id)),
            entry.path.as_slice(),
        )
    });
    let back = git::parse_entries(&git::index_info(lines)).map_err(|e| e.to_string())?;
    let named = entries.iter().all(|entry| !entry.path.is_empty());
    holds(named, || "an entry has no path".into())?;
    holds(back == entries, || "it reads back as something else".into())?;
    Ok(shape_of((
        1,
        entries.len(),
        entries.iter().filter(|e| e.is_gitlink()).count(),
    )))
}

fn changes(bytes: &[u8]) -> Result<Shape, String> {
    let Ok(changes) = git::parse_changes(bytes) else {
        return Ok(0);
    };
    let records = git::records(bytes).count();
    holds(2 * changes.len() == records, || {
        format!("{} changes of {records} records", changes.len())
    })?;
    Ok(shape_of((
        1,
        changes.len(),
        changes.first().map(|c| c.status),
    )))
}

fn batch(bytes: &[u8]) -> Result<Shape, String> {
    let Ok(blobs) = git::parse_batch(bytes) else {
        return Ok(0);
    };
    let mut text = Vec::new();
    for blob in &blobs {
        match blob {
            None => text.extend(format!("{ID} missing\n").bytes()),
            Some(blob) => {
                text.extend(format!("{ID} blob {}\n", blob.len()).bytes());
                text.extend(blob);
                text.push(b'\n');
            }
        }
    }
    let back = git::parse_batch(&text).map_err(|e| e.to_string())?;
    holds(back == blobs, || "it reads back as something else".into())?;
    let held: usize = blobs.iter().flatten().map(Vec::len).sum();
    holds(held <= bytes.len(), || "more came out than went in".into())?;
    Ok(shape_of((1, blobs.len(), blobs.iter().flatten().count())))
}

fn refs(bytes: &[u8]) -> Result<Shape, String> {
    let text = String::from_utf8_lossy(bytes);
    let named = [RefName::full(&text), RefName::branch(&text)];
    for name in named.iter().flatten() {
        git_takes(name.as_str())?;
        let back = RefName::full(name.as_str()).map_err(|e| e.to_string())?;
        holds(back == *name, || "a name reads back as another".into())?;
    }
    if let Ok(id) = CommitId::parse(&text) {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        holds(id.as_str().bytes().all(hex), || format!("{id} is an id"))?;
    }
    let (commit, branch, any) = fuzzing::ls_remote(&text);
    holds(commit.is_none() || any, || "a HEAD but no commit".into())?;
    if let Some(branch) = &branch {
        git_takes(branch)?;
    }
    let stat = fuzzing::numstat(bytes);
    holds(stat.files >= stat.paths.len() as u64, || {
        "more paths than files".into()
    })?;
    let main = RefName::branch("main").map_err(|e| e.to_string())?;
    let tree = fuzzing::worktree_on(bytes, &main);
    let key = fuzzing::mirror_key(&text);
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    holds(
        key.len() <= 64 && !key.starts_with('-') && key.bytes().all(plain),
        || format!("{key:?} is a folder's name"),
    )?;
    Ok(shape_of((
        named.map(|name| name.is_ok()),
        (commit.is_some(), branch.is_some(), any, tree.is_some()),
        stat.files.min(4),
    )))
}

/// The rules of git-check-ref-format, and ours that no part looks like an option.
fn git_takes(name: &str) -> Result<(), String> {
    let bad = |c: char| c.is_ascii_control() || " ~^:?*[\\".contains(c);
    let part_ok =
        |part: &str| !part.is_empty() && !part.starts_with(['.', '-']) && !part.ends_with(".lock");
    let good = name.starts_with("refs/")
        && !name.contains("..")
        && !name.contains("@{")
        && !name.ends_with('.')
        && !name.contains(bad)
        && name.split('/').all(part_ok);
    holds(good, || format!("{name:?} is a reference"))
}

fn ignore(bytes: &[u8]) -> Result<Shape, String> {
    let (rules, file) = match bytes.iter().rposition(|b| *b == 0) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &b"target/a.log"[..]),
    };
    let mut ignored = false;
    // A file's name as it can come out of a tree.
    if !file.is_empty() && !file.starts_with(b"/") && !file.ends_with(b"/") {
        ignored = fuzzing::ignores(rules, file);
    }
    let more = [rules, b"\n/zz-last\n"].concat();
    holds(fuzzing::ignores(&more, b"zz-last"), || {
        "the last rule does not count".into()
    })?;
    let less = [rules, b"\n!/zz-last\n"].concat();
    holds(!fuzzing::ignores(&less, b"zz-last"), || {
        "the last exception does not count".into()
    })?;
    Ok(shape_of((
        ignored,
        rules.split(|b| *b == b'\n').count().min(6),
    )))
}

fn job_files(bytes: &[u8]) -> Result<Shape, String> {
    let exit = fuzzing::exit_file(bytes);
    let group = fuzzing::group_file(bytes);
    if let Ok(exit) = &exit {
        let text = serde_json::to_vec(exit).map_err(|e| e.to_string())?;
        let back = fuzzing::exit_file(&text).map_err(|e| e.to_string())?;
        holds(back == *exit, || "an exit reads back as another".into())?;
    }
    if let Ok(group) = &group {
        let text = serde_json::to_vec(group).map_err(|e| e.to_string())?;
        let back = fuzzing::group_file(&text).map_err(|e| e.to_string())?;
        holds(back == *group, || "a group reads back as another".into())?;
    }
    let stopped = exit.as_ref().ok().and_then(|e| e.stopped.clone());
    Ok(shape_of((
        exit.is_ok(),
        group.is_ok(),
        stopped.map(|stop| std::mem::discriminant(&stop)),
    )))
}
