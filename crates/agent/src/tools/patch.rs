//! Patches as models write them: files added, deleted, moved, and changed by lines with their
//! context. Pure. Must not apply a piece where it does not fit: spaces at the ends of lines are all
//! that may differ.

/// What one patch does to one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Add {
        path: String,
        content: String,
    },
    Delete {
        path: String,
    },
    Update {
        path: String,
        to: Option<String>,
        pieces: Vec<Piece>,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Piece {
    /// A line further up, such as a function's head: the piece is below it.
    below: Option<String>,
    /// What is there: context and what goes.
    old: Vec<String>,
    /// What will be there.
    new: Vec<String>,
    /// It is at the end of the file.
    at_end: bool,
}

const BEGIN: &str = "*** Begin Patch";
const END: &str = "*** End Patch";
const ADD: &str = "*** Add File: ";
const DELETE: &str = "*** Delete File: ";
const UPDATE: &str = "*** Update File: ";
const MOVE: &str = "*** Move to: ";
const AT_END: &str = "*** End of File";

pub(super) fn parse(text: &str) -> Result<Vec<Change>, String> {
    let mut lines = text.trim().lines().enumerate().peekable();
    match lines.next() {
        Some((_, line)) if line.trim_end() == BEGIN => {}
        _ => return Err(format!("the patch must begin with the line `{BEGIN}`")),
    }
    let mut changes = Vec::new();
    let mut ended = false;
    while let Some((number, line)) = lines.next() {
        let line = line.trim_end();
        let number = number + 1;
        if line == END {
            ended = true;
            break;
        }
        if line.is_empty() {
            continue;
        }
        let mut body = Vec::new();
        while let Some((number, line)) = lines.next_if(|(_, line)| !begins(line)) {
            body.push((number + 1, line));
        }
        changes.push(change(number, line, &body)?);
    }
    if !ended {
        return Err(format!("the patch must end with the line `{END}`"));
    }
    if changes.is_empty() {
        return Err("the patch changes nothing".into());
    }
    Ok(changes)
}

/// A line that is no part of the change before it.
fn begins(line: &str) -> bool {
    [ADD, DELETE, UPDATE]
        .iter()
        .any(|word| line.starts_with(word))
        || line.trim_end() == END
}

fn change(number: usize, head: &str, body: &[(usize, &str)]) -> Result<Change, String> {
    if let Some(path) = head.strip_prefix(ADD) {
        let mut content = String::new();
        for (number, line) in body {
            let line = line
                .strip_prefix('+')
                .ok_or_else(|| format!("line {number}: a line of a new file begins with `+`"))?;
            content.push_str(line);
            content.push('\n');
        }
        let path = path.trim().to_owned();
        return Ok(Change::Add { path, content });
    }
    if let Some(path) = head.strip_prefix(DELETE) {
        if let Some((number, _)) = body.iter().find(|(_, line)| !line.trim().is_empty()) {
            return Err(format!(
                "line {number}: a file that is deleted has no lines"
            ));
        }
        let path = path.trim().to_owned();
        return Ok(Change::Delete { path });
    }
    if let Some(path) = head.strip_prefix(UPDATE) {
        let path = path.trim().to_owned();
        let (to, body) = match body.split_first() {
            Some(((_, line), rest)) if line.starts_with(MOVE) => {
                (Some(line[MOVE.len()..].trim().to_owned()), rest)
            }
            _ => (None, body),
        };
        let pieces = pieces(body)?;
        if pieces.is_empty() && to.is_none() {
            return Err(format!("line {number}: nothing of {path} is changed"));
        }
        return Ok(Change::Update { path, to, pieces });
    }
    Err(format!(
        "line {number}: a file's change begins with `{}`, `{}` or `{}`",
        ADD.trim_end(),
        DELETE.trim_end(),
        UPDATE.trim_end()
    ))
}

fn pieces(body: &[(usize, &str)]) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut piece = Piece::default();
    for (number, line) in body {
        if let Some(head) = line.strip_prefix("@@") {
            pieces.extend(filled(std::mem::take(&mut piece)));
            let head = head.trim().trim_end_matches("@@").trim();
            // Line numbers of other kinds of patches: models count badly.
            let said = !head.is_empty() && !head.starts_with('-');
            piece.below = said.then(|| head.to_owned());
        } else if line.trim_end() == AT_END {
            piece.at_end = true;
            pieces.extend(filled(std::mem::take(&mut piece)));
        } else if let Some(gone) = line.strip_prefix('-') {
            piece.old.push(gone.to_owned());
        } else if let Some(added) = line.strip_prefix('+') {
            piece.new.push(added.to_owned());
        } else if let Some(kept) = line.strip_prefix(' ').or(line.is_empty().then_some("")) {
            piece.old.push(kept.to_owned());
            piece.new.push(kept.to_owned());
        } else {
            return Err(format!(
                "line {number}: a line of a change begins with a space, `-`, `+` or `@@`"
            ));
        }
    }
    pieces.extend(filled(piece));
    Ok(pieces)
}

fn filled(piece: Piece) -> Option<Piece> {
    (!piece.old.is_empty() || !piece.new.is_empty()).then_some(piece)
}

/// The content with all pieces in their places, one below the other.
pub(super) fn apply(before: &str, pieces: &[Piece]) -> Result<String, String> {
    let returns = before.contains("\r\n");
    let ended = before.is_empty() || before.ends_with('\n');
    let mut lines: Vec<String> = before.lines().map(str::to_owned).collect();
    let mut from = 0;
    for (index, piece) in pieces.iter().enumerate() {
        let wrong = |why: String| format!("piece {}: {why}", index + 1);
        if let Some(head) = &piece.below {
            let rest = lines.iter().skip(from);
            let found = rest.clone().position(|line| line.trim() == head.trim());
            let found = found.or_else(|| rest.clone().position(|line| line.contains(head.trim())));
            let Some(found) = found else {
                return Err(wrong(format!(
                    "there is no line `{head}` below line {from}"
                )));
            };
            from += found + 1;
        }
        let at = place(&lines, piece, from).ok_or_else(|| wrong(not_found(piece, from)))?;
        lines.splice(at..at + piece.old.len(), piece.new.iter().cloned());
        from = at + piece.new.len();
    }
    let end = if returns { "\r\n" } else { "\n" };
    let mut after = lines.join(end);
    if ended && !lines.is_empty() {
        after.push_str(end);
    }
    Ok(after)
}

fn place(lines: &[String], piece: &Piece, from: usize) -> Option<usize> {
    let count = piece.old.len();
    if count == 0 {
        // Nothing but new lines: below the head that was named, else at the end.
        return Some(if piece.below.is_some() {
            from
        } else {
            lines.len()
        });
    }
    let last = lines.len().checked_sub(count)?;
    if piece.at_end {
        return fits(lines, piece, last, str::eq).or_else(|| fits(lines, piece, last, alike));
    }
    let find = |same: fn(&str, &str) -> bool| {
        (from..=last).find(|at| fits(lines, piece, *at, same).is_some())
    };
    find(str::eq).or_else(|| find(alike))
}

fn fits(lines: &[String], piece: &Piece, at: usize, same: fn(&str, &str) -> bool) -> Option<usize> {
    let mut pairs = lines.get(at..)?.iter().zip(&piece.old);
    pairs.all(|(line, old)| same(line, old)).then_some(at)
}

fn alike(a: &str, b: &str) -> bool {
    a.trim_end() == b.trim_end()
}

fn not_found(piece: &Piece, from: usize) -> String {
    let lines: Vec<&str> = piece.old.iter().map(String::as_str).take(3).collect();
    let lines = lines.join("\n");
    if piece.at_end {
        format!("the file does not end like this:\n{lines}")
    } else {
        format!("these lines are not in the file below line {from}:\n{lines}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(body: &str) -> Vec<Piece> {
        let text = format!("{BEGIN}\n{UPDATE}a\n{body}\n{END}");
        match parse(&text).unwrap().remove(0) {
            Change::Update { pieces, .. } => pieces,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_kinds_of_change_are_read() {
        let text = "*** Begin Patch\n*** Add File: new/a.txt\n+one\n+\n+three\n\
                    *** Delete File: old.txt\n*** Update File: b.rs\n*** Move to: c.rs\n\
                    @@ fn main() {\n     a();\n-    b();\n+    c();\n*** End Patch\n";
        let changes = parse(text).unwrap();
        let add = Change::Add {
            path: "new/a.txt".into(),
            content: "one\n\nthree\n".into(),
        };
        assert_eq!(changes[0], add);
        assert_eq!(
            changes[1],
            Change::Delete {
                path: "old.txt".into()
            }
        );
        let Change::Update { path, to, pieces } = &changes[2] else {
            panic!("{changes:?}");
        };
        assert_eq!((path.as_str(), to.as_deref()), ("b.rs", Some("c.rs")));
        let before = "fn x() {\n    a();\n    b();\n}\nfn main() {\n    a();\n    b();\n}\n";
        let after = apply(before, pieces).unwrap();
        assert_eq!(
            after,
            before.replacen(
                "main() {\n    a();\n    b()",
                "main() {\n    a();\n    c()",
                1
            )
        );
    }

    #[test]
    fn pieces_go_below_each_other() {
        let pieces = update("@@\n-a\n+1\n@@\n-a\n+2\n@@\n+end\n*** End of File");
        assert_eq!(apply("a\na\na\n", &pieces).unwrap(), "1\n2\na\nend\n");
        let pieces = update("@@\n x\n-y\n*** End of File");
        assert_eq!(apply("x\ny\nz\nx\ny", &pieces).unwrap(), "x\ny\nz\nx");
        assert!(
            apply("x\ny\nz\n", &pieces)
                .unwrap_err()
                .contains("does not end like this")
        );
    }

    #[test]
    fn only_spaces_at_the_ends_of_lines_may_differ() {
        let pieces = update("@@\n-a  \n+b");
        assert_eq!(apply("a\r\nc\r\n", &pieces).unwrap(), "b\r\nc\r\n");
        let error = apply("  a\n", &pieces).unwrap_err();
        assert!(
            error.contains("piece 1: these lines are not in the file"),
            "{error}"
        );
        let pieces = update("@@ fn gone()\n-a\n+b");
        assert!(
            apply("a\n", &pieces)
                .unwrap_err()
                .contains("no line `fn gone()`")
        );
    }

    #[test]
    fn what_is_no_patch_is_told_by_its_line() {
        for (text, part) in [
            ("diff --git", "must begin with the line"),
            (
                "*** Begin Patch\n*** Add File: a\n+x",
                "must end with the line",
            ),
            ("*** Begin Patch\n*** End Patch", "changes nothing"),
            (
                "*** Begin Patch\n*** Add File: a\nx\n*** End Patch",
                "line 3: a line of a new file",
            ),
            (
                "*** Begin Patch\n*** Rename: a\n*** End Patch",
                "line 2: a file's change begins",
            ),
            (
                "*** Begin Patch\n*** Update File: a\n*** End Patch",
                "nothing of a is changed",
            ),
            (
                "*** Begin Patch\n*** Update File: a\n@@\nx\n*** End Patch",
                "line 4: a line of a change",
            ),
            (
                "*** Begin Patch\n*** Delete File: a\n-x\n*** End Patch",
                "line 3: a file that is deleted",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    /// A patch made of two contents brings the one to the other.
    #[test]
    fn a_patch_made_of_two_contents_fits() {
        use crate::random::Random;
        let mut random = Random::new(9);
        for _ in 0..2000 {
            let line = |random: &mut Random| ["a", "b", "", "  c"][random.below(4)].to_owned();
            let old: Vec<String> = (0..random.below(8)).map(|_| line(&mut random)).collect();
            let new: Vec<String> = (0..1 + random.below(8))
                .map(|_| line(&mut random))
                .collect();
            let piece = Piece {
                below: None,
                at_end: true,
                old: old.clone(),
                new: new.clone(),
            };
            let text = |lines: &[String]| -> String {
                lines.iter().map(|line| format!("{line}\n")).collect()
            };
            assert_eq!(apply(&text(&old), &[piece]).unwrap(), text(&new));
        }
    }
}
