//! Snapshots: what a workspace holds, taken into the vault with our git directory and our index
//! over the agent's tree, then sealed as a result or restored. Nothing here reads the agent's
//! `.git`, configuration, attributes or ignore rules, and nothing is left out without being named.

mod rest;
mod restore;
mod rules;
mod seal;
mod walk;

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

pub use restore::restore;
pub(crate) use rules::root_rules_ignore;
pub use seal::{Seal, Sealed, Squashed, keep, seal};

use crate::files;
use crate::git::{self, CommitId, Entry, GitError};
use crate::snapshot::rules::Rules;
use crate::snapshot::walk::Walk;
use crate::vault::{Scratch, Vault, VaultError};
use crate::workspace::{META_INDEX, WorkspaceError};

/// How the agent says it cannot go on; a message to us, not part of the result.
pub const BLOCKED: &str = "BLOCKED.md";
/// How many paths of each kind (ignored, other) a snapshot names; the rest is counted.
pub const LEFT_OUT_MAX: usize = 1000;
/// Attributes of no tree: for files that the base's attributes make git refuse.
pub(crate) const EMPTY_TREE: &str = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("{what} {path}: check the disk's space and the owner of the files")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{what}")]
    Git {
        what: &'static str,
        source: GitError,
    },
    #[error("keep the snapshot")]
    Vault(#[from] VaultError),
    #[error("put the restored workspace in place")]
    Workspace(#[from] WorkspaceError),
    #[error("restore to {path}: it exists; remove the workspace first")]
    Exists { path: PathBuf },
    #[error("restore {commit}: it is not a snapshot of ours")]
    NotASnapshot { commit: CommitId },
}

/// What one snapshot may take in beyond the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub total_bytes: u64,
    pub file_bytes: u64,
    pub files: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            total_bytes: 1 << 30,
            file_bytes: 100 << 20,
            files: 100_000,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// By an ignore rule of the base commit.
    Ignored,
    /// Larger than `file_bytes`.
    TooLarge,
    /// `total_bytes` were taken in already.
    TotalFull,
    /// `files` were taken in already, or there was more than we walk through.
    TooMany,
    /// Deeper, or with a longer path, than we follow.
    TooDeep,
    /// A socket, fifo or device.
    Special,
    /// We may not read it.
    Unreadable,
    /// Inside a submodule of the base.
    Submodule,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    pub path: PathBuf,
    pub why: Why,
}

#[derive(Debug, Clone)]
pub struct Snapshot {
    pub base: CommitId,
    /// What the workspace holds, as a git tree; what was left out keeps the base's version.
    pub tree: CommitId,
    /// A tar blob with what git cannot hold.
    pub blobs_tar: Option<CommitId>,
    /// The first of what was left out, with a directory standing for all below it.
    pub left_out: Vec<LeftOut>,
    /// How many more ignored paths there are.
    pub more_ignored: u64,
    /// How many more paths were left out for another reason.
    pub more_left_out: u64,
    /// Something differs from the base.
    pub changed: bool,
    rules: Rules,
    gitlinks: HashSet<Vec<u8>>,
}

/// Takes what `workspace` holds into the vault. `meta` is the directory `prepare` wrote to.
/// Nothing may run in the workspace meanwhile.
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

/// Our git directory and index over their tree.
struct Over<'a> {
    vault: &'a Vault,
    workspace: &'a Path,
    base: &'a CommitId,
    index: PathBuf,
    attributes: &'a CommitId,
}

impl Over<'_> {
    fn cmd(&self, verb: &'static str) -> git::Cmd<'_> {
        self.vault
            .cmd(verb)
            .work_tree(self.workspace)
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
}

fn take(
    over: &Over<'_>,
    scratch: &Scratch,
    meta: &Path,
    limits: &Limits,
) -> Result<Snapshot, SnapshotError> {
    let workspace = over.workspace;
    let root = files::open_dir(workspace).map_err(io_error("open", workspace))?;
    start_index(over, meta)?;
    let out = over
        .cmd("ls-files")
        .args(["-s", "-z"])
        .run()
        .map_err(git_error("list the base"))?;
    let entries = git::parse_entries(&out.stdout).map_err(git_error("list the base"))?;
    let (gitlinks, entries): (Vec<Entry>, Vec<Entry>) =
        entries.into_iter().partition(Entry::is_gitlink);
    // Out of the index while git looks at the tree, or it would look into the agent's submodules.
    over.index_info(git::index_info(
        gitlinks.iter().map(|e| (None, e.path.as_slice())),
    ))?;
    let rules = if over.vault.is_plain() {
        Rules::default()
    } else {
        Rules::of(over.vault, &entries)?
    };
    let out = over
        .cmd("diff-files")
        .args(["-z", "--ignore-submodules=all"])
        .run();
    let out = out.map_err(git_error("compare the workspace with the base"))?;
    let touched = git::parse_changes(&out.stdout)
        .map_err(git_error("compare the workspace with the base"))?;

    let mut walk = Walk::new(&entries, &gitlinks, &touched, &rules, limits);
    walk.run(&root).map_err(io_error("walk", workspace))?;
    let gone = touched
        .iter()
        .filter(|c| c.status == b'D' && walk.is_gone(&c.path));
    over.index_info(git::index_info(gone.map(|c| (None, c.path.as_slice()))))?;
    let refused = add(over, &walk.add)?;
    let mut rest = walk.rest;
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

/// Our copy of the pristine index lets git skip every file whose times and sizes are unchanged.
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

/// Adds paths to the index and says which ones git would not have.
fn add(over: &Over<'_>, paths: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, SnapshotError> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let mut list = Vec::new();
    for path in paths {
        list.extend(path);
        list.push(0);
    }
    over.cmd("update-index")
        .args(["-z", "--add", "--remove", "--replace", "--stdin"])
        .stdin_bytes(list)
        .run()
        .map_err(git_error("add the workspace's files"))?;
    let out = over
        .cmd("ls-files")
        .arg("-z")
        .run()
        .map_err(git_error("list the snapshot"))?;
    let held: HashSet<&[u8]> = git::records(&out.stdout).collect();
    Ok(paths
        .iter()
        .filter(|path| !held.contains(path.as_slice()))
        .cloned()
        .collect())
}

/// What was left out, bounded.
#[derive(Debug, Default)]
struct LeftOuts {
    named: Vec<LeftOut>,
    ignored: usize,
    more_ignored: u64,
    more: u64,
}

impl LeftOuts {
    fn push(&mut self, path: &[u8], why: Why) {
        let ignored = why == Why::Ignored;
        let named = if ignored {
            self.ignored
        } else {
            self.named.len() - self.ignored
        };
        if named >= LEFT_OUT_MAX {
            *(if ignored {
                &mut self.more_ignored
            } else {
                &mut self.more
            }) += 1;
            return;
        }
        self.ignored += usize::from(ignored);
        self.named.push(LeftOut {
            path: as_path(path).to_owned(),
            why,
        });
    }
}

fn as_path(bytes: &[u8]) -> &Path {
    let text: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(bytes);
    Path::new(text)
}

/// The directory part of a path; empty for the top.
fn parent(path: &[u8]) -> &[u8] {
    &path[..path.iter().rposition(|b| *b == b'/').unwrap_or(0)]
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.first() == Some(&b'/'))
}

fn io_error(what: &'static str, path: &Path) -> impl Fn(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Io {
        what,
        path: path.clone(),
        source,
    }
}

fn git_error(what: &'static str) -> impl Fn(GitError) -> SnapshotError {
    move |source| SnapshotError::Git { what, source }
}

#[cfg(test)]
mod tests;
