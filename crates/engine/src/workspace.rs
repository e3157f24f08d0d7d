//! Workspaces: the checkouts a task's runs work in, made from the mirror or handed out from a
//! pool of trees made ahead of time. Nothing here runs git in a directory an agent has been
//! given, and no workspace shares an inode with a store of ours.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::files::{self, Lock};
use crate::git::{self, CommitId, Git, GitError, RefName};
use crate::mirror::{Mirror, alternates};
use crate::snapshot::EMPTY_TREE;

/// How many trees a mirror's pool holds, unless told.
pub const POOL_TREES_MAX: usize = 2;

const AGENT_NAME: &str = "Dispatch agent";
const AGENT_EMAIL: &str = "agent@dispatch.invalid";
/// Names in a task's meta directory, which is outside the workspace.
pub(crate) const META_INDEX: &str = "index";
const META_ALTERNATES: &str = "alternates";
const META_PREPARED: &str = "prepared";

#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    #[error("{what} {path}: check the data directory's space and owner")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{what} of the workspace {path}")]
    Git {
        what: &'static str,
        path: PathBuf,
        source: GitError,
    },
    #[error("prepare {path}: it exists and was not prepared by dispatch; move it away")]
    Foreign { path: PathBuf },
    #[error("prepare {path}: it stands on {has}, not on {asked}; use it as it is, or remove it")]
    OtherBase {
        path: PathBuf,
        has: CommitId,
        asked: CommitId,
    },
}

/// How a workspace came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// A tree of the pool was at the right commit.
    Pooled,
    /// A tree of the pool was moved to the commit.
    Moved,
    /// All files were written now.
    CheckedOut,
    /// It was there already.
    Existing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    pub how: How,
    pub base: CommitId,
    pub branch: RefName,
}

#[derive(Debug, Clone)]
pub struct Workspaces {
    git: Git,
    pool: PathBuf,
    trash: PathBuf,
    pool_trees_max: usize,
}

impl Workspaces {
    #[must_use]
    pub fn new(git: &Git, data_dir: &Path) -> Self {
        Self {
            git: git.clone(),
            pool: data_dir.join("pool"),
            trash: data_dir.join("trash"),
            pool_trees_max: POOL_TREES_MAX,
        }
    }

    /// How many trees a pool keeps; 0 turns pools off.
    #[must_use]
    pub fn pool_trees_max(mut self, trees: usize) -> Self {
        self.pool_trees_max = trees;
        self
    }

    /// Makes the workspace `dest` at `base` on `branch`, or finds it made. `meta` is a directory
    /// outside of it, this task's alone, that receives what `snapshot` needs. The last step is a
    /// rename, so a `dest` that exists is whole, and what a crash left is made anew.
    pub fn prepare(
        &self,
        mirror: &Mirror,
        base: &CommitId,
        branch: &RefName,
        dest: &Path,
        meta: &Path,
    ) -> Result<Prepared, WorkspaceError> {
        let _held = Lock::take(&meta.join("lock")).map_err(io_error("lock", meta))?;
        if fs::symlink_metadata(dest).is_ok() {
            return existing(base, dest, meta);
        }
        if let Some(parent) = dest.parent() {
            fs::create_dir_all(parent).map_err(io_error("make", parent))?;
        }
        let making = beside(dest, "making");
        files::remove_tree(&making).map_err(io_error("remove what a crash left at", &making))?;
        let how = match self.take_from_pool(mirror, base, &making)? {
            Some(how) => how,
            None => {
                self.check_out(mirror, base, &making)?;
                How::CheckedOut
            }
        };
        let git_dir = making.join(".git");
        point_head(&git_dir, branch, base).map_err(io_error("write HEAD in", &git_dir))?;
        let pristine = git_dir.join("index");
        if how == How::Pooled {
            settle(&pristine).map_err(io_error("write", &pristine))?;
        }
        let index = meta.join(META_INDEX);
        files::copy_with_time(&pristine, &index).map_err(io_error("save the index to", &index))?;
        finish(&making, dest, meta, &mirror.objects(), base, branch)?;
        Ok(Prepared {
            how,
            base: base.clone(),
            branch: branch.clone(),
        })
    }

    /// Takes a workspace away: out of sight first, then file by file. Gone already is fine.
    pub fn remove(&self, dest: &Path) -> Result<(), WorkspaceError> {
        let error = io_error("remove", dest);
        match fs::symlink_metadata(dest) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(error(e)),
            Ok(_) => {}
        }
        // A directory that its owner may not write cannot be moved to another parent.
        files::unlock_dir(dest).map_err(&error)?;
        let aside = self.trash.join(files::unique(""));
        fs::create_dir_all(&self.trash).map_err(io_error("make", &self.trash))?;
        let aside = match fs::rename(dest, &aside) {
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                let aside = beside(dest, &files::unique("removed-"));
                fs::rename(dest, &aside).map_err(&error)?;
                aside
            }
            other => other.map(|()| aside).map_err(&error)?,
        };
        files::remove_tree(&aside).map_err(&error)
    }

    /// Removes what an interrupted `remove` left: at boot, before anything else runs.
    pub fn sweep(&self) -> Result<(), WorkspaceError> {
        files::remove_tree(&self.trash).map_err(io_error("sweep", &self.trash))
    }

    /// Fills the pool for the next task, in the background. Trees at other commits are moved
    /// forward or removed.
    pub fn refill(&self, mirror: &Mirror, base: &CommitId) -> Result<(), WorkspaceError> {
        let pool = self.pool.join(mirror.key());
        let error = io_error("fill the pool", &pool);
        fs::create_dir_all(&pool).map_err(&error)?;
        let _held = Lock::take(&pool.join("lock")).map_err(&error)?;
        for entry in fs::read_dir(&pool).map_err(&error)? {
            let entry = entry.map_err(&error)?;
            if entry.file_name().to_string_lossy().starts_with("making-") {
                files::remove_tree(&entry.path()).map_err(&error)?;
            }
        }
        let (right, other): (Vec<_>, Vec<_>) = trees(&pool)
            .map_err(&error)?
            .into_iter()
            .partition(|tree| tree.commit == *base);
        let mut missing = self.pool_trees_max.saturating_sub(right.len());
        for tree in other {
            let making = pool.join(files::unique("making-"));
            match fs::rename(&tree.path, &making) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                done => done.map_err(&error)?,
            }
            if missing > 0 && self.move_forward(&making, &tree.commit, base)? {
                fs::rename(&making, tree_path(&pool, base)).map_err(&error)?;
                missing -= 1;
            } else {
                files::remove_tree(&making).map_err(&error)?;
            }
        }
        for _ in 0..missing {
            let making = pool.join(files::unique("making-"));
            self.check_out(mirror, base, &making)?;
            fs::rename(&making, tree_path(&pool, base)).map_err(&error)?;
        }
        Ok(())
    }

    /// Takes a tree out of the pool to `making`. The rename is the claim: one taker wins.
    fn take_from_pool(
        &self,
        mirror: &Mirror,
        base: &CommitId,
        making: &Path,
    ) -> Result<Option<How>, WorkspaceError> {
        let pool = self.pool.join(mirror.key());
        let mut trees = trees(&pool).unwrap_or_default();
        trees.sort_by_key(|tree| tree.commit != *base);
        for tree in trees {
            // A tree that cannot be moved here (gone, another disk) is no reason to fail.
            if fs::rename(&tree.path, making).is_err() {
                continue;
            }
            if tree.commit == *base {
                return Ok(Some(How::Pooled));
            }
            if let Ok(true) = self.move_forward(making, &tree.commit, base) {
                return Ok(Some(How::Moved));
            }
            files::remove_tree(making).map_err(io_error("remove", making))?;
            return Ok(None);
        }
        Ok(None)
    }

    /// Moves a tree no agent has had to another commit; `false` when writing all files anew is
    /// cheaper, or needed because the attributes that shape them changed.
    fn move_forward(
        &self,
        tree: &Path,
        from: &CommitId,
        to: &CommitId,
    ) -> Result<bool, WorkspaceError> {
        let error = |source| WorkspaceError::Git {
            what: "move",
            path: tree.to_owned(),
            source,
        };
        let git_dir = tree.join(".git");
        let out = self
            .git
            .cmd("diff-tree")
            .git_dir(&git_dir)
            .args([
                "-r",
                "-z",
                "--name-only",
                "--no-renames",
                from.as_str(),
                to.as_str(),
            ])
            .run()
            .map_err(error)?;
        let attributes = git::records(&out.stdout).any(|path| path.ends_with(b".gitattributes"));
        let changed = git::records(&out.stdout).count();
        let held = index_entries(&git_dir.join("index")).map_err(io_error("read", tree))?;
        if attributes || changed.saturating_mul(2) > held {
            return Ok(false);
        }
        let cmd = self
            .checkout_cmd(tree)
            .args(["-m", "-u", from.as_str(), to.as_str()]);
        cmd.run().map(|_| true).map_err(error)
    }

    /// Writes the whole checkout of `commit`, with a detached HEAD, at a path that is free.
    fn check_out(
        &self,
        mirror: &Mirror,
        commit: &CommitId,
        tree: &Path,
    ) -> Result<(), WorkspaceError> {
        let git_dir = tree.join(".git");
        lay_git_dir(&git_dir, &mirror.objects(), commit).map_err(io_error("make", &git_dir))?;
        let mut cmd = self.checkout_cmd(tree);
        if mirror.is_plain() {
            cmd = cmd.env("GIT_ATTR_SOURCE", EMPTY_TREE);
        }
        let cmd = cmd.args(["--reset", "-u", commit.as_str()]);
        cmd.run().map(drop).map_err(|source| WorkspaceError::Git {
            what: "write the files",
            path: tree.to_owned(),
            source,
        })
    }

    fn checkout_cmd(&self, tree: &Path) -> git::Cmd<'_> {
        self.git
            .cmd("read-tree")
            .set("checkout.workers=0")
            .git_dir(&tree.join(".git"))
            .work_tree(tree)
            .slow()
    }
}

fn io_error(what: &'static str, path: &Path) -> impl Fn(io::Error) -> WorkspaceError {
    let path = path.to_owned();
    move |source| WorkspaceError::Io {
        what,
        path: path.clone(),
        source,
    }
}

fn existing(base: &CommitId, dest: &Path, meta: &Path) -> Result<Prepared, WorkspaceError> {
    let text = fs::read_to_string(meta.join(META_PREPARED)).unwrap_or_default();
    let mut lines = text.lines();
    let has = lines.next().and_then(|line| CommitId::parse(line).ok());
    let branch = lines.next().and_then(|line| RefName::full(line).ok());
    let (Some(has), Some(branch)) = (has, branch) else {
        return Err(WorkspaceError::Foreign {
            path: dest.to_owned(),
        });
    };
    if has != *base {
        let path = dest.to_owned();
        return Err(WorkspaceError::OtherBase {
            path,
            has,
            asked: base.clone(),
        });
    }
    Ok(Prepared {
        how: How::Existing,
        base: has,
        branch,
    })
}

/// Tells git that no file of a pooled tree was written in the second its index was: git otherwise
/// reads all of them to be sure. True only if that second is over before an agent has the tree.
fn settle(index: &Path) -> io::Result<()> {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let file = fs::OpenOptions::new().write(true).open(index)?;
    let now = SystemTime::now();
    if seconds(now) > seconds(file.metadata()?.modified()?) {
        file.set_modified(now)?;
    }
    Ok(())
}

/// Saves what we must know about a workspace without asking it, then puts it in place.
pub(crate) fn finish(
    making: &Path,
    dest: &Path,
    meta: &Path,
    objects: &Path,
    base: &CommitId,
    branch: &RefName,
) -> Result<(), WorkspaceError> {
    fs::write(meta.join(META_ALTERNATES), alternates(objects))
        .and_then(|()| {
            let text = format!("{base}\n{branch}\n");
            files::write_atomic(&meta.join(META_PREPARED), text.as_bytes())
        })
        .map_err(io_error("write", meta))?;
    fs::rename(making, dest).map_err(io_error("put in place", dest))
}

/// A sibling of `path` on the same disk.
pub(crate) fn beside(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{what}"))
}

/// Makes a git directory by hand: `git init` costs a process, and copies templates.
pub(crate) fn lay_git_dir(git_dir: &Path, objects: &Path, commit: &CommitId) -> io::Result<()> {
    for dir in [
        "objects/info",
        "objects/pack",
        "refs/heads",
        "refs/tags",
        "info",
    ] {
        fs::create_dir_all(git_dir.join(dir))?;
    }
    let config = format!(
        "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\
         \tlogallrefupdates = true\n[user]\n\tname = {AGENT_NAME}\n\temail = {AGENT_EMAIL}\n\
         [gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n"
    );
    fs::write(git_dir.join("config"), config)?;
    fs::write(git_dir.join("objects/info/alternates"), alternates(objects))?;
    fs::write(git_dir.join("HEAD"), format!("{commit}\n"))
}

/// Puts HEAD on a branch at a commit, in a git directory no agent has had.
pub(crate) fn point_head(git_dir: &Path, branch: &RefName, commit: &CommitId) -> io::Result<()> {
    let file = git_dir.join(branch.as_str());
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(file, format!("{commit}\n"))?;
    fs::write(git_dir.join("HEAD"), format!("ref: {branch}\n"))
}

struct PoolTree {
    path: PathBuf,
    commit: CommitId,
}

/// The finished trees of a pool; the commit is in the name, so that claiming one tells it.
fn trees(pool: &Path) -> io::Result<Vec<PoolTree>> {
    let mut trees = Vec::new();
    for entry in fs::read_dir(pool)? {
        let entry = entry?;
        let name = entry.file_name();
        let commit = name
            .to_str()
            .and_then(|n| n.split_once('.'))
            .map(|(commit, _)| commit);
        if let Some(Ok(commit)) = commit.map(CommitId::parse) {
            trees.push(PoolTree {
                path: entry.path(),
                commit,
            });
        }
    }
    Ok(trees)
}

fn tree_path(pool: &Path, commit: &CommitId) -> PathBuf {
    pool.join(format!("{commit}.{}", files::unique("")))
}

/// How many entries an index file says it has.
fn index_entries(index: &Path) -> io::Result<usize> {
    let mut head = [0; 12];
    fs::File::open(index)?.read_exact(&mut head)?;
    let [.., a, b, c, d] = head;
    Ok(u32::from_be_bytes([a, b, c, d]) as usize)
}

/// Where the agent left its HEAD, as far as reading two small files can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    AtBase,
    Moved(CommitId),
    /// There is no `.git` directory.
    Missing,
    /// Odd or packed: only the bundle job can say.
    Unknown,
}

/// Looks whether the agent committed, without running git in its repository and without
/// following a symlink. A lie here costs the agent its own history, nothing else.
#[must_use]
pub fn agent_head(workspace: &Path, base: &CommitId) -> Head {
    use std::os::fd::AsFd as _;
    const MAX_BYTES: u64 = 1024;
    let Ok(root) = files::open_dir(workspace) else {
        return Head::Missing;
    };
    let Ok(git_dir) = files::open_dir_at(root.as_fd(), ".git".as_ref()) else {
        return Head::Missing;
    };
    let read = |path: &str| {
        let bytes = files::read_beneath(git_dir.as_fd(), Path::new(path), MAX_BYTES).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    let Some(head) = read("HEAD") else {
        return Head::Unknown;
    };
    let value = match head.strip_prefix("ref: ").map(RefName::full) {
        None => Some(head),
        Some(Ok(name)) => read(name.as_str()),
        Some(Err(_)) => None,
    };
    match value.as_deref().map(CommitId::parse) {
        Some(Ok(commit)) if commit == *base => Head::AtBase,
        Some(Ok(commit)) => Head::Moved(commit),
        _ => Head::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;
    use crate::testing::World;

    fn pool_names(world: &World) -> Vec<String> {
        let pool = world.temp.path().join("data/pool").join(world.mirror.key());
        let mut names: Vec<String> = fs::read_dir(pool)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_workspace_is_a_repository_of_its_own() {
        let world = World::new(&[("a.txt", b"one"), ("d/b.sh", b"two")]);
        assert_eq!(world.try_prepare("w").unwrap().how, How::CheckedOut);
        let repo = crate::testing::Repo(world.dest("w"));
        assert_eq!(
            repo.run(&["status", "--porcelain=v1", "-b"]),
            "## dispatch/1"
        );
        assert_eq!(repo.head(), world.base);
        assert_eq!(repo.run(&["remote"]), "");
        assert_eq!(repo.run(&["config", "user.name"]), AGENT_NAME);
        repo.run(&["fsck", "--strict"]);
        assert_eq!(world.try_prepare("w").unwrap().how, How::Existing);
        repo.commit("c.txt", b"c", "works");
    }

    #[test]
    fn pooled_trees_are_handed_out_once_and_share_nothing() {
        let mut world = World::new(&[("a.txt", b"one"), ("b.txt", b"b"), ("c.txt", b"c")]);
        world.workspaces.refill(&world.mirror, &world.base).unwrap();
        world.workspaces.refill(&world.mirror, &world.base).unwrap();
        assert_eq!(pool_names(&world).len(), POOL_TREES_MAX + 1);
        for name in ["w1", "w2"] {
            assert_eq!(world.try_prepare(name).unwrap().how, How::Pooled);
            let repo = crate::testing::Repo(world.dest(name));
            assert_eq!(
                repo.run(&["status", "--porcelain=v1", "-b"]),
                "## dispatch/1"
            );
            assert_eq!(fs::metadata(repo.0.join("a.txt")).unwrap().nlink(), 1);
            repo.write("a.txt", b"two");
            assert!(world.snapshot(name).changed);
        }
        assert_eq!(world.try_prepare("w3").unwrap().how, How::CheckedOut);
        world.workspaces.refill(&world.mirror, &world.base).unwrap();
        // Upstream moves on a little: the pool follows at the hand-out, and at a refill.
        world.base = world.upstream.commit("a.txt", b"new", "next");
        world.mirror.refresh().unwrap();
        assert_eq!(world.try_prepare("w4").unwrap().how, How::Moved);
        let repo = crate::testing::Repo(world.dest("w4"));
        assert_eq!(repo.run(&["status", "--porcelain"]), "");
        assert_eq!(fs::read(repo.0.join("a.txt")).unwrap(), b"new");
        assert!(!world.snapshot("w4").changed);
        world.workspaces.refill(&world.mirror, &world.base).unwrap();
        let names = pool_names(&world);
        let right = names
            .iter()
            .filter(|n| n.starts_with(world.base.as_str()))
            .count();
        assert_eq!((right, names.len()), (POOL_TREES_MAX, POOL_TREES_MAX + 1));
        // And a lot: writing it anew is cheaper.
        for name in ["a.txt", "b.txt", "c.txt"] {
            world.base = world.upstream.commit(name, b"all new", "more");
        }
        world.mirror.refresh().unwrap();
        assert_eq!(world.try_prepare("w5").unwrap().how, How::CheckedOut);
        assert_eq!(world.prepare("w5").run(&["status", "--porcelain"]), "");
    }

    #[test]
    fn what_a_crash_left_is_made_anew() {
        let world = World::new(&[("a.txt", b"one")]);
        let pool = world.temp.path().join("data/pool").join(world.mirror.key());
        fs::create_dir_all(pool.join("making-1/x")).unwrap();
        world.workspaces.refill(&world.mirror, &world.base).unwrap();
        assert!(!pool.join("making-1").exists());
        let making = beside(&world.dest("w"), "making");
        fs::create_dir_all(making.join(".git")).unwrap();
        fs::write(making.join("junk"), b"junk").unwrap();
        // Killed after the marker and before the rename.
        fs::create_dir_all(world.meta("w")).unwrap();
        fs::write(world.meta("w").join(META_PREPARED), b"old").unwrap();
        world.try_prepare("w").unwrap();
        assert!(!making.exists() && !world.dest("w").join("junk").exists());
        assert_eq!(world.try_prepare("w").unwrap().how, How::Existing);
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let mut world = World::new(&[("a.txt", b"one")]);
        fs::create_dir_all(world.dest("w")).unwrap();
        fs::write(world.dest("w").join("mine"), b"mine").unwrap();
        assert!(matches!(
            world.try_prepare("w"),
            Err(WorkspaceError::Foreign { .. })
        ));
        assert!(world.dest("w").join("mine").exists());
        world.try_prepare("w2").unwrap();
        world.base = world.upstream.commit("a.txt", b"two", "next");
        assert!(matches!(
            world.try_prepare("w2"),
            Err(WorkspaceError::OtherBase { .. })
        ));
    }

    #[test]
    fn many_at_once_get_a_tree_each() {
        let world = World::new(&[("a.txt", b"one"), ("d/b.txt", b"two")]);
        world.workspaces.refill(&world.mirror, &world.base).unwrap();
        std::thread::scope(|scope| {
            for n in 0..6 {
                let world = &world;
                scope.spawn(move || world.try_prepare(&format!("w{n}")).unwrap());
            }
            scope.spawn(|| world.workspaces.refill(&world.mirror, &world.base).unwrap());
            scope.spawn(|| world.try_prepare("w0").unwrap());
        });
        for n in 0..6 {
            let repo = crate::testing::Repo(world.dest(&format!("w{n}")));
            assert_eq!(repo.run(&["status", "--porcelain"]), "");
            assert!(repo.0.join("d/b.txt").exists());
        }
    }

    #[test]
    fn hooks_and_filters_of_upstream_do_not_run_here() {
        let world = World::with(|up| {
            up.write(".gitattributes", b"*.bin filter=lfs\n* filter=evil\n");
            up.write("a.bin", b"version https://git-lfs.github.com/spec/v1\n");
        });
        let repo = world.prepare("w");
        assert!(
            fs::read(repo.0.join("a.bin"))
                .unwrap()
                .starts_with(b"version")
        );
        assert!(!world.snapshot("w").changed);
    }

    #[test]
    fn removal_takes_read_only_trees_and_follows_no_link() {
        let world = World::new(&[("a.txt", b"one")]);
        let repo = world.prepare("w");
        let outside = world.temp.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), b"p").unwrap();
        fs::create_dir_all(repo.0.join("ro/in")).unwrap();
        fs::write(repo.0.join("ro/in/f"), b"f").unwrap();
        symlink(&outside, repo.0.join("ro/link")).unwrap();
        for dir in ["ro/in", "ro", ""] {
            let mode = fs::Permissions::from_mode(0o555);
            fs::set_permissions(repo.0.join(dir), mode).unwrap();
        }
        fs::set_permissions(repo.0.join("ro/in"), fs::Permissions::from_mode(0o000)).unwrap();
        world.workspaces.remove(&repo.0).unwrap();
        assert!(!repo.0.exists() && outside.join("precious").exists());
        world.workspaces.remove(&repo.0).unwrap();
        symlink(&outside, &repo.0).unwrap();
        world.workspaces.remove(&repo.0).unwrap();
        assert!(outside.join("precious").exists());
        assert!(fs::symlink_metadata(&repo.0).is_err());
        world.workspaces.sweep().unwrap();
    }

    #[test]
    fn odd_heads_are_unknown_and_never_block() {
        let world = World::new(&[("a.txt", b"one")]);
        let repo = world.prepare("w");
        let head = repo.0.join(".git/HEAD");
        let look = || agent_head(&repo.0, &world.base);
        for text in [
            "ref: refs/heads/../../../../etc/passwd\n",
            "ref: refs/heads/no\n",
            "junk",
            "",
        ] {
            fs::write(&head, text).unwrap();
            assert_eq!(look(), Head::Unknown, "{text}");
        }
        fs::write(&head, format!("{}\n", world.base)).unwrap();
        assert_eq!(look(), Head::AtBase);
        fs::remove_file(&head).unwrap();
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&head)
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(look(), Head::Unknown);
        fs::remove_file(&head).unwrap();
        symlink("/etc/passwd", &head).unwrap();
        assert_eq!(look(), Head::Unknown);
        repo.run(&["init", "-q"]);
    }
}
