//! Why an event cannot be applied.
//! Must not be met by luck: it is a bug or a damaged log.

use crate::{
    ask::AskId,
    event::Subject,
    id::{RunId, Seq, TaskId},
    letter::LetterId,
    message::MessageId,
    run::Illegal,
};

/// Why an event cannot be applied: a bug or a damaged log, never luck.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ApplyError {
    #[error("apply event {seq} ({word}): task {task} is not known")]
    NoTask {
        seq: Seq,
        word: &'static str,
        task: TaskId,
    },
    #[error("apply event {seq} ({word}): run {run} is not known")]
    NoRun {
        seq: Seq,
        word: &'static str,
        run: RunId,
    },
    #[error("apply event {seq} ({word}): it is about {subject:?}")]
    WrongSubject {
        seq: Seq,
        word: &'static str,
        subject: Subject,
    },
    #[error("apply event {seq}: the last one was {last}")]
    OutOfOrder { seq: Seq, last: Seq },
    #[error("apply event {seq} ({word}): message {message} of task {task} is not where it must be")]
    Message {
        seq: Seq,
        word: &'static str,
        task: TaskId,
        message: MessageId,
    },
    #[error("apply event {seq} ({word}): ask {ask} of task {task} is not where it must be")]
    Ask {
        seq: Seq,
        word: &'static str,
        task: TaskId,
        ask: AskId,
    },
    #[error("apply event {seq} ({word}): letter {letter} of {workspace} is not where it must be")]
    Letter {
        seq: Seq,
        word: &'static str,
        workspace: String,
        letter: LetterId,
    },
    #[error("apply event {seq} ({word}): an end that is told to task {task} is not owed to it")]
    End {
        seq: Seq,
        word: &'static str,
        task: TaskId,
    },
    #[error("apply event {seq}: task {task} exists already")]
    Twice { seq: Seq, task: TaskId },
    #[error("apply event {seq} to run {run}")]
    Illegal {
        seq: Seq,
        run: RunId,
        source: Illegal,
    },
}
