//! How a run ends: enums with data, never a string or a bool.
//! Must not decide which one applies; `verdict` does.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Millis, id::TaskId};

/// Why we ended a job, when it did not end by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    ByPerson,
    /// By the agent that asked for it, or because that one's task ended badly.
    ByAsker,
    WallClock {
        limit_ms: u64,
    },
    Idle {
        limit_ms: u64,
    },
    OutputBytes {
        limit_bytes: u64,
    },
    Memory {
        limit_bytes: u64,
    },
    Processes {
        limit: u64,
    },
    DiskBytes {
        limit_bytes: u64,
    },
    Budget,
    Shutdown,
    /// It had said its last word and did not leave by itself.
    Lingered,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByPerson => f.write_str("stopped by a person"),
            Self::ByAsker => f.write_str("stopped by the task that asked for it"),
            Self::WallClock { limit_ms } => {
                write!(
                    f,
                    "ran longer than its wall clock limit of {} s",
                    limit_ms / 1000
                )
            }
            Self::Idle { limit_ms } => write!(f, "said nothing for {} s", limit_ms / 1000),
            Self::OutputBytes { limit_bytes } => {
                write!(f, "wrote more than its output limit of {limit_bytes} bytes")
            }
            Self::Memory { limit_bytes } => {
                write!(f, "used more than its memory limit of {limit_bytes} bytes")
            }
            Self::Processes { limit } => {
                write!(f, "had more processes than its limit of {limit}")
            }
            Self::DiskBytes { limit_bytes } => {
                write!(
                    f,
                    "filled its workspace and home beyond {limit_bytes} bytes"
                )
            }
            Self::Budget => f.write_str("spent its budget"),
            Self::Shutdown => f.write_str("stopped because Dispatch was told to shut down"),
            Self::Lingered => f.write_str("did not leave after its last word"),
        }
    }
}

/// What went wrong, typed so that a retry can be decided without reading prose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    Prepare {
        reason: String,
    },
    Start {
        reason: String,
    },
    Exit {
        code: i32,
        said: String,
    },
    Signal {
        signal: i32,
    },
    /// The provider said "not now"; `retry_at` is when it said to come back.
    RateLimited {
        retry_at: Option<Millis>,
        said: String,
    },
    Auth {
        said: String,
    },
    Model {
        said: String,
    },
    /// The provider is overloaded or cannot be reached: it may work the next time.
    Unavailable {
        said: String,
    },
    /// A task that had to complete before this one did not. `state` is how it ended.
    Dependency {
        task: TaskId,
        state: String,
    },
    /// It was tried again by itself, and ended the same way each time.
    GaveUp {
        runs: u32,
        history: String,
    },
    /// The agent broke the protocol its driver speaks, its missing last word included.
    Protocol {
        reason: String,
    },
    /// It ended well, but a change was expected and none was made.
    NothingChanged {
        said: String,
    },
    /// It ended well, but a report was expected and nothing was said.
    NothingSaid,
    Checks {
        failed: Vec<String>,
    },
    /// The reviewer is against it.
    Review {
        findings: usize,
        note: String,
    },
    /// A review that nobody may take for a pass.
    NotReviewed {
        reason: String,
    },
    /// A review has to leave everything as it is.
    ReviewChanged,
    /// The result could not be kept.
    Seal {
        reason: String,
    },
}

impl Outcome {
    /// Messages that waited for this end start the next run by themselves. After a stop or a hard
    /// failure they wait for a person.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        match self {
            Self::Completed { .. } | Self::Blocked { .. } => true,
            Self::Failed(Failure::Seal { .. }) => false,
            Self::Failed(failure) => failure.model_answered(),
            Self::Stopped(_) | Self::Lost => false,
        }
    }
}

impl Failure {
    /// Nobody learns from it that the provider refuses to work: its model has answered.
    #[must_use]
    pub fn model_answered(&self) -> bool {
        match self {
            Self::NothingChanged { .. }
            | Self::NothingSaid
            | Self::Checks { .. }
            | Self::Review { .. }
            | Self::NotReviewed { .. }
            | Self::ReviewChanged
            | Self::Seal { .. } => true,
            Self::Prepare { .. }
            | Self::Start { .. }
            | Self::Exit { .. }
            | Self::Signal { .. }
            | Self::RateLimited { .. }
            | Self::Auth { .. }
            | Self::Model { .. }
            | Self::Unavailable { .. }
            | Self::Dependency { .. }
            | Self::GaveUp { .. }
            | Self::Protocol { .. } => false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = |f: &mut fmt::Formatter<'_>, said: &str| {
            if said.is_empty() {
                Ok(())
            } else {
                write!(f, ": {said}")
            }
        };
        match self {
            Self::Prepare { reason } => write!(f, "could not prepare the workspace: {reason}"),
            Self::Start { reason } => write!(f, "could not start the agent: {reason}"),
            Self::Exit { code, said } => {
                write!(f, "the agent exited with code {code}")?;
                quote(f, said)
            }
            Self::Signal { signal } => write!(f, "the agent was killed by signal {signal}"),
            Self::RateLimited { said, .. } => {
                f.write_str("rate limited by the provider")?;
                quote(f, said)
            }
            Self::Auth { said } => {
                f.write_str("the agent could not log in")?;
                quote(f, said)
            }
            Self::Model { said } => {
                f.write_str("the model failed")?;
                quote(f, said)
            }
            Self::Unavailable { said } => {
                f.write_str("the model could not be reached")?;
                quote(f, said)
            }
            Self::Dependency { task, state } => write!(
                f,
                "task {task}, which had to complete before this one, ended as {state}; \
                 `dispatch retry` both, that one first"
            ),
            Self::GaveUp { runs, history } => {
                write!(f, "gave up after {runs} runs: {history}")
            }
            Self::Protocol { reason } => write!(f, "the agent broke its protocol: {reason}"),
            Self::NothingChanged { said } => {
                f.write_str("nothing changed in the workspace")?;
                quote(f, said)?;
                f.write_str(
                    " (if no change was wanted, dispatch with --expects report or --expects either)",
                )
            }
            Self::NothingSaid => f.write_str("the agent ended without saying anything"),
            Self::Checks { failed } => write!(f, "check failed: {}", failed.join(", ")),
            Self::Review { findings, note } => {
                write!(f, "the review says no: {findings} findings")?;
                quote(f, note)
            }
            Self::NotReviewed { reason } => write!(f, "not reviewed: {reason}"),
            Self::ReviewChanged => f.write_str("the reviewer changed files, so its word is void"),
            Self::Seal { reason } => write!(f, "the result could not be kept: {reason}"),
        }
    }
}

/// What kind of end may be tried again without a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// When the provider takes work again; only `limits.runs_max` ends that.
    WhenProviderSays,
    /// A few times, with growing pauses (`gate.retries_max`).
    AFewTimes,
}

/// How a run ended. Unknown is never success: what was not seen is `Lost`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Completed {
        summary: String,
    },
    Blocked {
        question: String,
    },
    Failed(Failure),
    Stopped(Stop),
    /// The end was not seen: the keeper died without leaving an exit.
    Lost,
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Outcome {
    /// The word used in JSON and on the screen.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Completed { .. } => "completed",
            Self::Blocked { .. } => "blocked",
            Self::Failed(_) => "failed",
            Self::Stopped(_) => "stopped",
            Self::Lost => "lost",
        }
    }

    #[must_use]
    pub fn again(&self) -> Option<Again> {
        match self {
            Self::Failed(Failure::RateLimited { .. }) => Some(Again::WhenProviderSays),
            Self::Failed(Failure::Unavailable { .. }) | Self::Lost => Some(Again::AFewTimes),
            Self::Completed { .. } | Self::Blocked { .. } | Self::Failed(_) | Self::Stopped(_) => {
                None
            }
        }
    }

    /// One sentence for a person.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Completed { summary } => summary.clone(),
            Self::Blocked { question } => question.clone(),
            Self::Failed(failure) => failure.to_string(),
            Self::Stopped(stop) => stop.to_string(),
            Self::Lost => "the end was not seen: the process that kept the job died".into(),
        }
    }
}
