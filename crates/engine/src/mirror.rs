//! The mirror: our trusted bare copy of an upstream, the read-only source of objects that
//! workspaces borrow. It must hold nothing but what upstream has, and must never lose an object:
//! workspaces and vaults stand on it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::files::{self, Lock};
use crate::git::{self, CommitId, Git, GitError, RefName, SLOW_TIMEOUT};

/// The largest single file `show` gives.
/// Of what [`Mirror::subjects`] reads; what is behind it is left out.
const SUBJECTS_BYTES_MAX: usize = 256 << 10;
pub const SHOW_MAX_BYTES: usize = 4 << 20;

const HEAD_REF: &str = "refs/dispatch/HEAD";

#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error("find the repository {upstream}: give an existing directory or a URL")]
    NotFound { upstream: String, source: io::Error },
    #[error("use {upstream:?} as a repository: it may not be empty or start with '-'")]
    BadUpstream { upstream: String },
    #[error("start from {upstream}: it has no commit yet; make a first one")]
    Empty { upstream: String },
    #[error("start from {upstream}: its HEAD names no commit; name a branch")]
    NoHead { upstream: String },
    #[error("find {name} in {upstream}: it has no such branch or tag; check the name, or push it")]
    NoRef { name: RefName, upstream: String },
    #[error(
        "use {path} of the base commit: it has {bytes} bytes, limits.template_bytes is {bytes_max}"
    )]
    TooLong {
        path: String,
        bytes: u64,
        bytes_max: usize,
    },
    #[error(
        "find {asked} in the history of {head}: name a branch, a tag, a commit, or steps back such as \
         HEAD~2 (a short history may have fewer)"
    )]
    NoRevision { asked: String, head: CommitId },
    #[error("{what} of the mirror {path}: check the data directory's space and owner")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("keep the mirror of {upstream}")]
    Git { upstream: String, source: GitError },
}

/// Where a task starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    pub commit: CommitId,
    /// The short name of the branch that was asked for, or of upstream's current one.
    pub branch: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Mirror {
    git: Git,
    dir: PathBuf,
    key: String,
    upstream: String,
}

impl Mirror {
    /// Finds or makes the mirror of `upstream`: a URL, or the absolute path of a repository.
    /// It holds nothing before the first `refresh`. `data_dir` must be absolute: the mirror's path
    /// is written into every workspace.
    pub fn open_or_create(git: &Git, data_dir: &Path, upstream: &str) -> Result<Self, MirrorError> {
        if upstream.is_empty() || upstream.starts_with('-') {
            return Err(MirrorError::BadUpstream {
                upstream: upstream.to_owned(),
            });
        }
        let upstream = if is_url(upstream) {
            upstream.to_owned()
        } else {
            let known = data_dir
                .join("mirrors")
                .join(format!("{}.git", key_of(upstream)));
            match fs::canonicalize(upstream) {
                Ok(path) => path.to_string_lossy().into_owned(),
                // Its tasks outlive it: what we have of it is here.
                Err(_) if known.is_dir() => upstream.to_owned(),
                Err(source) => {
                    let upstream = upstream.to_owned();
                    return Err(MirrorError::NotFound { upstream, source });
                }
            }
        };
        let key = key_of(&upstream);
        let dir = data_dir.join("mirrors").join(format!("{key}.git"));
        let mirror = Self {
            git: git.clone(),
            dir,
            key,
            upstream,
        };
        init_bare(git, &mirror.dir, &mirror.lock_path(), None).map_err(|e| match e {
            InitError::Io(source) => mirror.io("make the directory", source),
            InitError::Git(source) => mirror.git_error(source),
        })?;
        Ok(mirror)
    }

    /// A name for this mirror that is safe in paths: the repository's name and a hash.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    #[must_use]
    pub fn upstream(&self) -> &str {
        &self.upstream
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory workspaces borrow objects from.
    #[must_use]
    pub fn objects(&self) -> PathBuf {
        self.dir.join("objects")
    }

    /// Brings in what upstream has now.
    pub fn refresh(&self) -> Result<(), MirrorError> {
        let lock = Lock::take(&self.lock_path()).map_err(|e| self.io("lock", e))?;
        let head = self.ask_head(&lock)?;
        let fetched = self.fetch(&lock, head.commit.is_some());
        if fetched.is_err() {
            self.remove_half_packs()?;
        }
        match fetched {
            // Nobody else writes while we hold the lock: what lies there is a dead git's.
            Err(_) if remove_stale_locks(&self.dir).map_err(|e| self.io("heal", e))? > 0 => {
                self.fetch(&lock, head.commit.is_some())?;
            }
            other => other?,
        }
        let point = match (&head.branch, &head.commit) {
            (Some(branch), Some(_)) => self.cmd("symbolic-ref").args(["HEAD", branch.as_str()]),
            (None, Some(commit)) => {
                self.cmd("update-ref")
                    .args(["--no-deref", "HEAD", commit.as_str()])
            }
            (_, None) => self.cmd("update-ref").args(["-d", HEAD_REF]),
        };
        point.run().map(drop).map_err(|e| self.git_error(e))
    }

    fn ask_head(&self, lock: &Lock) -> Result<Head, MirrorError> {
        let out = self
            .cmd("ls-remote")
            .args(["--symref", "--", &self.upstream])
            .stdin_file(lock.share().map_err(|e| self.io("share the lock", e))?)
            .slow()
            .run()
            .map_err(|e| self.git_error(e))?;
        let (head, any) = parse_ls_remote(&String::from_utf8_lossy(&out.stdout));
        if any {
            Ok(head)
        } else {
            Err(MirrorError::Empty {
                upstream: self.upstream.clone(),
            })
        }
    }

    fn fetch(&self, lock: &Lock, with_head: bool) -> Result<(), MirrorError> {
        let mut refs = vec!["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
        let head = format!("+HEAD:{HEAD_REF}");
        if with_head {
            refs.push(&head);
        }
        // Pruning drops names, not objects, and lets `a` make room for `a/b`.
        git::FSCK
            .iter()
            .fold(self.cmd("fetch"), |cmd, setting| cmd.set(setting))
            .args([
                "--quiet",
                "--prune",
                "--no-tags",
                "--force",
                "--no-write-fetch-head",
            ])
            .args([
                "--no-auto-maintenance",
                "--no-recurse-submodules",
                "--",
                &self.upstream,
            ])
            .args(refs)
            .stdin_file(lock.share().map_err(|e| self.io("share the lock", e))?)
            .timeout(SLOW_TIMEOUT)
            .file_bytes(self.git.fetch_bytes)
            .run()
            .map(drop)
            .map_err(|e| self.git_error(e))
    }

    /// A fetch that was ended leaves what it had of its pack, and nobody else would remove it.
    fn remove_half_packs(&self) -> Result<(), MirrorError> {
        let remove = || {
            for entry in fs::read_dir(self.objects().join("pack"))? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with("tmp_") {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        remove().map_err(|error| self.io("clear the half of a pack", error))
    }

    /// The commit to start from: of the named branch or tag, else of upstream's current branch.
    pub fn base(&self, branch: Option<&RefName>) -> Result<Base, MirrorError> {
        let name = branch.map_or(HEAD_REF, RefName::as_str);
        let found = self
            .cmd("rev-parse")
            .args(["--verify", "--quiet", &format!("{name}^{{commit}}")])
            .output()
            .map_err(|e| self.git_error(e))?;
        if !found.status.success() {
            return Err(match branch {
                Some(name) => MirrorError::NoRef {
                    name: name.clone(),
                    upstream: self.upstream.clone(),
                },
                None => MirrorError::NoHead {
                    upstream: self.upstream.clone(),
                },
            });
        }
        let commit = CommitId::parse(String::from_utf8_lossy(&found.stdout).trim())
            .map_err(|e| self.git_error(e))?;
        let branch = match branch {
            Some(name) => name.short().map(str::to_owned),
            None => self.current_branch().map_err(|e| self.io("read HEAD", e))?,
        };
        Ok(Base { commit, branch })
    }

    /// The commit that a revision names; `HEAD` and steps back from it start at `head`.
    pub fn revision(&self, asked: &str, head: &CommitId) -> Result<CommitId, MirrorError> {
        let none = || MirrorError::NoRevision {
            asked: asked.to_owned(),
            head: head.clone(),
        };
        // No options, no ranges, no searches through messages, no reflogs of ours.
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-~^+".contains(c);
        if asked.is_empty() || asked.starts_with('-') || !asked.chars().all(plain) {
            return Err(none());
        }
        let named = match asked.strip_prefix("HEAD") {
            Some(steps)
                if steps
                    .chars()
                    .all(|c| c.is_ascii_digit() || "~^".contains(c)) =>
            {
                vec![format!("{head}{steps}")]
            }
            _ => vec![
                format!("refs/heads/{asked}"),
                format!("refs/tags/{asked}"),
                asked.to_owned(),
            ],
        };
        for name in named {
            let found = self
                .cmd("rev-parse")
                .args(["--verify", "--quiet", &format!("{name}^{{commit}}")])
                .output()
                .map_err(|e| self.git_error(e))?;
            if found.status.success() {
                let text = String::from_utf8_lossy(&found.stdout);
                return CommitId::parse(text.trim()).map_err(|e| self.git_error(e));
            }
        }
        Err(none())
    }

    fn current_branch(&self) -> io::Result<Option<String>> {
        let head = fs::read_to_string(self.dir.join("HEAD"))?;
        Ok(head
            .trim()
            .strip_prefix("ref: refs/heads/")
            .map(str::to_owned))
    }

    /// A file's bytes at a commit; `None` when there is no such file.
    pub fn show(&self, commit: &CommitId, path: &str) -> Result<Option<Vec<u8>>, MirrorError> {
        if path.is_empty() || path.contains(['\n', '\0']) {
            return Ok(None);
        }
        let out = self
            .cmd("cat-file")
            .arg("--batch")
            .stdin_bytes(format!("{commit}:{path}\n"))
            .limit(SHOW_MAX_BYTES)
            .run()
            .map_err(|e| self.git_error(e))?;
        let blobs = git::parse_batch(&out.stdout).map_err(|e| self.git_error(e))?;
        Ok(blobs.into_iter().next().flatten())
    }

    /// The names in the top directory of a commit.
    pub fn ls_tree_root(&self, commit: &CommitId) -> Result<Vec<String>, MirrorError> {
        let out = self
            .cmd("ls-tree")
            .args(["--name-only", "-z", "--end-of-options", commit.as_str()])
            .run()
            .map_err(|e| self.git_error(e))?;
        Ok(git::records(&out.stdout)
            .map(|n| String::from_utf8_lossy(n).into_owned())
            .collect())
    }

    /// The full paths of what lies directly in these folders of a commit; none is fine.
    pub fn ls_tree_in(
        &self,
        commit: &CommitId,
        folders: &[&str],
    ) -> Result<Vec<String>, MirrorError> {
        let out = self
            .cmd("ls-tree")
            .args(["--name-only", "-z", "--end-of-options", commit.as_str()])
            .args(folders.iter().map(|folder| format!("{folder}/")))
            .run()
            .map_err(|e| self.git_error(e))?;
        Ok(git::records(&out.stdout)
            .map(|n| String::from_utf8_lossy(n).into_owned())
            .collect())
    }

    /// Plain files of a commit by their paths, with their content; what is none of those is left
    /// out, and a link is not followed.
    pub fn texts(
        &self,
        commit: &CommitId,
        paths: &[&str],
        bytes_max: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, MirrorError> {
        let out = self
            .cmd("ls-tree")
            .args(["-z", "--format=%(objectmode) %(objectsize) %(path)"])
            .args(["--end-of-options", commit.as_str()])
            .args(paths)
            .run()
            .map_err(|e| self.git_error(e))?;
        let mut found = Vec::new();
        for record in git::records(&out.stdout) {
            let record = String::from_utf8_lossy(record);
            let mut words = record.splitn(3, ' ');
            let (Some(mode), Some(size), Some(path)) = (words.next(), words.next(), words.next())
            else {
                continue;
            };
            if !matches!(mode, "100644" | "100755") {
                continue;
            }
            let bytes = size.trim().parse::<u64>().unwrap_or(u64::MAX);
            if bytes > bytes_max as u64 {
                return Err(MirrorError::TooLong {
                    path: path.to_owned(),
                    bytes,
                    bytes_max,
                });
            }
            if let Some(content) = self.show(commit, path)? {
                found.push((path.to_owned(), content));
            }
        }
        Ok(found)
    }

    /// First lines of the messages of the last commits, the newest first.
    pub fn subjects(&self, commit: &CommitId, count: usize) -> Result<Vec<String>, MirrorError> {
        let out = self
            .cmd("log")
            .args(["-z", "--format=%s", "--no-color", "--no-decorate"])
            .args([
                &format!("--max-count={count}"),
                "--end-of-options",
                commit.as_str(),
            ])
            .limit(SUBJECTS_BYTES_MAX)
            .cut()
            .run()
            .map_err(|e| self.git_error(e))?;
        let subjects = git::records(&out.stdout).map(String::from_utf8_lossy);
        Ok(subjects.map(|subject| subject.trim().to_owned()).collect())
    }

    fn cmd(&self, verb: &'static str) -> git::Cmd<'_> {
        self.git.cmd(verb).git_dir(&self.dir)
    }

    fn lock_path(&self) -> PathBuf {
        self.dir.with_extension("lock")
    }

    fn io(&self, what: &'static str, source: io::Error) -> MirrorError {
        MirrorError::Io {
            what,
            path: self.dir.clone(),
            source,
        }
    }

    fn git_error(&self, source: GitError) -> MirrorError {
        MirrorError::Git {
            upstream: self.upstream.clone(),
            source,
        }
    }
}

#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Head {
    pub(crate) commit: Option<CommitId>,
    pub(crate) branch: Option<RefName>,
}

/// Upstream's HEAD, and whether upstream has any commit at all.
pub(crate) fn parse_ls_remote(text: &str) -> (Head, bool) {
    let mut head = Head::default();
    let mut any = false;
    for line in text.lines() {
        let Some((value, name)) = line.split_once('\t') else {
            continue;
        };
        if let Some(target) = value.strip_prefix("ref: ") {
            if name == "HEAD" && target.starts_with("refs/heads/") {
                head.branch = RefName::full(target).ok();
            }
            continue;
        }
        any = any || name == "HEAD" || name.starts_with("refs/heads/");
        if name == "HEAD" {
            head.commit = CommitId::parse(value).ok();
        }
    }
    (head, any)
}

fn is_url(upstream: &str) -> bool {
    let scp_like = upstream
        .split_once(':')
        .is_some_and(|(host, _)| !host.contains('/'));
    upstream.contains("://") || scp_like
}

pub(crate) fn key_of(upstream: &str) -> String {
    let trimmed = upstream.trim_end_matches('/');
    let trimmed = trimmed.strip_suffix("/.git").unwrap_or(trimmed);
    let name = trimmed.rsplit(['/', ':']).next().unwrap_or_default();
    let name = name.strip_suffix(".git").unwrap_or(name);
    let slug: String = name
        .chars()
        .take(40)
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    let slug = slug.trim_matches('-');
    let slug = if slug.is_empty() { "repo" } else { slug };
    format!("{slug}-{:016x}", fnv1a(upstream.as_bytes()))
}

/// FNV-1a: the same in every version of Rust, as a name on disk must be.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[derive(Debug)]
pub(crate) enum InitError {
    Io(io::Error),
    Git(GitError),
}

/// Makes a bare repository under another name and renames it, so that none is ever half made.
pub(crate) fn init_bare(
    git: &Git,
    dir: &Path,
    lock: &Path,
    alternate: Option<&Path>,
) -> Result<(), InitError> {
    if dir.join("HEAD").exists() {
        return Ok(());
    }
    let _held = Lock::take(lock).map_err(InitError::Io)?;
    if dir.join("HEAD").exists() {
        return Ok(());
    }
    let making = dir.with_extension("making");
    files::remove_tree(&making).map_err(InitError::Io)?;
    fs::create_dir_all(&making).map_err(InitError::Io)?;
    git.cmd("init")
        .git_dir(&making)
        .args(["--quiet", "--bare", "--template=", "--object-format=sha1"])
        .run()
        .map_err(InitError::Git)?;
    if let Some(objects) = alternate {
        let info = making.join("objects/info");
        fs::create_dir_all(&info)
            .and_then(|()| fs::write(info.join("alternates"), alternates(objects)))
            .map_err(InitError::Io)?;
    }
    fs::rename(&making, dir).map_err(InitError::Io)
}

/// The bytes of an alternates file that names one object directory.
pub(crate) fn alternates(objects: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut bytes = objects.as_os_str().as_bytes().to_vec();
    bytes.push(b'\n');
    bytes
}

/// Removes the lock files of a git that was killed; says how many there were.
fn remove_stale_locks(dir: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            // Object directories hold no locks, and are the large ones.
            if entry.file_name() != "objects" {
                removed += remove_stale_locks(&path)?;
            }
        } else if path.extension().is_some_and(|e| e == "lock") {
            fs::remove_file(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Repo, git};

    #[test]
    fn a_mirror_follows_its_upstream() {
        let temp = tempfile::tempdir().unwrap();
        let upstream = Repo::init(temp.path().join("up"));
        let first = upstream.commit("a.txt", b"one", "first");
        let git = git(temp.path());
        let mirror = Mirror::open_or_create(&git, temp.path(), upstream.text()).unwrap();
        mirror.refresh().unwrap();
        let base = mirror.base(None).unwrap();
        assert_eq!(
            base,
            Base {
                commit: first.clone(),
                branch: Some("main".to_owned())
            }
        );
        upstream.run(&["checkout", "-q", "-b", "side"]);
        let second = upstream.commit("b.txt", b"two", "second");
        upstream.run(&["tag", "-a", "-m", "x", "v1"]);
        mirror.refresh().unwrap();
        assert_eq!(mirror.base(None).unwrap().branch.as_deref(), Some("side"));
        let main = RefName::branch("main").unwrap();
        assert_eq!(mirror.base(Some(&main)).unwrap().commit, first);
        let tag = RefName::full("refs/tags/v1").unwrap();
        assert_eq!(
            mirror.base(Some(&tag)).unwrap(),
            Base {
                commit: second.clone(),
                branch: None
            }
        );
        assert_eq!(
            mirror.show(&second, "b.txt").unwrap().as_deref(),
            Some(&b"two"[..])
        );
        assert_eq!(mirror.show(&first, "b.txt").unwrap(), None);
        assert_eq!(mirror.ls_tree_root(&second).unwrap(), ["a.txt", "b.txt"]);
        let gone = RefName::branch("nope").unwrap();
        assert!(matches!(
            mirror.base(Some(&gone)),
            Err(MirrorError::NoRef { .. })
        ));
    }

    #[test]
    fn renamed_branches_detached_heads_and_dangling_heads() {
        let temp = tempfile::tempdir().unwrap();
        let upstream = Repo::init(temp.path().join("up"));
        let first = upstream.commit("a.txt", b"one", "first");
        upstream.run(&["branch", "x"]);
        let mirror =
            Mirror::open_or_create(&git(temp.path()), temp.path(), upstream.text()).unwrap();
        mirror.refresh().unwrap();
        upstream.run(&["branch", "-D", "x"]);
        upstream.run(&["branch", "x/y"]);
        upstream.run(&["checkout", "-q", "--detach"]);
        mirror.refresh().unwrap();
        assert_eq!(
            mirror.base(None).unwrap(),
            Base {
                commit: first,
                branch: None
            }
        );
        assert!(mirror.base(Some(&RefName::branch("x/y").unwrap())).is_ok());
        upstream.run(&["symbolic-ref", "HEAD", "refs/heads/none"]);
        mirror.refresh().unwrap();
        assert!(matches!(mirror.base(None), Err(MirrorError::NoHead { .. })));
        assert!(mirror.base(Some(&RefName::branch("main").unwrap())).is_ok());
    }

    #[test]
    fn an_empty_upstream_is_named_and_bad_ones_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let upstream = Repo::init(temp.path().join("up"));
        let git = git(temp.path());
        let mirror = Mirror::open_or_create(&git, temp.path(), upstream.text()).unwrap();
        assert!(matches!(mirror.refresh(), Err(MirrorError::Empty { .. })));
        for bad in ["", "--upload-pack=x"] {
            let opened = Mirror::open_or_create(&git, temp.path(), bad);
            assert!(
                matches!(opened, Err(MirrorError::BadUpstream { .. })),
                "{bad}"
            );
        }
        let missing = Mirror::open_or_create(&git, temp.path(), "/no/such/place");
        assert!(matches!(missing, Err(MirrorError::NotFound { .. })));
        let canary = temp.path().join("canary");
        let ext = format!("ext::touch {}", canary.display());
        let evil = Mirror::open_or_create(&git, temp.path(), &ext).unwrap();
        assert!(matches!(evil.refresh(), Err(MirrorError::Git { .. })));
        assert!(!canary.exists());
    }

    #[test]
    fn locks_of_a_killed_fetch_heal() {
        let temp = tempfile::tempdir().unwrap();
        let upstream = Repo::init(temp.path().join("up"));
        upstream.commit("a.txt", b"one", "first");
        let mirror =
            Mirror::open_or_create(&git(temp.path()), temp.path(), upstream.text()).unwrap();
        mirror.refresh().unwrap();
        let second = upstream.commit("a.txt", b"two", "second");
        for lock in [
            "refs/heads/main.lock",
            "packed-refs.lock",
            "refs/dispatch/HEAD.lock",
        ] {
            fs::write(mirror.dir().join(lock), b"").unwrap();
        }
        mirror.refresh().unwrap();
        assert_eq!(mirror.base(None).unwrap().commit, second);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_upstream_that_is_too_large_is_refused_and_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let upstream = Repo::init(temp.path().join("up"));
        let mut noise = vec![0; 1 << 20];
        // Noise does not get smaller in a pack.
        rustix::rand::getrandom(&mut noise, rustix::rand::GetRandomFlags::empty()).unwrap();
        let commit = upstream.commit("noise", &noise, "much");
        let open = |most| {
            let git = git(temp.path()).fetch_bytes(most);
            Mirror::open_or_create(&git, temp.path(), upstream.text()).unwrap()
        };
        let small = open(256 << 10);
        let Err(MirrorError::Git { source, .. }) = small.refresh() else {
            panic!("it was fetched");
        };
        let text = source.to_string();
        assert!(text.contains("262144 bytes; limits.fetch_bytes"), "{text}");
        let mut files = vec![small.objects()];
        while let Some(path) = files.pop() {
            if path.is_dir() {
                files.extend(
                    fs::read_dir(path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
            } else {
                let length = fs::metadata(&path).unwrap().len();
                assert!(length < 128 << 10, "{} has {length} bytes", path.display());
            }
        }
        let large = open(64 << 20);
        large.refresh().unwrap();
        assert_eq!(large.base(None).unwrap().commit, commit);
    }

    #[test]
    fn two_at_once_do_not_collide() {
        let temp = tempfile::tempdir().unwrap();
        let upstream = Repo::init(temp.path().join("up"));
        let commit = upstream.commit("a.txt", b"one", "first");
        let git = git(temp.path());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mirror =
                        Mirror::open_or_create(&git, temp.path(), upstream.text()).unwrap();
                    mirror.refresh().unwrap();
                    assert_eq!(mirror.base(None).unwrap().commit, commit);
                });
            }
        });
    }

    #[test]
    fn keys_are_safe_in_paths_and_stable() {
        assert_eq!(
            key_of("https://u:p@h/acme/Api.git"),
            key_of("https://u:p@h/acme/Api.git")
        );
        assert!(key_of("https://u:p@h/acme/Api.git").starts_with("api-"));
        assert!(key_of("/home/me/../..").starts_with("repo-"));
        assert_ne!(key_of("/a/x"), key_of("/b/x"));
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
