//! How far each hook has been told, and what went wrong last: one small file per hook, replaced as a
//! whole. Must not be the truth about anything else; the log is.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use dispatch_core::{
    Millis,
    id::{HookName, Seq},
};
use serde::{Deserialize, Serialize};

/// `data/notify/NAME.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// Everything up to here is delivered, given up or not for this hook.
    pub(crate) seq: Seq,
    /// The last failure, until a delivery succeeds.
    pub(crate) failure: Option<Failure>,
    /// Notices that never went out.
    pub(crate) dropped: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) at: Millis,
    pub(crate) what: String,
}

fn dir(data: &Path) -> PathBuf {
    data.join("notify")
}

fn path(data: &Path, hook: &HookName) -> PathBuf {
    dir(data).join(format!("{hook}.json"))
}

/// `None` when the hook has never been served.
///
/// # Errors
/// When there is a file and it cannot be read, or is not one of ours.
pub(crate) fn read(data: &Path, hook: &HookName) -> io::Result<Option<Cursor>> {
    match fs::read(path(data, hook)) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Durable when it returns.
///
/// # Errors
/// When the file system refuses.
pub(crate) fn write(data: &Path, hook: &HookName, cursor: &Cursor) -> io::Result<()> {
    let dir = dir(data);
    DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let whole = path(data, hook);
    let new = whole.with_extension("json.new");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(&serde_json::to_vec(cursor)?)?;
    file.sync_all()?;
    fs::rename(&new, &whole)?;
    // A name that is lost with the power would tell everything again.
    File::open(&dir)?.sync_all()
}

/// Forgets hooks that are no longer configured, so that one of the same name starts anew.
///
/// # Errors
/// When the file system refuses.
pub(crate) fn forget(data: &Path, keep: impl Fn(&str) -> bool) -> io::Result<()> {
    let entries = match fs::read_dir(dir(data)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let hook = name.and_then(|name| name.strip_suffix(".json"));
        if hook.is_some_and(|hook| !keep(hook)) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_back_and_forgotten_with_its_hook() {
        let data = tempfile::tempdir().unwrap();
        let (a, b) = ("a.b".parse().unwrap(), "c".parse().unwrap());
        assert_eq!(read(data.path(), &a).unwrap(), None);
        forget(data.path(), |_| false).unwrap();
        let failure = Failure {
            at: 5,
            what: "no".into(),
        };
        let cursor = Cursor {
            seq: 7,
            failure: Some(failure),
            dropped: 1,
        };
        write(data.path(), &a, &cursor).unwrap();
        write(data.path(), &b, &Cursor::default()).unwrap();
        assert_eq!(read(data.path(), &a).unwrap(), Some(cursor));
        forget(data.path(), |name| name == "c").unwrap();
        assert_eq!(read(data.path(), &a).unwrap(), None);
        assert_eq!(read(data.path(), &b).unwrap(), Some(Cursor::default()));
        fs::write(path(data.path(), &b), "{\"se").unwrap();
        assert!(read(data.path(), &b).is_err());
    }
}
