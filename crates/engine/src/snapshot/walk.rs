//! Walks an agent's tree and sorts what lies there: unchanged, to add, for the tar, left out.
//! It follows no symlink and reads no file.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{Access, AtFlags, FileType, Stat};

use super::rules::Rules;
use super::stamps::{Since, Stamps};
use super::{BLOCKED, LeftOuts, Limits, Why, is_below, parent};
use crate::files;
use crate::git::Entry;

/// Longer paths do not fit into the system's own limit once git puts something before them.
const PATH_MAX_BYTES: usize = 3800;
/// How many directory entries one walk looks at.
const ENTRIES_MAX: u64 = 5_000_000;

/// What a walk has found, and how many bytes of it were there.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: Vec<u8>,
    /// Of a file that grows meanwhile no more is taken: the limits were held by this number.
    pub(super) bytes: u64,
}

#[derive(Debug)]
pub(super) struct Walk<'a> {
    /// The base's paths, and whether something other than a directory is there.
    tracked: HashMap<&'a [u8], bool>,
    tracked_dirs: HashSet<&'a [u8]>,
    gitlinks: HashSet<&'a [u8]>,
    stamps: &'a Stamps,
    rules: &'a Rules,
    limits: &'a Limits,
    /// New and changed files and symlinks.
    pub(super) add: Vec<Found>,
    /// What git cannot hold, directories included.
    pub(super) rest: Vec<Found>,
    pub(super) left_out: LeftOuts,
    /// Directories we could not look into: what the base has there is not gone.
    unseen: Vec<Vec<u8>>,
    entries: u64,
    files: u64,
    bytes: u64,
}

#[derive(Clone, Copy)]
struct Place {
    depth: usize,
    /// Below an ignored directory that also holds files of the base.
    ignored: bool,
    /// Below something git cannot hold.
    rest: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        entries: &'a [Entry],
        gitlinks: &'a [Entry],
        stamps: &'a Stamps,
        rules: &'a Rules,
        limits: &'a Limits,
    ) -> Self {
        let mut tracked_dirs = HashSet::new();
        for entry in entries.iter().chain(gitlinks) {
            let mut dir = parent(&entry.path);
            while !dir.is_empty() && tracked_dirs.insert(dir) {
                dir = parent(dir);
            }
        }
        Self {
            tracked: entries.iter().map(|e| (e.path.as_slice(), false)).collect(),
            tracked_dirs,
            gitlinks: gitlinks.iter().map(|e| e.path.as_slice()).collect(),
            stamps,
            rules,
            limits,
            add: Vec::new(),
            rest: Vec::new(),
            left_out: LeftOuts::default(),
            unseen: Vec::new(),
            entries: 0,
            files: 0,
            bytes: 0,
        }
    }

    pub(super) fn run(&mut self, root: &OwnedFd) -> io::Result<()> {
        let names = files::list_dir(root)?;
        self.directory(
            root,
            &[],
            names,
            Place {
                depth: 0,
                ignored: false,
                rest: false,
            },
        );
        Ok(())
    }

    /// The base's paths that are really gone, rather than out of our sight.
    pub(super) fn gone(&self) -> impl Iterator<Item = &'a [u8]> {
        let missing = self.tracked.iter().filter(|(_, there)| !**there);
        missing.map(|(path, _)| *path).filter(|path| {
            *path != BLOCKED.as_bytes()
                && self.entries < ENTRIES_MAX
                && !self.unseen.iter().any(|dir| is_below(path, dir))
        })
    }

    fn directory(
        &mut self,
        dir: &OwnedFd,
        at: &[u8],
        names: Vec<(OsString, FileType)>,
        place: Place,
    ) {
        for (name, kind) in names {
            if self.entries >= ENTRIES_MAX {
                self.left_out.push(at, Why::TooMany);
                return;
            }
            self.entries += 1;
            let mut path = at.to_vec();
            if !at.is_empty() {
                path.push(b'/');
            }
            path.extend(name.as_bytes());
            self.entry(dir, &name, path, kind, place);
        }
    }

    fn entry(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        path: Vec<u8>,
        kind: FileType,
        mut place: Place,
    ) {
        if path == b".git" || (path == BLOCKED.as_bytes() && kind != FileType::Directory) {
            return;
        }
        if path.len() > PATH_MAX_BYTES {
            self.see(&path);
            return self.unseen(path, Why::TooDeep);
        }
        let stat = || rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
        let kind = match kind {
            FileType::Unknown => match stat() {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(_) => return,
            },
            known => known,
        };
        place.rest = place.rest || is_refused(name, kind);
        if kind == FileType::Directory {
            return self.enter(dir, name, path, place);
        }
        let tracked = self.tracked.contains_key(path.as_slice());
        let ignored = || place.ignored || self.rules.matches(&path, false);
        if !tracked && !place.rest && ignored() {
            return self.left_out.push(&path, Why::Ignored);
        }
        let stat = match stat() {
            // Gone since it was listed.
            Err(rustix::io::Errno::NOENT) => return,
            other => other,
        };
        self.see(&path);
        let Ok(stat) = stat else {
            return self.left_out.push(&path, Why::Unreadable);
        };
        let since = match tracked && !place.rest {
            true => self.stamps.compare(&path, &stat),
            false => Since::Touched,
        };
        if since == Since::Untouched {
            return;
        }
        match self.admit(dir, name, &stat, since) {
            Err(why) => self.left_out.push(&path, why),
            Ok(bytes) if place.rest => self.rest.push(Found { path, bytes }),
            Ok(bytes) => self.add.push(Found { path, bytes }),
        }
    }

    fn see(&mut self, path: &[u8]) {
        if let Some(there) = self.tracked.get_mut(path) {
            *there = true;
        }
    }

    fn enter(&mut self, dir: &OwnedFd, name: &OsStr, path: Vec<u8>, mut place: Place) {
        if self.gitlinks.contains(path.as_slice()) {
            let empty = files::open_dir_at(dir.as_fd(), name)
                .and_then(|fd| files::list_dir(&fd))
                .is_ok_and(|names| names.is_empty());
            if !empty {
                self.left_out.push(&path, Why::Submodule);
            }
            return;
        }
        if place.rest {
            let path = path.clone();
            self.rest.push(Found { path, bytes: 0 });
        } else {
            place.ignored = place.ignored || self.rules.matches(&path, true);
            if place.ignored && !self.tracked_dirs.contains(path.as_slice()) {
                return self.left_out.push(&path, Why::Ignored);
            }
        }
        place.depth += 1;
        if place.depth > files::DEPTH_MAX {
            return self.unseen(path, Why::TooDeep);
        }
        let opened = files::open_dir_at(dir.as_fd(), name)
            .and_then(|fd| files::list_dir(&fd).map(|names| (fd, names)));
        match opened {
            Ok((fd, names)) => self.directory(&fd, &path, names, place),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => self.unseen(path, Why::Unreadable),
        }
    }

    fn unseen(&mut self, path: Vec<u8>, why: Why) {
        self.left_out.push(&path, why);
        self.unseen.push(path);
    }

    /// Counts a file or symlink against the limits, and says how many bytes of it are taken.
    fn admit(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        stat: &Stat,
        since: Since,
    ) -> Result<u64, Why> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {}
            FileType::RegularFile => {
                let open_to_all = stat.st_mode & 0o444 == 0o444;
                let readable =
                    || rustix::fs::accessat(dir, name, Access::READ_OK, AtFlags::empty()).is_ok();
                if !open_to_all && !readable() {
                    return Err(Why::Unreadable);
                }
                if size > self.limits.file_bytes {
                    return Err(Why::TooLarge);
                }
            }
            _ => return Err(Why::Special),
        }
        // As large as the base has it, and most likely the same.
        if since == Since::Unsure {
            return Ok(size);
        }
        if self.files >= self.limits.files {
            return Err(Why::TooMany);
        }
        if self.bytes.saturating_add(size) > self.limits.total_bytes {
            return Err(Why::TotalFull);
        }
        self.files += 1;
        self.bytes += size;
        Ok(size)
    }
}

/// What git will not hold whatever the settings: repositories' own directories, and a symlink in
/// the place of the file that configures submodules. Whatever else it refuses shows afterwards.
fn is_refused(name: &OsStr, kind: FileType) -> bool {
    name.as_bytes().eq_ignore_ascii_case(b".git")
        || (kind == FileType::Symlink && name.as_bytes().eq_ignore_ascii_case(b".gitmodules"))
}
