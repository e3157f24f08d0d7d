//! `write_file`: a whole file, in one rename, and what changed by it.
//! Must not write over what the model has not seen: what somebody else changed meanwhile stays.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use dispatch_core::rules::Group;
use schemars::JsonSchema;
use serde::Deserialize;
use similar::TextDiff;

use super::{
    Given, Place, Planned, Run, Tool, Wrong, blocking,
    known::Knows,
    open::open,
    place::{Real, failed},
    schema,
};

/// A file that is read to be compared; larger ones are written over without a diff.
pub(super) const FILE_BYTES_MAX: u64 = 16 << 20;
const DIFF_LINES_AROUND: usize = 3;

pub(super) const TOOL: Tool = Tool {
    name: "write_file",
    line: "write a whole file",
    help: "Writes a whole file, new or instead of what is there, with all directories it needs. A \
           file that is there must have been read first, all of it, and must not have changed \
           since; to change parts of it use edit_file. The answer is a diff.",
    group: Group::Edit,
    safe: false,
    schema: schema::<Input>,
    plan,
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The file, relative to the workspace or absolute.
    path: String,
    /// All of its new content.
    content: String,
}

fn plan(given: &Given) -> Result<Planned, Wrong> {
    let input: Input = given.parse()?;
    let file = given.place.inside(&input.path)?;
    Ok(Planned::new(vec![file.subject()], async move |run: Run| {
        blocking(move || write(&run.place, &file, &input.content)).await
    }))
}

fn write(place: &Place, file: &Real, after: &str) -> Result<String, Wrong> {
    let before = content(file)?;
    check_known(place, file, before.as_ref())?;
    store(place, file, after)?;
    let before = before.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok(told(file.shown(), before.as_deref(), after))
}

fn check_known(place: &Place, file: &Real, before: Option<&Vec<u8>>) -> Result<(), Wrong> {
    let (path, shown) = (file.path(), file.shown());
    let Some(before) = before.filter(|bytes| !bytes.is_empty()) else {
        return Ok(());
    };
    let why = match place.known().of(path, before) {
        Knows::All => return Ok(()),
        Knows::Changed => "it has changed since it was read; read it again".to_owned(),
        Knows::Nothing => "it is there and has not been read; read it first, or change it with \
                           edit_file"
            .to_owned(),
        Knows::Part { unseen, others } => {
            let (first, last) = unseen.into_inner();
            let lines = if first == last {
                format!("line {first}")
            } else {
                format!("lines {first}-{last}")
            };
            let verb = if others || first != last {
                "have"
            } else {
                "has"
            };
            let others = if others { " and others" } else { "" };
            format!(
                "its {lines}{others} {verb} not been read; read what is left first, or change it \
                 with edit_file"
            )
        }
    };
    Err(Wrong::new(format!("write {shown}: {why}")))
}

/// `None`: there is no such file.
pub(super) fn content(file: &Real) -> Result<Option<Vec<u8>>, Wrong> {
    all_of(file.path()).map_err(|error| failed("read", file.shown(), &error))
}

fn all_of(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    let read = (&file).take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!(
            "it has more than {FILE_BYTES_MAX} bytes, which is too much to change here"
        )));
    }
    Ok(Some(bytes))
}

/// All at once: whoever reads it sees the old or the new content, whatever happens to us.
pub(super) fn store(place: &Place, file: &Real, content: &str) -> Result<(), Wrong> {
    let (path, shown) = (file.path(), file.shown());
    let wrong = |error: io::Error| failed("write", shown, &error);
    file.check().map_err(wrong)?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(wrong)?;
    }
    let (temporary, mut file) = beside(path).map_err(wrong)?;
    let written = file
        .write_all(content.as_bytes())
        .and_then(|()| keep_mode(path, &file))
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        let removed = fs::remove_file(&temporary);
        let left = removed
            .err()
            .map(|_| format!("; {} is left", temporary.display()));
        let left = left.unwrap_or_default();
        return Err(Wrong::new(format!("write {shown}: {error}{left}")));
    }
    place.known().wrote(path, content.as_bytes());
    Ok(())
}

fn beside(path: &Path) -> io::Result<(std::path::PathBuf, File)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let hidden = format!(".{name}.dispatch-{}-{n}", std::process::id());
        let temporary = path.with_file_name(hidden);
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o666)
            .open(&temporary);
        match made {
            Ok(file) => return Ok((temporary, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// A script stays one.
fn keep_mode(path: &Path, file: &File) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) => {
            let mode = found.permissions().mode() & 0o777;
            file.set_permissions(fs::Permissions::from_mode(mode))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// What the model is told of a change.
pub(super) fn told(shown: &str, before: Option<&str>, after: &str) -> String {
    let lines = after.lines().count();
    match before {
        None => format!("wrote {shown}: new, {lines} lines"),
        Some(before) if before == after => format!("{shown} had this content already"),
        Some(before) => format!("wrote {shown}\n{}", diff(shown, before, after)),
    }
}

pub(super) fn diff(shown: &str, before: &str, after: &str) -> String {
    TextDiff::from_lines(before, after)
        .unified_diff()
        .context_radius(DIFF_LINES_AROUND)
        .header(&format!("a/{shown}"), &format!("b/{shown}"))
        .to_string()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::*;
    use crate::tools::testing::{Bench, files};

    #[tokio::test]
    async fn a_file_is_written_whole_and_the_change_is_shown() {
        let bench = Bench::new();
        let write = |content: &str| {
            bench.told(
                "write_file",
                json!({"path": "src/a.rs", "content": content}),
            )
        };
        assert_eq!(write("one\ntwo\n").await, "wrote src/a.rs: new, 2 lines");
        let told = write("one\n2\n").await;
        assert_eq!(
            told,
            "wrote src/a.rs\n--- a/src/a.rs\n+++ b/src/a.rs\n@@ -1,2 +1,2 @@\n one\n-two\n+2\n"
        );
        assert_eq!(write("one\n2\n").await, "src/a.rs had this content already");
        assert_eq!(bench.read("src/a.rs"), "one\n2\n");
        assert_eq!(files(&bench.path("src")), ["a.rs"]);
    }

    #[tokio::test]
    async fn what_the_model_has_not_seen_stays() {
        let bench = Bench::new();
        bench.write("a", "somebody's");
        let input = json!({"path": "a", "content": "mine"});
        let wrong = bench.wrong("write_file", input.clone()).await;
        assert!(wrong.contains("has not been read"), "{wrong}");
        bench.told("read_file", json!({"path": "a"})).await;
        bench.write("a", "changed");
        let wrong = bench.wrong("write_file", input.clone()).await;
        assert!(wrong.contains("changed since it was read"), "{wrong}");
        assert_eq!(bench.read("a"), "changed");
        bench.told("read_file", json!({"path": "a"})).await;
        bench.told("write_file", input).await;
        assert_eq!(bench.read("a"), "mine");
    }

    /// A page is not the file, and a line that was cut is not the line.
    #[tokio::test]
    async fn what_was_seen_in_part_stays() {
        let bench = Bench::new();
        let content: String = (1..=1200).map(|n| format!("line {n}\n")).collect();
        bench.write("a", &content);
        let input = json!({"path": "a", "content": "mine"});
        let read = |offset: usize| bench.told("read_file", json!({"path": "a", "offset": offset}));
        let why = |missing: &str| {
            format!(
                "error: write a: {missing} not been read; read what is left first, or change it \
                 with edit_file"
            )
        };
        read(1).await;
        let wrong = bench.wrong("write_file", input.clone()).await;
        assert_eq!(wrong, why("its lines 500-1200 have"));
        read(1200).await;
        read(502).await;
        let wrong = bench.wrong("write_file", input.clone()).await;
        assert_eq!(wrong, why("its lines 500-501 and others have"));
        read(400).await;
        let wrong = bench.wrong("write_file", input.clone()).await;
        assert_eq!(wrong, why("its lines 1001-1199 have"));
        read(900).await;
        bench.told("write_file", input.clone()).await;
        assert_eq!(bench.read("a"), "mine");
        // What it wrote itself it knows.
        bench
            .told("write_file", json!({"path": "a", "content": content}))
            .await;
        bench.write("a", format!("{}\nb\n", "x".repeat(5000)));
        read(1).await;
        let wrong = bench.wrong("write_file", input).await;
        assert_eq!(wrong, why("its line 1 has"));
    }

    #[tokio::test]
    async fn modes_and_links_stay() {
        let bench = Bench::new();
        bench.write("run.sh", "a");
        let script = bench.path("run.sh");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        symlink("run.sh", bench.path("link")).unwrap();
        bench.told("read_file", json!({"path": "link"})).await;
        bench
            .told("write_file", json!({"path": "link", "content": "b"}))
            .await;
        assert_eq!(bench.read("run.sh"), "b");
        assert_eq!(
            fs::metadata(&script).unwrap().permissions().mode() & 0o777,
            0o755
        );
        assert!(
            fs::symlink_metadata(bench.path("link"))
                .unwrap()
                .is_symlink()
        );
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_told() {
        let bench = Bench::new();
        bench.write("a", "");
        fs::create_dir(bench.path("dir")).unwrap();
        let wrong = |path| bench.wrong("write_file", json!({"path": path, "content": "x"}));
        assert!(wrong("dir").await.contains("it is a directory"));
        assert!(wrong("../x").await.contains("outside the workspace"));
        assert!(wrong("a/b").await.contains("a part of the path is a file"));
    }
}
