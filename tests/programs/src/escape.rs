//! The escape kit: what a hostile agent tries first, one attempt to an order. Each prints
//! `NAME: refused (why)` or `NAME: GOT OUT`, so that a test can name what held and what did not.
//! Must attempt the real thing: an attempt that fails for a reason of its own proves nothing, so
//! system calls count as refused only with the fence's own error number.
//!
//! To add an attempt: a row in `CALLS`, or an arm in [`attempt`].

#![allow(
    clippy::print_stdout,
    reason = "a part of the fake agent, which speaks by its output"
)]

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixStream},
    },
    process::Command,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal};

/// Name, number, arguments, and the error that the fence gives.
#[rustfmt::skip]
const CALLS: &[(&str, i64, &[i64], i32)] = &[
    ("ptrace", libc::SYS_ptrace, &[0, 0, 0, 0], libc::EPERM),
    ("mount", libc::SYS_mount, &[0, 0, 0, 0, 0], libc::EPERM),
    ("umount", libc::SYS_umount2, &[0, 0], libc::EPERM),
    ("open_tree", libc::SYS_open_tree, &[0, 0, 0], libc::EPERM),
    ("move_mount", libc::SYS_move_mount, &[0, 0, 0, 0, 0], libc::EPERM),
    ("unshare-user", libc::SYS_unshare, &[libc::CLONE_NEWUSER as i64], libc::EPERM),
    ("setns", libc::SYS_setns, &[0, 0], libc::EPERM),
    ("chroot", libc::SYS_chroot, &[0], libc::EPERM),
    ("keyctl", libc::SYS_keyctl, &[0, -3, 0, 0, 0], libc::EPERM),
    ("add_key", libc::SYS_add_key, &[0, 0, 0, 0, 0], libc::EPERM),
    ("bpf", libc::SYS_bpf, &[0, 0, 0], libc::EPERM),
    ("perf", libc::SYS_perf_event_open, &[0, 0, 0, 0, 0], libc::EPERM),
    ("io_uring", libc::SYS_io_uring_setup, &[1, 0], libc::EPERM),
    ("userfaultfd", libc::SYS_userfaultfd, &[0], libc::EPERM),
    ("process_vm_readv", libc::SYS_process_vm_readv, &[1, 0, 0, 0, 0, 0], libc::EPERM),
    ("init_module", libc::SYS_init_module, &[0, 0, 0], libc::EPERM),
    ("kexec", libc::SYS_kexec_load, &[0, 0, 0, 0], libc::EPERM),
    ("open_by_handle", libc::SYS_open_by_handle_at, &[0, 0, 0], libc::EPERM),
    ("sethostname", libc::SYS_sethostname, &[0, 0], libc::EPERM),
    ("settime", libc::SYS_clock_settime, &[0, 0], libc::EPERM),
    ("clone3", libc::SYS_clone3, &[0, 0], libc::ENOSYS),
    ("mknod-device", libc::SYS_mknodat, &[-100, 0, 0o020_666, 0x103], libc::EPERM),
];

/// The names of all system calls that are tried.
pub fn calls() -> impl Iterator<Item = &'static str> {
    CALLS.iter().map(|(name, ..)| *name)
}

/// `NAME KIND WHAT`: tries it and prints what came of it.
///
/// # Errors
/// When the attempt could not even be made.
pub fn attempt(order: &str) -> Result<()> {
    let mut words = order.splitn(3, ' ');
    let (Some(name), Some(kind)) = (words.next(), words.next()) else {
        bail!("an attempt has a name and a kind");
    };
    let what = words.next().unwrap_or_default();
    let made = match kind {
        "read" => read(what),
        "write" => write(what),
        "signal" => signal(what.parse().context("a process number")?),
        "unix" => UnixStream::connect(what)
            .map(drop)
            .map_err(|e| e.to_string()),
        "abstract" => abstract_socket(what),
        "tcp" => TcpStream::connect(what)
            .map(drop)
            .map_err(|e| e.to_string()),
        "resolve" => resolve(what),
        "proxy" => through_proxy(what)?,
        "limit" => raise_limit(),
        "setuid" => become_another()?,
        "call" => call(what)?,
        "x32" => x32()?,
        other => bail!("unknown kind of attempt {other}"),
    };
    match made {
        Ok(()) => println!("{name}: GOT OUT"),
        Err(why) => println!("{name}: refused ({why})"),
    }
    Ok(())
}

fn read(path: &str) -> std::result::Result<(), String> {
    let mut byte = [0];
    let opened = File::open(path).and_then(|mut file| file.read(&mut byte));
    match opened {
        Ok(0) => Err("nothing in it".into()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn write(path: &str) -> std::result::Result<(), String> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    let written = opened.and_then(|mut file| file.write_all(b"here\n"));
    written.map_err(|e| e.to_string())
}

fn signal(pid: i32) -> std::result::Result<(), String> {
    let pid = Pid::from_raw(pid).ok_or("no process number")?;
    rustix::process::kill_process(pid, Signal::WINCH).map_err(|e| e.to_string())
}

fn abstract_socket(name: &str) -> std::result::Result<(), String> {
    let address = SocketAddr::from_abstract_name(name).map_err(|e| e.to_string())?;
    let connected = UnixStream::connect_addr(&address);
    connected.map(drop).map_err(|e| e.to_string())
}

fn resolve(name: &str) -> std::result::Result<(), String> {
    match (name, 443).to_socket_addrs() {
        Ok(mut found) => found.next().map(drop).ok_or("no address".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Counts as refused only when the proxy itself said so.
fn through_proxy(target: &str) -> Result<std::result::Result<(), String>> {
    let proxy = std::env::var("HTTPS_PROXY").context("HTTPS_PROXY is not set")?;
    let proxy = proxy.strip_prefix("http://").unwrap_or(&proxy);
    let mut stream = TcpStream::connect(proxy).context("connect to the proxy")?;
    write!(stream, "CONNECT {target} HTTP/1.1\r\n\r\n")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    Ok(if answer.ends_with(" 403") {
        Err(answer)
    } else {
        println!("answer {answer:?}");
        Ok(())
    })
}

fn raise_limit() -> std::result::Result<(), String> {
    let now = rustix::process::getrlimit(Resource::Nofile);
    let more = now.maximum.map(|most| most + 1);
    let limit = Rlimit {
        current: more,
        maximum: more,
    };
    rustix::process::setrlimit(Resource::Nofile, limit).map_err(|e| e.to_string())
}

/// By a call, and by a program that is set-uid on most systems.
fn become_another() -> Result<std::result::Result<(), String>> {
    let script = "my $r = syscall(shift, 12345); print $r == -1 ? 0 : 1";
    let number = libc::SYS_setuid.to_string();
    let call = Command::new("perl")
        .args(["-e", script, &number])
        .output()?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).unwrap_or_default().to_owned()
    };
    let (privileges, capabilities) = (field("NoNewPrivs:"), field("CapEff:"));
    let held = call.stdout == b"0" && privileges == "1";
    Ok(if held {
        Err(format!("no new privileges, capabilities {capabilities}"))
    } else {
        Ok(())
    })
}

/// By perl, which every Debian has: a bare system call is unsafe code in Rust.
fn call(name: &str) -> Result<std::result::Result<(), String>> {
    let row = CALLS.iter().find(|(known, ..)| *known == name);
    let (_, number, arguments, refusal) = row.with_context(|| format!("no call {name}"))?;
    bare(*number, arguments, *refusal)
}

/// getpid under its x32 number: harmless, and a way past every rule by number if it is let through.
fn x32() -> Result<std::result::Result<(), String>> {
    bare(0x4000_0000 + 39, &[], libc::ENOSYS)
}

fn bare(number: i64, arguments: &[i64], refusal: i32) -> Result<std::result::Result<(), String>> {
    let script = "my @a = map { int } @ARGV; my $r = syscall(shift(@a), @a); \
                  print $r == -1 ? 0 + $! : 0";
    let mut command = Command::new("perl");
    command.args(["-e", script, "--", &number.to_string()]);
    command.args(arguments.iter().map(ToString::to_string));
    let output = command.output().context("run perl")?;
    let errno = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if errno == refusal.to_string() {
        return Ok(Err(format!("error {errno}")));
    }
    // The kernel's own complaint about nonsense arguments means that the call came through.
    println!("error {errno:?} instead of {refusal}, {}", output.status);
    Ok(Ok(()))
}
