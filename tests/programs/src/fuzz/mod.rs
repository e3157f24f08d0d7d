//! A small mutational fuzzer for stable Rust, and a target for every parser that reads what an
//! agent, git or a person's file says. Deterministic: the same seed gives the same inputs.
//! A target answers with a *shape* of what it saw; an input with a new shape joins the corpus, which
//! is our poor man's coverage. Must not read a clock to decide anything but when to stop.

mod files;
mod mutate;
mod network;
mod prompts;
mod random;
mod speech;
mod state;
mod stores;

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
};

use mutate::Mutator;
pub use random::Random;

/// What an input came to, as a number: equal for inputs that took the same way as far as we see.
pub type Shape = u64;

/// One parser and the property it holds.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub name: &'static str,
    /// What is not allowed to happen, for a person.
    pub property: &'static str,
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Pieces that this parser knows, beside those of JSON.
    pub words: &'static [&'static str],
    /// An error, like a panic, is a find.
    pub check: fn(&[u8]) -> Result<Shape, String>,
}

/// Every target. To add one: a row here or in the list it comes from, and a `check`.
#[must_use]
pub fn targets() -> Vec<Target> {
    let lists = [
        speech::TARGETS,
        stores::TARGETS,
        files::TARGETS,
        network::TARGETS,
        prompts::TARGETS,
        state::TARGETS,
    ];
    lists.concat()
}

/// An input for which the property does not hold.
#[derive(Clone, Debug)]
pub struct Find {
    pub input: Vec<u8>,
    pub what: String,
}

/// How many inputs with a new shape are kept; then they replace each other.
const CORPUS_MAX: usize = 1024;
/// Inputs stay below this, or debug builds would spend their time in a few of them.
pub const INPUT_BYTES_MAX: usize = 16 * 1024;
const SHRINK_TRIES_MAX: usize = 2000;

/// One target's endless stream of inputs.
#[derive(Debug)]
pub struct Fuzzer {
    target: Target,
    random: Random,
    corpus: Vec<Vec<u8>>,
    seeds: usize,
    seen: HashSet<Shape>,
    pub executions: u64,
}

impl Fuzzer {
    #[must_use]
    pub fn new(target: Target, seed: u64) -> Self {
        let mut corpus = (target.seeds)();
        corpus.push(Vec::new());
        for input in &mut corpus {
            input.truncate(INPUT_BYTES_MAX);
        }
        Self {
            target,
            random: Random::new(seed ^ shape_of(target.name)),
            seeds: corpus.len(),
            corpus,
            seen: HashSet::new(),
            executions: 0,
        }
    }

    /// The next input: the seeds as they are, then mutants.
    pub fn next_input(&mut self) -> Vec<u8> {
        if let Ok(at) = usize::try_from(self.executions)
            && at < self.seeds
        {
            return self.corpus[at].clone();
        }
        let mut mutator = Mutator {
            random: &mut self.random,
            corpus: &self.corpus,
            words: self.target.words,
        };
        mutator.mutant(INPUT_BYTES_MAX)
    }

    /// Runs one input, and learns from it.
    pub fn run(&mut self, input: Vec<u8>) -> Result<(), Find> {
        self.executions += 1;
        match run(&self.target, &input) {
            Ok(shape) => {
                if self.seen.insert(shape) && self.executions > self.seeds as u64 {
                    if self.corpus.len() < CORPUS_MAX {
                        self.corpus.push(input);
                    } else {
                        let spare = CORPUS_MAX.saturating_sub(self.seeds).max(1);
                        let at = CORPUS_MAX - 1 - self.random.below(spare);
                        self.corpus[at] = input;
                    }
                }
                Ok(())
            }
            Err(what) => Err(Find { input, what }),
        }
    }

    /// How many kinds of inputs were seen.
    #[must_use]
    pub fn shapes(&self) -> usize {
        self.seen.len()
    }
}

/// One input through one target; a panic is an error too.
///
/// # Errors
/// What did not hold.
pub fn run(target: &Target, input: &[u8]) -> Result<Shape, String> {
    match catch_unwind(AssertUnwindSafe(|| (target.check)(input))) {
        Ok(result) => result,
        Err(payload) => {
            let text = payload
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| payload.downcast_ref::<&str>().copied());
            Err(format!("panic: {}", text.unwrap_or("(no text)")))
        }
    }
}

/// A smaller input that fails too: pieces taken out while that holds.
#[must_use]
pub fn shrunk(target: &Target, find: Find) -> Find {
    let mut best = find;
    let mut piece = best.input.len().div_ceil(2);
    let mut tries = 0;
    while piece > 0 && tries < SHRINK_TRIES_MAX {
        let mut at = 0;
        while at < best.input.len() && tries < SHRINK_TRIES_MAX {
            let end = best.input.len().min(at + piece);
            let smaller = [&best.input[..at], &best.input[end..]].concat();
            tries += 1;
            match run(target, &smaller) {
                Ok(_) => at = end,
                Err(what) => {
                    best = Find {
                        input: smaller,
                        what,
                    };
                }
            }
        }
        piece /= 2;
    }
    best
}

/// A number for anything that can be hashed; the same in every run of one build.
pub(crate) fn shape_of(what: impl Hash) -> Shape {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// An error when it does not hold.
pub(crate) fn holds(is: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if is { Ok(()) } else { Err(what()) }
}

/// The bytes cut into pieces whose sizes follow from the bytes, so that a find can be replayed.
pub(crate) fn pieces(bytes: &[u8], most: usize) -> Vec<&[u8]> {
    let mut random = Random::new(shape_of(bytes));
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at((1 + random.below(most)).min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}
