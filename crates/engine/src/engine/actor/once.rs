//! A request that comes with a key is done once: what it made and the key are in one commit.
//! Must not answer for a key that came with another request.

use dispatch_core::{
    event::{Kind, Subject},
    id::{RunId, TaskId},
    keys::{Made, RequestKey},
    message::MessageId,
};

use super::Actor;
use crate::{engine::Secrets, view::VerbError};

impl Actor {
    /// Does what is asked, or says what came of it when it came before: what is made and the key that
    /// it came with are one commit, so there is no crash between them.
    pub(super) fn once(
        &mut self,
        key: Option<RequestKey>,
        secrets: Secrets,
        work: impl FnOnce(&mut Self, Secrets) -> Result<Made, VerbError>,
    ) -> Result<Made, VerbError> {
        let Some(key) = key else {
            return work(self, secrets);
        };
        let known = self.state.keys().find(&key, self.now());
        if let Some(made) = known.map_err(|_| VerbError::KeyUsed)? {
            // The engine that had them may be gone.
            let task = made.task();
            let queued = self.state.queue().find(|run| run.task == task);
            if let Some(run) = queued {
                self.secrets.entry(task).or_default().extend(secrets);
                self.look_for_secrets(run);
            }
            // A supervisor that took the run over since has been asked about it by nobody.
            self.ring(task);
            return Ok(made);
        }
        let made = work(self, secrets)?;
        let (subject, message) = match made {
            Made::Run(run) => (Subject::Run(run), None),
            Made::Message { task, message } => (Subject::Task(task), Some(message)),
        };
        self.put(subject, Kind::Keyed { key, message });
        Ok(made)
    }
}

/// A key says which verb it came with, so neither of these can be another's.
pub(super) fn a_run(made: Made) -> Result<RunId, VerbError> {
    match made {
        Made::Run(run) => Ok(run),
        Made::Message { .. } => Err(VerbError::KeyUsed),
    }
}

pub(super) fn a_message(made: Made) -> Result<(TaskId, MessageId), VerbError> {
    match made {
        Made::Message { task, message } => Ok((task, message)),
        Made::Run(_) => Err(VerbError::KeyUsed),
    }
}
