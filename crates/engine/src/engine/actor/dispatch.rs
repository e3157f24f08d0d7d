//! A new task, from whoever may ask for one, and every run's way to the gate.
//! Must not leave anything behind of a task that is refused.

use dispatch_core::{
    event::{Kind, Subject},
    family::Deed,
    id::{RunId, TaskId},
    message::MessageId,
    naming,
    outcome::{Outcome, Stop},
    run::RunCause,
    task::{AFTER_MAX, Taken, TaskSpec, Tuning},
};

use super::{
    Actor,
    secrets::{names_a_secret, names_no_secret},
};
use crate::{
    attachments::Kept,
    engine::{Secrets, random_id},
    mirror::Wanted,
    view::{Force, VerbError},
};

impl Actor {
    pub(super) fn dispatch(
        &mut self,
        mut spec: TaskSpec,
        kept: Option<(TaskId, Kept)>,
        secrets: Secrets,
    ) -> Result<RunId, VerbError> {
        let limits = &self.ctx.settings.config.limits;
        if self.state.queue().len() >= limits.queue_max {
            return Err(VerbError::QueueFull {
                max: limits.queue_max,
            });
        }
        if spec.text.len() > limits.task_bytes {
            let what = format!(
                "take the task: its text has {} bytes, and limits.task_bytes is {}",
                spec.text.len(),
                limits.task_bytes
            );
            return Err(VerbError::BadInput { what });
        }
        if names_a_secret(&spec, &secrets) {
            let what = "take the task: the name of its repository, branch, model or workspace \
                        holds a secret; give one without, and let ssh log in"
                .to_owned();
            return Err(VerbError::BadInput { what });
        }
        if let Some((_, kept)) = &kept {
            names_no_secret(kept, &secrets)?;
        }
        self.takes_effort(&spec.agent, spec.guide.effort)?;
        Wanted::of(&spec.base).map_err(|error| VerbError::BadInput {
            what: error.to_string(),
        })?;
        let older: Vec<TaskId> = self.state.holders(&spec).map(|task| task.id).collect();
        let holder = older.last().and_then(|holder| self.state.task(*holder));
        if let (Taken::Refuse, Some(holder)) = (spec.turn.taken, holder) {
            let name = naming::workspace_name(&holder.spec, &holder.short);
            let holder = holder.id;
            return Err(VerbError::WorkspaceTaken { name, holder });
        }
        self.can_follow(&spec)?;
        spec.turn.behind = older.last().copied();
        let task = match &kept {
            Some((id, _)) => *id,
            None => self.fresh_id()?,
        };
        if self.state.task(task).is_some() {
            let what = "take the task: its id is another one's; try again".to_owned();
            return Err(VerbError::BadInput { what });
        }
        let short = self.state.short(task);
        let supersedes = spec.turn.taken == Taken::Supersede;
        let spec = Box::new(spec);
        // Before the first event, so that they are masked in it.
        self.secrets.insert(task, secrets);
        self.put(Subject::Task(task), Kind::TaskCreated { spec, short });
        if let Some((_, kept)) = kept {
            self.attach(task, kept, None);
        }
        let run = RunId { task, n: 1 };
        self.queue(run, RunCause::Dispatched);
        if supersedes {
            older.into_iter().for_each(|old| self.supersede(old, task));
            self.look_for_secrets(run);
        }
        Ok(run)
    }

    /// The place that it takes is taken with this commit.
    pub(super) fn dispatch_for(
        &mut self,
        by: RunId,
        spec: TaskSpec,
        kept: Option<(TaskId, Kept)>,
    ) -> Result<RunId, VerbError> {
        self.may(by, Deed::Dispatch)?;
        let (spec, secrets) = self.asked_by_agent(by, spec)?;
        let made = self.dispatch(spec, kept, secrets)?;
        self.fill_purse(by.task);
        Ok(made)
    }

    /// Ends what has the workspace. Its result is kept by its own end, and its workspace stays.
    fn supersede(&mut self, old: TaskId, by: TaskId) {
        let text = format!("superseded by task {by}, which wants its workspace");
        self.put(Subject::Task(old), Kind::Noted { text });
        match self.stop(old, Force::Ask, &Stop::ByPerson) {
            // Blocked: nothing of it runs.
            Ok(()) | Err(_) => {}
        }
    }

    /// Every run of every task comes to the gate here.
    pub(super) fn queue(&mut self, run: RunId, cause: RunCause) {
        if self.put(Subject::Run(run), Kind::RunQueued { cause }) {
            self.fresh.push(run);
        }
        self.look_for_secrets(run);
    }

    /// What it waits for exists and can still complete.
    pub(super) fn can_follow(&self, spec: &TaskSpec) -> Result<(), VerbError> {
        let after = &spec.terms.after;
        if after.len() > AFTER_MAX {
            let what = format!("take the task: it may wait for {AFTER_MAX} others at most");
            return Err(VerbError::BadInput { what });
        }
        for id in after {
            let task = *id;
            let other = self
                .state
                .task(task)
                .ok_or(VerbError::NoSuchTask { task })?;
            if other.is_hopeless() {
                let short = self.state.short(task);
                let what = format!(
                    "wait for task {short}: it ended as {} and will not complete; \
                     `dispatch retry {short}` first",
                    other.outcome().map_or("unknown", Outcome::word)
                );
                return Err(VerbError::BadInput { what });
            }
        }
        Ok(())
    }

    pub(super) fn attach(&mut self, task: TaskId, kept: Kept, message: Option<MessageId>) {
        let attached = kept.attached(message);
        if self.put(Subject::Task(task), Kind::Attached { attached }) {
            kept.told();
        }
    }

    pub(super) fn tune(&mut self, task: TaskId, tuning: Tuning) {
        if !tuning.is_empty() {
            self.put(Subject::Task(task), Kind::TuningSet { tuning });
        }
    }

    fn fresh_id(&self) -> Result<TaskId, VerbError> {
        loop {
            let id = random_id()?;
            if self.state.task(id).is_none() {
                return Ok(id);
            }
        }
    }
}
