//! Makes a workspace again from a snapshot, for undo.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::Path;

use super::{EMPTY_TREE, SnapshotError, git_error, io_error, rest};
use crate::files::{self, Lock};
use crate::git::{CommitId, RefName};
use crate::vault::{Scratch, Vault};
use crate::workspace::{self, META_INDEX};

/// Restores the workspace that `commit`, made by `keep` or `seal`, holds. `dest` must be free;
/// `meta` is the task's directory that `prepare` uses. HEAD is where the agent had left it.
pub fn restore(
    vault: &Vault,
    commit: &CommitId,
    branch: &RefName,
    dest: &Path,
    meta: &Path,
) -> Result<(), SnapshotError> {
    let _held = Lock::take(&meta.join("lock")).map_err(io_error("lock", meta))?;
    if fs::symlink_metadata(dest).is_ok() {
        return Err(SnapshotError::Exists {
            path: dest.to_owned(),
        });
    }
    if let Some(parent) = dest.parent() {
        fs::create_dir_all(parent).map_err(io_error("make", parent))?;
    }
    let (base, head) = parents(vault, commit)?;
    let making = workspace::beside(dest, "making");
    files::remove_tree(&making).map_err(io_error("remove what a crash left at", &making))?;
    let git_dir = making.join(".git");
    let io = io_error("write", &making);
    workspace::lay_git_dir(&git_dir, vault.mirror_objects(), &base).map_err(&io)?;
    if head != base {
        // The vault is never mounted: the agent's own commits must be in its own store.
        vault
            .git()
            .cmd("fetch")
            .git_dir(&git_dir)
            .args([
                "--quiet",
                "--no-tags",
                "--no-write-fetch-head",
                "--no-auto-maintenance",
                "--",
            ])
            .arg(vault.dir())
            .arg(&head)
            .slow()
            .run()
            .map_err(git_error("bring the agent's commits back"))?;
    }
    workspace::point_head(&git_dir, branch, &head).map_err(&io)?;

    let attributes = if vault.is_plain() {
        EMPTY_TREE
    } else {
        base.as_str()
    };
    let index = git_dir.join("index");
    let pristine = meta.join(META_INDEX);
    let over = |verb, index| vault.cmd(verb).work_tree(&making).index(index).slow();
    over("read-tree", &index)
        .set("checkout.workers=0")
        .env("GIT_ATTR_SOURCE", attributes)
        .args(["--reset", "-u", &format!("{commit}:files")])
        .run()
        .map_err(git_error("write the snapshot's files"))?;
    files::copy_with_time(&index, &pristine).map_err(io_error("write", meta))?;
    for (index, at) in [(&pristine, &base), (&index, &head)] {
        // Keeps the times of what is the same there, so that the next look is quick.
        over("read-tree", index)
            .args(["-i", "-m"])
            .arg(at)
            .run()
            .map_err(git_error("write the restored index"))?;
    }
    unpack_rest(vault, commit, &making)?;
    workspace::finish(&making, dest, meta, vault.mirror_objects(), &base, branch)?;
    Ok(())
}

fn parents(vault: &Vault, commit: &CommitId) -> Result<(CommitId, CommitId), SnapshotError> {
    let not_ours = || SnapshotError::NotASnapshot {
        commit: commit.clone(),
    };
    vault
        .object(&format!("{commit}:files"))
        .map_err(|_| not_ours())?;
    let out = vault
        .cmd("rev-parse")
        .arg(format!("{commit}^@"))
        .run()
        .map_err(git_error("read the snapshot"))?;
    let text = String::from_utf8_lossy(&out.stdout);
    let mut parents = text.lines().map(CommitId::parse);
    let base = parents.next().and_then(Result::ok).ok_or_else(not_ours)?;
    let head = parents
        .next()
        .and_then(Result::ok)
        .unwrap_or_else(|| base.clone());
    Ok((base, head))
}

fn unpack_rest(vault: &Vault, commit: &CommitId, making: &Path) -> Result<(), SnapshotError> {
    let Ok(blob) = vault.object(&format!("{commit}:rest.tar")) else {
        return Ok(());
    };
    let scratch = Scratch::new(vault).map_err(io_error("make scratch space in", vault.dir()))?;
    let tar = scratch.path("rest.tar");
    let file = File::create(&tar).map_err(io_error("write", &tar))?;
    vault
        .cmd("cat-file")
        .args(["blob", blob.as_str()])
        .stdout_file(file)
        .slow()
        .run()
        .map_err(git_error("read what git cannot hold"))?;
    let root = files::open_dir(making).map_err(io_error("open", making))?;
    File::open(&tar)
        .and_then(|file| rest::unpack(root.as_fd(), file))
        .map_err(io_error("unpack what git cannot hold to", making))
}
