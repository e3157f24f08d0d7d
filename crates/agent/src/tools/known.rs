//! What the model has seen of files, in this process: so that what it writes over is not what somebody
//! else wrote, or what it never read.
//! Must not keep the contents themselves.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hasher},
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

/// Files that are known; the oldest is forgotten, and must be read again.
const FILES_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Known {
    next: u64,
    files: BTreeMap<PathBuf, File>,
}

#[derive(Debug)]
struct File {
    /// In the order in which they were seen last.
    n: u64,
    hash: u64,
    /// Lines that it has not seen yet.
    unseen: Vec<RangeInclusive<usize>>,
}

/// How far the model knows what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Knows {
    Nothing,
    /// It was another content.
    Changed,
    /// But for these lines, and maybe others.
    Part {
        unseen: RangeInclusive<usize>,
        others: bool,
    },
    All,
}

/// Some lines of a file, as they are.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Of all of the file.
    pub(super) hash: u64,
    /// How many lines it has.
    pub(super) total: usize,
    pub(super) lines: Vec<RangeInclusive<usize>>,
}

impl Known {
    /// It was shown these lines.
    pub(super) fn saw(&mut self, path: &Path, seen: &Seen) {
        let mut file = self.files.remove(path);
        // What it saw of another content it does not know of this one.
        file = file.filter(|file| file.hash == seen.hash);
        let before = file.map_or_else(|| vec![1..=seen.total], |file| file.unseen);
        let less = |unseen: Vec<_>, lines: &RangeInclusive<usize>| without(unseen, lines);
        let unseen = seen.lines.iter().fold(before, less);
        self.keep(path, seen.hash, unseen);
    }

    /// It wrote this itself.
    pub(super) fn wrote(&mut self, path: &Path, content: &[u8]) {
        self.keep(path, hash(content), Vec::new());
    }

    fn keep(&mut self, path: &Path, hash: u64, mut unseen: Vec<RangeInclusive<usize>>) {
        unseen.retain(|lines| !lines.is_empty());
        let n = self.next;
        self.next += 1;
        self.files.insert(path.to_owned(), File { n, hash, unseen });
        if self.files.len() > FILES_MAX {
            let oldest = self.files.iter().min_by_key(|(_, file)| file.n);
            if let Some(oldest) = oldest.map(|(path, _)| path.clone()) {
                self.files.remove(&oldest);
            }
        }
    }

    pub(super) fn of(&self, path: &Path, content: &[u8]) -> Knows {
        match self.files.get(path) {
            None => Knows::Nothing,
            Some(file) if file.hash != hash(content) => Knows::Changed,
            Some(file) => match &file.unseen[..] {
                [] => Knows::All,
                [unseen, others @ ..] => Knows::Part {
                    unseen: unseen.clone(),
                    others: !others.is_empty(),
                },
            },
        }
    }
}

fn without(
    ranges: Vec<RangeInclusive<usize>>,
    lines: &RangeInclusive<usize>,
) -> Vec<RangeInclusive<usize>> {
    let cut = |range: RangeInclusive<usize>| {
        let (first, last) = range.into_inner();
        let before = first..=last.min(lines.start().saturating_sub(1));
        let after = first.max(lines.end().saturating_add(1))..=last;
        [before, after]
    };
    let cut = ranges.into_iter().flat_map(cut);
    cut.filter(|range| !range.is_empty()).collect()
}

/// To tell whether a file changed; nobody is kept from making two that are alike.
fn hash(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_seen_in_any_order() {
        let content = b"five lines";
        let path = Path::new("a");
        let mut known = Known::default();
        assert_eq!(known.of(path, content), Knows::Nothing);
        let mut saw = |lines: RangeInclusive<usize>| {
            let seen = Seen {
                hash: hash(content),
                total: 9,
                lines: vec![lines],
            };
            known.saw(path, &seen);
            known.of(path, content)
        };
        let part = |unseen, others| Knows::Part { unseen, others };
        assert_eq!(saw(4..=5), part(1..=3, true));
        assert_eq!(saw(1..=2), part(3..=3, true));
        assert_eq!(saw(2..=4), part(6..=9, false));
        assert_eq!(saw(7..=9), part(6..=6, false));
        assert_eq!(saw(5..=7), Knows::All);
        assert_eq!(known.of(path, b"other"), Knows::Changed);
        known.wrote(path, b"other");
        assert_eq!(known.of(path, b"other"), Knows::All);
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let mut known = Known::default();
        for n in 0..=FILES_MAX {
            known.wrote(Path::new(&n.to_string()), b"x");
        }
        assert_eq!(known.of(Path::new("0"), b"x"), Knows::Nothing);
        assert_eq!(known.of(Path::new("1"), b"x"), Knows::All);
    }
}
