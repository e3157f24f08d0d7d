//! The warden: our helper inside the fence. It locks what is left open (Landlock, seccomp, limits),
//! starts the program, hands signals on to it, and tells its real end over a socket to the keeper:
//! what is around it (bubblewrap) would answer TERM by killing everything and call a signal a code.
//! Must hold nothing that the program may not have: it is as locked in as the program is.
//!
//! Spoken over the socket, one line each. Warden: `ready LAYER..` or `refused WHY`; keeper: `go`;
//! warden: `running` or `failed WHY`, then `exit code N` or `exit signal N`, and `left N` for
//! processes that outlived the program and were killed; keeper, at any time: `signal N`. The end of
//! the socket means that the keeper is dead: then everything goes.

#[cfg(target_os = "linux")]
mod locks;
mod relays;

use std::{
    env,
    ffi::OsString,
    io::{self, BufRead, BufReader, Write},
    os::{
        fd::OwnedFd,
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use dispatch_core::{cage::Policy, job::WARDEN_VARIABLE};
use rustix::process::{Pid, Signal, WaitOptions};

use crate::keeper::{close_inherited_but, descendants, kill};

/// From the program's end until what it left running is ended; as in the keeper.
/// In the program's place: lock, say what holds, start nothing.
const LAYERS: &str = "--layers";
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
    let mut keeper = UnixStream::from(socket()?);
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
    let mut line = String::new();
    orders.read_line(&mut line)?;
    if line != "go\n" {
        return Ok(());
    }
    let spawned = Command::new(program)
        .args(rest)
        .env_remove(WARDEN_VARIABLE)
        .process_group(0)
        .spawn();
    let child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let program = program.to_string_lossy();
            return tell(&mut keeper, &format!("failed run {program}: {error}"));
        }
    };
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let group = group.ok_or_else(|| io::Error::other("the program has no process number"))?;
    tell(&mut keeper, "running")?;
    let listen = move || obey(&mut orders, group);
    std::thread::Builder::new()
        .name("orders".into())
        .stack_size(64 << 10)
        .spawn(listen)?;
    attend(&mut keeper, group)
}

#[cfg(target_os = "linux")]
fn lock(policy: &Policy) -> Result<Vec<String>, String> {
    locks::lock(policy)
}

#[cfg(not(target_os = "linux"))]
fn lock(policy: &Policy) -> Result<Vec<String>, String> {
    if policy.strict {
        return Err("this system has neither Landlock nor seccomp".into());
    }
    Ok(policy.outer.clone())
}

/// The socket whose number the keeper put into the environment; every other descriptor is closed.
fn socket() -> io::Result<OwnedFd> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the warden is a program of its own; its keeper can tell it a number no other way"
    )]
    let number = env::var(WARDEN_VARIABLE)
        .ok()
        .and_then(|text| text.parse::<i32>().ok())
        .ok_or_else(|| io::Error::other(format!("{WARDEN_VARIABLE} holds no descriptor")))?;
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

/// Waits for the program and for whatever it left behind.
fn attend(keeper: &mut UnixStream, program: Pid) -> io::Result<()> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == program => {
                let status = std::process::ExitStatus::from_raw(status.as_raw());
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
