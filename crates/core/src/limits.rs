//! Every limit, with its unit in its name. Defaults are in `defaults.toml`, not here.
//! Must not enforce anything: the keeper, the engine and the doors do.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::prompt;

/// What a keeper enforces for one job, even when the engine is dead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobLimits {
    pub wall_clock_ms: u64,
    /// Longest time without a byte of output.
    pub idle_ms: u64,
    /// Standard output and error together.
    pub output_bytes: u64,
    /// From the polite request to the kill.
    pub grace_ms: u64,
    /// Memory of all its processes together. Here and below 0 means no limit.
    #[serde(default)]
    pub memory_bytes: u64,
    #[serde(default)]
    pub processes_max: u64,
    /// Of each process.
    #[serde(default)]
    pub open_files_max: u64,
    /// Of what it may write: workspace, home and temporary files together.
    #[serde(default)]
    pub disk_bytes: u64,
    /// Processors that it may keep busy; only a container engine holds this.
    #[serde(default)]
    pub cpus_max: u64,
}

/// `[limits]`: what no request can raise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub wall_clock_s: u64,
    pub idle_s: u64,
    pub output_bytes: u64,
    pub grace_s: u64,
    /// From an agent's last word to the stop ladder.
    pub linger_s: u64,
    /// From a permission request to its denial.
    pub ask_wait_s: u64,
    pub check_wall_clock_s: u64,
    pub memory_bytes: u64,
    pub processes_max: u64,
    pub open_files_max: u64,
    pub cpus_max: u64,
    pub workspace_bytes: u64,
    /// From the question to a repository's host to its answer.
    pub upstream_s: u64,
    pub queue_max: usize,
    pub runs_max: u32,
    /// Messages of one task that wait.
    pub messages_max: usize,
    /// Runs that messages of other tasks' agents may start before a person says something.
    pub wakes_max: u32,
    /// Messages of agents in one chain: all that a person's word or a task of theirs has led to.
    pub chain_messages_max: u32,
    /// Callers that wait for the end of tasks: of people, of tokens, and of agents.
    pub waits_max: usize,
    pub task_bytes: usize,
    /// Letters of one workspace that nobody has read.
    pub letters_max: usize,
    pub letter_bytes: usize,
    /// The files that are handed over with a task and its messages, together.
    pub attach_bytes: u64,
    pub attach_files_max: usize,
    pub prompt_bytes: usize,
    pub template_bytes: usize,
    pub variables_bytes: usize,
    pub updates_bytes: u64,
    pub line_bytes: usize,
    pub snapshot_bytes: u64,
    pub snapshot_file_bytes: u64,
    pub snapshot_files: usize,
    pub folder_bytes: u64,
    pub folder_files: usize,
    pub diff_bytes: usize,
    pub fetch_bytes: u64,
    pub disk_free_min_bytes: u64,
    pub notify_tries_max: u32,
    pub notify_retry_ms: u64,
    pub notify_wall_clock_s: u64,
    pub notify_late_s: u64,
}

impl Limits {
    /// Problems with the numbers, each for a person to read.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let numbers = [
            ("wall_clock_s", self.wall_clock_s),
            ("idle_s", self.idle_s),
            ("output_bytes", self.output_bytes),
            ("ask_wait_s", self.ask_wait_s),
            ("check_wall_clock_s", self.check_wall_clock_s),
            ("upstream_s", self.upstream_s),
            ("queue_max", self.queue_max as u64),
            ("runs_max", u64::from(self.runs_max)),
            ("messages_max", self.messages_max as u64),
            ("task_bytes", self.task_bytes as u64),
            ("letters_max", self.letters_max as u64),
            ("letter_bytes", self.letter_bytes as u64),
            ("template_bytes", self.template_bytes as u64),
            ("line_bytes", self.line_bytes as u64),
            ("snapshot_bytes", self.snapshot_bytes),
            ("snapshot_files", self.snapshot_files as u64),
            ("notify_tries_max", u64::from(self.notify_tries_max)),
            ("notify_wall_clock_s", self.notify_wall_clock_s),
        ];
        let zero = |(name, value): &(&str, u64)| {
            (*value == 0).then(|| {
                format!("limits.{name} is 0; nothing could ever run: give a positive number")
            })
        };
        let mut problems: Vec<String> = numbers.iter().filter_map(zero).collect();
        if self.prompt_bytes < prompt::BYTES_MIN {
            problems.push(format!(
                "limits.prompt_bytes is {}; what is never cut needs {}",
                self.prompt_bytes,
                prompt::BYTES_MIN
            ));
        }
        problems
    }

    /// Of one prompt.
    #[must_use]
    pub fn prompt(&self) -> prompt::Limits {
        prompt::Limits {
            prompt_bytes: self.prompt_bytes,
            template_bytes: self.template_bytes,
        }
    }

    /// Why these are no lowering of what is configured; `None`: they are.
    #[must_use]
    pub fn too_high(&self, asked: &Lowered) -> Option<String> {
        asked.0.iter().find_map(|(limit, value)| {
            let (mut own, mut theirs) = (self.clone(), self.clone());
            let most = *own.slot(*limit);
            *theirs.slot(*limit) = *value;
            if bound(*value) > bound(most) {
                let word = if *value == 0 { " (no limit)" } else { "" };
                return Some(format!(
                    "limits.{limit} = {value}{word}: the configuration allows {most} at most"
                ));
            }
            theirs.problems().into_iter().next()
        })
    }

    /// With what a task brings along. A configuration that was lowered since stays in force.
    #[must_use]
    pub fn lowered(&self, asked: &Lowered) -> Self {
        let mut out = self.clone();
        for (limit, value) in &asked.0 {
            let slot = out.slot(*limit);
            if bound(*value) < bound(*slot) {
                *slot = *value;
            }
        }
        out
    }

    fn slot(&mut self, limit: Limit) -> &mut u64 {
        match limit {
            Limit::WallClockS => &mut self.wall_clock_s,
            Limit::IdleS => &mut self.idle_s,
            Limit::OutputBytes => &mut self.output_bytes,
            Limit::CheckWallClockS => &mut self.check_wall_clock_s,
            Limit::MemoryBytes => &mut self.memory_bytes,
            Limit::ProcessesMax => &mut self.processes_max,
            Limit::OpenFilesMax => &mut self.open_files_max,
            Limit::WorkspaceBytes => &mut self.workspace_bytes,
        }
    }

    #[must_use]
    pub fn agent_job(&self) -> JobLimits {
        JobLimits {
            wall_clock_ms: self.wall_clock_s.saturating_mul(1000),
            idle_ms: self.idle_s.saturating_mul(1000),
            output_bytes: self.output_bytes,
            grace_ms: self.grace_s.saturating_mul(1000),
            memory_bytes: self.memory_bytes,
            processes_max: self.processes_max,
            open_files_max: self.open_files_max,
            disk_bytes: self.workspace_bytes,
            cpus_max: self.cpus_max,
        }
    }

    /// How long an ask waits: its agent is silent meanwhile, and must still be there for the answer.
    #[must_use]
    pub fn ask_wait_ms(&self) -> u64 {
        let idle_ms = self.idle_s.saturating_mul(1000);
        let margin_ms = (idle_ms / 4).min(ASK_MARGIN_MS);
        self.ask_wait_s
            .saturating_mul(1000)
            .min(idle_ms.saturating_sub(margin_ms))
    }

    #[must_use]
    pub fn check_job(&self) -> JobLimits {
        JobLimits {
            wall_clock_ms: self.check_wall_clock_s.saturating_mul(1000),
            idle_ms: self.check_wall_clock_s.saturating_mul(1000),
            ..self.agent_job()
        }
    }
}

/// From the end of an ask to the idle limit, which would end its run.
const ASK_MARGIN_MS: u64 = 30_000;

/// 0 means that there is no limit.
fn bound(value: u64) -> u64 {
    if value == 0 { u64::MAX } else { value }
}

/// A limit of `[limits]` that a task may lower for its own jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    WallClockS,
    IdleS,
    OutputBytes,
    CheckWallClockS,
    MemoryBytes,
    ProcessesMax,
    OpenFilesMax,
    WorkspaceBytes,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What a task brings along of them. Whether they are lower is for [`Limits::too_high`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lowered(BTreeMap<Limit, u64>);

impl Lowered {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn set(&mut self, limit: Limit, value: u64) {
        self.0.insert(limit, value);
    }

    pub fn iter(&self) -> impl Iterator<Item = (Limit, u64)> {
        self.0.iter().map(|(limit, value)| (*limit, *value))
    }

    /// As low as this, or lower.
    pub fn lower(&mut self, limit: Limit, value: u64) {
        let slot = self.0.entry(limit).or_insert(value);
        if bound(value) < bound(*slot) {
            *slot = value;
        }
    }

    /// Takes from `under` what is not set here.
    pub fn fill(&mut self, under: &Self) {
        for (limit, value) in &under.0 {
            self.0.entry(*limit).or_insert(*value);
        }
    }
}

impl std::str::FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(text);
        Self::deserialize(name).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Layer, load};

    fn lowered(limits: &[(Limit, u64)]) -> Lowered {
        Lowered(limits.iter().copied().collect())
    }

    #[test]
    fn a_task_lowers_and_never_raises() {
        let own = Limits {
            memory_bytes: 0,
            ..Config::defaults().limits
        };
        let asked = lowered(&[
            (Limit::WallClockS, 60),
            (Limit::MemoryBytes, 1 << 20),
            (Limit::IdleS, own.idle_s),
        ]);
        assert_eq!(own.too_high(&asked), None);
        let got = own.lowered(&asked);
        assert_eq!((got.wall_clock_s, got.memory_bytes), (60, 1 << 20));
        assert_eq!(got.agent_job().wall_clock_ms, 60_000);
        for (limit, value, part) in [
            (Limit::WallClockS, own.wall_clock_s + 1, "allows 14400"),
            (Limit::ProcessesMax, 0, "0 (no limit)"),
            (Limit::OpenFilesMax, u64::MAX, "limits.open_files_max"),
        ] {
            let asked = lowered(&[(limit, value)]);
            let why = own.too_high(&asked).unwrap();
            assert!(why.contains(part), "{why}");
            // The configuration may have been lowered since: then it holds.
            assert_eq!(own.lowered(&asked), own);
        }
    }

    #[test]
    fn an_ask_is_denied_before_its_agent_is_ended_for_its_silence() {
        let wait = |ask_wait_s, idle_s| {
            let limits = Limits {
                ask_wait_s,
                idle_s,
                ..Config::defaults().limits
            };
            limits.ask_wait_ms()
        };
        for (ask_wait_s, idle_s, ms) in [
            (600, 1800, 600_000),
            (1800, 1800, 1_770_000),
            (600, 8, 6_000),
            (1, 1, 750),
            (u64::MAX, u64::MAX, u64::MAX - ASK_MARGIN_MS),
        ] {
            assert_eq!(wait(ask_wait_s, idle_s), ms, "{ask_wait_s} of {idle_s}");
        }
    }

    #[test]
    fn names_are_those_of_the_configuration_and_the_first_word_counts() {
        let defaults = Config::defaults();
        let table: toml::Table = crate::config::DEFAULTS_TOML.parse().unwrap();
        for name in [
            "wall_clock_s",
            "memory_bytes",
            "workspace_bytes",
            "check_wall_clock_s",
        ] {
            let limit: Limit = name.parse().unwrap();
            assert_eq!(limit.to_string(), name);
            let there = table["limits"][name].as_integer().unwrap();
            let mut limits = defaults.limits.clone();
            assert_eq!(i64::try_from(*limits.slot(limit)).unwrap(), there);
        }
        let error = "queue_max".parse::<Limit>().unwrap_err();
        assert!(error.contains("wall_clock_s"), "{error}");
        let mut asked = lowered(&[(Limit::IdleS, 5)]);
        asked.fill(&lowered(&[(Limit::IdleS, 9), (Limit::WallClockS, 7)]));
        assert_eq!(asked, lowered(&[(Limit::IdleS, 5), (Limit::WallClockS, 7)]));
        assert_eq!(
            serde_json::to_string(&asked).unwrap(),
            "{\"wall_clock_s\":7,\"idle_s\":5}"
        );
    }

    /// Found by the fuzz target `config`: a panic in debug, a limit of no meaning in release.
    #[test]
    fn a_limit_too_large_for_milliseconds_is_the_largest_one() {
        let text = "[limits]\nwall_clock_s = 9223372036854775807\ncheck_wall_clock_s = 9223372036854775807\n";
        let layer = Layer { source: "x", text };
        let limits = load(&[layer]).unwrap().0.limits;
        assert_eq!(limits.agent_job().wall_clock_ms, u64::MAX);
        assert_eq!(limits.check_job().idle_ms, u64::MAX);
    }
}
