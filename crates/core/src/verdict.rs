//! How a run ended, from three witnesses: the exit, what the agent said last, what the tree shows
//! against what was expected (I11). Unknown is never success.
//! Must not read prose for a meaning: a question is `BLOCKED.md` or a typed ask.

use crate::{
    Millis,
    job::{Exit, ExitReport},
    outcome::{Failure, Outcome, Stop},
    task::Expects,
    update::{LastWord, Said},
};

/// The third witness.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    pub changed: bool,
    /// What the agent left in `BLOCKED.md`, if it is more than white space.
    pub question: Option<String>,
}

const SAID_CHARS_MAX: usize = 2000;

fn brief(text: &str) -> String {
    let text = text.trim();
    if text.chars().count() <= SAID_CHARS_MAX {
        return text.to_owned();
    }
    let skip = text.chars().count() - SAID_CHARS_MAX;
    format!("…{}", text.chars().skip(skip).collect::<String>())
}

/// The outcome before checks. `report` is `None` when the end was not seen.
#[must_use]
pub fn verdict(
    report: Option<&ExitReport>,
    said: &Said,
    tree: &Tree,
    expects: Expects,
    now: Millis,
) -> Outcome {
    let Some(report) = report else {
        return Outcome::Lost;
    };
    // What a person stopped is stopped, whatever else it left behind.
    if let Some(why @ (Stop::ByPerson | Stop::Shutdown)) = &report.stopped {
        return Outcome::Stopped(why.clone());
    }
    if let Some(question) = &tree.question {
        return Outcome::Blocked {
            question: brief(question),
        };
    }
    if let LastWord::Asked { question } = &said.last {
        return Outcome::Blocked {
            question: brief(question),
        };
    }
    let ours = match &report.stopped {
        // It had said its last word; that we had to show it the door is no witness.
        Some(Stop::Lingered) => true,
        Some(why) => return Outcome::Stopped(why.clone()),
        None => false,
    };
    let text = brief(&said.text);
    match &said.last {
        LastWord::RateLimited {
            retry_after_ms,
            retry_at,
        } => {
            let retry_at = retry_at.or_else(|| retry_after_ms.map(|wait| now.saturating_add(wait)));
            return Outcome::Failed(Failure::RateLimited {
                retry_at,
                said: text,
            });
        }
        LastWord::Auth => return Outcome::Failed(Failure::Auth { said: text }),
        LastWord::Model => return Outcome::Failed(Failure::Model { said: text }),
        LastWord::Unavailable => return Outcome::Failed(Failure::Unavailable { said: text }),
        LastWord::NoProtocol | LastWord::Done | LastWord::Missing { .. } => {}
        LastWord::Asked { question } => {
            return Outcome::Blocked {
                question: brief(question),
            };
        }
    }
    if !ours {
        match report.exit {
            Exit::Code(0) => {}
            Exit::Code(code) => return Outcome::Failed(Failure::Exit { code, said: text }),
            Exit::Signal(signal) => return Outcome::Failed(Failure::Signal { signal }),
        }
    }
    if let LastWord::Missing { expected } = &said.last {
        let reason = format!("it ended without {expected}");
        return Outcome::Failed(Failure::Protocol { reason });
    }
    match expects {
        Expects::Change if !tree.changed => Outcome::Failed(Failure::NothingChanged { said: text }),
        Expects::Review if tree.changed => Outcome::Failed(Failure::ReviewChanged),
        Expects::Report | Expects::Review if text.is_empty() => {
            Outcome::Failed(Failure::NothingSaid)
        }
        Expects::Either if !tree.changed && text.is_empty() => {
            Outcome::Failed(Failure::NothingSaid)
        }
        Expects::Change | Expects::Report | Expects::Either | Expects::Review => {
            Outcome::Completed { summary: text }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(exit: Exit, stopped: Option<Stop>) -> ExitReport {
        ExitReport {
            exit,
            stopped,
            started_at: 0,
            ended_at: 1,
            out_bytes: 0,
            err_bytes: 0,
            leftovers: 0,
            problems: Vec::new(),
        }
    }

    fn said(last: LastWord, text: &str) -> Said {
        Said {
            last,
            text: text.into(),
            session: None,
            usage: None,
        }
    }

    fn judge(exit: Exit, stopped: Option<Stop>, last: LastWord, tree: &Tree) -> &'static str {
        let outcome = verdict(
            Some(&report(exit, stopped)),
            &said(last, "ok"),
            tree,
            Expects::Change,
            1000,
        );
        match outcome {
            Outcome::Failed(Failure::NothingChanged { .. }) => "nothing changed",
            Outcome::Failed(Failure::Protocol { .. }) => "protocol",
            Outcome::Failed(Failure::RateLimited { .. }) => "rate limited",
            other => other.word(),
        }
    }

    /// Every combination of the three witnesses.
    #[test]
    fn three_witnesses() {
        let ok = Exit::Code(0);
        let missing = LastWord::Missing {
            expected: "a result",
        };
        let limited = LastWord::RateLimited {
            retry_after_ms: Some(5),
            retry_at: None,
        };
        let asked = LastWord::Asked {
            question: "which?".into(),
        };
        let tree = |changed, question: Option<&str>| Tree {
            changed,
            question: question.map(Into::into),
        };
        let rows = [
            (ok, None, LastWord::Done, tree(true, None), "completed"),
            (
                ok,
                None,
                LastWord::NoProtocol,
                tree(true, None),
                "completed",
            ),
            (
                ok,
                None,
                LastWord::Done,
                tree(false, None),
                "nothing changed",
            ),
            (ok, None, missing.clone(), tree(true, None), "protocol"),
            (
                Exit::Code(3),
                None,
                LastWord::Done,
                tree(true, None),
                "failed",
            ),
            (
                Exit::Signal(9),
                None,
                LastWord::NoProtocol,
                tree(true, None),
                "failed",
            ),
            (
                Exit::Code(1),
                None,
                limited.clone(),
                tree(true, None),
                "rate limited",
            ),
            (ok, None, limited, tree(true, None), "rate limited"),
            (ok, None, asked, tree(false, None), "blocked"),
            (
                Exit::Code(7),
                None,
                LastWord::NoProtocol,
                tree(true, Some("q")),
                "blocked",
            ),
            (
                Exit::Signal(15),
                Some(Stop::Lingered),
                LastWord::Done,
                tree(true, None),
                "completed",
            ),
            (
                Exit::Signal(15),
                Some(Stop::Lingered),
                missing,
                tree(true, None),
                "protocol",
            ),
            (
                Exit::Signal(9),
                Some(Stop::ByPerson),
                LastWord::Done,
                tree(true, Some("q")),
                "stopped",
            ),
            (
                ok,
                Some(Stop::ByPerson),
                LastWord::Done,
                tree(true, None),
                "stopped",
            ),
            (
                ok,
                Some(Stop::Idle { limit_ms: 1 }),
                LastWord::Done,
                tree(true, None),
                "stopped",
            ),
        ];
        for (n, (exit, stopped, last, tree, expected)) in rows.into_iter().enumerate() {
            assert_eq!(judge(exit, stopped, last, &tree), expected, "row {n}");
        }
    }

    #[test]
    fn an_end_that_was_not_seen_is_lost() {
        let said = said(LastWord::Done, "all fine");
        let tree = Tree {
            changed: true,
            question: None,
        };
        assert_eq!(
            verdict(None, &said, &tree, Expects::Either, 0),
            Outcome::Lost
        );
    }

    #[test]
    fn a_relative_retry_time_becomes_a_point_in_time() {
        let last = LastWord::RateLimited {
            retry_after_ms: Some(5),
            retry_at: None,
        };
        let got = verdict(
            Some(&report(Exit::Code(1), None)),
            &said(last, ""),
            &Tree::default(),
            Expects::Change,
            1000,
        );
        let want = Failure::RateLimited {
            retry_at: Some(1005),
            said: String::new(),
        };
        assert_eq!(got, Outcome::Failed(want));
    }

    #[test]
    fn reports_need_words_and_either_needs_one_of_both() {
        let done = report(Exit::Code(0), None);
        let judge = |expects, changed, text: &str| {
            let tree = Tree {
                changed,
                question: None,
            };
            verdict(Some(&done), &said(LastWord::Done, text), &tree, expects, 0).word()
        };
        assert_eq!(judge(Expects::Report, false, "fine"), "completed");
        assert_eq!(judge(Expects::Report, true, " \n"), "failed");
        assert_eq!(judge(Expects::Review, false, "fine"), "completed");
        assert_eq!(judge(Expects::Review, true, "fine"), "failed");
        assert_eq!(judge(Expects::Review, false, ""), "failed");
        assert_eq!(judge(Expects::Either, false, ""), "failed");
        assert_eq!(judge(Expects::Either, true, ""), "completed");
    }
}
