//! Letters: what one agent leaves for another under the name of a workspace, as the tools `agent_send`
//! and `agent_inbox` know it. Nobody is woken by one: it lies there until it is fetched, and what is to
//! be heard is said to a task instead.
//! Must not decide who may write or read one: the doors do, and the log remembers.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Millis, message::Sender};

/// Letters of one workspace that have been read and are remembered; older ones are in the log only.
pub const READ_MAX: usize = 200;
/// Of the name that an agent writes or reads under.
pub const NAME_BYTES_MAX: usize = 100;
/// Of a letter's first line.
pub const SUBJECT_BYTES_MAX: usize = 500;

/// A letter of one workspace: numbers start at 1 and are never used again.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct LetterId(pub u32);

impl LetterId {
    pub const FIRST: Self = Self(1);
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is written. The names are what the agents call themselves; nothing follows from them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    pub writer: String,
    pub reader: String,
    pub subject: String,
    pub text: String,
}

/// Why a letter is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLetter {
    #[error("send a letter: {what} has {bytes} bytes; it may have 1 to {max}")]
    Name {
        what: &'static str,
        bytes: usize,
        max: usize,
    },
    #[error("send a letter: {what} has a character that cannot be shown")]
    Control { what: &'static str },
    #[error("send a letter: its subject has {bytes} bytes; it may have {SUBJECT_BYTES_MAX}")]
    Subject { bytes: usize },
    #[error(
        "send a letter: its text has {bytes} bytes; it may have 1 to {max} (limits.letter_bytes)"
    )]
    Text { bytes: usize, max: usize },
}

impl Written {
    /// # Errors
    /// When a name or the text is empty, or something is too long.
    pub fn check(&self, letter_bytes: usize) -> Result<(), BadLetter> {
        check_name("the writer's name", &self.writer)?;
        check_name("the reader's name", &self.reader)?;
        let bytes = self.subject.len();
        if bytes > SUBJECT_BYTES_MAX {
            return Err(BadLetter::Subject { bytes });
        }
        let (bytes, max) = (self.text.len(), letter_bytes);
        if self.text.trim().is_empty() || bytes > max {
            return Err(BadLetter::Text { bytes, max });
        }
        Ok(())
    }
}

/// Of whoever writes or reads.
///
/// # Errors
/// When it is empty or too long, or cannot be shown.
pub fn check_name(what: &'static str, name: &str) -> Result<(), BadLetter> {
    let (bytes, max) = (name.len(), NAME_BYTES_MAX);
    if name.trim().is_empty() || bytes > max {
        return Err(BadLetter::Name { what, bytes, max });
    }
    if name.chars().any(char::is_control) {
        return Err(BadLetter::Control { what });
    }
    Ok(())
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    pub id: LetterId,
    pub written: Written,
    /// Who really sent it, whatever name it is signed with.
    pub from: Sender,
    pub at: Millis,
    pub read_at: Option<Millis>,
}

/// The letters of one workspace, in order; of those that were read the newest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Letterbox {
    letters: Vec<Letter>,
    /// How many there were.
    count: u32,
}

impl Letterbox {
    /// Oldest first.
    pub fn letters(&self) -> impl DoubleEndedIterator<Item = &Letter> {
        self.letters.iter()
    }

    /// Those that wait for anybody.
    #[must_use]
    pub fn unread(&self) -> usize {
        self.letters.iter().filter(|l| l.read_at.is_none()).count()
    }

    #[must_use]
    pub fn next_id(&self) -> LetterId {
        LetterId(self.count.saturating_add(1))
    }

    /// What `reader` is handed, oldest first: what waits for it, the oldest of that first, so that
    /// asking again hands out the rest; what room is left shows the newest that it has read.
    #[must_use]
    pub fn for_reader(&self, reader: &str, limit: usize) -> Vec<&Letter> {
        let own = |letter: &&Letter| letter.written.reader == reader;
        let waiting = self.letters().filter(own).filter(|l| l.read_at.is_none());
        let waiting: Vec<&Letter> = waiting.take(limit).collect();
        let read = self.letters().rev().filter(own);
        let read = read.filter(|letter| letter.read_at.is_some());
        let mut out: Vec<&Letter> = read.take(limit - waiting.len()).collect();
        out.extend(waiting);
        out.sort_by_key(|letter| letter.id);
        out
    }

    /// The newest between two, oldest first.
    #[must_use]
    pub fn between(&self, one: &str, other: &str, limit: usize) -> Vec<&Letter> {
        let both = |letter: &&Letter| {
            let names = (
                letter.written.writer.as_str(),
                letter.written.reader.as_str(),
            );
            names == (one, other) || names == (other, one)
        };
        let mut out: Vec<&Letter> = self.letters().rev().filter(both).take(limit).collect();
        out.reverse();
        out
    }

    pub(crate) fn put(&mut self, written: Written, from: Sender, at: Millis) {
        let id = self.next_id();
        self.count = id.0;
        self.letters.push(Letter {
            id,
            written,
            from,
            at,
            read_at: None,
        });
    }

    /// `None`: one of them is not there, or was read.
    pub(crate) fn read(&mut self, ids: &[LetterId], at: Millis) -> Option<()> {
        let waits = |id: &LetterId| {
            let mut letters = self.letters.iter();
            letters.any(|letter| letter.id == *id && letter.read_at.is_none())
        };
        if !ids.iter().all(waits) {
            return None;
        }
        for letter in self.letters.iter_mut().filter(|l| ids.contains(&l.id)) {
            letter.read_at = Some(at);
        }
        let read = self.letters.iter().filter(|l| l.read_at.is_some()).count();
        let mut gone = read.saturating_sub(READ_MAX);
        self.letters.retain(|letter| {
            let goes = gone > 0 && letter.read_at.is_some();
            gone -= usize::from(goes);
            !goes
        });
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(writer: &str, reader: &str) -> Written {
        Written {
            writer: writer.into(),
            reader: reader.into(),
            subject: String::new(),
            text: "look".into(),
        }
    }

    fn filled(letters: &[(&str, &str)]) -> Letterbox {
        let mut post = Letterbox::default();
        for (writer, reader) in letters {
            post.put(written(writer, reader), Sender::Person, 1);
        }
        post
    }

    fn ids(letters: &[&Letter]) -> Vec<u32> {
        letters.iter().map(|letter| letter.id.0).collect()
    }

    #[test]
    fn what_waits_is_handed_out_in_order_and_never_passed_over() {
        let mut post = filled(&[("a", "b"), ("a", "b"), ("b", "a"), ("a", "b")]);
        assert_eq!(ids(&post.for_reader("b", 2)), [1, 2]);
        assert_eq!(post.read(&[LetterId(1), LetterId(2)], 9), Some(()));
        assert_eq!(post.unread(), 2, "what was not handed out still waits");
        assert_eq!(ids(&post.for_reader("b", 2)), [2, 4]);
        assert_eq!(ids(&post.for_reader("b", 1)), [4]);
        assert_eq!(ids(&post.for_reader("c", 5)), [0; 0]);
        assert_eq!(post.read(&[LetterId(1)], 9), None, "it was read");
        assert_eq!(post.read(&[LetterId(9)], 9), None, "there is none");
        assert_eq!(ids(&post.between("b", "a", 3)), [2, 3, 4]);
    }

    #[test]
    fn only_read_ones_are_forgotten() {
        let many = vec![("a", "b"); READ_MAX + 5];
        let mut post = filled(&many);
        let all: Vec<LetterId> = post.letters().map(|letter| letter.id).collect();
        post.read(&all[..READ_MAX + 2], 9).unwrap();
        assert_eq!(post.letters().count(), READ_MAX + 3);
        assert_eq!(post.unread(), 3);
        assert_eq!(post.letters().next().unwrap().id, LetterId(3));
    }

    #[test]
    fn a_letter_has_names_and_a_text_of_some_length() {
        let good = written("claude", "codex");
        assert_eq!(good.check(10), Ok(()));
        let of = |change: fn(&mut Written)| {
            let mut letter = good.clone();
            change(&mut letter);
            letter.check(10).unwrap_err().to_string()
        };
        assert!(of(|l| l.writer = "  ".into()).contains("the writer's name"));
        assert!(of(|l| l.reader = "x".repeat(101)).contains("101 bytes"));
        assert!(of(|l| l.reader = "a\u{1b}[0m".into()).contains("cannot be shown"));
        assert!(of(|l| l.subject = "x".repeat(501)).contains("its subject"));
        assert!(of(|l| l.text = "x".repeat(11)).contains("limits.letter_bytes"));
        assert!(of(|l| l.text = "\n".into()).contains("its text"));
    }
}
