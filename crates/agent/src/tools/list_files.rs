//! `list_files`: what is in a directory, or below it by a pattern, sorted, without what the
//! repository ignores. Must not follow links.

use std::sync::Arc;

use dispatch_core::rules::Group;
use ignore::overrides::OverrideBuilder;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Given, Place, Planned, Run, Tool, Wrong, blocking,
    place::Real,
    schema,
    tree::{self, LeftOut, Sight},
};

const ENTRIES_MAX: usize = 2_000;
/// Looked at; a tree with more is cut.
const VISITED_MAX: usize = 1_000_000;

pub(super) const TOOL: Tool = Tool {
    name: "list_files",
    line: "list a directory, or find files by a pattern",
    help: "Lists a directory of the workspace, sorted, directories with a slash at their end. With \
           glob it lists the files below it that fit (`**/*.rs`, `src/*.{js,ts}`). What .gitignore \
           names is left out, and .git; all: true shows it.",
    group: Group::Read,
    safe: true,
    schema: schema::<Input>,
    plan,
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The directory; without it, the workspace.
    #[serde(default)]
    path: Option<String>,
    /// A pattern of paths below it, for all depths.
    #[serde(default)]
    glob: Option<String>,
    /// Also what the repository ignores.
    #[serde(default)]
    all: bool,
}

fn plan(given: &Given) -> Result<Planned, Wrong> {
    let input: Input = given.parse()?;
    let dir = given.place.inside(input.path.as_deref().unwrap_or("."))?;
    let seen = Sight::new(given, &dir);
    Ok(Planned::new(vec![dir.subject()], async move |run: Run| {
        blocking(move || entries(&run.place, &dir, seen, &input)).await
    }))
}

fn entries(place: &Arc<Place>, dir: &Real, seen: Sight, input: &Input) -> Result<String, Wrong> {
    let shown = dir.shown();
    if !dir.path().is_dir() {
        return Err(Wrong::new(format!("list {shown}: it is no directory")));
    }
    let mut names = Vec::new();
    let mut visited = 0;
    let mut unreadable = 0;
    let (walk, left_out) = walk(place, dir, seen, input)?;
    for entry in walk {
        visited += 1;
        if visited > VISITED_MAX {
            break;
        }
        let Ok(entry) = entry else {
            unreadable += 1;
            continue;
        };
        let is_dir = entry.file_type().is_some_and(|kind| kind.is_dir());
        let Ok(path) = entry.path().strip_prefix(dir.path()) else {
            continue;
        };
        if path.as_os_str().is_empty() || (is_dir && input.glob.is_some()) {
            continue;
        }
        let slash = if is_dir { "/" } else { "" };
        names.push(format!("{}{slash}", path.display()));
    }
    names.sort_unstable();
    let mut lines = vec![text(shown, names, visited, unreadable)];
    lines.extend(left_out.told());
    Ok(lines.join("\n"))
}

fn text(shown: &str, mut names: Vec<String>, visited: usize, unreadable: usize) -> String {
    let count = names.len();
    if count == 0 {
        return format!("nothing in {shown}");
    }
    names.truncate(ENTRIES_MAX);
    let mut text = names.join("\n");
    if count > ENTRIES_MAX {
        let more = count - ENTRIES_MAX;
        text.push_str(&format!(
            "\n[{more} more; say more of what is wanted with glob]"
        ));
    }
    if visited > VISITED_MAX {
        text.push_str(&format!("\n[only {VISITED_MAX} entries were looked at]"));
    }
    if unreadable > 0 {
        text.push_str(&format!("\n[{unreadable} could not be read]"));
    }
    text
}

fn walk(
    place: &Arc<Place>,
    dir: &Real,
    seen: Sight,
    input: &Input,
) -> Result<(ignore::Walk, LeftOut), Wrong> {
    let (mut walk, left_out) = tree::walk(place, dir, seen, input.all)?;
    match &input.glob {
        None => {
            walk.max_depth(Some(1));
        }
        Some(glob) => {
            let mut only = OverrideBuilder::new(dir.path());
            let bad = |error| Wrong::new(format!("{glob} is no pattern: {error}"));
            only.add(glob).map_err(bad)?;
            walk.overrides(only.build().map_err(bad)?);
        }
    }
    Ok((walk.build(), left_out))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::tools::testing::Bench;

    #[tokio::test]
    async fn it_is_sorted_and_knows_what_is_ignored() {
        let bench = Bench::new();
        for name in [
            "b.rs",
            "a.rs",
            "src/x.rs",
            "src/deep/y.rs",
            "target/z.rs",
            ".git/config",
            ".env",
        ] {
            bench.write(name, "");
        }
        bench.write(".gitignore", "target\n");
        let list = |input| bench.told("list_files", input);
        assert_eq!(list(json!({})).await, ".env\n.gitignore\na.rs\nb.rs\nsrc/");
        assert_eq!(list(json!({"path": "src"})).await, "deep/\nx.rs");
        let all = list(json!({"glob": "**/*.rs"})).await;
        assert_eq!(all, "a.rs\nb.rs\nsrc/deep/y.rs\nsrc/x.rs");
        let ignored = list(json!({"all": true})).await;
        assert!(
            ignored.contains(".git/") && ignored.contains("target/"),
            "{ignored}"
        );
        assert_eq!(list(json!({"glob": "*.go"})).await, "nothing in .");
        let wrong = bench.wrong("list_files", json!({"path": "a.rs"})).await;
        assert_eq!(wrong, "error: list a.rs: it is no directory");
        assert!(
            bench
                .wrong("list_files", json!({"path": ".."}))
                .await
                .contains("outside")
        );
        assert!(
            bench
                .wrong("list_files", json!({"glob": "a{"}))
                .await
                .contains("no pattern")
        );
    }

    #[tokio::test]
    async fn a_large_directory_is_cut_and_says_so() {
        let bench = Bench::new();
        for n in 0..2_010 {
            bench.write(&format!("f{n:04}"), "");
        }
        let told = bench.told("list_files", json!({})).await;
        assert!(
            told.ends_with("f1999\n[10 more; say more of what is wanted with glob]"),
            "{told}"
        );
    }
}
