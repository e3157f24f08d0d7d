//! Exit codes: the contract with scripts, in one place (docs/cli.md).
//! Must not grow a number that is not documented there.

use crate::api::task::Task;

/// A bug of ours: a panic.
pub(crate) const BUG: u8 = 70;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Completed = 0,
    Failed = 1,
    Usage = 2,
    Blocked = 3,
    Stopped = 4,
    Unreachable = 5,
}

impl Exit {
    /// An open task is no failure: the verb did what it should.
    pub(crate) fn of(task: &Task) -> Self {
        match task.state.as_str() {
            "failed" | "lost" => Self::Failed,
            "blocked" => Self::Blocked,
            "stopped" => Self::Stopped,
            _ => Self::Completed,
        }
    }

    /// Of several tasks: the one that needs a person most.
    pub(crate) fn of_all(tasks: &[Task]) -> Self {
        let all: Vec<Self> = tasks.iter().map(Self::of).collect();
        [Self::Failed, Self::Blocked, Self::Stopped]
            .into_iter()
            .find(|exit| all.contains(exit))
            .unwrap_or(Self::Completed)
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use dispatch_core::{
        outcome::{Failure, Outcome, Stop},
        run::RunState,
    };

    use super::*;
    use crate::api::task::tests::view;

    #[test]
    fn codes_are_the_documented_ones() {
        let of = |outcome| Task::from(&view(1, RunState::Finished(outcome)));
        let completed = of(Outcome::Completed {
            summary: String::new(),
        });
        let failed = of(Outcome::Failed(Failure::NothingSaid));
        let blocked = of(Outcome::Blocked {
            question: "?".into(),
        });
        let stopped = of(Outcome::Stopped(Stop::ByPerson));
        let lost = of(Outcome::Lost);
        let codes = [&completed, &failed, &blocked, &stopped, &lost].map(|t| Exit::of(t) as u8);
        assert_eq!(codes, [0, 1, 3, 4, 1]);
        assert_eq!(Exit::Usage as u8, 2);
        assert_eq!(Exit::Unreachable as u8, 5);
        assert_eq!(Exit::of_all(&[completed, stopped, blocked]), Exit::Blocked);
        assert_eq!(Exit::of_all(&[]), Exit::Completed);
    }
}
