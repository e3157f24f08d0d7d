//! Logins of accounts: for each a directory of ours that the tasks of that account share. Only the
//! files a login consists of are in it; what else a CLI keeps (sessions, settings, hooks) stays the
//! task's own, so that no task reads or leads another one through it.
//! Must not read a login but to mask it, and must not follow a link that an agent may have made.

use std::{
    ffi::OsStr,
    fs, io,
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use dispatch_core::{
    config::{HomePath, Login},
    secret::{self, Secret},
};
use rustix::fs::{AtFlags, FileType};

use crate::files;

/// Of the directory that is shared. The files are one deeper, because CLIs put a lock beside the
/// directory they are told of.
const STORE: &str = "store";
const FILE_BYTES_MAX: u64 = 256 << 10;
/// What a CLI left in the way of a link is set aside under this, in the task's own home.
const ASIDE: &str = ".set-aside";

#[derive(Debug, thiserror::Error)]
#[error("{doing} {}", path.display())]
pub struct LoginError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LoginError + use<> {
    let path = path.to_owned();
    move |source| LoginError {
        doing,
        path,
        source,
    }
}

/// The directory of one account's login, whether or not it is there yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    dir: PathBuf,
}

impl Account {
    /// `name` is an account's or an agent's, so it is one plain component of a path.
    #[must_use]
    pub fn of(data: &Path, name: &str) -> Self {
        Self {
            dir: data.join("logins").join(name),
        }
    }

    /// What a job of this account may write.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the files are.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.dir.join(STORE)
    }

    /// For nobody but us.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(&self) -> Result<(), LoginError> {
        let store = self.store();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&store)
            .map_err(failed("make the directory of a login", &store))
    }

    #[must_use]
    pub fn exists(&self) -> bool {
        fs::symlink_metadata(self.store()).is_ok_and(|meta| meta.is_dir())
    }

    /// Whether all the files of a login are there.
    #[must_use]
    pub fn holds(&self, login: &Login) -> bool {
        login.files.iter().all(|file| {
            let meta = fs::symlink_metadata(self.store().join(file.name()));
            meta.is_ok_and(|meta| meta.is_file() && meta.len() > 0)
        })
    }

    /// What of the login must not be shown. It is what it is now: a token that a job renews is known
    /// to the next one only.
    #[must_use]
    pub fn secrets(&self, login: &Login) -> Vec<Secret> {
        let Ok(store) = files::open_dir(&self.store()) else {
            return Vec::new();
        };
        let read = |file: &HomePath| {
            let path = Path::new(file.name());
            files::read_beneath(store.as_fd(), path, FILE_BYTES_MAX).ok()
        };
        let read = login.files.iter().filter_map(read);
        read.flat_map(|bytes| secret::of_login(&bytes)).collect()
    }

    /// Takes the files of a login that was made elsewhere. What lies here is replaced, never written
    /// through: a job may have left a link.
    ///
    /// # Errors
    /// When one could not be moved.
    pub fn replace_by(&self, login: &Login, made: &Self) -> Result<(), LoginError> {
        let (from, to) = (made.store(), self.store());
        let source = files::open_dir(&from).map_err(failed("open the login", &from))?;
        let target = files::open_dir(&to).map_err(failed("open the login", &to))?;
        for file in &login.files {
            rustix::fs::renameat(&source, file.name(), &target, file.name())
                .map_err(|error| failed("keep the login", &to.join(file.name()))(error.into()))?;
        }
        Ok(())
    }

    /// Whether there is nothing but plain files where a program outside of any fence would write.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let plain = |path: &Path| {
            let Ok(entries) = fs::read_dir(path) else {
                return false;
            };
            let plain = |entry: io::Result<fs::DirEntry>| {
                let kind = entry.and_then(|entry| entry.file_type());
                kind.is_ok_and(|kind| kind.is_file() || kind.is_dir())
            };
            entries.into_iter().all(plain)
        };
        self.exists() && plain(&self.dir) && plain(&self.store())
    }

    /// Makes the files of the login links in `home`. What a CLI left there in their place is set
    /// aside; without it the link would be passed over.
    ///
    /// # Errors
    /// When the way there is not made of plain directories any more.
    pub fn link(&self, login: &Login, home: &Path) -> Result<(), LoginError> {
        if login.variable.is_some() {
            return Ok(());
        }
        let root = files::open_dir(home).map_err(failed("open the home", home))?;
        for file in &login.files {
            let target = self.store().join(file.name());
            self.link_one(&root, file, &target)
                .map_err(failed("link a login into", &home.join(file.as_path())))?;
        }
        Ok(())
    }

    fn link_one(&self, home: &impl AsFd, file: &HomePath, target: &Path) -> io::Result<()> {
        let (parent, name) = files::parent_beneath(home.as_fd(), file.as_path(), true)?;
        if is_link_to(&parent, &name, target) {
            return Ok(());
        }
        if kind(&parent, &name)?.is_some() {
            let mut aside = name.clone();
            aside.push(files::unique(ASIDE));
            rustix::fs::renameat(&parent, &name, &parent, &aside)?;
        }
        Ok(rustix::fs::symlinkat(target, &parent, &name)?)
    }

    /// Files that a CLI wrote in the place of their links, by rename: moved to where the account's
    /// other tasks find them, and named. Nothing may be writing in `home` any more.
    ///
    /// # Errors
    /// When one could not be moved.
    pub fn take_back(&self, login: &Login, home: &Path) -> Result<Vec<String>, LoginError> {
        if login.variable.is_some() {
            return Ok(Vec::new());
        }
        let root = files::open_dir(home).map_err(failed("open the home", home))?;
        let store = self.store();
        let into = files::open_dir(&store).map_err(failed("open the login", &store))?;
        let mut moved = Vec::new();
        for file in &login.files {
            let Ok((parent, name)) = files::parent_beneath(root.as_fd(), file.as_path(), false)
            else {
                continue;
            };
            let doing = || failed("take back a login from", &home.join(file.as_path()));
            if kind(&parent, &name).map_err(doing())? == Some(FileType::RegularFile) {
                let to = OsStr::new(file.name());
                rustix::fs::renameat(&parent, &name, &into, to)
                    .map_err(|error| doing()(error.into()))?;
                moved.push(file.name().to_owned());
            }
        }
        Ok(moved)
    }
}

fn kind(parent: &impl AsFd, name: &OsStr) -> io::Result<Option<FileType>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_link_to(parent: &impl AsFd, name: &OsStr, target: &Path) -> bool {
    rustix::fs::readlinkat(parent, name, Vec::new())
        .is_ok_and(|found| found.as_bytes() == target.as_os_str().as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn login() -> Login {
        let file = HomePath::try_from(".cli/auth.json".to_owned()).unwrap();
        Login {
            account: None,
            args: Vec::new(),
            files: vec![file],
            variable: None,
        }
    }

    fn account() -> (tempfile::TempDir, Account, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let account = Account::of(dir.path(), "work");
        account.make().unwrap();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        (dir, account, home)
    }

    #[test]
    fn a_task_writes_through_its_link_and_the_next_one_reads_that() {
        let (_dir, account, home) = account();
        let mode = fs::metadata(account.store()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(account.exists() && !account.holds(&login()));
        account.link(&login(), &home).unwrap();
        fs::write(home.join(".cli/auth.json"), "token").unwrap();
        assert!(account.holds(&login()));
        // Twice is once.
        account.link(&login(), &home).unwrap();
        assert_eq!(fs::read_dir(home.join(".cli")).unwrap().count(), 1);
    }

    #[test]
    fn what_a_cli_put_in_the_place_of_a_link_is_taken_back() {
        let (_dir, account, home) = account();
        account.link(&login(), &home).unwrap();
        let file = home.join(".cli/auth.json");
        assert_eq!(account.take_back(&login(), &home).unwrap(), [""; 0]);
        fs::write(home.join(".cli/new"), "renewed").unwrap();
        fs::rename(home.join(".cli/new"), &file).unwrap();
        let taken = account.take_back(&login(), &home).unwrap();
        assert_eq!(taken, ["auth.json"]);
        let kept = fs::read_to_string(account.store().join("auth.json")).unwrap();
        assert_eq!(kept, "renewed");
        // One from before there was a login stays with its task.
        fs::write(&file, "of old").unwrap();
        account.link(&login(), &home).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "renewed");
        assert_eq!(fs::read_dir(home.join(".cli")).unwrap().count(), 2);
    }

    #[test]
    fn a_link_an_agent_made_leads_nowhere() {
        let (dir, account, home) = account();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        symlink(&outside, home.join(".cli")).unwrap();
        let error = account.link(&login(), &home).unwrap_err();
        assert!(error.to_string().contains("link a login into"), "{error}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        fs::write(outside.join("auth.json"), "theirs").unwrap();
        assert_eq!(account.take_back(&login(), &home).unwrap(), [""; 0]);
        assert!(outside.join("auth.json").exists());
        // And a file of the account that is a link is no login, and is not written through.
        assert!(account.is_plain());
        symlink(outside.join("auth.json"), account.store().join("auth.json")).unwrap();
        assert!(!account.holds(&login()) && !account.is_plain());
        assert!(account.secrets(&login()).is_empty());
        let made = Account::of(dir.path(), ".new");
        made.make().unwrap();
        fs::write(made.store().join("auth.json"), "new").unwrap();
        account.replace_by(&login(), &made).unwrap();
        assert!(account.holds(&login()) && account.is_plain());
        let theirs = fs::read_to_string(outside.join("auth.json")).unwrap();
        assert_eq!(theirs, "theirs");
    }
}
