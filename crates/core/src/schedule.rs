//! The gate: who may start now, and why the others wait. A pure function of the state, the settings,
//! the time and what the engine knows of the machine; a restart changes nothing.
//! Must not count by itself what the state counts, and must not sleep: it says when to ask again.

use std::{
    collections::{BTreeMap, btree_set},
    iter::Peekable,
};

use crate::{
    Millis,
    gate::{Gate, Pool},
    id::{PoolName, RunId},
    keyring::Asking,
    ledger::{Ledger, Limited, Turn},
    naming,
    native::KnownKeys,
    outcome::{Again, Failure, Outcome},
    run::{RunCause, RunState},
    state::{State, Task},
};

pub type Pools = BTreeMap<PoolName, Pool>;

/// Runs that lack something only a person can give, or the workspace that an older task has, and what.
pub type Held = BTreeMap<RunId, String>;

/// What the machine has left. `None`: it could not be asked, which holds nothing up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Host {
    pub disk_free_bytes: Option<u64>,
    pub memory_free_bytes: Option<u64>,
    /// The load average of the last minute, in hundredths.
    pub load_percent: Option<u64>,
    pub cores: u64,
}

/// All that a decision looks at.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub state: &'a State,
    pub gate: &'a Gate,
    pub pools: &'a Pools,
    pub disk_free_min_bytes: u64,
    pub held: &'a Held,
    pub host: Host,
    pub now: Millis,
}

/// At most one start of each pool: what follows from it is decided with it in the state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub admit: Vec<RunId>,
    /// Queued runs that will never be able to start.
    pub fail: Vec<(RunId, Failure)>,
    /// Nothing changes by itself before then.
    pub wake_at: Option<Millis>,
}

/// Why a queued run does not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Frozen,
    After,
    /// An older task has the workspace.
    Workspace,
    NeedsYou,
    NoPool,
    Paused,
    Probing,
    Budget,
    Machine,
    DailyLimit,
    Busy,
    Rate,
    Retry,
    /// None of its keys can be asked.
    Keys,
    /// Nothing stands in its way.
    Starting,
}

impl Why {
    /// The word used in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Frozen => "frozen",
            Self::After => "after",
            Self::Workspace => "workspace",
            Self::NeedsYou => "needs_you",
            Self::NoPool => "no_pool",
            Self::Paused => "paused",
            Self::Probing => "probing",
            Self::Budget => "budget",
            Self::Machine => "machine",
            Self::DailyLimit => "daily_limit",
            Self::Busy => "busy",
            Self::Rate => "rate",
            Self::Retry => "retry",
            Self::Keys => "keys",
            Self::Starting => "starting",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub why: Why,
    /// For a person to read, the time included.
    pub text: String,
    pub until: Option<Millis>,
}

impl Waiting {
    fn new(why: Why, text: impl Into<String>) -> Self {
        Self {
            why,
            text: text.into(),
            until: None,
        }
    }

    fn until(why: Why, text: impl Into<String>, until: Millis) -> Self {
        Self {
            until: Some(until),
            ..Self::new(why, text)
        }
    }
}

/// A pause of a pool that follows from how runs ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    pub until: Millis,
    pub reason: String,
}

const SECOND_MS: u64 = 1000;
const DAY_MS: u64 = 24 * 3600 * SECOND_MS;

/// `14:05 UTC`, and with the date where that could be another day.
#[must_use]
pub fn time_text(at: Millis, now: Millis) -> String {
    let minutes = at / 60_000;
    let clock = format!("{:02}:{:02} UTC", minutes / 60 % 24, minutes % 60);
    if at.abs_diff(now) < DAY_MS / 2 {
        return clock;
    }
    let (year, month, day) = civil(at / DAY_MS);
    format!("{year}-{month:02}-{day:02} {clock}")
}

/// Days since 1970 as a date: years are counted from March, so that a leap day is the last of its own.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * day + 2) / 153;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year + u64::from(month <= 2);
    (year, month, day - (153 * from_march + 2) / 5 + 1)
}

/// Spread out, and the same whenever it is asked (FNV-1a of the run's name).
fn jitter_ms(run: RunId, jitter_s: u64) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = run.to_string().bytes().fold(0xcbf2_9ce4_8422_2325, step);
    hash % jitter_s.saturating_mul(SECOND_MS).saturating_add(1)
}

/// Why a run waits for an older task that has its workspace, if it does.
#[must_use]
pub fn behind(state: &State, run: RunId) -> Option<String> {
    let holder = state.waits_behind(run.task)?;
    let name = naming::workspace_name(&holder.spec, &holder.short);
    let word = holder.last_run().map_or("queued", |run| run.state.word());
    let short = state.short(holder.id);
    Some(format!(
        "after {short}, which is {word} and has the workspace {name}"
    ))
}

/// `first` doubled so many times, up to `most`, in milliseconds.
fn doubled_ms(first_s: u64, times: u32, most_s: u64) -> u64 {
    let factor = 1_u64.checked_shl(times.min(63)).unwrap_or(u64::MAX);
    first_s
        .saturating_mul(factor)
        .min(most_s)
        .saturating_mul(SECOND_MS)
}

/// What becomes of a run that ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// It stays as it ended.
    Stays,
    /// A run of the same task is queued with its end.
    Again,
    /// It has been tried often enough, and ends with this instead.
    GivesUp(Failure),
}

/// Ends that are quoted when a task is given up, and how much of each.
const HISTORY_RUNS: usize = 10;
const HISTORY_CHARS: usize = 200;

/// Asked before the end of the task's last run is applied.
#[must_use]
pub fn next_after(task: &Task, outcome: &Outcome, gate: &Gate, runs_max: u32) -> Next {
    let Some(again) = outcome.again().filter(|_| gate.retries_max > 0) else {
        return Next::Stays;
    };
    let tried = task.own_retries();
    let left = task.has_runs_left(runs_max, false);
    let spent = task.budget().reached(task.spent()).is_some();
    match again {
        _ if spent => Next::Stays,
        Again::WhenProviderSays if left => Next::Again,
        Again::AFewTimes if left && tried < gate.retries_max => Next::Again,
        Again::AFewTimes if tried > 0 => Next::GivesUp(Failure::GaveUp {
            runs: tried.saturating_add(1),
            history: history(task, outcome, tried),
        }),
        Again::WhenProviderSays | Again::AFewTimes => Next::Stays,
    }
}

fn history(task: &Task, last: &Outcome, tried: u32) -> String {
    let brief = |n: u32, outcome: &Outcome| {
        let reason: String = outcome.reason().chars().take(HISTORY_CHARS).collect();
        format!("run {n}: {reason}")
    };
    let runs = task.runs.iter().rev();
    let mut ends: Vec<String> = runs
        .take((tried as usize).saturating_add(1).min(HISTORY_RUNS))
        .map(|run| match &run.state {
            RunState::Finished(outcome) => brief(run.n, outcome),
            RunState::Queued
            | RunState::Preparing
            | RunState::Running
            | RunState::Stopping { .. }
            | RunState::Checking => brief(run.n, last),
        })
        .collect();
    ends.reverse();
    ends.join("; ")
}

fn soonest(wake: &mut Option<Millis>, at: Option<Millis>) {
    *wake = match (*wake, at) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, None) | (None, one) => one,
    };
}

impl View<'_> {
    /// What is to be done now.
    #[must_use]
    pub fn decide(&self) -> Decision {
        let mut out = Decision {
            fail: self.hopeless(),
            ..Decision::default()
        };
        if self.state.queue().len() == 0 || self.state.frozen() {
            return out;
        }
        if let Some(waiting) = self.everywhere() {
            out.wake_at = waiting.until;
            return out;
        }
        for (name, ledger) in self.state.pools().filter(|(_, pool)| pool.is_waiting()) {
            let Some(pool) = self.pools.get(name) else {
                continue;
            };
            if self.state.pool_frozen(name) || ledger.slots_held() >= pool.slots.total {
                continue;
            }
            if let Some(waiting) = self.pool_waits(name, pool, ledger) {
                soonest(&mut out.wake_at, waiting.until);
                continue;
            }
            out.admit
                .extend(self.next_of(pool, ledger, &mut out.wake_at));
        }
        out
    }

    /// Why a queued run waits; `None` for one that does not exist or is not queued.
    #[must_use]
    pub fn waits_for(&self, id: RunId) -> Option<Waiting> {
        let task = self.state.task(id.task)?;
        if self.state.run(id)?.state != RunState::Queued {
            return None;
        }
        let waiting = || {
            self.frozen(task)
                .or_else(|| self.after(task))
                .or_else(|| Some(Waiting::new(Why::Workspace, behind(self.state, id)?)))
                .or_else(|| Some(Waiting::new(Why::NeedsYou, self.held.get(&id)?)))
                .or_else(|| self.everywhere())
                .or_else(|| self.in_its_pool(task, id))
        };
        let starting = Waiting::new(Why::Starting, "about to start");
        Some(waiting().unwrap_or(starting))
    }

    /// The pause that a pool is in, whatever else holds it.
    #[must_use]
    pub fn pause(&self, pool: &PoolName) -> Option<Pause> {
        let ledger = self.state.pool(pool)?;
        let limited = ledger.limited().and_then(|limited| self.limited(limited));
        let failing = self.failing(ledger);
        let later = |a: Pause, b: Pause| if b.until > a.until { b } else { a };
        match (limited, failing) {
            (Some(a), Some(b)) => Some(later(a, b)),
            (one, None) | (None, one) => one,
        }
        .filter(|pause| pause.until > self.now)
    }

    fn hopeless(&self) -> Vec<(RunId, Failure)> {
        let mut out = BTreeMap::new();
        for (run, task) in self.state.hopeless() {
            let state = match self.state.task(task) {
                Some(found) if found.removed => "removed",
                Some(found) => found.outcome().map_or("unknown", Outcome::word),
                None => "unknown",
            };
            let state = state.to_owned();
            // It may wait for several of them; one reason is enough.
            out.entry(run)
                .or_insert(Failure::Dependency { task, state });
        }
        out.into_iter().collect()
    }

    fn frozen(&self, task: &Task) -> Option<Waiting> {
        let pool = &task.spec.pool;
        let what = if self.state.frozen() {
            "frozen by you".to_owned()
        } else if self.state.pool_frozen(pool) {
            format!("pool {pool}: frozen by you")
        } else if self.state.repo_frozen(&task.spec.repo) {
            "repository frozen by you".to_owned()
        } else {
            return None;
        };
        Some(Waiting::new(Why::Frozen, what))
    }

    fn after(&self, task: &Task) -> Option<Waiting> {
        let unmet: Vec<String> = self
            .state
            .unmet(task)
            .map(|id| {
                let short = self.state.short(id);
                let task = self.state.task(id);
                if task.is_some_and(Task::is_parked) {
                    return format!("{short} (parked)");
                }
                let state = task.and_then(Task::last_run);
                match state.map(|run| &run.state) {
                    Some(RunState::Finished(Outcome::Blocked { .. })) => {
                        format!("{short}, which asks you something")
                    }
                    Some(state) => format!("{short} ({})", state.word()),
                    None => short,
                }
            })
            .collect();
        let what = || format!("after {}", unmet.join(" and "));
        (!unmet.is_empty()).then(|| Waiting::new(Why::After, what()))
    }

    /// What holds every start.
    fn everywhere(&self) -> Option<Waiting> {
        if let Some(what) = self.pressure() {
            let look = self
                .now
                .saturating_add(self.gate.look_s.saturating_mul(SECOND_MS));
            return Some(Waiting::until(Why::Machine, what, look));
        }
        let budget = self.gate.day_budget();
        if budget.is_none() {
            return None;
        }
        let from = self.gate.reset_utc.before(self.now);
        let pools = self.state.pools();
        let spent = pools.map(|(_, ledger)| ledger.spent(from, self.now));
        let spent = budget.reached(spent.fold(Default::default(), crate::gate::Budget::plus))?;
        let until = self.gate.reset_utc.after(self.now);
        let when = time_text(until, self.now);
        let text = format!("budget of the day is spent ({spent}) until {when}");
        Some(Waiting::until(Why::Budget, text, until))
    }

    fn pressure(&self) -> Option<String> {
        let (gate, host) = (self.gate, &self.host);
        let below = |free: Option<u64>, min: u64| free.filter(|free| *free < min);
        if let Some(free) = below(host.disk_free_bytes, self.disk_free_min_bytes) {
            return Some(format!(
                "the disk of the data directory is full: {free} bytes are free, and \
                 limits.disk_free_min_bytes is {}",
                self.disk_free_min_bytes
            ));
        }
        if let Some(free) = below(host.memory_free_bytes, gate.memory_free_min_bytes) {
            return Some(format!(
                "this machine is short of memory: {free} bytes are free, and \
                 gate.memory_free_min_bytes is {}",
                gate.memory_free_min_bytes
            ));
        }
        let most = gate.load_per_core_max.saturating_mul(host.cores);
        let load = host.load_percent?;
        (most > 0 && load > most.saturating_mul(100)).then(|| {
            format!(
                "this machine is busy: its load is {}, and gate.load_per_core_max is {} for each \
                 of {} cores",
                load / 100,
                gate.load_per_core_max,
                host.cores
            )
        })
    }

    fn in_its_pool(&self, task: &Task, id: RunId) -> Option<Waiting> {
        let name = &task.spec.pool;
        let Some(pool) = self.pools.get(name) else {
            let what = format!("pool {name} is not configured any more");
            return Some(Waiting::new(Why::NoPool, what));
        };
        let ledger = self.state.pool(name)?;
        let (busy, total) = (ledger.slots_held(), pool.slots.total);
        let model = task.spec.terms.model.as_ref();
        let of_model =
            model.and_then(|m| Some((m, ledger.model_held(m), pool.slots.models.get(m)?)));
        // What lasts longest is told first: a free slot is of no use to a pool that is paused.
        self.paused(name)
            .or_else(|| {
                let text = format!("pool {name}: {busy} of {total} busy");
                (busy >= total).then(|| Waiting::new(Why::Busy, text))
            })
            .or_else(|| self.pool_waits(name, pool, ledger))
            .or_else(|| {
                let (model, busy, total) = of_model?;
                let text = format!("pool {name}: {busy} of {total} busy with {model}");
                (busy >= *total).then(|| Waiting::new(Why::Busy, text))
            })
            .or_else(|| self.later(id))
            .or_else(|| self.out_of_keys(id))
    }

    /// A key that is used up holds up those that have no other, and nobody else in the pool.
    fn out_of_keys(&self, run: RunId) -> Option<Waiting> {
        let (until, text) = self.asking(run)?.waits()?;
        Some(Waiting::until(Why::Keys, text, until))
    }

    /// What is known of the keys that a run may ask with.
    #[must_use]
    pub fn known_keys(&self, run: RunId) -> KnownKeys {
        self.asking(run)
            .map(|asking| asking.known())
            .unwrap_or_default()
    }

    fn asking(&self, run: RunId) -> Option<Asking<'_>> {
        let task = self.state.task(run.task)?;
        Some(Asking {
            keyring: self.state.keyring(),
            run,
            chain: &task.spec.terms.chain,
            gate: self.gate,
            now: self.now,
        })
    }

    fn paused(&self, name: &PoolName) -> Option<Waiting> {
        let Pause { until, reason } = self.pause(name)?;
        let when = time_text(until, self.now);
        let text = format!("pool {name}: paused until {when}, {reason}");
        Some(Waiting::until(Why::Paused, text, until))
    }

    /// What holds every start of a pool, its slots aside.
    fn pool_waits(&self, name: &PoolName, pool: &Pool, ledger: &Ledger) -> Option<Waiting> {
        self.paused(name)
            .or_else(|| self.probing(name, ledger))
            .or_else(|| self.over_the_day(name, pool, ledger))
            .or_else(|| {
                let until = self.next_start(pool, ledger)?;
                let when = time_text(until, self.now);
                let text = format!("pool {name}: its rate allows the next start at {when}");
                Some(Waiting::until(Why::Rate, text, until))
            })
    }

    /// Facts of the future come from a clock that was set back since: they hold nothing up.
    fn is_past(&self, at: Millis) -> bool {
        at <= self.now
    }

    fn limited(&self, limited: &Limited) -> Option<Pause> {
        if !self.is_past(limited.at) {
            return None;
        }
        let gate = self.gate;
        let backoff = |times| doubled_ms(gate.backoff_s, times, gate.backoff_max_s);
        let (wait_ms, reason) = match limited.retry_at {
            // Its first word is taken; when it comes again, the pauses grow all the same.
            Some(at) => {
                let grown = match limited.count {
                    0 | 1 => 0,
                    more => backoff(more - 2),
                };
                let wait = at.saturating_sub(limited.at).max(grown);
                (wait, "the provider said so".to_owned())
            }
            None => {
                let times = limited.count.saturating_sub(1);
                let reason = "the provider takes no work now and did not say when";
                (backoff(times), reason.to_owned())
            }
        };
        let wait_ms = wait_ms.min(gate.pause_max_s.saturating_mul(SECOND_MS));
        let until = limited
            .at
            .saturating_add(wait_ms)
            .saturating_add(jitter_ms(limited.run, gate.jitter_s));
        Some(Pause { until, reason })
    }

    fn failing(&self, ledger: &Ledger) -> Option<Pause> {
        let gate = self.gate;
        if !self.fails_in_a_row(ledger) {
            return None;
        }
        let last = ledger
            .failed()
            .next()
            .filter(|last| self.is_past(last.at))?;
        let until = last
            .at
            .saturating_add(gate.fail_pause_s.saturating_mul(SECOND_MS));
        let reason = format!(
            "{} runs in a row failed within {} s of their start",
            gate.fail_runs, gate.fail_within_s
        );
        Some(Pause { until, reason })
    }

    fn fails_in_a_row(&self, ledger: &Ledger) -> bool {
        let gate = self.gate;
        let within_ms = gate.fail_within_s.saturating_mul(SECOND_MS);
        let quick = ledger.failed().take_while(|f| f.lasted_ms < within_ms);
        gate.fail_runs > 0 && quick.take(gate.fail_runs).count() == gate.fail_runs
    }

    /// After a pause one run goes first, and the others see how it fares.
    fn probing(&self, name: &PoolName, ledger: &Ledger) -> Option<Waiting> {
        if ledger.limited().is_none() && !self.fails_in_a_row(ledger) {
            return None;
        }
        let probe = ledger.probe().filter(|probe| self.is_past(probe.at))?;
        let until = probe
            .at
            .saturating_add(self.gate.probe_s.saturating_mul(SECOND_MS));
        if self.is_past(until) {
            return None;
        }
        let short = self.state.short(probe.run.task);
        let when = time_text(until, self.now);
        let text = format!("pool {name}: {short} tries first after a pause, until {when} at most");
        Some(Waiting::until(Why::Probing, text, until))
    }

    fn over_the_day(&self, name: &PoolName, pool: &Pool, ledger: &Ledger) -> Option<Waiting> {
        let budget = pool.day_budget();
        if pool.daily_limit_starts == 0 && budget.is_none() {
            return None;
        }
        let reset = pool.reset_utc.unwrap_or(self.gate.reset_utc);
        let (from, until) = (reset.before(self.now), reset.after(self.now));
        let when = time_text(until, self.now);
        let starts = ledger.starts(from, self.now);
        if pool.daily_limit_starts > 0 && starts >= pool.daily_limit_starts {
            let max = pool.daily_limit_starts;
            let text = format!("pool {name}: {starts} of {max} starts of the day until {when}");
            return Some(Waiting::until(Why::DailyLimit, text, until));
        }
        let spent = budget.reached(ledger.spent(from, self.now))?;
        let text = format!("pool {name}: budget of the day is spent ({spent}) until {when}");
        Some(Waiting::until(Why::Budget, text, until))
    }

    /// When the rate allows the next start, if that is not now.
    fn next_start(&self, pool: &Pool, ledger: &Ledger) -> Option<Millis> {
        let last = ledger.last_start().filter(|last| self.is_past(*last))?;
        let from_last = |delay_s: u64| {
            let delay_s = delay_s.max(pool.min_delay_s);
            last.saturating_add(delay_s.saturating_mul(SECOND_MS))
        };
        let reset = pool
            .reset_utc
            .unwrap_or(self.gate.reset_utc)
            .after(self.now);
        let window = pool.burst_window_s.saturating_mul(SECOND_MS);
        let burst = reset.saturating_sub(window);
        let (sustained, in_burst) = (
            from_last(pool.sustained_delay_s),
            from_last(pool.burst_delay_s),
        );
        let at = if window == 0 {
            sustained
        } else if burst <= self.now {
            in_burst.min(sustained.max(reset))
        } else {
            sustained.min(in_burst.max(burst))
        };
        (at > self.now).then_some(at)
    }

    /// A run that Dispatch itself tries again waits a little; one that the provider refused waits for
    /// its pool.
    fn later(&self, id: RunId) -> Option<Waiting> {
        let task = self.state.task(id.task)?;
        let run = self.state.run(id)?;
        let RunCause::RetryOf {
            n,
            by_person: false,
        } = run.cause
        else {
            return None;
        };
        let before = self.state.run(RunId { n, ..id })?;
        let refused = matches!(
            before.state,
            RunState::Finished(Outcome::Failed(Failure::RateLimited { .. }))
        );
        let ended = before.ended_at.filter(|at| self.is_past(*at) && !refused)?;
        let times = task.own_retries().saturating_sub(1);
        let wait = doubled_ms(self.gate.retry_s, times, self.gate.backoff_max_s);
        let until = ended.saturating_add(wait);
        if self.is_past(until) {
            return None;
        }
        let text = format!("tries again at {}", time_text(until, self.now));
        Some(Waiting::until(Why::Retry, text, until))
    }

    /// The first run in order that nothing of its own holds.
    fn next_of(&self, pool: &Pool, ledger: &Ledger, wake: &mut Option<Millis>) -> Option<RunId> {
        let mut heads: Vec<Peekable<btree_set::Iter<'_, Turn>>> = Vec::new();
        for (model, turns) in ledger.queues() {
            let limit = model.and_then(|m| Some((ledger.model_held(m), pool.slots.models.get(m)?)));
            if limit.is_none_or(|(held, slots)| held < *slots) {
                heads.push(turns.iter().peekable());
            }
        }
        loop {
            let first = heads
                .iter_mut()
                .filter_map(|head| Some((**head.peek()?, head)))
                .min_by_key(|(turn, _)| *turn);
            let ((_, _, run), head) = first?;
            head.next();
            if self.held.contains_key(&run) || self.repo_frozen(run) {
                continue;
            }
            match self.later(run).or_else(|| self.out_of_keys(run)) {
                Some(waiting) => soonest(wake, waiting.until),
                None => return Some(run),
            }
        }
    }

    fn repo_frozen(&self, run: RunId) -> bool {
        let task = self.state.task(run.task);
        task.is_some_and(|task| self.state.repo_frozen(&task.spec.repo))
    }
}

#[cfg(test)]
mod tests;
