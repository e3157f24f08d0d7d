//! The mirror: our trusted bare copy of an upstream, the read-only source of objects that
//! workspaces borrow. It must hold nothing but what upstream has, and must never lose an object:
//! workspaces and vaults stand on it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dispatch_core::task;

use crate::files::{self, Lock};
use crate::git::{self, CommitId, Git, GitError, RefName, SLOW_TIMEOUT};

/// Of what [`Mirror::subjects`] reads; what is behind it is left out.
const SUBJECTS_BYTES_MAX: usize = 256 << 10;
/// The largest single file `show` gives.
pub const SHOW_MAX_BYTES: usize = 4 << 20;

const HEAD_REF: &str = "refs/dispatch/HEAD";
/// When upstream last answered, in seconds since 1970.
const REFRESHED: &str = "dispatch-refreshed";
/// A connection that stands still for so long is over.
const STALLED: [&str; 2] = ["http.lowSpeedLimit=1000", "http.lowSpeedTime=60"];

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
    #[error("find {what} in {upstream}: it has no {}{more}", lacks.join(" and no "))]
    Lacks {
        what: String,
        upstream: String,
        lacks: Vec<String>,
        more: String,
    },
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

/// What a task wants of upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// What upstream has checked out, or its default branch.
    Head,
    Branch(RefName),
    Tag(RefName),
    /// The head of a pull request (GitHub, Forgejo, Gitea) or merge request (GitLab).
    Pr(u64),
}

/// Where the mirror of an upstream lies, or would lie.
#[must_use]
pub fn place_of(data_dir: &Path, upstream: &str) -> PathBuf {
    data_dir
        .join("mirrors")
        .join(format!("{}.git", key_of(upstream)))
}

impl Wanted {
    /// What a task's base is called in git.
    ///
    /// # Errors
    /// When git would not take it for a name.
    pub fn of(base: &task::Base) -> Result<Self, GitError> {
        use task::Base;
        Ok(match base {
            Base::Branch { name } | Base::Default { name } => Self::Branch(RefName::branch(name)?),
            Base::Pr { number } => Self::Pr(*number),
            Base::Tag { name } => Self::Tag(RefName::tag(name)?),
            Base::Head | Base::Folder | Base::Nothing => Self::Head,
        })
    }

    /// The names that a mirror may have it under.
    #[must_use]
    pub fn known(&self) -> Vec<String> {
        let mut names = match self {
            Self::Head => vec![HEAD_REF.to_owned()],
            other => other.theirs(),
        };
        names.extend(self.borrowed());
        names
    }

    fn words(&self) -> String {
        match self {
            Self::Head => "its HEAD".into(),
            Self::Branch(name) => format!("branch {}", name.short().unwrap_or(name.as_str())),
            Self::Tag(name) => {
                let short = name.as_str().strip_prefix("refs/tags/");
                format!("tag {}", short.unwrap_or(name.as_str()))
            }
            Self::Pr(number) => format!("pull request {number}"),
        }
    }

    /// What it is called on a forge.
    fn theirs(&self) -> Vec<String> {
        match self {
            Self::Head => Vec::new(),
            Self::Branch(name) | Self::Tag(name) => vec![name.to_string()],
            Self::Pr(number) => vec![
                format!("refs/pull/{number}/head"),
                format!("refs/merge-requests/{number}/head"),
            ],
        }
    }

    /// Where it is kept here when it is none of upstream's own branches and tags.
    fn borrowed(&self) -> Option<String> {
        match self {
            Self::Head => None,
            Self::Branch(name) | Self::Tag(name) => {
                let below = name.as_str().strip_prefix("refs/")?;
                Some(format!("refs/dispatch/origin/{below}"))
            }
            Self::Pr(number) => Some(format!("refs/dispatch/pull/{number}")),
        }
    }
}

/// Where a task starts, and what a person should know of how it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brought {
    pub base: Base,
    pub notes: Vec<String>,
}

/// What a remote says it has.
#[derive(Debug, Default)]
struct Asked {
    head: Head,
    any: bool,
    listing: String,
}

impl Asked {
    fn has(&self, name: &str) -> bool {
        let named = |line: &str| {
            line.split_once('\t')
                .is_some_and(|(_, found)| found == name)
        };
        self.listing.lines().any(named)
    }
}

/// Unless told: how long upstream has to answer what it has.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct Mirror {
    git: Git,
    dir: PathBuf,
    key: String,
    upstream: String,
    answer_timeout: Duration,
    /// It stands for a directory without git: what git would convert or ignore is as it is.
    plain: bool,
}

/// The name of the stores of what a task starts from.
pub(crate) fn store_key(base: &task::Base, repo: &str) -> String {
    match base {
        task::Base::Folder => format!("folder-{}", key_of(repo)),
        task::Base::Nothing => "nothing".to_owned(),
        _ => key_of(repo),
    }
}

impl Mirror {
    /// Finds or makes the store that stands for a directory without git, or for nothing. It has no
    /// upstream: `folder` fills it.
    pub(crate) fn without_git(
        git: &Git,
        data_dir: &Path,
        base: &task::Base,
        repo: &str,
    ) -> Result<Self, MirrorError> {
        let key = store_key(base, repo);
        let mirror = Self {
            git: git.clone(),
            dir: data_dir.join("mirrors").join(format!("{key}.git")),
            key,
            upstream: repo.to_owned(),
            answer_timeout: ANSWER_TIMEOUT,
            plain: true,
        };
        mirror.init()?;
        Ok(mirror)
    }

    /// A repository that is there, to be read and in no way changed.
    pub(crate) fn reading(git: &Git, git_dir: &Path) -> Self {
        let upstream = git_dir.to_string_lossy().into_owned();
        Self {
            git: git.clone(),
            dir: git_dir.to_owned(),
            key: key_of(&upstream),
            upstream,
            answer_timeout: ANSWER_TIMEOUT,
            plain: false,
        }
    }

    pub(crate) fn is_plain(&self) -> bool {
        self.plain
    }

    fn init(&self) -> Result<(), MirrorError> {
        init_bare(&self.git, &self.dir, &self.lock_path(), None).map_err(|e| match e {
            InitError::Io(source) => self.io("make the directory", source),
            InitError::Git(source) => self.git_error(source),
        })
    }

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
            let known = place_of(data_dir, upstream);
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
            answer_timeout: ANSWER_TIMEOUT,
            plain: false,
        };
        mirror.init()?;
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

    /// How long upstream has to say what it has; the transfer itself may take longer.
    #[must_use]
    pub fn answer_within(mut self, timeout: Duration) -> Self {
        self.answer_timeout = timeout;
        self
    }

    /// Brings in what upstream has now.
    pub fn refresh(&self) -> Result<(), MirrorError> {
        let lock = self.take_lock()?;
        let asked = self.ask(&lock, &self.upstream)?;
        self.update(&lock, &asked, None)
    }

    /// Brings in what upstream has now, and finds what is wanted. An upstream that does not answer
    /// is no reason to fail when the mirror has it: its age is told.
    pub fn bring(&self, wanted: &Wanted) -> Result<Brought, MirrorError> {
        let lock = self.take_lock()?;
        let asked = match self.ask(&lock, &self.upstream) {
            Ok(asked) => asked,
            Err(error @ MirrorError::Git { .. }) => return self.offline(wanted, error),
            Err(error) => return Err(error),
        };
        let found = wanted.theirs().into_iter().find(|name| asked.has(name));
        // Upstream's branches and tags come under their own names; the rest needs one of ours.
        let borrowed = match (&found, wanted) {
            (Some(theirs), Wanted::Pr(_)) => wanted.borrowed().map(|ours| (theirs.clone(), ours)),
            _ => None,
        };
        self.update(&lock, &asked, borrowed.as_ref())?;
        match (wanted, found) {
            (Wanted::Head, _) => self.brought(HEAD_REF, wanted, Vec::new()),
            (_, Some(theirs)) => {
                let at = borrowed.map_or(theirs, |(_, ours)| ours);
                self.brought(&at, wanted, Vec::new())
            }
            (_, None) => self.through_clone(&lock, &asked, wanted),
        }
    }

    /// A person's clone often lacks what its origin has: a branch that was never checked out, and
    /// always the heads of pull requests.
    fn through_clone(
        &self,
        lock: &Lock,
        asked: &Asked,
        wanted: &Wanted,
    ) -> Result<Brought, MirrorError> {
        let lacks = |more: String| MirrorError::Lacks {
            what: wanted.words(),
            upstream: self.upstream.clone(),
            lacks: wanted.theirs(),
            more,
        };
        let Some(ours) = wanted.borrowed() else {
            return Err(lacks(String::new()));
        };
        if is_url(&self.upstream) {
            return Err(lacks("; check the number or name, or push it".into()));
        }
        if let Wanted::Branch(name) = wanted
            && let Some(short) = name.short()
        {
            let tracked = format!("refs/remotes/origin/{short}");
            if asked.has(&tracked) {
                let upstream = self.upstream.clone();
                self.fetch_refs(lock, &upstream, &[format!("+{tracked}:{ours}")])?;
                let note = format!("{short} is the clone's origin/{short}, as last fetched there");
                return self.brought(&ours, wanted, vec![note]);
            }
        }
        let Some(origin) = self.origin()? else {
            let hint = "; it has no remote named origin to ask; check the name, or give a URL";
            return Err(lacks(hint.into()));
        };
        if has_login(&origin) {
            let hint = "; its origin was not asked, because its URL holds a login: give the URL \
                        without one";
            return Err(lacks(hint.into()));
        }
        let theirs = match self.ask(lock, &origin) {
            Ok(theirs) => theirs,
            Err(MirrorError::Git { source, .. }) => {
                return Err(lacks(format!(
                    "; its origin {origin} does not answer: {source}"
                )));
            }
            Err(error) => return Err(error),
        };
        let Some(found) = wanted.theirs().into_iter().find(|name| theirs.has(name)) else {
            return Err(lacks(format!("; nor has its origin {origin}")));
        };
        self.fetch_refs(lock, &origin, &[format!("+{found}:{ours}")])?;
        let note = format!("{} comes from the clone's origin {origin}", wanted.words());
        self.brought(&ours, wanted, vec![note])
    }

    /// What the mirror has, with its age; the first error when it does not have it.
    fn offline(&self, wanted: &Wanted, error: MirrorError) -> Result<Brought, MirrorError> {
        let Some(refreshed) = self.refreshed() else {
            return Err(error);
        };
        let why = match &error {
            MirrorError::Git { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        let why: String = why.chars().take(300).collect();
        let note = format!(
            "the mirror is {} old: {} does not answer ({why})",
            age(refreshed),
            self.upstream
        );
        for name in wanted.known() {
            if let Ok(brought) = self.brought(&name, wanted, vec![note.clone()]) {
                return Ok(brought);
            }
        }
        Err(error)
    }

    fn brought(
        &self,
        name: &str,
        wanted: &Wanted,
        notes: Vec<String>,
    ) -> Result<Brought, MirrorError> {
        let branch = match wanted {
            Wanted::Head => self.current_branch().map_err(|e| self.io("read HEAD", e))?,
            Wanted::Branch(name) => name.short().map(str::to_owned),
            Wanted::Tag(_) | Wanted::Pr(_) => None,
        };
        let commit = self.commit_of(name)?.ok_or_else(|| match wanted {
            Wanted::Head => MirrorError::NoHead {
                upstream: self.upstream.clone(),
            },
            Wanted::Branch(_) | Wanted::Tag(_) | Wanted::Pr(_) => MirrorError::Lacks {
                what: wanted.words(),
                upstream: self.upstream.clone(),
                lacks: vec![format!("commit under {name}")],
                more: String::new(),
            },
        })?;
        let base = Base { commit, branch };
        Ok(Brought { base, notes })
    }

    /// How long ago upstream answered.
    fn refreshed(&self) -> Option<Duration> {
        let text = fs::read_to_string(self.dir.join(REFRESHED)).ok()?;
        let at = UNIX_EPOCH + Duration::from_secs(text.trim().parse().ok()?);
        Some(SystemTime::now().duration_since(at).unwrap_or_default())
    }

    /// The URL of a clone's remote `origin`, from the person's own repository.
    fn origin(&self) -> Result<Option<String>, MirrorError> {
        let out = self
            .git
            .cmd("config")
            .current_dir(Path::new(&self.upstream))
            .args(["--get", "remote.origin.url"])
            .output()
            .map_err(|e| self.git_error(e))?;
        let url = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        let usable = out.status.success() && !url.is_empty() && !url.starts_with('-');
        if !usable || is_url(&url) {
            return Ok(usable.then_some(url));
        }
        // A relative path is one from the clone's own directory.
        let path = Path::new(&self.upstream).join(url);
        Ok(Some(path.to_string_lossy().into_owned()))
    }

    pub(crate) fn take_lock(&self) -> Result<Lock, MirrorError> {
        Lock::take(&self.lock_path()).map_err(|e| self.io("lock", e))
    }

    /// Fetches all of upstream's branches and tags, and what else is wanted, and follows its HEAD.
    fn update(
        &self,
        lock: &Lock,
        asked: &Asked,
        more: Option<&(String, String)>,
    ) -> Result<(), MirrorError> {
        if !asked.any {
            return Err(MirrorError::Empty {
                upstream: self.upstream.clone(),
            });
        }
        let mut refs = vec![
            "+refs/heads/*:refs/heads/*".to_owned(),
            "+refs/tags/*:refs/tags/*".to_owned(),
        ];
        if asked.head.commit.is_some() {
            refs.push(format!("+HEAD:{HEAD_REF}"));
        }
        refs.extend(more.map(|(theirs, ours)| format!("+{theirs}:{ours}")));
        self.fetch_refs(lock, &self.upstream, &refs)?;
        let point = match (&asked.head.branch, &asked.head.commit) {
            (Some(branch), Some(_)) => self.cmd("symbolic-ref").args(["HEAD", branch.as_str()]),
            (None, Some(commit)) => {
                self.cmd("update-ref")
                    .args(["--no-deref", "HEAD", commit.as_str()])
            }
            (_, None) => self.cmd("update-ref").args(["-d", HEAD_REF]),
        };
        point.run().map_err(|e| self.git_error(e))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let text = format!("{}\n", now.unwrap_or_default().as_secs());
        files::write_atomic(&self.dir.join(REFRESHED), text.as_bytes())
            .map_err(|e| self.io("write the age", e))
    }

    fn ask(&self, lock: &Lock, remote: &str) -> Result<Asked, MirrorError> {
        let cmd = self.cmd("ls-remote").args(["--symref", "--", remote]);
        let out = STALLED
            .iter()
            .fold(cmd, |cmd, setting| cmd.set(setting))
            .stdin_file(lock.share().map_err(|e| self.io("share the lock", e))?)
            .timeout(self.answer_timeout)
            .run()
            .map_err(|e| self.git_error(e))?;
        let listing = String::from_utf8_lossy(&out.stdout).into_owned();
        let (head, any) = parse_ls_remote(&listing);
        Ok(Asked { head, any, listing })
    }

    fn fetch_refs(&self, lock: &Lock, remote: &str, refs: &[String]) -> Result<(), MirrorError> {
        let fetched = self.fetch(lock, remote, refs);
        if fetched.is_err() {
            self.remove_half_packs()?;
        }
        match fetched {
            // Nobody else writes while we hold the lock: what lies there is a dead git's.
            Err(_) if remove_stale_locks(&self.dir).map_err(|e| self.io("heal", e))? > 0 => {
                self.fetch(lock, remote, refs)
            }
            other => other,
        }
    }

    fn fetch(&self, lock: &Lock, remote: &str, refs: &[String]) -> Result<(), MirrorError> {
        // Pruning drops names, not objects, and lets `a` make room for `a/b`.
        git::FSCK
            .iter()
            .chain(&STALLED)
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
                remote,
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

    /// The commit a reference of the mirror names.
    pub(crate) fn commit_of(&self, name: &str) -> Result<Option<CommitId>, MirrorError> {
        let found = self
            .cmd("rev-parse")
            .args(["--verify", "--quiet", &format!("{name}^{{commit}}")])
            .output()
            .map_err(|e| self.git_error(e))?;
        if !found.status.success() {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&found.stdout);
        let commit = CommitId::parse(text.trim()).map_err(|e| self.git_error(e))?;
        Ok(Some(commit))
    }

    /// The commit to start from: of the named branch or tag, else of upstream's current branch.
    pub fn base(&self, branch: Option<&RefName>) -> Result<Base, MirrorError> {
        let name = branch.map_or(HEAD_REF, RefName::as_str);
        let commit = self.commit_of(name)?.ok_or_else(|| match branch {
            Some(name) => MirrorError::NoRef {
                name: name.clone(),
                upstream: self.upstream.clone(),
            },
            None => MirrorError::NoHead {
                upstream: self.upstream.clone(),
            },
        })?;
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
        let printed = self.fixed(commit, format!("show {path}"), || {
            self.cmd("cat-file")
                .arg("--batch")
                .stdin_bytes(format!("{commit}:{path}\n"))
                .limit(SHOW_MAX_BYTES)
                .run()
        })?;
        let blobs = git::parse_batch(&printed).map_err(|e| self.git_error(e))?;
        Ok(blobs.into_iter().next().flatten())
    }

    /// The names in the top directory of a commit.
    pub fn ls_tree_root(&self, commit: &CommitId) -> Result<Vec<String>, MirrorError> {
        let printed = self.fixed(commit, "root".to_owned(), || {
            self.cmd("ls-tree")
                .args(["--name-only", "-z", "--end-of-options", commit.as_str()])
                .run()
        })?;
        Ok(git::records(&printed)
            .map(|n| String::from_utf8_lossy(n).into_owned())
            .collect())
    }

    /// The full paths of what lies directly in these folders of a commit; none is fine.
    pub fn ls_tree_in(
        &self,
        commit: &CommitId,
        folders: &[&str],
    ) -> Result<Vec<String>, MirrorError> {
        let printed = self.fixed(commit, format!("in {}", folders.join(" ")), || {
            self.cmd("ls-tree")
                .args(["--name-only", "-z", "--end-of-options", commit.as_str()])
                .args(folders.iter().map(|folder| format!("{folder}/")))
                .run()
        })?;
        Ok(git::records(&printed)
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
        let printed = self.fixed(commit, format!("texts {}", paths.join("\0")), || {
            self.cmd("ls-tree")
                .args(["-z", "--format=%(objectmode) %(objectsize) %(path)"])
                .args(["--end-of-options", commit.as_str()])
                .args(paths)
                .run()
        })?;
        let mut found = Vec::new();
        for record in git::records(&printed) {
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
        let printed = self.fixed(commit, format!("subjects {count}"), || {
            self.cmd("log")
                .args(["-z", "--format=%s", "--no-color", "--no-decorate"])
                // A repository's own settings could ask for it, with a program of theirs.
                .arg("--no-show-signature")
                .args([
                    &format!("--max-count={count}"),
                    "--end-of-options",
                    commit.as_str(),
                ])
                .limit(SUBJECTS_BYTES_MAX)
                .cut()
                .run()
        })?;
        let subjects = git::records(&printed).map(String::from_utf8_lossy);
        Ok(subjects.map(|subject| subject.trim().to_owned()).collect())
    }

    pub(crate) fn cmd(&self, verb: &'static str) -> git::Cmd<'_> {
        self.git.cmd(verb).git_dir(&self.dir)
    }

    /// What git prints of a commit that is there, asked for once.
    fn fixed(
        &self,
        commit: &CommitId,
        question: String,
        ask: impl FnOnce() -> Result<git::Output, GitError>,
    ) -> Result<Arc<[u8]>, MirrorError> {
        let memo = &self.git.memo;
        // `cat-file --batch` says so of what a repository lacks, which may be the whole commit. A file
        // that ends like this has one more line end.
        let is_answer = |printed: &[u8]| !printed.ends_with(b" missing\n");
        let ask = || Ok(ask()?.stdout);
        let answer = memo.get(&self.dir, commit.as_str(), question, ask, is_answer);
        answer.map_err(|e| self.git_error(e))
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

/// How old something is, in words.
fn age(since: Duration) -> String {
    let seconds = since.as_secs();
    match (seconds / 86_400, seconds / 3600, seconds / 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, _) => format!("{hours} h"),
        (days, ..) => format!("{days} d"),
    }
}

/// Whether a URL carries more than the name of a user; it would be in an argv and in the log.
fn has_login(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else {
        return false;
    };
    let authority = rest.split('/').next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((user, _)) => user.contains(':') || scheme.starts_with("http"),
        None => false,
    }
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

    fn pr(number: u64) -> Wanted {
        Wanted::Pr(number)
    }

    #[test]
    fn heads_of_pull_requests_come_from_the_forges_own_references() {
        let temp = tempfile::tempdir().unwrap();
        let forge = Repo::init(temp.path().join("forge"));
        let first = forge.commit("a.txt", b"one", "first");
        let second = forge.commit("a.txt", b"two", "of somebody else");
        forge.run(&["update-ref", "refs/pull/7/head", second.as_str()]);
        forge.run(&["update-ref", "refs/merge-requests/8/head", second.as_str()]);
        forge.run(&["reset", "-q", "--hard", first.as_str()]);
        let git = git(temp.path());
        let mirror = Mirror::open_or_create(&git, temp.path(), forge.text()).unwrap();
        for number in [7, 8] {
            let brought = mirror.bring(&pr(number)).unwrap();
            assert_eq!(brought.base.commit, second);
            assert_eq!((brought.base.branch, brought.notes), (None, vec![]));
        }
        assert_eq!(mirror.bring(&Wanted::Head).unwrap().base.commit, first);
        // It moves on, and nothing of the old head is lost.
        let third = forge.commit("b.txt", b"b", "pushed again");
        forge.run(&["update-ref", "refs/pull/7/head", third.as_str()]);
        assert_eq!(mirror.bring(&pr(7)).unwrap().base.commit, third);
        assert!(mirror.show(&second, "a.txt").unwrap().is_some());
        let error = mirror.bring(&pr(9)).unwrap_err().to_string();
        for part in [
            "find pull request 9",
            "no refs/pull/9/head and no refs/merge-requests/9/head",
            "no remote named origin",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn what_a_clone_lacks_comes_from_its_origin() {
        let temp = tempfile::tempdir().unwrap();
        let forge = Repo::init(temp.path().join("forge"));
        let first = forge.commit("a.txt", b"one", "first");
        forge.run(&["branch", "known"]);
        let clone = Repo::init(temp.path().join("clone"));
        clone.run(&["remote", "add", "origin", "../forge"]);
        clone.run(&["fetch", "-q", "origin"]);
        clone.run(&["reset", "-q", "--hard", first.as_str()]);
        let second = forge.commit("a.txt", b"two", "second");
        forge.run(&["branch", "new"]);
        forge.run(&["tag", "v1"]);
        forge.run(&["update-ref", "refs/pull/7/head", second.as_str()]);
        let mirror = Mirror::open_or_create(&git(temp.path()), temp.path(), clone.text()).unwrap();
        let branch = |name: &str| Wanted::Branch(RefName::branch(name).unwrap());
        let tag = |name: &str| Wanted::Tag(RefName::full(&format!("refs/tags/{name}")).unwrap());
        for (wanted, commit, note) in [
            (branch("known"), &first, "origin/known, as last fetched"),
            (
                branch("new"),
                &second,
                "branch new comes from the clone's origin",
            ),
            (tag("v1"), &second, "tag v1 comes from"),
            (pr(7), &second, "pull request 7 comes from"),
        ] {
            let brought = mirror.bring(&wanted).unwrap();
            assert_eq!(brought.base.commit, *commit, "{wanted:?}");
            assert!(brought.notes[0].contains(note), "{:?}", brought.notes);
        }
        let error = mirror.bring(&branch("none")).unwrap_err().to_string();
        assert!(error.contains("nor has its origin"), "{error}");
        clone.run(&[
            "remote",
            "set-url",
            "origin",
            "https://me:token@127.0.0.1:1/x",
        ]);
        let error = mirror.bring(&pr(9)).unwrap_err().to_string();
        assert!(error.contains("holds a login"), "{error}");
        assert!(!error.contains("token"), "{error}");
        clone.run(&["remote", "set-url", "origin", "https://127.0.0.1:1/x"]);
        let error = mirror.bring(&pr(9)).unwrap_err().to_string();
        assert!(error.contains("does not answer"), "{error}");
    }

    #[test]
    fn an_upstream_that_does_not_answer_costs_only_what_it_has_new() {
        let temp = tempfile::tempdir().unwrap();
        let upstream = Repo::init(temp.path().join("up"));
        let first = upstream.commit("a.txt", b"one", "first");
        upstream.run(&["update-ref", "refs/pull/7/head", first.as_str()]);
        let mirror =
            Mirror::open_or_create(&git(temp.path()), temp.path(), upstream.text()).unwrap();
        let away = temp.path().join("away");
        // Before the first answer there is nothing to start from.
        fs::rename(&upstream.0, &away).unwrap();
        assert!(matches!(
            mirror.bring(&Wanted::Head),
            Err(MirrorError::Git { .. })
        ));
        fs::rename(&away, &upstream.0).unwrap();
        mirror.bring(&pr(7)).unwrap();
        fs::rename(&upstream.0, &away).unwrap();
        let three_hours_ago = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs()
            - 10_900;
        fs::write(mirror.dir().join(REFRESHED), three_hours_ago.to_string()).unwrap();
        let main = Wanted::Branch(RefName::branch("main").unwrap());
        for wanted in [Wanted::Head, main, pr(7)] {
            let brought = mirror.bring(&wanted).unwrap();
            assert_eq!(brought.base.commit, first);
            let note = &brought.notes[0];
            assert!(note.starts_with("the mirror is 3 h old: "), "{note}");
            assert!(note.contains("does not answer"), "{note}");
        }
        assert!(matches!(mirror.bring(&pr(8)), Err(MirrorError::Git { .. })));
    }

    #[test]
    fn a_mute_upstream_is_given_up_in_time() {
        let temp = tempfile::tempdir().unwrap();
        // It accepts, and never says a word.
        let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}/r.git", mute.local_addr().unwrap());
        let mirror = Mirror::open_or_create(&git(temp.path()), temp.path(), &url)
            .unwrap()
            .answer_within(Duration::from_millis(200));
        let Err(MirrorError::Git { source, .. }) = mirror.bring(&Wanted::Head) else {
            panic!("it answered");
        };
        assert!(matches!(source, GitError::TimedOut { .. }), "{source}");
    }

    #[test]
    fn ages_and_logins_are_told_apart() {
        for (seconds, words) in [
            (5, "5 s"),
            (120, "2 min"),
            (10_900, "3 h"),
            (200_000, "2 d"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), words);
        }
        for url in ["https://me@h/r", "https://me:x@h/r", "ssh://git:x@h/r"] {
            assert!(has_login(url), "{url}");
        }
        for url in ["https://h/r@v1", "ssh://git@h/r", "git@h:r", "/a/b"] {
            assert!(!has_login(url), "{url}");
        }
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
