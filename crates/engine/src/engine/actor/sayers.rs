//! Whoever said something to a task and waits to hear what became of it.
//! Must not answer before the message has come as far as it will for now.

use dispatch_core::{
    id::TaskId,
    message::{Fate, MessageId},
    run::RunState,
};

use super::Actor;
use crate::{
    engine::command::{Reply, answer},
    view::{Heard, Spoken},
};

pub(super) struct Sayer {
    task: TaskId,
    message: MessageId,
    /// The running agent cannot be spoken to now.
    deaf: bool,
    reply: Reply<Spoken>,
}

impl Actor {
    pub(super) fn tell_when_heard(
        &mut self,
        task: TaskId,
        message: MessageId,
        reply: Reply<Spoken>,
    ) {
        let deaf = self.is_barred(task, message);
        self.sayers.push(Sayer {
            task,
            message,
            deaf,
            reply,
        });
    }

    /// Whether it waits for a later run than the one that goes on.
    fn is_barred(&self, task: TaskId, message: MessageId) -> bool {
        let task = self.state.task(task);
        let barred = |task: &dispatch_core::state::Task| {
            let last = task.last_run()?.n;
            Some(task.message(message)?.is_barred_from(last))
        };
        task.and_then(barred).unwrap_or(false)
    }

    /// Whoever has said something so far hears that it is for later.
    pub(super) fn deaf(&mut self, task: TaskId) {
        let theirs = |sayer: &&mut Sayer| sayer.task == task;
        for sayer in self.sayers.iter_mut().filter(theirs) {
            sayer.deaf = true;
        }
    }

    /// Answers those whose message has come as far as it will for now.
    pub(super) fn answer_sayers(&mut self) {
        for sayer in std::mem::take(&mut self.sayers) {
            match self.heard(&sayer) {
                Some(how) => {
                    let message = sayer.message;
                    self.reply_later(sayer.reply, Ok(Spoken { message, how }));
                }
                None => self.sayers.push(sayer),
            }
        }
    }

    /// The engine ends: what they have said is in the log, and the next one has it heard.
    pub(super) fn let_sayers_go(&mut self) {
        for Sayer { message, reply, .. } in std::mem::take(&mut self.sayers) {
            let how = Heard::Queued;
            answer(reply, Ok(Spoken { message, how }));
        }
    }

    fn heard(&self, sayer: &Sayer) -> Option<Heard> {
        let task = self.state.task(sayer.task)?;
        let Some(message) = task.message(sayer.message) else {
            return Some(Heard::Delivered);
        };
        let goes = |run: &dispatch_core::state::Run| match run.state {
            // A person has asked for the end: nothing follows by itself.
            RunState::Stopping { .. } | RunState::Finished(_) => false,
            RunState::Queued | RunState::Preparing | RunState::Running | RunState::Checking => true,
        };
        let listens = |run: &dispatch_core::state::Run| {
            run.state == RunState::Running && run.report.is_none()
        };
        match message.fate {
            Fate::Delivered(_) => Some(Heard::Delivered),
            Fate::Cancelled => Some(Heard::Held),
            Fate::Waiting if message.held || !task.last_run().is_some_and(goes) => {
                Some(Heard::Held)
            }
            Fate::Waiting if !task.last_run().is_some_and(listens) => Some(Heard::Queued),
            Fate::Waiting if message.taken.is_none() && sayer.deaf => Some(Heard::Queued),
            Fate::Waiting if message.taken.is_some() && self.takes_back(task) => {
                Some(Heard::OnItsWay)
            }
            Fate::Waiting => None,
        }
    }
}
