//! The vault: our bare store of results and snapshots, borrowing upstream's objects from the
//! mirror. It is never mounted into a task, and it must never read an agent's repository: what
//! comes in is a bundle file or a tree we wrote ourselves.

use std::fs::File;
use std::io::{self, BufRead as _, Read as _};
use std::path::{Path, PathBuf};

use crate::files;
use crate::git::{self, CommitId, Git, GitError, RefName};
use crate::mirror::{InitError, Mirror, alternates, init_bare};

/// The largest bundle that is taken in.
pub const BUNDLE_MAX_BYTES: u64 = 2 << 30;
/// The longest header of a bundle: its references and what it stands on.
pub const BUNDLE_HEADER_MAX_BYTES: u64 = 64 << 10;
/// How many references a bundle may name: the job that makes it asks for HEAD alone.
pub const BUNDLE_REFS_MAX: usize = 1;
/// How many objects its pack may say it has.
pub const BUNDLE_OBJECTS_MAX: u32 = 2_000_000;
/// The longest patch text `diff` gives before it is cut.
pub const DIFF_MAX_BYTES: usize = 8 << 20;
/// How many changed paths a diffstat names.
pub const DIFFSTAT_PATHS_MAX: usize = 500;

/// The directory of a vault that scratch space is made in.
const SCRATCH: &str = "scratch";

/// A crash of the machine must not lose a result: git by itself does not sync loose objects.
pub(crate) const DURABLE: [&str; 2] = ["core.fsync=committed,reference", "core.fsyncMethod=batch"];

#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("{what} of the vault {path}: check the data directory's space and owner")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{what} in the vault")]
    Git {
        what: &'static str,
        source: GitError,
    },
    #[error("keep {name}: references of the vault live under refs/dispatch/")]
    RefPlace { name: RefName },
    #[error("import the agent's bundle: {bytes} bytes are more than the limit of {max}")]
    BundleTooLarge { bytes: u64, max: u64 },
    #[error("import the agent's bundle: {what}")]
    OddBundle { what: String },
    #[error("apply to {branch}: it is checked out in {path}; choose another branch, or leave it")]
    CheckedOut { branch: String, path: PathBuf },
    #[error(
        "apply to {branch}: it is at {at}, which {commit} does not contain; choose another name"
    )]
    Diverged {
        branch: String,
        at: CommitId,
        commit: CommitId,
    },
    #[error("apply to {branch}: that is not a branch; give a branch name")]
    NotABranch { branch: RefName },
    #[error("apply to {path}: open it as a git repository")]
    UserRepo { path: PathBuf, source: GitError },
}

/// Who a commit is by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    pub name: String,
    pub email: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    pub text: Vec<u8>,
    /// The patch was longer than the limit.
    pub cut: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiffStat {
    pub files: u64,
    pub insertions: u64,
    pub deletions: u64,
    /// The first changed paths; `files` says how many there are.
    pub paths: Vec<String>,
}

/// What `apply_into` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    Created,
    Forwarded,
    AlreadyThere,
}

#[derive(Debug, Clone)]
pub struct Vault {
    git: Git,
    dir: PathBuf,
    mirror_objects: PathBuf,
    plain: bool,
    /// Where new objects go that are not to stay.
    passing: Option<PathBuf>,
}

impl Vault {
    /// Finds or makes the vault that goes with a mirror.
    pub fn open_or_create(git: &Git, data_dir: &Path, mirror: &Mirror) -> Result<Self, VaultError> {
        let dir = data_dir
            .join("vaults")
            .join(format!("{}.git", mirror.key()));
        let mirror_objects = mirror.objects();
        let lock = dir.with_extension("lock");
        init_bare(git, &dir, &lock, Some(&mirror_objects)).map_err(|e| match e {
            InitError::Io(source) => VaultError::Io {
                what: "make the directory",
                path: dir.clone(),
                source,
            },
            InitError::Git(source) => VaultError::Git {
                what: "make it",
                source,
            },
        })?;
        Ok(Self {
            git: git.clone(),
            dir,
            mirror_objects,
            plain: mirror.is_plain(),
            passing: None,
        })
    }

    /// The same vault for one look: what is written meanwhile is gone with the scratch directory.
    pub(crate) fn in_passing(&self) -> Result<(Self, Scratch), VaultError> {
        let failed = |source| VaultError::Io {
            what: "make scratch space",
            path: self.dir.clone(),
            source,
        };
        let scratch = Scratch::new(self).map_err(failed)?;
        let objects = scratch.path("objects");
        let info = objects.join("info");
        std::fs::create_dir_all(&info)
            .and_then(|()| {
                let ours = alternates(&self.dir.join("objects"));
                std::fs::write(info.join("alternates"), ours)
            })
            .map_err(failed)?;
        let mut vault = self.clone();
        vault.passing = Some(objects);
        Ok((vault, scratch))
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether its trees stand for directories without git, where nothing is converted or ignored.
    pub(crate) fn is_plain(&self) -> bool {
        self.plain
    }

    /// Where the mirror it borrows from keeps its objects.
    #[must_use]
    pub fn mirror_objects(&self) -> &Path {
        &self.mirror_objects
    }

    pub(crate) fn git(&self) -> &Git {
        &self.git
    }

    pub(crate) fn cmd(&self, verb: &'static str) -> git::Cmd<'_> {
        let cmd = self.git.cmd(verb).git_dir(&self.dir);
        if let Some(objects) = &self.passing {
            return cmd
                .env("GIT_OBJECT_DIRECTORY", objects)
                .set("core.fsync=none");
        }
        DURABLE.iter().fold(cmd, |cmd, setting| cmd.set(setting))
    }

    /// Takes in the HEAD of a bundle file under `name`, every new object checked. The bundle may
    /// be hostile; what it lacks must be in the mirror or the vault.
    pub fn import_bundle(&self, bundle: &Path, name: &RefName) -> Result<CommitId, VaultError> {
        check_place(name)?;
        let io = |source| VaultError::Io {
            what: "open a bundle",
            path: bundle.to_owned(),
            source,
        };
        let bundle = std::fs::canonicalize(bundle).map_err(io)?;
        let bytes = File::open(&bundle)
            .and_then(|f| f.metadata())
            .map_err(io)?
            .len();
        if bytes > BUNDLE_MAX_BYTES {
            return Err(VaultError::BundleTooLarge {
                bytes,
                max: BUNDLE_MAX_BYTES,
            });
        }
        check_bundle(File::open(&bundle).map_err(io)?)?;
        git::FSCK
            .iter()
            .fold(self.cmd("fetch"), |cmd, setting| cmd.set(setting))
            .args([
                "--quiet",
                "--no-tags",
                "--no-write-fetch-head",
                "--no-auto-maintenance",
            ])
            .args(["--no-recurse-submodules", "--"])
            .arg(&bundle)
            .arg(format!("+HEAD:{name}"))
            .slow()
            .run()
            .map_err(|source| VaultError::Git {
                what: "import the agent's bundle",
                source,
            })?;
        self.resolve(name)?.ok_or_else(|| VaultError::Git {
            what: "import the agent's bundle",
            source: GitError::Unclear {
                verb: "fetch",
                what: "HEAD is no commit".to_owned(),
            },
        })
    }

    /// The commit a reference of ours names.
    pub fn resolve(&self, name: &RefName) -> Result<Option<CommitId>, VaultError> {
        let error = |source| VaultError::Git {
            what: "look up a reference",
            source,
        };
        let spec = format!("{name}^{{commit}}");
        let out = self
            .cmd("rev-parse")
            .args(["--verify", "--quiet", &spec])
            .output();
        let out = out.map_err(error)?;
        if !out.status.success() {
            return Ok(None);
        }
        CommitId::parse(String::from_utf8_lossy(&out.stdout).trim())
            .map(Some)
            .map_err(error)
    }

    /// Names the object a revision of ours means, such as `<commit>^{tree}`.
    pub(crate) fn object(&self, spec: &str) -> Result<CommitId, VaultError> {
        self.cmd("rev-parse")
            .args(["--verify", "--quiet", spec])
            .id()
            .map_err(|source| VaultError::Git {
                what: "look up an object",
                source,
            })
    }

    pub fn commit_tree(
        &self,
        tree: &CommitId,
        parents: &[CommitId],
        message: &str,
        author: &Author,
    ) -> Result<CommitId, VaultError> {
        let parents = parents.iter().flat_map(|p| ["-p", p.as_str()]);
        self.cmd("commit-tree")
            .args(parents)
            .args(["-F", "-", tree.as_str()])
            .env("GIT_AUTHOR_NAME", &author.name)
            .env("GIT_AUTHOR_EMAIL", &author.email)
            .env("GIT_COMMITTER_NAME", &author.name)
            .env("GIT_COMMITTER_EMAIL", &author.email)
            .stdin_bytes(message)
            .id()
            .map_err(|source| VaultError::Git {
                what: "write a commit",
                source,
            })
    }

    pub fn update_ref(&self, name: &RefName, commit: &CommitId) -> Result<(), VaultError> {
        check_place(name)?;
        self.cmd("update-ref")
            .args([name.as_str(), commit.as_str()])
            .run()
            .map(drop)
            .map_err(|source| VaultError::Git {
                what: "write a reference",
                source,
            })
    }

    /// Forgets a reference; its objects stay.
    pub fn delete_ref(&self, name: &RefName) -> Result<(), VaultError> {
        check_place(name)?;
        self.cmd("update-ref")
            .args(["-d", name.as_str()])
            .run()
            .map(drop)
            .map_err(|source| VaultError::Git {
                what: "delete a reference",
                source,
            })
    }

    /// The patch from one commit or tree to another, as `git apply` takes it.
    pub fn diff(&self, base: &CommitId, commit: &CommitId) -> Result<Patch, VaultError> {
        let out = self
            .cmd("diff-tree")
            .args(["-p", "-r", "-M", "--binary", "--full-index", "--no-color"])
            .args([
                "--no-ext-diff",
                "--no-textconv",
                base.as_str(),
                commit.as_str(),
            ])
            .limit(DIFF_MAX_BYTES)
            .cut()
            .run()
            .map_err(|source| VaultError::Git {
                what: "compare",
                source,
            })?;
        let mut text = out.stdout;
        if out.cut {
            let end = text
                .iter()
                .rposition(|b| *b == b'\n')
                .map_or(0, |at| at + 1);
            text.truncate(end);
        }
        Ok(Patch { text, cut: out.cut })
    }

    pub fn diffstat(&self, base: &CommitId, commit: &CommitId) -> Result<DiffStat, VaultError> {
        let out = self
            .cmd("diff-tree")
            .args([
                "-r",
                "-z",
                "--numstat",
                "--no-renames",
                "--no-ext-diff",
                "--no-textconv",
            ])
            .args([base.as_str(), commit.as_str()])
            .run()
            .map_err(|source| VaultError::Git {
                what: "compare",
                source,
            })?;
        Ok(parse_numstat(&out.stdout))
    }

    /// Whether `old` is `new` or one of its ancestors. An unknown commit is nobody's ancestor.
    pub fn is_ancestor(&self, old: &CommitId, new: &CommitId) -> Result<bool, VaultError> {
        let error = |source| VaultError::Git {
            what: "compare histories",
            source,
        };
        let known = self
            .cmd("cat-file")
            .args(["-e", &format!("{old}^{{commit}}")])
            .output();
        if !known.map_err(error)?.status.success() {
            return Ok(false);
        }
        let ask = self
            .cmd("merge-base")
            .args(["--is-ancestor", old.as_str(), new.as_str()]);
        ask.ask().map_err(error)
    }

    /// Brings a commit into a person's repository as a branch, and touches nothing else there:
    /// not the checkout, HEAD, index or FETCH_HEAD.
    pub fn apply_into(
        &self,
        user_repo: &Path,
        commit: &CommitId,
        branch: &RefName,
    ) -> Result<Applied, VaultError> {
        let Some(short) = branch.short() else {
            return Err(VaultError::NotABranch {
                branch: branch.clone(),
            });
        };
        let error = |source| VaultError::UserRepo {
            path: user_repo.to_owned(),
            source,
        };
        let theirs = |verb| self.git.cmd(verb).current_dir(user_repo);
        let out = theirs("rev-parse")
            .arg("--absolute-git-dir")
            .run()
            .map_err(error)?;
        let git_dir = PathBuf::from(path_from(out.stdout.trim_ascii_end()));
        let theirs = |verb| self.git.cmd(verb).git_dir(&git_dir);
        let spec = format!("{branch}^{{commit}}");
        let at = theirs("rev-parse")
            .args(["--verify", "--quiet", &spec])
            .output()
            .map_err(error)?;
        let mut done = Applied::Created;
        if at.status.success() {
            let text = String::from_utf8_lossy(&at.stdout);
            let at = CommitId::parse(text.trim()).map_err(error)?;
            if at == *commit {
                return Ok(Applied::AlreadyThere);
            }
            if !self.is_ancestor(&at, commit)? {
                let (branch, commit) = (short.to_owned(), commit.clone());
                return Err(VaultError::Diverged { branch, at, commit });
            }
            done = Applied::Forwarded;
        }
        let trees = theirs("worktree")
            .args(["list", "--porcelain", "-z"])
            .run()
            .map_err(error)?;
        if let Some(path) = worktree_on(&trees.stdout, branch) {
            return Err(VaultError::CheckedOut {
                branch: short.to_owned(),
                path,
            });
        }
        // Their configuration may rewrite paths to other places; the longest rewrite wins, and none
        // is longer than the whole path. By environment, because a path may hold a '='.
        let key = format!("url.{}.insteadOf", self.dir.display());
        theirs("fetch")
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", &key)
            .env("GIT_CONFIG_VALUE_0", &self.dir)
            // An older protocol, which their configuration may ask for, gives no bare commits.
            .set("protocol.version=2")
            .args([
                "--quiet",
                "--no-tags",
                "--no-write-fetch-head",
                "--no-auto-maintenance",
            ])
            .args(["--no-recurse-submodules", "--no-prune", "--refmap=", "--"])
            .arg(&self.dir)
            .arg(format!("{commit}:{branch}"))
            .slow()
            .run()
            .map_err(error)?;
        Ok(done)
    }
}

/// Removes the scratch space of an engine that was killed from every vault: at boot, before anything
/// runs.
pub(crate) fn sweep(data_dir: &Path) -> Result<(), VaultError> {
    let vaults = data_dir.join("vaults");
    let failed = |source| VaultError::Io {
        what: "sweep the scratch space",
        path: vaults.clone(),
        source,
    };
    let found = match std::fs::read_dir(&vaults) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    for vault in found {
        let scratch = vault.map_err(failed)?.path().join(SCRATCH);
        match files::remove_tree(&scratch) {
            // A lock's file lies beside the vaults.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
            done => done.map_err(failed)?,
        }
    }
    Ok(())
}

/// Reads a bundle's header before git does: one reference, HEAD, and a pack of a bounded count.
fn check_bundle(file: impl io::Read) -> Result<(), VaultError> {
    let odd = |what: &str| VaultError::OddBundle {
        what: what.to_owned(),
    };
    let mut head = io::BufReader::new(file.take(BUNDLE_HEADER_MAX_BYTES));
    let mut next = || {
        let mut line = Vec::new();
        head.read_until(b'\n', &mut line)
            .map_err(|error| odd(&format!("read its header: {error}")))?;
        match line.pop() {
            Some(b'\n') => Ok(line),
            _ => Err(odd(&format!(
                "its header is cut or longer than {BUNDLE_HEADER_MAX_BYTES} bytes"
            ))),
        }
    };
    // Only the oldest version has no capabilities, which could ask for filters.
    if next()? != b"# v2 git bundle" {
        return Err(odd("it is no bundle of version 2"));
    }
    let mut refs = 0;
    loop {
        let line = next()?;
        if line.is_empty() {
            break;
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        let words = text.strip_prefix('-').unwrap_or(&text).split_once(' ');
        let (id, name) = words.unwrap_or((text.trim_start_matches('-'), ""));
        CommitId::parse(id).map_err(|_| odd("its header names no object"))?;
        if text.starts_with('-') {
            continue;
        }
        refs += 1;
        if refs > BUNDLE_REFS_MAX || name != "HEAD" {
            return Err(odd(&format!(
                "it names more than {BUNDLE_REFS_MAX} reference, or another than HEAD"
            )));
        }
    }
    let mut pack = [0; 12];
    head.read_exact(&mut pack)
        .map_err(|error| odd(&format!("read its pack: {error}")))?;
    let [b'P', b'A', b'C', b'K', _, _, _, _, a, b, c, d] = pack else {
        return Err(odd("there is no pack in it"));
    };
    let objects = u32::from_be_bytes([a, b, c, d]);
    if refs != BUNDLE_REFS_MAX || objects > BUNDLE_OBJECTS_MAX {
        return Err(odd(&format!(
            "{refs} references and {objects} objects, of {BUNDLE_OBJECTS_MAX} allowed"
        )));
    }
    Ok(())
}

fn check_place(name: &RefName) -> Result<(), VaultError> {
    if name.as_str().starts_with("refs/dispatch/") {
        Ok(())
    } else {
        Err(VaultError::RefPlace { name: name.clone() })
    }
}

fn path_from(bytes: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

/// The work tree that has a branch checked out, the first (main) one included unless bare.
pub(crate) fn worktree_on(stdout: &[u8], branch: &RefName) -> Option<PathBuf> {
    let mut path = None;
    let wanted = format!("branch {branch}");
    for record in git::records(stdout) {
        if let Some(found) = record.strip_prefix(b"worktree ") {
            path = Some(PathBuf::from(path_from(found)));
        } else if record == wanted.as_bytes() {
            return path;
        }
    }
    None
}

pub(crate) fn parse_numstat(stdout: &[u8]) -> DiffStat {
    let mut stat = DiffStat::default();
    for record in git::records(stdout) {
        let mut fields = record.splitn(3, |b| *b == b'\t');
        let mut count = || {
            let text = fields.next().map(String::from_utf8_lossy);
            // Binary files have '-' for both numbers.
            text.and_then(|t| t.parse::<u64>().ok()).unwrap_or(0)
        };
        stat.insertions = stat.insertions.saturating_add(count());
        stat.deletions = stat.deletions.saturating_add(count());
        stat.files += 1;
        if let Some(path) = fields.next()
            && stat.paths.len() < DIFFSTAT_PATHS_MAX
        {
            stat.paths.push(String::from_utf8_lossy(path).into_owned());
        }
    }
    stat
}

/// A private scratch directory of one operation, gone when it ends.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// In the vault, so that it is never mounted and is on the disk that has the room.
    pub(crate) fn new(vault: &Vault) -> io::Result<Self> {
        let dir = vault.dir.join(SCRATCH).join(files::unique(""));
        std::fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind costs room only; it is named after a dead process.
        files::remove_tree(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::World;

    #[test]
    fn only_a_bundle_as_our_job_makes_it_is_given_to_git() {
        let id = "a".repeat(40);
        let bundle = |head: &str, pack: &[u8]| {
            let mut bytes = format!("# v2 git bundle\n{head}\n").into_bytes();
            bytes.extend(pack);
            check_bundle(bytes.as_slice())
        };
        let pack = [b"PACK".as_slice(), &[0, 0, 0, 2, 0, 0, 0, 9]].concat();
        let many = [b"PACK".as_slice(), &[0, 0, 0, 2, 0xff, 0, 0, 0]].concat();
        let good = format!("-{id} a subject\n{id} HEAD\n");
        bundle(&good, &pack).unwrap();
        assert!(bundle(&good, &many).is_err());
        assert!(bundle(&good, b"").is_err());
        assert!(bundle(&good, b"KCAP00000000").is_err());
        for bad in [
            String::new(),
            format!("-{id}\n"),
            format!("{id} HEAD\n{id} HEAD\n"),
            format!("{id} HEAD\n{id} refs/heads/x\n"),
            format!("{id} refs/heads/--upload-pack=x\n"),
            format!("{id}\n"),
            "--exec=x HEAD\n".to_owned(),
            format!("-{id} {}\n{id} HEAD\n", "x".repeat(1 << 20)),
        ] {
            let short: String = bad.chars().take(80).collect();
            assert!(bundle(&bad, &pack).is_err(), "{short}");
        }
        assert!(check_bundle(b"# v3 git bundle\n@filter=blob:none\n".as_slice()).is_err());
    }

    /// Trees that git itself would never write: `hash-object` is told not to look.
    fn odd_commit(world: &World, repo: &crate::testing::Repo, entry: &[u8]) {
        let blob = repo.run(&["rev-parse", "HEAD:a.txt"]);
        let raw: Vec<u8> = (0..blob.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&blob[at..at + 2], 16).unwrap())
            .collect();
        let file = world.temp.path().join("tree");
        std::fs::write(&file, [entry, b"\0", &raw].concat()).unwrap();
        let file = file.to_str().unwrap();
        let tree = repo.run(&["hash-object", "-w", "--literally", "-t", "tree", file]);
        let commit = repo.run(&["commit-tree", "-p", "HEAD", "-m", "odd", &tree]);
        repo.run(&["update-ref", "HEAD", &commit]);
    }

    #[test]
    fn broken_objects_are_refused_and_old_harmless_ones_are_not() {
        for (entry, fine) in [
            (b"100644 .git".as_slice(), false),
            (b"100644 ..", false),
            (b"100644 a/b", false),
            (b"0100644 old", true),
        ] {
            let text = String::from_utf8_lossy(entry).into_owned();
            let world = World::new(&[("a.txt", b"one")]);
            odd_commit(&world, &world.upstream, entry);
            assert_eq!(world.mirror.refresh().is_ok(), fine, "upstream: {text}");

            let world = World::new(&[("a.txt", b"one")]);
            let agent = world.prepare("w");
            odd_commit(&world, &agent, entry);
            let file = world.temp.path().join("w.bundle");
            let range = format!("{}..HEAD", world.base);
            agent.run(&[
                "bundle",
                "create",
                "-q",
                file.to_str().unwrap(),
                &range,
                "HEAD",
            ]);
            let name = RefName::full("refs/dispatch/heads/w/1").unwrap();
            let taken = world.vault.import_bundle(&file, &name);
            // Git lets no complaint be named for a bundle, and a new commit has no excuse.
            assert!(taken.is_err(), "bundle: {text} {taken:?}");
            assert_eq!(world.vault.resolve(&name).unwrap(), None);
        }
    }
}
