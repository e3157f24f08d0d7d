//! What can be asked of the fold.
//! Must not change it.

use super::{State, of_run::Run, of_task::Task};
use crate::{
    event::Scope,
    id::{PoolName, RunId, Seq, TaskId},
    keyring::Keyring,
    keys::Keys,
    ledger::Ledger,
    letter::Letterbox,
    message::Chain,
    naming,
    run::RunState,
    task::{self, TaskSpec},
};

impl State {
    /// What is known of the keys of models.
    #[must_use]
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// What requests that may come again have made.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The last event applied or stepped over.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }

    #[must_use]
    pub fn frozen(&self) -> bool {
        self.frozen
    }

    #[must_use]
    pub fn pool_frozen(&self, pool: &PoolName) -> bool {
        self.frozen_pools.contains(pool)
    }

    #[must_use]
    pub fn repo_frozen(&self, repo: &str) -> bool {
        self.frozen_repos.contains(repo)
    }

    #[must_use]
    pub fn is_frozen(&self, scope: &Scope) -> bool {
        match scope {
            Scope::All => self.frozen,
            Scope::Pool(pool) => self.pool_frozen(pool),
            Scope::Repo(repo) => self.repo_frozen(repo),
        }
    }

    #[must_use]
    pub fn pool(&self, pool: &PoolName) -> Option<&Ledger> {
        self.pools.get(pool)
    }

    /// Every pool that has had a run.
    pub fn pools(&self) -> impl Iterator<Item = (&PoolName, &Ledger)> {
        self.pools.iter()
    }

    /// The tasks that it waits for and that have not completed.
    pub fn unmet<'a>(&'a self, task: &'a Task) -> impl Iterator<Item = TaskId> + 'a {
        let met = |id: &TaskId| self.tasks.get(id).is_some_and(Task::has_completed);
        task.spec
            .terms
            .after
            .iter()
            .copied()
            .filter(move |id| !met(id))
    }

    /// Queued runs that wait for a task which will not complete, and that task.
    pub fn hopeless(&self) -> impl Iterator<Item = (RunId, TaskId)> + '_ {
        let waiting = |id: &TaskId| self.waited_for.get(id).map(|runs| (*id, runs));
        self.hopeless
            .iter()
            .filter_map(waiting)
            .flat_map(|(id, runs)| runs.iter().map(move |run| (*run, id)))
    }

    #[must_use]
    pub fn task(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(&id)
    }

    #[must_use]
    pub fn run(&self, id: RunId) -> Option<&Run> {
        self.tasks
            .get(&id.task)?
            .runs
            .get(usize::try_from(id.n).ok()?.checked_sub(1)?)
    }

    /// The letters of a workspace, if there were any.
    #[must_use]
    pub fn letterbox(&self, workspace: &str) -> Option<&Letterbox> {
        self.letterboxes.get(workspace)
    }

    /// The newest task whose workspace has that name.
    #[must_use]
    pub fn at_workspace(&self, name: &str) -> Option<&Task> {
        let has = |task: &&Task| naming::workspace_name(&task.spec, &task.short) == name;
        self.tasks().rev().find(has)
    }

    /// Messages of agents that it has led to.
    #[must_use]
    pub fn chain_messages(&self, chain: Chain) -> u32 {
        self.chains.get(&chain).copied().unwrap_or(0)
    }

    /// The chain that a task's agent works in.
    #[must_use]
    pub fn chain_of(&self, task: TaskId) -> Chain {
        let run = self.tasks.get(&task).and_then(Task::last_run);
        run.map_or(Chain::default(), |run| run.chain)
    }

    /// Whether agents of `above` asked for it, or those of tasks that they asked for.
    #[must_use]
    pub fn is_below(&self, id: TaskId, above: TaskId) -> bool {
        let asker = |id: &TaskId| self.tasks.get(id).and_then(Task::asker);
        std::iter::successors(asker(&id), asker).any(|asker| asker == above)
    }

    /// How many tasks were asked for below it, and how many of them are not done.
    #[must_use]
    pub fn below(&self, id: TaskId) -> (u32, u32) {
        let (mut all, mut open) = (0_u32, 0_u32);
        let children = self.tasks.get(&id).map(|task| &task.family.children);
        for child in children.into_iter().flatten() {
            let (below, open_below) = self.below(child.task);
            all = all.saturating_add(1).saturating_add(below);
            let own = u32::from(!child.done);
            open = open.saturating_add(own).saturating_add(open_below);
        }
        (all, open)
    }

    /// Oldest first.
    pub fn tasks(&self) -> impl DoubleEndedIterator<Item = &Task> {
        self.created.iter().filter_map(|id| self.tasks.get(id))
    }

    /// Runs that wait, oldest first.
    pub fn queue(&self) -> impl ExactSizeIterator<Item = RunId> {
        self.queue.iter().map(|(_, run)| *run)
    }

    #[must_use]
    pub fn slots_held(&self, pool: &PoolName) -> usize {
        self.pools.get(pool).map_or(0, Ledger::slots_held)
    }

    /// Runs that hold a slot.
    pub fn live(&self) -> impl ExactSizeIterator<Item = RunId> {
        self.open.iter().copied()
    }

    /// Tasks whose id starts with `prefix`, oldest first.
    #[must_use]
    pub fn find(&self, prefix: &str) -> Vec<&Task> {
        self.tasks()
            .filter(|task| task.id.to_string().starts_with(prefix))
            .collect()
    }

    /// Tasks that hold the workspace a task like this would work in, oldest first.
    pub fn holders<'a>(&'a self, spec: &'a TaskSpec) -> impl Iterator<Item = &'a Task> {
        let same = move |task: &&Task| task.holds_workspace() && task.spec.same_workspace(spec);
        // Most tasks have a workspace of their own, and need not look at the others.
        let shared = spec.leaf().map(|_| self.tasks());
        shared.into_iter().flatten().filter(same)
    }

    /// The older task that a task which was queued behind it, or supersedes it, still waits for.
    #[must_use]
    pub fn waits_behind(&self, id: TaskId) -> Option<&Task> {
        let task = self.tasks.get(&id)?;
        task.spec.turn.behind?;
        // Its first run waits; whoever has begun has the workspace.
        let waits = matches!(&task.runs[..], [run] if run.state == RunState::Queued);
        let mut older = self
            .holders(&task.spec)
            .take_while(|other| other.id != id)
            .filter(|other| match task.spec.turn.taken {
                task::Taken::Supersede => other.is_open(),
                task::Taken::Queue | task::Taken::Refuse => true,
            });
        older.next().filter(|_| waits)
    }

    /// The newer task that has this one's workspace now.
    #[must_use]
    pub fn taken_over(&self, id: TaskId) -> Option<TaskId> {
        let task = self.tasks.get(&id)?;
        let mut newer = self.holders(&task.spec).filter(|other| {
            let mut order = self
                .created
                .iter()
                .filter(|one| [id, other.id].contains(one));
            other.id != id && order.next() == Some(&id) && self.waits_behind(other.id).is_none()
        });
        newer.next().map(|other| other.id)
    }

    /// The shortest prefix of `id` that no other task has; at least two digits.
    #[must_use]
    pub fn short(&self, id: TaskId) -> String {
        let text = id.to_string();
        let shared = |other: &TaskId| {
            let other = other.to_string();
            text.bytes()
                .zip(other.bytes())
                .take_while(|(a, b)| a == b)
                .count()
        };
        // Neighbours in sorted order share the longest prefixes.
        let before = self
            .tasks
            .range(..id)
            .next_back()
            .map_or(0, |(other, _)| shared(other));
        let next = self.tasks.range(id..).find(|(other, _)| **other != id);
        let after = next.map_or(0, |(other, _)| shared(other));
        let length = (before.max(after) + 1).clamp(2, TaskId::HEX_DIGITS);
        text[..length].to_owned()
    }
}
