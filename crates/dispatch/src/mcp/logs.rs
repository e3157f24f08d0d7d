//! Pieces of logs as text.
//! Must not cut a character in two: the next piece begins where this one's last whole character ends.

use super::door::{Door, Refusal};
use crate::api::{
    mcp::{LOG_BYTES, LOG_BYTES_MAX, LogsOutput},
    task::{Run, Task},
};

/// The most bytes of one character.
const CHAR_BYTES_MAX: usize = 4;

/// From a byte on, or the end.
pub(super) async fn read(
    door: &Door,
    task: &Task,
    run: &Run,
    from: Option<u64>,
    bytes: Option<u64>,
) -> Result<LogsOutput, Refusal> {
    let limit = bytes.unwrap_or(LOG_BYTES).clamp(1, LOG_BYTES_MAX);
    let part = match from {
        Some(from) => format!("from={from}"),
        None => format!("last={limit}"),
    };
    let path = format!(
        "/v1/tasks/{}/runs/{}/log?{part}&limit={limit}",
        task.id, run.n
    );
    let piece = door.piece(&path).await?;
    let begin = piece.next.saturating_sub(piece.bytes.len() as u64);
    let (before, text, behind) = whole(&piece.bytes, piece.end);
    Ok(LogsOutput {
        task: task.id.clone(),
        run: run.n,
        text,
        from: begin + before as u64,
        next: piece.next - behind as u64,
        open: !piece.end,
    })
}

/// The text without what a cut has left of characters at both ends, and how long that is.
fn whole(bytes: &[u8], end: bool) -> (usize, String, usize) {
    let rest = |byte: &&u8| *byte & 0xC0 == 0x80;
    let before = bytes
        .iter()
        .take(CHAR_BYTES_MAX - 1)
        .take_while(rest)
        .count();
    let bytes = &bytes[before..];
    let behind = match bytes.utf8_chunks().last() {
        Some(last) if !end && is_begun(last.invalid()) => last.invalid().len(),
        Some(_) | None => 0,
    };
    let text = String::from_utf8_lossy(&bytes[..bytes.len() - behind]);
    (before, text.into_owned(), behind)
}

/// The first bytes of a character that is longer.
fn is_begun(bytes: &[u8]) -> bool {
    let wanted = match bytes.first() {
        Some(0xC2..=0xDF) => 2,
        Some(0xE0..=0xEF) => 3,
        Some(0xF0..=0xF4) => 4,
        Some(_) | None => 0,
    };
    bytes.len() < wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_stay_whole_wherever_the_cut_is() {
        let text = "a\u{e9}\u{20ac}\u{1f600}b";
        let bytes = text.as_bytes();
        for cut in 0..=bytes.len() {
            let (_, first, behind) = whole(&bytes[..cut], false);
            let (before, second, _) = whole(&bytes[cut - behind..], true);
            assert_eq!((before, first + &second), (0, text.to_owned()), "{cut}");
            // And from the end, where the first piece was never seen.
            let (_, tail, _) = whole(&bytes[cut..], true);
            assert!(
                text.ends_with(&tail) && !tail.contains('\u{fffd}'),
                "{cut}: {tail}"
            );
        }
        // What never was a character is shown as that, and not waited for.
        assert_eq!(whole(b"a\xff", false), (0, "a\u{fffd}".to_owned(), 0));
        assert_eq!(whole(b"a\xe2\x82", true).1, "a\u{fffd}");
    }
}
