//! Who is alone with a task: one verb at a time may touch its workspace, one look at a time.
//! Must not be known to the log: whoever held something is gone with the engine.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dispatch_core::id::TaskId;
use tokio::sync::{Mutex as Queue, Notify, OwnedMutexGuard};

use super::Engine;
use crate::view::VerbError;

/// Who works on a task and must be alone with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Verb,
    Retention,
}

/// The tasks that somebody works on.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    held: Mutex<BTreeMap<TaskId, Holder>>,
    /// Rung whenever one is let go of.
    freed: Notify,
    /// Those whose live workspace is looked at.
    looks: Mutex<BTreeMap<TaskId, Arc<Queue<()>>>>,
}

impl Desk {
    /// `Err`: who has it.
    pub(crate) fn take(desk: &Arc<Self>, task: TaskId, holder: Holder) -> Result<Busy, Holder> {
        let mut held = desk.held();
        if let Some(other) = held.get(&task) {
            return Err(*other);
        }
        held.insert(task, holder);
        let desk = Arc::clone(desk);
        Ok(Busy { desk, task })
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<TaskId, Holder>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets go of a task when dropped.
pub(crate) struct Busy {
    desk: Arc<Desk>,
    task: TaskId,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.desk.held().remove(&self.task);
        self.desk.freed.notify_waiters();
    }
}

impl Engine {
    /// One verb at a time may touch a task's workspace. Retention is waited for: nobody asked for it.
    pub(crate) async fn hold(&self, verb: &'static str, task: TaskId) -> Result<Busy, VerbError> {
        loop {
            let freed = self.shared.desk.freed.notified();
            match Desk::take(&self.shared.desk, task, Holder::Verb) {
                Ok(busy) => return Ok(busy),
                Err(Holder::Retention) => freed.await,
                Err(Holder::Verb) => {
                    let hint =
                        "another command works on it right now; try again when that one is done";
                    return Err(VerbError::Nothing {
                        verb,
                        task,
                        hint: hint.into(),
                    });
                }
            }
        }
    }

    /// Looks at a live workspace come one after the other, as they were asked for: each may take as
    /// much of the disk as a snapshot, for as long as it lasts.
    pub(crate) async fn turn_to_look(&self, task: TaskId) -> OwnedMutexGuard<()> {
        let queue = {
            let mut looks = self
                .shared
                .desk
                .looks
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            looks.retain(|_, queue| Arc::strong_count(queue) > 1);
            Arc::clone(looks.entry(task).or_default())
        };
        queue.lock_owned().await
    }
}
