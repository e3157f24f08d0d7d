//! Which files match, in the order of how much they seem to be about it. All of them are looked at,
//! and of none more is kept than its path and its score.
//! Must not go on longer than its limit, and must not hold a line that has no end.

use std::{
    cmp::Ordering,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{self, AtomicBool, AtomicUsize},
    },
    time::{Duration, Instant},
};

use grep_matcher::Matcher;
use grep_regex::RegexMatcher;
use grep_searcher::{BinaryDetection, Searcher, SearcherBuilder, Sink, SinkMatch};
use ignore::{WalkBuilder, WalkState};

use super::{
    line_kind::{Kind, Language},
    open::open,
};

pub(super) const LIMIT: Duration = Duration::from_secs(30);
/// Matches of one file that count.
const MATCHES_MAX: usize = 10_000;
/// What of a file is held at once; a line that is longer ends the search in it.
const HELD_BYTES_MAX: usize = 8 << 20;
/// Files with a match that are remembered.
const FOUND_MAX: usize = 100_000;

pub(super) struct Search<'a> {
    pub(super) matcher: &'a RegexMatcher,
    /// Which kinds of match count.
    pub(super) takes: fn(Kind) -> bool,
    /// In small letters, for names of files.
    pub(super) query: String,
    /// Nothing is read after this.
    pub(super) until: Instant,
}

pub(super) struct Found {
    /// The best first.
    pub(super) files: Vec<Ranked>,
    /// All that match, remembered or not.
    pub(super) count: usize,
    /// The time was over before all was searched.
    pub(super) cut: bool,
    /// Files with a line that is too long, which were not searched to their end.
    pub(super) unfinished: usize,
}

/// How far a file was searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HowFar {
    Whole,
    Late,
    TooLong,
}

#[derive(Debug)]
pub(super) struct Ranked {
    pub(super) path: PathBuf,
    pub(super) score: f64,
    pub(super) matches: usize,
}

impl Ranked {
    /// The best first, and always in the same order.
    fn order(&self, other: &Self) -> Ordering {
        let by_score = other.score.total_cmp(&self.score);
        by_score.then_with(|| self.path.cmp(&other.path))
    }
}

impl HowFar {
    fn of(read: &io::Result<()>) -> Self {
        match read.as_ref().map_err(io::Error::kind) {
            Err(io::ErrorKind::TimedOut) => Self::Late,
            // What the searcher says of a line that it may not hold.
            Err(io::ErrorKind::Other) => Self::TooLong,
            // What cannot be read has no match.
            Ok(()) | Err(_) => Self::Whole,
        }
    }
}

impl Search<'_> {
    pub(super) fn rank(&self, walk: &WalkBuilder) -> Found {
        let found: Mutex<Vec<Ranked>> = Mutex::default();
        let count = AtomicUsize::new(0);
        let cut = AtomicBool::new(false);
        let unfinished = AtomicUsize::new(0);
        walk.build_parallel().run(|| {
            let mut searcher = searcher(0);
            let (found, count, cut, unfinished) = (&found, &count, &cut, &unfinished);
            Box::new(move |entry| {
                if Instant::now() > self.until {
                    cut.store(true, atomic::Ordering::Relaxed);
                    return WalkState::Quit;
                }
                let Ok(entry) = entry else {
                    return WalkState::Continue;
                };
                if !entry.file_type().is_some_and(|kind| kind.is_file()) {
                    return WalkState::Continue;
                }
                let (ranked, how_far) = self.score(&mut searcher, entry.path());
                match how_far {
                    HowFar::Whole => {}
                    HowFar::Late => cut.store(true, atomic::Ordering::Relaxed),
                    HowFar::TooLong => {
                        unfinished.fetch_add(1, atomic::Ordering::Relaxed);
                    }
                }
                if let Some(ranked) = ranked {
                    count.fetch_add(1, atomic::Ordering::Relaxed);
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    if found.len() < FOUND_MAX {
                        found.push(ranked);
                    }
                }
                WalkState::Continue
            })
        });
        let mut files = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        files.sort_by(Ranked::order);
        Found {
            files,
            count: count.into_inner(),
            cut: cut.into_inner(),
            unfinished: unfinished.into_inner(),
        }
    }

    fn score(&self, searcher: &mut Searcher, path: &Path) -> (Option<Ranked>, HowFar) {
        let mut tally = Tally {
            search: self,
            language: Language::of(path),
            matches: 0,
            weight: 0.0,
        };
        // A file that cannot be opened has no match.
        let Ok(file) = open(path) else {
            return (None, HowFar::Whole);
        };
        let how_far = HowFar::of(&self.look_through(searcher, file, &mut tally));
        if tally.matches == 0 {
            return (None, how_far);
        }
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().to_lowercase());
        let named = name.is_some_and(|name| name.contains(&self.query));
        // The first matches say the most.
        let score = tally.weight.ln_1p() * 4.0 + if named { 6.0 } else { 0.0 };
        let ranked = Ranked {
            path: path.to_owned(),
            score,
            matches: tally.matches,
        };
        (Some(ranked), how_far)
    }

    /// As far as there is time for it.
    pub(super) fn look_through(
        &self,
        searcher: &mut Searcher,
        file: File,
        sink: impl Sink<Error = io::Error>,
    ) -> io::Result<()> {
        let until = self.until;
        searcher.search_reader(self.matcher, Timely { file, until }, sink)
    }

    /// What the first match of a line is, if it counts.
    pub(super) fn kind(&self, language: Language, line: &[u8]) -> Option<Kind> {
        let at = self.matcher.find(line).ok().flatten()?.start();
        let text = String::from_utf8_lossy(line);
        // Where bytes were replaced the place moved, and a guess is as good.
        let kind = language.kind(&text, at.min(text.len()));
        (self.takes)(kind).then_some(kind)
    }
}

pub(super) fn searcher(context: usize) -> Searcher {
    SearcherBuilder::new()
        .line_number(true)
        .before_context(context)
        .after_context(context)
        .heap_limit(Some(HELD_BYTES_MAX))
        .binary_detection(BinaryDetection::quit(0))
        .build()
}

/// A file that is read until its time is over.
struct Timely {
    file: File,
    until: Instant,
}

impl Read for Timely {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if Instant::now() > self.until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.file.read(into)
    }
}

/// Counts, and keeps nothing.
struct Tally<'a> {
    search: &'a Search<'a>,
    language: Language,
    matches: usize,
    weight: f64,
}

impl Sink for &mut Tally<'_> {
    type Error = std::io::Error;

    fn matched(&mut self, _: &Searcher, found: &SinkMatch<'_>) -> Result<bool, Self::Error> {
        if let Some(kind) = self.search.kind(self.language, found.bytes()) {
            self.matches += 1;
            self.weight += match kind {
                Kind::Declaration => 6.0,
                Kind::Use => 1.0,
                Kind::Text | Kind::Comment => 0.5,
            };
        }
        Ok(self.matches < MATCHES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::testing::Bench;

    #[test]
    fn a_file_is_read_until_the_time_is_over() {
        let bench = Bench::new();
        bench.write("a", "word\n");
        let matcher = RegexMatcher::new("word").unwrap();
        for (late, expected) in [(false, HowFar::Whole), (true, HowFar::Late)] {
            let now = Instant::now();
            let search = Search {
                matcher: &matcher,
                takes: |_| true,
                query: String::new(),
                until: if late { now - LIMIT } else { now + LIMIT },
            };
            let (ranked, how_far) = search.score(&mut searcher(0), &bench.path("a"));
            assert_eq!((ranked.is_some(), how_far), (!late, expected));
        }
    }
}
