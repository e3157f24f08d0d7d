//! What an agent is given to read: the task and the rules of the house.
//! Must not contain a secret, and must not promise what the fence does not hold.

use crate::{run::RunCause, task::Expects};

/// The file an agent writes its question into.
pub const BLOCKED_FILE: &str = "BLOCKED.md";

/// The prompt of a run. `resumed` says that the agent still has the conversation before.
#[must_use]
pub fn prompt(text: &str, cause: &RunCause, expects: Expects, resumed: bool) -> String {
    let rules = rules(expects);
    match cause {
        RunCause::Dispatched => format!("{text}\n\n{rules}"),
        RunCause::RetryOf { .. } if resumed => format!(
            "You were cut off before this task was done. Go on with it from where you are:\n\n\
             {text}\n\n{rules}"
        ),
        RunCause::RetryOf { .. } => format!(
            "{text}\n\nAn earlier run of this task ended before it was done. What it left is in \
             this directory: look at it first, and go on from there.\n\n{rules}"
        ),
        RunCause::Answer { text: answer } if resumed => {
            format!("The answer to your question:\n\n{answer}\n\nGo on with the task.\n\n{rules}")
        }
        RunCause::Answer { text: answer } => format!(
            "{text}\n\nYou worked on this before in this directory and asked a question. \
             The answer:\n\n{answer}\n\n{rules}"
        ),
    }
}

fn rules(expects: Expects) -> String {
    let goal = match expects {
        Expects::Change => "Work in the current directory and leave your changes there.",
        Expects::Report => "Do not change files; give your findings as your final message.",
        Expects::Either => "Change files only if the task needs it; end with a short report.",
    };
    format!(
        "{goal} Nobody is watching while you work. If you cannot go on without an answer from a \
         person, write the question into {BLOCKED_FILE} in the current directory and stop."
    )
}
