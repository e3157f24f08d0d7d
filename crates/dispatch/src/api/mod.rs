//! Wire types: what goes over the socket and what `--json` prints, and conversions from our own.
//! Must not decide anything and must not be used below the doors (I9).

pub(crate) mod agentic;
pub(crate) mod event;
pub(crate) mod family;
pub(crate) mod letter;
pub(crate) mod mcp;
pub(crate) mod notice;
pub(crate) mod overview;
pub(crate) mod plan;
pub(crate) mod request;
mod shapes;
pub(crate) mod task;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// RFC 9457, with a stable `code` for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Problem {
    pub(crate) status: u16,
    pub(crate) code: String,
    /// A fragment that goes on from "failed to".
    pub(crate) detail: String,
    /// Of `done_unseen`: the task that was made, or that it was done to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) task: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Health {
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) data: PathBuf,
    /// A verb started it, and it ends when it has nothing to do.
    #[serde(default)]
    pub(crate) on_demand: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Applied {
    /// Or the directory that was written into; `branch` is empty then.
    pub(crate) repo: PathBuf,
    pub(crate) branch: String,
    pub(crate) commit: String,
    /// How many files of a directory differ from what was copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) files: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Restored {
    pub(crate) workspace: PathBuf,
}

/// What became of a message so far: `delivered`, `on_its_way`, `queued` or `held`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Spoken {
    pub(crate) message: u32,
    pub(crate) how: String,
    pub(crate) task: task::Task,
}

/// RFC 3339, UTC, always with milliseconds: times then sort as text.
pub(crate) fn time(ms: dispatch_core::Millis) -> String {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(String::new, |time| format!("{time:.3}"))
}
