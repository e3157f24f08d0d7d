//! Real git repositories for tests: a person's or an agent's own, with nothing of ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::git::{CommitId, Git, RefName, bundle_job};
use crate::mirror::Mirror;
use crate::snapshot::{Limits, Snapshot, snapshot};
use crate::vault::{Author, Vault};
use crate::workspace::{Prepared, WorkspaceError, Workspaces};

/// Our git, with its home in `temp`.
pub(crate) fn git(temp: &Path) -> Git {
    Git::new(Path::new("git"), path().as_ref(), &temp.join("git-home")).unwrap()
}

pub(crate) fn path() -> String {
    "/usr/local/bin:/usr/bin:/bin:/opt/homebrew/bin".to_owned()
}

/// A repository that somebody else works in.
pub(crate) struct Repo(pub(crate) PathBuf);

impl Repo {
    pub(crate) fn init(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        let repo = Self(path);
        repo.run(&["init", "-q", "-b", "main"]);
        repo
    }

    pub(crate) fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }

    pub(crate) fn run(&self, args: &[&str]) -> String {
        let out = self.command(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "git {args:?}: {stderr}");
        String::from_utf8_lossy(&out.stdout).trim_end().to_owned()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        command
            .args(args)
            .current_dir(&self.0)
            .env_clear()
            .env("PATH", path())
            .env("HOME", "/nonexistent")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_AUTHOR_NAME", "a")
            .env("GIT_AUTHOR_EMAIL", "a@b.c")
            .env("GIT_COMMITTER_NAME", "a")
            .env("GIT_COMMITTER_EMAIL", "a@b.c");
        command
    }

    pub(crate) fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Writes a file and commits everything.
    pub(crate) fn commit(&self, path: &str, bytes: &[u8], message: &str) -> CommitId {
        self.write(path, bytes);
        self.commit_all(message)
    }

    pub(crate) fn commit_all(&self, message: &str) -> CommitId {
        self.run(&["add", "-A", "-f"]);
        self.run(&["commit", "-q", "--no-verify", "-m", message]);
        self.head()
    }

    pub(crate) fn head(&self) -> CommitId {
        CommitId::parse(&self.run(&["rev-parse", "HEAD"])).unwrap()
    }
}

/// An upstream with our stores around it.
pub(crate) struct World {
    pub(crate) temp: tempfile::TempDir,
    pub(crate) upstream: Repo,
    pub(crate) mirror: Mirror,
    pub(crate) vault: Vault,
    pub(crate) workspaces: Workspaces,
    pub(crate) base: CommitId,
    pub(crate) branch: RefName,
}

impl World {
    /// An upstream with one commit of these files.
    pub(crate) fn new(files: &[(&str, &[u8])]) -> Self {
        Self::with(|upstream| {
            for (path, bytes) in files {
                upstream.write(path, bytes);
            }
        })
    }

    pub(crate) fn with(fill: impl FnOnce(&Repo)) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let upstream = Repo::init(temp.path().join("upstream"));
        fill(&upstream);
        let base = upstream.commit_all("base");
        let git = git(temp.path());
        let data = temp.path().join("data");
        let mirror = Mirror::open_or_create(&git, &data, upstream.text()).unwrap();
        mirror.refresh().unwrap();
        let vault = Vault::open_or_create(&git, &data, &mirror).unwrap();
        let workspaces = Workspaces::new(&git, &data);
        let branch = RefName::branch("dispatch/1").unwrap();
        Self {
            temp,
            upstream,
            mirror,
            vault,
            workspaces,
            base,
            branch,
        }
    }

    pub(crate) fn dest(&self, name: &str) -> PathBuf {
        self.temp.path().join("work").join(name)
    }

    pub(crate) fn meta(&self, name: &str) -> PathBuf {
        self.temp.path().join("meta").join(name)
    }

    pub(crate) fn try_prepare(&self, name: &str) -> Result<Prepared, WorkspaceError> {
        let (dest, meta) = (self.dest(name), self.meta(name));
        self.workspaces
            .prepare(&self.mirror, &self.base, &self.branch, &dest, &meta)
    }

    /// A fresh workspace, as the agent sees it.
    pub(crate) fn prepare(&self, name: &str) -> Repo {
        self.try_prepare(name).unwrap();
        Repo(self.dest(name))
    }

    pub(crate) fn snapshot(&self, name: &str) -> Snapshot {
        self.snapshot_within(name, &Limits::default())
    }

    pub(crate) fn snapshot_within(&self, name: &str, limits: &Limits) -> Snapshot {
        snapshot(
            &self.vault,
            &self.dest(name),
            &self.meta(name),
            &self.base,
            limits,
        )
        .unwrap()
    }

    /// Runs the bundle job in a workspace and imports what it prints.
    pub(crate) fn import(&self, name: &str) -> CommitId {
        let job = bundle_job("git", &self.base);
        let file = self.temp.path().join(format!("{name}.bundle"));
        let status = Command::new(&job.argv[0])
            .args(&job.argv[1..])
            .env_clear()
            .env("PATH", path())
            .envs(job.env)
            .current_dir(self.dest(name))
            .stdout(fs::File::create(&file).unwrap())
            .status()
            .unwrap();
        assert!(status.success());
        let kept = RefName::full(&format!("refs/dispatch/heads/{name}")).unwrap();
        self.vault.import_bundle(&file, &kept).unwrap()
    }

    pub(crate) fn in_vault(&self, args: &[&str]) -> String {
        Repo(self.vault.dir().to_owned()).run(args)
    }

    /// The paths of a tree in the vault.
    pub(crate) fn paths(&self, tree: &CommitId) -> Vec<String> {
        let out = self.in_vault(&["ls-tree", "-r", "--name-only", tree.as_str()]);
        out.lines().map(str::to_owned).collect()
    }

    pub(crate) fn author() -> Author {
        Author {
            name: "Codex".to_owned(),
            email: "codex@dispatch.invalid".to_owned(),
        }
    }
}
