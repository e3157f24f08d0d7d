//! Whoever holds the data directory's lock is the engine.
//! Must not be held by anything else, and must not be broken by anybody: it goes with the process.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};

const NAME: &str = "engine.lock";
const TRIES_MAX: usize = 25;
const TRY_AGAIN: Duration = Duration::from_millis(2);

/// Held as long as this lives.
#[derive(Debug)]
pub struct EngineLock {
    _file: File,
}

/// Takes the lock, or `None` when another engine has it.
///
/// # Errors
/// When the data directory cannot be made or its lock not opened.
pub fn take(data: &Path) -> io::Result<Option<EngineLock>> {
    DirBuilder::new().recursive(true).mode(0o700).create(data)?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(data.join(NAME))?;
    // Whoever asks `is_held` has a shared lock for microseconds, and a child of the last engine may
    // hold a copy between its fork and its exec.
    for _ in 0..TRIES_MAX {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(EngineLock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(TRY_AGAIN),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// Whether an engine lives for this data directory.
///
/// # Errors
/// When the lock cannot be asked.
pub fn is_held(data: &Path) -> io::Result<bool> {
    let file = match File::open(data.join(NAME)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
