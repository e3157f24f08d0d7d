//! The size of a prompt: what is over the budget becomes a file that the prompt names.
//! Must not drop anything: what is cut is whole in its file.

use super::Part;

/// What stays of a text that is cut, at least.
const KEPT_BYTES_MIN: usize = 1024;
/// More than the words that say so take.
const NOTE_BYTES: usize = 512;

/// A text that is too long for the prompt, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// A plain name.
    pub file: String,
    pub text: String,
}

/// Shortens parts, those first that are needed least, until all fit. `parts` are in the order of the
/// prompt; `rank` says who goes first.
pub(super) fn fit(parts: &mut [Part], files: &str, bytes_max: usize) -> Vec<Cut> {
    let mut cuts = Vec::new();
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|index| parts[*index].rank);
    for index in order {
        let size: usize = parts.iter().map(Part::bytes).sum();
        if size <= bytes_max {
            break;
        }
        let part = &mut parts[index];
        let Some(file) = part.file.clone() else {
            continue;
        };
        if part.body.len() <= KEPT_BYTES_MIN + NOTE_BYTES {
            continue;
        }
        // Quoting makes a body longer, so what goes is counted as it is shown.
        let (shown, over) = (part.shown(), size - bytes_max + NOTE_BYTES);
        let share = part.body.len() as f64 / shown.len() as f64;
        let over = (over as f64 * share).ceil() as usize;
        let kept = part.body.len().saturating_sub(over).max(KEPT_BYTES_MIN);
        let kept = line_before(&part.body, kept);
        part.note = format!(
            "[Cut: the first {kept} of {} bytes are above; all of it is in {files}/{file}]",
            part.body.len()
        );
        part.body.truncate(kept);
        cuts.push(Cut { file, text: shown });
    }
    cuts
}

/// The end of the last whole line before `at`, or of a character where a line is very long.
fn line_before(text: &str, at: usize) -> usize {
    let mut end = at.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    match text[..end].rfind('\n') {
        Some(line) if line >= end / 2 => line,
        Some(_) | None => end,
    }
}
