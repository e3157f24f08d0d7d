//! What whoever holds the handle can look at: tasks, pools, events, and what the engine itself is doing.
//! Must not change anything.

use std::{collections::BTreeSet, sync::Arc};

use dispatch_core::{
    Millis,
    config::Config,
    family::Deed,
    id::{RunId, Seq, TaskId},
    spending::Spending,
};

use super::{Engine, command::Command};
use crate::{
    events::EventStream,
    reads::{Listed, Listing, Overview},
    trees::Trees,
    view::{TaskView, VerbError, Who},
};

impl Engine {
    /// Names of variables that runs lack.
    ///
    /// # Errors
    /// When the engine has ended.
    pub async fn needs(&self) -> Result<Vec<String>, VerbError> {
        self.may(Deed::Other("list secrets")).await?;
        self.ask(|reply| Command::Needs { reply }).await
    }

    /// All tasks, oldest first, removed ones too; of an agent its own and those below it.
    ///
    /// # Errors
    /// When the engine has ended.
    pub async fn tasks(&self) -> Result<Vec<TaskView>, VerbError> {
        let who = self.who;
        self.ask(|reply| Command::Tasks { who, reply }).await
    }

    /// A page of tasks, all true at one position of the log; of an agent, of its family.
    ///
    /// # Errors
    /// When the engine has ended, or whoever asks may not.
    pub async fn list(&self, listing: Listing) -> Result<Listed, VerbError> {
        let who = self.who;
        let command = |reply| Command::List {
            who,
            listing,
            reply,
        };
        self.ask(command).await
    }

    /// How many tasks are in which state, and how the pools do.
    ///
    /// # Errors
    /// When the engine has ended.
    pub async fn overview(&self) -> Result<Overview, VerbError> {
        self.may(Deed::Other("look at the pools")).await?;
        self.ask(|reply| Command::Overview { reply }).await
    }

    /// What runs have spent, and the position of the log at which that is true.
    ///
    /// # Errors
    /// When the engine has ended.
    pub async fn spending(&self) -> Result<(Seq, Spending), VerbError> {
        self.may(Deed::Other("look at what was spent")).await?;
        self.ask(|reply| Command::Spending { reply }).await
    }

    /// # Errors
    /// When there is no such task.
    pub async fn task(&self, task: TaskId) -> Result<TaskView, VerbError> {
        let who = self.who;
        self.ask(|reply| Command::Task { who, task, reply }).await
    }

    /// For ourselves, whoever this handle is for: a door that shows it has asked `may`.
    ///
    /// # Errors
    /// When there is no such task.
    pub async fn look(&self, task: TaskId) -> Result<TaskView, VerbError> {
        let who = Who::Person;
        self.ask(|reply| Command::Task { who, task, reply }).await
    }

    /// History after `after`, then what happens: no gap, none twice. Only events; of an agent, those of
    /// its family.
    #[must_use]
    pub fn events(&self, after: Seq) -> EventStream {
        let shared = &self.shared;
        let events = EventStream::new(shared.logs.clone(), Arc::clone(&shared.tail), after);
        match self.who {
            Who::Person => events,
            Who::Run(run) => events.of_family(self.clone(), run),
        }
    }

    /// The same of some tasks or of everything, and what is open in their live runs beside it: first
    /// as it is when history has been told, then as it grows.
    #[must_use]
    pub fn watch(&self, after: Seq, tasks: Option<BTreeSet<TaskId>>) -> EventStream {
        self.events(after).watching(tasks)
    }

    /// What time it is for this engine.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.shared.settings.clock.now()
    }

    /// The position of the last durable event: whatever is asked from now on is at least as new.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.shared.tail.seq()
    }

    /// Resolves when nothing is live, queued or waiting, or the engine has ended.
    pub async fn idle(&self) {
        let mut open = self.shared.open.clone();
        match open.wait_for(|open| *open == 0).await {
            Ok(_) | Err(_) => {}
        }
    }

    /// Resolves with the reason when the engine has ended because its log could not be written.
    /// Jobs live on; nothing that was answered is missing from the log.
    pub async fn failed(&self) -> String {
        let mut failed = self.shared.failed.clone();
        let reason = failed
            .wait_for(Option::is_some)
            .await
            .map(|reason| reason.clone());
        match reason {
            Ok(Some(reason)) => reason,
            // Ended in order: there is no failure to wait for.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// What the agent of a run shows at our door. The same whenever it is asked.
    #[must_use]
    pub fn run_token(&self, run: RunId) -> String {
        self.shared.door_key.token(run)
    }

    /// Whose token this is, as long as that run's agent can be at work.
    #[must_use]
    pub fn whose(&self, token: &str) -> Option<RunId> {
        let run = self.shared.door_key.whose(token)?;
        self.is_working(run).then_some(run)
    }

    /// Whether that run's agent can be at work, and so come to our door.
    #[must_use]
    pub fn is_working(&self, run: RunId) -> bool {
        self.shared.working.borrow().contains(&run)
    }

    pub(crate) fn trees(&self) -> Arc<Trees> {
        Arc::clone(&self.shared.trees)
    }

    /// What it was opened with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.shared.settings.config
    }
}
