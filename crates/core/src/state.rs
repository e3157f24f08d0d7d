//! State = fold of the log's life events. `apply` is the only thing that changes it (I3).
//! Must not keep a count that is not derived here: slots and queue are indexes that `apply` alone
//! maintains, and a test holds them equal to a recount.

mod apply_run;
mod apply_task;
mod error;
mod looks;
mod of_run;
mod of_task;
mod turns;

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    event::{Event, Kind, Scope, Subject},
    id::{PoolName, RunId, Seq, TaskId},
    keyring::Keyring,
    keys::Keys,
    ledger::Ledger,
    letter::Letterbox,
    message::Chain,
};

pub use self::{
    error::ApplyError,
    of_run::{Check, Run},
    of_task::{Snapshot, Task, Workspace},
};

/// The fold. Cheap to ask, changed by [`State::apply`] only.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    seq: Seq,
    frozen: bool,
    frozen_pools: BTreeSet<PoolName>,
    frozen_repos: BTreeSet<String>,
    tasks: BTreeMap<TaskId, Task>,
    created: Vec<TaskId>,
    queue: BTreeSet<(Seq, RunId)>,
    open: BTreeSet<RunId>,
    pools: BTreeMap<PoolName, Ledger>,
    /// Queued runs that wait for other tasks, and those that wait for each of them.
    parked: BTreeSet<RunId>,
    waited_for: BTreeMap<TaskId, BTreeSet<RunId>>,
    /// Those of them that will not complete any more.
    hopeless: BTreeSet<TaskId>,
    keys: Keys,
    keyring: Keyring,
    /// By the names of workspaces, which tasks that follow each other share.
    letterboxes: BTreeMap<String, Letterbox>,
    /// Messages of agents that each chain has led to; of the newest chains.
    chains: BTreeMap<Chain, u32>,
}

/// Chains of which is remembered how much they have led to. An older one is as good as over.
const CHAINS_MAX: usize = 10_000;

impl State {
    /// Says that events up to `seq` which are not folded have been passed.
    pub fn step_over(&mut self, seq: Seq) {
        self.seq = self.seq.max(seq);
    }

    /// Applies one life event; update events only move the position.
    ///
    /// # Errors
    /// [`ApplyError`]; the state is then unchanged.
    pub fn apply(&mut self, event: &Event) -> Result<(), ApplyError> {
        let (seq, word) = (event.seq, event.kind.word());
        if seq <= self.seq {
            return Err(ApplyError::OutOfOrder {
                seq,
                last: self.seq,
            });
        }
        match event.subject {
            Subject::Engine => match &event.kind {
                Kind::FrozenSet { frozen, scope } => self.freeze(*frozen, scope),
                Kind::EngineStarted { .. }
                | Kind::PoolPaused { .. }
                | Kind::BudgetWarned { .. }
                | Kind::Noted { .. } => {}
                _ => {
                    return Err(ApplyError::WrongSubject {
                        seq,
                        word,
                        subject: event.subject,
                    });
                }
            },
            Subject::Task(id) => self.apply_task(event, id)?,
            Subject::Run(id) => self.apply_run(event, id)?,
        }
        self.seq = seq;
        Ok(())
    }

    fn freeze(&mut self, frozen: bool, scope: &Scope) {
        match (scope, frozen) {
            (Scope::All, _) => self.frozen = frozen,
            (Scope::Pool(pool), true) => {
                self.frozen_pools.insert(pool.clone());
            }
            (Scope::Pool(pool), false) => {
                self.frozen_pools.remove(pool);
            }
            (Scope::Repo(repo), true) => {
                self.frozen_repos.insert(repo.clone());
            }
            (Scope::Repo(repo), false) => {
                self.frozen_repos.remove(repo);
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
