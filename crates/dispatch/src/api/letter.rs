//! Letters between agents on the wire.
//! Must not say who may read one: the route does.

use dispatch_core::letter::Letter as CoreLetter;
use dispatch_engine::view::Inbox as CoreInbox;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::time;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Send {
    /// The `workspace_name` of a task.
    pub(crate) workspace: String,
    /// What the sender calls itself.
    pub(crate) writer: String,
    /// Whom it is for.
    pub(crate) reader: String,
    #[serde(default)]
    pub(crate) subject: String,
    pub(crate) text: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fetch {
    /// The `workspace_name` of a task.
    pub(crate) workspace: String,
    pub(crate) reader: String,
    /// How many at most; never more than 500.
    pub(crate) limit: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Between {
    /// The `workspace_name` of a task.
    pub(crate) workspace: String,
    pub(crate) agent: String,
    pub(crate) with: String,
    /// How many at most, the newest; never more than 500.
    pub(crate) limit: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Letter {
    /// Its number at that workspace.
    pub(crate) id: u32,
    pub(crate) writer: String,
    pub(crate) reader: String,
    pub(crate) subject: String,
    pub(crate) text: String,
    /// Who really sent it: `person`, or the whole id of the task whose agent did.
    pub(crate) from: String,
    pub(crate) at: String,
    pub(crate) read_at: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Inbox {
    /// Handed out, oldest first: from now on they count as read.
    pub(crate) letters: Vec<Letter>,
    /// How many of them had not been read before.
    pub(crate) new: usize,
    /// How many still wait.
    pub(crate) unread: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Letters {
    pub(crate) letters: Vec<Letter>,
}

impl From<&CoreLetter> for Letter {
    fn from(letter: &CoreLetter) -> Self {
        let written = letter.written.clone();
        Self {
            id: letter.id.0,
            writer: written.writer,
            reader: written.reader,
            subject: written.subject,
            text: written.text,
            from: letter.from.to_string(),
            at: time(letter.at),
            read_at: letter.read_at.map(time),
        }
    }
}

impl From<&CoreInbox> for Inbox {
    fn from(inbox: &CoreInbox) -> Self {
        Self {
            letters: inbox.letters.iter().map(Letter::from).collect(),
            new: inbox.new,
            unread: inbox.unread,
        }
    }
}
