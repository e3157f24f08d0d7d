//! The job directory: the one mechanism that survives us. Names of its files, and what they mean
//! together. Must not start, signal or write anything but what `create` lays down.
//!
//! ```text
//! version  of this layout             lock   held by the keeper while it lives
//! started  written before the exec    out err  raw bytes, append-only, masked, capped
//! in       every byte given to stdin  exit   written once by rename
//! group    for sweeping               ctl    a socket; a convenience, the files are the truth
//! enforced what is really around it
//! ```

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use dispatch_core::{
    Millis,
    job::{Around, ExitReport, JobId},
};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

pub const LAYOUT_VERSION: u32 = 1;

/// Small files of ours are read up to this; larger ones are not ours.
const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;
/// `say ID LENGTH`, or `close`.
const FRAME_HEAD_BYTES_MAX: u64 = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobDir(PathBuf);

/// The content of the `enforced` file: what was really put around a job, before it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Enforced {
    /// Layers of the fence; none for a job on the host.
    pub layers: Vec<String>,
    /// Limits beyond time and output, each with what enforces it.
    pub limits: Vec<String>,
}

/// What lock, `started` and `exit` mean together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Safe to start.
    NeverStarted,
    /// A keeper has the lock and has not said `started` yet.
    Starting,
    Alive,
    Exited(ExitReport),
    /// The keeper died before it could write the exit.
    Gone,
}

/// What is needed to find the job's processes after its keeper's death.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub boot_id: String,
    pub keeper: i32,
    pub pgid: i32,
    /// Of the group's leader, in clock ticks since boot, so that a reused number is not hit.
    pub start_ticks: u64,
    /// A cgroup v2 directory of this job alone.
    pub cgroup: Option<PathBuf>,
    /// The container engine that has the job, and how to tell it to end that.
    #[serde(default)]
    pub around: Option<Around>,
}

impl JobDir {
    /// `<data>/runs/<run>/<part>`.
    #[must_use]
    pub fn of(data: &Path, job: &JobId) -> Self {
        Self(
            data.join("runs")
                .join(job.run.to_string())
                .join(job.part.to_string()),
        )
    }

    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes the directory, for us alone, and says which layout it has.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn create(&self) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)?;
        let version = self.file("version");
        if !version.exists() {
            fs::write(version, format!("{LAYOUT_VERSION}\n"))?;
        }
        Ok(())
    }

    /// Takes the lock for a start, or `None` when somebody has it.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn lock(&self) -> io::Result<Option<File>> {
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.file("lock"))?;
        // A prober holds a shared lock for microseconds; a keeper for its life.
        for _ in 0..50 {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(lock)),
                Err(rustix::io::Errno::WOULDBLOCK) => std::thread::yield_now(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Asks the files. The lock first, with a shared probe; `exit` only afterwards.
    ///
    /// # Errors
    /// When the file system refuses, or `exit` is not ours.
    pub fn probe(&self) -> io::Result<Probe> {
        let lock = match File::open(self.file("lock")) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Probe::NeverStarted);
            }
            Err(error) => return Err(error),
        };
        let held = match flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => false,
            Err(rustix::io::Errno::WOULDBLOCK) => true,
            Err(error) => return Err(error.into()),
        };
        let started = self.file("started").exists();
        if held {
            // An exit that is there already means that it is about to let go of the lock.
            return Ok(if started {
                Probe::Alive
            } else {
                Probe::Starting
            });
        }
        match self.exit()? {
            Some(report) => Ok(Probe::Exited(report)),
            None if started => Ok(Probe::Gone),
            None => Ok(Probe::NeverStarted),
        }
    }

    /// # Errors
    /// When the file is there and cannot be read as an exit.
    pub fn exit(&self) -> io::Result<Option<ExitReport>> {
        read_json(&self.file("exit"))
    }

    /// # Errors
    /// When the file is there and cannot be read as a group.
    pub fn group(&self) -> io::Result<Option<Group>> {
        read_json(&self.file("group"))
    }

    /// Ids of what was given to its input: the frames of `in`, as far as they are whole.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn given(&self) -> io::Result<BTreeSet<u64>> {
        let file = match File::open(self.file("in")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(error),
        };
        let mut frames = BufReader::new(file);
        let mut given = BTreeSet::new();
        let mut head = Vec::new();
        loop {
            head.clear();
            let limited = &mut (&mut frames).take(FRAME_HEAD_BYTES_MAX);
            limited.read_until(b'\n', &mut head)?;
            if head == b"close\n" {
                continue;
            }
            let words = std::str::from_utf8(&head).ok();
            let said = words.and_then(|words| words.strip_prefix("say ")?.strip_suffix('\n'));
            let Some((id, length)) = said.and_then(|said| said.split_once(' ')) else {
                return Ok(given);
            };
            let (Ok(id), Ok(length)) = (id.parse(), length.parse::<u64>()) else {
                return Ok(given);
            };
            let body = &mut (&mut frames).take(length.saturating_add(1));
            if io::copy(body, &mut io::sink())? <= length {
                return Ok(given);
            }
            given.insert(id);
        }
    }

    /// When it last wrote something; `None`: it has no output yet.
    ///
    /// # Errors
    /// When a file of its output is there and cannot be looked at.
    pub fn grew_at(&self) -> io::Result<Option<Millis>> {
        let mut last = None;
        for name in ["out", "err"] {
            let modified = match fs::metadata(self.file(name)) {
                Ok(meta) => meta.modified()?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
            last = last.max(Some(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)));
        }
        Ok(last)
    }

    /// # Errors
    /// When the file is there and cannot be read as what was enforced.
    pub fn enforced(&self) -> io::Result<Option<Enforced>> {
        read_json(&self.file("enforced"))
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(SMALL_FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    small_json(&bytes).map(Some)
}

pub(crate) fn small_json<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(io::Error::other)
}

/// Writes a small file so that a reader sees all of it or nothing.
///
/// # Errors
/// When the file system refuses.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let temporary = PathBuf::from(name);
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, path)
}

/// A path to a socket in `dir` that fits the 107 bytes a socket address has, and what must stay
/// open while it is used.
///
/// # Errors
/// When the directory cannot be opened.
pub fn socket_path(dir: &Path, name: &str) -> io::Result<(PathBuf, Option<File>)> {
    use std::os::fd::AsRawFd;
    const SOCKET_PATH_BYTES_MAX: usize = 107;
    let direct = dir.join(name);
    if direct.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return Ok((direct, None));
    }
    let handle = File::open(dir)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}/{name}", handle.as_raw_fd()));
    Ok((short, Some(handle)))
}
