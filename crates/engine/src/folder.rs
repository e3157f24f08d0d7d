//! Work without git: a directory of a person's is copied in as the base of a task, and a result is
//! written back into it. Must not follow a symlink in either direction, and must not write over
//! anything that has changed since it was copied.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use crate::files;
use crate::git::{self, Change, CommitId, GitError};
use crate::mirror::{Mirror, MirrorError};
use crate::snapshot::EMPTY_TREE;
use crate::vault::{DURABLE, Vault};

/// What one directory may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub bytes: u64,
    pub files: u64,
}

/// How many paths an error or a note names.
const NAMED_MAX: usize = 10;
/// A link's target is a path.
const TARGET_MAX_BYTES: usize = 4096;
const FILE: &str = "100644";
const PROGRAM: &str = "100755";
const LINK: &str = "120000";
const NONE: &str = "000000";
/// The same copy is the same commit, whenever it was made.
const DATE: &str = "2000-01-01T00:00:00Z";

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("{what} {path}: see that it is there and yours")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{what} of {path}")]
    Git {
        what: &'static str,
        path: PathBuf,
        source: GitError,
    },
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    #[error("copy {path}: it holds more than {limit}; choose a smaller one, or raise the limit")]
    TooMuch { path: PathBuf, limit: String },
    #[error("copy {path}: it and the data directory {data} lie in each other; choose another one")]
    Ours { path: PathBuf, data: PathBuf },
    #[error(
        "write back into {path}: {what}; nothing was written; `dispatch diff` shows the result"
    )]
    InTheWay { path: PathBuf, what: String },
}

/// The base of a task: what the directory holds now, as a commit in the mirror that stands for it.
/// Asked again for the same task it is the same. The notes say what could not be copied.
pub fn take_in(
    mirror: &Mirror,
    folder: &Path,
    task: &str,
    limits: &Limits,
) -> Result<(CommitId, Vec<String>), FolderError> {
    let _held = mirror.take_lock()?;
    let name = format!("refs/dispatch/folders/{task}");
    if let Some(commit) = mirror.commit_of(&name)? {
        return Ok((commit, Vec::new()));
    }
    let root = files::open_dir(folder).map_err(io_error("open the directory", folder))?;
    let scratch = fresh_scratch(mirror)?;
    let copy = scratch.join("copy");
    fs::create_dir(&copy).map_err(io_error("make", &copy))?;
    let to = files::open_dir(&copy).map_err(io_error("open", &copy))?;
    let mut copying = Copying {
        folder,
        to: &to,
        limits,
        copied: Vec::new(),
        left_out: Vec::new(),
        bytes: 0,
    };
    copying.directory(&root, Path::new(""), 0)?;
    let (copied, mut left_out) = (copying.copied, copying.left_out);
    let tree = write_tree(mirror, &scratch, &copy, &copied, &mut left_out)?;
    let commit = commit(mirror, folder, &tree)?;
    mirror
        .cmd("update-ref")
        .args([name.as_str(), commit.as_str()])
        .run()
        .map_err(git_error("remember the copy", folder))?;
    files::remove_tree(&scratch).map_err(io_error("remove", &scratch))?;
    Ok((commit, notes(&left_out)))
}

/// The base of a task that starts from nothing.
pub fn nothing(mirror: &Mirror) -> Result<CommitId, FolderError> {
    let _held = mirror.take_lock()?;
    let scratch = fresh_scratch(mirror)?;
    let tree = write_tree(mirror, &scratch, &scratch, &[], &mut Vec::new())?;
    commit(mirror, &scratch, &tree)
}

/// A directory may not be copied into itself.
pub(crate) fn is_apart(folder: &Path, data: &Path) -> Result<(), FolderError> {
    let real = |path: &Path| fs::canonicalize(path).map_err(io_error("look at", path));
    let (path, data) = (real(folder)?, real(data)?);
    if path.starts_with(&data) || data.starts_with(&path) {
        return Err(FolderError::Ours { path, data });
    }
    Ok(())
}

/// Whoever holds the mirror's lock is alone, so what lies there is a dead process's.
fn fresh_scratch(mirror: &Mirror) -> Result<PathBuf, FolderError> {
    let scratch = mirror.dir().join("scratch");
    files::remove_tree(&scratch)
        .and_then(|()| fs::create_dir(&scratch))
        .map_err(io_error("make", &scratch))?;
    Ok(scratch)
}

/// The private copy being made: nobody else has it, so git may read it by its paths.
struct Copying<'a> {
    folder: &'a Path,
    to: &'a OwnedFd,
    limits: &'a Limits,
    copied: Vec<PathBuf>,
    left_out: Vec<String>,
    bytes: u64,
}

impl Copying<'_> {
    fn directory(&mut self, dir: &OwnedFd, at: &Path, depth: usize) -> Result<(), FolderError> {
        if depth > files::DEPTH_MAX {
            return Err(self.too_much(format!("{} directories in each other", files::DEPTH_MAX)));
        }
        let error = |path: &Path| io_error("read", &self.folder.join(path));
        for (name, _) in files::list_dir(dir).map_err(error(at))? {
            let path = at.join(&name);
            let stat = match rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // Gone since it was listed.
                Err(rustix::io::Errno::NOENT) => continue,
                Err(errno) => return Err(error(&path)(errno.into())),
            };
            match FileType::from_raw_mode(stat.st_mode) {
                _ if name.as_bytes().eq_ignore_ascii_case(b".git") => {
                    self.left_out
                        .push(format!("{} (git's own)", path.display()));
                }
                FileType::Directory => {
                    let inner = files::open_dir_at(dir.as_fd(), &name).map_err(error(&path))?;
                    self.directory(&inner, &path, depth + 1)?;
                }
                FileType::RegularFile => {
                    let source =
                        files::open_beneath(dir.as_fd(), Path::new(&name)).map_err(error(&path))?;
                    self.file(source, path)?;
                }
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(dir, &name, Vec::new());
                    let target = target.map_err(|errno| error(&path)(errno.into()))?;
                    self.link(target.as_bytes(), path)?;
                }
                _ => self.left_out.push(format!("{} (no file)", path.display())),
            }
        }
        Ok(())
    }

    fn file(&mut self, source: File, path: PathBuf) -> Result<(), FolderError> {
        self.count(0)?;
        let error = io_error("copy", &self.folder.join(&path));
        let mode = source.metadata().map_err(&error)?.permissions().mode();
        let left = self.limits.bytes.saturating_sub(self.bytes);
        let copied = files::create_beneath(self.to.as_fd(), &path, 0o600 | (mode & 0o100))
            .and_then(|mut to| io::copy(&mut source.take(left.saturating_add(1)), &mut to))
            .map_err(error)?;
        self.count(copied)?;
        self.copied.push(path);
        Ok(())
    }

    fn link(&mut self, target: &[u8], path: PathBuf) -> Result<(), FolderError> {
        self.count(target.len() as u64)?;
        files::parent_beneath(self.to.as_fd(), &path, true)
            .and_then(|(dir, name)| Ok(rustix::fs::symlinkat(target, dir, name)?))
            .map_err(io_error("copy", &self.folder.join(&path)))?;
        self.copied.push(path);
        Ok(())
    }

    fn count(&mut self, bytes: u64) -> Result<(), FolderError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.limits.bytes {
            let what = format!("{} bytes (limits.folder_bytes)", self.limits.bytes);
            return Err(self.too_much(what));
        }
        if self.copied.len() as u64 >= self.limits.files {
            let what = format!("{} files (limits.folder_files)", self.limits.files);
            return Err(self.too_much(what));
        }
        Ok(())
    }

    fn too_much(&self, limit: String) -> FolderError {
        let path = self.folder.to_owned();
        FolderError::TooMuch { path, limit }
    }
}

/// The copy as a tree, byte for byte: its own attributes do not count.
fn write_tree(
    mirror: &Mirror,
    scratch: &Path,
    copy: &Path,
    paths: &[PathBuf],
    left_out: &mut Vec<String>,
) -> Result<CommitId, FolderError> {
    let index = scratch.join("index");
    let error = git_error("keep the copy", copy);
    let cmd = |verb| {
        let cmd = mirror.cmd(verb).work_tree(copy).index(&index).slow();
        let cmd = cmd.env("GIT_ATTR_SOURCE", EMPTY_TREE);
        DURABLE.iter().fold(cmd, |cmd, setting| cmd.set(setting))
    };
    if !paths.is_empty() {
        let mut list = Vec::new();
        for path in paths {
            list.extend(path.as_os_str().as_bytes());
            list.push(0);
        }
        cmd("update-index")
            .args(["-z", "--add", "--stdin"])
            .stdin_bytes(list)
            .run()
            .map_err(&error)?;
        let out = cmd("ls-files").arg("-z").run().map_err(&error)?;
        let held: std::collections::HashSet<&[u8]> = git::records(&out.stdout).collect();
        let refused = |path: &&PathBuf| !held.contains(path.as_os_str().as_bytes());
        let refused = paths.iter().filter(refused);
        left_out.extend(refused.map(|path| format!("{} (a name git refuses)", path.display())));
    }
    cmd("write-tree").id().map_err(error)
}

fn commit(mirror: &Mirror, folder: &Path, tree: &CommitId) -> Result<CommitId, FolderError> {
    let cmd = mirror
        .cmd("commit-tree")
        .args(["-m", "What the task started from", tree.as_str()]);
    let who = ["AUTHOR", "COMMITTER"];
    let cmd = who.iter().fold(cmd, |cmd, who| {
        cmd.env(&format!("GIT_{who}_NAME"), "Dispatch")
            .env(&format!("GIT_{who}_EMAIL"), "dispatch@dispatch.invalid")
            .env(&format!("GIT_{who}_DATE"), DATE)
    });
    let cmd = DURABLE.iter().fold(cmd, |cmd, setting| cmd.set(setting));
    cmd.id().map_err(git_error("keep the copy", folder))
}

fn notes(left_out: &[String]) -> Vec<String> {
    let named = left_out.iter().take(NAMED_MAX);
    let mut notes: Vec<String> = named.map(|what| format!("not copied: {what}")).collect();
    if left_out.len() > NAMED_MAX {
        notes.push(format!("not copied: {} more", left_out.len() - NAMED_MAX));
    }
    notes
}

/// What lies at a path of a person's directory now.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Blob(&'static str, CommitId),
    /// A directory, a device, or something below what is none.
    Other,
}

/// Writes what changed between two commits into a directory. All of it is looked at first: when one
/// path is neither as it was copied nor as the result has it, nothing is written. Interrupted, it
/// can be asked for again.
pub fn write_back(
    vault: &Vault,
    folder: &Path,
    base: &CommitId,
    result: &CommitId,
) -> Result<u64, FolderError> {
    let root = files::open_dir(folder).map_err(io_error("open the directory", folder))?;
    let out = vault
        .cmd("diff-tree")
        .args(["-r", "-z", "--raw", "--no-renames"])
        .args([base.as_str(), result.as_str()])
        .run();
    let error = git_error("read the result", folder);
    let changes = git::parse_changes(&out.map_err(&error)?.stdout).map_err(&error)?;
    let writer = Writer {
        vault,
        folder,
        root: &root,
    };
    let todo = writer.look(&changes)?;
    // What goes makes room for what comes.
    let (gone, come): (Vec<&Change>, Vec<&Change>) =
        todo.into_iter().partition(|change| change.new_mode == NONE);
    for change in &gone {
        writer.remove(as_path(&change.path))?;
    }
    for change in &come {
        writer.write(change)?;
    }
    Ok(changes.len() as u64)
}

struct Writer<'a> {
    vault: &'a Vault,
    folder: &'a Path,
    root: &'a OwnedFd,
}

impl Writer<'_> {
    /// The changes that are still to be made, or all that is in the way.
    fn look<'c>(&self, changes: &'c [Change]) -> Result<Vec<&'c Change>, FolderError> {
        let (mut todo, mut problems) = (Vec::new(), Vec::new());
        for change in changes {
            let path = as_path(&change.path);
            let found = self.found(path)?;
            if found != Found::Other && found == side(&change.new_mode, &change.new_id) {
                continue;
            }
            if found != side(&change.old_mode, &change.old_id) {
                problems.push(format!("{} has changed there", path.display()));
            } else if !matches!(change.new_mode.as_str(), FILE | PROGRAM | LINK | NONE) {
                problems.push(format!("{} is no file in the result", path.display()));
            } else if change.new_mode == LINK && !stays_inside(path, &self.target(change)?) {
                problems.push(format!("{} is a link that leads out", path.display()));
            }
            todo.push(change);
        }
        if problems.is_empty() {
            return Ok(todo);
        }
        let more = problems.len().saturating_sub(NAMED_MAX);
        problems.truncate(NAMED_MAX);
        if more > 0 {
            problems.push(format!("and {more} more"));
        }
        let path = self.folder.to_owned();
        let what = problems.join(", ");
        Err(FolderError::InTheWay { path, what })
    }

    fn found(&self, path: &Path) -> Result<Found, FolderError> {
        let error = io_error("look at", &self.folder.join(path));
        let (dir, name) = match files::parent_beneath(self.root.as_fd(), path, false) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            // A link or a file where a directory was, or a path that leads out.
            Err(_) => return Ok(Found::Other),
        };
        let stat = match rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOENT) => return Ok(Found::Nothing),
            Err(errno) => return Err(error(errno.into())),
        };
        let (mode, cmd) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let file = files::open_beneath(dir.as_fd(), Path::new(&name)).map_err(&error)?;
                let program = stat.st_mode & 0o100 != 0;
                let cmd = self.vault.cmd("hash-object").stdin_file(file);
                (if program { PROGRAM } else { FILE }, cmd)
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&dir, &name, Vec::new());
                let target = target.map_err(|errno| error(errno.into()))?;
                let cmd = self.vault.cmd("hash-object");
                (LINK, cmd.stdin_bytes(target.into_bytes()))
            }
            _ => return Ok(Found::Other),
        };
        let id = cmd.args(["--no-filters", "--stdin"]).slow().id();
        let id = id.map_err(git_error("compare what is there", self.folder))?;
        Ok(Found::Blob(mode, id))
    }

    fn target(&self, change: &Change) -> Result<Vec<u8>, FolderError> {
        self.vault
            .cmd("cat-file")
            .args(["blob", change.new_id.as_str()])
            .limit(TARGET_MAX_BYTES)
            .run()
            .map(|out| out.stdout)
            .map_err(git_error("read the result", self.folder))
    }

    /// Takes a file away, and the directories above it that held nothing else.
    fn remove(&self, path: &Path) -> Result<(), FolderError> {
        let error = io_error("remove", &self.folder.join(path));
        let (dir, name) = files::parent_beneath(self.root.as_fd(), path, false).map_err(&error)?;
        rustix::fs::unlinkat(&dir, &name, AtFlags::empty()).map_err(|e| error(e.into()))?;
        let mut above = path.parent();
        while let Some(path) = above.filter(|path| !path.as_os_str().is_empty()) {
            let removed = files::parent_beneath(self.root.as_fd(), path, false)
                .and_then(|(dir, name)| Ok(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?));
            if removed.is_err() {
                break;
            }
            above = path.parent();
        }
        Ok(())
    }

    /// Puts a file in place by rename, so that nobody sees half of it.
    fn write(&self, change: &Change) -> Result<(), FolderError> {
        let path = as_path(&change.path);
        let error = io_error("write", &self.folder.join(path));
        let (dir, name) = files::parent_beneath(self.root.as_fd(), path, true).map_err(&error)?;
        let new = files::unique(".dispatch-");
        let written = self.fill(change, &dir, &name, &new).and_then(|()| {
            let put = rustix::fs::renameat(&dir, &new, &dir, &name);
            put.map_err(|errno| error(errno.into()))
        });
        if written.is_err() {
            match rustix::fs::unlinkat(&dir, &new, AtFlags::empty()) {
                // The first error says more.
                Ok(()) | Err(_) => {}
            }
        }
        written
    }

    /// Makes `new` what the result has in the place of `name`.
    fn fill(
        &self,
        change: &Change,
        dir: &OwnedFd,
        name: &std::ffi::OsStr,
        new: &str,
    ) -> Result<(), FolderError> {
        let error = io_error("write", &self.folder.join(as_path(&change.path)));
        if change.new_mode == LINK {
            let target = self.target(change)?;
            let made = rustix::fs::symlinkat(target.as_slice(), dir, new);
            return made.map_err(|errno| error(errno.into()));
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let made = rustix::fs::openat(dir, new, flags | OFlags::CLOEXEC, Mode::RUSR);
        let file = File::from(made.map_err(|errno| error(errno.into()))?);
        let to = file.try_clone().map_err(&error)?;
        self.vault
            .cmd("cat-file")
            .args(["blob", change.new_id.as_str()])
            .stdout_file(to)
            .slow()
            .run()
            .map_err(git_error("read the result", self.folder))?;
        let mode = self.mode(dir, name, change.new_mode == PROGRAM);
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(|e| error(e.into()))?;
        file.sync_all().map_err(error)
    }

    /// A file that was there keeps who may read it.
    fn mode(&self, dir: &OwnedFd, name: &std::ffi::OsStr, program: bool) -> rustix::fs::RawMode {
        let there = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let there = there.filter(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
        let mode = there.map_or(0o644, |stat| stat.st_mode & 0o666);
        // Whoever may read a program may run it.
        if program {
            mode | ((mode & 0o444) >> 2)
        } else {
            mode
        }
    }
}

/// One side of a change, as `found` would see it.
fn side(mode: &str, id: &CommitId) -> Found {
    match mode {
        NONE => Found::Nothing,
        FILE => Found::Blob(FILE, id.clone()),
        PROGRAM => Found::Blob(PROGRAM, id.clone()),
        LINK => Found::Blob(LINK, id.clone()),
        _ => Found::Other,
    }
}

/// Whether a link at `path` ends in the same directory tree. Going up is only understood before
/// anything else: behind another link, `..` means what that link says.
fn stays_inside(path: &Path, target: &[u8]) -> bool {
    let mut up = path.components().count().saturating_sub(1);
    let mut down = false;
    for part in as_path(target).components() {
        match part {
            Component::CurDir => {}
            Component::Normal(_) => down = true,
            Component::ParentDir if !down && up > 0 => up -= 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    !target.is_empty()
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

fn io_error(what: &'static str, path: &Path) -> impl Fn(io::Error) -> FolderError + use<> {
    let path = path.to_owned();
    move |source| FolderError::Io {
        what,
        path: path.clone(),
        source,
    }
}

fn git_error(what: &'static str, path: &Path) -> impl Fn(GitError) -> FolderError + use<> {
    let path = path.to_owned();
    move |source| FolderError::Git {
        what,
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use dispatch_core::task::Base;

    use super::*;
    use crate::testing::{Repo, git};

    const LIMITS: Limits = Limits {
        bytes: 1000,
        files: 10,
    };

    struct World {
        temp: tempfile::TempDir,
        mirror: Mirror,
        vault: Vault,
    }

    impl World {
        fn new() -> Self {
            let temp = tempfile::tempdir().unwrap();
            let (git, data) = (git(temp.path()), temp.path().join("data"));
            let folder = temp.path().join("folder");
            fs::create_dir(&folder).unwrap();
            let text = folder.to_str().unwrap();
            let mirror = Mirror::without_git(&git, &data, &Base::Folder, text).unwrap();
            let vault = Vault::open_or_create(&git, &data, &mirror).unwrap();
            Self {
                temp,
                mirror,
                vault,
            }
        }

        fn folder(&self) -> PathBuf {
            self.temp.path().join("folder")
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.folder().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn take(&self, task: &str) -> Result<(CommitId, Vec<String>), FolderError> {
            take_in(&self.mirror, &self.folder(), task, &LIMITS)
        }

        /// A result, as an agent that does as it likes might leave it.
        fn result(&self, base: &CommitId, change: impl FnOnce(&Path)) -> CommitId {
            let tree = self.temp.path().join(files::unique("agent-"));
            let agent = Repo::init(tree);
            agent.run(&[
                "fetch",
                "-q",
                self.mirror.dir().to_str().unwrap(),
                "refs/*:refs/*",
            ]);
            agent.run(&["reset", "-q", "--hard", base.as_str()]);
            change(&agent.0);
            let commit = agent.commit_all("result");
            let store = self.vault.dir().to_str().unwrap();
            agent.run(&[
                "push",
                "-q",
                store,
                &format!("HEAD:refs/dispatch/{}", files::unique("")),
            ]);
            commit
        }

        fn write(&self, base: &CommitId, result: &CommitId) -> Result<u64, FolderError> {
            write_back(&self.vault, &self.folder(), base, result)
        }

        fn refused(&self, base: &CommitId, result: &CommitId, word: &str) {
            let error = self.write(base, result).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn a_copy_is_made_once_and_says_what_it_could_not_hold() {
        let world = World::new();
        world.put("a.txt", "a");
        world.put(".git/config", "[core]");
        world.put("deep/.GIT/x", "x");
        symlink("/etc/passwd", world.folder().join("out")).unwrap();
        let fifo = world.folder().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let (commit, notes) = world.take("1").unwrap();
        assert_eq!(
            notes,
            [
                "not copied: .git (git's own)",
                "not copied: deep/.GIT (git's own)",
                "not copied: fifo (no file)"
            ]
        );
        let listed = Repo(world.mirror.dir().to_owned());
        let names = listed.run(&["ls-tree", "-r", "--name-only", commit.as_str()]);
        assert_eq!(names, "a.txt\nout");
        // The link as it is; what it points to is nobody's business.
        assert_eq!(
            listed.run(&["cat-file", "blob", &format!("{commit}:out")]),
            "/etc/passwd"
        );
        world.put("b.txt", "b");
        assert_eq!(
            world.take("1").unwrap().0,
            commit,
            "after a crash it is the same"
        );
        assert_ne!(world.take("2").unwrap().0, commit);
        assert!(!world.mirror.dir().join("scratch").exists());
    }

    #[test]
    fn limits_are_for_bytes_and_files() {
        let world = World::new();
        world.put("a", &"x".repeat(1000));
        world.take("1").unwrap();
        world.put("b", "x");
        let error = world.take("2").unwrap_err().to_string();
        assert!(
            error.contains("1000 bytes (limits.folder_bytes)"),
            "{error}"
        );
        fs::remove_file(world.folder().join("a")).unwrap();
        (0..10).for_each(|n| world.put(&format!("f{n}"), "x"));
        let error = world.take("2").unwrap_err().to_string();
        assert!(error.contains("10 files (limits.folder_files)"), "{error}");
    }

    #[test]
    fn nothing_is_the_same_for_everybody() {
        let world = World::new();
        let git = git(world.temp.path());
        let data = world.temp.path().join("data");
        let mirror = Mirror::without_git(&git, &data, &Base::Nothing, "").unwrap();
        assert_eq!(nothing(&mirror).unwrap(), nothing(&mirror).unwrap());
    }

    #[test]
    fn a_result_comes_back_and_can_be_asked_for_again() {
        let world = World::new();
        for (path, text) in [
            ("keep", "k"),
            ("d/gone", "g"),
            ("d/e/gone", "g"),
            ("x", "old"),
        ] {
            world.put(path, text);
        }
        let (base, _) = world.take("1").unwrap();
        let result = world.result(&base, |tree| {
            fs::remove_dir_all(tree.join("d")).unwrap();
            fs::write(tree.join("x"), "new").unwrap();
            fs::create_dir_all(tree.join("n/m")).unwrap();
            fs::write(tree.join("n/m/y"), "y").unwrap();
            symlink("../../keep", tree.join("n/m/link")).unwrap();
        });
        // As if it had been interrupted after the first of them.
        world.put("x", "new");
        assert_eq!(world.write(&base, &result).unwrap(), 5);
        assert_eq!(world.write(&base, &result).unwrap(), 5);
        let folder = world.folder();
        assert!(
            !folder.join("d").exists(),
            "directories that held nothing else go too"
        );
        assert_eq!(fs::read(folder.join("n/m/link")).unwrap(), b"k");
        let names: Vec<_> = fs::read_dir(folder.join("n/m")).unwrap().collect();
        assert_eq!(names.len(), 2, "nothing of ours is left: {names:?}");
    }

    #[test]
    fn what_changed_meanwhile_is_never_written_over() {
        let world = World::new();
        for name in ["changed", "removed", "d/inner", "mode"] {
            world.put(name, "old");
        }
        let (base, _) = world.take("1").unwrap();
        let edit = |name: &'static str| {
            world.result(&base, move |tree| {
                fs::write(tree.join(name), "new").unwrap();
            })
        };
        let (changed, removed, inner, added) = (
            edit("changed"),
            edit("removed"),
            edit("d/inner"),
            edit("added"),
        );
        world.put("changed", "mine");
        world.refused(&base, &changed, "changed has changed there");
        fs::remove_file(world.folder().join("removed")).unwrap();
        world.refused(&base, &removed, "removed has changed there");
        world.put("added", "mine");
        world.refused(&base, &added, "added has changed there");
        // A directory became a link: what lies behind it is not what was copied.
        let outside = world.temp.path().join("outside");
        fs::rename(world.folder().join("d"), &outside).unwrap();
        symlink(&outside, world.folder().join("d")).unwrap();
        world.refused(&base, &inner, "d/inner has changed there");
        assert_eq!(fs::read(outside.join("inner")).unwrap(), b"old");
        // A file became a link to one with the same bytes.
        let mode = edit("mode");
        let elsewhere = world.temp.path().join("elsewhere");
        fs::rename(world.folder().join("mode"), &elsewhere).unwrap();
        symlink(&elsewhere, world.folder().join("mode")).unwrap();
        world.refused(&base, &mode, "mode has changed there");
        assert_eq!(fs::read(&elsewhere).unwrap(), b"old");
    }

    #[test]
    fn a_file_that_became_a_directory_is_left_to_the_person() {
        let world = World::new();
        for name in ["file", "dir/inner"] {
            world.put(name, "old");
        }
        let (base, _) = world.take("1").unwrap();
        let deeper = world.result(&base, |tree| {
            fs::remove_file(tree.join("file")).unwrap();
            fs::create_dir(tree.join("file")).unwrap();
            fs::write(tree.join("file/a"), "a").unwrap();
        });
        world.refused(&base, &deeper, "file/a has changed there");
        let flat = world.result(&base, |tree| {
            fs::remove_dir_all(tree.join("dir")).unwrap();
            fs::write(tree.join("dir"), "a").unwrap();
        });
        world.refused(&base, &flat, "dir has changed there");
        assert_eq!(fs::read(world.folder().join("dir/inner")).unwrap(), b"old");
        assert_eq!(fs::read(world.folder().join("file")).unwrap(), b"old");
    }

    #[test]
    fn a_link_that_leads_out_is_not_planted() {
        let world = World::new();
        world.put("d/a", "a");
        let (base, _) = world.take("1").unwrap();
        for target in ["/etc/passwd", "../../x", "../d/../../x", "../.."] {
            let result = world.result(&base, |tree| {
                symlink(target, tree.join("d/link")).unwrap();
                fs::write(tree.join("fine"), "x").unwrap();
            });
            world.refused(&base, &result, "d/link is a link that leads out");
            assert!(!world.folder().join("fine").exists());
        }
        for (path, target, inside) in [
            ("a", "b", true),
            ("a", "./b/c", true),
            ("d/a", "../b", true),
            ("d/a", "..", true),
            ("a", "..", false),
            ("a", "b/..", false),
            ("a", "", false),
        ] {
            assert_eq!(
                stays_inside(Path::new(path), target.as_bytes()),
                inside,
                "{target}"
            );
        }
    }

    #[test]
    fn the_data_directory_is_not_copied_into_itself() {
        let world = World::new();
        let data = world.temp.path().join("data");
        for folder in [world.temp.path(), &data, &data.join("mirrors")] {
            let error = is_apart(folder, &data);
            assert!(matches!(error, Err(FolderError::Ours { .. })), "{folder:?}");
        }
        is_apart(&world.folder(), &data).unwrap();
    }
}
