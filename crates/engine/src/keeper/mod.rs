//! The keeper: our process outside the fence that owns one job. It holds the lock, starts the
//! program, writes its output and its exit, enforces its limits and owns the stop ladder, all of it
//! while the engine may be dead.
//! Must stay std and rustix: no runtime, no thread but the reaper, so that a thousand are cheap.
//! Must not know agents, git or tasks.
//!
//! `dispatch job DIR` is stage one: the leader of a new process group, which cannot become a
//! session leader, so it starts stage two and leaves. Stage two is nobody's child but init's.

mod around;
mod inside;
mod orders;
mod processes;
mod serve;
mod watch;

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            fs::OpenOptionsExt,
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use dispatch_core::{
    Millis,
    job::{Around, ExitReport, Handed, Inside, Invocation, Stdin, WARDEN_VARIABLE},
};
use rustix::process::{Pid, Resource, Rlimit};

pub(crate) use around::call;
pub use processes::sweep;
pub(crate) use processes::{close_inherited_but, descendants, kill};
pub(crate) use serve::INPUT_CLOSED;

use crate::jobdir::{Enforced, Group, JobDir, socket_path, write_whole};

/// Set in every job's environment, so that its processes can be found after its keeper's death.
pub const JOB_VARIABLE: &str = "DISPATCH_JOB";
/// The argument that tells stage two from stage one.
const STAGE_TWO: &str = "--kept";
const INVOCATION_BYTES_MAX: u64 = 64 << 20;

/// The keeper's `main`: the arguments behind `dispatch job`.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    match args {
        [dir] => match stage_one(Path::new(dir)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => refuse(&mut io::stderr(), &format!("start the keeper: {error}")),
        },
        [flag, dir] if flag == STAGE_TWO => stage_two(&JobDir::at(PathBuf::from(dir))),
        _ => refuse(
            &mut io::stderr(),
            "start the keeper: its one argument is a job directory",
        ),
    }
}

/// Tells the engine that nothing ran and nothing will.
fn refuse(report: &mut impl Write, reason: &str) -> ExitCode {
    // Nobody to tell is no reason to run: the engine then reads the files.
    match writeln!(report, "not-started {}", reason.replace('\n', " ")) {
        Ok(()) => ExitCode::from(1),
        Err(_) => ExitCode::from(2),
    }
}

fn stage_one(dir: &Path) -> io::Result<()> {
    let exe = if cfg!(target_os = "linux") {
        PathBuf::from("/proc/self/exe")
    } else {
        std::env::current_exe()?
    };
    // All three descriptors pass on as they are: invocation, lock, report.
    Command::new(exe)
        .args(["job", STAGE_TWO])
        .arg(dir)
        .env_clear()
        .spawn()?;
    Ok(())
}

fn stage_two(dir: &JobDir) -> ExitCode {
    // Only 0, 1 and 2 are ours; whatever the engine's parent left open must not reach the job.
    let closed = processes::close_inherited();
    let taken = closed.and_then(|()| take_descriptors());
    let (lock, mut report) = match taken {
        Ok(taken) => taken,
        Err(error) => {
            return refuse(
                &mut io::stderr(),
                &format!("take over descriptors: {error}"),
            );
        }
    };
    match keep(dir, &mut report) {
        Ok(()) => {
            drop(lock);
            ExitCode::SUCCESS
        }
        Err(reason) => {
            // Before the report: whoever reads it finds the directory free.
            drop(lock);
            refuse(&mut report, &reason)
        }
    }
}

/// Moves lock and report out of the way of the job, to descriptors that close on exec.
fn take_descriptors() -> io::Result<(OwnedFd, File)> {
    rustix::process::setsid()?;
    let lock = rustix::io::fcntl_dupfd_cloexec(io::stdout().as_fd(), 3)?;
    let report = rustix::io::fcntl_dupfd_cloexec(io::stderr().as_fd(), 3)?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok((lock, File::from(report)))
}

/// A truncated invocation means no start: the length comes first.
fn read_invocation() -> Result<Invocation, String> {
    let mut bytes = Vec::new();
    let mut input = io::stdin().lock().take(INVOCATION_BYTES_MAX);
    input
        .read_to_end(&mut bytes)
        .map_err(|e| format!("read the invocation: {e}"))?;
    let newline = bytes
        .iter()
        .position(|b| *b == b'\n')
        .ok_or("read the invocation: cut short")?;
    let (head, body) = bytes.split_at(newline);
    let length = std::str::from_utf8(head)
        .ok()
        .and_then(|text| text.parse::<usize>().ok());
    let body = &body[1..];
    if length != Some(body.len()) {
        return Err("read the invocation: cut short".into());
    }
    serde_json::from_slice(body).map_err(|e| format!("read the invocation: {e}"))
}

/// The bytes that [`main`] expects on its standard input.
///
/// # Errors
/// When the invocation cannot be written as JSON.
pub fn invocation_bytes(what: &Invocation) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(what).map_err(io::Error::other)?;
    let mut bytes = format!("{}\n", body.len()).into_bytes();
    bytes.extend(body);
    Ok(bytes)
}

fn keep(dir: &JobDir, report: &mut File) -> Result<(), String> {
    let what = read_invocation()?;
    let null = File::open("/dev/null").map_err(|e| format!("open /dev/null: {e}"))?;
    rustix::stdio::dup2_stdin(&null).map_err(|e| format!("let go of the invocation: {e}"))?;
    processes::become_subreaper().map_err(|e| format!("become a subreaper: {e}"))?;
    let output = |name: &str| {
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(dir.file(name))
            .map_err(|e| format!("open {name} in the job directory: {e}"))
    };
    let files = serve::Files {
        out: output("out")?,
        err: output("err")?,
        input: output("in")?,
    };
    let listener = listen(dir).map_err(|e| format!("listen on ctl: {e}"))?;
    let marker = marker(dir);
    let mut problems = Vec::new();
    let mut cgroup = None;
    // What is in a container is neither in our cgroup nor below our limits: its engine holds those.
    let (held, by) = match &what.around {
        Some(around) => {
            let held: Vec<&str> = around.holds.iter().map(String::as_str).collect();
            (held, around.word.as_str())
        }
        None => {
            cgroup = processes::Cgroup::create(&marker);
            if let Err(error) = limit_files(what.limits.open_files_max) {
                problems.push(format!("limit its open files: {error}"));
            }
            let limits = cgroup.as_ref().map(|c| c.limit(&what.limits));
            (limits.unwrap_or_default(), "cgroup")
        }
    };
    if let Some(around) = &what.around {
        // Before the container is there, so that it is found whenever we die; and one that an
        // earlier attempt may have left has our name.
        let again = dir.group().is_ok_and(|group| group.is_some());
        write_group(dir, None, None, what.around.as_ref())
            .map_err(|e| format!("write `group`: {e}"))?;
        if again {
            around::remove(around)?;
        }
    }
    let mut fenced = None;
    let layers = match &what.inside {
        Inside::Nobody => what
            .around
            .as_ref()
            .map_or_else(Vec::new, |a| a.layers.clone()),
        Inside::Warden => {
            let made = fence(&what, &marker, cgroup.as_mut());
            let (child, inside, layers) = made?;
            fenced = Some((child, inside));
            layers
        }
        Inside::Socket { dir, .. } => {
            let made = contain(&what, &marker, dir);
            let (child, inside, layers) = made.map_err(|reason| unmade(&what, reason))?;
            fenced = Some((child, inside));
            layers
        }
    };
    let enforced = Enforced {
        layers,
        limits: watch::Watch::words(&what.limits, &what.writes, &held, by),
    };
    let written = serde_json::to_vec(&enforced).map_err(io::Error::other);
    written
        .and_then(|bytes| write_whole(&dir.file("enforced"), &bytes))
        .map_err(|e| format!("write `enforced`: {e}"))?;

    let started_at = now();
    let started = dir.file("started");
    write_whole(&started, format!("{started_at}\n").as_bytes())
        .map_err(|e| format!("write `started`: {e}"))?;
    let spawned = match fenced {
        // Inside the fence the warden waits for this word.
        Some((child, mut inside)) => match inside.go(handed(&what, &marker).as_ref()) {
            Ok(()) => Ok((child, Some(inside))),
            Err(reason) => Err(unmade(&what, serve::undo(child, reason))),
        },
        None => spawn(&what, &marker, cgroup.as_mut(), None)
            .map(|child| (child, None))
            .map_err(|error| {
                let program = what.argv.first().map_or("(nothing)", String::as_str);
                format!("run {program}: {error}")
            }),
    };
    let (mut child, inside) = match spawned {
        Ok(spawned) => spawned,
        Err(reason) => {
            // Nothing ran; without this file the directory says so.
            let undone = std::fs::remove_file(&started);
            drop(cgroup);
            let also = undone
                .err()
                .map_or(String::new(), |e| format!("; remove `started`: {e}"));
            return Err(format!("{reason}{also}"));
        }
    };
    if let Err(error) = write_group(dir, Some(&child), cgroup.as_ref(), what.around.as_ref()) {
        problems.push(format!("write `group`: {error}"));
    }
    if let Err(error) = report.write_all(b"started\n") {
        // The engine died; the files tell the next one.
        problems.push(format!("report the start: {error}"));
    }
    let null = File::open("/dev/null").map_err(|e| format!("open /dev/null: {e}"))?;
    let told = std::mem::replace(report, null);
    drop(told);
    let body = serve::Body {
        inside,
        around: what.around.clone(),
        killed: None,
        cgroup,
        watch: watch::Watch::new(&what.limits, &what.writes, &held, std::time::Instant::now()),
    };
    let outcome = serve::Serve::new(&what, files, listener, &mut child, body, problems)
        .and_then(serve::Serve::run);
    let mut ended = match outcome {
        Ok(ended) => ended,
        // A keeper that cannot go on must not leave the job running unwatched.
        Err(error) => serve::give_up(&mut child, &error),
    };
    if let Some(Err(problem)) = what.around.as_ref().map(around::remove) {
        ended.problems.push(problem);
    }
    let exit = ExitReport {
        exit: ended.exit,
        stopped: ended.stopped,
        started_at,
        ended_at: now(),
        out_bytes: ended.out_bytes,
        err_bytes: ended.err_bytes,
        leftovers: ended.leftovers,
        problems: ended.problems,
    };
    let bytes = serde_json::to_vec(&exit).map_err(|e| format!("write `exit`: {e}"))?;
    write_whole(&dir.file("exit"), &bytes).map_err(|e| format!("write `exit`: {e}"))?;
    match std::fs::remove_file(dir.file("ctl")) {
        // A stale socket refuses connections, which a reader understands as well.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// `RUN/PART`, from the directory's own name.
fn marker(dir: &JobDir) -> String {
    let name = |path: Option<&Path>| {
        path.and_then(Path::file_name)
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    format!("{}/{}", name(dir.path().parent()), name(Some(dir.path())))
}

fn listen(dir: &JobDir) -> io::Result<UnixListener> {
    let (path, _open) = socket_path(dir.path(), "ctl")?;
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Starts the fence and waits until its warden has locked it. Nothing of the program runs yet.
fn fence(
    what: &Invocation,
    marker: &str,
    cgroup: Option<&mut processes::Cgroup>,
) -> Result<(Child, inside::Inside, Vec<String>), String> {
    let failed = |error: io::Error| format!("make the fence: {error}");
    let (mut inside, theirs) = inside::pair().map_err(failed)?;
    let mut child = spawn(what, marker, cgroup, Some(&theirs)).map_err(failed)?;
    drop(theirs);
    // Why there is no fence is written before the socket ends; what is not there then never comes.
    if let Some(stderr) = &child.stderr
        && let Err(error) = serve::nonblocking(stderr)
    {
        return Err(serve::undo(child, format!("make the fence: {error}")));
    }
    match inside.ready(child.stderr.as_mut()) {
        Ok(layers) => Ok((child, inside, layers)),
        Err(reason) => Err(serve::undo(child, reason)),
    }
}

/// The same for a container: its warden comes to a socket, and its engine may have to be told to end
/// what it has made.
fn contain(
    what: &Invocation,
    marker: &str,
    dir: &Path,
) -> Result<(Child, inside::Inside, Vec<String>), String> {
    let failed = |error: io::Error| format!("make the container: {error}");
    let door = inside::Door::open(dir).map_err(failed)?;
    let mut child = spawn(what, marker, None, None).map_err(failed)?;
    let made = match &child.stderr {
        Some(stderr) => serve::nonblocking(stderr).and_then(|()| door.wait(&child)),
        None => door.wait(&child),
    };
    let ready = match made {
        Ok(Some(mut inside)) => {
            let layers = inside.ready(child.stderr.as_mut());
            layers.map(|layers| (inside, layers))
        }
        Ok(None) => Err(inside::no_fence(child.stderr.as_mut())),
        Err(error) => Err(failed(error)),
    };
    match ready {
        Ok((inside, layers)) => Ok((child, inside, layers)),
        Err(reason) => Err(serve::undo(child, reason)),
    }
}

/// What a warden in a container is told over its socket, the mark of the job included.
fn handed(what: &Invocation, marker: &str) -> Option<Handed> {
    let Inside::Socket { own, .. } = &what.inside else {
        return None;
    };
    let mut env = what.env.clone();
    env.insert(JOB_VARIABLE.into(), marker.into());
    Some(Handed {
        env,
        own: own.clone(),
    })
}

/// Takes back what a container engine may have made, and passes the reason on.
fn unmade(what: &Invocation, reason: String) -> String {
    match what.around.as_ref().map(around::remove) {
        Some(Err(also)) => format!("{reason}; {also}"),
        Some(Ok(())) | None => reason,
    }
}

/// Of each process below us, and no core files. More than our own limit we cannot give.
fn limit_files(open_files_max: u64) -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none)?;
    let now = rustix::process::getrlimit(Resource::Nofile);
    if open_files_max == 0 || now.maximum.is_some_and(|most| most <= open_files_max) {
        return Ok(());
    }
    let limit = Rlimit {
        current: Some(
            now.current
                .map_or(open_files_max, |c| c.min(open_files_max)),
        ),
        maximum: Some(open_files_max),
    };
    Ok(rustix::process::setrlimit(Resource::Nofile, limit)?)
}

/// From the main thread: a cage dies with the thread that started it.
fn spawn(
    what: &Invocation,
    marker: &str,
    cgroup: Option<&mut processes::Cgroup>,
    warden: Option<&UnixStream>,
) -> io::Result<Child> {
    let (program, args) = what
        .argv
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the argv is empty"))?;
    let stdin = match what.stdin {
        Stdin::Null => Stdio::null(),
        Stdin::Bytes(_) | Stdin::Open => Stdio::piped(),
    };
    // A container's client gets its own; the job's goes to the warden.
    let env = match (&what.inside, &what.around) {
        (Inside::Socket { .. }, Some(around)) => &around.env,
        _ => &what.env,
    };
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(env)
        .env(JOB_VARIABLE, marker)
        .current_dir(&what.cwd)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    if let Some(socket) = warden {
        command.env(WARDEN_VARIABLE, socket.as_raw_fd().to_string());
    }
    match cgroup {
        Some(cgroup) => cgroup.around(|| command.spawn()),
        None => command.spawn(),
    }
}

fn write_group(
    dir: &JobDir,
    child: Option<&Child>,
    cgroup: Option<&processes::Cgroup>,
    around: Option<&Around>,
) -> io::Result<()> {
    let pgid = i32::try_from(child.map_or(0, Child::id)).map_err(io::Error::other)?;
    let group = Group {
        boot_id: processes::boot_id()?,
        keeper: rustix::process::getpid().as_raw_nonzero().get(),
        pgid,
        start_ticks: Pid::from_raw(pgid).map_or(Ok(0), processes::start_ticks)?,
        cgroup: cgroup.and_then(|c| c.path()).map(Path::to_owned),
        around: around.cloned(),
    };
    write_whole(
        &dir.file("group"),
        &serde_json::to_vec(&group).map_err(io::Error::other)?,
    )
}

/// What is left to see of an output that comes in these pieces; for the fuzzer.
pub(crate) fn masked(secrets: &[&str], pieces: &[&[u8]]) -> Vec<u8> {
    let mut redactor = dispatch_core::redact::Redactor::new(secrets.iter().copied());
    let mut shown: Vec<u8> = pieces
        .iter()
        .flat_map(|piece| redactor.push(piece))
        .collect();
    shown.extend(redactor.finish());
    shown
}

/// Every order in bytes that come in these pieces, in words, and whether the sender was cut off; for
/// the fuzzer.
pub(crate) fn orders(pieces: &[&[u8]]) -> (Vec<String>, bool) {
    let (mut orders, mut all) = (orders::Orders::default(), Vec::new());
    for piece in pieces {
        orders.push(piece);
        loop {
            match orders.take() {
                Ok(Some(order)) => all.push(format!("{order:?}")),
                Ok(None) => break,
                Err(orders::TooLong) => return (all, true),
            }
        }
    }
    (all, false)
}

fn now() -> Millis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
