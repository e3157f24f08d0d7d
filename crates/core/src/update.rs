//! What an agent says, in our words, whatever CLI it is.
//! Must not hold anything a driver needs to go on; that stays in the driver.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Millis;

/// A text of a run that comes in pieces: numbers start at 1 and are never used again in the run. A
/// replay comes to the same ones.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ChunkId(pub u32);

impl ChunkId {
    /// What is only for the eye, such as the lines of a plain program: one text from the run's start
    /// to its end, which no event closes.
    pub const OUTPUT: Self = Self(0);
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a text that comes in pieces is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Voice {
    Text,
    Thinking,
    Output,
}

impl Voice {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Thinking => "thinking",
            Self::Output => "output",
        }
    }
}

/// One thing that an agent means to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Todo {
    pub text: String,
    pub state: TodoState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TodoState {
    #[default]
    Pending,
    Active,
    Done,
}

/// Something an agent said, normalized and kept: stored by task and output offset, not folded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Update {
    Session {
        id: String,
    },
    Text {
        text: String,
    },
    Thinking {
        text: String,
    },
    ToolCall {
        id: String,
        name: String,
        input: String,
    },
    ToolResult {
        id: String,
        output: String,
        failed: bool,
    },
    /// It asked for permission; what was answered.
    Asked {
        tool: String,
        input: String,
        allowed: bool,
    },
    Usage(Usage),
    /// The CLI is trying again by itself.
    Retrying {
        attempt: u32,
        status: Option<u16>,
        delay_ms: Option<u64>,
        reason: String,
    },
    /// It asks its provider nothing before that.
    Waiting {
        until: Millis,
        attempt: u32,
        reason: String,
    },
    /// From here on another model answers, or the same one of another key.
    ModelChanged {
        from: String,
        to: String,
        reason: String,
    },
    /// One of its keys is of no use until then, as far as that is known.
    KeyOut {
        key: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Millis>,
        reason: String,
    },
    Notice {
        text: String,
    },
    /// Its list of things to do, whole; it stands in place of the one before.
    Todo {
        items: Vec<Todo>,
    },
}

impl Update {
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Session { .. } => "session",
            Self::Text { .. } => "text",
            Self::Thinking { .. } => "thinking",
            Self::ToolCall { .. } => "tool_call",
            Self::ToolResult { .. } => "tool_result",
            Self::Asked { .. } => "asked",
            Self::Usage(_) => "usage",
            Self::Retrying { .. } => "retrying",
            Self::Waiting { .. } => "waiting",
            Self::ModelChanged { .. } => "model_changed",
            Self::KeyOut { .. } => "key_out",
            Self::Notice { .. } => "notice",
            Self::Todo { .. } => "todo",
        }
    }
}

/// Tokens and money of one run, as the agent reported them; absent is not zero.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    pub input_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    pub cache_read_tokens: Option<u64>,
    pub cache_write_tokens: Option<u64>,
    pub cost_usd: Option<f64>,
    pub turns: Option<u32>,
}

/// What the agent said last: the second witness.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    pub last: LastWord,
    /// Its final text, or the tail of its output where it has no such thing.
    pub text: String,
    pub session: Option<String>,
    pub usage: Option<Usage>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LastWord {
    /// It has no way to say how it went (plain programs): the exit code must speak.
    NoProtocol,
    /// It said that it is done.
    Done,
    /// It asked something only a person can answer.
    Asked {
        question: String,
    },
    RateLimited {
        retry_after_ms: Option<u64>,
        retry_at: Option<Millis>,
    },
    Auth,
    Model,
    /// The provider is overloaded or cannot be reached.
    Unavailable,
    /// It stopped short of an end its protocol promises.
    Missing {
        expected: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by the fuzzer: one cost in ten was read back as its neighbour, so that a state folded
    /// from the log was not the state in memory.
    #[test]
    fn money_reads_back_as_it_was() {
        for n in 0..1000_u32 {
            let usage = Usage {
                cost_usd: Some(f64::from(n * 7919) / 997.0e6),
                ..Usage::default()
            };
            let text = serde_json::to_string(&usage).unwrap();
            assert_eq!(serde_json::from_str::<Usage>(&text).unwrap(), usage);
        }
    }
}
