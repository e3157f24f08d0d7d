//! Tasks that an agent asked for: what they may have of their asker, word of their ends, and tasks
//! that wait parked. What an agent may is decided by `core::family`.
//! Must not hold an end anywhere but in the log: what is owed follows from the fold.

use std::collections::BTreeSet;

use dispatch_core::{
    event::{Kind, Subject, Verified},
    family::{self, Deed, EndId, Refusal},
    gate::Budget,
    grant::Tool,
    id::{RunId, TaskId},
    message::{MessageId, Sender},
    outcome::{Outcome, Stop},
    run::{RunCause, RunState},
    state::Task,
    task::{TaskSpec, Tuning, Wrap},
};

use super::Actor;
use crate::{
    engine::Secrets,
    view::{Force, VerbError, Who},
};

impl Actor {
    pub(super) fn may(&self, run: RunId, deed: Deed) -> Result<(), VerbError> {
        Ok(family::may(&self.state, run, deed)?)
    }

    /// Whether whoever a command is from may do that now, in the turn that does it: what was asked
    /// before may have become untrue, by a stop above all.
    pub(super) fn lets(&self, who: Who, deed: Deed) -> Result<(), VerbError> {
        match who {
            Who::Person => Ok(()),
            Who::Run(run) => self.may(run, deed),
        }
    }

    /// Files, a model and an effort change the task that they come to, and an agent has no say in that
    /// of whoever asked for its own, and in that of its children as far as its grant goes.
    pub(super) fn hands_over(
        &self,
        who: Who,
        to: TaskId,
        files: bool,
        tuning: &Tuning,
    ) -> Result<(), VerbError> {
        let Who::Run(run) = who else {
            return Ok(());
        };
        family::may_tune(&self.state, run, tuning)?;
        let asker = self.state.task(run.task).and_then(Task::asker);
        if asker != Some(to) || (!files && tuning.is_empty()) {
            return Ok(());
        }
        let what = "say that with files, another model or effort: those of the task that asked for \
                    yours are not yours to set; what you leave in your workspace can be seen";
        Err(VerbError::BadInput { what: what.into() })
    }

    /// A task that an agent asks for, as it may have it, with the secrets that its asker has of those
    /// it takes.
    pub(super) fn asked_by_agent(
        &self,
        by: RunId,
        spec: TaskSpec,
    ) -> Result<(TaskSpec, Secrets), VerbError> {
        let spent = self.spent_now(by.task);
        let masks = self.redactor(Some(by.task));
        let spec = family::narrowed(&self.state, by, spec, spent, self.now(), &masks)?;
        self.image_is_known(by, &spec)?;
        let agents = &self.ctx.settings.config.agents;
        let Some(profile) = agents.get(&spec.agent) else {
            let asker = self.state.task(by.task);
            let grant = asker.and_then(|task| task.spec.terms.grant.as_deref());
            let there = grant.map(|grant| grant.agents.to_string());
            let what = format!(
                "use agent {}: it is not configured; your grant has {}",
                spec.agent,
                there.unwrap_or_default()
            );
            return Err(VerbError::BadInput { what });
        };
        let permissions = spec.terms.permissions;
        if !permissions.is_default() && !profile.driver.asks() {
            let outside = vec![format!(
                "agent {}, which asks for no permission (what you ask for is at least \
                 permissions = \"{}\")",
                spec.agent,
                permissions.word()
            )];
            return Err(Refusal::Outside { outside }.into());
        }
        let profile = self
            .ctx
            .settings
            .config
            .agent_for(&spec.agent, &spec.terms.chain);
        let takes = profile.iter().flat_map(|profile| &profile.env);
        let keys: BTreeSet<String> = takes
            .filter_map(|(variable, value)| value.key(&spec.agent, variable))
            .collect();
        let known = self.secrets.get(&by.task).into_iter().flatten();
        let handed = known.filter(|(key, _)| keys.contains(*key));
        let secrets = handed.map(|(key, value)| (key.clone(), value.clone()));
        let secrets = secrets.collect();
        Ok((spec, secrets))
    }

    /// Getting an image is a request to a registry, outside of every fence.
    fn image_is_known(&self, by: RunId, spec: &TaskSpec) -> Result<(), VerbError> {
        if spec.placement.wrap != Wrap::Container {
            return Ok(());
        }
        let config = &self.ctx.settings.config;
        let image = spec.placement.container.as_ref().map(|c| &c.image);
        let own = self.state.task(by.task);
        let own = own.and_then(|task| task.spec.placement.container.as_ref());
        let agents = config.agents.values().filter_map(|a| a.image.as_ref());
        let placements = config.containers.values().filter_map(|c| c.image.as_ref());
        let mut known = agents
            .chain(placements)
            .chain(&config.container.image)
            .chain(own.map(|container| &container.image));
        if known.any(|known| Some(known) == image) {
            return Ok(());
        }
        let named = image.map(ToString::to_string).unwrap_or_default();
        let outside = vec![format!(
            "image {named} (granted: those that are configured)"
        )];
        Err(Refusal::Outside { outside }.into())
    }

    /// Who answers what this task's agents ask permission for: its asker, if that may do by itself
    /// what it would allow.
    pub(super) fn answers_for(&self, task: &Task) -> Sender {
        let asker = task.asker().and_then(|asker| self.state.task(asker));
        let able = |asker: &&Task| {
            let terms = &asker.spec.terms;
            let grant = terms.grant.as_ref();
            let answers = grant.is_some_and(|g| g.allows(Tool::Answer));
            answers && terms.permissions.is_default()
        };
        match asker.filter(able) {
            Some(asker) => Sender::Task(asker.id),
            None => Sender::Person,
        }
    }

    /// What a task's live run has spent so far.
    fn spent_now(&self, task: TaskId) -> Budget {
        let run = self.state.task(task).and_then(Task::last_run);
        // What has ended is in the log.
        let run = run.filter(|run| run.report.is_none());
        let run = run.map(|run| RunId { task, n: run.n });
        let purse = run.and_then(|run| self.purses.get(&run));
        purse.map(|purse| purse.spent()).unwrap_or_default()
    }

    /// After anything that changes what a task's children may spend.
    pub(super) fn fill_purse(&self, task: TaskId) {
        let Some(task) = self.state.task(task) else {
            return;
        };
        let run = task.last_run().map(|run| RunId {
            task: task.id,
            n: run.n,
        });
        if let Some(purse) = run.and_then(|run| self.purses.get(&run)) {
            purse.give(family::reserved(&self.state, task));
        }
    }

    /// A child's end is a fact of its parent too, in the same commit.
    pub(super) fn tell_parent(&mut self, id: TaskId, run: u32) {
        let Some(child) = self.state.task(id) else {
            return;
        };
        let Some(parent) = child.spec.parent.filter(|p| self.state.task(*p).is_some()) else {
            return;
        };
        let Some(outcome) = child.outcome() else {
            return;
        };
        let ended = Kind::ChildEnded {
            child: id,
            state: outcome.word().to_owned(),
            child_run: run,
            reason: family::reason(outcome),
        };
        self.put(Subject::Task(parent), ended);
        self.owing.insert(parent);
        self.fill_purse(parent);
    }

    /// What a run's end means for its task's family, once it is sure that no other run follows.
    pub(super) fn family_ended(&mut self, run: RunId) {
        let Some(task) = self.state.task(run.task) else {
            return;
        };
        if task.is_parked() {
            let children: Vec<TaskId> = task.family.awaited().collect();
            if children.is_empty() {
                self.start_for_ends(run.task);
            } else {
                self.put(Subject::Task(run.task), Kind::Parked { children });
            }
        } else if matches!(
            task.outcome(),
            Some(Outcome::Failed(_) | Outcome::Stopped(_) | Outcome::Lost)
        ) {
            // Nobody is left to hear of them, and they spend on its account.
            for child in task.family.awaited().collect::<Vec<_>>() {
                self.stop_below(child, Force::Ask);
            }
        }
        if self.state.task(run.task).is_some_and(Task::is_done) {
            self.tell_parent(run.task, run.n);
        }
    }

    fn stop_below(&mut self, child: TaskId, force: Force) {
        let stopping = |task: &Task| {
            let state = task.last_run().map(|run| &run.state);
            matches!(state, Some(RunState::Stopping { .. }))
        };
        // A second request would be a kill.
        if self.state.task(child).is_none_or(stopping) {
            return;
        }
        match self.stop(child, force, &Stop::ByAsker) {
            // It has ended by itself.
            Ok(()) | Err(_) => {}
        }
    }

    /// A parked task is stopped: it has a last run that never began, and ends with that.
    pub(super) fn end_parking(&mut self, id: TaskId, why: Stop) {
        let Some(task) = self.state.task(id) else {
            return;
        };
        let n = u32::try_from(task.runs.len() + 1).unwrap_or(u32::MAX);
        let run = RunId { task: id, n };
        let cause = RunCause::Ends;
        if self.put(Subject::Run(run), Kind::RunQueued { cause }) {
            self.finish(run, Outcome::Stopped(why));
        }
    }

    /// Those that have something to hear do: by a running agent that listens, or by a next run.
    pub(super) fn look_at_owing(&mut self) {
        for id in std::mem::take(&mut self.owing) {
            let Some(task) = self.state.task(id) else {
                continue;
            };
            let running = task
                .last_run()
                .is_some_and(|run| run.state == RunState::Running);
            if running {
                self.ring(id);
            } else {
                self.start_for_ends(id);
            }
        }
    }

    /// The next run of a parked task, once all that it waits for is done. Where there cannot be one,
    /// its ends are kept and a person sees why.
    fn start_for_ends(&mut self, id: TaskId) {
        let Some(task) = self.state.task(id) else {
            return;
        };
        if !task.is_parked() || task.family.awaited().next().is_some() {
            return;
        }
        let wakes_max = self.ctx.settings.config.limits.wakes_max;
        let text = match self.can_run_again("tell ends to", task, false) {
            // A queue that is full is no reason to let go of an end.
            Ok(()) | Err(VerbError::QueueFull { .. }) if task.wakes < wakes_max => {
                let n = u32::try_from(task.runs.len() + 1).unwrap_or(u32::MAX);
                self.queue(RunId { task: id, n }, RunCause::Ends);
                return;
            }
            Ok(()) | Err(VerbError::QueueFull { .. }) => format!(
                "what it asked for has ended, and it is not told: agents have started {wakes_max} \
                 of its runs since a person said something (limits.wakes_max)"
            ),
            Err(error) => format!("what it asked for has ended, and it is not told: {error}"),
        };
        if task.notes.last() != Some(&text) {
            self.put(Subject::Task(id), Kind::Noted { text });
        }
    }

    /// Ends that a task is owed and that no caller of its own waits for.
    fn ends_to_tell(&self, task: &Task) -> Vec<EndId> {
        let claimed = |id: &EndId| {
            let mut waiters = self.waiters.iter();
            waiters.any(|waiter| waiter.claims(task.id, id.child))
        };
        task.family.owed().filter(|id| !claimed(id)).collect()
    }

    /// Makes a message of what a task is owed, which a run is about to take.
    pub(super) fn put_ends(&mut self, id: TaskId) -> Option<MessageId> {
        let task = self.state.task(id)?;
        let ends = self.ends_to_tell(task);
        if ends.is_empty() {
            return None;
        }
        let message = MessageId(task.messages_count.saturating_add(1));
        let queued = Kind::MessageQueued {
            message,
            text: family::words(&self.state, &ends),
            from: Sender::Dispatch,
            fresh: false,
            held: false,
            ends,
        };
        self.put(Subject::Task(id), queued).then_some(message)
    }

    /// A message of an agent is one of its chain; when that has led to enough, a person has to speak.
    pub(super) fn is_held(&self, from: Sender) -> bool {
        let Sender::Task(task) = from else {
            return false;
        };
        let most = self.ctx.settings.config.limits.chain_messages_max;
        self.state.chain_messages(self.state.chain_of(task)) >= most
    }

    /// In the commit of the message.
    pub(super) fn tell_held(&mut self, to: TaskId, from: Sender) {
        let most = self.ctx.settings.config.limits.chain_messages_max;
        let text = format!(
            "a message from {from} is held: one word of a person has led to {most} messages of agents \
             (limits.chain_messages_max); say something to go on"
        );
        self.put(Subject::Task(to), Kind::Noted { text });
    }

    /// A task that was queued for its messages only is as it was before; so is what its asker knows.
    pub(super) fn call_off_run(
        &mut self,
        run: RunId,
        before: u32,
        outcome: Outcome,
        as_was: Verified,
    ) {
        let verified = as_was;
        self.held.remove(&run);
        if self.put(Subject::Run(run), Kind::Finished { outcome, verified })
            && self.state.task(run.task).is_some_and(Task::is_done)
        {
            self.tell_parent(run.task, before);
        }
    }

    /// Whether its agent has asked for something whose end it has not heard: then this run's end is
    /// not the task's, and is not judged like it.
    pub(super) fn is_owed(&self, run: RunId) -> bool {
        let task = self.state.task(run.task);
        task.is_some_and(|task| task.is_owed() && task.last_run().is_some_and(|r| r.n == run.n))
    }

    /// What an asker has left covers what a child that goes on may spend.
    pub(super) fn budget_allows(&self, task: &Task) -> Result<(), VerbError> {
        let Some(asker) = task.asker().and_then(|asker| self.state.task(asker)) else {
            return Ok(());
        };
        let Some(grant) = asker.spec.terms.grant.as_deref() else {
            return Ok(());
        };
        let done = asker.family.child(task.id).is_some_and(|child| child.done);
        if !done {
            return Ok(());
        }
        let spent = family::spent_below(&self.state, task);
        let more = task.budget().less(spent);
        let left = family::left(&self.state, asker, grant, self.spent_now(asker.id));
        let fits = left.tokens.is_none_or(|left| more.tokens <= left)
            && left.usd.is_none_or(|left| more.usd <= left);
        if fits {
            return Ok(());
        }
        Err(VerbError::Nothing {
            verb: "go on with",
            task: task.id,
            hint: "what its asker may spend is spent or given to others".to_owned(),
        })
    }

    /// All that was asked for below it, and itself.
    pub(super) fn family(&self, task: TaskId) -> BTreeSet<TaskId> {
        let mut family = BTreeSet::from([task]);
        let mut open = vec![task];
        while let Some(one) = open.pop() {
            let children = self.state.task(one).map(|task| &task.family.children);
            for child in children.into_iter().flatten() {
                if family.insert(child.task) {
                    open.push(child.task);
                }
            }
        }
        family
    }
}
