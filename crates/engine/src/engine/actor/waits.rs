//! Callers that wait for the end of tasks, and the ends that are delivered to them.
//! Must not deliver an end twice: what was told to one caller is in the log before it hears of it.

use std::collections::BTreeSet;

use dispatch_core::{
    Millis,
    event::{Kind, Subject},
    family::{self, Deed, EndId, Refusal},
    id::{RunId, TaskId},
    message::{Fate, Sender},
    state::{Run, Task},
};

use super::Actor;
use crate::{
    engine::command::Reply,
    view::{Until, VerbError, Waited, WaitedFor, Who},
};

pub(super) struct Waiter {
    who: Who,
    tasks: Vec<TaskId>,
    mode: Until,
    until: Millis,
    /// One of them is not waited for any more.
    let_go: bool,
    reply: Reply<Waited>,
}

impl Waiter {
    pub(super) fn is_of(&self, task: TaskId) -> bool {
        matches!(self.who, Who::Run(run) if run.task == task)
    }

    /// Whether the agent of `task` is about to hear of that end in this way.
    pub(super) fn claims(&self, task: TaskId, child: TaskId) -> bool {
        self.is_of(task) && !self.reply.is_closed() && self.tasks.contains(&child)
    }
}

impl Actor {
    pub(super) fn wait(
        &mut self,
        who: Who,
        tasks: Vec<TaskId>,
        mode: Until,
        until: Millis,
        reply: Reply<Waited>,
    ) {
        let tasks = match self.to_wait_for(who, tasks) {
            Ok(tasks) => tasks,
            Err(error) => return self.reply_later(reply, Err(error)),
        };
        self.waiters.push(Waiter {
            who,
            tasks,
            mode,
            until,
            let_go: false,
            reply,
        });
    }

    fn to_wait_for(&self, who: Who, tasks: Vec<TaskId>) -> Result<Vec<TaskId>, VerbError> {
        let max = self.ctx.settings.config.limits.waits_max;
        let people = |waiter: &&Waiter| waiter.who == Who::Person;
        let people = self.waiters.iter().filter(people).count();
        let full = match who {
            // Whoever is at this machine, and whoever shows a token: a door keeps the two apart.
            Who::Person => people >= max.saturating_mul(2),
            Who::Run(_) => self.waiters.len().saturating_sub(people) >= max,
        };
        if full {
            return Err(VerbError::TooManyWait { max });
        }
        let unknown = tasks.iter().find(|task| self.state.task(**task).is_none());
        if let (Who::Person, Some(task)) = (who, unknown) {
            return Err(VerbError::NoSuchTask { task: *task });
        }
        let asked = match who {
            Who::Run(run) if tasks.is_empty() => {
                let task = self.state.task(run.task);
                let family = task.map(|task| &task.family);
                let awaited = family.into_iter().flat_map(|family| {
                    let owed = family.owed().map(|end| end.child);
                    family.awaited().chain(owed).collect::<BTreeSet<_>>()
                });
                awaited.collect()
            }
            Who::Run(_) | Who::Person => tasks,
        };
        let mut seen = BTreeSet::new();
        let asked: Vec<TaskId> = asked.into_iter().filter(|id| seen.insert(*id)).collect();
        if let Who::Run(run) = who {
            // Its grant is looked at even where there is nothing to wait for.
            self.may(run, Deed::WaitForAll)?;
            for task in &asked {
                self.may(run, Deed::Wait(*task))?;
            }
        }
        if asked.is_empty() {
            let what = "wait: name a task; there is nothing that you wait for".to_owned();
            return Err(VerbError::BadInput { what });
        }
        Ok(asked)
    }

    /// Answers those whose tasks have come as far as they wait for, or whose time is over.
    pub(super) fn answer_waiters(&mut self) {
        for waiter in std::mem::take(&mut self.waiters) {
            if waiter.reply.is_closed() {
                if let Who::Run(run) = waiter.who {
                    self.owing.insert(run.task);
                }
                continue;
            }
            match self.is_answered(&waiter) {
                None => self.waiters.push(waiter),
                Some(Err(error)) => self.reply_later(waiter.reply, Err(error)),
                Some(Ok(over)) => {
                    let waited = self.deliver(&waiter, over);
                    self.reply_later(waiter.reply, waited);
                }
            }
        }
    }

    /// When the next of them is answered although nothing happens.
    pub(super) fn waiters_wake_at(&self) -> Option<Millis> {
        self.waiters.iter().map(|waiter| waiter.until).min()
    }

    /// Whether it is, and whether that is because its time is over.
    fn is_answered(&self, waiter: &Waiter) -> Option<Result<bool, VerbError>> {
        if let Who::Run(run) = waiter.who
            && !self.state.run(run).is_some_and(Run::may_knock)
        {
            let verb = "wait";
            return Some(Err(Refusal::Over { verb }.into()));
        }
        let found = waiter.tasks.iter().filter_map(|id| self.state.task(*id));
        let found: Vec<&Task> = found.collect();
        let all = found.iter().all(|task| task.is_done());
        let some = match (waiter.mode, waiter.who) {
            (Until::All, _) => false,
            (Until::Any, Who::Person) => found.iter().any(|task| task.is_done()),
            (Until::Any, Who::Run(run)) => self.owes_one_of(run.task, &waiter.tasks),
        };
        // It would wait for its own answer.
        let asked = matches!(waiter.who, Who::Run(run) if found.iter().any(|task| {
            let mut asks = task.open_asks();
            asks.any(|ask| ask.owner == Sender::Task(run.task))
        }));
        if all || some || asked {
            return Some(Ok(false));
        }
        if matches!(waiter.who, Who::Run(run) if self.is_spoken_to(run)) {
            return Some(Ok(true));
        }
        (waiter.let_go || waiter.until <= self.now()).then_some(Ok(true))
    }

    /// Somebody's word is on its way to that agent, which would hear it when its call is over. What
    /// Dispatch tells is how tasks have ended, and no reason not to wait for the others.
    fn is_spoken_to(&self, run: RunId) -> bool {
        let task = self.state.task(run.task);
        let messages = task.into_iter().flat_map(|task| &task.messages);
        let mut words = messages.filter(|message| message.from != Sender::Dispatch);
        words.any(|message| message.fate == Fate::Waiting && message.is_with(run.n))
    }

    fn owes_one_of(&self, task: TaskId, of: &[TaskId]) -> bool {
        let task = self.state.task(task);
        let mut owed = task.into_iter().flat_map(|task| task.family.owed());
        owed.any(|end| of.contains(&end.child))
    }

    /// The ends among them are delivered with this commit, and the answer goes out after it.
    fn deliver(&mut self, waiter: &Waiter, over: bool) -> Result<Waited, VerbError> {
        let mut delivered = Vec::new();
        if let Who::Run(run) = waiter.who {
            let task = self.state.task(run.task);
            let owed = task.into_iter().flat_map(|task| task.family.owed());
            delivered = owed
                .filter(|end| waiter.tasks.contains(&end.child))
                .collect();
            if !delivered.is_empty() {
                let ends = delivered.clone();
                if !self.put(Subject::Run(run), Kind::EndsDelivered { ends }) {
                    delivered.clear();
                }
            }
        }
        let (mut tasks, mut known) = (Vec::new(), Vec::new());
        for id in &waiter.tasks {
            let view = self.view(*id, |_| None)?;
            let done = view.task.is_done();
            let own = delivered.iter().filter(|end| end.child == *id);
            let own: Vec<EndId> = own.copied().collect();
            // Heard before, and told again because it is asked for.
            if let (true, true, Some(run)) = (own.is_empty(), done, view.task.last_run()) {
                known.push(EndId {
                    child: *id,
                    run: run.n,
                });
            }
            tasks.push(WaitedFor {
                done,
                delivered: own,
                view,
            });
        }
        let words = match waiter.who {
            Who::Run(_) => family::words_of_wait(&self.state, &delivered, &known),
            // They read what they asked about.
            Who::Person => String::new(),
        };
        Ok(Waited { tasks, over, words })
    }

    pub(super) fn detach(&mut self, child: TaskId) -> Result<(), VerbError> {
        let task = child;
        let found = self
            .state
            .task(child)
            .ok_or(VerbError::NoSuchTask { task })?;
        let nothing = |hint: &str| VerbError::Nothing {
            verb: "detach",
            task,
            hint: hint.to_owned(),
        };
        let Some(asker) = found.asker().and_then(|asker| self.state.task(asker)) else {
            return Err(nothing("no agent asked for it, so none waits for it"));
        };
        let asker_id = asker.id;
        let waits = asker.family.child(child).is_some_and(|c| !c.detached);
        if !waits {
            return Err(nothing("it is detached already"));
        }
        let was_parked = asker.is_parked();
        let waits = |waiter: &&mut Waiter| waiter.is_of(asker_id) && waiter.tasks.contains(&child);
        for waiter in self.waiters.iter_mut().filter(waits) {
            waiter.let_go = true;
        }
        self.put(Subject::Task(asker_id), Kind::Detached { child });
        let Some(asker) = self.state.task(asker_id) else {
            return Ok(());
        };
        match asker.last_run().map(|run| run.n) {
            Some(n) if was_parked && asker.is_done() => self.tell_parent(asker_id, n),
            _ => {
                self.owing.insert(asker_id);
            }
        }
        Ok(())
    }
}
