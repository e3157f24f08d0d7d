//! Small file-system verbs that never follow a symlink an agent may have planted: lock, copy,
//! open beneath a directory, remove a tree. It must not know git, tasks or agents.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags};

/// An exclusive lock on a file, held until it is dropped or its process ends.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// Waits for the lock. Its holders are bounded by the time limit of the git they run.
    pub(crate) fn take(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The same lock for a child's stdin (the file is empty): it stays held while the child
    /// lives, even if we are killed, so nobody heals a store that an orphan still writes to.
    pub(crate) fn share(&self) -> io::Result<File> {
        self.0.try_clone()
    }
}

/// A name no other thread or live process of ours uses.
#[must_use]
pub(crate) fn unique(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos());
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{}-{now:x}-{n}", std::process::id())
}

/// Writes a whole file by rename, so that a reader sees the old bytes or the new ones.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(unique(".new-"));
    let temporary = PathBuf::from(name);
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, path)
}

/// Copies a file and its modification time. Git trusts a cached entry that is older than its
/// index, so a copy that looks younger than the original would hide a change of the same second.
pub(crate) fn copy_with_time(from: &Path, to: &Path) -> io::Result<()> {
    let modified = fs::metadata(from)?.modified()?;
    fs::copy(from, to)?;
    OpenOptions::new()
        .write(true)
        .open(to)?
        .set_modified(modified)
}

/// Opens a directory itself, never through a symlink in its last component.
pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, DIR_FLAGS, Mode::empty())?)
}

const DIR_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens the directory `name` in `parent`; a symlink is an error.
pub(crate) fn open_dir_at(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(parent, name, DIR_FLAGS, Mode::empty())?)
}

/// The components of a relative path, or an error for anything that could lead out.
fn parts(path: &Path) -> io::Result<Vec<&OsStr>> {
    let parts: Option<Vec<_>> = path
        .components()
        .map(|part| {
            if let Component::Normal(name) = part {
                Some(name)
            } else {
                None
            }
        })
        .collect();
    parts.filter(|p| !p.is_empty()).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("path leads out: {}", path.display()),
        )
    })
}

/// Opens the directory that holds `path` beneath `root`, making it if asked, and gives the last
/// name. Every component is opened by hand without following symlinks.
pub(crate) fn parent_beneath(
    root: BorrowedFd<'_>,
    path: &Path,
    make: bool,
) -> io::Result<(OwnedFd, OsString)> {
    let mut parts = parts(path)?;
    let last = parts.pop().map(OsStr::to_owned).unwrap_or_default();
    let mut at = root.try_clone_to_owned()?;
    for part in parts {
        if make {
            match rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        at = open_dir_at(at.as_fd(), part)?;
    }
    Ok((at, last))
}

/// How often the kernel is asked again when it saw a rename on the way.
#[cfg(target_os = "linux")]
const CONTAINED_TRIES_MAX: u32 = 64;

/// Opens `path` in one step that the kernel contains: a directory that is swapped for a symlink
/// while we are on the way is an error, never followed.
#[cfg(target_os = "linux")]
fn open_contained(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    use rustix::{fs::ResolveFlags, io::Errno};
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..CONTAINED_TRIES_MAX {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Ok(file) => return Ok(file),
            Err(Errno::AGAIN) => {}
            // An older kernel, or a filter around us that does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => return open_by_parts(root, path, flags),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::AGAIN.into())
}

#[cfg(not(target_os = "linux"))]
fn open_contained(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    open_by_parts(root, path, flags)
}

/// The same, one directory after the other: each is held open, so none can be swapped under us.
fn open_by_parts(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let (parent, name) = parent_beneath(root, path, false)?;
    Ok(rustix::fs::openat(&parent, &name, flags, Mode::empty())?)
}

/// Opens a regular file beneath `root` for reading. Symlinks on any part of the way, magic links,
/// fifos and devices are errors. This is the one way in which the host reads a workspace's file.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    // NONBLOCK: opening a fifo without a writer would wait for ever. NOCTTY: nor may a terminal
    // become ours.
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    parts(path)?;
    let file = File::from(open_contained(root, path, flags)?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ))
    }
}

/// Reads a small regular file beneath `root`; longer than `max` is an error.
pub(crate) fn read_beneath(root: BorrowedFd<'_>, path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_beneath(root, path)?
        .take(max + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "larger than expected",
        ));
    }
    Ok(bytes)
}

/// Creates a new file beneath `root`, with its directories; an existing one is an error.
pub(crate) fn create_beneath(root: BorrowedFd<'_>, path: &Path, mode: u32) -> io::Result<File> {
    let (parent, name) = parent_beneath(root, path, true)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode((mode & 0o777) as rustix::fs::RawMode);
    let file = File::from(rustix::fs::openat(&parent, &name, flags, mode)?);
    rustix::fs::fchmod(&file, mode)?;
    Ok(file)
}

/// Puts a file beneath `root`, in place of whatever file or link had its name.
pub(crate) fn replace_beneath(root: BorrowedFd<'_>, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (parent, name) = parent_beneath(root, path, true)?;
    let making = unique(".dispatch-");
    let mut file = create_beneath(parent.as_fd(), Path::new(&making), 0o600)?;
    file.write_all(bytes)?;
    Ok(rustix::fs::renameat(&parent, &making, &parent, &name)?)
}

/// Removes a file or a tree, whatever its modes and depth, without following symlinks. Gone
/// already is fine.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(meta) if !meta.is_dir() => return fs::remove_file(path),
        Ok(_) => {}
    }
    unlock_dir(path)?;
    let top = open_dir(path)?;
    while empty(&top, &top, 0)? {}
    fs::remove_dir(path)
}

/// Gives the owner back the right to change a directory.
pub(crate) fn unlock_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let meta = fs::symlink_metadata(path)?;
    if meta.is_dir() && meta.permissions().mode() & 0o700 != 0o700 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// How deep a tree is followed: each level holds one descriptor and a piece of the stack.
pub(crate) const DEPTH_MAX: usize = 128;

/// Empties a directory. What lies too deep is moved to the top instead, for another round: an
/// agent can nest directories until a plain recursion overflows our stack.
fn empty(dir: &OwnedFd, top: &OwnedFd, depth: usize) -> io::Result<bool> {
    let mut moved = false;
    for (name, kind) in list_dir(dir)? {
        let stat = || rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW);
        let known = kind != FileType::Directory && kind != FileType::Unknown;
        let mode = if known { None } else { Some(stat()?.st_mode) };
        let Some(mode) = mode.filter(|m| FileType::from_raw_mode(*m) == FileType::Directory) else {
            rustix::fs::unlinkat(dir, &name, AtFlags::empty())?;
            continue;
        };
        if mode & 0o700 != 0o700 {
            rustix::fs::chmodat(dir, &name, Mode::from_raw_mode(0o700), AtFlags::empty())?;
        }
        if depth >= DEPTH_MAX {
            rustix::fs::renameat(dir, &name, top, unique("deep-"))?;
            moved = true;
            continue;
        }
        let child = open_dir_at(dir.as_fd(), &name)?;
        moved |= empty(&child, top, depth + 1)?;
        drop(child);
        rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR)?;
    }
    Ok(moved)
}

/// The names in a directory, sorted, with their kinds as far as the file system tells.
pub(crate) fn list_dir(dir: &OwnedFd) -> io::Result<Vec<(OsString, FileType)>> {
    let mut names = Vec::new();
    let mut entries = Dir::read_from(dir)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            let name = OsString::from_vec(name.to_bytes().to_vec());
            names.push((name, entry.file_type()));
        }
    }
    names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_any_stack_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().join("top");
        fs::create_dir(&top).unwrap();
        let mut at = open_dir(&top).unwrap();
        for _ in 0..20_000 {
            rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o755)).unwrap();
            at = open_dir_at(at.as_fd(), "d".as_ref()).unwrap();
        }
        drop(at);
        remove_tree(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn paths_cannot_lead_out() {
        let temp = tempfile::tempdir().unwrap();
        let root = open_dir(temp.path()).unwrap();
        for bad in ["", "..", "/etc/passwd", "a/../../b"] {
            assert!(
                parent_beneath(root.as_fd(), Path::new(bad), true).is_err(),
                "{bad}"
            );
        }
        std::os::unix::fs::symlink("/etc", temp.path().join("l")).unwrap();
        for bad in ["l/passwd", "l"] {
            assert!(open_beneath(root.as_fd(), Path::new(bad)).is_err(), "{bad}");
            assert!(
                create_beneath(root.as_fd(), Path::new(bad), 0o644).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn only_plain_files_are_read_and_never_more_than_asked_for() {
        let temp = tempfile::tempdir().unwrap();
        let root = open_dir(temp.path()).unwrap();
        let read = |path: &str| read_beneath(root.as_fd(), Path::new(path), 4);
        fs::write(temp.path().join("four"), "1234").unwrap();
        fs::write(temp.path().join("five"), "12345").unwrap();
        assert_eq!(read("four").unwrap(), b"1234");
        assert!(read("five").is_err());
        let fifo = temp.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(read("fifo").is_err());
        // Magic links go where no path leads.
        let proc = open_dir(Path::new(&format!("/proc/{}", std::process::id()))).unwrap();
        for magic in ["fd/0", "root/etc/passwd", "cwd/Cargo.toml", "exe"] {
            assert!(
                open_beneath(proc.as_fd(), Path::new(magic)).is_err(),
                "{magic}"
            );
        }
    }

    #[test]
    fn a_file_replaces_a_link_and_never_goes_through_one() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        fs::create_dir_all(at("home/deep")).unwrap();
        fs::write(at("outside"), "theirs").unwrap();
        std::os::unix::fs::symlink(at("outside"), at("home/deep/settings")).unwrap();
        std::os::unix::fs::symlink(temp.path(), at("home/away")).unwrap();
        let home = open_dir(&at("home")).unwrap();
        let put = |path: &str| replace_beneath(home.as_fd(), Path::new(path), b"ours");
        put("deep/settings").unwrap();
        put("new/dir/settings").unwrap();
        assert!(put("away/outside").is_err());
        for (path, text) in [
            ("outside", "theirs"),
            ("home/deep/settings", "ours"),
            ("home/new/dir/settings", "ours"),
        ] {
            assert_eq!(fs::read_to_string(at(path)).unwrap(), text, "{path}");
        }
        assert_eq!(fs::read_dir(at("home/deep")).unwrap().count(), 1);
    }

    /// Both ways in, while another thread swaps the directory for a link to the secret's.
    #[test]
    fn a_directory_swapped_for_a_link_is_never_followed() {
        use std::sync::atomic::AtomicBool;
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        for (dir, text) in [("inside", "ours"), ("outside", "secret")] {
            fs::create_dir(at(dir)).unwrap();
            fs::write(at(dir).join("file"), text).unwrap();
        }
        fs::create_dir(at("root")).unwrap();
        std::os::unix::fs::symlink(at("outside"), at("root/link")).unwrap();
        fs::rename(at("inside"), at("root/dir")).unwrap();
        let root = open_dir(&at("root")).unwrap();
        let over = AtomicBool::new(false);
        let exchange = || {
            rustix::fs::renameat_with(
                &root,
                "dir",
                &root,
                "link",
                rustix::fs::RenameFlags::EXCHANGE,
            )
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    exchange().unwrap();
                }
            });
            let (mut seen, mut refused) = (0, 0);
            for n in 0..20_000 {
                let path = Path::new("dir/file");
                let opened = if n % 2 == 0 {
                    open_beneath(root.as_fd(), path)
                } else {
                    open_by_parts(root.as_fd(), path, OFlags::RDONLY).map(File::from)
                };
                let Ok(mut file) = opened else {
                    refused += 1;
                    continue;
                };
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                assert_eq!(text, "ours");
                seen += 1;
            }
            over.store(true, Ordering::Relaxed);
            assert!(seen + refused == 20_000);
        });
    }
}
