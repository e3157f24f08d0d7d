//! Calls of a container engine's client, for what only the engine can end: its containers are no
//! children of ours. Must not wait without a limit, and must not touch a container but the job's own.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Child, Command, Stdio},
    time::Duration,
};

use dispatch_core::job::Around;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open},
};

use super::{processes, serve};

const REMOVE: Duration = Duration::from_secs(60);
const SAID_BYTES_MAX: usize = 16 << 10;

/// Ends and removes the job's container, if there is one, and the directory of its warden's socket.
pub(super) fn remove(around: &Around) -> Result<(), String> {
    let removed = call(&around.remove, &around.env, REMOVE)
        .map(drop)
        .map_err(|why| format!("remove the container with {}: {why}", around.word));
    if let Some(dir) = &around.dir {
        match fs::remove_dir_all(dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return removed.and(Err(format!("remove {}: {error}", dir.display()))),
        }
    }
    removed
}

/// Starts a call and leaves it to whoever reaps our children.
pub(super) fn begin(argv: &[String], env: &BTreeMap<String, String>) -> io::Result<Child> {
    command(argv, env)?.spawn()
}

fn command(argv: &[String], env: &BTreeMap<String, String>) -> io::Result<Command> {
    let (program, args) = argv
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the argv is empty"))?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(env)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    Ok(command)
}

/// One call of a client to its end, and what it printed (a few kilobytes of it at most).
pub(crate) fn call(
    argv: &[String],
    env: &BTreeMap<String, String>,
    limit: Duration,
) -> Result<String, String> {
    let piped = |mut command: Command| {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn()
    };
    let spawned = command(argv, env).and_then(piped);
    let mut child = spawned.map_err(|error| error.to_string())?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let late = match pid.map(|pid| (pid, ended_within(pid, limit))) {
        Some((pid, Ok(false))) => {
            processes::signal_group(pid, Signal::KILL);
            true
        }
        _ => false,
    };
    let status = match child.wait() {
        Ok(status) => Some(status),
        // Another thread of ours waits for every child; it has ended all the same.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::CHILD.raw_os_error()) => None,
        Err(error) => return Err(error.to_string()),
    };
    if late {
        return Err(format!("it did not end within {} s", limit.as_secs()));
    }
    if status.is_none_or(|status| status.success()) {
        return Ok(said(stdout));
    }
    let why = said(stderr);
    // Docker calls it an error to remove what is not there; for us it is the aim.
    if why.to_lowercase().contains("no such container") {
        return Ok(why);
    }
    // The last line is the engine's own; before it may be warnings.
    let last = why.lines().rfind(|line| !line.trim().is_empty());
    Err(last.unwrap_or("it gave no reason").to_owned())
}

/// What a process that has ended left in its pipe; a child of its that lives on is not waited for.
fn said(pipe: Option<impl Read + AsFd>) -> String {
    let mut bytes = vec![0; SAID_BYTES_MAX];
    let mut length = 0;
    if let Some(mut pipe) = pipe.filter(|pipe| serve::nonblocking(pipe).is_ok()) {
        while let Ok(n @ 1..) = pipe.read(&mut bytes[length..]) {
            length += n;
        }
    }
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

/// Whether a child of ours ends in time.
fn ended_within(pid: Pid, limit: Duration) -> io::Result<bool> {
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::SRCH) => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    let timeout = Timespec::try_from(limit).map_err(io::Error::other)?;
    loop {
        let mut fds = [PollFd::new(&handle, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(hits) => return Ok(hits > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_client_that_hangs_is_ended_and_what_it_says_is_passed_on() {
        let env = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        let ask = |script: &str, ms| {
            let limit = Duration::from_millis(ms);
            call(&argv(&["sh", "-c", script]), &env, limit)
        };
        assert_eq!(ask("echo yes", 60_000), Ok("yes\n".into()));
        let gone = ask("echo 'Error: No such container: x' >&2; exit 1", 60_000);
        assert!(gone.is_ok(), "{gone:?}");
        assert_eq!(ask("echo sorry >&2; exit 1", 60_000), Err("sorry".into()));
        assert!(
            ask("exec sleep 1000", 1)
                .unwrap_err()
                .contains("did not end")
        );
        assert!(call(&argv(&["/nowhere/docker"]), &env, REMOVE).is_err());
        assert!(call(&[], &env, REMOVE).is_err());
    }
}
