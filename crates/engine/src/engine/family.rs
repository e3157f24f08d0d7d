//! On whose behalf a verb is done, and waiting for the ends of tasks that an agent asked for.
//! Must not decide what an agent may: `core::family` does, asked by the actor.

use std::{collections::BTreeSet, sync::Arc};

use dispatch_core::{
    Millis,
    definition::{Catalogue, Role, Skill},
    family::Deed,
    id::{RunId, TaskId},
    state::Task,
};
use tokio::sync::{mpsc, oneshot};

use super::{Engine, command::Command};
use crate::{
    definitions,
    view::{Until, VerbError, Waited, Who},
};

impl Engine {
    /// The same engine, for the agent of that run: every verb then does what the grant of its task
    /// allows and refuses the rest.
    #[must_use]
    pub fn on_behalf_of(&self, run: RunId) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            who: Who::Run(run),
        }
    }

    #[must_use]
    pub fn who(&self) -> Who {
        self.who
    }

    /// Whether whoever this handle is for may do that.
    ///
    /// # Errors
    /// Why not.
    pub async fn may(&self, deed: Deed) -> Result<(), VerbError> {
        match self.who {
            Who::Person => Ok(()),
            Who::Run(run) => self.ask(|reply| Command::May { run, deed, reply }).await,
        }
    }

    /// Of an agent: its own task and all that was asked for below it.
    ///
    /// # Errors
    /// When it may not see events.
    pub(crate) async fn family(&self) -> Result<BTreeSet<TaskId>, VerbError> {
        match self.who {
            Who::Person => Ok(BTreeSet::new()),
            Who::Run(run) => self.ask(|reply| Command::Family { run, reply }).await,
        }
    }

    /// The task of the agent that this handle is for, whatever its grant lets it see.
    ///
    /// # Errors
    /// When its run is over, or it has no grant.
    pub async fn own_task(&self) -> Result<Option<Task>, VerbError> {
        match self.who {
            Who::Person => Ok(None),
            Who::Run(run) => {
                self.may(Deed::Dispatch).await?;
                Ok(Some(self.look(run.task).await?.task))
            }
        }
    }

    /// What that task's agent may summon, as it lies there now.
    ///
    /// # Errors
    /// When it cannot be looked up at all.
    pub async fn definitions(&self, task: &Task) -> Result<Catalogue, VerbError> {
        let person = self.shared.settings.definitions.clone();
        let workspace = task.workspace.as_ref().map(|there| there.path.clone());
        // A folder may lie on a disk that does not answer.
        let read = move || definitions::read(person.as_deref(), workspace.as_deref());
        Ok(tokio::task::spawn_blocking(read).await?)
    }

    /// What an agent of that definition is taught when that task's agent summons it now.
    ///
    /// # Errors
    /// When a skill that it names is not there or of no use.
    pub async fn skills(&self, task: &Task, role: &Role) -> Result<Vec<Skill>, VerbError> {
        let person = self.shared.settings.definitions.clone();
        let workspace = task.workspace.as_ref().map(|there| there.path.clone());
        let (slug, role) = (role.slug.clone(), role.clone());
        let read = move || definitions::skills(&role, person.as_deref(), workspace.as_deref());
        let skills = tokio::task::spawn_blocking(read).await?;
        skills.map_err(|why| {
            let what = format!("summon {slug}: {why}");
            VerbError::BadInput { what }
        })
    }

    /// Waits for the end of tasks, until a time. To an agent this delivers the ends of what it asked
    /// for: durable before it returns, and nothing is delivered to a caller that has gone away.
    /// Asked again for an end that was delivered, it is told again, as what was. Without tasks: all
    /// that an agent waits for.
    ///
    /// # Errors
    /// When there is nothing to wait for, or too many wait already.
    pub async fn wait(
        &self,
        tasks: Vec<TaskId>,
        mode: Until,
        until: Millis,
    ) -> Result<Waited, VerbError> {
        let who = self.who;
        let (reply, answer) = oneshot::channel();
        let wait = Command::Wait {
            who,
            tasks,
            mode,
            until,
            reply,
        };
        self.shared
            .commands
            .send(wait)
            .await
            .map_err(|_| VerbError::Gone)?;
        // Whoever stops waiting for this leaves by dropping it, and the ends go another way then.
        let mut leaving = Leaving(Some(self.shared.commands.clone()));
        let answered = answer.await.map_err(|_| VerbError::Gone);
        leaving.0 = None;
        answered?
    }

    /// The asker of that task does not wait for it any more.
    ///
    /// # Errors
    /// When nobody waits for it.
    pub async fn detach(&self, task: TaskId) -> Result<(), VerbError> {
        self.may(Deed::Detach(task)).await?;
        let who = self.who;
        self.ask(|reply| Command::Detach { who, task, reply }).await
    }
}

/// Tells the actor that a caller does not wait any more, unless it has been answered.
struct Leaving(Option<mpsc::Sender<Command>>);

impl Drop for Leaving {
    fn drop(&mut self) {
        let Some(commands) = &self.0 else {
            return;
        };
        match commands.try_send(Command::Left) {
            // A full queue is an actor that is about to look anyway.
            Ok(()) | Err(_) => {}
        }
    }
}
