//! Takes what a workspace holds into the vault. The agent may still be at work there: its files are
//! opened beneath a directory we hold, and git sees our copies of them only, because between a look
//! of git's at a path and its opening of it a link could be put there that leads out.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::rest::{self, Item};
use super::rules::Rules;
use super::stamps::Stamps;
use super::walk::{Found, Walk};
use super::{
    EMPTY_TREE, LeftOuts, Limits, Snapshot, SnapshotError, Why, as_path, git_error, io_error,
};
use crate::files;
use crate::git::{self, CommitId, Entry, GitError};
use crate::vault::{Scratch, Vault};
use crate::workspace::META_INDEX;

/// How much is copied before git reads it and the copies go: what a snapshot needs of the disk
/// beside its objects.
const COPIES_MAX_BYTES: u64 = 64 << 20;

/// Takes what `workspace` holds into the vault. `meta` is the directory `prepare` wrote to.
pub fn snapshot(
    vault: &Vault,
    workspace: &Path,
    meta: &Path,
    base: &CommitId,
    limits: &Limits,
) -> Result<Snapshot, SnapshotError> {
    let scratch = Scratch::new(vault).map_err(io_error("make scratch space in", vault.dir()))?;
    let plain = CommitId::parse(EMPTY_TREE).map_err(git_error("read attributes"))?;
    let over = Over {
        vault,
        workspace,
        base,
        index: scratch.path("index"),
        copies: scratch.path("copies"),
        attributes: if vault.is_plain() { &plain } else { base },
    };
    match take(&over, &scratch, meta, limits) {
        // An attribute of the base, such as an encoding, can make git refuse a file of the
        // agent's; its bytes as they are beat no snapshot.
        Err(SnapshotError::Git {
            source: GitError::Failed { .. },
            ..
        }) => take(
            &Over {
                attributes: &plain,
                ..over
            },
            &scratch,
            meta,
            limits,
        ),
        other => other,
    }
}

/// Our git directory and index over our copies of their files.
struct Over<'a> {
    vault: &'a Vault,
    workspace: &'a Path,
    base: &'a CommitId,
    index: PathBuf,
    copies: PathBuf,
    attributes: &'a CommitId,
}

impl Over<'_> {
    fn cmd(&self, verb: &'static str) -> git::Cmd<'_> {
        self.vault
            .cmd(verb)
            .work_tree(&self.copies)
            .index(&self.index)
            .env("GIT_ATTR_SOURCE", self.attributes)
            .slow()
    }

    fn index_info(&self, lines: Vec<u8>) -> Result<(), SnapshotError> {
        if lines.is_empty() {
            return Ok(());
        }
        self.cmd("update-index")
            .args(["-z", "--replace", "--index-info"])
            .stdin_bytes(lines)
            .run()
            .map(drop)
            .map_err(git_error("write the snapshot's index"))
    }

    /// An empty directory for copies.
    fn make_room(&self) -> Result<OwnedFd, SnapshotError> {
        files::remove_tree(&self.copies)
            .and_then(|()| fs::create_dir_all(&self.copies))
            .and_then(|()| files::open_dir(&self.copies))
            .map_err(io_error("make room for copies at", &self.copies))
    }
}

fn take(
    over: &Over<'_>,
    scratch: &Scratch,
    meta: &Path,
    limits: &Limits,
) -> Result<Snapshot, SnapshotError> {
    let workspace = over.workspace;
    let root = files::open_dir(workspace).map_err(io_error("open", workspace))?;
    drop(over.make_room()?);
    start_index(over, meta)?;
    let stamps = Stamps::read(&over.index).map_err(io_error("read", &over.index))?;
    let out = over
        .cmd("ls-files")
        .args(["-s", "-z"])
        .run()
        .map_err(git_error("list the base"))?;
    let entries = git::parse_entries(&out.stdout).map_err(git_error("list the base"))?;
    let (gitlinks, entries): (Vec<Entry>, Vec<Entry>) =
        entries.into_iter().partition(Entry::is_gitlink);
    // Out of the index until all else is in it, so that none of them is replaced by a file.
    over.index_info(git::index_info(
        gitlinks.iter().map(|e| (None, e.path.as_slice())),
    ))?;
    let rules = if over.vault.is_plain() {
        Rules::default()
    } else {
        Rules::of(over.vault, &entries)?
    };

    let mut walk = Walk::new(&entries, &gitlinks, &stamps, &rules, limits);
    walk.run(&root).map_err(io_error("walk", workspace))?;
    over.index_info(git::index_info(walk.gone().map(|path| (None, path))))?;
    let mut rest = walk.rest;
    let refused = add(over, root.as_fd(), walk.add, &mut walk.left_out)?;
    rest.extend(refused);
    let blobs_tar = rest::store(over.vault, scratch, root.as_fd(), rest, &mut walk.left_out)?;

    let links = gitlinks
        .iter()
        .map(|e| (Some((e.mode.as_str(), &e.id)), e.path.as_slice()));
    over.index_info(git::index_info(links))?;
    let tree = over
        .cmd("write-tree")
        .id()
        .map_err(git_error("write the snapshot's tree"))?;
    let base_tree = over.vault.object(&format!("{}^{{tree}}", over.base))?;
    Ok(Snapshot {
        base: over.base.clone(),
        changed: tree != base_tree || blobs_tar.is_some(),
        tree,
        blobs_tar,
        left_out: walk.left_out.named,
        more_ignored: walk.left_out.more_ignored,
        more_left_out: walk.left_out.more,
        rules,
        gitlinks: gitlinks.into_iter().map(|e| e.path).collect(),
    })
}

/// Our copy of the pristine index lets us skip every file whose times and sizes are unchanged.
fn start_index(over: &Over<'_>, meta: &Path) -> Result<(), SnapshotError> {
    match files::copy_with_time(&meta.join(META_INDEX), &over.index) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => over
            .cmd("read-tree")
            .arg(over.base)
            .run()
            .map(drop)
            .map_err(git_error("read the base into an index")),
        Err(source) => Err(io_error("copy the index from", meta)(source)),
    }
}

/// Adds what was found to the index, and says what git would not have.
fn add(
    over: &Over<'_>,
    root: BorrowedFd<'_>,
    found: Vec<Found>,
    left_out: &mut LeftOuts,
) -> Result<Vec<Found>, SnapshotError> {
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let mut added = Vec::with_capacity(found.len());
    let mut gone = Vec::new();
    let mut found = found.into_iter().peekable();
    while found.peek().is_some() {
        let copies = over.make_room()?;
        let (mut list, mut bytes) = (Vec::new(), 0);
        while bytes < COPIES_MAX_BYTES
            && let Some(one) = found.next()
        {
            let copied = match rest::open(root, &one) {
                Ok(item) => copy(over, copies.as_fd(), as_path(&one.path), item)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    gone.push(one.path);
                    continue;
                }
                Err(_) => false,
            };
            if !copied {
                left_out.push(&one.path, Why::Unreadable);
                continue;
            }
            list.extend(&one.path);
            list.push(0);
            bytes += one.bytes;
            added.push(one);
        }
        over.cmd("update-index")
            .args(["-z", "--add", "--replace", "--stdin"])
            .stdin_bytes(list)
            .run()
            .map_err(git_error("add the workspace's files"))?;
    }
    drop(over.make_room()?);
    over.index_info(git::index_info(
        gone.iter().map(|path| (None, path.as_slice())),
    ))?;
    let out = over
        .cmd("ls-files")
        .arg("-z")
        .run()
        .map_err(git_error("list the snapshot"))?;
    let held: HashSet<&[u8]> = git::records(&out.stdout).collect();
    added.retain(|one| !held.contains(one.path.as_slice()));
    Ok(added)
}

/// Copies one file or link for git to read; `false` when the agent has changed its tree so much
/// meanwhile that there is no place for it.
fn copy(
    over: &Over<'_>,
    copies: BorrowedFd<'_>,
    path: &Path,
    item: Item,
) -> Result<bool, SnapshotError> {
    let copied = match item {
        Item::Directory { .. } => return Ok(false),
        Item::File { mode, size, file } => {
            // Git looks at the owner's right to execute; the owner is to be able to read.
            let mode = if mode & 0o100 == 0 { 0o600 } else { 0o700 };
            files::create_beneath(copies, path, mode)
                .and_then(|mut copy| io::copy(&mut file.take(size), &mut copy).map(drop))
        }
        Item::Link { target } => files::parent_beneath(copies, path, true).and_then(|at| {
            let target = std::ffi::OsStr::from_bytes(&target);
            Ok(rustix::fs::symlinkat(target, &at.0, &at.1)?)
        }),
    };
    match copied {
        Ok(()) => Ok(true),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(io_error("copy the workspace's files to", &over.copies)(
            error,
        )),
    }
}
