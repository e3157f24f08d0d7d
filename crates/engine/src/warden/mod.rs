//! The warden: our helper inside the fence. It locks what is left open (Landlock, seccomp, limits),
//! starts the program, hands signals on to it, and tells its real end over a socket to the keeper:
//! what is around it (bubblewrap) would answer TERM by killing everything and call a signal a code.
//! Must hold nothing that the program may not have: it is as locked in as the program is.
//!
//! In a container it connects to its keeper instead of inheriting a socket, and is told the program's
//! environment there: `env LENGTH` and that many bytes of JSON, before `go`.
//!
//! Spoken over the socket, one line each. Warden: `ready LAYER..` or `refused WHY`; keeper: `go`;
//! warden: `running` or `failed WHY`, then `exit code N` or `exit signal N` (after `memory` when the
//! kernel killed in here for memory), and `left N` for processes that outlived the program and were
//! killed; keeper, at any time: `signal N`. The end of the socket means that the keeper is dead: then
//! everything goes.

#[cfg(target_os = "linux")]
mod locks;
mod relays;

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use dispatch_core::{
    cage::Policy,
    job::{Handed, WARDEN_VARIABLE},
};
use rustix::process::{Pid, Signal, WaitOptions};

use crate::keeper::{close_inherited_but, descendants, kill};

/// In the program's place: lock, say what holds, start nothing.
const LAYERS: &str = "--layers";
const HANDED_BYTES_MAX: u64 = 64 << 20;
/// From the program's end until what it left running is ended; as in the keeper.
const DRAIN: Duration = Duration::from_millis(150);
const LOOK: Duration = Duration::from_millis(5);
const ROUNDS_MAX: usize = 200;

/// The warden's `main`: the arguments behind `dispatch warden`.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    match keep(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The keeper reads this when nothing came over the socket.
            match writeln!(io::stderr(), "dispatch warden: {error}") {
                Ok(()) | Err(_) => ExitCode::from(125),
            }
        }
    }
}

fn keep(args: &[OsString]) -> io::Result<()> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    let usage = || invalid("it is started by a keeper, as: warden POLICY -- PROGRAM ARG..");
    let [policy, dashes, program, rest @ ..] = args else {
        return Err(usage());
    };
    if dashes != "--" {
        return Err(usage());
    }
    let policy: Policy = serde_json::from_slice(policy.as_encoded_bytes())
        .map_err(|error| invalid(&format!("read the policy: {error}")))?;
    if program == LAYERS {
        let layers = lock(&policy).map_err(io::Error::other)?;
        return writeln!(io::stdout(), "{}", layers.join("\n"));
    }
    let (mut keeper, contained) = socket()?;
    #[cfg(target_os = "linux")]
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let listening = match relays::listen(&policy.relays) {
        Ok(listening) => listening,
        Err(error) => return tell(&mut keeper, &format!("refused listen for a relay: {error}")),
    };
    match lock(&policy) {
        Ok(layers) => tell(&mut keeper, &format!("ready {}", layers.join(" ")))?,
        Err(why) => return tell(&mut keeper, &format!("refused {why}")),
    }
    relays::start(listening)?;
    let mut orders = BufReader::new(keeper.try_clone()?);
    let handed = if contained {
        handed(&mut orders)?
    } else {
        None
    };
    let mut line = String::new();
    orders.read_line(&mut line)?;
    if line != "go\n" {
        return Ok(());
    }
    let mut command = Command::new(program);
    command.args(rest).process_group(0);
    if let Some(handed) = handed {
        command.env_clear().envs(handed.over(&own_env()));
    }
    let child = match command.env_remove(WARDEN_VARIABLE).spawn() {
        Ok(child) => child,
        Err(error) => {
            let program = program.to_string_lossy();
            let hint = if contained && !program.contains('/') {
                ": nothing of that name is on the image's PATH"
            } else {
                ""
            };
            return tell(&mut keeper, &format!("failed run {program}: {error}{hint}"));
        }
    };
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let group = group.ok_or_else(|| io::Error::other("the program has no process number"))?;
    let_go_of_its_pipes()?;
    tell(&mut keeper, "running")?;
    let listen = move || obey(&mut orders, group);
    std::thread::Builder::new()
        .name("orders".into())
        .stack_size(64 << 10)
        .spawn(listen)?;
    attend(&mut keeper, group, contained)
}

/// The program's input and output are its own: what it runs could open them here, by `/proc`, where the
/// program itself can close that way (as our own agent does).
fn let_go_of_its_pipes() -> io::Result<()> {
    let (nothing, nobody) = rustix::pipe::pipe()?;
    rustix::stdio::dup2_stdin(nothing)?;
    rustix::stdio::dup2_stdout(nobody)?;
    Ok(())
}

#[cfg(target_os = "linux")]
fn lock(policy: &Policy) -> Result<Vec<String>, String> {
    locks::lock(policy)
}

#[cfg(not(target_os = "linux"))]
fn lock(policy: &Policy) -> Result<Vec<String>, String> {
    if policy.outer.is_empty() {
        return Err(
            "this system has neither Landlock nor seccomp, and sandbox-exec is missing".into(),
        );
    }
    Ok(policy.outer.clone())
}

/// What the image and its engine have set.
fn own_env() -> BTreeMap<String, String> {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    env::vars_os().filter_map(text).collect()
}

/// `env LENGTH`, and that many bytes.
fn handed(orders: &mut BufReader<UnixStream>) -> io::Result<Option<Handed>> {
    let mut line = String::new();
    orders.read_line(&mut line)?;
    let length = line.strip_prefix("env ").map(str::trim);
    let length = length.and_then(|length| length.parse::<u64>().ok());
    let Some(length) = length.filter(|length| *length <= HANDED_BYTES_MAX) else {
        return Err(io::Error::other("the keeper handed no environment over"));
    };
    let mut bytes = Vec::new();
    orders.take(length).read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| io::Error::other(format!("read the environment: {error}")))
}

/// The keeper's socket, every other descriptor closed; and whether it was connected to by its path.
fn socket() -> io::Result<(UnixStream, bool)> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the warden is a program of its own; its keeper can tell it a number no other way"
    )]
    let found = env::var(WARDEN_VARIABLE).unwrap_or_default();
    if found.starts_with('/') {
        let socket = UnixStream::connect(&found)?;
        close_inherited_but(&socket)?;
        return Ok((socket, true));
    }
    inherited(&found).map(|socket| (socket.into(), false))
}

fn inherited(number: &str) -> io::Result<OwnedFd> {
    let number = number
        .parse::<i32>()
        .map_err(|_| io::Error::other(format!("{WARDEN_VARIABLE} holds no descriptor")))?;
    #[cfg(target_os = "linux")]
    let fd = {
        use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
        // An owned duplicate of a bare number, without unsafe code; it closes on exec.
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        pidfd_getfd(&own, number, PidfdGetfdFlags::empty())?
    };
    #[cfg(not(target_os = "linux"))]
    let fd = std::fs::File::open(format!("/dev/fd/{number}"))?.into();
    close_inherited_but(&fd)?;
    Ok(fd)
}

fn tell(keeper: &mut UnixStream, line: &str) -> io::Result<()> {
    keeper.write_all(format!("{}\n", line.replace('\n', " ")).as_bytes())
}

/// Signals for the program's group; the end of the socket is the end of everything.
fn obey(orders: &mut BufReader<UnixStream>, group: Pid) {
    let mut line = String::new();
    while matches!(orders.read_line(&mut line), Ok(n) if n > 0) {
        let number = line.strip_prefix("signal ").map(str::trim);
        if let Some(signal) = number
            .and_then(|n| n.parse().ok())
            .and_then(Signal::from_named_raw)
        {
            match rustix::process::kill_process_group(group, signal) {
                // Gone already: its end is being told.
                Ok(()) | Err(_) => {}
            }
        }
        line.clear();
    }
    kill_all();
    std::process::exit(125);
}

/// Whether the kernel has killed in this container's cgroup for memory; version 2, then 1.
fn out_of_memory() -> bool {
    ["memory.events", "memory/memory.oom_control"]
        .iter()
        .filter_map(|file| fs::read_to_string(Path::new("/sys/fs/cgroup").join(file)).ok())
        .any(|text| {
            let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
            count.is_some_and(|count| count != "0")
        })
}

/// Waits for the program and for whatever it left behind.
fn attend(keeper: &mut UnixStream, program: Pid, contained: bool) -> io::Result<()> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == program => {
                let status = std::process::ExitStatus::from_raw(status.as_raw());
                if contained && status.signal() == Some(9) && out_of_memory() {
                    tell(keeper, "memory")?;
                }
                tell(
                    keeper,
                    &match (status.code(), status.signal()) {
                        (Some(code), _) => format!("exit code {code}"),
                        (None, signal) => format!("exit signal {}", signal.unwrap_or(9)),
                    },
                )?;
                break;
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let give_up = Instant::now() + DRAIN;
    while reap() {
        if Instant::now() >= give_up {
            let left = descendants().len();
            kill_all();
            return tell(keeper, &format!("left {left}"));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Whether any process is left below us.
fn reap() -> bool {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

fn kill_all() {
    for _ in 0..ROUNDS_MAX {
        let found = descendants();
        if found.is_empty() || !reap() {
            return;
        }
        for pid in found {
            kill(pid);
        }
        std::thread::sleep(LOOK);
    }
}
