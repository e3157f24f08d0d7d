//! What was not let through, told on standard output once when it happens first, again as it adds
//! up, and in full at the end: the engine reads it, a person sees it.
//! Must not let the agent fill a disk with refusals: what is told is bounded.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write},
    sync::{Mutex, PoisonError},
};

use dispatch_core::sidecar::Word;

/// Different ones; beyond it they are counted together.
const DISTINCT_MAX: usize = 256;
const WHAT_CHARS_MAX: usize = 300;
const OTHERS: &str = "others";

pub(crate) struct Refusals {
    inner: Mutex<Inner>,
}

struct Inner {
    out: Box<dyn Write + Send>,
    counts: BTreeMap<(String, String), Count>,
}

#[derive(Default)]
struct Count {
    times: u64,
    told: u64,
}

impl Refusals {
    pub(crate) fn new(out: impl Write + Send + 'static) -> Self {
        Self {
            inner: Mutex::new(Inner {
                out: Box::new(out),
                counts: BTreeMap::new(),
            }),
        }
    }

    pub(crate) fn say(&self, word: &Word) -> io::Result<()> {
        self.locked(|inner| inner.say(word))
    }

    pub(crate) fn refuse(&self, what: &str, why: &impl fmt::Display) {
        let what = what.chars().filter(|c| !c.is_control());
        let mut key = (what.take(WHAT_CHARS_MAX).collect(), why.to_string());
        let told = self.locked(|inner| {
            if inner.counts.len() >= DISTINCT_MAX && !inner.counts.contains_key(&key) {
                key = (OTHERS.to_owned(), "too many to list".to_owned());
            }
            let count = inner.counts.entry(key.clone()).or_default();
            count.times += 1;
            if !count.times.is_power_of_two() {
                return Ok(());
            }
            count.told = count.times;
            let word = word(&key, count.times);
            inner.say(&word)
        });
        match told {
            // Nobody follows us: the refusal holds without being told.
            Ok(()) | Err(_) => {}
        }
    }

    /// The counts that have grown since they were told.
    pub(crate) fn sum_up(&self) -> io::Result<()> {
        self.locked(|inner| {
            let mut left = Vec::new();
            for (key, count) in &mut inner.counts {
                if count.times > count.told {
                    count.told = count.times;
                    left.push(word(key, count.times));
                }
            }
            left.iter().try_for_each(|word| inner.say(word))
        })
    }

    fn locked<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut inner)
    }
}

fn word((what, why): &(String, String), times: u64) -> Word {
    Word::Refused {
        what: what.clone(),
        why: why.clone(),
        times,
    }
}

impl Inner {
    fn say(&mut self, word: &Word) -> io::Result<()> {
        let mut line = serde_json::to_vec(word).map_err(io::Error::other)?;
        line.push(b'\n');
        self.out.write_all(&line)?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_flood_of_refusals_is_a_few_lines_and_the_sum_is_right() {
        let out = Shared::default();
        let refusals = Refusals::new(out.clone());
        for n in 0..100_000 {
            refusals.refuse(&format!("h{}.test:443\n", n % 1000), &"not in the list");
        }
        refusals.sum_up().unwrap();
        refusals.sum_up().unwrap();
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        let words: Vec<Word> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert!(words.len() < DISTINCT_MAX * 10, "{}", words.len());
        let mut sums = BTreeMap::new();
        for word in words {
            let Word::Refused { what, times, .. } = word else {
                panic!("{word:?}")
            };
            sums.insert(what, times);
        }
        assert_eq!(sums["h0.test:443"], 100);
        assert_eq!(sums.values().sum::<u64>(), 100_000);
    }
}
