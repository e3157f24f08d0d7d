//! Another run of a task that is there: an answer, another try, going on with it, perhaps by
//! another agent.
//! Must not change anything before all of it is known to be allowed.

use dispatch_core::{
    attach,
    config::Selection,
    event::{Kind, Subject},
    id::{AgentName, RunId, TaskId},
    message::Sender,
    outcome::Outcome,
    run::RunCause,
    task::{Effort, Tuning},
};

use super::Actor;
use crate::{engine::Secrets, view::VerbError};

impl Actor {
    pub(super) fn answer(
        &mut self,
        task: TaskId,
        text: String,
        by: Sender,
        tuning: Tuning,
        secrets: Secrets,
    ) -> Result<RunId, VerbError> {
        let limits = &self.ctx.settings.config.limits;
        let found = self
            .state
            .task(task)
            .ok_or(VerbError::NoSuchTask { task })?;
        let state = found.last_run().map_or("queued", |run| run.state.word());
        let wrong = |hint| VerbError::WrongState {
            verb: "answer",
            task,
            state,
            hint,
        };
        if !matches!(found.outcome(), Some(Outcome::Blocked { .. })) {
            return Err(wrong("only a blocked task has a question"));
        }
        if found.workspace.is_none() {
            return Err(wrong("it has no workspace"));
        }
        self.can_run_again("answer", found, by == Sender::Person)?;
        if text.trim().is_empty() || text.len() > limits.task_bytes {
            let what = format!(
                "answer task {task}: an answer has 1 to {} bytes (limits.task_bytes)",
                limits.task_bytes
            );
            return Err(VerbError::BadInput { what });
        }
        if self.is_held(by) {
            let hint = "one word of a person has led to all the messages of agents that it may \
                        (limits.chain_messages_max); a person answers it, or says something to you";
            return Err(wrong(hint));
        }
        let n = u32::try_from(found.runs.len() + 1).unwrap_or(u32::MAX);
        let run = RunId { task, n };
        self.tunes_no_secret(task, &tuning, &secrets)?;
        self.takes_effort(&found.spec.agent, tuning.effort)?;
        self.secrets.entry(task).or_default().extend(secrets);
        self.tune(task, tuning);
        let answered = Kind::Answered {
            text: text.clone(),
            by,
        };
        self.put(Subject::Task(task), answered);
        self.queue(run, RunCause::Answer { text, by });
        Ok(run)
    }

    pub(super) fn retry(
        &mut self,
        task: TaskId,
        tuning: Tuning,
        secrets: Secrets,
    ) -> Result<RunId, VerbError> {
        let found = self
            .state
            .task(task)
            .ok_or(VerbError::NoSuchTask { task })?;
        let state = found.last_run().map_or("queued", |run| run.state.word());
        let wrong = |hint| VerbError::WrongState {
            verb: "retry",
            task,
            state,
            hint,
        };
        match found.outcome() {
            Some(Outcome::Failed(_) | Outcome::Stopped(_) | Outcome::Lost) => {}
            Some(Outcome::Blocked { .. }) => {
                return Err(wrong(
                    "it asks something; `dispatch answer` goes on with it",
                ));
            }
            Some(Outcome::Completed { .. }) => return Err(wrong("it needs no other run")),
            None => return Err(wrong("it has not ended")),
        }
        self.can_run_again("retry", found, true)?;
        self.can_follow(&found.spec)?;
        let n = u32::try_from(found.runs.len()).unwrap_or(u32::MAX);
        let cause = RunCause::RetryOf { n, by_person: true };
        let run = RunId {
            task,
            n: n.saturating_add(1),
        };
        self.tunes_no_secret(task, &tuning, &secrets)?;
        self.takes_effort(&found.spec.agent, tuning.effort)?;
        self.tune(task, tuning);
        self.secrets.entry(task).or_default().extend(secrets);
        self.queue(run, cause);
        Ok(run)
    }

    pub(super) fn resume(
        &mut self,
        task: TaskId,
        agent: Option<Selection>,
        tuning: Tuning,
        secrets: Secrets,
    ) -> Result<RunId, VerbError> {
        let found = self
            .state
            .task(task)
            .ok_or(VerbError::NoSuchTask { task })?;
        let Some((last, outcome)) = found.last_run().zip(found.outcome()) else {
            return Err(VerbError::WrongState {
                verb: "resume",
                task,
                state: found.last_run().map_or("queued", |run| run.state.word()),
                hint: "it has not ended; `dispatch say` speaks to it",
            });
        };
        self.can_run_again("resume", found, true)?;
        self.can_follow(&found.spec)?;
        let cause = RunCause::Resumed {
            agent: found.spec.agent.clone(),
            ended: format!("{}: {}", outcome.word(), outcome.reason()),
        };
        let run = RunId {
            task,
            n: last.n.saturating_add(1),
        };
        self.tunes_no_secret(task, &tuning, &secrets)?;
        // What it had before counts for another agent, too, unless it is said anew.
        let next = agent.as_ref().map(|selection| &selection.agent);
        let effort = tuning
            .effort
            .or(found.spec.guide.effort.filter(|_| next.is_some()));
        self.takes_effort(next.unwrap_or(&found.spec.agent), effort)?;
        if let Some(Selection {
            agent,
            model,
            profile: own,
            command,
        }) = agent
        {
            let agents = &self.ctx.settings.config.agents;
            let Some(profile) = agents.get(&agent) else {
                let there = dispatch_core::config::list(agents.keys());
                let what = format!("use agent {agent}: it is not configured; there are {there}");
                return Err(VerbError::BadInput { what });
            };
            let permissions = found.spec.terms.permissions;
            if !permissions.is_default() && !profile.driver.asks() {
                let what = format!(
                    "use agent {agent}: it asks for no permission ({}), and the task says \
                     permissions = \"{}\"; take one that asks, or dispatch another task",
                    profile.driver.word(),
                    permissions.word()
                );
                return Err(VerbError::BadInput { what });
            }
            if !found.attached.is_empty() {
                attach::allowed(
                    &self.ctx.settings.config.limits,
                    (&agent, profile.driver),
                    &found.attached,
                    [],
                )?;
            }
            let set = Kind::AgentSet {
                agent,
                pool: profile.pool.clone(),
                model: model.or_else(|| profile.model.clone().filter(|_| own.is_none())),
                profile: own,
                command,
                permissions: Some(profile.permissions).filter(|own| !own.is_default()),
            };
            self.put(Subject::Task(task), set);
        }
        self.tune(task, tuning);
        self.secrets.entry(task).or_default().extend(secrets);
        self.queue(run, cause);
        Ok(run)
    }

    /// The agent of the next run may be another one than whoever asked has seen, or than the effort was
    /// for. There is nothing to check of a model: each agent takes any name, and another agent never
    /// gets the model of the one before.
    pub(super) fn takes_effort(
        &self,
        agent: &AgentName,
        effort: Option<Effort>,
    ) -> Result<(), VerbError> {
        let profile = self.ctx.settings.config.agents.get(agent);
        let Some((profile, effort)) = profile.zip(effort) else {
            return Ok(());
        };
        let takes = profile.driver.efforts();
        if takes.contains(&effort) {
            return Ok(());
        }
        let word = effort.word();
        let what = if takes.is_empty() {
            format!(
                "use effort {word}: agent {agent} cannot be told how hard to think; take one that \
                 can, or dispatch another task"
            )
        } else {
            let takes = dispatch_core::config::list(takes.iter().map(|effort| effort.word()));
            format!("use effort {word}: agent {agent} takes {takes}; say which with --effort")
        };
        Err(VerbError::BadInput { what })
    }

    /// What holds for every further run of a task, whoever wants it.
    pub(super) fn can_run_again(
        &self,
        verb: &'static str,
        found: &dispatch_core::state::Task,
        by_person: bool,
    ) -> Result<(), VerbError> {
        let limits = &self.ctx.settings.config.limits;
        let (task, state) = (found.id, found.last_run());
        let state = state.map_or("queued", |run| run.state.word());
        let wrong = |hint| VerbError::WrongState {
            verb,
            task,
            state,
            hint,
        };
        if found.removed || found.workspace.as_ref().is_some_and(|w| w.removed) {
            return Err(wrong(
                "its workspace was removed; bring it back with `dispatch undo` first",
            ));
        }
        if found.attached_dropped {
            return Err(wrong(
                "its attachments are not kept any more (retention.snapshots_d); dispatch it again \
                 with them",
            ));
        }
        // Whoever waits for the workspace, or lost it to another, does not have it.
        let mut holders = self.state.holders(&found.spec);
        if holders.any(|other| {
            other.id != task
                && self.state.waits_behind(other.id).is_none()
                && self.state.taken_over(other.id).is_none()
        }) {
            return Err(wrong("another task has its workspace; stop that one first"));
        }
        if !found.has_runs_left(limits.runs_max, by_person) {
            return Err(wrong("it has had all its runs (limits.runs_max)"));
        }
        if let Some(spent) = found.budget().reached(found.spent()) {
            let hint = format!("its budget is spent ({spent}); dispatch a task with a larger one");
            return Err(VerbError::Nothing { verb, task, hint });
        }
        self.budget_allows(found)?;
        if self.state.queue().len() >= limits.queue_max {
            return Err(VerbError::QueueFull {
                max: limits.queue_max,
            });
        }
        Ok(())
    }
}
