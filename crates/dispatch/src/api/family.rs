//! What is told of tasks that agents ask for: the answer to a wait, and what a caller may do.
//! Must not say anything that a grant does not: it repeats what the engine decided.

use dispatch_core::grant::Grant;
use dispatch_engine::view;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{shapes, task::Task};

/// What a wait ended with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Waited {
    /// What was waited for has come; false: the time is over, or one of them is not waited for any more.
    pub(crate) done: bool,
    /// As they were asked for.
    pub(crate) tasks: Vec<WaitedFor>,
    /// For an agent: how they ended, in words. What they say of themselves is quoted.
    pub(crate) words: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct WaitedFor {
    /// Nothing of it runs or waits.
    pub(crate) done: bool,
    /// Its runs whose end this answer delivers to the agent; what it has heard of before is not here.
    pub(crate) delivered: Vec<u32>,
    pub(crate) task: Task,
}

impl From<&view::Waited> for Waited {
    fn from(waited: &view::Waited) -> Self {
        let task = |one: &view::WaitedFor| WaitedFor {
            done: one.done,
            delivered: one.delivered.iter().map(|end| end.run).collect(),
            task: Task::from(&one.view),
        };
        Self {
            done: !waited.over,
            tasks: waited.tasks.iter().map(task).collect(),
            words: waited.words.clone(),
        }
    }
}

/// What a caller may do here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Door {
    /// Of an agent: its run and its task. Null: a person or a program of theirs.
    pub(crate) run: Option<String>,
    pub(crate) task: Option<String>,
    /// Where its files come from, as a grant lists it.
    pub(crate) place: Option<String>,
    /// Null: nothing, for an agent.
    #[schemars(with = "Option<shapes::Grant>")]
    pub(crate) grant: Option<Grant>,
}
