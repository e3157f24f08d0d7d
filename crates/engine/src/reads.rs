//! What readers ask of the whole: a page of tasks, how the pools do. Pure looks at the fold.
//! Must not touch a disk: the actor stands still while one of these is answered.

use std::collections::BTreeMap;

use dispatch_core::{
    Millis,
    gate::Budget,
    id::{ModelName, PoolName, Seq, TaskId},
    naming,
    run::RunState,
    schedule::{Pause, View},
    state::{State, Task},
};

use crate::view::TaskView;

/// Which tasks.
#[derive(Clone, Debug)]
pub struct Listing {
    /// In one of these states, by the word; empty: in any.
    pub states: Vec<String>,
    /// Of this repository: a path or URL, as the task has it.
    pub repo: Option<String>,
    /// Asked for by this task.
    pub parent: Option<TaskId>,
    /// This one, and all that was asked for below it.
    pub family: Option<TaskId>,
    /// Whose id begins so.
    pub prefix: Option<String>,
    /// Whose workspace has this name.
    pub workspace: Option<String>,
    pub order: Order,
    /// Behind this one in that order; of one that is not there, none are.
    pub after: Option<TaskId>,
    pub limit: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    OldestFirst,
    NewestFirst,
}

impl Listing {
    fn takes(&self, state: &State, task: &Task) -> bool {
        (self.states.is_empty() || self.states.iter().any(|word| word == state_of(task)))
            && self
                .repo
                .as_ref()
                .is_none_or(|repo| *repo == task.spec.repo)
            && self
                .parent
                .is_none_or(|parent| task.spec.parent == Some(parent))
            && self
                .prefix
                .as_ref()
                .is_none_or(|prefix| task.id.to_string().starts_with(prefix))
            && self
                .workspace
                .as_ref()
                .is_none_or(|name| naming::workspace_name(&task.spec, &task.short) == *name)
            && self
                .family
                .is_none_or(|own| task.id == own || state.is_below(task.id, own))
    }
}

/// A page of tasks, all true at `seq`.
#[derive(Clone, Debug)]
pub struct Listed {
    pub seq: Seq,
    pub tasks: Vec<TaskView>,
    /// The last one of a page that others follow.
    pub next: Option<TaskId>,
}

/// How the whole does, true at `seq`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    pub seq: Seq,
    pub frozen: bool,
    /// How many tasks are in which state; those that were put away are `removed`.
    pub states: BTreeMap<&'static str, usize>,
    pub pools: Vec<PoolView>,
}

/// A pool: its limits, and what it has had since its last reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolView {
    pub name: PoolName,
    pub slots: usize,
    pub held: usize,
    /// Models with slots of their own: how many, and how many are held.
    pub models: Vec<(ModelName, usize, usize)>,
    pub waiting: usize,
    pub frozen: bool,
    pub pause: Option<Pause>,
    pub starts: u64,
    /// 0: no limit.
    pub starts_max: u64,
    pub spent: Budget,
    pub budget: Budget,
    pub resets_at: Millis,
}

/// The word of a task that waits for what it asked for.
pub const PARKED: &str = "parked";

/// The word that a task is listed by.
#[must_use]
pub fn state_of(task: &Task) -> &'static str {
    if task.is_parked() {
        return PARKED;
    }
    let last = task.last_run().map(|run| &run.state);
    last.unwrap_or(&RunState::Queued).word()
}

/// The ids of a page, and where the next one begins.
pub(crate) fn page(gate: &View<'_>, listing: &Listing) -> (Vec<TaskId>, Option<TaskId>) {
    match listing.order {
        Order::OldestFirst => page_of(gate.state, gate.state.tasks(), listing),
        Order::NewestFirst => page_of(gate.state, gate.state.tasks().rev(), listing),
    }
}

fn page_of<'a>(
    state: &State,
    mut found: impl Iterator<Item = &'a Task>,
    listing: &Listing,
) -> (Vec<TaskId>, Option<TaskId>) {
    if let Some(after) = listing.after {
        // Steps over it, too.
        found.any(|task| task.id == after);
    }
    let mut found = found
        .filter(|task| listing.takes(state, task))
        .map(|task| task.id);
    let page: Vec<TaskId> = found.by_ref().take(listing.limit).collect();
    let next = found.next().and(page.last().copied());
    (page, next)
}

pub(crate) fn overview(gate: &View<'_>) -> Overview {
    let state = gate.state;
    let mut states = BTreeMap::new();
    for task in state.tasks() {
        let word = if task.removed {
            "removed"
        } else {
            state_of(task)
        };
        *states.entry(word).or_default() += 1;
    }
    let mut waiting: BTreeMap<&PoolName, usize> = BTreeMap::new();
    for run in state.queue() {
        if let Some(task) = state.task(run.task) {
            *waiting.entry(&task.spec.pool).or_default() += 1;
        }
    }
    let pools = gate.pools.iter().map(|(name, pool)| {
        let ledger = state.pool(name);
        let reset = pool.reset_utc.unwrap_or(gate.gate.reset_utc);
        let from = reset.before(gate.now);
        let models = pool.slots.models.iter().map(|(model, slots)| {
            let held = ledger.map_or(0, |ledger| ledger.model_held(model));
            (model.clone(), *slots, held)
        });
        PoolView {
            name: name.clone(),
            slots: pool.slots.total,
            held: state.slots_held(name),
            models: models.collect(),
            waiting: waiting.get(name).copied().unwrap_or_default(),
            frozen: state.frozen() || state.pool_frozen(name),
            pause: gate.pause(name),
            starts: ledger.map_or(0, |ledger| ledger.starts(from, gate.now)),
            starts_max: pool.daily_limit_starts,
            spent: ledger.map_or_else(Budget::default, |ledger| ledger.spent(from, gate.now)),
            budget: pool.day_budget(),
            resets_at: reset.after(gate.now),
        }
    });
    Overview {
        seq: state.seq(),
        frozen: state.frozen(),
        states,
        pools: pools.collect(),
    }
}
