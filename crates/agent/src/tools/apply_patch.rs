//! `apply_patch`: changes of several files in one call, all of them or none.
//! Must not write anything before all of it is known to fit.

use std::{collections::BTreeMap, fs, path::PathBuf};

use dispatch_core::rules::Group;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Place, Run, Tool, Wrong, blocking,
    patch::{self, Change},
    place::failed,
    schema, text_of,
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
    subjects,
    run: |run| Box::pin(run_patch(run)),
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The patch, from `*** Begin Patch` to `*** End Patch`.
    patch: String,
}

/// All files it would touch.
fn subjects(input: &serde_json::Value, place: &Place) -> Vec<String> {
    let changes = patch::parse(text_of(input, "patch")).unwrap_or_default();
    let mut paths: Vec<String> = Vec::new();
    for change in &changes {
        let (path, to) = match change {
            Change::Add { path, .. } | Change::Delete { path } => (path, None),
            Change::Update { path, to, .. } => (path, to.as_ref()),
        };
        paths.extend(
            [Some(path), to]
                .into_iter()
                .flatten()
                .map(|path| place.subject(path)),
        );
    }
    paths.dedup();
    paths
}

/// What a file is to be: `None`, not there.
type After = BTreeMap<PathBuf, Option<String>>;

async fn run_patch(run: Run) -> Result<String, Wrong> {
    let input: Input = run.parse()?;
    blocking(move || {
        let place = &run.place;
        let changes = patch::parse(&input.patch).map_err(Wrong::new)?;
        let mut before: After = BTreeMap::new();
        let mut after: After = BTreeMap::new();
        for change in &changes {
            plan(place, change, &mut before, &mut after)?;
        }
        write(place, &before, &after)
    })
    .await
}

fn plan(
    place: &Place,
    change: &Change,
    before: &mut After,
    after: &mut After,
) -> Result<(), Wrong> {
    let mut there = |path: &PathBuf, after: &After| -> Result<Option<String>, Wrong> {
        if let Some(planned) = after.get(path) {
            return Ok(planned.clone());
        }
        let shown = place.shown(path);
        let bytes = content(path).map_err(|error| failed("read", &shown, &error))?;
        let text = bytes.map(String::from_utf8).transpose();
        let text = text.map_err(|_| Wrong::new(format!("{shown} is no UTF-8 text")))?;
        before.insert(path.clone(), text.clone());
        Ok(text)
    };
    match change {
        Change::Add { path, content } => {
            let real = place.inside(path)?;
            if there(&real, after)?.is_some() {
                return Err(Wrong::new(format!("add {path}: it is there already")));
            }
            after.insert(real, Some(content.clone()));
        }
        Change::Delete { path } => {
            let real = place.inside(path)?;
            if there(&real, after)?.is_none() {
                return Err(Wrong::new(format!("delete {path}: it is not there")));
            }
            after.insert(real, None);
        }
        Change::Update { path, to, pieces } => {
            let real = place.inside(path)?;
            let Some(text) = there(&real, after)? else {
                return Err(Wrong::new(format!("change {path}: it is not there")));
            };
            let text = patch::apply(&text, pieces)
                .map_err(|why| Wrong::new(format!("change {path}: {why}")))?;
            let target = match to {
                Some(to) => place.inside(to)?,
                None => real.clone(),
            };
            if target != real {
                if there(&target, after)?.is_some() {
                    let to = place.shown(&target);
                    return Err(Wrong::new(format!("move {path}: {to} is there already")));
                }
                after.insert(real, None);
            }
            after.insert(target, Some(text));
        }
    }
    Ok(())
}

fn write(place: &Place, before: &After, after: &After) -> Result<String, Wrong> {
    let mut told = Vec::new();
    for (path, content) in after {
        let shown = place.shown(path);
        let old = before.get(path).and_then(Option::as_deref);
        let done = match content {
            Some(content) => store(place, path, content).map(|()| match old {
                Some(old) => diff(&shown, old, content),
                None => format!("added {shown}, {} lines\n", content.lines().count()),
            }),
            // Added and deleted in one patch.
            None if old.is_none() => continue,
            None => fs::remove_file(path)
                .map(|()| format!("deleted {shown}\n"))
                .map_err(|error| failed("delete", &shown, &error)),
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

    #[test]
    fn a_rule_is_asked_about_every_file() {
        let bench = Bench::new();
        let input =
            input("*** Add File: x/../a\n+x\n*** Update File: b\n*** Move to: c\n@@\n-x\n+y");
        assert_eq!(super::subjects(&input, &bench.place), ["x/../a", "b", "c"]);
    }
}
