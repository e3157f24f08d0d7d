//! `edit_file`: exact replacements in one file, all of them or none.
//! Must not guess: a text that is not there, or is there twice, is told with what is there instead.

use std::fmt::Write as _;

use dispatch_core::rules::Group;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Given, Place, Planned, Run, Tool, Wrong, blocking,
    place::Real,
    schema,
    write_file::{content, store, told},
};

/// Places that a message names.
const PLACES_MAX: usize = 5;

pub(super) const TOOL: Tool = Tool {
    name: "edit_file",
    line: "replace texts in a file",
    help: "Replaces texts in a file, one after the other; if one of them fails nothing is changed. \
           Each old text must be in the file exactly as given, with its spaces and line ends, and \
           only once, unless all is true. Give enough of the lines around it. The answer is a diff.",
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
    /// What to replace, in this order.
    edits: Vec<Edit>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Edit {
    /// The text that is there.
    old: String,
    /// The text instead.
    new: String,
    /// Replace it wherever it is.
    #[serde(default)]
    all: bool,
}

fn plan(given: &Given) -> Result<Planned, Wrong> {
    let input: Input = given.parse()?;
    let file = given.place.inside(&input.path)?;
    Ok(Planned::new(vec![file.subject()], async move |run: Run| {
        blocking(move || edit(&run.place, &file, &input.edits)).await
    }))
}

fn edit(place: &Place, file: &Real, edits: &[Edit]) -> Result<String, Wrong> {
    let shown = file.shown();
    let Some(before) = content(file)? else {
        let text = format!("edit {shown}: it is not there; write_file makes a new file");
        return Err(Wrong::new(text));
    };
    let before = String::from_utf8(before)
        .map_err(|_| Wrong::new(format!("edit {shown}: it is no UTF-8 text")))?;
    let after = apply(shown, &before, edits)?;
    store(place, file, &after)?;
    Ok(told(shown, Some(&before), &after))
}

fn apply(shown: &str, before: &str, edits: &[Edit]) -> Result<String, Wrong> {
    if edits.is_empty() {
        return Err(Wrong::new(format!(
            "edit {shown}: there is nothing to replace"
        )));
    }
    // A model writes line feeds; a file with both is left to be exact.
    let returns = before.contains("\r\n") && !before.replace("\r\n", "").contains('\n');
    let mut text = before.to_owned();
    for (index, edit) in edits.iter().enumerate() {
        let ends = |text: &str| {
            if returns && !text.contains('\r') {
                text.replace('\n', "\r\n")
            } else {
                text.to_owned()
            }
        };
        let (old, new) = (ends(&edit.old), ends(&edit.new));
        let wrong = |why: String| Wrong::new(format!("edit {} of {shown}: {why}", index + 1));
        if old.is_empty() {
            return Err(wrong("the old text is empty".into()));
        }
        if old == new {
            return Err(wrong("the old and the new text are the same".into()));
        }
        let places: Vec<usize> = text.match_indices(&old).map(|(at, _)| at).collect();
        match places.len() {
            0 => return Err(wrong(missing(&text, &old))),
            1 => text = text.replacen(&old, &new, 1),
            _ if edit.all => text = text.replace(&old, &new),
            count => return Err(wrong(several(&text, &places, count))),
        }
    }
    Ok(text)
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

fn several(text: &str, places: &[usize], count: usize) -> String {
    let lines: Vec<String> = places
        .iter()
        .take(PLACES_MAX)
        .map(|at| line_of(text, *at).to_string())
        .collect();
    let more = if count > PLACES_MAX { " and more" } else { "" };
    format!(
        "the text is there {count} times, in lines {}{more}; give more of what is around it, or \
         set all",
        lines.join(", ")
    )
}

/// What the model may have meant: the same words with other spaces, or the same first line.
fn missing(text: &str, old: &str) -> String {
    let mut said = "the text is not in the file".to_owned();
    let wanted: Vec<String> = old
        .lines()
        .map(squeezed)
        .filter(|line| !line.is_empty())
        .collect();
    let Some(first) = wanted.first() else {
        return said;
    };
    let lines: Vec<String> = text.lines().map(squeezed).collect();
    let starts = lines.iter().enumerate().filter(|(_, line)| *line == first);
    let starts: Vec<usize> = starts.map(|(index, _)| index).take(PLACES_MAX).collect();
    let alike = starts.iter().find(|start| {
        let rest = lines[**start..].iter().filter(|line| !line.is_empty());
        rest.take(wanted.len()).eq(wanted.iter())
    });
    let outcome = if let Some(start) = alike {
        let line = start + 1;
        let real: Vec<&str> = text
            .lines()
            .skip(*start)
            .take(old.lines().count())
            .collect();
        write!(
            said,
            "; line {line} has the same words with other spaces or line ends:\n{}",
            real.join("\n")
        )
    } else if starts.is_empty() {
        write!(said, ", and neither is its first line; read the file again")
    } else {
        let lines: Vec<String> = starts.iter().map(|start| (start + 1).to_string()).collect();
        let lines = lines.join(", ");
        write!(
            said,
            "; its first line is in line {lines}, but what follows differs there"
        )
    };
    match outcome {
        // Writing into a text does not fail.
        Ok(()) | Err(_) => said,
    }
}

fn squeezed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::tools::testing::Bench;

    fn edits(list: &[(&str, &str, bool)]) -> Value {
        let edits = list
            .iter()
            .map(|(old, new, all)| json!({"old": old, "new": new, "all": all}));
        json!({"path": "a", "edits": edits.collect::<Vec<_>>()})
    }

    #[tokio::test]
    async fn texts_are_replaced_in_order() {
        let bench = Bench::new();
        bench.write("a", "fn one() {}\nfn two() {}\n");
        let told = bench
            .told(
                "edit_file",
                edits(&[
                    ("one", "three", false),
                    ("fn three", "pub fn three", false),
                    ("()", "(x)", true),
                ]),
            )
            .await;
        assert_eq!(bench.read("a"), "pub fn three(x) {}\nfn two(x) {}\n");
        assert!(
            told.contains("-fn one() {}") && told.contains("+pub fn three(x) {}"),
            "{told}"
        );
    }

    #[tokio::test]
    async fn one_that_fails_changes_nothing_and_says_what_is_there() {
        let bench = Bench::new();
        let content = "if a {\n    b();\n}\nif a {\n    c();\n}\n";
        bench.write("a", content);
        for (list, part) in [
            (
                edits(&[("b()", "x()", false), ("gone", "x", false)]),
                "edit 2 of a: the text is not in the file, and neither",
            ),
            (
                edits(&[("if a {", "x", false)]),
                "there 2 times, in lines 1, 4",
            ),
            (
                edits(&[("if a {\n\tc();\n}", "x", false)]),
                "line 4 has the same words with other spaces or line ends:\nif a {\n    c();\n}",
            ),
            (
                edits(&[("if a {\n    d();", "x", false)]),
                "its first line is in line 1, 4, but",
            ),
            (edits(&[("", "x", false)]), "the old text is empty"),
            (edits(&[("a", "a", false)]), "are the same"),
            (edits(&[]), "nothing to replace"),
        ] {
            let wrong = bench.wrong("edit_file", list).await;
            assert!(wrong.contains(part), "{wrong}");
            assert_eq!(bench.read("a"), content);
        }
        let wrong = bench
            .wrong("edit_file", json!({"path": "x", "edits": []}))
            .await;
        assert!(wrong.contains("write_file makes a new file"), "{wrong}");
    }

    #[tokio::test]
    async fn line_ends_stay_what_they_are() {
        let bench = Bench::new();
        bench.write("a", "one\r\ntwo\r\nthree\r\n");
        bench
            .told("edit_file", edits(&[("one\ntwo", "1\n2", false)]))
            .await;
        assert_eq!(bench.read("a"), "1\r\n2\r\nthree\r\n");
    }
}
