//! Runs the git program: argv, environment, limits, and the parsing of what it prints.
//! It must not know what a mirror, a vault or a workspace is, and it never runs git without the
//! settings below, whatever directory it is pointed at.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::memo::Memo;

/// What one git command may print before it is stopped, unless the caller says otherwise.
pub const STDOUT_MAX_BYTES: usize = 256 << 20;
/// How much of git's own words an error carries.
pub const STDERR_MAX_BYTES: usize = 4 << 10;
/// Time for a command that touches no network and no large tree.
pub const TIMEOUT: Duration = Duration::from_secs(120);
/// Time for a fetch, a checkout or a snapshot.
pub const SLOW_TIMEOUT: Duration = Duration::from_secs(1800);
/// The oldest git that knows `GIT_ATTR_SOURCE`, without which an agent's attributes count.
pub const VERSION_MIN: (u32, u32) = (2, 41);

/// Everything through which a repository could make git run a program or change what we read.
/// `diff.external` is absent on purpose: an empty value is a command to git; every diff of ours
/// says `--no-ext-diff --no-textconv` instead. An empty `alternateRefsCommand` is one too, and it
/// is asked in a person's repository that borrows objects when a result is fetched into it; `true`
/// says that the lender has nothing, which costs the transfer of some objects twice.
const SETTINGS: &[&str] = &[
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.alternateRefsCommand=true",
    "core.sshCommand=ssh -oBatchMode=yes",
    "core.gitProxy=",
    "core.askPass=false",
    "core.editor=false",
    "transfer.bundleURI=false",
    "fetch.recurseSubmodules=false",
    "log.showSignature=false",
    "gc.recentObjectsHook=",
    "protocol.ext.allow=never",
    "core.autocrlf=false",
    "core.fileMode=true",
    "core.symlinks=true",
    "core.protectHFS=true",
    "core.protectNTFS=true",
    "credential.helper=",
    "submodule.recurse=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "commit.gpgSign=false",
    "filter.lfs.smudge=",
    "filter.lfs.clean=",
    "filter.lfs.process=",
    "filter.lfs.required=false",
];

/// Objects from elsewhere are checked before they are kept. What old versions of git and importers
/// from other systems wrote, and what no reader is harmed by, is let through: long public histories
/// hold all of these. What names a path (`hasDotgit`, `gitmodulesUrl`, `symlinkTargetLength`) or
/// makes a tree ambiguous (`treeNotSorted`, `duplicateEntries`) stays an error.
pub(crate) const FSCK: &[&str] = &[
    "transfer.fsckObjects=true",
    "fetch.fsckObjects=true",
    "receive.fsckObjects=true",
    // 0100664 and 040000 with a leading zero: early git, and tools that wrote trees themselves.
    "fetch.fsck.zeroPaddedFilemode=ignore",
    "fetch.fsck.badFilemode=ignore",
    // Who and when, as converters from CVS, Subversion and Mercurial guessed it.
    "fetch.fsck.missingEmail=ignore",
    "fetch.fsck.missingNameBeforeEmail=ignore",
    "fetch.fsck.missingSpaceBeforeEmail=ignore",
    "fetch.fsck.missingSpaceBeforeDate=ignore",
    "fetch.fsck.badEmail=ignore",
    "fetch.fsck.badName=ignore",
    "fetch.fsck.badDate=ignore",
    "fetch.fsck.badDateOverflow=ignore",
    "fetch.fsck.badTimezone=ignore",
    "fetch.fsck.zeroPaddedDate=ignore",
    "fetch.fsck.multipleAuthors=ignore",
    // Tags from before 2005 have no tagger.
    "fetch.fsck.missingTaggerEntry=ignore",
    "fetch.fsck.extraHeaderEntry=ignore",
    "fetch.fsck.nulInCommit=ignore",
    // A sub-module that was never resolved; nothing follows it here.
    "fetch.fsck.nullSha1=ignore",
];

/// The verbs that speak to another repository. Every other one is allowed no transport at all: an
/// object that is missing must not be fetched, least of all by a command which the repository names.
/// `GIT_NO_LAZY_FETCH` says the same, to a git that knows it.
const REMOTE_VERBS: [&str; 2] = ["fetch", "ls-remote"];

/// Environment of every git of ours, and of the bundle job.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("GIT_CONFIG_NOSYSTEM", "1"),
    ("GIT_ATTR_NOSYSTEM", "1"),
    ("GIT_TERMINAL_PROMPT", "0"),
    ("GIT_OPTIONAL_LOCKS", "0"),
    ("GIT_NO_REPLACE_OBJECTS", "1"),
    ("GIT_NO_LAZY_FETCH", "1"),
    ("GIT_PROTOCOL_FROM_USER", "0"),
    ("GIT_LITERAL_PATHSPECS", "1"),
    ("GIT_ASKPASS", "false"),
    ("GIT_LFS_SKIP_SMUDGE", "1"),
    ("GIT_SSH_COMMAND", "ssh -oBatchMode=yes"),
    ("LC_ALL", "C"),
];

#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error("start {program}: install git or name it in the configuration")]
    Start { program: PathBuf, source: io::Error },
    #[error("git {verb} failed ({status}): {stderr}")]
    Failed {
        verb: &'static str,
        status: ExitStatus,
        stderr: String,
    },
    #[error("git {verb} stopped after {} s: see whether the disk or the network hangs", after.as_secs())]
    TimedOut { verb: &'static str, after: Duration },
    #[error("git {verb} stopped: it printed more than {limit} bytes")]
    TooMuch { verb: &'static str, limit: usize },
    #[error(
        "git {verb} stopped: it would write a file of more than {limit} bytes; \
         limits.fetch_bytes allows no more"
    )]
    FileTooLarge { verb: &'static str, limit: u64 },
    #[error("understand what git {verb} printed: {what}")]
    Unclear { verb: &'static str, what: String },
    #[error("{what} for git {verb}")]
    Io {
        verb: &'static str,
        what: &'static str,
        source: io::Error,
    },
    #[error("set up git's private home {path}: make the data directory writable")]
    Home { path: PathBuf, source: io::Error },
    #[error("use {name:?} as a {kind}: {why}")]
    Name {
        kind: &'static str,
        name: String,
        why: &'static str,
    },
    #[error("use git {found}: update it to {}.{} or newer", VERSION_MIN.0, VERSION_MIN.1)]
    TooOld { found: String },
}

/// A full commit or object name: 40 or 64 lowercase hex digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommitId(String);

impl CommitId {
    pub fn parse(text: &str) -> Result<Self, GitError> {
        let hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if hex && matches!(text.len(), 40 | 64) {
            Ok(Self(text.to_owned()))
        } else {
            Err(bad_name(
                "commit id",
                text,
                "a full id is 40 or 64 lowercase hex digits",
            ))
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A full reference (`refs/...`) that git accepts and that no command can take for an option.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RefName(String);

impl RefName {
    /// A full name, `refs/tags/v1`.
    pub fn full(name: &str) -> Result<Self, GitError> {
        let bad = |why| Err(bad_name("reference", name, why));
        if name.len() > 255 {
            return bad("it is longer than 255 bytes");
        }
        if !name.starts_with("refs/") || name.split('/').count() < 3 {
            return bad("a full name looks like refs/heads/main");
        }
        if name.contains("..") || name.contains("@{") || name.ends_with('.') {
            return bad("git allows no '..', no '@{' and no '.' at the end");
        }
        let odd = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
        if name.contains(odd) {
            return bad("git allows no space, control character or any of ~^:?*[\\");
        }
        for part in name.split('/') {
            if part.is_empty() || part.starts_with('.') || part.ends_with(".lock") {
                return bad("no part may be empty, start with '.' or end with '.lock'");
            }
            if part.starts_with('-') {
                return bad("no part may start with '-'");
            }
        }
        Ok(Self(name.to_owned()))
    }

    /// A branch by its short or full name.
    pub fn branch(name: &str) -> Result<Self, GitError> {
        let short = name.strip_prefix("refs/heads/").unwrap_or(name);
        if short == "HEAD" || short == "@" {
            return Err(bad_name("branch", name, "git means something else by it"));
        }
        Self::full(&format!("refs/heads/{short}")).map_err(|error| relabel(error, "branch", name))
    }

    /// A tag by its short or full name.
    pub fn tag(name: &str) -> Result<Self, GitError> {
        let short = name.strip_prefix("refs/tags/").unwrap_or(name);
        Self::full(&format!("refs/tags/{short}")).map_err(|error| relabel(error, "tag", name))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The branch's short name, if this is a branch.
    #[must_use]
    pub fn short(&self) -> Option<&str> {
        self.0.strip_prefix("refs/heads/")
    }
}

fn bad_name(kind: &'static str, name: &str, why: &'static str) -> GitError {
    let name = name.chars().take(80).collect();
    GitError::Name { kind, name, why }
}

fn relabel(error: GitError, kind: &'static str, name: &str) -> GitError {
    match error {
        GitError::Name { why, .. } => bad_name(kind, name, why),
        other => other,
    }
}

macro_rules! shown_as_text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl AsRef<OsStr> for $name {
            fn as_ref(&self) -> &OsStr { self.0.as_ref() }
        }
    )*};
}
shown_as_text!(CommitId, RefName);

/// The git program and the private surroundings it runs in.
#[derive(Debug, Clone)]
pub struct Git {
    program: PathBuf,
    path_env: OsString,
    home: PathBuf,
    protocols: String,
    extra_env: Vec<(OsString, OsString)>,
    /// The largest file that a fetch may write; 0 means no limit.
    pub(crate) fetch_bytes: u64,
    pub(crate) memo: Memo,
}

impl Git {
    /// `home` is a directory of ours: git sees it as HOME, with an empty configuration.
    pub fn new(program: &Path, path_env: &OsStr, home: &Path) -> Result<Self, GitError> {
        let config = home.join("gitconfig");
        fs::create_dir_all(home)
            .and_then(|()| fs::write(&config, "# Dispatch's git reads this and nothing else.\n"))
            .map_err(|source| GitError::Home {
                path: home.to_owned(),
                source,
            })?;
        Ok(Self {
            program: program.to_owned(),
            path_env: path_env.to_owned(),
            home: home.to_owned(),
            protocols: "file:https:ssh".to_owned(),
            extra_env: Vec::new(),
            fetch_bytes: 0,
            memo: Memo::default(),
        })
    }

    /// Which transports a fetch may use, `file:https:ssh` unless told.
    #[must_use]
    pub fn protocols(mut self, allowed: &str) -> Self {
        allowed.clone_into(&mut self.protocols);
        self
    }

    /// The largest pack that one fetch may bring, in bytes; 0, as at first, means no limit.
    #[must_use]
    pub fn fetch_bytes(mut self, most: u64) -> Self {
        self.fetch_bytes = most;
        self
    }

    /// Variables a transport needs (`SSH_AUTH_SOCK`, a proxy, a certificate bundle).
    #[must_use]
    pub fn env(mut self, name: &OsStr, value: &OsStr) -> Self {
        self.extra_env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Refuses a git too old to be kept from an agent's attributes.
    pub fn check_version(&self) -> Result<(), GitError> {
        let out = self.cmd("version").run()?;
        let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        let number = text.strip_prefix("git version ").unwrap_or(&text);
        let mut parts = number.split('.').map_while(|part| part.parse::<u32>().ok());
        match (parts.next(), parts.next()) {
            (Some(major), Some(minor)) if (major, minor) >= VERSION_MIN => Ok(()),
            _ => Err(GitError::TooOld {
                found: number.to_owned(),
            }),
        }
    }

    #[must_use]
    pub fn cmd(&self, verb: &'static str) -> Cmd<'_> {
        Cmd {
            git: self,
            verb,
            settings: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            dir: None,
            own_home: None,
            stdin: Input::Nothing,
            stdout: None,
            stdout_max: STDOUT_MAX_BYTES,
            cut: false,
            timeout: TIMEOUT,
            file_bytes: 0,
        }
    }
}

#[derive(Debug)]
enum Input {
    Nothing,
    Bytes(Vec<u8>),
    File(File),
}

/// What git printed and how it ended.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    /// The output was longer than the limit and `cut` allowed that.
    pub cut: bool,
    stderr: Vec<u8>,
}

/// One git command being put together.
#[derive(Debug)]
pub struct Cmd<'a> {
    git: &'a Git,
    verb: &'static str,
    settings: Vec<String>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
    own_home: Option<PathBuf>,
    stdin: Input,
    stdout: Option<File>,
    stdout_max: usize,
    cut: bool,
    timeout: Duration,
    file_bytes: u64,
}

impl Cmd<'_> {
    /// Works in this git directory; nothing is searched for.
    #[must_use]
    pub fn git_dir(mut self, dir: &Path) -> Self {
        self.env.push(("GIT_DIR".into(), dir.into()));
        self.dir.get_or_insert_with(|| dir.to_owned());
        self
    }

    #[must_use]
    pub fn work_tree(mut self, dir: &Path) -> Self {
        self.env.push(("GIT_WORK_TREE".into(), dir.into()));
        self.dir = Some(dir.to_owned());
        self
    }

    #[must_use]
    pub fn index(self, file: &Path) -> Self {
        self.env("GIT_INDEX_FILE", file)
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().into()));
        self
    }

    /// Starts in this directory and lets git find the repository: for a person's own one only.
    #[must_use]
    pub fn current_dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.to_owned());
        self
    }

    /// Reads the configuration of the person whose home this is, too: for `config` alone, which
    /// runs nothing.
    #[must_use]
    pub fn own_config(mut self, home: &Path) -> Self {
        self.own_home = Some(home.to_owned());
        self
    }

    #[must_use]
    pub fn set(mut self, setting: &str) -> Self {
        self.settings.push(setting.to_owned());
        self
    }

    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.args
            .extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    #[must_use]
    pub fn stdin_bytes(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Input::Bytes(bytes.into());
        self
    }

    #[must_use]
    pub fn stdin_file(mut self, file: File) -> Self {
        self.stdin = Input::File(file);
        self
    }

    #[must_use]
    pub fn stdout_file(mut self, file: File) -> Self {
        self.stdout = Some(file);
        self
    }

    #[must_use]
    pub fn limit(mut self, bytes: usize) -> Self {
        self.stdout_max = bytes;
        self
    }

    /// Output beyond the limit is cut off and said so, instead of being an error.
    #[must_use]
    pub fn cut(mut self) -> Self {
        self.cut = true;
        self
    }

    #[must_use]
    pub fn timeout(mut self, time: Duration) -> Self {
        self.timeout = time;
        self
    }

    /// The largest file that it and its helpers may write, in bytes; 0 means no limit. More is
    /// [`GitError::FileTooLarge`].
    #[must_use]
    pub fn file_bytes(mut self, most: u64) -> Self {
        self.file_bytes = most;
        self
    }

    #[must_use]
    pub fn slow(self) -> Self {
        self.timeout(SLOW_TIMEOUT)
    }

    /// Everything after the program's name.
    #[must_use]
    pub fn argv(&self) -> Vec<OsString> {
        let mut argv = fence();
        for setting in &self.settings {
            argv.extend([OsString::from("-c"), setting.into()]);
        }
        argv.push(self.verb.into());
        argv.extend(self.args.iter().cloned());
        argv
    }

    /// Runs it; an exit other than 0 is an error.
    pub fn run(self) -> Result<Output, GitError> {
        let verb = self.verb;
        let output = self.output()?;
        if output.status.success() || output.cut {
            Ok(output)
        } else {
            Err(output.into_error(verb))
        }
    }

    /// Runs it for its answer: yes (0), no (1), or an error.
    pub fn ask(self) -> Result<bool, GitError> {
        let verb = self.verb;
        let output = self.output()?;
        match output.status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => Err(output.into_error(verb)),
        }
    }

    /// Runs it and reads one object name from what it prints.
    pub fn id(self) -> Result<CommitId, GitError> {
        let verb = self.verb;
        let output = self.run()?;
        let text = String::from_utf8_lossy(&output.stdout);
        CommitId::parse(text.trim()).map_err(|_| GitError::Unclear {
            verb,
            what: format!(
                "{:?} is not an object name",
                text.chars().take(80).collect::<String>()
            ),
        })
    }

    /// Runs it to the end, whatever its exit.
    pub fn output(self) -> Result<Output, GitError> {
        let verb = self.verb;
        let io = |what| move |source| GitError::Io { verb, what, source };
        let mut command = self.command();
        let bytes = match self.stdin {
            Input::Nothing => {
                command.stdin(Stdio::null());
                None
            }
            Input::Bytes(bytes) => {
                command.stdin(Stdio::piped());
                Some(bytes)
            }
            Input::File(file) => {
                command.stdin(file);
                None
            }
        };
        match self.stdout {
            Some(file) => command.stdout(file),
            None => command.stdout(Stdio::piped()),
        };
        command.stderr(Stdio::piped());
        let deadline = Instant::now() + self.timeout;
        let mut child = command.spawn().map_err(|source| GitError::Start {
            program: self.git.program.clone(),
            source,
        })?;
        drop(command);
        if let Err(source) = limit_files(&child, self.file_bytes) {
            kill(&mut child);
            child.wait().map_err(io("wait"))?;
            return Err(io("limit the files")(source));
        }
        let (tell, hear) = mpsc::channel();
        let mut waiting = 0;
        if let (Some(mut pipe), Some(bytes)) = (child.stdin.take(), bytes) {
            // A git that stops reading early says why on stderr; the broken pipe adds nothing.
            thread::spawn(move || pipe.write_all(&bytes).ok());
        }
        if let Some(pipe) = child.stdout.take() {
            let (tell, max) = (tell.clone(), self.stdout_max);
            thread::spawn(move || tell.send(Part::Out(read_to(pipe, max))).ok());
            waiting += 1;
        }
        if let Some(pipe) = child.stderr.take() {
            thread::spawn(move || tell.send(Part::Err(read_tail(pipe))).ok());
            waiting += 1;
        }
        let mut stdout = Vec::new();
        let mut stderr = Vec::new();
        let mut over = false;
        while waiting > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            match hear.recv_timeout(left) {
                Ok(Part::Out(read)) => {
                    (stdout, over) = read.map_err(io("read the output"))?;
                    if over {
                        kill(&mut child);
                    }
                }
                Ok(Part::Err(read)) => stderr = read,
                Err(_) => {
                    kill(&mut child);
                    child.wait().map_err(io("wait"))?;
                    return Err(GitError::TimedOut {
                        verb,
                        after: self.timeout,
                    });
                }
            }
            waiting -= 1;
        }
        let status = wait(&mut child, deadline).map_err(io("wait"))?;
        let Some(status) = status else {
            return Err(GitError::TimedOut {
                verb,
                after: self.timeout,
            });
        };
        if self.file_bytes > 0 && !status.success() && says_too_large(&stderr) {
            return Err(GitError::FileTooLarge {
                verb,
                limit: self.file_bytes,
            });
        }
        if over && !self.cut {
            return Err(GitError::TooMuch {
                verb,
                limit: self.stdout_max,
            });
        }
        Ok(Output {
            status,
            stdout,
            cut: over,
            stderr,
        })
    }

    fn command(&self) -> Command {
        let protocols = match REMOTE_VERBS.contains(&self.verb) {
            true => self.git.protocols.as_str(),
            false => "",
        };
        let mut command = Command::new(&self.git.program);
        command
            .args(self.argv())
            .env_clear()
            .envs(ENVIRONMENT.iter().copied())
            .env("PATH", &self.git.path_env)
            .env("HOME", &self.git.home)
            .env("GIT_CONFIG_GLOBAL", self.git.home.join("gitconfig"))
            .env("GIT_ALLOW_PROTOCOL", protocols)
            .envs(self.git.extra_env.iter().map(|(k, v)| (k, v)))
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .current_dir(self.dir.as_ref().unwrap_or(&self.git.home))
            // A group of its own, so that the time limit ends git's helpers too.
            .process_group(0);
        if let Some(home) = &self.own_home {
            command.env("HOME", home).env_remove("GIT_CONFIG_GLOBAL");
        }
        command
    }
}

/// The options that come before every verb.
fn fence() -> Vec<OsString> {
    let mut argv: Vec<OsString> = vec!["--no-pager".into(), "--no-replace-objects".into()];
    for setting in SETTINGS {
        argv.extend([OsString::from("-c"), OsString::from(setting)]);
    }
    argv
}

impl Output {
    fn into_error(self, verb: &'static str) -> GitError {
        let stderr = String::from_utf8_lossy(&self.stderr).trim().to_owned();
        GitError::Failed {
            verb,
            status: self.status,
            stderr,
        }
    }
}

enum Part {
    Out(io::Result<(Vec<u8>, bool)>),
    Err(Vec<u8>),
}

fn read_to(pipe: impl Read, max: usize) -> io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    pipe.take(max as u64 + 1).read_to_end(&mut bytes)?;
    let over = bytes.len() > max;
    bytes.truncate(max);
    Ok((bytes, over))
}

/// Keeps the end of stderr, where git says what went wrong, and drains the rest.
fn read_tail(mut pipe: impl Read) -> Vec<u8> {
    let mut tail = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = pipe.read(&mut chunk) {
        tail.extend_from_slice(&chunk[..n]);
        let extra = tail.len().saturating_sub(STDERR_MAX_BYTES);
        tail.drain(..extra);
    }
    tail
}

/// From outside, because a child cannot be told before it runs without unsafe code: it has its first
/// milliseconds without a limit, and whatever writes a pack is started by it after those.
#[cfg(target_os = "linux")]
fn limit_files(child: &Child, most: u64) -> io::Result<()> {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    if most == 0 {
        return Ok(());
    }
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    match prlimit(pid, Resource::Fsize, limit) {
        // It has ended already, and says why itself.
        Ok(_) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn limit_files(_child: &Child, _most: u64) -> io::Result<()> {
    Ok(())
}

/// What git says of a helper that the kernel ended for it, or of the error in its place.
fn says_too_large(stderr: &[u8]) -> bool {
    let text = String::from_utf8_lossy(stderr);
    text.contains("File too large")
        || text.contains(&format!(
            "signal {}",
            rustix::process::Signal::XFSZ.as_raw()
        ))
}

fn kill(child: &mut Child) {
    let group = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    if let Some(group) = group {
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
    }
    child.kill().ok();
}

/// Waits for the exit that follows the end of output; `None` when the deadline passed first.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            kill(child);
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_micros(100));
    }
}

/// What the engine starts as a job in the task's own placement, with the workspace as its
/// directory, to bring the agent's commits out: the bundle is what it prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleJob {
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
}

/// `program` is git's name inside the placement.
#[must_use]
pub fn bundle_job(program: &str, base: &CommitId) -> BundleJob {
    let mut argv = vec![program.to_owned()];
    // Names itself, or a missing .git would have git search the directories above.
    argv.push("--git-dir=.git".to_owned());
    argv.extend(fence().into_iter().filter_map(|arg| arg.into_string().ok()));
    argv.extend(["bundle", "create", "--quiet", "-"].map(str::to_owned));
    argv.extend([format!("{base}..HEAD"), "HEAD".to_owned()]);
    let mut env: Vec<_> = ENVIRONMENT
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    env.push(("GIT_CONFIG_GLOBAL".to_owned(), "/dev/null".to_owned()));
    env.push(("GIT_ALLOW_PROTOCOL".to_owned(), String::new()));
    BundleJob { argv, env }
}

/// One entry of `ls-files -s -z` or `ls-tree -r -z`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub mode: String,
    pub id: CommitId,
    pub path: Vec<u8>,
}

impl Entry {
    #[must_use]
    pub fn is_gitlink(&self) -> bool {
        self.mode == "160000"
    }
}

/// Parses `ls-files -s -z`: `mode id stage TAB path NUL`.
pub fn parse_entries(stdout: &[u8]) -> Result<Vec<Entry>, GitError> {
    let unclear = |record: &[u8]| GitError::Unclear {
        verb: "ls-files",
        what: String::from_utf8_lossy(record).chars().take(80).collect(),
    };
    let mut entries = Vec::new();
    for record in records(stdout) {
        let tab = record
            .iter()
            .position(|b| *b == b'\t')
            .ok_or_else(|| unclear(record))?;
        let head = std::str::from_utf8(&record[..tab]).map_err(|_| unclear(record))?;
        let mut words = head.split(' ');
        let (Some(mode), Some(id)) = (words.next(), words.next()) else {
            return Err(unclear(record));
        };
        if tab + 1 == record.len() {
            return Err(unclear(record));
        }
        entries.push(Entry {
            mode: mode.to_owned(),
            id: CommitId::parse(id)?,
            path: record[tab + 1..].to_vec(),
        });
    }
    Ok(entries)
}

/// One entry of a raw diff. A side that is absent has mode `000000` and an id of zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub old_mode: String,
    pub new_mode: String,
    pub old_id: CommitId,
    pub new_id: CommitId,
    pub status: u8,
    pub path: Vec<u8>,
}

/// Parses `diff-tree --raw -z --no-renames` and `diff-files -z`.
pub fn parse_changes(stdout: &[u8]) -> Result<Vec<Change>, GitError> {
    let mut changes = Vec::new();
    let mut fields = records(stdout);
    while let Some(head) = fields.next() {
        let text = String::from_utf8_lossy(head);
        let words: Vec<&str> = text.trim_start_matches(':').split(' ').collect();
        // A head without its path is a change that would be passed over.
        let (&[old_mode, new_mode, old_id, new_id, status], Some(path)) =
            (words.as_slice(), fields.next())
        else {
            return Err(GitError::Unclear {
                verb: "diff",
                what: text.chars().take(80).collect(),
            });
        };
        changes.push(Change {
            old_mode: old_mode.to_owned(),
            new_mode: new_mode.to_owned(),
            old_id: CommitId::parse(old_id)?,
            new_id: CommitId::parse(new_id)?,
            status: status.bytes().next().unwrap_or(b'?'),
            path: path.to_vec(),
        });
    }
    Ok(changes)
}

/// Lines for `update-index -z --index-info`; `None` removes the path.
#[must_use]
pub fn index_info<'a>(
    lines: impl IntoIterator<Item = (Option<(&'a str, &'a CommitId)>, &'a [u8])>,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (entry, path) in lines {
        match entry {
            Some((mode, id)) => bytes.extend(format!("{mode} {id}\t").bytes()),
            None => bytes.extend(format!("0 {}\t", "0".repeat(40)).bytes()),
        }
        bytes.extend(path);
        bytes.push(0);
    }
    bytes
}

/// The records of NUL-terminated output.
pub fn records(stdout: &[u8]) -> impl Iterator<Item = &[u8]> {
    stdout
        .split(|b| *b == 0)
        .filter(|record| !record.is_empty())
}

/// Reads the answers of `cat-file --batch`, one for each asked name; `None` is missing.
pub fn parse_batch(mut stdout: &[u8]) -> Result<Vec<Option<Vec<u8>>>, GitError> {
    let unclear = || GitError::Unclear {
        verb: "cat-file",
        what: "a cut-off answer".to_owned(),
    };
    let mut blobs = Vec::new();
    while !stdout.is_empty() {
        let end = stdout
            .iter()
            .position(|b| *b == b'\n')
            .ok_or_else(unclear)?;
        let head = String::from_utf8_lossy(&stdout[..end]).into_owned();
        stdout = &stdout[end + 1..];
        if head.ends_with(" missing") {
            blobs.push(None);
            continue;
        }
        let size = head
            .rsplit(' ')
            .next()
            .and_then(|n| n.parse::<usize>().ok());
        let size = size.filter(|n| *n < stdout.len()).ok_or_else(unclear)?;
        let is_blob = head.contains(" blob ");
        blobs.push(is_blob.then(|| stdout[..size].to_vec()));
        stdout = &stdout[size + 1..];
    }
    Ok(blobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_git_or_a_shell_could_misread_are_refused() {
        for good in ["main", "feature/x-1", "refs/heads/main", "ünï", "a.b"] {
            assert!(RefName::branch(good).is_ok(), "{good}");
        }
        let long = "x".repeat(300);
        for bad in [
            "", "-x", "a/-x", "a..b", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b", "a\nb",
            "/a", "a/", "a//b", ".a", "a/.b", "a.lock", "a.lock/b", "a.", "@", "HEAD", "a@{b",
            "\u{7f}", &long,
        ] {
            assert!(RefName::branch(bad).is_err(), "{bad:?}");
        }
        for bad in [
            "HEAD",
            "main",
            "refs/main",
            "refs/heads/",
            "refs//x",
            "/refs/heads/x",
        ] {
            assert!(RefName::full(bad).is_err(), "{bad:?}");
        }
        let id = "0123456789abcdef0123456789abcdef01234567";
        assert!(CommitId::parse(id).is_ok() && CommitId::parse(&"a".repeat(64)).is_ok());
        for bad in ["", "HEAD", "--all", &id[1..], &id.to_uppercase()] {
            assert!(CommitId::parse(bad).is_err(), "{bad}");
        }
    }

    /// A program in git's place.
    fn fake(script: &str) -> (tempfile::TempDir, Git) {
        let temp = tempfile::tempdir().unwrap();
        let program = temp.path().join("git");
        // Installed by another process: a descriptor of ours that a test beside us inherits while
        // it forks would make the kernel call the script busy.
        let text = temp.path().join("text");
        fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
        let mut install = Command::new("install");
        assert!(
            install
                .arg("-m755")
                .args([&text, &program])
                .status()
                .unwrap()
                .success()
        );
        let git = Git::new(
            &program,
            "/usr/bin:/bin".as_ref(),
            &temp.path().join("home"),
        )
        .unwrap();
        (temp, git)
    }

    #[test]
    fn a_hung_git_is_killed_with_its_helpers() {
        let (_temp, git) = fake("sleep 1000 & sleep 1000");
        let start = Instant::now();
        let error = git
            .cmd("fetch")
            .timeout(Duration::from_millis(50))
            .run()
            .unwrap_err();
        assert!(matches!(error, GitError::TimedOut { .. }));
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn output_is_bounded_and_errors_carry_the_end_of_stderr() {
        let (_temp, git) = fake("while :; do echo 0123456789; done");
        let error = git.cmd("log").limit(1000).run().unwrap_err();
        assert!(matches!(error, GitError::TooMuch { limit: 1000, .. }));
        let cut = git.cmd("log").limit(1000).cut().run().unwrap();
        assert_eq!((cut.stdout.len(), cut.cut), (1000, true));
        let (_temp, git) = fake("head -c 100000 /dev/zero | tr '\\0' x >&2; echo boom >&2; exit 3");
        let text = git.cmd("log").run().unwrap_err().to_string();
        assert!(
            text.starts_with("git log failed") && text.ends_with("boom"),
            "{text}"
        );
        assert!(text.len() < STDERR_MAX_BYTES + 100);
    }

    #[test]
    fn the_environment_is_ours_alone() {
        let (temp, git) = fake("env; cat");
        let git = git.env("SSH_AUTH_SOCK".as_ref(), "/s".as_ref());
        let out = git.cmd("fetch").stdin_bytes("from stdin").run().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let home = temp.path().join("home");
        for line in [
            format!("HOME={}", home.display()),
            format!("GIT_CONFIG_GLOBAL={}", home.join("gitconfig").display()),
            "GIT_TERMINAL_PROMPT=0".to_owned(),
            "GIT_ALLOW_PROTOCOL=file:https:ssh".to_owned(),
            "SSH_AUTH_SOCK=/s".to_owned(),
            "from stdin".to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        assert!(!text.contains("CARGO"));
        let out = git.cmd("rev-parse").run().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(text.lines().any(|l| l == "GIT_ALLOW_PROTOCOL="), "{text}");
    }

    #[test]
    fn the_version_is_checked() {
        let (_temp, git) = fake("echo git version 2.47.3");
        git.check_version().unwrap();
        let (_temp, git) = fake("echo 'git version 2.39.5 (Apple Git-154)'");
        assert!(matches!(git.check_version(), Err(GitError::TooOld { .. })));
    }

    #[test]
    fn the_bundle_job_is_fenced_and_names_its_repository() {
        let base = CommitId::parse(&"a".repeat(40)).unwrap();
        let job = bundle_job("git", &base);
        assert_eq!(&job.argv[..3], ["git", "--git-dir=.git", "--no-pager"]);
        assert!(job.argv.contains(&"core.hooksPath=/dev/null".to_owned()));
        let range = format!("{base}..HEAD");
        assert!(
            job.argv
                .ends_with(&["-".to_owned(), range, "HEAD".to_owned()])
        );
    }

    #[test]
    fn odd_output_is_an_error_and_never_a_panic() {
        assert!(parse_entries(b"junk\0").is_err());
        assert!(parse_entries(b"100644 zz 0\ta\0").is_err());
        assert!(parse_changes(b":1 2\0a\0").is_err());
        // These two were found by the fuzz targets `git-entries` and `git-changes`.
        let id = "a".repeat(40);
        assert!(parse_entries(format!("100644 {id} 0\t\0").as_bytes()).is_err());
        let whole = format!(":100644 100644 {id} {id} M\0a\0");
        assert_eq!(parse_changes(whole.as_bytes()).unwrap().len(), 1);
        let cut = format!("{whole}:100644 100644 {id} {id} M\0");
        assert!(parse_changes(cut.as_bytes()).is_err());
        for bad in [
            &b"x"[..],
            b"id blob 10\nabc\n",
            b"id blob\n",
            b"id blob 99999999999999999999\n",
        ] {
            assert!(parse_batch(bad).is_err());
        }
        let two = parse_batch(b"id blob 2\na\n\nx missing\nid tree 0\n\n").unwrap();
        assert_eq!(two, [Some(b"a\n".to_vec()), None, None]);
    }
}
