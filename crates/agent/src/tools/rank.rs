//! Which files match, in the order of how much they seem to be about it. All of them are looked at,
//! and of none more is kept than its path and its score.
//! Must not go on longer than its limit.

use std::{
    cmp::Ordering,
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

use super::line_kind::{Kind, Language};

pub(super) const LIMIT: Duration = Duration::from_secs(30);
/// Matches of one file that count.
const MATCHES_MAX: usize = 10_000;
/// Files with a match that are remembered.
const FOUND_MAX: usize = 100_000;

pub(super) struct Search<'a> {
    pub(super) matcher: &'a RegexMatcher,
    /// Which kinds of match count.
    pub(super) takes: fn(Kind) -> bool,
    /// In small letters, for names of files.
    pub(super) query: String,
}

pub(super) struct Found {
    /// The best first.
    pub(super) files: Vec<Ranked>,
    /// All that match, remembered or not.
    pub(super) count: usize,
    /// The time was over before all was searched.
    pub(super) cut: bool,
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

impl Search<'_> {
    pub(super) fn rank(&self, walk: &WalkBuilder) -> Found {
        let begun = Instant::now();
        let found: Mutex<Vec<Ranked>> = Mutex::default();
        let count = AtomicUsize::new(0);
        let cut = AtomicBool::new(false);
        walk.build_parallel().run(|| {
            let mut searcher = searcher(0);
            let (found, count, cut) = (&found, &count, &cut);
            Box::new(move |entry| {
                if begun.elapsed() > LIMIT {
                    cut.store(true, atomic::Ordering::Relaxed);
                    return WalkState::Quit;
                }
                let Ok(entry) = entry else {
                    return WalkState::Continue;
                };
                if !entry.file_type().is_some_and(|kind| kind.is_file()) {
                    return WalkState::Continue;
                }
                if let Some(ranked) = self.score(&mut searcher, entry.path()) {
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
        }
    }

    fn score(&self, searcher: &mut Searcher, path: &Path) -> Option<Ranked> {
        let mut tally = Tally {
            search: self,
            language: Language::of(path),
            matches: 0,
            weight: 0.0,
        };
        match searcher.search_path(self.matcher, path, &mut tally) {
            Ok(()) => {}
            // A file that cannot be read has no match.
            Err(_) => return None,
        }
        if tally.matches == 0 {
            return None;
        }
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().to_lowercase());
        let named = name.is_some_and(|name| name.contains(&self.query));
        // The first matches say the most.
        let score = tally.weight.ln_1p() * 4.0 + if named { 6.0 } else { 0.0 };
        Some(Ranked {
            path: path.to_owned(),
            score,
            matches: tally.matches,
        })
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
        .binary_detection(BinaryDetection::quit(0))
        .build()
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
