//! Letters that programs leave for each other under the name of a workspace: sent, fetched, looked up.
//! Not for the agents of tasks: they have `say`, whose messages are bounded and heard.
//! Must not wake anybody, and must not mark as read what it did not hand out.

use dispatch_core::{
    config::Config,
    event::{Kind, Subject},
    family::Deed,
    id::TaskId,
    letter::{self, Letter, LetterId, Letterbox, Written},
    state::State,
};

use crate::{
    engine::{Command, Engine, Reply},
    view::{Inbox, VerbError},
};

/// Letters that one answer holds.
pub const ANSWER_MAX: usize = 500;

/// What the actor is told of letters.
pub(crate) enum Post {
    Send {
        workspace: String,
        written: Written,
        reply: Reply<Letter>,
    },
    Fetch {
        workspace: String,
        reader: String,
        limit: usize,
        reply: Reply<Inbox>,
    },
    Between {
        workspace: String,
        names: [String; 2],
        limit: usize,
        reply: Reply<Vec<Letter>>,
    },
}

impl Engine {
    /// Leaves a letter. Durable when it returns.
    ///
    /// # Errors
    /// When no task has that workspace, something is empty or too long, or too much lies there unread.
    pub async fn send_letter(
        &self,
        workspace: String,
        written: Written,
    ) -> Result<Letter, VerbError> {
        self.may(Deed::Other("send letters")).await?;
        self.ask(|reply| {
            Command::Letters(Post::Send {
                workspace,
                written,
                reply,
            })
        })
        .await
    }

    /// What lies there for `reader`; what is handed out counts as read from then on, durably.
    ///
    /// # Errors
    /// When no task has that workspace.
    pub async fn fetch_letters(
        &self,
        workspace: String,
        reader: String,
        limit: usize,
    ) -> Result<Inbox, VerbError> {
        self.may(Deed::Other("read letters")).await?;
        self.ask(|reply| {
            Command::Letters(Post::Fetch {
                workspace,
                reader,
                limit,
                reply,
            })
        })
        .await
    }

    /// The newest letters between two, oldest first. Nothing counts as read by it.
    ///
    /// # Errors
    /// When no task has that workspace.
    pub async fn letters_between(
        &self,
        workspace: String,
        names: [String; 2],
        limit: usize,
    ) -> Result<Vec<Letter>, VerbError> {
        self.may(Deed::Other("read letters")).await?;
        self.ask(|reply| {
            Command::Letters(Post::Between {
                workspace,
                names,
                limit,
                reply,
            })
        })
        .await
    }
}

/// Where a letter goes, and under which number.
pub(crate) fn address(
    state: &State,
    config: &Config,
    workspace: &str,
    written: &Written,
) -> Result<(TaskId, LetterId), VerbError> {
    let limits = &config.limits;
    written
        .check(limits.letter_bytes)
        .map_err(|error| VerbError::BadInput {
            what: error.to_string(),
        })?;
    let task = find(state, workspace)?;
    let Some(post) = state.letterbox(workspace) else {
        return Ok((task, LetterId::FIRST));
    };
    if post.unread() >= limits.letters_max {
        let what = format!(
            "send a letter: {} lie unread at workspace {workspace} (limits.letters_max); whoever \
             they are for has to fetch some first",
            limits.letters_max
        );
        return Err(VerbError::BadInput { what });
    }
    Ok((task, post.next_id()))
}

/// What is handed out, with the event that says so.
pub(crate) fn fetched(
    state: &State,
    workspace: &str,
    reader: &str,
    limit: usize,
) -> Result<(Subject, Option<Kind>, Vec<LetterId>), VerbError> {
    name("the reader's name", reader)?;
    let task = find(state, workspace)?;
    let post = state.letterbox(workspace);
    let found = post.map(|post| post.for_reader(reader, limit.min(ANSWER_MAX)));
    let found = found.unwrap_or_default();
    let all = found.iter().map(|letter| letter.id).collect();
    let unread = found.iter().filter(|letter| letter.read_at.is_none());
    let letters: Vec<LetterId> = unread.map(|letter| letter.id).collect();
    let event = (!letters.is_empty()).then_some(Kind::LettersRead { letters });
    Ok((Subject::Task(task), event, all))
}

/// What a reader is told, after what was handed out counts as read.
pub(crate) fn inbox(
    state: &State,
    workspace: &str,
    reader: &str,
    handed: &[LetterId],
    new: usize,
) -> Inbox {
    let all = || {
        state
            .letterbox(workspace)
            .into_iter()
            .flat_map(Letterbox::letters)
    };
    let waits = |letter: &&Letter| letter.written.reader == reader && letter.read_at.is_none();
    Inbox {
        letters: all().filter(|l| handed.contains(&l.id)).cloned().collect(),
        new,
        unread: all().filter(waits).count(),
    }
}

pub(crate) fn between(
    state: &State,
    workspace: &str,
    names: &[String; 2],
    limit: usize,
) -> Result<Vec<Letter>, VerbError> {
    let [one, other] = names;
    name("the agent's name", one)?;
    name("the other agent's name", other)?;
    find(state, workspace)?;
    let Some(post) = state.letterbox(workspace) else {
        return Ok(Vec::new());
    };
    let found = post.between(one, other, limit.min(ANSWER_MAX));
    Ok(found.into_iter().cloned().collect())
}

fn name(what: &'static str, name: &str) -> Result<(), VerbError> {
    letter::check_name(what, name).map_err(|error| VerbError::BadInput {
        what: error.to_string(),
    })
}

fn find(state: &State, workspace: &str) -> Result<TaskId, VerbError> {
    let task = state.at_workspace(workspace);
    task.map(|task| task.id).ok_or_else(|| VerbError::BadInput {
        what: format!(
            "find workspace {workspace:?}: no task has it; `dispatch list` shows tasks, and each \
             says its workspace_name"
        ),
    })
}
