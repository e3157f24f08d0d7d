//! What git said of a commit, kept: a commit's name is a hash of all that is in it, so such an answer
//! never changes, and runs on the same base need not ask again. Must hold nothing that depends on a
//! ref, a workspace or a time, and no refusal.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// All answers together; the oldest go first.
const BYTES_MAX: usize = 4 << 20;
/// An answer above this is asked for each time.
const ANSWER_BYTES_MAX: usize = BYTES_MAX / 4;

#[derive(Debug, PartialEq, Eq)]
struct Key {
    repository: PathBuf,
    commit: String,
    question: String,
}

#[derive(Debug, Default)]
struct Kept {
    answers: VecDeque<(Key, Arc<[u8]>)>,
    bytes: usize,
}

/// Shared by its clones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memo(Arc<Mutex<Kept>>);

fn weight(key: &Key, answer: &[u8]) -> usize {
    size_of::<Key>()
        + key.repository.as_os_str().len()
        + key.commit.len()
        + key.question.len()
        + answer.len()
}

impl Memo {
    /// The answer from before, else that of `ask`, which is kept when it `is_answer`.
    pub(crate) fn get<E>(
        &self,
        repository: &Path,
        commit: &str,
        question: String,
        ask: impl FnOnce() -> Result<Vec<u8>, E>,
        is_answer: fn(&[u8]) -> bool,
    ) -> Result<Arc<[u8]>, E> {
        let key = Key {
            repository: repository.to_owned(),
            commit: commit.to_owned(),
            question,
        };
        if let Some((_, answer)) = self.kept().answers.iter().find(|(known, _)| *known == key) {
            return Ok(Arc::clone(answer));
        }
        // Without the lock: git takes milliseconds, and two who ask at once hear the same.
        let answer: Arc<[u8]> = ask()?.into();
        let weight_new = weight(&key, &answer);
        if !is_answer(&answer) {
            return Ok(answer);
        }
        let mut kept = self.kept();
        if weight_new <= ANSWER_BYTES_MAX && !kept.answers.iter().any(|(known, _)| *known == key) {
            kept.bytes += weight_new;
            kept.answers.push_back((key, Arc::clone(&answer)));
            while kept.bytes > BYTES_MAX
                && let Some((key, answer)) = kept.answers.pop_front()
            {
                kept.bytes -= weight(&key, &answer);
            }
        }
        Ok(answer)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing is left half done while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const ANY: fn(&[u8]) -> bool = |_| true;

    fn ask(memo: &Memo, commit: &str, bytes: usize) -> (usize, bool) {
        let mut asked = false;
        let said = || {
            asked = true;
            Ok::<_, Infallible>(vec![b'x'; bytes])
        };
        let answer = memo.get(Path::new("/r"), commit, "root".into(), said, ANY);
        (answer.unwrap().len(), asked)
    }

    #[test]
    fn an_answer_is_asked_for_once() {
        let memo = Memo::default();
        assert_eq!(ask(&memo, "a", 3), (3, true));
        assert_eq!(ask(&memo, "a", 9), (3, false));
        let shared = memo.clone();
        assert_eq!(ask(&shared, "b", 9), (9, true));
        assert_eq!(ask(&memo, "b", 3), (9, false), "clones share");
        for (repository, question) in [("/r", "log"), ("/s", "root")] {
            let none = || Ok::<_, Infallible>(vec![]);
            let other = memo.get(Path::new(repository), "a", question.into(), none, ANY);
            assert_eq!(other.unwrap().len(), 0, "{repository} {question}");
        }
    }

    #[test]
    fn a_failure_is_not_kept() {
        let memo = Memo::default();
        let root = || "root".to_owned();
        let failed = memo.get(Path::new("/r"), "a", root(), || Err("no"), ANY);
        assert_eq!(failed.unwrap_err(), "no");
        let none = || Ok::<_, Infallible>(b"missing".to_vec());
        let missing = memo.get(Path::new("/r"), "a", root(), none, |_| false);
        assert_eq!(&*missing.unwrap(), b"missing");
        assert_eq!(ask(&memo, "a", 3), (3, true));
    }

    #[test]
    fn the_oldest_go_and_the_large_never_stay() {
        let memo = Memo::default();
        let part = BYTES_MAX / 8;
        for n in 0..8 {
            ask(&memo, &n.to_string(), part);
        }
        assert!(ask(&memo, "0", part).1, "seven have room beside their keys");
        assert!(!ask(&memo, "7", part).1);
        assert!(memo.kept().bytes <= BYTES_MAX);
        ask(&memo, "large", ANSWER_BYTES_MAX);
        assert!(ask(&memo, "large", ANSWER_BYTES_MAX).1);
        let kept = memo.kept();
        let sum: usize = kept.answers.iter().map(|(k, a)| weight(k, a)).sum();
        assert_eq!(sum, kept.bytes);
    }
}
