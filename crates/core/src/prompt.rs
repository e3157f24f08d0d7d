//! What an agent is given to read: the task, what was said since, and the rules of the house.
//! Must not contain a secret, and must not promise what the fence does not hold.

use crate::{run::RunCause, task::Expects};

/// The file an agent writes its question into.
pub const BLOCKED_FILE: &str = "BLOCKED.md";

/// What was said to the task since it was dispatched, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told<'a> {
    /// Delivered to earlier runs: for an agent that does not remember them.
    pub before: Vec<&'a str>,
    /// For this run.
    pub now: Vec<&'a str>,
}

/// The prompt of a run. `resumed` says that the agent still has the conversation before.
#[must_use]
pub fn prompt(
    text: &str,
    cause: &RunCause,
    expects: Expects,
    resumed: bool,
    told: &Told<'_>,
) -> String {
    let mut parts = Vec::new();
    let whole = match cause {
        RunCause::Dispatched | RunCause::RetryOf { .. } => true,
        RunCause::Answer { .. } | RunCause::Said { .. } | RunCause::Resumed { .. } => !resumed,
    };
    if whole {
        parts.push(text.to_owned());
    }
    if !resumed && !told.before.is_empty() {
        let before = told.before.join("\n\n");
        parts.push(format!("You were told since then:\n\n{before}"));
    }
    match cause {
        RunCause::Dispatched | RunCause::RetryOf { .. } => {}
        RunCause::Answer { text } if resumed => {
            parts.push(format!("The answer to your question:\n\n{text}"));
        }
        RunCause::Answer { text } => parts.push(format!(
            "You worked on this before in this directory and asked a question. \
             The answer:\n\n{text}"
        )),
        RunCause::Said { .. } if resumed => {}
        RunCause::Said { .. } => {
            parts.push("You worked on this before in this directory.".to_owned());
        }
        RunCause::Resumed { .. } if resumed => {}
        RunCause::Resumed { before } => parts.push(before.clone()),
    }
    if !told.now.is_empty() {
        let now = told.now.join("\n\n");
        parts.push(if whole {
            format!("Now you are told:\n\n{now}")
        } else {
            now
        });
    }
    match cause {
        RunCause::Answer { .. } | RunCause::Resumed { .. } if resumed => {
            parts.push("Go on with the task.".to_owned());
        }
        _ => {}
    }
    parts.push(rules(expects));
    parts.join("\n\n")
}

fn rules(expects: Expects) -> String {
    let goal = match expects {
        Expects::Change => "Work in the current directory and leave your changes there.",
        Expects::Report => "Do not change files; give your findings as your final message.",
        Expects::Review => "Change no file; end with the block that was asked for.",
        Expects::Either => "Change files only if the task needs it; end with a short report.",
    };
    format!(
        "{goal} Nobody is watching while you work. If you cannot go on without an answer from a \
         person, write the question into {BLOCKED_FILE} in the current directory and stop."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(cause: &RunCause, resumed: bool, told: &Told<'_>) -> String {
        let all = prompt("Sort the jars.", cause, Expects::Change, resumed, told);
        let (words, rules) = all.split_once("\n\nWork in the current").unwrap();
        assert!(rules.contains(BLOCKED_FILE));
        words.to_owned()
    }

    #[test]
    fn what_was_said_comes_once_and_in_order() {
        let told = Told {
            before: vec!["by size"],
            now: vec!["and colour", "please"],
        };
        let said = RunCause::Said { by_person: true };
        assert_eq!(first(&said, true, &told), "and colour\n\nplease");
        assert_eq!(
            first(&said, false, &told),
            "Sort the jars.\n\nYou were told since then:\n\nby size\n\n\
             You worked on this before in this directory.\n\nNow you are told:\n\nand colour\n\nplease"
        );
        let answer = RunCause::Answer {
            text: "yes".to_owned(),
        };
        assert_eq!(
            first(&answer, true, &told),
            "The answer to your question:\n\nyes\n\nand colour\n\nplease\n\nGo on with the task."
        );
        let none = Told::default();
        assert_eq!(first(&RunCause::Dispatched, false, &none), "Sort the jars.");
    }

    #[test]
    fn another_agent_is_told_everything() {
        let told = Told {
            before: vec!["by size"],
            now: Vec::new(),
        };
        let cause = RunCause::Resumed {
            before: "codex worked on it.".to_owned(),
        };
        assert_eq!(
            first(&cause, false, &told),
            "Sort the jars.\n\nYou were told since then:\n\nby size\n\ncodex worked on it."
        );
        assert_eq!(first(&cause, true, &told), "Go on with the task.");
    }
}
