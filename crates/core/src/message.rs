//! What is said to a task after it was dispatched: who said it, and how far it has come.
//! Must not decide when it is delivered: the engine does, and the log remembers.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    Millis,
    id::{BadId, Seq, TaskId},
    prompt::{Rank, Saying},
};

/// Settled messages of one task that are remembered; older ones are in the log only.
pub const SETTLED_MAX: usize = 200;

/// A message of one task: numbers start at 1 and are never used again.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct MessageId(pub u32);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for MessageId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId {
            what: "a message",
            text: text.into(),
            rule: "a number from 1 on; `dispatch show` lists them",
        };
        let id = text.parse().map(Self).map_err(|_| bad())?;
        // `+1` and `01` are numbers too, but no name of ours.
        if id.0 > 0 && id.to_string() == text {
            Ok(id)
        } else {
            Err(bad())
        }
    }
}

/// Who said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sender {
    Person,
    /// The agent of another task.
    Task(TaskId),
    /// Dispatch itself: it tells how tasks have ended that the agent asked for.
    Dispatch,
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Person => f.write_str("person"),
            Self::Task(task) => task.fmt(f),
            Self::Dispatch => f.write_str("dispatch"),
        }
    }
}

/// What one message, run or task has led to belongs to one chain. It is named after the event that
/// began it: a person's word, or a task of theirs. 0: from before there were chains.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Chain(pub Seq);

/// How the agent got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// In the middle of a run.
    Interrupt,
    /// With the first words of a run.
    Continuation,
}

impl Delivery {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Interrupt => "interrupt",
            Self::Continuation => "continuation",
        }
    }
}

/// A run has it: from here on it can be delivered only there, so that no other run hears it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub run: u32,
    /// How much of its output the driver had heard by then, so that a replay says it at the same
    /// point. `None`: it is one of the first words.
    pub out_offset: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Waiting,
    Delivered(Delivery),
    Cancelled,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub id: MessageId,
    pub text: String,
    pub from: Sender,
    /// Of an agent that says it.
    pub rank: Rank,
    pub at: Millis,
    pub taken: Option<Taken>,
    /// The run that does not get it: one that ended without having taken it up, or that had begun
    /// when this was said and needs a fresh start.
    pub barred: Option<u32>,
    pub chain: Chain,
    /// No run gets it before a person says something: its chain had led to enough.
    pub held: bool,
    pub fate: Fate,
}

impl Message {
    /// Nobody has it yet.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.fate == Fate::Waiting && self.taken.is_none()
    }

    /// A run may have it.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.waits() && !self.held
    }

    #[must_use]
    pub fn is_barred_from(&self, run: u32) -> bool {
        self.barred == Some(run)
    }

    /// What an agent reads of it.
    #[must_use]
    pub fn saying(&self) -> Saying {
        match self.from {
            Sender::Person | Sender::Dispatch => Saying::Own(self.text.clone()),
            Sender::Task(task) => Saying::of_agent(task, self.rank, &self.text),
        }
    }

    #[must_use]
    pub fn is_with(&self, run: u32) -> bool {
        self.taken.is_some_and(|taken| taken.run == run)
    }

    /// The word used in JSON and on the screen.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match (self.fate, self.taken) {
            (Fate::Waiting, None) if self.held => "held",
            (Fate::Waiting, None) => "waiting",
            (Fate::Waiting, Some(_)) => "on_its_way",
            (Fate::Delivered(_), _) => "delivered",
            (Fate::Cancelled, _) => "cancelled",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_name_each() {
        assert_eq!("7".parse(), Ok(MessageId(7)));
        for bad in ["0", "07", "+7", "-1", "", "m7", "4294967296"] {
            assert!(bad.parse::<MessageId>().is_err(), "{bad}");
        }
    }
}
