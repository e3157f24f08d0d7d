//! What one pool has had: who waits in it and in which order, who holds a slot, when runs started, how
//! they ended, what they spent. Part of the fold: `State::apply` alone changes it, so a restart
//! changes nothing. Must not know a setting: it holds facts, and `schedule` compares them with limits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    Millis,
    gate::{Budget, FAIL_RUNS_MAX},
    id::{ModelName, RunId, Seq},
    outcome::{Failure, Outcome},
    task::{Priority, TaskSpec},
};

/// What a step of priority is worth: so many turns of a repository. A run of a lower priority comes up
/// after at most that many, so none waits for ever.
pub const PRIORITY_TURNS: i64 = 32;
/// Minutes that are remembered: a day, and a little for resets that are set anew.
const MINUTES_KEPT: u64 = 25 * 60;
/// Turns of repositories that do not wait are forgotten when there are more.
const TURNS_KEPT: usize = 1024;
const MINUTE_MS: u64 = 60_000;

/// Place in the order of a pool: the turn, then who was queued first.
pub type Turn = (i64, Seq, RunId);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    starts: u64,
    spent: Budget,
}

/// A run that holds a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Live {
    admitted_seq: Seq,
    admitted_at: Millis,
    model: Option<ModelName>,
}

/// A provider said "not now".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limited {
    pub at: Millis,
    pub retry_at: Option<Millis>,
    /// How often in a row.
    pub count: u32,
    /// For the jitter.
    pub run: RunId,
    seq: Seq,
}

/// One of the failures since the last end that was none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    pub at: Millis,
    /// From its start.
    pub lasted_ms: u64,
}

/// The first run since a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub run: RunId,
    pub at: Millis,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    queues: BTreeMap<Option<ModelName>, BTreeSet<Turn>>,
    waiting: BTreeMap<RunId, (Turn, i64)>,
    /// The turn that was served last.
    turn: i64,
    turns: BTreeMap<(String, Priority), i64>,
    live: BTreeMap<RunId, Live>,
    models: BTreeMap<ModelName, usize>,
    last_start: Option<Millis>,
    minutes: BTreeMap<u64, Tally>,
    limited: Option<Limited>,
    failed: VecDeque<Failed>,
    probe: Option<Probe>,
}

impl Ledger {
    /// Runs that could start, by model, each in order.
    pub fn queues(&self) -> impl Iterator<Item = (Option<&ModelName>, &BTreeSet<Turn>)> {
        self.queues
            .iter()
            .map(|(model, turns)| (model.as_ref(), turns))
    }

    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// How many of the pool go before it, and one for itself.
    #[must_use]
    pub fn place(&self, run: RunId) -> Option<usize> {
        let (turn, _) = self.waiting.get(&run)?;
        let before = |turns: &BTreeSet<Turn>| turns.range(..turn).count();
        Some(1 + self.queues.values().map(before).sum::<usize>())
    }

    /// The places of all of them, at once.
    #[must_use]
    pub fn places(&self) -> BTreeMap<RunId, usize> {
        let mut turns: Vec<&Turn> = self.queues.values().flatten().collect();
        turns.sort_unstable();
        let place = |(index, turn): (usize, &&Turn)| (turn.2, index + 1);
        turns.iter().enumerate().map(place).collect()
    }

    #[must_use]
    pub fn slots_held(&self) -> usize {
        self.live.len()
    }

    #[must_use]
    pub fn model_held(&self, model: &ModelName) -> usize {
        self.models.get(model).copied().unwrap_or(0)
    }

    #[must_use]
    pub fn last_start(&self) -> Option<Millis> {
        self.last_start
    }

    #[must_use]
    pub fn limited(&self) -> Option<&Limited> {
        self.limited.as_ref()
    }

    #[must_use]
    pub fn probe(&self) -> Option<Probe> {
        self.probe
    }

    /// The newest first.
    pub fn failed(&self) -> impl Iterator<Item = Failed> {
        self.failed.iter().rev().copied()
    }

    /// Starts in whole minutes from `from` to `now`.
    #[must_use]
    pub fn starts(&self, from: Millis, now: Millis) -> u64 {
        self.sum(from, now).starts
    }

    #[must_use]
    pub fn spent(&self, from: Millis, now: Millis) -> Budget {
        self.sum(from, now).spent
    }

    fn sum(&self, from: Millis, now: Millis) -> Tally {
        let (from, to) = (from / MINUTE_MS, now / MINUTE_MS);
        let mut sum = Tally::default();
        if from > to {
            return sum;
        }
        for tally in self.minutes.range(from..=to).map(|(_, tally)| tally) {
            sum.starts = sum.starts.saturating_add(tally.starts);
            sum.spent = sum.spent.plus(tally.spent);
        }
        sum
    }

    fn minute(&mut self, at: Millis) -> &mut Tally {
        let minute = at / MINUTE_MS;
        let kept = minute.saturating_sub(MINUTES_KEPT)..=minute.saturating_add(MINUTES_KEPT);
        if !self.minutes.contains_key(&minute) {
            self.minutes.retain(|minute, _| kept.contains(minute));
        }
        self.minutes.entry(minute).or_default()
    }

    /// Gives a run its turn. Repositories take turns, so each of its runs has a later one; of the
    /// same turn the oldest is first.
    pub(crate) fn queued(&mut self, seq: Seq, run: RunId, spec: &TaskSpec) {
        let priority = spec.terms.priority;
        let last = self
            .turns
            .entry((spec.repo.clone(), priority))
            .or_insert(i64::MIN);
        let base = (*last).max(self.turn).saturating_add(1);
        *last = base;
        if self.turns.len() > TURNS_KEPT.max(2 * self.waiting.len()) {
            let served = self.turn;
            self.turns.retain(|_, turn| *turn > served);
        }
        let turn = base.saturating_sub(priority.steps().saturating_mul(PRIORITY_TURNS));
        let turn = (turn, seq, run);
        self.waiting.insert(run, (turn, base));
        self.queues
            .entry(spec.terms.model.clone())
            .or_default()
            .insert(turn);
    }

    /// It waits no longer, whatever became of it.
    fn leave(&mut self, run: RunId, model: &Option<ModelName>) -> Option<i64> {
        let (turn, base) = self.waiting.remove(&run)?;
        if let Some(turns) = self.queues.get_mut(model) {
            turns.remove(&turn);
            if turns.is_empty() {
                self.queues.remove(model);
            }
        }
        Some(base)
    }

    /// A run that waits asks for another model, and keeps its turn.
    pub(crate) fn tuned(
        &mut self,
        run: RunId,
        before: &Option<ModelName>,
        now: &Option<ModelName>,
    ) {
        let Some((turn, base)) = self.waiting.get(&run).copied() else {
            return;
        };
        self.leave(run, before);
        self.waiting.insert(run, (turn, base));
        self.queues.entry(now.clone()).or_default().insert(turn);
    }

    pub(crate) fn withdrawn(&mut self, run: RunId, spec: &TaskSpec) {
        self.leave(run, &spec.terms.model);
    }

    pub(crate) fn admitted(&mut self, seq: Seq, at: Millis, run: RunId, spec: &TaskSpec) {
        let model = spec.terms.model.clone();
        if let Some(base) = self.leave(run, &model) {
            self.turn = self.turn.max(base);
        }
        if let Some(model) = &model {
            *self.models.entry(model.clone()).or_default() += 1;
        }
        let live = Live {
            admitted_seq: seq,
            admitted_at: at,
            model,
        };
        self.live.insert(run, live);
        self.last_start = Some(at);
        let tally = self.minute(at);
        tally.starts = tally.starts.saturating_add(1);
        let troubled = self.limited.is_some() || !self.failed.is_empty();
        if troubled && self.probe.is_none() {
            self.probe = Some(Probe { run, at });
        }
    }

    pub(crate) fn spent_by(&mut self, at: Millis, spent: Budget) {
        let tally = self.minute(at);
        tally.spent = tally.spent.plus(spent);
    }

    /// A run that held a slot has ended; with `of_its_keys` the limit was one of theirs, and the pool's
    /// other runs may have others.
    pub(crate) fn ended(
        &mut self,
        seq: Seq,
        at: Millis,
        run: RunId,
        started_at: Option<Millis>,
        (outcome, of_its_keys): (&Outcome, bool),
    ) {
        let Some(live) = self.live.remove(&run) else {
            return;
        };
        if let Some(model) = &live.model
            && let Some(count) = self.models.get_mut(model)
        {
            *count -= 1;
            if *count == 0 {
                self.models.remove(model);
            }
        }
        if self.probe.is_some_and(|probe| probe.run == run) {
            self.probe = None;
        }
        match outcome {
            Outcome::Completed { .. } | Outcome::Blocked { .. } => {
                self.failed.clear();
                self.answered(&live);
            }
            Outcome::Failed(Failure::RateLimited { .. }) if of_its_keys => {}
            Outcome::Failed(Failure::RateLimited { retry_at, .. }) => {
                self.refused(seq, at, run, &live, *retry_at);
            }
            // It says something about the repository or another task, and nothing about the pool.
            Outcome::Failed(Failure::Prepare { .. } | Failure::Dependency { .. }) => {}
            Outcome::Failed(failure) => {
                if failure.model_answered() {
                    self.answered(&live);
                }
                let begun = started_at.unwrap_or(live.admitted_at);
                self.failed.push_back(Failed {
                    at,
                    lasted_ms: at.saturating_sub(begun),
                });
                if self.failed.len() > FAIL_RUNS_MAX {
                    self.failed.pop_front();
                }
                self.probe = None;
            }
            Outcome::Stopped(_) | Outcome::Lost => {}
        }
    }

    /// The provider worked for a run that began after it had refused: it does again.
    fn answered(&mut self, live: &Live) {
        let after = |limited: &Limited| live.admitted_seq > limited.seq;
        if self.limited.as_ref().is_some_and(after) {
            self.limited = None;
        }
    }

    /// Runs that were at work when the first was refused are refused with it: they count once.
    fn refused(&mut self, seq: Seq, at: Millis, run: RunId, live: &Live, retry_at: Option<Millis>) {
        match &mut self.limited {
            Some(limited) if live.admitted_seq < limited.seq => {
                limited.retry_at = limited.retry_at.max(retry_at);
            }
            before => {
                let count = before.as_ref().map_or(0, |limited| limited.count);
                *before = Some(Limited {
                    at,
                    retry_at,
                    count: count.saturating_add(1),
                    run,
                    seq,
                });
                self.probe = None;
            }
        }
    }

    /// What a recount of states must find here.
    pub(crate) fn holds(
        &self,
        waiting: &BTreeSet<RunId>,
        live: &BTreeMap<RunId, Option<ModelName>>,
    ) -> bool {
        let queued: BTreeSet<RunId> = self.queues.values().flatten().map(|turn| turn.2).collect();
        let mut models: BTreeMap<&ModelName, usize> = BTreeMap::new();
        for model in live.values().flatten() {
            *models.entry(model).or_default() += 1;
        }
        queued == *waiting
            && self.waiting.keys().eq(waiting)
            && self.live.keys().eq(live.keys())
            && self.models.iter().map(|(m, n)| (m, *n)).eq(models)
    }
}
