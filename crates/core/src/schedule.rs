//! Who may start now, and why the others wait. A pure function of the state, the pools and what the
//! engine cannot start yet; a restart changes nothing.
//! Must not count by itself what the state counts, and must not sleep: it says, the engine does.

use std::collections::BTreeMap;

use crate::{
    id::{PoolName, RunId},
    state::State,
};

/// `[pools.NAME]`, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub slots: usize,
}

pub type Pools = BTreeMap<PoolName, Pool>;

/// Runs that lack something only a person can give, and what.
pub type Held = BTreeMap<RunId, String>;

/// Runs to admit, oldest first.
#[must_use]
pub fn decide(state: &State, pools: &Pools, held: &Held) -> Vec<RunId> {
    if state.frozen() || state.queue().len() == 0 {
        return Vec::new();
    }
    let mut free: BTreeMap<&PoolName, usize> = pools
        .iter()
        .map(|(name, pool)| (name, pool.slots.saturating_sub(state.slots_held(name))))
        .filter(|(_, free)| *free > 0)
        .collect();
    let mut admitted = Vec::new();
    for id in state.queue() {
        if free.is_empty() {
            break;
        }
        if held.contains_key(&id) {
            continue;
        }
        let Some(task) = state.task(id.task) else {
            continue;
        };
        let Some(slots) = free.get_mut(&task.spec.pool) else {
            continue;
        };
        *slots -= 1;
        if *slots == 0 {
            free.remove(&task.spec.pool);
        }
        admitted.push(id);
    }
    admitted
}

/// Why a queued run waits, for a person to read; `None` when it is about to start.
#[must_use]
pub fn waits_for(state: &State, pools: &Pools, held: &Held, id: RunId) -> Option<String> {
    if state.frozen() {
        return Some("frozen by you".into());
    }
    if let Some(what) = held.get(&id) {
        return Some(what.clone());
    }
    let pool = &state.task(id.task)?.spec.pool;
    let Some(limits) = pools.get(pool) else {
        return Some(format!("pool {pool} is not configured any more"));
    };
    let busy = state.slots_held(pool);
    (busy >= limits.slots).then(|| format!("pool {pool}: {busy} of {} busy", limits.slots))
}
