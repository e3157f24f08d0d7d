//! Snapshots: what a workspace holds, taken into the vault with our git directory and our index,
//! then sealed as a result or restored. Nothing here reads the agent's `.git`, configuration,
//! attributes or ignore rules, no git is run over an agent's tree, and nothing is left out without
//! being named.

mod rest;
mod restore;
mod rules;
mod seal;
mod stamps;
mod take;
mod walk;

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

pub use restore::restore;
pub(crate) use rules::root_rules_ignore;
pub use seal::{Seal, Sealed, Squashed, keep, seal};
pub use take::snapshot;

use crate::git::{CommitId, GitError};
use crate::snapshot::rules::Rules;
use crate::vault::VaultError;
use crate::workspace::WorkspaceError;

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
