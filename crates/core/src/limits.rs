//! Every limit, with its unit in its name. Defaults are in `defaults.toml`, not here.
//! Must not enforce anything: the keeper, the engine and the doors do.

use serde::{Deserialize, Serialize};

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
    pub check_wall_clock_s: u64,
    pub memory_bytes: u64,
    pub processes_max: u64,
    pub open_files_max: u64,
    pub workspace_bytes: u64,
    pub queue_max: usize,
    pub runs_max: u32,
    /// Messages of one task that wait.
    pub messages_max: usize,
    /// Runs that messages of other tasks' agents may start before a person says something.
    pub wakes_max: u32,
    pub task_bytes: usize,
    pub updates_bytes: u64,
    pub line_bytes: usize,
    pub snapshot_bytes: u64,
    pub snapshot_file_bytes: u64,
    pub snapshot_files: usize,
    pub diff_bytes: usize,
    pub disk_free_min_bytes: u64,
}

impl Limits {
    /// Problems with the numbers, each for a person to read.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let numbers = [
            ("wall_clock_s", self.wall_clock_s),
            ("idle_s", self.idle_s),
            ("output_bytes", self.output_bytes),
            ("check_wall_clock_s", self.check_wall_clock_s),
            ("queue_max", self.queue_max as u64),
            ("runs_max", u64::from(self.runs_max)),
            ("messages_max", self.messages_max as u64),
            ("task_bytes", self.task_bytes as u64),
            ("line_bytes", self.line_bytes as u64),
            ("snapshot_bytes", self.snapshot_bytes),
            ("snapshot_files", self.snapshot_files as u64),
        ];
        let zero = |(name, value): &(&str, u64)| {
            (*value == 0).then(|| {
                format!("limits.{name} is 0; nothing could ever run: give a positive number")
            })
        };
        numbers.iter().filter_map(zero).collect()
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
        }
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

#[cfg(test)]
mod tests {
    use crate::config::{Layer, load};

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
