//! Git as this program asks it itself, about a repository that somebody names: by the engine's
//! [`Git`], so that nothing which that repository configures is run.
//! Must not write, fetch, or leave anything behind.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File},
    io::{self, Read as _},
    os::unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use dispatch_engine::git::{Cmd, Git, GitError};
use rustix::fs::{Mode, OFlags};

use crate::settings::Settings;

/// A repository can name a pipe as one of its files: then git waits for ever.
const TIMEOUT: Duration = Duration::from_secs(20);
/// What one answer may be long.
const ANSWER_MAX_BYTES: usize = 1 << 20;
/// The largest index that is looked at.
const COPY_MAX_BYTES: u64 = 256 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnGitError {
    #[error("make a directory for git")]
    Scratch(#[source] io::Error),
    #[error(transparent)]
    Git(#[from] GitError),
}

#[derive(Debug)]
pub(crate) struct OwnGit {
    git: Git,
    scratch: Scratch,
}

impl OwnGit {
    pub(crate) fn new(settings: &Settings) -> Result<Self, OwnGitError> {
        let scratch = Scratch::new(&std::env::temp_dir()).map_err(OwnGitError::Scratch)?;
        let program = settings.find("git").unwrap_or_else(|| "git".into());
        let path = settings.job_env().remove("PATH").unwrap_or_default();
        let git = Git::new(&program, OsStr::new(&path), &scratch.0.join("git-home"))?;
        Ok(Self { git, scratch })
    }

    /// A directory that goes with this.
    pub(crate) fn scratch(&self) -> &Path {
        &self.scratch.0
    }

    pub(crate) fn git(&self) -> &Git {
        &self.git
    }

    /// In the repository that `dir` is in.
    pub(crate) fn at(&self, dir: &Path, verb: &'static str) -> Cmd<'_> {
        bounded(self.git.cmd(verb).current_dir(dir))
    }

    /// A git directory of ours over the checkout `top`: its commit, objects, index and list of what
    /// is ignored, and nothing of its configuration, which somebody may change while we look.
    pub(crate) fn over(&self, top: &Path) -> Option<PathBuf> {
        let head = says(
            self.at(top, "rev-parse")
                .args(["--verify", "--quiet", "HEAD^{commit}"]),
        )?;
        let places = says(self.at(top, "rev-parse").args([
            "--path-format=absolute",
            "--git-path",
            "objects",
            "--git-path",
            "index",
            "--git-path",
            "info/exclude",
        ]))?;
        let places: Vec<&Path> = places.lines().map(Path::new).collect();
        let &[objects, index, ignored] = places.as_slice() else {
            return None;
        };
        let over = self.scratch.0.join("over");
        lay(&over, &head, objects).ok()?;
        copy(index, &over.join("index")).ok()?;
        // Most have none.
        copy(ignored, &over.join("info/exclude")).ok();
        Some(over)
    }

    /// In this git directory.
    pub(crate) fn of(&self, git_dir: &Path, verb: &'static str) -> Cmd<'_> {
        bounded(self.git.cmd(verb).git_dir(git_dir))
    }
}

fn bounded(cmd: Cmd<'_>) -> Cmd<'_> {
    cmd.timeout(TIMEOUT).limit(ANSWER_MAX_BYTES)
}

fn lay(git_dir: &Path, head: &str, objects: &Path) -> io::Result<()> {
    for dir in ["objects/info", "refs", "info"] {
        fs::create_dir_all(git_dir.join(dir))?;
    }
    let mut lender = objects.as_os_str().as_bytes().to_vec();
    lender.push(b'\n');
    fs::write(git_dir.join("objects/info/alternates"), lender)?;
    fs::write(git_dir.join("HEAD"), format!("{head}\n"))
}

/// With its time: git compares that of an index with those of files.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let from = File::from(rustix::fs::open(from, flags, Mode::empty())?);
    let meta = from.metadata()?;
    if !meta.is_file() || meta.len() > COPY_MAX_BYTES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut to = File::create(to)?;
    io::copy(&mut from.take(COPY_MAX_BYTES), &mut to)?;
    to.set_modified(meta.modified()?)
}

/// What it prints, unless it fails or says nothing.
pub(crate) fn says(cmd: Cmd<'_>) -> Option<String> {
    let out = cmd.run().ok()?;
    let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// A directory of our own that goes when it is dropped.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new(below: &Path) -> io::Result<Self> {
        // An engine may be asked for several at once.
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let (us, n) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let dir = below.join(format!("dispatch-look-{us}-{n}"));
        // One that is there already is somebody else's, whoever made it.
        DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            // What stays behind is an empty configuration, or a copy of this program.
            Ok(()) | Err(_) => {}
        }
    }
}
