//! How much of what is scarce each caller may have at a time: streams, waits, connections, bytes of
//! requests. The person at this machine has room that nobody else can take.
//! Must not wait: who finds no room is told so, and comes again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dispatch_core::config::Config;

use super::{
    caller::Caller,
    error::{Code, Problem},
    routes::body_bytes_max,
};

/// Streams of events: of the person's own, and of all others together.
const STREAMS_MAX: usize = 256;
/// A token may be that of a page that many people look at.
const STREAMS_OF_TOKEN_MAX: usize = 64;
const STREAMS_OF_RUN_MAX: usize = 8;
/// Waits for ends; of all together there are `limits.waits_max`.
const WAITS_OF_TOKEN_MAX: usize = 64;
const WAITS_OF_RUN_MAX: usize = 16;
/// Connections of all who show a token. A listener has more than that (`listen`), so one that a person
/// comes in by has room for them.
const CONNECTIONS_MAX: usize = 384;
const CONNECTIONS_OF_TOKEN_MAX: usize = 128;
const CONNECTIONS_OF_RUN_MAX: usize = 32;
/// Bytes of requests that are read or worked on, in bodies of the longest that a route takes.
const BODIES_MAX: usize = 8;
const BODIES_OF_TOKEN_MAX: usize = 4;
const BODIES_OF_RUN_MAX: usize = 2;

/// How much there is of one thing, for whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    /// For the person's own, who come without a token.
    pub(crate) own: usize,
    /// For all others together.
    pub(crate) others: usize,
    pub(crate) token: usize,
    pub(crate) run: usize,
}

/// What one thing is called where there is none left.
#[derive(Clone, Copy, Debug)]
struct Thing {
    code: Code,
    /// A fragment that goes on from "failed to".
    verb: &'static str,
    unit: &'static str,
}

#[derive(Debug, Default)]
struct Held {
    own: usize,
    others: usize,
    /// Of each other caller that has any.
    of: HashMap<String, usize>,
}

/// Room for one thing.
#[derive(Debug)]
pub(crate) struct Room {
    thing: Thing,
    shares: Shares,
    held: Mutex<Held>,
}

/// Somebody's part of a room, until it is dropped.
#[derive(Debug)]
pub(crate) struct Portion {
    room: Arc<Room>,
    /// `None`: the person's own.
    whose: Option<String>,
    amount: usize,
}

/// All that is bounded by caller.
#[derive(Clone, Debug)]
pub(crate) struct Rooms {
    pub(crate) streams: Arc<Room>,
    pub(crate) waits: Arc<Room>,
    pub(crate) connections: Arc<Room>,
    pub(crate) bytes: Arc<Room>,
}

impl Rooms {
    pub(crate) fn new(config: &Config) -> Self {
        let body = body_bytes_max(config.limits.attach_bytes);
        let streams = Shares {
            own: STREAMS_MAX,
            others: STREAMS_MAX,
            token: STREAMS_OF_TOKEN_MAX,
            run: STREAMS_OF_RUN_MAX,
        };
        let waits = Shares {
            own: config.limits.waits_max,
            others: config.limits.waits_max,
            token: WAITS_OF_TOKEN_MAX,
            run: WAITS_OF_RUN_MAX,
        };
        let connections = Shares {
            // As many as their listener takes.
            own: usize::MAX,
            others: CONNECTIONS_MAX,
            token: CONNECTIONS_OF_TOKEN_MAX,
            run: CONNECTIONS_OF_RUN_MAX,
        };
        let bytes = Shares {
            own: body.saturating_mul(BODIES_MAX),
            others: body.saturating_mul(BODIES_MAX),
            token: body.saturating_mul(BODIES_OF_TOKEN_MAX),
            run: body.saturating_mul(BODIES_OF_RUN_MAX),
        };
        Self {
            streams: Room::new(Code::TooManyStreams, "follow events", "streams", streams),
            waits: Room::new(Code::TooManyWait, "wait", "waits", waits),
            connections: Room::new(
                Code::TooManyConnections,
                "take the request",
                "connections",
                connections,
            ),
            bytes: Room::new(Code::TooManyBytes, "take the request", "bytes", bytes),
        }
    }
}

impl Room {
    pub(crate) fn new(
        code: Code,
        verb: &'static str,
        unit: &'static str,
        shares: Shares,
    ) -> Arc<Self> {
        Arc::new(Self {
            thing: Thing { code, verb, unit },
            shares,
            held: Mutex::default(),
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// When this caller, or all like it, have as much as there is for them.
    pub(crate) fn take(
        self: &Arc<Self>,
        caller: &Caller,
        amount: usize,
    ) -> Result<Portion, Problem> {
        let (whose, share) = match caller {
            Caller::Own => (None, self.shares.own),
            Caller::Token { .. } => (Some(caller.to_string()), self.shares.token),
            Caller::Run(_) => (Some(caller.to_string()), self.shares.run),
        };
        let mut held = self.held();
        match &whose {
            None => held.own = self.more(held.own, amount, share, "you have")?,
            Some(whose) => {
                let has = held.of.get(whose).copied().unwrap_or(0);
                let more = self.more(has, amount, share, "one caller may have")?;
                let all = self.more(held.others, amount, self.shares.others, "all may have")?;
                held.others = all;
                held.of.insert(whose.clone(), more);
            }
        }
        drop(held);
        let room = Arc::clone(self);
        Ok(Portion {
            room,
            whose,
            amount,
        })
    }

    fn more(&self, has: usize, amount: usize, share: usize, who: &str) -> Result<usize, Problem> {
        let Thing { code, verb, unit } = self.thing;
        let more = has.checked_add(amount).filter(|more| *more <= share);
        more.ok_or_else(|| {
            let detail = format!("{verb}: {who} {share} {unit} at a time; end some, or wait");
            Problem::new(code, detail)
        })
    }

    fn give_back(&self, whose: Option<&str>, amount: usize) {
        let mut held = self.held();
        let Some(whose) = whose else {
            held.own = held.own.saturating_sub(amount);
            return;
        };
        held.others = held.others.saturating_sub(amount);
        let left = held.of.get(whose).map(|has| has.saturating_sub(amount));
        match left {
            Some(0) | None => drop(held.of.remove(whose)),
            Some(left) => drop(held.of.insert(whose.to_owned(), left)),
        }
    }
}

impl Portion {
    /// It turned out to be less than was feared.
    pub(crate) fn shrink(&mut self, amount: usize) {
        let back = self.amount.saturating_sub(amount);
        self.room.give_back(self.whose.as_deref(), back);
        self.amount -= back;
    }
}

impl Drop for Portion {
    fn drop(&mut self) {
        self.room.give_back(self.whose.as_deref(), self.amount);
    }
}

#[cfg(test)]
mod tests {
    use dispatch_core::id::{RunId, TaskId};

    use super::*;

    fn run(n: u32) -> Caller {
        let task = TaskId::from_bits(1);
        Caller::Run(RunId { task, n })
    }

    fn room() -> Arc<Room> {
        let shares = Shares {
            own: 3,
            others: 5,
            token: 4,
            run: 2,
        };
        Room::new(Code::TooManyStreams, "follow events", "streams", shares)
    }

    #[test]
    fn nobody_takes_what_is_anothers() {
        let room = room();
        let mut all = vec![room.take(&run(1), 2).unwrap()];
        let refused = room.take(&run(1), 1).unwrap_err();
        assert_eq!(refused.code(), Code::TooManyStreams);
        all.push(room.take(&run(2), 2).unwrap());
        // One is left for all of them together.
        assert!(room.take(&run(3), 2).is_err());
        all.push(room.take(&run(3), 1).unwrap());
        assert!(room.take(&run(4), 1).is_err());
        // And the person's is the person's.
        let own = room.take(&Caller::Own, 3).unwrap();
        assert!(room.take(&Caller::Own, 1).is_err());
        drop(own);
        assert!(room.take(&Caller::Own, usize::MAX).is_err());
        drop(all);
        let held = room.held();
        assert_eq!((held.own, held.others, held.of.len()), (0, 0, 0));
    }

    #[test]
    fn a_place_can_be_made_smaller() {
        let room = room();
        let mut place = room.take(&run(1), 2).unwrap();
        place.shrink(1);
        place.shrink(5);
        let more = room.take(&run(1), 1).unwrap();
        assert!(room.take(&run(1), 1).is_err());
        drop((place, more));
        assert!(room.take(&run(1), 2).is_ok());
    }

    #[test]
    fn a_refusal_takes_nothing() {
        let room = room();
        for _ in 0..3 {
            assert!(room.take(&run(1), 3).is_err());
        }
        assert!(room.held().of.is_empty());
        assert_eq!(room.held().others, 0);
    }
}
