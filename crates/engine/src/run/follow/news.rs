//! What an agent says of keys, before it becomes a fact for all tasks: it may be anybody's word.
//! Must not hold anything that a replay of the agent's output would not come to again.

use dispatch_core::{Millis, event::Kind, id::KeyName, keyring::KeyNews, models::Choice};

/// What one run may say of keys in the log: a week of a key's limits, told once a minute.
const KEY_NEWS_BYTES_MAX: u64 = 4 << 20;

/// How much of it is left.
pub(super) struct NewsOfKeys {
    bytes_left: u64,
}

impl Default for NewsOfKeys {
    fn default() -> Self {
        Self {
            bytes_left: KEY_NEWS_BYTES_MAX,
        }
    }
}

impl NewsOfKeys {
    /// A fact for the log, when it is of a key that the run was given and there is room for it.
    /// No key is out for longer than until `latest`: the fold knows no setting, and keeps what it hears.
    pub(super) fn heard(
        &mut self,
        (chain, latest): (&[Choice], Millis),
        key: KeyName,
        news: KeyNews,
    ) -> Option<Kind> {
        // Of another it knows nothing, and a made-up name would take the place of a real one.
        if self.bytes_left == 0 || chain.iter().all(|choice| choice.key != key) {
            return None;
        }
        // As it was said, which a replay hears again; `latest` is another one then.
        let size = serde_json::to_vec(&news).map_or(0, |bytes| bytes.len() as u64);
        self.bytes_left = self.bytes_left.saturating_sub(size.max(1));
        if self.bytes_left == 0 {
            let text = format!(
                "its agent has said more than {KEY_NEWS_BYTES_MAX} bytes of its keys: other tasks \
                 hear no more of them from this run"
            );
            return Some(Kind::Noted { text });
        }
        let news = news.until_at_most(latest);
        Some(Kind::KeyHeard { key, news })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATEST: Millis = 1000;

    fn chain() -> Vec<Choice> {
        vec![Choice {
            key: "main".parse().unwrap(),
            model: "m".parse().unwrap(),
            effort: None,
        }]
    }

    fn heard(news: &mut NewsOfKeys, key: &str, one: KeyNews) -> Option<Kind> {
        news.heard((&chain(), LATEST), key.parse().unwrap(), one)
    }

    #[test]
    fn of_a_key_that_it_was_not_given_an_agent_tells_nothing() {
        let mut news = NewsOfKeys::default();
        assert_eq!(heard(&mut news, "other", KeyNews::Back), None);
        let fact = heard(&mut news, "main", KeyNews::Back);
        assert!(matches!(fact, Some(Kind::KeyHeard { .. })), "{fact:?}");
    }

    #[test]
    fn no_key_is_out_for_longer_than_may_be() {
        let until = |said| {
            let news = KeyNews::Out {
                until: said,
                reason: "used up".into(),
            };
            match heard(&mut NewsOfKeys::default(), "main", news) {
                Some(Kind::KeyHeard {
                    news: KeyNews::Out { until, .. },
                    ..
                }) => until,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(until(Some(Millis::MAX)), Some(LATEST));
        assert_eq!(until(Some(LATEST - 1)), Some(LATEST - 1));
        assert_eq!(until(None), None, "a refused key has no time");
    }

    #[test]
    fn an_agent_that_tells_of_its_keys_without_end_is_heard_so_far() {
        let mut news = NewsOfKeys::default();
        let out = || KeyNews::Out {
            until: None,
            reason: "r".repeat(1 << 16),
        };
        let mut kinds = Vec::new();
        while let Some(kind) = heard(&mut news, "main", out()) {
            kinds.push(kind);
            assert!(kinds.len() <= 64, "it is heard for ever");
        }
        let last = kinds.pop();
        assert!(matches!(last, Some(Kind::Noted { .. })), "{last:?}");
        assert!(!kinds.is_empty());
        let facts = |kind: &Kind| matches!(kind, Kind::KeyHeard { .. });
        assert!(kinds.iter().all(facts));
    }
}
