//! What runs have spent, by day, pool and task, as far as their agents told.
//! Must not guess what was not told: that is counted as untold.

use std::collections::BTreeMap;

use crate::{
    Millis,
    gate::Budget,
    id::{KeyName, PoolName},
    keyring::KeyState,
    state::{Run, State},
    update::Usage,
};

const DAY_MS: Millis = 24 * 3600 * 1000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub runs: u64,
    /// Runs whose agent told nothing: they may have spent, too.
    pub untold: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cache_read_tokens: u64,
    pub cache_write_tokens: u64,
    pub spent: Budget,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spending {
    /// By the start of a day in UTC. A run counts on the day of its end.
    pub days: BTreeMap<Millis, Sum>,
    pub pools: BTreeMap<PoolName, Sum>,
    /// By the shortest prefix that names a task, the oldest first.
    pub tasks: Vec<(String, Sum)>,
    /// What is left at providers, and which keys are out, as far as agents told.
    pub keys: BTreeMap<KeyName, KeyState>,
}

impl Sum {
    fn add(&mut self, usage: Option<&Usage>) {
        self.runs += 1;
        let Some(usage) = usage else {
            self.untold += 1;
            return;
        };
        for (sum, told) in [
            (&mut self.input_tokens, usage.input_tokens),
            (&mut self.output_tokens, usage.output_tokens),
            (&mut self.cache_read_tokens, usage.cache_read_tokens),
            (&mut self.cache_write_tokens, usage.cache_write_tokens),
        ] {
            *sum = sum.saturating_add(told.unwrap_or(0));
        }
        self.spent = self.spent.plus(Budget::of(usage));
    }
}

/// When it ended, of a run that began: one that never started has spent nothing.
fn ended(run: &Run) -> Option<Millis> {
    run.started_at.and(run.ended_at)
}

impl Spending {
    #[must_use]
    pub fn of(state: &State) -> Self {
        let keys = state.keyring().keys();
        let keys = keys.map(|(key, state)| (key.clone(), state.clone()));
        let mut all = Self {
            keys: keys.collect(),
            ..Self::default()
        };
        for task in state.tasks() {
            let mut sum = Sum::default();
            for run in &task.runs {
                let Some(at) = ended(run) else {
                    continue;
                };
                let usage = run.usage.as_ref();
                sum.add(usage);
                all.days.entry(at / DAY_MS * DAY_MS).or_default().add(usage);
                let pool = all.pools.entry(task.spec.pool.clone()).or_default();
                pool.add(usage);
            }
            if sum.runs > 0 {
                all.tasks.push((state.short(task.id), sum));
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_exact_and_what_was_not_told_is_counted() {
        let told = |cost_usd, tokens| Usage {
            cost_usd: Some(cost_usd),
            input_tokens: Some(tokens),
            ..Usage::default()
        };
        let mut sum = Sum::default();
        sum.add(Some(&told(0.1, 5)));
        sum.add(Some(&told(0.2, u64::MAX)));
        sum.add(None);
        assert_eq!((sum.runs, sum.untold), (3, 1));
        assert_eq!((sum.spent.usd.0, sum.input_tokens), (300_000, u64::MAX));
    }
}
