//! Limits that a keeper enforces by looking, where no cgroup of ours enforces them: memory, number
//! of processes, and what a job has written.
//! Must cost nothing for a job that does little: the pause between two looks grows while all is far
//! below its limits, and the disk is only walked when the filesystem has lost room.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use dispatch_core::{limits::JobLimits, outcome::Stop};

use super::processes;

const LOOK_MIN: Duration = Duration::from_millis(250);
const LOOK_MAX: Duration = Duration::from_secs(8);
/// A walk of the whole tree in spite of a filesystem that seems to have lost nothing.
const WALK_ANYWAY: Duration = Duration::from_secs(120);
/// Entries of one walk; a tree beyond that is held to be as large as what was counted.
const ENTRIES_MAX: u64 = 5_000_000;
const BLOCK_BYTES: u64 = 512;

#[derive(Debug)]
pub(super) struct Watch {
    memory_bytes: u64,
    processes_max: u64,
    disk_bytes: u64,
    writes: Vec<PathBuf>,
    pause: Duration,
    pub(super) next: Option<Instant>,
    written: u64,
    /// Free bytes of the workspace's filesystem at the last walk.
    free: u64,
    walked: Option<Instant>,
    walk_took: Duration,
}

impl Watch {
    /// `cgroup` says what the kernel enforces already.
    pub(super) fn new(
        limits: &JobLimits,
        writes: &[PathBuf],
        cgroup: &[&str],
        now: Instant,
    ) -> Self {
        let unless = |name: &str, limit: u64| if cgroup.contains(&name) { 0 } else { limit };
        let mut watch = Self {
            memory_bytes: unless("memory", limits.memory_bytes),
            processes_max: unless("processes", limits.processes_max),
            disk_bytes: if writes.is_empty() {
                0
            } else {
                limits.disk_bytes
            },
            writes: writes.to_vec(),
            pause: LOOK_MIN,
            next: None,
            written: 0,
            free: 0,
            walked: None,
            walk_took: Duration::ZERO,
        };
        let any = watch.memory_bytes > 0 || watch.processes_max > 0 || watch.disk_bytes > 0;
        watch.next = any.then(|| now + watch.pause);
        watch
    }

    /// What is enforced, in words for the record.
    pub(super) fn words(
        limits: &JobLimits,
        writes: &[PathBuf],
        cgroup: &[&str],
        whose: &str,
    ) -> Vec<String> {
        let by = |name: &str| {
            if cgroup.contains(&name) {
                whose.to_owned()
            } else {
                "watched".to_owned()
            }
        };
        let mut words = Vec::new();
        for (name, limit) in [
            ("memory", limits.memory_bytes),
            ("processes", limits.processes_max),
        ] {
            if limit > 0 {
                words.push(format!("{name} ({})", by(name)));
            }
        }
        if limits.cpus_max > 0 && cgroup.contains(&"processors") {
            words.push(format!("processors ({whose})"));
        }
        if limits.open_files_max > 0 {
            words.push("open files (rlimit)".into());
        }
        if limits.disk_bytes > 0 && !writes.is_empty() {
            words.push("disk (watched)".into());
        }
        words
    }

    /// Called when `next` has come; what has been exceeded, if anything.
    pub(super) fn look(&mut self, now: Instant) -> Option<Stop> {
        let mut near = false;
        let mut over = |used: u64, limit: u64| {
            near |= limit > 0 && used > limit / 2;
            limit > 0 && used > limit
        };
        if self.memory_bytes > 0 || self.processes_max > 0 {
            let pids = processes::descendants();
            if over(pids.len() as u64, self.processes_max) {
                let limit = self.processes_max;
                return Some(Stop::Processes { limit });
            }
            let memory = if self.memory_bytes > 0 {
                pids.iter().map(|pid| processes::private_bytes(*pid)).sum()
            } else {
                0
            };
            if over(memory, self.memory_bytes) {
                let limit_bytes = self.memory_bytes;
                return Some(Stop::Memory { limit_bytes });
            }
        }
        if self.disk_bytes > 0 {
            self.measure(now);
            if over(self.written, self.disk_bytes) {
                let limit_bytes = self.disk_bytes;
                return Some(Stop::DiskBytes { limit_bytes });
            }
        }
        self.pause = if near {
            LOOK_MIN
        } else {
            (self.pause * 2).min(LOOK_MAX)
        };
        // A tree that takes long to walk is walked less often.
        self.next = Some(now + self.pause.max(self.walk_took * 20));
        None
    }

    fn measure(&mut self, now: Instant) {
        let free = self.writes.first().map_or(0, |path| free_bytes(path));
        let lost = self.free.saturating_sub(free);
        let room = self.disk_bytes.saturating_sub(self.written);
        let old = self.walked.is_none_or(|at| now >= at + WALK_ANYWAY);
        if !old && lost < room / 4 {
            return;
        }
        let begun = Instant::now();
        let mut left = ENTRIES_MAX;
        self.written = self
            .writes
            .iter()
            .map(|path| tree_bytes(path, &mut left))
            .sum();
        self.walk_took = begun.elapsed();
        self.free = free;
        self.walked = Some(now);
    }
}

fn free_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |stat| stat.f_bavail * stat.f_frsize)
}

/// Blocks in use below `root`; links are not followed and other filesystems not entered.
fn tree_bytes(root: &Path, left: &mut u64) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = fs::symlink_metadata(root) else {
        return 0;
    };
    let device = meta.dev();
    let mut bytes = 0;
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries.flatten() {
            if *left == 0 {
                return bytes;
            }
            *left -= 1;
            let Ok(meta) = entry.metadata() else { continue };
            bytes += meta.blocks() * BLOCK_BYTES / meta.nlink().max(1);
            if meta.is_dir() && meta.dev() == device {
                open.push(entry.path());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(disk_bytes: u64) -> JobLimits {
        JobLimits {
            disk_bytes,
            ..JobLimits::default()
        }
    }

    #[test]
    fn a_tree_that_is_too_large_is_seen_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("big"), vec![1; 4 << 20]).unwrap();
        std::os::unix::fs::symlink(other.path(), dir.path().join("link")).unwrap();
        let writes = [dir.path().to_owned()];
        let now = Instant::now();
        let mut watch = Watch::new(&limits(1 << 20), &writes, &[], now);
        assert!(watch.next.is_some());
        assert_eq!(watch.look(now), None);
        fs::create_dir(dir.path().join("deep")).unwrap();
        fs::write(dir.path().join("deep/file"), vec![1; 2 << 20]).unwrap();
        let later = now + WALK_ANYWAY;
        let limit_bytes = 1 << 20;
        assert_eq!(watch.look(later), Some(Stop::DiskBytes { limit_bytes }));
    }

    #[test]
    fn pauses_grow_while_nothing_happens() {
        let now = Instant::now();
        let all = JobLimits {
            processes_max: 1000,
            ..JobLimits::default()
        };
        let mut watch = Watch::new(&all, &[], &[], now);
        for _ in 0..10 {
            assert_eq!(watch.look(now), None);
        }
        assert_eq!(watch.next, Some(now + LOOK_MAX));
        assert_eq!(Watch::new(&all, &[], &["processes"], now).next, None);
        assert_eq!(Watch::new(&limits(7), &[], &[], now).next, None);
    }
}
