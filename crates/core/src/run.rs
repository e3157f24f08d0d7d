//! The table of life: a run's states, what can happen to it, and nothing else.
//! Must not hold a process handle or a counter: a job's name is its run's id and its part.

use serde::{Deserialize, Serialize};

use crate::{
    id::AgentName,
    message::Sender,
    outcome::{Outcome, Stop},
};

/// Why a run exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunCause {
    /// The first run of a task.
    Dispatched,
    /// A person or parent answered the question of the run before.
    Answer {
        text: String,
        #[serde(default = "by_person", skip_serializing_if = "is_person")]
        by: Sender,
    },
    /// The run before ended in a way that may be tried again, or a person wants it to be.
    RetryOf {
        n: u32,
        #[serde(default)]
        by_person: bool,
    },
    /// Messages waited when the run before had ended, or came then. Which ones it gets is fixed when
    /// it opens.
    Said {
        /// One of them is a person's; otherwise the run is paid from the task's wake budget.
        by_person: bool,
    },
    /// What its agent asked for has ended, and it is told. It is paid from the task's wake budget.
    Ends,
    /// A person wants it to go on. Another agent reads who had it before, and how that ended.
    Resumed { agent: AgentName, ended: String },
}

/// Of logs that did not say.
pub(crate) fn by_person() -> Sender {
    Sender::Person
}

pub(crate) fn is_person(by: &Sender) -> bool {
    *by == Sender::Person
}

impl RunCause {
    /// A person's word began it, and nothing else would have.
    #[must_use]
    pub fn is_persons(&self) -> bool {
        match self {
            Self::Answer { by, .. } => *by == Sender::Person,
            Self::RetryOf { by_person, .. } | Self::Said { by_person } => *by_person,
            Self::Resumed { .. } => true,
            Self::Dispatched | Self::Ends => false,
        }
    }

    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Dispatched => "dispatched",
            Self::Answer { .. } => "answer",
            Self::RetryOf { .. } => "retry",
            Self::Said { .. } => "said",
            Self::Ends => "ends",
            Self::Resumed { .. } => "resumed",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    Queued,
    Preparing,
    Running,
    Stopping { why: Stop },
    Checking,
    Finished(Outcome),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunEvent {
    Admitted,
    Started,
    StopRequested(Stop),
    ChecksStarted,
    Finished(Outcome),
}

/// An event that the table does not allow in this state: a bug, logged as one, never applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("apply {event:?} to a run that is {state:?}: the table of life has no such step")]
pub struct Illegal {
    pub state: RunState,
    pub event: RunEvent,
}

impl RunState {
    /// The state after `event`. The whole life of a run is this table.
    ///
    /// # Errors
    /// [`Illegal`] for a pair that is not in the table.
    pub fn next(&self, event: &RunEvent) -> Result<Self, Illegal> {
        use {RunEvent as E, RunState as S};
        Ok(match (self, event) {
            (S::Queued, E::Admitted) => S::Preparing,
            (S::Preparing, E::Started) => S::Running,
            (S::Preparing | S::Running | S::Checking, E::StopRequested(why)) => {
                S::Stopping { why: why.clone() }
            }
            (S::Running, E::ChecksStarted) => S::Checking,
            (
                S::Queued | S::Preparing | S::Running | S::Stopping { .. } | S::Checking,
                E::Finished(outcome),
            ) => S::Finished(outcome.clone()),
            (S::Queued, E::Started | E::StopRequested(_) | E::ChecksStarted)
            | (S::Preparing, E::Admitted | E::ChecksStarted)
            | (S::Running | S::Checking, E::Admitted | E::Started)
            | (S::Checking, E::ChecksStarted)
            | (
                S::Stopping { .. },
                E::Admitted | E::Started | E::StopRequested(_) | E::ChecksStarted,
            )
            | (
                S::Finished(_),
                E::Admitted | E::Started | E::StopRequested(_) | E::ChecksStarted | E::Finished(_),
            ) => {
                return Err(Illegal {
                    state: self.clone(),
                    event: event.clone(),
                });
            }
        })
    }

    /// Slots are counted from states, so none can leak.
    #[must_use]
    pub fn holds_slot(&self) -> bool {
        match self {
            Self::Preparing | Self::Running | Self::Stopping { .. } | Self::Checking => true,
            Self::Queued | Self::Finished(_) => false,
        }
    }

    /// The word used in JSON and on the screen.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Preparing => "preparing",
            Self::Running => "running",
            Self::Stopping { .. } => "stopping",
            Self::Checking => "checking",
            Self::Finished(outcome) => outcome.word(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> [RunEvent; 5] {
        [
            RunEvent::Admitted,
            RunEvent::Started,
            RunEvent::StopRequested(Stop::ByPerson),
            RunEvent::ChecksStarted,
            RunEvent::Finished(Outcome::Lost),
        ]
    }

    fn states() -> [RunState; 6] {
        [
            RunState::Queued,
            RunState::Preparing,
            RunState::Running,
            RunState::Stopping {
                why: Stop::ByPerson,
            },
            RunState::Checking,
            RunState::Finished(Outcome::Lost),
        ]
    }

    /// The table, exhaustively: rows are states, columns events, in the order above.
    #[test]
    fn the_table_of_life() {
        let expected = [
            ["preparing", "-", "-", "-", "lost"],
            ["-", "running", "stopping", "-", "lost"],
            ["-", "-", "stopping", "checking", "lost"],
            ["-", "-", "-", "-", "lost"],
            ["-", "-", "stopping", "-", "lost"],
            ["-", "-", "-", "-", "-"],
        ];
        for (state, row) in states().iter().zip(expected) {
            for (event, cell) in events().iter().zip(row) {
                let got = state.next(event).map_or("-", |next| next.word());
                assert_eq!(got, cell, "{state:?} {event:?}");
            }
        }
    }

    /// Recovery is total: no prefix of a legal log is a dead end.
    #[test]
    fn every_open_state_can_be_closed_as_lost() {
        for state in states() {
            let closes = state.next(&RunEvent::Finished(Outcome::Lost)).is_ok();
            assert_eq!(closes, !matches!(state, RunState::Finished(_)), "{state:?}");
        }
    }
}
