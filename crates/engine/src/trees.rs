//! Mirror, workspace and vault for one task: the words of the core on one side, git's on the other.
//! Must not decide anything about a run, and must not run git in an agent's repository: the job that
//! brings commits out runs in the task's own placement.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

use dispatch_core::{
    carried::{self, Carried},
    checks::{self, Checks, RootFiles},
    config::Config,
    event::Sealed,
    naming,
    prompt::{self, BLOCKED_FILE},
    review::Range,
    state::{Task, Workspace},
    task::{Base, Start, TaskSpec},
};

use crate::{
    engine::Settings,
    files,
    folder::{self, FolderError},
    git::{CommitId, Git, GitError, RefName, bundle_job},
    mirror::{self, Brought, Mirror, MirrorError, Wanted},
    prompts::Texts,
    snapshot::{self, Seal, SnapshotError, Squashed, Why},
    vault::{self, Author, Vault, VaultError},
    workspace::{Head, How, WorkspaceError, Workspaces, agent_head},
};

const QUESTION_BYTES_MAX: u64 = 64 << 10;
const NOTED_PATHS_MAX: usize = 20;
const NOTED_PATH_CHARS_MAX: usize = 200;
// Names below a task's `aside` directory.
const GIT: &str = "git";
const WORKSPACE: &str = "workspace";
const WHOLE: &str = "whole";

#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    #[error(transparent)]
    Git(#[from] GitError),
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error("{doing}: {source}")]
    Io {
        doing: String,
        #[source]
        source: io::Error,
    },
    #[error("{what}")]
    Missing { what: &'static str },
}

/// A workspace that an agent can start in.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) workspace: Workspace,
    pub(crate) how: String,
    /// What an earlier run had asked; moved out, so that it is not taken for a new question.
    pub(crate) old_question: Option<String>,
    /// What a person should know of the base.
    pub(crate) notes: Vec<String>,
}

/// What a base commit says, for a prompt.
#[derive(Debug, Default)]
pub(crate) struct Project {
    /// Marker files of checks.
    pub(crate) root: RootFiles,
    pub(crate) language: Option<String>,
    pub(crate) commits: Vec<String>,
    pub(crate) texts: Texts,
}

fn files_of(
    mirror: &Mirror,
    base: &CommitId,
    there: &[String],
    names: &[&str],
) -> Result<RootFiles, TreeError> {
    let mut files = RootFiles::new();
    for name in names
        .iter()
        .filter(|name| there.iter().any(|file| file == *name))
    {
        if let Some(bytes) = mirror.show(base, name)? {
            files.insert(
                (*name).to_owned(),
                String::from_utf8_lossy(&bytes).into_owned(),
            );
        }
    }
    Ok(files)
}

impl Project {
    /// Of a commit that `mirror` has.
    pub(crate) fn at(
        mirror: &Mirror,
        base: &CommitId,
        spec: &TaskSpec,
        config: &Config,
    ) -> Result<Self, TreeError> {
        let there = mirror.ls_tree_root(base)?;
        let markers = checks::marker_files(&config.checks);
        let root = files_of(mirror, base, &there, &markers)?;
        let language = checks::detected(&config.checks, &root).map(|(name, _)| name.to_string());
        let mut texts = Texts::new();
        let own = there.iter().any(|name| name == prompt::REPOSITORY_FOLDER);
        if own && prompt::rewords(&spec.base) {
            let paths = spec.guide.paths(language.as_deref());
            let wanted: Vec<&str> = paths.values().map(String::as_str).collect();
            let found = mirror.texts(base, &wanted, config.limits.template_bytes)?;
            for (path, bytes) in found {
                let kind = paths.iter().find(|(_, known)| **known == path);
                if let Some((kind, _)) = kind {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    texts.insert(*kind, (path, text));
                }
            }
        }
        // The only commit of what has no history of its own is ours.
        let commits = match spec.base.is_repository() {
            true => mirror.subjects(base, prompt::COMMITS_MAX)?,
            false => Vec::new(),
        };
        Ok(Self {
            root,
            language,
            commits,
            texts,
        })
    }

    /// Of a directory before it is copied.
    pub(crate) fn of_folder(folder: &Path, config: &Config) -> Result<Self, TreeError> {
        use io::Read as _;
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut root = RootFiles::new();
        for name in checks::marker_files(&config.checks) {
            let path = folder.join(name);
            let failed = |source: io::Error| TreeError::Io {
                doing: format!("read {}", path.display()),
                source,
            };
            let file = match rustix::fs::open(&path, flags, Mode::empty()) {
                Ok(file) => fs::File::from(file),
                // No file, or a link, which a copy does not follow either.
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => continue,
                Err(error) => return Err(failed(error.into())),
            };
            if !file.metadata().map_err(failed)?.is_file() {
                continue;
            }
            let mut bytes = Vec::new();
            let mut file = file.take(mirror::SHOW_MAX_BYTES as u64);
            file.read_to_end(&mut bytes).map_err(failed)?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            root.insert(name.to_owned(), text);
        }
        let language = checks::detected(&config.checks, &root).map(|(name, _)| name.to_string());
        Ok(Self {
            root,
            language,
            ..Self::default()
        })
    }
}

#[derive(Debug)]
pub(crate) struct Trees {
    git: Git,
    data: PathBuf,
    workspaces: Workspaces,
    limits: snapshot::Limits,
    path: String,
    answer_timeout: Duration,
    folder_limits: folder::Limits,
}

/// Where a task's workspace is, or will be.
#[must_use]
pub fn workspace_of(data: &Path, spec: &TaskSpec, short: &str) -> PathBuf {
    let key = mirror::store_key(&spec.base, &spec.repo);
    let name = naming::workspace_folder(spec, short);
    data.join("workspaces").join(key).join(name)
}

/// The vault that a repository's results are in, whether or not it is there yet.
pub(crate) fn vault_of(data: &Path, spec: &TaskSpec) -> Option<PathBuf> {
    let key = mirror::store_key(&spec.base, &spec.repo);
    let path = data.join("vaults").join(format!("{key}.git"));
    path.exists().then_some(path)
}

fn author() -> Author {
    Author {
        name: "Dispatch".into(),
        email: "dispatch@dispatch.invalid".into(),
    }
}

/// Where the task's asker started: the mirror has it since then, and upstream may have moved on.
fn at(start: &Start, mirror: &Mirror) -> Result<Brought, TreeError> {
    let what = "start where the asker's task did: that commit is not in the mirror any more; name a \
                branch, a pull request or a tag";
    let commit = CommitId::parse(&start.commit)?;
    let commit = mirror.commit_of(&commit.to_string())?;
    let base = mirror::Base {
        commit: commit.ok_or(TreeError::Missing { what })?,
        branch: start.branch.clone(),
    };
    let notes = Vec::new();
    Ok(Brought { base, notes })
}

/// What a review reads that names no base: the last commit.
pub(crate) const REVIEW_BASE: &str = "HEAD~1";

impl Trees {
    pub(crate) fn new(settings: &Settings) -> Result<Self, String> {
        let path = settings.job_env.get("PATH").cloned().unwrap_or_default();
        let home = settings.data.join("git-home");
        fs::create_dir_all(&home).map_err(|e| format!("make {}: {e}", home.display()))?;
        let git = Git::new(&settings.git, OsStr::new(&path), &home).map_err(|e| e.to_string())?;
        git.check_version().map_err(|e| e.to_string())?;
        let workspaces = Workspaces::new(&git, &settings.data);
        workspaces.sweep().map_err(|e| e.to_string())?;
        vault::sweep(&settings.data).map_err(|e| e.to_string())?;
        let limits = &settings.config.limits;
        let answer_timeout = Duration::from_secs(limits.upstream_s);
        let folder_limits = folder::Limits {
            bytes: limits.folder_bytes,
            files: limits.folder_files as u64,
        };
        let git = git.fetch_bytes(limits.fetch_bytes);
        let limits = snapshot::Limits {
            total_bytes: limits.snapshot_bytes,
            file_bytes: limits.snapshot_file_bytes,
            files: limits.snapshot_files as u64,
        };
        Ok(Self {
            git,
            data: settings.data.clone(),
            workspaces,
            limits,
            path,
            answer_timeout,
            folder_limits,
        })
    }

    /// The task's own directory: private homes and what we keep beside the workspace.
    fn own(&self, task: &Task) -> PathBuf {
        self.data.join("tasks").join(task.id.to_string())
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    pub(crate) fn home(&self, task: &Task) -> PathBuf {
        self.own(task).join("home")
    }

    /// Not the agent's, so that nothing it left in its home is read by a check.
    pub(crate) fn check_home(&self, task: &Task) -> PathBuf {
        self.own(task).join("check-home")
    }

    /// What a workspace borrows from the mirror, at the same path in every fence.
    pub(crate) fn objects(&self, task: &Task) -> Result<PathBuf, TreeError> {
        Ok(self.mirror(task)?.objects())
    }

    fn meta(&self, task: &Task) -> PathBuf {
        self.own(task).join("meta")
    }

    fn mirror(&self, task: &Task) -> Result<Mirror, TreeError> {
        let (base, repo) = (&task.spec.base, &task.spec.repo);
        if !base.is_repository() {
            return Ok(Mirror::without_git(&self.git, &self.data, base, repo)?);
        }
        let mirror = Mirror::open_or_create(&self.git, &self.data, repo)?;
        Ok(mirror.answer_within(self.answer_timeout))
    }

    fn vault(&self, task: &Task) -> Result<Vault, TreeError> {
        Ok(Vault::open_or_create(
            &self.git,
            &self.data,
            &self.mirror(task)?,
        )?)
    }

    fn branch(task: &Task) -> Result<RefName, TreeError> {
        Ok(RefName::branch(&task.branch())?)
    }

    fn base(task: &Task) -> Result<(CommitId, &Workspace), TreeError> {
        let what = "find the base commit: the task never had a workspace";
        let workspace = task.workspace.as_ref().ok_or(TreeError::Missing { what })?;
        Ok((CommitId::parse(&workspace.base)?, workspace))
    }

    /// Makes the workspace, or finds the one that an earlier run of this task worked in.
    pub(crate) fn prepare(&self, task: &Task) -> Result<Ready, TreeError> {
        if let Some(workspace) = task.workspace.as_ref().filter(|w| !w.removed)
            && workspace.path.is_dir()
        {
            let old_question = self.move_question_out(&workspace.path)?;
            let how = "kept from the run before".into();
            return Ok(Ready {
                workspace: workspace.clone(),
                how,
                old_question,
                notes: Vec::new(),
            });
        }
        let mirror = self.mirror(task)?;
        let Brought { mut base, notes } = self.bring(task, &mirror)?;
        let path = workspace_of(&self.data, &task.spec, &task.short);
        let (branch, meta) = (Self::branch(task)?, self.meta(task));
        let make = |commit: &CommitId| {
            self.workspaces
                .prepare(&mirror, commit, &branch, &path, &meta)
        };
        let prepared = match make(&base.commit) {
            // Made before a restart, and upstream has moved on since: the task has its base.
            Err(WorkspaceError::OtherBase { has, .. }) => {
                base.commit = has;
                make(&base.commit)?
            }
            other => other?,
        };
        let how = match prepared.how {
            How::Pooled => "a tree made beforehand",
            How::Moved => "a tree made beforehand, moved to the base",
            How::CheckedOut => "checked out",
            How::Existing => "made before a restart",
        };
        let workspace = Workspace {
            path,
            base: base.commit.to_string(),
            base_branch: base.branch,
            removed: false,
        };
        let old_question = self.move_question_out(&workspace.path)?;
        Ok(Ready {
            workspace,
            how: how.into(),
            old_question,
            notes,
        })
    }

    /// The commit that a task starts from.
    fn bring(&self, task: &Task, mirror: &Mirror) -> Result<Brought, TreeError> {
        let (commit, notes) = match &task.spec.base {
            Base::Folder => {
                let folder = Path::new(&task.spec.repo);
                folder::is_apart(folder, &self.data)?;
                folder::take_in(mirror, folder, &task.id.to_string(), &self.folder_limits)?
            }
            Base::Nothing => (folder::nothing(mirror)?, Vec::new()),
            base => {
                return match &task.spec.terms.start {
                    Some(start) => at(start, mirror),
                    None => Ok(mirror.bring(&Wanted::of(base)?)?),
                };
            }
        };
        let base = mirror::Base {
            commit,
            branch: None,
        };
        Ok(Brought { base, notes })
    }

    /// Takes an old question out of the way. One that the base itself holds is part of the project.
    fn move_question_out(&self, workspace: &Path) -> Result<Option<String>, TreeError> {
        let Some(text) = read_question(workspace) else {
            return Ok(None);
        };
        let path = workspace.join(BLOCKED_FILE);
        fs::remove_file(&path).map_err(|source| TreeError::Io {
            doing: format!("move {} out of the way", path.display()),
            source,
        })?;
        Ok((!text.trim().is_empty()).then_some(text))
    }

    /// Makes trees for the tasks to come. A pool that cannot be filled costs time, no more, so its
    /// errors end here; the next prepare meets their cause and tells it.
    pub(crate) fn refill(&self, task: &Task) {
        // A copy is one task's.
        if !task.spec.base.is_repository() {
            return;
        }
        let filled = self
            .mirror(task)
            .and_then(|mirror| Ok(self.workspaces.refill(&mirror, &Self::base(task)?.0)?));
        match filled {
            Ok(()) | Err(_) => {}
        }
    }

    /// The marker files of the checks, as the base commit has them.
    pub(crate) fn root_files(&self, task: &Task, names: &[&str]) -> Result<RootFiles, TreeError> {
        let (base, _) = Self::base(task)?;
        let mirror = self.mirror(task)?;
        let there = mirror.ls_tree_root(&base)?;
        files_of(&mirror, &base, &there, names)
    }

    /// What a prompt is made of, from the base commit and never from a workspace.
    pub(crate) fn project(&self, task: &Task, config: &Config) -> Result<Project, TreeError> {
        let (base, _) = Self::base(task)?;
        Project::at(&self.mirror(task)?, &base, &task.spec, config)
    }

    /// What the base commit carries for agents. Sets of names, no content.
    pub(crate) fn carried(&self, task: &Task) -> Result<Vec<Carried>, TreeError> {
        let (base, _) = Self::base(task)?;
        let mirror = self.mirror(task)?;
        let mut paths = mirror.ls_tree_root(&base)?;
        paths.extend(mirror.ls_tree_in(&base, carried::FOLDERS)?);
        Ok(carried::carried(paths.iter().map(String::as_str)))
    }

    /// The commits that a review of this task reads: up to its base commit, from the revision asked
    /// for (a branch, a tag, a commit, or steps back from the base commit: `HEAD~2`).
    pub(crate) fn review_range(&self, task: &Task) -> Result<Range, TreeError> {
        let (head, _) = Self::base(task)?;
        let asked = task.spec.review_base.as_deref().unwrap_or(REVIEW_BASE);
        let base = self.mirror(task)?.revision(asked, &head)?;
        Ok(Range {
            base: base.to_string(),
            head: head.to_string(),
        })
    }

    /// The question in the workspace, if there is more than white space.
    pub(crate) fn question(&self, task: &Task) -> Option<String> {
        let workspace = task.workspace.as_ref()?;
        read_question(&workspace.path).filter(|text| !text.trim().is_empty())
    }

    /// The job that brings the agent's commits out; `None` when it made none.
    pub(crate) fn bundle_job(
        &self,
        task: &Task,
    ) -> Option<(Vec<String>, BTreeMap<String, String>)> {
        let (base, workspace) = Self::base(task).ok()?;
        if !git_can_read(&workspace.path) {
            return None;
        }
        match agent_head(&workspace.path, &base) {
            Head::AtBase | Head::Missing => None,
            Head::Moved(_) | Head::Unknown => {
                let job = bundle_job("git", &base);
                let mut env: BTreeMap<String, String> = job.env.into_iter().collect();
                env.insert("PATH".into(), self.path.clone());
                env.insert(
                    "HOME".into(),
                    self.check_home(task).to_string_lossy().into_owned(),
                );
                let mut argv = job.argv;
                if let (Some(first), Some(program)) = (argv.first_mut(), self.git_program()) {
                    *first = program;
                }
                Some((argv, env))
            }
        }
    }

    fn git_program(&self) -> Option<String> {
        let dirs = self.path.split(':').filter(|dir| dir.starts_with('/'));
        let mut found = dirs
            .map(|dir| Path::new(dir).join("git"))
            .filter(|path| path.is_file());
        found.next().map(|path| path.to_string_lossy().into_owned())
    }

    fn look(&self, task: &Task, vault: &Vault) -> Result<snapshot::Snapshot, TreeError> {
        let (base, workspace) = Self::base(task)?;
        let meta = self.meta(task);
        Ok(snapshot::snapshot(
            vault,
            &workspace.path,
            &meta,
            &base,
            &self.limits,
        )?)
    }

    /// Keeps the result of a run in the vault, and says what the tree shows.
    pub(crate) fn seal(
        &self,
        task: &Task,
        run: u32,
        bundle: Option<&Path>,
        checks: &Checks,
    ) -> Result<(Sealed, Option<String>), TreeError> {
        let vault = self.vault(task)?;
        let (base, _) = Self::base(task)?;
        let mut notes = Vec::new();
        let (id, n) = (task.id.to_string(), run.to_string());
        let mut head = None;
        if let Some(bundle) = bundle {
            let name = RefName::full(&format!("refs/dispatch/heads/{id}/{n}"))?;
            match vault.import_bundle(bundle, &name) {
                Ok(commit) => head = Some(commit),
                Err(error) => notes.push(format!("the agent's own commits were not kept: {error}")),
            }
        }
        let look = self.look(task, &vault)?;
        notes.extend(left_out(&look));
        let asked = fs::symlink_metadata(Self::base(task)?.1.path.join(BLOCKED_FILE));
        if asked.is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
            notes.push(format!(
                "{BLOCKED_FILE} is not a plain file; it was not read as a question"
            ));
        }
        let message = format!(
            "{}\n\nDispatch-Task: {id}\nDispatch-Run: {n}\n",
            task.spec.title
        );
        let seal = Seal {
            task: &id,
            run: &n,
            head: head.as_ref(),
            message: &message,
            author: &author(),
        };
        let sealed = snapshot::seal(&vault, &look, &seal)?;
        match sealed.squashed {
            Some(Squashed::HistoryRewritten) => {
                notes.push("history rewritten: the result is one commit on the base".into());
            }
            Some(Squashed::BlockedCommitted) => notes.push(format!(
                "the agent committed {BLOCKED_FILE}: the result is one commit without it"
            )),
            None => {}
        }
        let changed = sealed.commit != base;
        let paths = sealed.stat.paths.iter().map(|path| path.to_string());
        let paths: Vec<String> = paths.collect();
        let result = Sealed {
            commit: changed.then(|| sealed.commit.to_string()),
            files: sealed.stat.files,
            insertions: sealed.stat.insertions,
            deletions: sealed.stat.deletions,
            checks_touched: checks::touched(checks, paths.iter().map(String::as_str)),
            notes,
        };
        Ok((result, self.question(task)))
    }

    /// Keeps all that the workspace holds under a private ref, before something destructive. `None`:
    /// the agent has taken the workspace away itself, so there is nothing to keep.
    pub(crate) fn keep(&self, task: &Task) -> Result<Option<(String, String)>, TreeError> {
        let (_, workspace) = Self::base(task)?;
        if !is_folder(&workspace.path) {
            return Ok(None);
        }
        let vault = self.vault(task)?;
        let look = self.look(task, &vault)?;
        let name = format!("removal-{}", task.seq);
        let head = self.sealed_head(task, &vault)?;
        let id = task.id.to_string();
        let kept = snapshot::keep(&vault, &look, head.as_ref(), &id, &name, &author())?;
        // What a snapshot cannot hold must not be lost either: then all of it is set aside.
        let all =
            look.more_left_out == 0 && look.left_out.iter().all(|left| left.why == Why::Ignored);
        let mark = self.aside(task).join(WHOLE);
        let marked = if all {
            files::remove_tree(&mark)
        } else {
            fs::create_dir_all(self.aside(task)).and_then(|()| fs::write(&mark, "1\n"))
        };
        marked.map_err(io_at("remember what a snapshot cannot hold in", &mark))?;
        Ok(Some((kept.1.to_string(), kept.0.to_string())))
    }

    /// What a removal sets aside until its snapshot's time is over: the agent's `.git` with every
    /// branch and stash, or the whole workspace.
    fn aside(&self, task: &Task) -> PathBuf {
        self.own(task).join("aside")
    }

    fn set_aside(&self, task: &Task, from: &Path, name: &str) -> Result<(), TreeError> {
        let to = self.aside(task).join(name);
        let moved = fs::create_dir_all(self.aside(task))
            .and_then(|()| files::remove_tree(&to))
            .and_then(|()| fs::rename(from, &to));
        moved.map_err(io_at("set aside", from))
    }

    pub(crate) fn forget(&self, task: &Task, refname: &str) -> Result<(), TreeError> {
        self.vault(task)?.delete_ref(&RefName::full(refname)?)?;
        if task.snapshots.len() > 1 {
            return Ok(());
        }
        let aside = self.aside(task);
        files::remove_tree(&aside).map_err(io_at("remove what was set aside in", &aside))
    }

    /// The agent's own head, if a run's seal has brought it into the vault.
    fn sealed_head(&self, task: &Task, vault: &Vault) -> Result<Option<CommitId>, TreeError> {
        for run in task.runs.iter().rev() {
            let name = RefName::full(&format!("refs/dispatch/heads/{}/{}", task.id, run.n))?;
            if let Some(commit) = vault.resolve(&name)? {
                return Ok(Some(commit));
            }
        }
        Ok(None)
    }

    /// What the workspace of a live task shows now, as a patch. Nothing of it stays: whoever asks
    /// often would fill the disk.
    pub(crate) fn live_diff(&self, task: &Task) -> Result<String, TreeError> {
        let (vault, _scratch) = self.vault(task)?.in_passing()?;
        let look = self.look(task, &vault)?;
        Self::patch(&vault, task, &look.tree)
    }

    /// Takes the workspace away after [`Trees::keep`].
    pub(crate) fn remove(&self, task: &Task) -> Result<(), TreeError> {
        let (_, workspace) = Self::base(task)?;
        let path = &workspace.path;
        if !is_folder(path) {
            // What the agent put in its place goes, and nothing that it points to.
            return match fs::remove_file(path) {
                Ok(()) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(io_at("remove", path)(error)),
            };
        }
        files::unlock_dir(path).map_err(io_at("open for removal", path))?;
        if self.aside(task).join(WHOLE).exists() {
            return self.set_aside(task, path, WORKSPACE);
        }
        let git = path.join(".git");
        if fs::symlink_metadata(&git).is_ok() {
            self.set_aside(task, &git, GIT)?;
        }
        Ok(self.workspaces.remove(path)?)
    }

    /// Re-creates the workspace from the newest snapshot and from what was set aside.
    pub(crate) fn restore(&self, task: &Task) -> Result<(), TreeError> {
        let (_, workspace) = Self::base(task)?;
        let (path, aside) = (&workspace.path, self.aside(task));
        let (whole, git) = (aside.join(WORKSPACE), aside.join(GIT));
        if fs::symlink_metadata(&whole).is_ok() {
            self.workspaces.remove(path)?;
            return fs::rename(&whole, path).map_err(io_at("bring back", path));
        }
        let what = "bring the workspace back: nothing of it was kept";
        let kept = task.snapshots.last().ok_or(TreeError::Missing { what })?;
        let vault = self.vault(task)?;
        let (commit, branch) = (CommitId::parse(&kept.commit)?, Self::branch(task)?);
        // A crash may have left it half restored, with the agent's `.git` in place already.
        let there = path.join(".git");
        if fs::symlink_metadata(&git).is_err() && fs::symlink_metadata(&there).is_ok() {
            self.set_aside(task, &there, GIT)?;
        }
        self.workspaces.remove(path)?;
        snapshot::restore(&vault, &commit, &branch, path, &self.meta(task))?;
        if fs::symlink_metadata(&git).is_ok() {
            let swapped = files::remove_tree(&there).and_then(|()| fs::rename(&git, &there));
            swapped.map_err(io_at("bring back", &there))?;
        }
        Ok(())
    }

    pub(crate) fn apply(&self, task: &Task, into: &Path, commit: &str) -> Result<(), TreeError> {
        let vault = self.vault(task)?;
        vault.apply_into(into, &CommitId::parse(commit)?, &Self::branch(task)?)?;
        Ok(())
    }

    /// Writes the result into a directory without git; says how many files it has touched.
    pub(crate) fn write_back(
        &self,
        task: &Task,
        into: &Path,
        commit: &str,
    ) -> Result<u64, TreeError> {
        let mirror = self.mirror(task)?;
        // Two results into one directory come one after the other.
        let _held = mirror.take_lock()?;
        let vault = self.vault(task)?;
        let base = Self::base(task)?.0;
        Ok(folder::write_back(
            &vault,
            into,
            &base,
            &CommitId::parse(commit)?,
        )?)
    }

    pub(crate) fn diff(&self, task: &Task, commit: &str) -> Result<String, TreeError> {
        Self::patch(&self.vault(task)?, task, &CommitId::parse(commit)?)
    }

    fn patch(vault: &Vault, task: &Task, shown: &CommitId) -> Result<String, TreeError> {
        let patch = vault.diff(&Self::base(task)?.0, shown)?;
        let mut text = String::from_utf8_lossy(&patch.text).into_owned();
        if patch.cut {
            text.push_str("\n[the rest of the diff is not shown: it is too large]\n");
        }
        Ok(text)
    }
}

fn io_at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TreeError {
    let doing = format!("{doing} {}", path.display());
    move |source| TreeError::Io { doing, source }
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

/// What a person should know about what is not in the result. Ignored trees are told in one line.
fn left_out(look: &snapshot::Snapshot) -> Vec<String> {
    let ignored = look
        .left_out
        .iter()
        .filter(|left| left.why == Why::Ignored)
        .count() as u64;
    let ignored = ignored + look.more_ignored;
    let mut notes = Vec::new();
    if ignored > 0 {
        let what = "ignored by the base commit's rules and not kept";
        notes.push(format!("{ignored} files or folders are {what}"));
    }
    let others = look.left_out.iter().filter(|left| left.why != Why::Ignored);
    for left in others.take(NOTED_PATHS_MAX) {
        let path = left.path.to_string_lossy();
        let path: String = path.chars().take(NOTED_PATH_CHARS_MAX).collect();
        notes.push(format!("not in the result: {path} ({:?})", left.why));
    }
    if look.more_left_out > 0 {
        notes.push(format!("not in the result: {} more", look.more_left_out));
    }
    notes
}

/// Whether the agent's `.git` is a directory of its own whose first files are plain ones: git would
/// follow a `.git` file or link to another repository, and wait for the end of its time to read a
/// fifo. One that lies deeper costs that time, no more.
fn git_can_read(workspace: &Path) -> bool {
    const FIRST: [&str; 6] = [
        "config",
        "config.worktree",
        "packed-refs",
        "shallow",
        "commondir",
        "objects/info/alternates",
    ];
    let git_dir = files::open_dir(workspace)
        .and_then(|root| files::open_dir_at(root.as_fd(), ".git".as_ref()));
    let Ok(git_dir) = git_dir else { return false };
    let plain = |name: &str| files::open_beneath(git_dir.as_fd(), Path::new(name)).map(drop);
    plain("HEAD").is_ok()
        && FIRST.iter().all(|name| match plain(name) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        })
}

/// A file, not a link: the agent could point one at what only we can read.
fn read_question(workspace: &Path) -> Option<String> {
    use std::io::Read as _;
    let root = files::open_dir(workspace).ok()?;
    let file = files::open_beneath(root.as_fd(), Path::new(BLOCKED_FILE)).ok()?;
    let mut bytes = Vec::new();
    file.take(QUESTION_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
