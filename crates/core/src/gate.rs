//! What starts are limited by: `[gate]` and `[pools.*]`, resolved, with every limit's unit in its
//! name. Must not count anything: `ledger` does, and `schedule` compares.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Millis, id::ModelName, update::Usage};

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 24 * 60 * MINUTE_MS;

/// Money in millionths of a US dollar: sums of it are exact. Written as dollars.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "f64", into = "f64")]
pub struct MicroUsd(pub u64);

/// More than any budget; below it every sum of money has its own number of dollars.
const USD_MAX: f64 = 1e9;

impl MicroUsd {
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("read an amount of money from {0}: it is dollars, from 0 to a thousand million")]
pub struct BadMoney(f64);

impl TryFrom<f64> for MicroUsd {
    type Error = BadMoney;

    fn try_from(usd: f64) -> Result<Self, BadMoney> {
        if !(0.0..=USD_MAX).contains(&usd) {
            return Err(BadMoney(usd));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "its range was looked at"
        )]
        Ok(Self((usd * 1e6).round() as u64))
    }
}

impl From<MicroUsd> for f64 {
    fn from(money: MicroUsd) -> f64 {
        money.0 as f64 / 1e6
    }
}

impl fmt::Display for MicroUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Cents, rounded up: a small amount is never shown as nothing.
        let cents = self.0.div_ceil(10_000);
        write!(f, "{}.{:02}", cents / 100, cents % 100)
    }
}

/// A time of every day, in UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ResetUtc {
    minute: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read a time of day from {0:?}: write it as \"HH:MM\", in UTC")]
pub struct BadTime(String);

impl FromStr for ResetUtc {
    type Err = BadTime;

    fn from_str(text: &str) -> Result<Self, BadTime> {
        let bad = || BadTime(text.to_owned());
        let (hour, minute) = text.split_once(':').ok_or_else(bad)?;
        let number = |part: &str, below: u64| {
            let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
            let value = part.parse::<u64>().ok().filter(|n| digits && *n < below);
            value.ok_or_else(bad)
        };
        let minute = number(hour, 24)? * 60 + number(minute, 60)?;
        Ok(Self { minute })
    }
}

impl TryFrom<String> for ResetUtc {
    type Error = BadTime;
    fn try_from(text: String) -> Result<Self, BadTime> {
        text.parse()
    }
}

impl ResetUtc {
    /// The last reset at or before `now`.
    #[must_use]
    pub fn before(self, now: Millis) -> Millis {
        let today = now / DAY_MS * DAY_MS + self.minute * MINUTE_MS;
        if today <= now {
            today
        } else {
            today.saturating_sub(DAY_MS)
        }
    }

    /// The first one after it.
    #[must_use]
    pub fn after(self, now: Millis) -> Millis {
        let today = (now / DAY_MS * DAY_MS).saturating_add(self.minute * MINUTE_MS);
        if today > now {
            today
        } else {
            today.saturating_add(DAY_MS)
        }
    }
}

/// `slots`: one number, or a table of `total` and models.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SlotsTable")]
pub struct Slots {
    pub total: usize,
    pub models: BTreeMap<ModelName, usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SlotsTable {
    Total(usize),
    Models(BTreeMap<String, usize>),
}

impl TryFrom<SlotsTable> for Slots {
    type Error = String;

    fn try_from(table: SlotsTable) -> Result<Self, String> {
        let mut named = match table {
            SlotsTable::Total(total) => {
                return Ok(Self {
                    total,
                    models: BTreeMap::new(),
                });
            }
            SlotsTable::Models(named) => named,
        };
        let total = named.remove("total").ok_or(
            "slots is a number, or a table { total = 5, MODEL = 1 } in which total must stand",
        )?;
        let mut models = BTreeMap::new();
        for (name, slots) in named {
            models.insert(
                name.parse().map_err(|e: crate::id::BadId| e.to_string())?,
                slots,
            );
        }
        Ok(Self { total, models })
    }
}

/// `[pools.NAME]`. In all of them 0 means no limit.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    pub slots: Slots,
    /// From one start to the next, always.
    #[serde(default)]
    pub min_delay_s: u64,
    /// The same, but not in the burst window.
    #[serde(default)]
    pub sustained_delay_s: u64,
    /// So long before each reset `burst_delay_s` is in force instead.
    #[serde(default)]
    pub burst_window_s: u64,
    #[serde(default)]
    pub burst_delay_s: u64,
    /// Starts from one reset to the next.
    #[serde(default)]
    pub daily_limit_starts: u64,
    /// Absent: `gate.reset_utc`.
    pub reset_utc: Option<ResetUtc>,
    /// Spent from one reset to the next: at the limit nothing new starts.
    #[serde(default)]
    pub day_tokens: u64,
    #[serde(default)]
    pub day_usd: MicroUsd,
}

impl Pool {
    #[must_use]
    pub fn of(slots: usize) -> Self {
        Self {
            slots: Slots {
                total: slots,
                models: BTreeMap::new(),
            },
            min_delay_s: 0,
            sustained_delay_s: 0,
            burst_window_s: 0,
            burst_delay_s: 0,
            daily_limit_starts: 0,
            reset_utc: None,
            day_tokens: 0,
            day_usd: MicroUsd(0),
        }
    }

    #[must_use]
    pub fn day_budget(&self) -> Budget {
        Budget {
            tokens: self.day_tokens,
            usd: self.day_usd,
        }
    }

    /// What could never start, for a person to mend.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut out = Vec::new();
        if self.slots.total == 0 {
            let what = "0 slots: nothing in this pool could ever run";
            out.push(("slots", what.to_owned()));
        }
        for (model, slots) in &self.slots.models {
            if *slots == 0 {
                let what = format!("0 slots for {model}: nothing with this model could ever run");
                out.push(("slots", what));
            }
        }
        if self.burst_window_s > DAY_MS / 1000 {
            out.push(("burst_window_s", "it is longer than a day".to_owned()));
        }
        out
    }
}

/// `[gate]`: what all pools share.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// Runs in a row that Dispatch starts by itself after one that may be tried again.
    pub retries_max: u32,
    /// Before the first of them; it doubles with each.
    pub retry_s: u64,
    /// After a pause one run goes first; so long, or until it succeeds, the others wait for it.
    pub probe_s: u64,
    /// A provider that says "not now" and not when: the first pause, doubled with each.
    pub backoff_s: u64,
    pub backoff_max_s: u64,
    /// No provider's word pauses a pool for longer.
    pub pause_max_s: u64,
    /// Added to a pause, up to this.
    pub jitter_s: u64,
    /// So many runs in a row that fail within `fail_within_s` pause their pool. 0: never.
    pub fail_runs: usize,
    pub fail_within_s: u64,
    pub fail_pause_s: u64,
    pub memory_free_min_bytes: u64,
    /// The load average of the last minute, over the number of cores. 0: no limit.
    pub load_per_core_max: u64,
    /// While the machine has no room: the time between two looks at it.
    pub look_s: u64,
    pub reset_utc: ResetUtc,
    pub task_tokens: u64,
    pub task_usd: MicroUsd,
    pub day_tokens: u64,
    pub day_usd: MicroUsd,
    /// A budget that is used so far is told.
    pub warn_percent: u64,
}

/// How many failures in a row the ledger of a pool remembers.
pub const FAIL_RUNS_MAX: usize = 16;

impl Gate {
    #[must_use]
    pub fn day_budget(&self) -> Budget {
        Budget {
            tokens: self.day_tokens,
            usd: self.day_usd,
        }
    }

    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut out = Vec::new();
        if self.fail_runs > FAIL_RUNS_MAX {
            out.push(("fail_runs", format!("it is more than {FAIL_RUNS_MAX}")));
        }
        if self.look_s == 0 {
            let what = "0 seconds between two looks is a busy loop: give a positive number";
            out.push(("look_s", what.to_owned()));
        }
        if !(1..=100).contains(&self.warn_percent) {
            out.push(("warn_percent", "it is not within 1 to 100".to_owned()));
        }
        out
    }
}

/// Tokens and money, spent or allowed. As a limit 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    pub tokens: u64,
    pub usd: MicroUsd,
}

impl Budget {
    /// What a run has spent. What is read from a cache is a tenth of the price and no new work: only
    /// money counts it. What the agent did not tell is not counted.
    #[must_use]
    pub fn of(usage: &Usage) -> Self {
        let tokens = [
            usage.input_tokens,
            usage.output_tokens,
            usage.cache_write_tokens,
        ];
        let tokens = tokens.into_iter().flatten().fold(0, u64::saturating_add);
        let usd = usage.cost_usd.and_then(|usd| MicroUsd::try_from(usd).ok());
        Self {
            tokens,
            usd: usd.unwrap_or_default(),
        }
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.saturating_add(other.tokens),
            usd: self.usd.plus(other.usd),
        }
    }

    #[must_use]
    pub fn less(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.saturating_sub(other.tokens),
            usd: MicroUsd(self.usd.0.saturating_sub(other.usd.0)),
        }
    }

    /// The larger of each.
    #[must_use]
    pub fn at_least(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.max(other.tokens),
            usd: self.usd.max(other.usd),
        }
    }

    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    /// `spent` has reached a limit of this budget: which, for a person to read.
    #[must_use]
    pub fn reached(self, spent: Self) -> Option<String> {
        self.at_percent(spent, 100)
    }

    /// The same for a part of the budget.
    #[must_use]
    pub fn at_percent(self, spent: Self, percent: u64) -> Option<String> {
        let over = |spent: u64, max: u64| {
            max > 0 && u128::from(spent) * 100 >= u128::from(max) * u128::from(percent)
        };
        if over(spent.usd.0, self.usd.0) {
            return Some(format!("{} of {} USD", spent.usd, self.usd));
        }
        over(spent.tokens, self.tokens)
            .then(|| format!("{} of {} tokens", spent.tokens, self.tokens))
    }

    /// What a person is warned of, once: `after` has come to `percent`, and `before` had not.
    #[must_use]
    pub fn crossed(self, before: Self, after: Self, percent: u64) -> Option<String> {
        let now = self.at_percent(after, percent)?;
        self.at_percent(before, percent).is_none().then_some(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_exact_and_reads_back() {
        for micro in [0, 1, 999_999, 1_000_000, 123_456_789_012] {
            let money = MicroUsd(micro);
            let text = serde_json::to_string(&money).unwrap();
            assert_eq!(serde_json::from_str::<MicroUsd>(&text).unwrap(), money);
        }
        assert_eq!(MicroUsd(1).to_string(), "0.01");
        assert_eq!(MicroUsd(12_340_000).to_string(), "12.34");
        for bad in [-1.0, f64::NAN, f64::INFINITY, 2e9] {
            assert!(MicroUsd::try_from(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_day_ends_at_its_reset() {
        let six: ResetUtc = "06:00".parse().unwrap();
        let hour = 3_600_000;
        for (now, before, after) in [
            (5, 0, 6),
            (6, 6, 30),
            (23, 6, 30),
            (24 + 5, 6, 30),
            (24 + 7, 30, 54),
        ] {
            assert_eq!(six.before(now * hour), before * hour, "{now}");
            assert_eq!(six.after(now * hour), after * hour, "{now}");
        }
        for bad in ["", "6:00", "24:00", "06:60", "06-00", "06:0x", "+6:00"] {
            assert!(bad.parse::<ResetUtc>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_budget_warns_once_and_is_reached_at_its_number() {
        let budget = Budget {
            tokens: 1000,
            usd: MicroUsd(0),
        };
        let spent = |tokens| Budget {
            tokens,
            usd: MicroUsd(9),
        };
        assert_eq!(budget.reached(spent(999)), None);
        assert_eq!(budget.reached(spent(1000)).unwrap(), "1000 of 1000 tokens");
        assert!(budget.crossed(spent(700), spent(800), 80).is_some());
        assert!(budget.crossed(spent(800), spent(900), 80).is_none());
        assert_eq!(Budget::default().reached(spent(u64::MAX)), None);
    }
}
