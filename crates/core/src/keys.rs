//! Keys that requests carry so that their sender may repeat them: what came of each the first time.
//! Must not keep a key or a request, only their hashes, and must not grow without end.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{
    Millis,
    id::{RunId, TaskId},
    message::MessageId,
};

/// Keys that are remembered; the oldest is forgotten first.
pub const KEYS_MAX: usize = 10_000;
/// How long one is.
pub const KEPT_MS: Millis = 24 * 3600 * 1000;

/// A request that may come again, by hashes in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestKey {
    /// Of the key, and of whose it is.
    pub key: String,
    /// Of what is asked.
    pub request: String,
}

/// What a request made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Made {
    Run(RunId),
    Message { task: TaskId, message: MessageId },
}

impl Made {
    #[must_use]
    pub fn task(&self) -> TaskId {
        match self {
            Self::Run(run) => run.task,
            Self::Message { task, .. } => *task,
        }
    }
}

/// The same key was used for another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherRequest;

#[derive(Clone, Debug, PartialEq)]
struct Kept {
    request: String,
    made: Made,
    at: Millis,
}

/// Part of the fold: the same log gives the same keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Keys {
    kept: BTreeMap<String, Kept>,
    /// The oldest first.
    order: VecDeque<String>,
}

impl Keys {
    /// What came of this request before, if it came before.
    ///
    /// # Errors
    /// When its key came with another request.
    pub fn find(&self, key: &RequestKey, now: Millis) -> Result<Option<Made>, OtherRequest> {
        let found = self.kept.get(&key.key);
        match found.filter(|kept| now.saturating_sub(kept.at) < KEPT_MS) {
            None => Ok(None),
            Some(kept) if kept.request == key.request => Ok(Some(kept.made)),
            Some(_) => Err(OtherRequest),
        }
    }

    pub(crate) fn keep(&mut self, key: &RequestKey, made: Made, at: Millis) {
        let kept = Kept {
            request: key.request.clone(),
            made,
            at,
        };
        // One whose time was over may come again: it is as young as its second use.
        if self.kept.insert(key.key.clone(), kept).is_some() {
            self.order.retain(|known| *known != key.key);
        }
        self.order.push_back(key.key.clone());
        while let Some(oldest) = self.order.front() {
            let old = self.kept.get(oldest);
            let over = old.is_none_or(|kept| at.saturating_sub(kept.at) >= KEPT_MS);
            if !over && self.order.len() <= KEYS_MAX {
                break;
            }
            if let Some(oldest) = self.order.pop_front() {
                self.kept.remove(&oldest);
            }
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key: &str, request: &str) -> RequestKey {
        RequestKey {
            key: key.into(),
            request: request.into(),
        }
    }

    fn run(n: u32) -> Made {
        let task = TaskId::from_bits(1);
        Made::Run(RunId { task, n })
    }

    #[test]
    fn the_same_request_has_the_same_answer_for_a_day() {
        let mut keys = Keys::default();
        keys.keep(&key("k", "a"), run(1), 10);
        assert_eq!(keys.find(&key("k", "a"), 11), Ok(Some(run(1))));
        assert_eq!(keys.find(&key("k", "b"), 11), Err(OtherRequest));
        assert_eq!(keys.find(&key("l", "a"), 11), Ok(None));
        assert_eq!(keys.find(&key("k", "b"), 10 + KEPT_MS), Ok(None));
        keys.keep(&key("k", "b"), run(2), 10 + KEPT_MS);
        assert_eq!(keys.find(&key("k", "b"), 10 + KEPT_MS), Ok(Some(run(2))));
        assert_eq!(keys.len(), 1);
    }

    #[test]
    fn keys_are_bounded_by_number_and_by_age() {
        let mut keys = Keys::default();
        for n in 0..KEYS_MAX + 5 {
            keys.keep(&key(&format!("{n}"), "r"), run(1), 10);
        }
        assert_eq!((keys.len(), keys.order.len()), (KEYS_MAX, KEYS_MAX));
        assert_eq!(keys.find(&key("4", "r"), 10), Ok(None));
        assert_eq!(keys.find(&key("5", "r"), 10), Ok(Some(run(1))));
        keys.keep(&key("new", "r"), run(1), 10 + KEPT_MS);
        assert_eq!((keys.len(), keys.order.len()), (1, 1));
    }
}
