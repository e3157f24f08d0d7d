//! What comes after a failure: the same again, the next of the chain, or the end.
//! Decided by kind of failure, never by words in a text. Pure: times come in, times go out. Must not
//! know of steps that are finished: only the request that failed is asked again.

use dispatch_core::{
    Millis,
    models::Choice,
    native::{Chunk, Fault},
};

use crate::keys::Outs;

/// Waits before the next of the chain is tried, in multiples of the first one.
const HERE: [Millis; 3] = [1, 4, 15];
/// Where there is no other: the last one again and again, until the turn's limit for waits.
const ALONE: [Millis; 9] = [1, 4, 15, 30, 60, 300, 600, 900, 1_800];
/// Nobody waits longer than this at one place when there is another, in the same multiples.
const HERE_MAX: Millis = 30;
/// A limit whose end nobody told is tried again after this.
const UNKNOWN_MS: Millis = 600_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// It may be over soon.
    Passing,
    /// This key is of no use now.
    Key,
    /// The same anywhere.
    Fatal,
}

fn class(fault: Fault) -> Class {
    match fault {
        Fault::RateLimited
        | Fault::Overloaded
        | Fault::Network
        | Fault::Timeout
        | Fault::Protocol => Class::Passing,
        Fault::Exhausted | Fault::Auth => Class::Key,
        // A key that cannot be had is a mistake in the settings: it must be seen.
        Fault::Key | Fault::BadRequest | Fault::ContextTooLong | Fault::Refused => Class::Fatal,
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The same choice, not before `at`.
    Again {
        at: Millis,
    },
    /// Another one, not before `at`.
    Hop {
        to: usize,
        at: Millis,
    },
    Fail,
}

/// What was asked for, in order, and where in it a turn is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chain {
    choices: Vec<Choice>,
    at: usize,
    /// Failures since the last answer, here.
    failures: u32,
    /// Its key was renewed since the last answer, here.
    renewed: bool,
    /// What has been waited in this turn.
    waited_ms: Millis,
    waits: Waits,
}

/// Of the turn's limits, those of its waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waits {
    /// The first one.
    pub(crate) retry_ms: Millis,
    /// All of them together; 0 means no limit.
    pub(crate) sum_ms_max: Millis,
}

impl Chain {
    /// A turn begins: at the first choice whose key is of use, or will be before the others.
    pub(crate) fn new(
        choices: Vec<Choice>,
        waits: Waits,
        outs: &Outs,
        now: Millis,
    ) -> Option<Self> {
        let usable = |(index, choice): (usize, &Choice)| {
            Some((outs.usable_at(&choice.key)?.max(now), index))
        };
        let first = choices.iter().enumerate().filter_map(usable).min();
        let at = first.map_or(0, |(_, index)| index);
        (!choices.is_empty()).then_some(Self {
            choices,
            at,
            failures: 0,
            renewed: false,
            waited_ms: 0,
            waits,
        })
    }

    pub(crate) fn choice(&self) -> &Choice {
        &self.choices[self.at]
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    pub(crate) fn hop(&mut self, to: usize) {
        self.at = to.min(self.choices.len() - 1);
        self.answered();
    }

    /// When its key may be asked, if that is not now, and whether that is within what may be waited.
    pub(crate) fn before(&mut self, outs: &Outs, now: Millis) -> Option<(Millis, Next)> {
        let at = outs.usable_at(&self.choice().key).filter(|at| *at > now)?;
        Some((at, self.within_limit(Next::Again { at }, now)))
    }

    /// It answered.
    pub(crate) fn answered(&mut self) {
        (self.failures, self.renewed) = (0, false);
    }

    /// Whether a key that is said to be renewed is worth another request: once, because whoever says
    /// so may be wrong.
    pub(crate) fn renewed(&mut self) -> bool {
        !std::mem::replace(&mut self.renewed, true)
    }

    /// The first that comes after this one and is as it should be.
    pub(crate) fn later(&self, fits: impl Fn(&Choice) -> bool) -> Option<usize> {
        (self.at + 1..self.choices.len()).find(|index| fits(&self.choices[*index]))
    }

    /// What the failure says of the key, to be recorded before anything follows from it.
    pub(crate) fn key_out(
        &self,
        fault: Fault,
        retry_at: Option<Millis>,
        why: &str,
        now: Millis,
    ) -> Option<Chunk> {
        let until = match fault {
            Fault::RateLimited => Some(retry_at?),
            Fault::Exhausted => Some(retry_at.unwrap_or(now + UNKNOWN_MS)),
            Fault::Auth => None,
            _ => return None,
        };
        Some(Chunk::KeyOut {
            key: self.choice().key.clone(),
            until,
            why: why.to_owned(),
        })
    }

    /// What leaving this choice says of its key, where nobody told for how long.
    pub(crate) fn given_up(&self, fault: Fault, outs: &Outs, now: Millis) -> Option<Chunk> {
        let known = outs.is_out(&self.choice().key);
        (fault == Fault::RateLimited && !known).then(|| Chunk::KeyOut {
            key: self.choice().key.clone(),
            until: Some(now + UNKNOWN_MS),
            why: "its limit did not end soon".to_owned(),
        })
    }

    /// What to do now. `spread` is from 0 to 999 and keeps many agents from coming back at once.
    pub(crate) fn next(
        &mut self,
        fault: Fault,
        retry_at: Option<Millis>,
        outs: &Outs,
        now: Millis,
        spread: u64,
    ) -> Next {
        self.failures += 1;
        let class = class(fault);
        if class == Class::Fatal {
            return Next::Fail;
        }
        let other = self.soonest_other(outs);
        let here = (class == Class::Passing)
            .then(|| self.again_here(retry_at, other.is_some(), now, spread));
        let next = match (here.flatten(), other) {
            (Some(at), _) => Next::Again { at },
            (None, Some((to, at))) => Next::Hop {
                to,
                at: at.max(now),
            },
            (None, None) => match outs.usable_at(&self.choice().key) {
                Some(at) if class == Class::Key => Next::Again { at: at.max(now) },
                _ => return Next::Fail,
            },
        };
        self.within_limit(next, now)
    }

    /// When to try the same again; `None`: not here any more.
    fn again_here(
        &self,
        retry_at: Option<Millis>,
        another: bool,
        now: Millis,
        spread: u64,
    ) -> Option<Millis> {
        let index = usize::try_from(self.failures.saturating_sub(1)).unwrap_or(usize::MAX);
        let times = if another {
            *HERE.get(index)?
        } else {
            ALONE[index.min(ALONE.len() - 1)]
        };
        let delay = times.saturating_mul(self.waits.retry_ms);
        // Up to a quarter more.
        let delay = delay + delay * spread.min(999) / 4000;
        let at = (now + delay).max(retry_at.map_or(0, |at| at + spread));
        (!another || at <= now + HERE_MAX * self.waits.retry_ms).then_some(at)
    }

    /// Of the other choices, the one that can be asked first; in order where several can.
    fn soonest_other(&self, outs: &Outs) -> Option<(usize, Millis)> {
        let count = self.choices.len();
        // Those that follow, and then those before: one of them may be back.
        let order = (1..count).map(|step| (self.at + step) % count);
        let usable = order.filter_map(|index| {
            let key = &self.choices[index].key;
            let same = *key == self.choice().key && outs.is_out(key);
            let at = outs.usable_at(key).filter(|_| !same)?;
            Some((index, at))
        });
        usable.min_by_key(|(_, at)| *at)
    }

    fn within_limit(&mut self, next: Next, now: Millis) -> Next {
        let at = match next {
            Next::Again { at } | Next::Hop { at, .. } => at,
            Next::Fail => return Next::Fail,
        };
        self.waited_ms += at.saturating_sub(now);
        if self.waits.sum_ms_max > 0 && self.waited_ms > self.waits.sum_ms_max {
            return Next::Fail;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = 1_000_000;
    const WAITS: Waits = Waits {
        retry_ms: 1000,
        sum_ms_max: 8 * 3600 * 1000,
    };

    fn choices(keys: &[&str]) -> Vec<Choice> {
        let choice = |key: &&str| Choice {
            key: key.parse().unwrap(),
            model: "m".parse().unwrap(),
            effort: None,
        };
        keys.iter().map(choice).collect()
    }

    fn chain(keys: &[&str]) -> Chain {
        Chain::new(choices(keys), WAITS, &Outs::default(), NOW).unwrap()
    }

    fn outs(list: &[(&str, Option<Millis>)]) -> Outs {
        let mut outs = Outs::default();
        for (key, until) in list {
            outs.apply(&Chunk::KeyOut {
                key: key.parse().unwrap(),
                until: *until,
                why: String::new(),
            });
        }
        outs
    }

    /// The table of the acceptance list: kind of failure to what is done, with and without another.
    #[test]
    fn row_6_every_kind_of_failure_has_its_next() {
        use Fault::{
            Auth, BadRequest, ContextTooLong, Exhausted, Key, Network, Overloaded, Protocol,
            RateLimited, Refused, Timeout,
        };
        let again = |delay| Next::Again { at: NOW + delay };
        let hop = Next::Hop { to: 1, at: NOW };
        for (fault, with_another, alone) in [
            (RateLimited, again(1000), again(1000)),
            (Overloaded, again(1000), again(1000)),
            (Network, again(1000), again(1000)),
            (Timeout, again(1000), again(1000)),
            (Protocol, again(1000), again(1000)),
            (Exhausted, hop.clone(), again(UNKNOWN_MS)),
            (Auth, hop, Next::Fail),
            (Key, Next::Fail, Next::Fail),
            (BadRequest, Next::Fail, Next::Fail),
            (ContextTooLong, Next::Fail, Next::Fail),
            (Refused, Next::Fail, Next::Fail),
        ] {
            for (keys, expected) in [(&["a", "b"][..], with_another), (&["a"], alone)] {
                let mut chain = chain(keys);
                let mut outs = Outs::default();
                if let Some(out) = chain.key_out(fault, None, "", NOW) {
                    outs.apply(&out);
                }
                let next = chain.next(fault, None, &outs, NOW, 0);
                assert_eq!(next, expected, "{fault:?} {keys:?}");
            }
        }
    }

    #[test]
    fn after_a_few_tries_the_next_one_is_asked_and_its_tries_are_its_own() {
        let mut chain = chain(&["a", "b"]);
        let outs = Outs::default();
        let mut next = || {
            let next = chain.next(Fault::Overloaded, None, &outs, NOW, 0);
            if let Next::Hop { to, .. } = next {
                chain.hop(to);
            }
            next
        };
        let again = |delay| Next::Again { at: NOW + delay };
        let hop = |to| Next::Hop { to, at: NOW };
        for to in [1, 0, 1] {
            let four = [next(), next(), next(), next()];
            assert_eq!(four, [again(1000), again(4000), again(15_000), hop(to)]);
        }
    }

    #[test]
    fn a_long_wait_that_the_provider_asks_for_is_spent_elsewhere() {
        let far = NOW + 3_600_000;
        let mut two = chain(&["a", "b"]);
        let out = outs(&[("a", Some(far))]);
        let next = two.next(Fault::RateLimited, Some(far), &out, NOW, 0);
        assert_eq!(next, Next::Hop { to: 1, at: NOW });
        let mut one = chain(&["a"]);
        let next = one.next(Fault::RateLimited, Some(far), &out, NOW, 0);
        assert_eq!(next, Next::Again { at: far });
    }

    #[test]
    fn a_model_of_the_same_key_is_no_way_out_of_its_limit() {
        let mut chain = chain(&["a", "a", "b"]);
        let out = outs(&[("a", None)]);
        let next = chain.next(Fault::Auth, None, &out, NOW, 0);
        assert_eq!(next, Next::Hop { to: 2, at: NOW });
    }

    #[test]
    fn when_all_are_out_it_waits_for_the_first_to_be_back() {
        let mut chain = chain(&["a", "b", "c"]);
        let out = outs(&[
            ("a", Some(NOW + 900_000)),
            ("b", Some(NOW + 700_000)),
            ("c", None),
        ]);
        let next = chain.next(Fault::Exhausted, None, &out, NOW, 0);
        let at = NOW + 700_000;
        assert_eq!(next, Next::Hop { to: 1, at });
    }

    #[test]
    fn waits_are_bounded_in_sum_and_spread() {
        let mut chain = chain(&["a"]);
        let (mut now, mut waits) = (NOW, 0);
        let end = loop {
            match chain.next(Fault::Overloaded, None, &Outs::default(), now, 999) {
                Next::Again { at } => {
                    let delay = at - now;
                    let usual = ALONE[waits.min(ALONE.len() - 1)] * WAITS.retry_ms;
                    assert!(delay >= usual && delay < usual + usual / 4, "{delay}");
                    now = at;
                    waits += 1;
                }
                other => break other,
            }
            assert!(waits < 100);
        };
        assert_eq!(end, Next::Fail);
        assert!(now - NOW <= WAITS.sum_ms_max);
        // What a provider says to all of them at once, too.
        let told = Some(NOW + 20_000);
        let mut chain = self::chain(&["a"]);
        let next = chain.next(Fault::RateLimited, told, &Outs::default(), NOW, 500);
        assert_eq!(next, Next::Again { at: NOW + 20_500 });
    }

    #[test]
    fn a_turn_begins_where_a_key_is_of_use() {
        let start = |list: &[(&str, Option<Millis>)]| {
            let chain = Chain::new(choices(&["a", "b"]), WAITS, &outs(list), NOW).unwrap();
            chain.choice().key.to_string()
        };
        assert_eq!(start(&[]), "a");
        assert_eq!(start(&[("a", Some(NOW + 1))]), "b");
        // Its time is over: it is tried again.
        assert_eq!(start(&[("a", Some(NOW))]), "a");
        assert_eq!(start(&[("a", None), ("b", None)]), "a");
        assert!(Chain::new(Vec::new(), WAITS, &Outs::default(), NOW).is_none());
    }
}
