//! Stopping a task, or all of them, with what they asked for.
//! Must not kill unless it was asked to, however often it is asked.

use dispatch_core::{
    event::{Kind, Subject},
    family::Deed,
    id::{RunId, TaskId},
    keys::{Made, RequestKey},
    outcome::{Outcome, Stop},
    run::RunState,
};

use super::Actor;
use crate::{
    engine::{Secrets, command::StopOrder},
    view::{Force, VerbError, Who},
};

impl Actor {
    /// One that comes again with its key is the same stop. Whether a kill reached anybody before an
    /// engine died is not in the log, so what is still stopping is told of it again.
    pub(super) fn stop_once(
        &mut self,
        who: Who,
        task: TaskId,
        force: Force,
        key: Option<RequestKey>,
    ) -> Result<(), VerbError> {
        let mut came_before = true;
        self.once(key, Secrets::new(), |actor, _| {
            came_before = false;
            actor.lets(who, Deed::Stop(task))?;
            actor.stop(task, force, &who.stop())?;
            let run = actor.state.task(task).and_then(|task| task.last_run());
            let run = run.ok_or(VerbError::NoSuchTask { task })?;
            Ok(Made::Run(RunId { task, n: run.n }))
        })?;
        if came_before && force == Force::Kill {
            self.lets(who, Deed::Stop(task))?;
            for stopping in self.reached(task) {
                self.kill_stopping(stopping);
            }
        }
        Ok(())
    }

    /// The task, and what it asked for, and so on: whoever wants an end wants no more work of it.
    fn reached(&self, task: TaskId) -> Vec<TaskId> {
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
        family
    }

    pub(super) fn stop(&mut self, task: TaskId, force: Force, why: &Stop) -> Result<(), VerbError> {
        let family = self.reached(task);
        let own = self.stop_one(task, force, why.clone());
        let mut any = own.is_ok();
        for child in family.into_iter().skip(1) {
            any |= self.stop_one(child, force, why.clone()).is_ok();
        }
        if any { Ok(()) } else { own }
    }

    fn kill_stopping(&mut self, task: TaskId) {
        let run = self.state.task(task).and_then(|task| task.last_run());
        let run = run.filter(|run| matches!(run.state, RunState::Stopping { .. }));
        if let Some(n) = run.map(|run| run.n) {
            self.tell_to_stop(RunId { task, n }, Force::Kill);
        }
    }

    pub(super) fn stop_all(&mut self, force: Force) -> Vec<TaskId> {
        let open = self.state.tasks().filter(|task| !task.is_done());
        let open: Vec<TaskId> = open.map(|task| task.id).collect();
        let mut stopped = Vec::new();
        for id in open {
            if self.stop_one(id, force, Stop::ByPerson).is_ok() {
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
            RunState::Stopping { .. } => {
                // Asking again asks for nothing more: only whoever says so kills.
                if force == Force::Kill {
                    self.tell_to_stop(id, force);
                }
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
