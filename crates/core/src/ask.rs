//! What an agent asks permission for: whether it may ask at all, who is to answer, until when, and
//! what was answered.
//! Must not answer: a driver knows how, the engine when, and the log remembers.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    Millis,
    id::{BadId, TaskId},
    message::Sender,
    prompt::{Rank, Saying},
};

/// Settled asks of one task that are remembered once its run has ended; older ones are in the log.
pub const SETTLED_MAX: usize = 50;
/// What one run may ask; all of it is kept until the run's end, for a replay. The rest is denied.
pub const ASKS_MAX: usize = 500;
/// Asks of one run that wait at the same time. Each holds what the agent sent.
pub const OPEN_MAX: usize = 32;
/// What is kept of the name of what it wants to use.
pub const TOOL_BYTES_MAX: usize = 200;
/// What is kept of an ask for whoever answers it.
pub const INPUT_BYTES_MAX: usize = 4096;

/// What becomes of an agent's permission requests, from the freest to the strictest.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Permissions {
    /// Granted at once, because the fence is around it.
    #[default]
    Allow,
    /// Somebody is asked, for some time.
    Ask,
    Deny,
}

impl Permissions {
    pub const ALL: [Self; 3] = [Self::Allow, Self::Ask, Self::Deny];

    /// The word used in JSON, on the screen and in the configuration.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Ask => "ask",
            Self::Deny => "deny",
        }
    }

    /// Not looser than either.
    #[must_use]
    pub fn stricter(self, other: Self) -> Self {
        self.max(other)
    }

    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// An ask of one task: numbers start at 1 and are never used again.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct AskId(pub u32);

impl fmt::Display for AskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for AskId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId {
            what: "an ask",
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

/// Whose answer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    Person,
    /// The agent of another task.
    Task(TaskId),
    /// Nobody's: its time was over.
    Deadline,
    /// Nobody's: too many waited at once.
    Limit,
    /// The agent's own: it does not wait for it any more.
    Agent,
}

impl By {
    /// What an agent is told of a denial, where its protocol has room for it.
    #[must_use]
    pub fn refusal(self, why: Option<&str>) -> String {
        let who = match self {
            Self::Person => "It was denied by a person",
            Self::Task(_) => "It was denied by the agent that you work for",
            Self::Deadline => "Nobody answered in time, so it is denied",
            Self::Limit => "Too much waits for an answer already, so it is denied",
            Self::Agent => "It was taken back",
        };
        match (self, why) {
            (Self::Task(task), Some(why)) => {
                let why = Saying::of_agent(task, Rank::Above, why);
                format!("{who}.\n\n{}", why.text())
            }
            (_, Some(why)) => format!("{who}: {why}"),
            (_, None) => format!(
                "{who}. Do what can be done without it; where nothing can, end your turn and say \
                 what you need."
            ),
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Person => f.write_str("person"),
            Self::Task(task) => task.fmt(f),
            Self::Deadline => f.write_str("deadline"),
            Self::Limit => f.write_str("limit"),
            Self::Agent => f.write_str("agent"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Open,
    Answered {
        allow: bool,
        by: By,
        why: Option<String>,
        /// The same needs no more asking, until the task's end.
        always: bool,
    },
    /// Its run was stopped or has ended: nobody is there to hear an answer.
    Closed,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    pub id: AskId,
    /// The run whose agent asks.
    pub run: u32,
    pub tool: String,
    pub input: String,
    /// Who is to answer. A person always may.
    pub owner: Sender,
    pub at: Millis,
    /// Denied from then on.
    pub until: Millis,
    pub fate: Fate,
}

impl Ask {
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.fate == Fate::Open
    }

    /// The word used in JSON and on the screen.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self.fate {
            Fate::Open => "waiting",
            Fate::Answered { allow: true, .. } => "allowed",
            Fate::Answered { allow: false, .. } => "denied",
            Fate::Closed => "closed",
        }
    }
}

/// A text of the agent's as it is shown to whoever answers it: in one line, where nothing is hidden,
/// stands in another order than it is read in, or moves the cursor.
#[must_use]
pub fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push('\u{23ce}'),
            c if c.is_control() || is_hidden(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// Characters of Unicode that have no look of their own: format characters, and what programs leave
/// out when they do not know it.
fn is_hidden(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
        | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
        | '\u{13430}'..='\u{1345f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_answers_sees_all_of_it() {
        for (text, want) in [
            (
                "make \u{e9} \u{1f600} \u{5d0}",
                "make \u{e9} \u{1f600} \u{5d0}",
            ),
            ("ls\n\u{1b}[2Jrm\t\r", "ls\u{23ce}\\u{1b}[2Jrm\\t\\r"),
            ("rm -r \u{202e}dliub", "rm -r \\u{202e}dliub"),
            (
                "a\u{2066}b\u{2069}\u{200b}\u{feff}",
                "a\\u{2066}b\\u{2069}\\u{200b}\\u{feff}",
            ),
            (
                "x\u{ad}\u{2028}\u{3164}\u{e0041}",
                "x\\u{ad}\\u{2028}\\u{3164}\\u{e0041}",
            ),
        ] {
            assert_eq!(shown(text), want);
        }
    }

    #[test]
    fn of_two_the_stricter_one_counts() {
        use Permissions::{Allow, Ask, Deny};
        for (one, other, both) in [
            (Allow, Allow, Allow),
            (Allow, Ask, Ask),
            (Allow, Deny, Deny),
            (Ask, Ask, Ask),
            (Ask, Deny, Deny),
            (Deny, Deny, Deny),
        ] {
            assert_eq!(one.stricter(other), both);
            assert_eq!(other.stricter(one), both);
        }
        for one in Permissions::ALL {
            let json = format!("\"{}\"", one.word());
            assert_eq!(serde_json::from_str::<Permissions>(&json).unwrap(), one);
        }
    }

    #[test]
    fn numbers_have_one_name_each() {
        assert_eq!("7".parse(), Ok(AskId(7)));
        for bad in ["0", "07", "+7", "-1", "", "a7", "4294967296"] {
            assert!(bad.parse::<AskId>().is_err(), "{bad}");
        }
    }
}
