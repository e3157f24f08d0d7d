//! This machine: a job is a keeper started here, followed through its files and its `ctl` socket.
//! Must not keep anything of a process but the name of its directory, and must not poll: "grew"
//! comes over `ctl`, and the end of `ctl` means probe.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    os::unix::{fs::FileExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use dispatch_core::{
    Millis,
    job::{Invocation, JobId, Offset, Order},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

use super::{BoxFuture, Enforced, Follow, JobEvent, Site, Start};
use crate::{
    jobdir::{JobDir, Probe, socket_path},
    keeper,
};

const CHUNK_BYTES: usize = 64 << 10;
const REPORT_BYTES_MAX: u64 = 16 << 10;
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);
/// While a keeper has the lock and no socket yet: the time between two looks, doubled each time.
const LOOK_AGAIN_MS: u64 = 2;
const LOOK_AGAIN_MS_MAX: u64 = 500;

/// How to start a keeper.
#[derive(Clone, Debug)]
pub struct Keeper {
    program: PathBuf,
    args: Vec<OsString>,
}

impl Keeper {
    /// Our own executable, whatever has been put in its place on disk since we started.
    #[must_use]
    pub fn own() -> Self {
        let program = if cfg!(target_os = "linux") {
            PathBuf::from("/proc/self/exe")
        } else {
            std::env::current_exe().unwrap_or_else(|_| PathBuf::from("dispatch"))
        };
        Self {
            program,
            args: vec!["job".into()],
        }
    }

    /// Another program that calls [`keeper::main`] when its first argument is `job`.
    #[must_use]
    pub fn program(program: PathBuf) -> Self {
        Self {
            program,
            args: vec!["job".into()],
        }
    }
}

impl Keeper {
    /// The file to copy it from.
    pub(crate) fn path(&self) -> &Path {
        &self.program
    }
}

#[derive(Clone, Debug)]
pub struct Local {
    data: PathBuf,
    keeper: Keeper,
}

impl Local {
    #[must_use]
    pub fn new(data: PathBuf, keeper: Keeper) -> Self {
        Self { data, keeper }
    }

    fn start_blocking(&self, job: &JobId, what: &Invocation) -> Start {
        let dir = JobDir::of(&self.data, job);
        let not_started = |doing: &str, error: io::Error| {
            Start::NotStarted(format!("{doing} {}: {error}", dir.path().display()))
        };
        if let Err(error) = dir.create() {
            return not_started("make the job directory", error);
        }
        let lock = match dir.lock() {
            Ok(Some(lock)) => lock,
            Ok(None) => return Start::Unknown("a keeper has this job already".into()),
            Err(error) => return not_started("lock the job directory", error),
        };
        if dir.file("started").exists() {
            return Start::Unknown("this job was started before".into());
        }
        let invocation = match keeper::invocation_bytes(what) {
            Ok(bytes) => bytes,
            Err(error) => return not_started("write the invocation for", error),
        };
        let spawned = Command::new(&self.keeper.program)
            .args(&self.keeper.args)
            .arg(dir.path())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            // The lock goes with the keeper: no moment in which nobody has it.
            .stdout(Stdio::from(lock))
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => return not_started("start a keeper for", error),
        };
        let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
        let mut problem = String::new();
        if let Some(mut stdin) = stdin {
            // A keeper that refuses may not read to the end; its report says why.
            if let Err(error) = stdin.write_all(&invocation) {
                problem = format!("; hand over the invocation: {error}");
            }
        }
        let mut report = String::new();
        if let Some(stderr) = stderr
            && let Err(error) = stderr.take(REPORT_BYTES_MAX).read_to_string(&mut report)
        {
            problem.push_str(&format!("; read the keeper's report: {error}"));
        }
        if let Err(error) = child.wait() {
            problem.push_str(&format!("; wait for the keeper's first stage: {error}"));
        }
        if report.starts_with("started") {
            return Start::Started;
        }
        if let Some(reason) = report.strip_prefix("not-started ") {
            return Start::NotStarted(reason.trim().to_owned());
        }
        // It died before it could say; the files know.
        match dir.probe() {
            Ok(Probe::Alive | Probe::Exited(_)) => Start::Started,
            Ok(Probe::NeverStarted) => {
                Start::NotStarted(format!("the keeper ended before the start{problem}"))
            }
            Ok(Probe::Starting | Probe::Gone) => Start::Unknown(format!(
                "the keeper did not say whether it started{problem}"
            )),
            Err(error) => Start::Unknown(format!("ask the job directory: {error}{problem}")),
        }
    }
}

impl Site for Local {
    fn put<'a>(&'a self, path: &'a Path, bytes: &'a [u8]) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            if let Some(parent) = path.parent() {
                tokio::fs::create_dir_all(parent).await?;
            }
            tokio::fs::write(path, bytes).await
        })
    }

    fn start<'a>(&'a self, job: &'a JobId, what: &'a Invocation) -> BoxFuture<'a, Start> {
        let (site, job, what) = (self.clone(), job.clone(), what.clone());
        Box::pin(async move {
            let started = tokio::task::spawn_blocking(move || site.start_blocking(&job, &what));
            match started.await {
                Ok(start) => start,
                Err(error) => Start::Unknown(format!("start the job: {error}")),
            }
        })
    }

    fn follow<'a>(
        &'a self,
        job: &'a JobId,
        from: Offset,
    ) -> BoxFuture<'a, io::Result<Box<dyn Follow>>> {
        let dir = JobDir::of(&self.data, job);
        Box::pin(async move { Ok(Box::new(LocalFollow::new(dir, from)) as Box<dyn Follow>) })
    }

    fn enforced<'a>(&'a self, job: &'a JobId) -> BoxFuture<'a, io::Result<Option<Enforced>>> {
        let dir = JobDir::of(&self.data, job);
        Box::pin(async move { dir.enforced() })
    }

    fn given<'a>(&'a self, job: &'a JobId) -> BoxFuture<'a, io::Result<BTreeSet<u64>>> {
        let dir = JobDir::of(&self.data, job);
        Box::pin(async move {
            let read = tokio::task::spawn_blocking(move || dir.given()).await;
            read.map_err(io::Error::other)?
        })
    }

    fn grew_at<'a>(&'a self, job: &'a JobId) -> BoxFuture<'a, io::Result<Option<Millis>>> {
        let dir = JobDir::of(&self.data, job);
        Box::pin(async move { dir.grew_at() })
    }

    fn order<'a>(&'a self, job: &'a JobId, order: &'a Order) -> BoxFuture<'a, io::Result<()>> {
        let dir = JobDir::of(&self.data, job);
        Box::pin(async move {
            let late = || io::Error::new(io::ErrorKind::TimedOut, "the keeper did not answer");
            let given = tokio::time::timeout(ORDER_TIMEOUT, give(&dir, order));
            given.await.map_err(|_| late())?
        })
    }
}

/// A keeper that goes away in the middle of an order has no job any more.
fn hung_up(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            io::Error::new(io::ErrorKind::NotFound, "the job ended before it answered")
        }
        _ => error,
    }
}

async fn give(dir: &JobDir, order: &Order) -> io::Result<()> {
    let Some(mut stream) = connect(dir).await? else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the job has ended"));
    };
    let why = |stop| serde_json::to_string(stop).map_err(io::Error::other);
    let (line, body): (String, &[u8]) = match order {
        Order::Say { id, bytes } => (format!("say {id} {}\n", bytes.len()), bytes),
        Order::CloseInput => ("close\n".into(), &[]),
        Order::Stop {
            why: stop,
            grace_ms,
        } => (format!("stop {grace_ms} {}\n", why(stop)?), &[]),
        Order::Kill { why: stop } => (format!("stop 0 {}\n", why(stop)?), &[]),
    };
    // One that is turned away is told why before it has said anything.
    let written = async {
        stream.write_all(line.as_bytes()).await?;
        stream.write_all(body).await
    };
    let written = written.await;
    let mut answer = String::new();
    let read = BufReader::new(stream).read_line(&mut answer).await;
    if answer.is_empty() {
        written.and(read.map(drop)).map_err(hung_up)?;
    }
    match answer.trim_end().split_once(' ') {
        Some(("no", keeper::INPUT_CLOSED)) => Err(io::Error::new(
            io::ErrorKind::BrokenPipe,
            keeper::INPUT_CLOSED,
        )),
        Some(("no", reason)) => Err(io::Error::other(reason.to_owned())),
        None if answer == "ok\n" => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the job ended before it answered",
        )),
    }
}

/// `None` when nobody listens: the keeper is not there yet, or no more.
async fn connect(dir: &JobDir) -> io::Result<Option<UnixStream>> {
    let (path, _open) = match socket_path(dir.path(), "ctl") {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match UnixStream::connect(&path).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::ConnectionReset
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Reads the files of one job, woken by its keeper.
#[derive(Debug)]
pub struct LocalFollow {
    dir: JobDir,
    at: Offset,
    out: Option<File>,
    err: Option<File>,
    ctl: Option<UnixStream>,
    end: Option<JobEvent>,
    told_alive: bool,
    look_again_ms: u64,
}

impl LocalFollow {
    #[must_use]
    pub fn new(dir: JobDir, from: Offset) -> Self {
        Self {
            dir,
            at: from,
            out: None,
            err: None,
            ctl: None,
            end: None,
            told_alive: false,
            look_again_ms: LOOK_AGAIN_MS,
        }
    }

    async fn step(&mut self) -> io::Result<JobEvent> {
        loop {
            // Reads of pages that were written a moment ago: too short to be worth another thread.
            if let Some(bytes) = read_on(&self.dir, "out", &mut self.out, &mut self.at.out)? {
                return Ok(JobEvent::Out(bytes));
            }
            if let Some(bytes) = read_on(&self.dir, "err", &mut self.err, &mut self.at.err)? {
                return Ok(JobEvent::Err(bytes));
            }
            if let Some(end) = &self.end {
                return Ok(end.clone());
            }
            if self.ctl.is_some() && !self.told_alive {
                self.told_alive = true;
                return Ok(JobEvent::Alive);
            }
            if let Some(ctl) = &self.ctl {
                ctl.readable().await?;
                let mut sink = [0; 256];
                match ctl.try_read(&mut sink) {
                    Ok(0) => self.ctl = None,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => self.ctl = None,
                }
                continue;
            }
            self.attach().await?;
        }
    }

    /// Finds the keeper, or the end.
    async fn attach(&mut self) -> io::Result<()> {
        if let Some(mut stream) = connect(&self.dir).await? {
            // Asked to watch before the files are read once more, so that no growth is missed.
            if stream.write_all(b"watch\n").await.is_ok() {
                self.ctl = Some(stream);
                self.look_again_ms = LOOK_AGAIN_MS;
                return Ok(());
            }
        }
        match self.dir.probe()? {
            Probe::Exited(report) => self.end = Some(JobEvent::Exited(report)),
            Probe::NeverStarted => self.end = Some(JobEvent::NeverStarted),
            Probe::Gone => {
                let dir = self.dir.clone();
                let swept = tokio::task::spawn_blocking(move || keeper::sweep(&dir)).await;
                swept.map_err(io::Error::other)??;
                self.end = Some(JobEvent::Gone);
            }
            // Between its lock and its socket, or between its exit and its end.
            Probe::Starting | Probe::Alive => {
                tokio::time::sleep(Duration::from_millis(self.look_again_ms)).await;
                self.look_again_ms = (self.look_again_ms * 2).min(LOOK_AGAIN_MS_MAX);
            }
        }
        Ok(())
    }
}

impl Follow for LocalFollow {
    fn next(&mut self) -> BoxFuture<'_, io::Result<JobEvent>> {
        Box::pin(self.step())
    }
}

fn read_on(
    dir: &JobDir,
    name: &str,
    file: &mut Option<File>,
    at: &mut u64,
) -> io::Result<Option<Vec<u8>>> {
    if file.is_none() {
        match File::open(dir.file(name)) {
            Ok(opened) => *file = Some(opened),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    let Some(opened) = file else { return Ok(None) };
    let mut bytes = vec![0; CHUNK_BYTES];
    let n = opened.read_at(&mut bytes, *at)?;
    bytes.truncate(n);
    *at += n as u64;
    Ok((n > 0).then_some(bytes))
}
