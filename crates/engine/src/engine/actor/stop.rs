//! Stopping a task, or all of them, with what they asked for.
//! Must not kill at the first request, unless it was asked to.

use std::collections::BTreeSet;

use dispatch_core::{
    event::{Kind, Subject},
    id::{RunId, TaskId},
    outcome::{Outcome, Stop},
    run::RunState,
};

use super::Actor;
use crate::{
    engine::command::StopOrder,
    view::{Force, VerbError},
};

impl Actor {
    /// The task, and what it asked for, and so on: whoever wants an end wants no more work of it.
    pub(super) fn stop(&mut self, task: TaskId, force: Force, why: &Stop) -> Result<(), VerbError> {
        let mut family = vec![task];
        let mut next = 0;
        while let Some(parent) = family.get(next).copied() {
            next += 1;
            let asker = self.state.task(parent);
            let let_go = |child: TaskId| {
                let child = asker.and_then(|asker| asker.family.child(child));
                child.is_some_and(|child| child.detached)
            };
            let theirs = |other: &&dispatch_core::state::Task| {
                other.spec.parent == Some(parent) && !let_go(other.id)
            };
            let children = self.state.tasks().filter(theirs).map(|child| child.id);
            let new: Vec<_> = children.filter(|id| !family.contains(id)).collect();
            family.extend(new);
        }
        // The end of one may stop another, for which that must not be the second time.
        let stopping: BTreeSet<TaskId> = family
            .iter()
            .copied()
            .filter(|id| self.is_stopping(*id))
            .collect();
        let own = self.stop_one(task, force, why.clone());
        let mut any = own.is_ok();
        for child in family.into_iter().skip(1) {
            if self.is_stopping(child) && !stopping.contains(&child) {
                continue;
            }
            any |= self.stop_one(child, force, why.clone()).is_ok();
        }
        if any { Ok(()) } else { own }
    }

    fn is_stopping(&self, task: TaskId) -> bool {
        let run = self.state.task(task).and_then(|task| task.last_run());
        run.is_some_and(|run| matches!(run.state, RunState::Stopping { .. }))
    }

    pub(super) fn stop_all(&mut self, force: Force) -> Vec<TaskId> {
        let open = self.state.tasks().filter(|task| !task.is_done());
        let open: Vec<TaskId> = open.map(|task| task.id).collect();
        let stopping: BTreeSet<TaskId> = open
            .iter()
            .copied()
            .filter(|id| self.is_stopping(*id))
            .collect();
        let mut stopped = Vec::new();
        for id in open {
            let with_another = self.is_stopping(id) && !stopping.contains(&id);
            if with_another || self.stop_one(id, force, Stop::ByPerson).is_ok() {
                stopped.push(id);
            }
        }
        stopped
    }

    fn stop_one(&mut self, task: TaskId, force: Force, why: Stop) -> Result<(), VerbError> {
        let found = self
            .state
            .task(task)
            .ok_or(VerbError::NoSuchTask { task })?;
        let Some(run) = found.last_run() else {
            return Err(VerbError::NoSuchTask { task });
        };
        let (id, state) = (RunId { task, n: run.n }, run.state.clone());
        match state {
            RunState::Finished(_) if found.is_parked() => {
                self.end_parking(task, why);
                Ok(())
            }
            RunState::Finished(_) => Err(VerbError::WrongState {
                verb: "stop",
                task,
                state: state.word(),
                hint: "nothing of it runs or waits",
            }),
            RunState::Queued => {
                self.finish(id, Outcome::Stopped(why));
                Ok(())
            }
            RunState::Preparing | RunState::Running | RunState::Checking => {
                self.put(Subject::Run(id), Kind::StopRequested { why });
                self.tell_to_stop(id, force);
                Ok(())
            }
            // The second time is a kill.
            RunState::Stopping { .. } => {
                self.tell_to_stop(id, Force::Kill);
                Ok(())
            }
        }
    }

    fn tell_to_stop(&mut self, run: RunId, force: Force) {
        if self.held.remove(&run).is_some() && !self.orders.contains_key(&run) {
            // It waits for a key and nothing of it runs.
            self.finish(run, Outcome::Stopped(Stop::ByPerson));
            return;
        }
        self.effects.push(Box::new(move |actor| {
            if let Some(orders) = actor.orders.get(&run) {
                match orders.try_send(StopOrder { force }) {
                    // A full queue of stops says the same.
                    Ok(()) | Err(_) => {}
                }
            }
        }));
    }
}
