//! Who waits for what: the queue, slots, and runs that wait for other tasks; indexes that follow
//! from the states of runs.
//! Must not count anything that a recount would not find.

use std::collections::{BTreeMap, BTreeSet};

use super::{State, of_task::Task};
use crate::{
    event::Event,
    id::{PoolName, RunId, Seq, TaskId},
    ledger::Ledger,
    outcome::Outcome,
    run::RunState,
};

impl State {
    /// A run that has just been queued waits for its turn, or for other tasks first.
    pub(super) fn enqueue(&mut self, seq: Seq, id: RunId) {
        self.queue.insert((seq, id));
        self.hopeless.remove(&id.task);
        let Some(task) = self.tasks.get(&id.task) else {
            return;
        };
        let unmet: Vec<TaskId> = self.unmet(task).collect();
        if unmet.is_empty() {
            let ledger = self.pools.entry(task.spec.pool.clone()).or_default();
            ledger.queued(seq, id, &task.spec);
            return;
        }
        self.parked.insert(id);
        for other in unmet {
            self.waited_for.entry(other).or_default().insert(id);
            self.look_at_hope(other);
        }
    }

    pub(super) fn look_at_hope(&mut self, id: TaskId) {
        let hopeless = self.tasks.get(&id).is_none_or(Task::is_hopeless);
        if hopeless && self.waited_for.contains_key(&id) {
            self.hopeless.insert(id);
        } else {
            self.hopeless.remove(&id);
        }
    }

    /// A queued run waits no longer for other tasks.
    fn unpark(&mut self, id: RunId) -> bool {
        if !self.parked.remove(&id) {
            return false;
        }
        let after = self.tasks.get(&id.task).map(|t| &t.spec.terms.after);
        for other in after.into_iter().flatten() {
            if let Some(runs) = self.waited_for.get_mut(other) {
                runs.remove(&id);
                if runs.is_empty() {
                    self.waited_for.remove(other);
                    self.hopeless.remove(other);
                }
            }
        }
        true
    }

    /// Runs that waited for this task only get their turn now.
    fn let_go(&mut self, seq: Seq, completed: TaskId) {
        let runs = self.waited_for.get(&completed).cloned();
        for run in runs.into_iter().flatten() {
            let Some(task) = self.tasks.get(&run.task) else {
                continue;
            };
            if self.unmet(task).next().is_some() {
                continue;
            }
            let (pool, spec) = (task.spec.pool.clone(), task.spec.clone());
            if self.unpark(run) {
                self.pools.entry(pool).or_default().queued(seq, run, &spec);
            }
        }
        self.waited_for.remove(&completed);
    }

    /// What a step of a run's life means for its pool and for those that wait for it.
    pub(super) fn account(&mut self, event: &Event, id: RunId, before: &RunState) {
        let Some(task) = self.tasks.get(&id.task) else {
            return;
        };
        let Some(run) = task.runs.get((id.n as usize).wrapping_sub(1)) else {
            return;
        };
        let (seq, at) = (event.seq, event.at);
        let (started_at, queued_seq) = (run.started_at, run.queued_seq);
        let (held, holds) = (before.holds_slot(), run.state.holds_slot());
        let ledger = self.pools.entry(task.spec.pool.clone()).or_default();
        match (&run.state, held, holds) {
            (_, false, true) => {
                ledger.admitted(seq, at, id, &task.spec);
                self.keyring.begins(id, &task.spec.terms.chain, at);
                self.open.insert(id);
            }
            (RunState::Finished(outcome), true, false) => {
                let of_its_keys = self.keyring.explains(outcome, &task.spec.terms.chain);
                ledger.ended(seq, at, id, started_at, (outcome, of_its_keys));
                self.keyring.ended(id);
                self.open.remove(&id);
            }
            (RunState::Finished(_), false, false) => ledger.withdrawn(id, &task.spec),
            (_, true, _) | (_, false, false) => {}
        }
        if *before == RunState::Queued {
            self.queue.remove(&(queued_seq, id));
            self.unpark(id);
        }
        self.look_at_end(seq, id.task);
        self.look_at_hope(id.task);
    }

    /// A task that has ended well and waits for nothing lets go of those that wait for it.
    pub(super) fn look_at_end(&mut self, seq: Seq, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        let well = matches!(task.outcome(), Some(Outcome::Completed { .. }));
        if well && task.is_done() {
            task.completed = true;
            self.let_go(seq, id);
        }
    }

    /// What the indexes must equal; for tests and for a check after a fold.
    #[must_use]
    pub fn indexes_hold(&self) -> bool {
        let (mut queue, mut open) = (BTreeSet::new(), BTreeSet::new());
        let mut parked = BTreeSet::new();
        let mut pools: BTreeMap<&PoolName, (BTreeSet<RunId>, BTreeMap<RunId, _>)> = BTreeMap::new();
        for task in self.tasks.values() {
            let waits = self.unmet(task).next().is_some();
            for run in &task.runs {
                let id = RunId {
                    task: task.id,
                    n: run.n,
                };
                let (waiting, live) = pools.entry(&task.spec.pool).or_default();
                if run.state == RunState::Queued {
                    queue.insert((run.queued_seq, id));
                    if waits {
                        parked.insert(id);
                    } else {
                        waiting.insert(id);
                    }
                }
                if run.state.holds_slot() {
                    open.insert(id);
                    live.insert(id, task.spec.terms.model.clone());
                }
            }
        }
        let empty = Ledger::default();
        let mut ledgers = pools
            .iter()
            .map(|(pool, recount)| (self.pools.get(*pool).unwrap_or(&empty), recount));
        queue == self.queue
            && open == self.open
            && parked == self.parked
            && ledgers.all(|(ledger, (waiting, live))| ledger.holds(waiting, live))
    }
}
