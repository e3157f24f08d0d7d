//! Processes of a job: found below the keeper, in its cgroup, or by the mark in their environment,
//! and ended. Agent CLIs put their tool commands into sessions of their own, so a group is not
//! enough. Must not signal a process that is not proved to be the job's.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use dispatch_core::limits::JobLimits;

use super::{JOB_VARIABLE, around};
use crate::jobdir::JobDir;

/// A fork storm is beaten by repeating; a hundred rounds without an end is a bug to be told.
const SWEEP_ROUNDS_MAX: usize = 100;

pub(super) fn become_subreaper() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    Ok(())
}

/// Closes everything above standard error.
pub(super) fn close_inherited() -> io::Result<()> {
    close_above(None)
}

/// The same, but for one.
pub(crate) fn close_inherited_but(keep: &impl std::os::fd::AsRawFd) -> io::Result<()> {
    close_above(Some(keep.as_raw_fd()))
}

fn close_above(keep: Option<i32>) -> io::Result<()> {
    let Ok(listed) = fs::read_dir("/proc/self/fd") else {
        // No /proc (macOS): what we open ourselves closes on exec.
        return Ok(());
    };
    let numbers: Vec<i32> = listed
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2 && Some(*fd) != keep)
        .collect();
    for fd in numbers {
        match nix::unistd::close(fd) {
            // The listing's own descriptor is gone by now.
            Ok(()) | Err(nix::errno::Errno::EBADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

pub(super) fn boot_id() -> io::Result<String> {
    match fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(_) if cfg!(not(target_os = "linux")) => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// When a process started, in clock ticks since boot: with the boot id it names the process.
pub(super) fn start_ticks(pid: Pid) -> io::Result<u64> {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(_) if cfg!(not(target_os = "linux")) => return Ok(0),
        Err(error) => return Err(error),
    };
    // The program's name is in brackets and may hold anything, so count from the last one.
    let after = text.rsplit_once(')').map_or("", |(_, after)| after);
    let ticks = after
        .split_whitespace()
        .nth(19)
        .and_then(|field| field.parse().ok());
    ticks.ok_or_else(|| io::Error::other("read the start time of a process: unexpected format"))
}

/// All processes below us. Those whose parent died are below us too: we are their subreaper.
pub(crate) fn descendants() -> Vec<Pid> {
    let mut found = Vec::new();
    let mut open = vec![rustix::process::getpid()];
    while let Some(pid) = open.pop() {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())) else {
            continue;
        };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            let pids = children
                .split_whitespace()
                .filter_map(|t| Pid::from_raw(t.parse().ok()?));
            for child in pids {
                found.push(child);
                open.push(child);
            }
        }
    }
    found
}

pub(crate) fn kill(pid: Pid) {
    match rustix::process::kill_process(pid, Signal::KILL) {
        // Gone, or not ours to signal (set-uid): the wait for the last one tells.
        Ok(()) | Err(_) => {}
    }
}

/// Resident memory that no other process shares with it by file.
pub(super) fn private_bytes(pid: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/statm", pid.as_raw_nonzero()));
    let text = text.unwrap_or_default();
    let mut pages = text
        .split(' ')
        .skip(1)
        .map(|field| field.parse::<u64>().unwrap_or(0));
    let (resident, shared) = (pages.next().unwrap_or(0), pages.next().unwrap_or(0));
    resident.saturating_sub(shared) * rustix::param::page_size() as u64
}

pub(super) fn signal_group(leader: Pid, signal: Signal) {
    match rustix::process::kill_process_group(leader, signal) {
        Ok(()) | Err(_) => {}
    }
}

/// A cgroup v2 of one job, where we may make one: kills the job's processes at once, whatever
/// sessions they are in.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
    home: PathBuf,
    /// We could not leave it: to kill it would be to kill ourselves.
    trapped: bool,
}

impl Cgroup {
    /// `None` where there is none to be had: no cgroup v2, not delegated.
    pub(super) fn create(marker: &str) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let relative = own
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))?
            .to_owned();
        let mount = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .into_iter()
            .map(Path::new)
            .find(|mount| mount.join("cgroup.procs").exists())?;
        let home = mount.join(&relative);
        let path = home.join(format!("dispatch-{}", marker.replace('/', "-")));
        fs::create_dir(&path).ok()?;
        let cgroup = Self {
            path,
            home,
            trapped: false,
        };
        cgroup.path.join("cgroup.kill").exists().then_some(cgroup)
    }

    /// Sets what this cgroup's controllers can hold, and says which limits that are.
    pub(super) fn limit(&self, limits: &JobLimits) -> Vec<&'static str> {
        let rows = [
            ("memory", "memory.max", limits.memory_bytes),
            ("processes", "pids.max", limits.processes_max),
        ];
        let mut held = Vec::new();
        for (name, file, limit) in rows {
            let file = self.path.join(file);
            if limit > 0 && file.exists() && fs::write(file, limit.to_string()).is_ok() {
                held.push(name);
            }
        }
        held
    }

    /// For the sweep after our death; `None` when it holds ourselves too.
    pub(super) fn path(&self) -> Option<&Path> {
        (!self.trapped).then_some(self.path.as_path())
    }

    /// Runs `start` while we are inside, so that what it starts is born there; then leaves.
    pub(super) fn around<T>(&mut self, start: impl FnOnce() -> T) -> T {
        let entered = fs::write(self.path.join("cgroup.procs"), "0").is_ok();
        let started = start();
        self.trapped = entered && fs::write(self.home.join("cgroup.procs"), "0").is_err();
        started
    }

    pub(super) fn kill(&self) {
        if !self.trapped {
            kill_cgroup(&self.path);
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove_cgroup(&self.path);
    }
}

fn kill_cgroup(path: &Path) {
    match fs::write(path.join("cgroup.kill"), "1") {
        // Gone already; the walk that follows is the judge.
        Ok(()) | Err(_) => {}
    }
}

fn remove_cgroup(path: &Path) {
    match fs::remove_dir(path) {
        // Busy for as long as a process in it is being torn down; an empty directory costs little
        // and the next sweep of this job tries again.
        Ok(()) | Err(_) => {}
    }
}

/// Ends whatever a dead keeper left behind, and says how many processes that were.
///
/// # Errors
/// When processes are still there after all attempts.
pub fn sweep(dir: &JobDir) -> io::Result<usize> {
    let mut killed = 0;
    let mark = format!("{JOB_VARIABLE}={}", super::marker(dir)).into_bytes();
    let group = dir.group()?;
    // First of all, and after a reboot too: an engine may remember what the kernel has forgotten.
    let around = group.as_ref().and_then(|group| group.around.clone());
    let group = group.filter(|group| boot_id().is_ok_and(|now| now == group.boot_id));
    if let Some(around) = around {
        around::remove(&around).map_err(io::Error::other)?;
    }
    if let Some(group) = &group {
        if let Some(cgroup) = &group.cgroup {
            kill_cgroup(cgroup);
        }
        if let Some(leader) = Pid::from_raw(group.pgid)
            && start_ticks(leader).is_ok_and(|ticks| ticks == group.start_ticks)
        {
            killed += usize::from(kill_proved(leader, |pid| {
                start_ticks(pid).is_ok_and(|ticks| ticks == group.start_ticks)
            }));
            signal_group(leader, Signal::KILL);
        }
    }
    for _ in 0..SWEEP_ROUNDS_MAX {
        let marked = marked(&mark);
        if marked.is_empty() {
            if let Some(cgroup) = group.as_ref().and_then(|group| group.cgroup.as_deref()) {
                remove_cgroup(cgroup);
            }
            return Ok(killed);
        }
        for pid in marked {
            killed += usize::from(kill_proved(pid, |pid| carries(pid, &mark)));
        }
        std::thread::yield_now();
    }
    Err(io::Error::other(
        "end what a dead keeper left behind: processes are still there",
    ))
}

/// By pidfd, and proved again after the descriptor is open: then the number cannot be reused.
fn kill_proved(pid: Pid, proof: impl Fn(Pid) -> bool) -> bool {
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    if !proof(pid) {
        return false;
    }
    match pidfd_send_signal(&handle, Signal::KILL) {
        Ok(()) => true,
        Err(Errno::SRCH | Errno::PERM) => false,
        Err(_) => false,
    }
}

fn marked(mark: &[u8]) -> Vec<Pid> {
    let Ok(listed) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    listed
        .filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .filter(|pid| carries(*pid, mark))
        .collect()
}

fn carries(pid: Pid, mark: &[u8]) -> bool {
    let environ = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
    environ.split(|b| *b == 0).any(|entry| entry == mark)
}
