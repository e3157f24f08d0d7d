//! What all runs have said of the keys of models: which are of no use and until when, who tries one
//! again, what was left at its provider. Part of the fold, so that one task knows what another was
//! told, and a restart changes nothing.
//! Must not hold a key, and must not know a setting: it holds facts, and whoever asks brings limits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    Millis,
    gate::Gate,
    id::{KeyName, RunId},
    models::Choice,
    native::{Known, KnownKeys, Window},
    outcome::{Failure, Outcome},
    schedule::time_text,
};

/// Keys that are remembered; the one that was spoken of least lately is forgotten first.
const KEYS_MAX: usize = 256;
/// A key that was refused may have been renewed: it is worth a try after this.
const REFUSED_MS: Millis = 600_000;

/// What an agent says of a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyNews {
    /// It is of no use before `until`; without a time it was refused.
    Out {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Millis>,
        reason: String,
    },
    /// It works again.
    Back,
    /// What an answer told of the limits at its provider, and when.
    Told { windows: Vec<Window>, at: Millis },
}

impl KeyNews {
    /// No key is out for longer than until `latest`, whatever its provider said.
    #[must_use]
    pub fn until_at_most(self, latest: Millis) -> Self {
        match self {
            Self::Out { until, reason } => Self::Out {
                until: until.map(|until| until.min(latest)),
                reason,
            },
            Self::Back | Self::Told { .. } => self,
        }
    }
}

/// Why a key is of no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Out {
    pub at: Millis,
    /// `None`: it was refused.
    pub until: Option<Millis>,
    pub reason: String,
    /// How often in a row.
    pub count: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyState {
    pub out: Option<Out>,
    pub windows: Vec<Window>,
    pub told_at: Option<Millis>,
    /// The run that tries it first when its time is over, and since when.
    probe: Option<(RunId, Millis)>,
    heard_at: Millis,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyring(BTreeMap<KeyName, KeyState>);

/// Whether a key can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    Now,
    /// Its time is over, and nobody knows whether it works.
    Try,
    At(Millis),
}

impl KeyState {
    fn hear(&mut self, news: &KeyNews, now: Millis) {
        self.heard_at = now;
        match news {
            KeyNews::Out { until, reason } => {
                // Who asked while it was out already says nothing new.
                let again = |out: &Out| out.until.is_none_or(|until| until <= now);
                let count = match &self.out {
                    Some(out) if again(out) => out.count.saturating_add(1),
                    Some(out) => out.count,
                    None => 1,
                };
                let until = match (*until, &self.out) {
                    (Some(until), Some(out)) => Some(until.max(out.until.unwrap_or(0))),
                    (until, _) => until,
                };
                self.out = Some(Out {
                    at: now,
                    until,
                    reason: reason.clone(),
                    count,
                });
                self.probe = None;
            }
            KeyNews::Back => (self.out, self.probe) = (None, None),
            KeyNews::Told { windows, at } => {
                // It is the agent's word: one of the future would be newer than all true ones.
                let at = (*at).min(now);
                // Limits are told with answers: whoever has one after its time has tried it.
                let over = |out: &Out| at > out.at && out.until.is_none_or(|until| until <= at);
                if self.out.as_ref().is_some_and(over) {
                    (self.out, self.probe) = (None, None);
                }
                if self.told_at.is_none_or(|known| known <= at) {
                    self.windows.clone_from(windows);
                    self.told_at = Some(at);
                }
            }
        }
    }

    /// The latest of its windows to open again that have nothing left, so far as that is known.
    fn empty_until(&self, now: Millis) -> Option<Millis> {
        let told_at = self.told_at.filter(|at| *at <= now)?;
        let empty = self.windows.iter().filter(|w| w.remaining == Some(0));
        let resets = empty.filter_map(|window| window.resets_at);
        resets.filter(|at| *at > now && *at > told_at).max()
    }
}

impl Keyring {
    pub fn keys(&self) -> impl Iterator<Item = (&KeyName, &KeyState)> {
        self.0.iter()
    }

    pub(crate) fn hear(&mut self, key: &KeyName, news: &KeyNews, now: Millis) {
        let oldest = self.0.iter().min_by_key(|(_, state)| state.heard_at);
        let oldest = oldest.map(|(key, _)| key.clone());
        if self.0.len() >= KEYS_MAX
            && !self.0.contains_key(key)
            && let Some(oldest) = oldest
        {
            self.0.remove(&oldest);
        }
        self.0.entry(key.clone()).or_default().hear(news, now);
    }

    /// A run begins: of the keys before the first that works, it tries the first whose time is over.
    pub(crate) fn begins(&mut self, run: RunId, chain: &[Choice], now: Millis) {
        for choice in chain {
            let Some(state) = self.0.get_mut(&choice.key) else {
                return;
            };
            let Some(out) = &state.out else {
                return;
            };
            let until = out.until.unwrap_or(out.at.saturating_add(REFUSED_MS));
            if until <= now && state.probe.is_none() {
                state.probe = Some((run, now));
                return;
            }
        }
    }

    /// Whoever tried a key tries it no more.
    pub(crate) fn ended(&mut self, run: RunId) {
        for state in self.0.values_mut() {
            if state.probe.is_some_and(|(probe, _)| probe == run) {
                state.probe = None;
            }
        }
    }

    /// Whether a run was refused because of its keys, which says nothing of its pool.
    pub(crate) fn explains(&self, outcome: &Outcome, chain: &[Choice]) -> bool {
        let limited = matches!(outcome, Outcome::Failed(Failure::RateLimited { .. }));
        let out = |choice: &Choice| self.0.get(&choice.key).is_some_and(|key| key.out.is_some());
        limited && chain.iter().any(out)
    }
}

/// A run that means to ask one of its keys.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    pub keyring: &'a Keyring,
    pub run: RunId,
    pub chain: &'a [Choice],
    pub gate: &'a Gate,
    pub now: Millis,
}

impl Asking<'_> {
    fn ready(&self, key: &KeyName) -> Ready {
        let Some(state) = self.keyring.0.get(key) else {
            return Ready::Now;
        };
        // No word of a provider holds anything up for longer, and facts of the future hold nothing up.
        let most = self.gate.pause_max_s.saturating_mul(1000);
        let within = |from: Millis, until: Millis| until.min(from.saturating_add(most));
        let empty = state.empty_until(self.now).map(|until| {
            let from = state.told_at.unwrap_or(self.now);
            within(from, until)
        });
        if let Some(until) = empty.filter(|until| *until > self.now) {
            return Ready::At(until);
        }
        let Some(out) = state.out.as_ref().filter(|out| out.at <= self.now) else {
            return Ready::Now;
        };
        // Whoever has nothing else may have renewed it just now.
        if out.until.is_none() && self.chain.iter().all(|choice| choice.key == *key) {
            return Ready::Try;
        }
        let until = out.until.unwrap_or(out.at.saturating_add(REFUSED_MS));
        let until = within(out.at, until.max(self.grown(out)));
        if until > self.now {
            return Ready::At(until);
        }
        let probe_ms = self.gate.probe_s.saturating_mul(1000);
        match state.probe {
            Some((run, at)) if run != self.run && at.saturating_add(probe_ms) > self.now => {
                Ready::At(at.saturating_add(probe_ms))
            }
            Some(_) | None => Ready::Try,
        }
    }

    /// Its first word is taken; when it comes again and again, the pauses grow.
    fn grown(&self, out: &Out) -> Millis {
        let Some(times) = out.count.checked_sub(2) else {
            return 0;
        };
        let pause_s = self.gate.backoff_s.saturating_mul(1 << times.min(32));
        let pause_s = pause_s.min(self.gate.backoff_max_s);
        out.at.saturating_add(pause_s.saturating_mul(1000))
    }

    /// Until when none of its keys can be asked, and why, for a person to read.
    #[must_use]
    pub fn waits(&self) -> Option<(Millis, String)> {
        let mut until = None;
        let mut told: Vec<String> = Vec::new();
        for (index, choice) in self.chain.iter().enumerate() {
            let key = &choice.key;
            let Ready::At(at) = self.ready(key) else {
                return None;
            };
            until = Some(until.map_or(at, |known: Millis| known.min(at)));
            if self.chain[..index].iter().all(|before| before.key != *key) {
                told.push(format!("{key} until {}", time_text(at, self.now)));
            }
        }
        Some((until?, format!("no key can be asked: {}", told.join(", "))))
    }

    /// What its agent is told of its keys before it asks one.
    #[must_use]
    pub fn known(&self) -> KnownKeys {
        let mut known = KnownKeys::new();
        for choice in self.chain {
            let state = self.keyring.0.get(&choice.key);
            let Some(state) = state.filter(|_| !known.contains_key(&choice.key)) else {
                continue;
            };
            let out_until = match self.ready(&choice.key) {
                Ready::Now => None,
                // It may be asked, and its success is news.
                Ready::Try => Some(self.now),
                Ready::At(at) => Some(at),
            };
            let one = Known {
                out_until,
                windows: state.windows.clone(),
                told_at: state.told_at,
            };
            known.insert(choice.key.clone(), one);
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, id::TaskId};

    const NOW: Millis = 100_000_000;
    const MINUTE: Millis = 60_000;

    fn chain(keys: &[&str]) -> Vec<Choice> {
        let choice = |key: &&str| Choice {
            key: key.parse().unwrap(),
            model: "m".parse().unwrap(),
            effort: None,
        };
        keys.iter().map(choice).collect()
    }

    fn run(n: u32) -> RunId {
        let task = TaskId::from_bits(1);
        RunId { task, n }
    }

    struct Bed {
        ring: Keyring,
        gate: Gate,
    }

    impl Bed {
        fn new() -> Self {
            let gate = Config::defaults().gate;
            let ring = Keyring::default();
            Self { ring, gate }
        }

        fn hear(&mut self, key: &str, news: &KeyNews, at: Millis) {
            self.ring.hear(&key.parse().unwrap(), news, at);
        }

        fn out(&mut self, key: &str, until: Option<Millis>, at: Millis) {
            let reason = "used up".to_owned();
            self.hear(key, &KeyNews::Out { until, reason }, at);
        }

        fn asking<T>(
            &self,
            n: u32,
            keys: &[&str],
            now: Millis,
            look: impl FnOnce(&Asking<'_>) -> T,
        ) -> T {
            look(&Asking {
                keyring: &self.ring,
                run: run(n),
                chain: &chain(keys),
                gate: &self.gate,
                now,
            })
        }

        fn waits(&self, n: u32, keys: &[&str], now: Millis) -> Option<Millis> {
            self.asking(n, keys, now, |asking| asking.waits().map(|(at, _)| at))
        }

        fn known(&self, n: u32, keys: &[&str], now: Millis) -> Vec<Option<Millis>> {
            let known = self.asking(n, keys, now, |asking| asking.known());
            known.values().map(|key| key.out_until).collect()
        }
    }

    #[test]
    fn a_key_that_is_out_is_out_for_every_task_and_another_key_is_asked() {
        let mut bed = Bed::new();
        let until = NOW + 5 * MINUTE;
        bed.out("a", Some(until), NOW);
        assert_eq!(bed.waits(7, &["a"], NOW + 1), Some(until));
        assert_eq!(bed.waits(7, &["a", "b"], NOW + 1), None);
        assert_eq!(bed.known(7, &["a", "b"], NOW + 1), [Some(until)]);
        bed.out("b", Some(NOW + MINUTE), NOW);
        assert_eq!(bed.waits(7, &["a", "b"], NOW + 1), Some(NOW + MINUTE));
        let text = bed.asking(7, &["a", "b", "a"], NOW + 1, |asking| asking.waits());
        let (_, text) = text.unwrap();
        assert_eq!(
            text,
            "no key can be asked: a until 03:51 UTC, b until 03:47 UTC"
        );
    }

    #[test]
    fn one_run_tries_it_first_and_its_success_lets_the_others_on() {
        let mut bed = Bed::new();
        bed.out("a", Some(NOW + MINUTE), NOW);
        let now = NOW + MINUTE;
        assert_eq!(bed.waits(1, &["a"], now), None);
        bed.ring.begins(run(1), &chain(&["a"]), now);
        // It may ask, and says when that was good.
        assert_eq!(bed.known(1, &["a"], now), [Some(now)]);
        let probed = now + bed.gate.probe_s * 1000;
        assert_eq!(bed.waits(2, &["a"], now), Some(probed));
        assert_eq!(bed.known(2, &["a", "b"], now), [Some(probed)]);
        assert_eq!(bed.waits(2, &["a"], probed), None, "and not for ever");
        bed.hear("a", &KeyNews::Back, now + 1);
        assert_eq!(bed.waits(2, &["a"], now + 1), None);
        assert_eq!(bed.known(2, &["a"], now + 1), [None]);
    }

    #[test]
    fn an_answer_after_its_time_is_a_success_and_one_before_says_nothing() {
        let mut bed = Bed::new();
        let until = NOW + MINUTE;
        bed.out("a", Some(until), NOW);
        bed.ring.begins(run(1), &chain(&["a"]), until);
        let told = |at| KeyNews::Told {
            windows: Vec::new(),
            at,
        };
        bed.hear("a", &told(until - 1), until);
        assert!(bed.waits(2, &["a"], until).is_some());
        bed.hear("a", &told(until), until);
        assert_eq!(bed.waits(2, &["a"], until), None);
        assert_eq!(bed.known(2, &["a"], until), [None]);
    }

    #[test]
    fn whoever_ends_without_a_word_leaves_the_try_to_the_next() {
        let mut bed = Bed::new();
        bed.out("a", Some(NOW), NOW);
        bed.ring.begins(run(1), &chain(&["a"]), NOW + 1);
        assert!(bed.waits(2, &["a"], NOW + 2).is_some());
        bed.ring.ended(run(1));
        assert_eq!(bed.waits(2, &["a"], NOW + 2), None);
    }

    #[test]
    fn tries_that_fail_again_and_again_come_less_often() {
        let mut bed = Bed::new();
        let mut now = NOW;
        let mut pauses = Vec::new();
        for _ in 0..5 {
            bed.out("a", Some(now + 1000), now);
            let until = bed.waits(1, &["a"], now).unwrap();
            pauses.push((until - now) / 1000);
            now = until;
        }
        let first = bed.gate.backoff_s;
        assert_eq!(pauses, [1, first, 2 * first, 4 * first, 8 * first]);
        // Of many that were refused at once, all are one.
        bed.out("a", Some(now + 1000), now);
        let until = bed.waits(1, &["a"], now);
        bed.out("a", Some(now + 1000), now);
        assert_eq!(bed.waits(1, &["a"], now), until);
    }

    #[test]
    fn a_refused_key_is_left_alone_where_there_is_another_and_tried_where_there_is_none() {
        let mut bed = Bed::new();
        bed.out("a", None, NOW);
        assert_eq!(bed.known(1, &["a", "b"], NOW), [Some(NOW + REFUSED_MS)]);
        assert_eq!(bed.waits(1, &["a"], NOW), None);
        assert_eq!(bed.known(1, &["a"], NOW), [Some(NOW)]);
    }

    #[test]
    fn a_window_with_nothing_left_is_waited_for_and_no_word_holds_up_for_longer_than_may_be() {
        let mut bed = Bed::new();
        let window = |remaining, resets_at| Window {
            name: "tokens".into(),
            limit: Some(9),
            remaining: Some(remaining),
            resets_at: Some(resets_at),
        };
        let told = |windows, at| KeyNews::Told { windows, at };
        bed.hear("a", &told(vec![window(0, NOW + 5000)], NOW), NOW);
        assert_eq!(bed.waits(1, &["a"], NOW + 1), Some(NOW + 5000));
        assert_eq!(bed.waits(1, &["a"], NOW + 5000), None);
        // An older answer says nothing of now.
        bed.hear("a", &told(vec![window(3, NOW)], NOW - 1), NOW + 2);
        assert_eq!(bed.waits(1, &["a"], NOW + 2), Some(NOW + 5000));
        bed.hear("a", &told(vec![window(0, Millis::MAX)], NOW + 3), NOW + 3);
        let most = NOW + 3 + bed.gate.pause_max_s * 1000;
        assert_eq!(bed.waits(1, &["a"], NOW + 4), Some(most));
        bed.out("b", Some(Millis::MAX), NOW);
        let most = NOW + bed.gate.pause_max_s * 1000;
        assert_eq!(bed.waits(1, &["b"], NOW), Some(most));
        // A clock that was set back holds nothing up.
        assert_eq!(bed.waits(1, &["b"], NOW - 1), None);
    }

    #[test]
    fn after_the_longest_pause_one_run_tries_it_however_long_its_provider_said() {
        let mut bed = Bed::new();
        let latest = NOW + bed.gate.pause_max_s * 1000;
        let out = KeyNews::Out {
            until: Some(Millis::MAX),
            reason: "used up".into(),
        };
        bed.hear("a", &out.until_at_most(latest), NOW);
        assert_eq!(bed.waits(1, &["a"], NOW), Some(latest));
        bed.ring.begins(run(1), &chain(&["a"]), latest);
        assert!(bed.waits(2, &["a"], latest).is_some(), "the others wait");
        // And a second word is not held to the first.
        bed.out("a", Some(latest + MINUTE), latest);
        assert_eq!(bed.waits(2, &["a"], latest), Some(latest + MINUTE));
    }

    #[test]
    fn an_answer_of_the_future_is_one_of_now() {
        let mut bed = Bed::new();
        let told = |remaining, at| {
            let windows = vec![Window {
                name: "tokens".into(),
                limit: Some(9),
                remaining: Some(remaining),
                resets_at: Some(NOW + MINUTE),
            }];
            KeyNews::Told { windows, at }
        };
        bed.out("a", Some(NOW + MINUTE), NOW);
        bed.hear("a", &told(9, Millis::MAX), NOW + 1);
        assert_eq!(
            bed.waits(1, &["a"], NOW + 1),
            Some(NOW + MINUTE),
            "it was not asked after its time"
        );
        bed.hear("a", &KeyNews::Back, NOW + 2);
        bed.hear("a", &told(0, NOW + 3), NOW + 3);
        assert_eq!(
            bed.waits(1, &["a"], NOW + 3),
            Some(NOW + MINUTE),
            "and a true word after it is heard"
        );
    }

    #[test]
    fn so_many_keys_are_remembered() {
        let mut bed = Bed::new();
        for n in 0..KEYS_MAX + 3 {
            bed.out(&format!("k{n}"), None, NOW + n as u64);
        }
        let names: Vec<&str> = bed.ring.keys().map(|(key, _)| key.as_str()).collect();
        assert_eq!(names.len(), KEYS_MAX);
        assert!(!names.contains(&"k2") && names.contains(&"k3"));
    }
}
