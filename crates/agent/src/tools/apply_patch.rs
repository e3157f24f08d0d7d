//! `apply_patch`: changes of several files in one call, all of them or none.
//! Must not write anything before all of it is known to fit.

use std::{collections::BTreeMap, fs};

use dispatch_core::rules::{Group, Subject};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Given, Place, Planned, Run, Tool, Wrong, blocking,
    patch::{self, Change, Piece},
    place::{Real, failed},
    schema,
    write_file::{content, diff, store},
};

pub(super) const TOOL: Tool = Tool {
    name: "apply_patch",
    line: "change several files with one patch",
    help: "Changes files by a patch; if a part of it does not fit nothing is changed. The patch:\n\
           *** Begin Patch\n*** Update File: path\n@@ a line further up, such as a function's head\n \
           context\n-line that goes\n+line that comes\n*** Add File: path\n+line\n\
           *** Delete File: path\n*** End Patch\n\
           An update may have `*** Move to: path` as its first line, several pieces that each begin \
           with @@, and `*** End of File` after a piece at the end. Context lines begin with a \
           space.",
    group: Group::Edit,
    safe: false,
    schema: schema::<Input>,
    plan,
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The patch, from `*** Begin Patch` to `*** End Patch`.
    patch: String,
}

/// A change of files that were found.
enum Found {
    Add {
        file: Real,
        content: String,
    },
    Delete {
        file: Real,
    },
    Update {
        file: Real,
        to: Real,
        pieces: Vec<Piece>,
    },
}

fn plan(given: &Given) -> Result<Planned, Wrong> {
    let input: Input = given.parse()?;
    let changes = patch::parse(&input.patch).map_err(Wrong::new)?;
    let found: Result<Vec<Found>, Wrong> = changes
        .into_iter()
        .map(|change| found(&given.place, change))
        .collect();
    let found = found?;
    Ok(Planned::new(subjects(&found), async move |run: Run| {
        blocking(move || change(&run.place, &found)).await
    }))
}

fn found(place: &Place, change: Change) -> Result<Found, Wrong> {
    Ok(match change {
        Change::Add { path, content } => Found::Add {
            file: place.inside(&path)?,
            content,
        },
        Change::Delete { path } => Found::Delete {
            file: place.inside(&path)?,
        },
        Change::Update { path, to, pieces } => {
            let file = place.inside(&path)?;
            let to = match to {
                Some(to) => place.inside(&to)?,
                None => file.clone(),
            };
            Found::Update { file, to, pieces }
        }
    })
}

/// All files it would touch, each once.
fn subjects(changes: &[Found]) -> Vec<Subject> {
    let mut subjects = Vec::new();
    for change in changes {
        let files = match change {
            Found::Add { file, .. } | Found::Delete { file } => [file, file],
            Found::Update { file, to, .. } => [file, to],
        };
        for subject in files.map(Real::subject) {
            if !subjects.contains(&subject) {
                subjects.push(subject);
            }
        }
    }
    subjects
}

/// What a file is to be: `None`, not there.
type After = BTreeMap<Real, Option<String>>;

fn change(place: &Place, changes: &[Found]) -> Result<String, Wrong> {
    let mut before = After::new();
    let mut after = After::new();
    for change in changes {
        intend(change, &mut before, &mut after)?;
    }
    write(place, &before, &after)
}

fn intend(change: &Found, before: &mut After, after: &mut After) -> Result<(), Wrong> {
    let mut there = |file: &Real, after: &After| -> Result<Option<String>, Wrong> {
        if let Some(planned) = after.get(file) {
            return Ok(planned.clone());
        }
        let text = content(file)?.map(String::from_utf8).transpose();
        let text = text.map_err(|_| Wrong::new(format!("{} is no UTF-8 text", file.shown())))?;
        before.insert(file.clone(), text.clone());
        Ok(text)
    };
    match change {
        Found::Add { file, content } => {
            if there(file, after)?.is_some() {
                let shown = file.shown();
                return Err(Wrong::new(format!("add {shown}: it is there already")));
            }
            after.insert(file.clone(), Some(content.clone()));
        }
        Found::Delete { file } => {
            if there(file, after)?.is_none() {
                let shown = file.shown();
                return Err(Wrong::new(format!("delete {shown}: it is not there")));
            }
            after.insert(file.clone(), None);
        }
        Found::Update { file, to, pieces } => {
            let shown = file.shown();
            let Some(text) = there(file, after)? else {
                return Err(Wrong::new(format!("change {shown}: it is not there")));
            };
            let text = patch::apply(&text, pieces)
                .map_err(|why| Wrong::new(format!("change {shown}: {why}")))?;
            if to != file {
                if there(to, after)?.is_some() {
                    let to = to.shown();
                    return Err(Wrong::new(format!("move {shown}: {to} is there already")));
                }
                after.insert(file.clone(), None);
            }
            after.insert(to.clone(), Some(text));
        }
    }
    Ok(())
}

fn write(place: &Place, before: &After, after: &After) -> Result<String, Wrong> {
    let mut told = Vec::new();
    for (file, content) in after {
        let shown = file.shown();
        let old = before.get(file).and_then(Option::as_deref);
        let done = match content {
            Some(content) => store(place, file, content).map(|()| match old {
                Some(old) => diff(shown, old, content),
                None => format!("added {shown}, {} lines\n", content.lines().count()),
            }),
            // Added and deleted in one patch.
            None if old.is_none() => continue,
            None => file
                .check()
                .and_then(|()| fs::remove_file(file.path()))
                .map(|()| format!("deleted {shown}\n"))
                .map_err(|error| failed("delete", shown, &error)),
        };
        match done {
            Ok(text) => told.push(text),
            Err(wrong) if told.is_empty() => return Err(wrong),
            Err(wrong) => {
                let done = told.concat();
                return Err(Wrong::new(format!(
                    "{wrong}; this was done before:\n{done}"
                )));
            }
        }
    }
    Ok(told.concat())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use dispatch_core::rules::Subject;
    use serde_json::json;

    use crate::tools::testing::{Bench, files};

    fn input(body: &str) -> serde_json::Value {
        json!({"patch": format!("*** Begin Patch\n{body}\n*** End Patch")})
    }

    #[tokio::test]
    async fn several_files_in_one_call() {
        let bench = Bench::new();
        bench.write("a.rs", "one\ntwo\n");
        bench.write("old.rs", "x\n");
        bench.write("gone.rs", "x\n");
        let told = bench
            .told(
                "apply_patch",
                input(
                    "*** Update File: a.rs\n@@\n-two\n+2\n*** Add File: dir/new.rs\n+hi\n\
                     *** Delete File: gone.rs\n*** Update File: old.rs\n*** Move to: new.rs\n\
                     @@\n-x\n+y",
                ),
            )
            .await;
        assert_eq!(bench.read("a.rs"), "one\n2\n");
        assert_eq!(bench.read("dir/new.rs"), "hi\n");
        assert_eq!(bench.read("new.rs"), "y\n");
        assert_eq!(files(bench.place.root()), ["a.rs", "dir", "new.rs"]);
        for part in [
            "-two\n+2",
            "added dir/new.rs, 1 lines",
            "deleted gone.rs",
            "deleted old.rs",
        ] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[tokio::test]
    async fn what_does_not_fit_changes_nothing() {
        let bench = Bench::new();
        bench.write("a", "one\n");
        for (body, part) in [
            (
                "*** Update File: a\n@@\n-one\n+1\n*** Update File: b\n@@\n-x\n+y",
                "change b: it is not there",
            ),
            (
                "*** Add File: c\n+x\n*** Update File: a\n@@\n-two\n+2",
                "change a: piece 1: these lines",
            ),
            ("*** Add File: a\n+x", "it is there already"),
            ("*** Delete File: x", "it is not there"),
            ("*** Add File: ../x\n+x", "outside the workspace"),
            (
                "*** Update File: a\n*** Move to: a/b\n@@\n-one\n+1",
                "a part of the path is a file",
            ),
        ] {
            let wrong = bench.wrong("apply_patch", input(body)).await;
            assert!(wrong.contains(part), "{wrong}");
            assert_eq!(
                (bench.read("a").as_str(), files(bench.place.root()).len()),
                ("one\n", 1)
            );
        }
    }

    #[tokio::test]
    async fn a_rule_is_asked_about_every_file_once() {
        let bench = Bench::new();
        bench.write("x/b", "");
        symlink("x", bench.path("l")).unwrap();
        let input = input(
            "*** Add File: x/../a\n+x\n*** Update File: l/b\n*** Move to: c\n@@\n-x\n+y\n\
             *** Update File: a\n@@\n-x\n+y",
        );
        let planned = bench.plan("apply_patch", &input).await.unwrap();
        let subjects = ["a", "x/b", "c"].map(|path| Subject::Path(path.into()));
        assert_eq!(planned.subjects, subjects);
        let bad = bench.plan("apply_patch", &json!({"patch": "x"})).await;
        assert!(
            bad.is_err(),
            "a text that says nothing of files asks nobody"
        );
    }
}
