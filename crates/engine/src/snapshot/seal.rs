//! Seals a snapshot as a task's result: the agent's commits and one more with the rest, or one
//! commit on the base when its history cannot be taken as it is.

use super::{BLOCKED, Snapshot, SnapshotError, git_error, io_error, is_below};
use crate::git::{self, Change, CommitId, RefName};
use crate::snapshot::Why;
use crate::vault::{Author, DiffStat, Scratch, Vault};

/// What a result is made from.
#[derive(Debug, Clone, Copy)]
pub struct Seal<'a> {
    pub task: &'a str,
    pub run: &'a str,
    /// The agent's HEAD, imported into the vault; `None` when it did not commit.
    pub head: Option<&'a CommitId>,
    /// For the commit of what the agent did not commit itself.
    pub message: &'a str,
    pub author: &'a Author,
}

/// Why a result is one commit although the agent made its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Squashed {
    HistoryRewritten,
    /// A commit has `BLOCKED.md`, which belongs to no result.
    BlockedCommitted,
}

#[derive(Debug, Clone)]
pub struct Sealed {
    /// The base itself when nothing changed.
    pub commit: CommitId,
    pub result_ref: RefName,
    pub snapshot: CommitId,
    pub snapshot_ref: RefName,
    /// Against the base.
    pub stat: DiffStat,
    pub squashed: Option<Squashed>,
}

/// Keeps a snapshot as a commit under `refs/dispatch/snapshots/<task>/<name>`. Its parents are
/// the base and the agent's HEAD, which so stays reachable whatever becomes of it.
pub fn keep(
    vault: &Vault,
    snapshot: &Snapshot,
    head: Option<&CommitId>,
    task: &str,
    name: &str,
    author: &Author,
) -> Result<(CommitId, RefName), SnapshotError> {
    let kept = RefName::full(&format!("refs/dispatch/snapshots/{task}/{name}"))
        .map_err(git_error("name the snapshot"))?;
    let mut listing = format!("040000 tree {}\tfiles\0", snapshot.tree);
    if let Some(blob) = &snapshot.blobs_tar {
        listing.push_str(&format!("100644 blob {blob}\trest.tar\0"));
    }
    let tree = vault.cmd("mktree").arg("-z").stdin_bytes(listing).id();
    let tree = tree.map_err(git_error("write the snapshot"))?;
    let mut parents = vec![snapshot.base.clone()];
    parents.extend(head.filter(|head| **head != snapshot.base).cloned());
    let commit = vault.commit_tree(&tree, &parents, "Snapshot of a workspace\n", author)?;
    vault.update_ref(&kept, &commit)?;
    Ok((commit, kept))
}

/// Stores the result under `refs/dispatch/results/<task>/<run>`, and the snapshot beside it.
pub fn seal(vault: &Vault, snapshot: &Snapshot, seal: &Seal<'_>) -> Result<Sealed, SnapshotError> {
    let result_ref = RefName::full(&format!("refs/dispatch/results/{}/{}", seal.task, seal.run))
        .map_err(git_error("name the result"))?;
    let (kept, snapshot_ref) = keep(vault, snapshot, seal.head, seal.task, seal.run, seal.author)?;
    let base = &snapshot.base;
    let head = seal.head.unwrap_or(base);
    let squashed = squashed(vault, base, head)?;
    let tree = result_tree(vault, snapshot, head)?;
    let parent = if squashed.is_some() { base } else { head };
    let commit = if vault.object(&format!("{parent}^{{tree}}"))? == tree {
        parent.clone()
    } else {
        vault.commit_tree(
            &tree,
            std::slice::from_ref(parent),
            seal.message,
            seal.author,
        )?
    };
    vault.update_ref(&result_ref, &commit)?;
    let stat = vault.diffstat(base, &commit)?;
    Ok(Sealed {
        commit,
        result_ref,
        snapshot: kept,
        snapshot_ref,
        stat,
        squashed,
    })
}

fn squashed(
    vault: &Vault,
    base: &CommitId,
    head: &CommitId,
) -> Result<Option<Squashed>, SnapshotError> {
    if head == base {
        return Ok(None);
    }
    if !vault.is_ancestor(base, head)? {
        return Ok(Some(Squashed::HistoryRewritten));
    }
    let range = format!("{base}..{head}");
    let out = vault
        .cmd("rev-list")
        .args(["--max-count=1", "--full-history", &range, "--", BLOCKED])
        .run()
        .map_err(git_error("look through the agent's commits"))?;
    Ok((!out.stdout.is_empty()).then_some(Squashed::BlockedCommitted))
}

/// The snapshot's tree, but with the agent's committed version of what the snapshot could not or
/// would not see: otherwise the last commit would take it back.
fn result_tree(
    vault: &Vault,
    snapshot: &Snapshot,
    head: &CommitId,
) -> Result<CommitId, SnapshotError> {
    if *head == snapshot.base {
        return Ok(snapshot.tree.clone());
    }
    let error = git_error("compare the agent's commits with its tree");
    let out = vault
        .cmd("diff-tree")
        .args([
            "-r",
            "-z",
            "--raw",
            "--no-renames",
            head.as_str(),
            snapshot.tree.as_str(),
        ])
        .run()
        .map_err(&error)?;
    let changes = git::parse_changes(&out.stdout).map_err(&error)?;
    let committed: Vec<&Change> = changes.iter().filter(|c| unseen(snapshot, c)).collect();
    if committed.is_empty() {
        return Ok(snapshot.tree.clone());
    }
    let error = git_error("put the result's tree together");
    let scratch = Scratch::new(vault).map_err(io_error("make scratch space in", vault.dir()))?;
    let index = scratch.path("index");
    vault
        .cmd("read-tree")
        .index(&index)
        .arg(&snapshot.tree)
        .run()
        .map_err(&error)?;
    let lines = committed.into_iter().map(|c| {
        let there = c.old_mode != "000000";
        (
            there.then_some((c.old_mode.as_str(), &c.old_id)),
            c.path.as_slice(),
        )
    });
    vault
        .cmd("update-index")
        .index(&index)
        .args(["-z", "--replace", "--index-info"])
        .stdin_bytes(git::index_info(lines))
        .run()
        .map_err(&error)?;
    vault.cmd("write-tree").index(&index).id().map_err(&error)
}

/// Whether a difference between the agent's HEAD and the snapshot only says that the snapshot
/// did not look there.
fn unseen(snapshot: &Snapshot, change: &Change) -> bool {
    if change.path == BLOCKED.as_bytes() {
        return false;
    }
    if snapshot.gitlinks.contains(&change.path) {
        return true;
    }
    let left_out = snapshot
        .left_out
        .iter()
        .filter(|left| left.why != Why::Ignored)
        .any(|left| {
            let path: &[u8] = std::os::unix::ffi::OsStrExt::as_bytes(left.path.as_os_str());
            change.path == path || is_below(&change.path, path)
        });
    let taken_away = change.status == b'D';
    let unsure = snapshot.more_left_out > 0;
    left_out || (taken_away && (unsure || snapshot.rules.ignores(&change.path)))
}
