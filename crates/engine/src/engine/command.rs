//! All that the actor can be told. Closed: this is all that can happen to an engine.
//! Must not decide anything: each is answered in `actor`.

use std::collections::BTreeSet;

use dispatch_core::{
    Millis,
    ask::{AskId, By, Fate as AskFate},
    config::Selection,
    event::{Kind, Scope, Subject, Verified},
    family::Deed,
    id::{RunId, Seq, TaskId},
    keys::RequestKey,
    message::{Message, MessageId, Sender},
    native::KnownKeys,
    outcome::Outcome,
    spending::Spending,
    task::{TaskSpec, Tuning},
};
use tokio::sync::oneshot;

use super::Secrets;
use crate::{
    attachments::Kept,
    letters::Post,
    reads::{Listed, Listing, Overview},
    view::{Force, Spoken, TaskView, Until, VerbError, Waited, Who},
};

pub(crate) type Reply<T> = oneshot::Sender<Result<T, VerbError>>;

/// Everything the actor can be told. Closed: this is all that can happen to an engine.
pub(crate) enum Command {
    /// Whether the agent of that run may do that, for whoever makes something ready before it is done.
    /// It is decided again in the turn that does it: every command of an agent says who it is from.
    May {
        run: RunId,
        deed: Deed,
        reply: Reply<()>,
    },
    /// The task of that run and all that was asked for below it.
    Family {
        run: RunId,
        reply: Reply<BTreeSet<TaskId>>,
    },
    Wait {
        who: Who,
        tasks: Vec<TaskId>,
        mode: Until,
        until: Millis,
        reply: Reply<Waited>,
    },
    /// A caller that waited has gone away.
    Left,
    /// Whoever asked for that task does not wait for it.
    Detach {
        who: Who,
        task: TaskId,
        reply: Reply<()>,
    },
    /// From a run: whether its task is owed ends, so that its own end is not the task's.
    Owed {
        run: RunId,
        reply: Reply<bool>,
    },
    Dispatch {
        who: Who,
        spec: Box<TaskSpec>,
        /// Under the id that its files lie under already.
        kept: Option<(TaskId, Kept)>,
        secrets: Secrets,
        key: Option<RequestKey>,
        reply: Reply<RunId>,
    },
    Answer {
        who: Who,
        task: TaskId,
        text: String,
        tuning: Tuning,
        secrets: Secrets,
        key: Option<RequestKey>,
        reply: Reply<RunId>,
    },
    Retry {
        task: TaskId,
        tuning: Tuning,
        secrets: Secrets,
        key: Option<RequestKey>,
        reply: Reply<RunId>,
    },
    Resume {
        task: TaskId,
        agent: Option<Selection>,
        tuning: Tuning,
        secrets: Secrets,
        key: Option<RequestKey>,
        reply: Reply<RunId>,
    },
    Say {
        who: Who,
        task: TaskId,
        text: String,
        /// Of a person's handle: an agent speaks for its own task.
        from: Sender,
        kept: Option<Kept>,
        tuning: Tuning,
        secrets: Secrets,
        key: Option<RequestKey>,
        reply: Reply<Spoken>,
    },
    Unsay {
        task: TaskId,
        message: MessageId,
        reply: Reply<()>,
    },
    /// From a run: what is known of its keys before its agent asks with one.
    Keys {
        run: RunId,
        reply: Reply<KnownKeys>,
    },
    /// From a run: the messages that its agent is asked to give back.
    Recalls {
        run: RunId,
        reply: Reply<Vec<MessageId>>,
    },
    Compact {
        task: TaskId,
        reply: Reply<()>,
    },
    Permit {
        who: Who,
        task: TaskId,
        ask: AskId,
        allow: bool,
        always: bool,
        by: By,
        why: Option<String>,
        reply: Reply<()>,
    },
    /// From a run: what became of all that its agent has asked.
    Asks {
        run: RunId,
        reply: Reply<Vec<(AskId, AskFate)>>,
    },
    /// From a run: all that waits is said with its first words. Answered with every message of the
    /// task when that is durable.
    TakeAll {
        run: RunId,
        reply: Reply<Vec<Message>>,
    },
    /// From a run whose agent can be spoken to: the next message is its own now.
    Take {
        run: RunId,
        out_offset: u64,
        reply: Reply<Option<Message>>,
    },
    /// From a run whose agent cannot be spoken to now.
    Deaf {
        run: RunId,
        reply: Reply<()>,
    },
    Letters(Post),
    Stop {
        who: Who,
        task: TaskId,
        force: Force,
        key: Option<RequestKey>,
        reply: Reply<()>,
    },
    StopAll {
        force: Force,
        reply: Reply<Vec<TaskId>>,
    },
    Freeze {
        frozen: bool,
        scope: Scope,
        reply: Reply<()>,
    },
    Provide {
        secrets: Secrets,
        reply: Reply<()>,
    },
    Needs {
        reply: Reply<Vec<String>>,
    },
    /// Of an agent, its own and those below it.
    Tasks {
        who: Who,
        reply: Reply<Vec<TaskView>>,
    },
    List {
        who: Who,
        listing: Listing,
        reply: Reply<Listed>,
    },
    Overview {
        reply: Reply<Overview>,
    },
    Spending {
        reply: Reply<(Seq, Spending)>,
    },
    Task {
        who: Who,
        task: TaskId,
        reply: Reply<TaskView>,
    },
    /// From a run or a verb: facts to record. Answered when they are durable.
    Record {
        subject: Subject,
        kinds: Vec<Kind>,
        reply: Reply<()>,
    },
    /// From a run: its end. `swept` says that nothing of it is left, so that another may follow.
    Finish {
        run: RunId,
        outcome: Outcome,
        verified: Verified,
        swept: bool,
        reply: Reply<()>,
    },
    Shutdown {
        reply: Reply<()>,
    },
}

/// What a running supervisor is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StopOrder {
    pub(crate) force: Force,
}

pub(super) fn answer<T>(reply: Reply<T>, value: Result<T, VerbError>) {
    // Whoever asked may have gone.
    drop(reply.send(value));
}
