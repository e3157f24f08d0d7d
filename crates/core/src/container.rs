//! The container: an invocation rewritten to run in an image, by Docker, Podman or Apple's
//! `container`. Pure: what lies where on the host comes in as a [`View`].
//! Must put no secret into an argv, and must not let the image decide about the fence.
//!
//! As in the cage the list is of what is visible: the image, and what is bound into it by name.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{
    cage::{Policy, Relay, Sockets},
    job::{Around, Inside, Invocation, JobId, Stdin, WARDEN_VARIABLE},
    task::Network,
};

/// In memory, each with its limit in bytes; programs that honour TMPDIR use the disk instead.
const TMP_DIRS: [(&str, u64); 3] = [
    ("/tmp", 1 << 30),
    ("/var/tmp", 256 << 20),
    ("/run", 16 << 20),
];
const SHM_BYTES: u64 = 256 << 20;
const DEVICES: [&str; 8] = [
    "null", "zero", "full", "random", "urandom", "tty", "pts", "shm",
];
/// Where the directory with the warden's socket is seen inside, whatever it is called outside.
const SOCKET_DIR: &str = "/run/dispatch";
/// The socket's name in that directory, inside and outside.
pub const SOCKET: &str = "warden";
const IMAGE_BYTES_MAX: usize = 512;
/// From this exit code of a client on, it tells of a signal. Without a warden nobody knows better.
pub const SIGNALLED: i32 = 128;

/// A container engine, by the client we call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    Apple,
    Docker,
    Podman,
}

impl Runtime {
    /// In the order in which `auto` tries them.
    pub const ALL: [Self; 3] = [Self::Apple, Self::Docker, Self::Podman];

    /// The word used in the configuration, in JSON and on the screen.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Apple => "apple",
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }

    /// The client's name on PATH.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Apple => "container",
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }

    /// What to ask it: a client that is installed while its engine is down fails here.
    #[must_use]
    pub fn asks(self) -> &'static [&'static str] {
        match self {
            Self::Apple => &["system", "status"],
            Self::Docker => &["info", "--format", "{{json .SecurityOptions}}"],
            Self::Podman => &["info", "--format", "{{.Host.Security.Rootless}}"],
        }
    }

    /// Whether the answer to [`Runtime::asks`] tells of an engine without root.
    #[must_use]
    pub fn is_rootless(self, answer: &str) -> bool {
        match self {
            Self::Apple => false,
            Self::Docker => answer.contains("rootless"),
            Self::Podman => answer.trim() == "true",
        }
    }

    /// For a person to whom it did not answer.
    #[must_use]
    pub fn how_to_get(self) -> &'static str {
        match self {
            Self::Apple => {
                "on macOS 26 or newer, install github.com/apple/container and run \
                 `container system start`"
            }
            Self::Docker => "install Docker, start its daemon, and see that `docker info` answers",
            Self::Podman => {
                "install it (Debian, Ubuntu: `apt install podman`), and see that `podman info` and \
                 `podman run` work"
            }
        }
    }
}

/// Which container engine is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeAsked {
    /// The first that answers: apple (on macOS only), docker, podman.
    #[default]
    Auto,
    Apple,
    Docker,
    Podman,
}

impl RuntimeAsked {
    /// Those to try, in order. One that was named is never replaced by another.
    #[must_use]
    pub fn candidates(self) -> &'static [Runtime] {
        match self {
            Self::Auto if cfg!(target_os = "macos") => &Runtime::ALL,
            Self::Auto => &[Runtime::Docker, Runtime::Podman],
            Self::Apple => &[Runtime::Apple],
            Self::Docker => &[Runtime::Docker],
            Self::Podman => &[Runtime::Podman],
        }
    }

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Apple => Runtime::Apple.word(),
            Self::Docker => Runtime::Docker.word(),
            Self::Podman => Runtime::Podman.word(),
        }
    }
}

impl From<Runtime> for RuntimeAsked {
    fn from(runtime: Runtime) -> Self {
        match runtime {
            Runtime::Apple => Self::Apple,
            Runtime::Docker => Self::Docker,
            Runtime::Podman => Self::Podman,
        }
    }
}

impl FromStr for RuntimeAsked {
    type Err = BadRuntime;

    fn from_str(text: &str) -> Result<Self, BadRuntime> {
        let all = [Self::Auto, Self::Apple, Self::Docker, Self::Podman];
        let found = all.into_iter().find(|asked| asked.word() == text);
        found.ok_or_else(|| BadRuntime(text.to_owned()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use container runtime {0:?}: there are auto, apple, docker, podman")]
pub struct BadRuntime(String);

/// The name of an image, as a registry or a local store knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Image(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use image {text:?}: {rule}")]
pub struct BadImage {
    text: String,
    rule: &'static str,
}

impl Image {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Named by its content: the same name is the same image tomorrow.
    #[must_use]
    pub fn pinned(&self) -> bool {
        let digest = self
            .0
            .rsplit_once('@')
            .map_or(&*self.0, |(_, digest)| digest);
        let hex = digest.strip_prefix("sha256:");
        hex.is_some_and(|hex| hex.len() == 64 && hex.chars().all(|c| c.is_ascii_hexdigit()))
    }

    /// What to tell a person whose image may be another one tomorrow.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        (!self.pinned()).then(|| {
            format!(
                "image {self} is not pinned by digest, so it may be another one tomorrow; name it \
                 as NAME@sha256:.."
            )
        })
    }
}

impl FromStr for Image {
    type Err = BadImage;

    fn from_str(text: &str) -> Result<Self, BadImage> {
        let rule = if text.is_empty() {
            "it is empty"
        } else if text.len() > IMAGE_BYTES_MAX {
            "it is too long"
        } else if text.starts_with('-') {
            "it begins with a dash, so a client would take it for an option"
        } else if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            "it has a space or a control character in it"
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(BadImage {
            text: text.to_owned(),
            rule,
        })
    }
}

impl TryFrom<String> for Image {
    type Error = BadImage;

    fn try_from(text: String) -> Result<Self, BadImage> {
        text.parse()
    }
}

impl From<Image> for String {
    fn from(image: Image) -> Self {
        image.0
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a placement asks of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    pub image: Image,
    #[serde(default)]
    pub runtime: RuntimeAsked,
}

/// A container engine that has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    pub runtime: Runtime,
    pub program: PathBuf,
    /// The engine runs as a user who is not root.
    pub rootless: bool,
    /// The client's own environment, never the job's.
    pub env: BTreeMap<String, String>,
}

impl Client {
    /// The word of the layer, in the record of what was enforced.
    #[must_use]
    pub fn layer(&self) -> String {
        let word = self.runtime.word();
        match (self.runtime, self.rootless) {
            (Runtime::Apple, _) => format!("{word}(vm)"),
            (_, true) => format!("{word}(rootless)"),
            (_, false) => word.to_owned(),
        }
    }
}

/// Whether a layer of that name is a container's.
#[must_use]
pub fn is_layer(layer: &str) -> bool {
    let word = layer.split('(').next().unwrap_or_default();
    Runtime::ALL.iter().any(|runtime| runtime.word() == word)
}

/// How our warden gets into the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warden {
    /// A file of the host that runs in the image, too.
    pub program: PathBuf,
    /// A directory for this job alone, where its keeper listens.
    pub socket: PathBuf,
}

/// What is where on the host, for one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub client: Client,
    /// What the engine calls the image that was looked at: its id.
    pub image: String,
    /// `None`: the image cannot run it.
    pub warden: Option<Warden>,
    /// The engine has an init of its own to put in front.
    pub init: bool,
    pub user: (u32, u32),
    /// Read-only at the same path.
    pub read: Vec<PathBuf>,
    /// The workspace, the private home, the temporary directory.
    pub write: Vec<PathBuf>,
    /// An account's login: plain files only, and other tasks see them.
    pub shared: Vec<PathBuf>,
    /// Ports of the job's own loopback behind which a socket of ours lies.
    pub relays: Vec<Relay>,
    /// Directories with sockets that it connects to itself, read-only at the same path.
    pub doors: Vec<PathBuf>,
    /// Variables whose values the image knows better than the host, when it has them.
    pub own: Vec<String>,
    /// What a process may have at most on this host.
    pub open_files_max: u64,
    /// Processes of the user; `None`: no limit.
    pub user_processes_max: Option<u64>,
}

/// What the task and its agent ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub network: Network,
    pub strict: bool,
    pub gpu: bool,
    /// A name for the host, for models that are served there.
    pub host_alias: bool,
}

/// Why a container cannot be had as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(
        "the image cannot run our warden (no glibc, or an older one), and without it there is no \
         way to a list of hosts or to a broker; use another image, or a network without them"
    )]
    NoRelay,
    #[error(
        "a grant needs our tools in there, and the image cannot run them (no glibc, or an older \
         one); use another image, another placement, or no grant"
    )]
    NoDoor,
    #[error(
        "Apple's container has no flag for a GPU yet; use docker or podman, or a placement with \
         gpu = false"
    )]
    AppleGpu,
    #[error("Apple's container has no name for its host; set host_alias = false for this agent")]
    AppleHostAlias,
    #[error("the path {0} has a comma or a quote in it, which no container client can be told")]
    Path(PathBuf),
    #[error(
        "the fence would be incomplete: this image cannot run our warden, so Landlock and seccomp \
         are missing; use an image with glibc, or a placement with strict = false"
    )]
    NoWarden,
    #[error("there is no program to start")]
    Nothing,
    #[error(
        "the secret {0} has the name of a variable that the container client needs itself; give it \
         another name"
    )]
    Secret(String),
}

/// The name of a job's container: what the kill and the sweep call it by.
#[must_use]
pub fn name(job: &JobId) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') {
            c
        } else {
            '_'
        }
    };
    format!("dispatch-{}-{}", job.run, job.part)
        .chars()
        .map(plain)
        .collect()
}

/// `inner` in a container. Input, directory and limits stay as they are.
///
/// # Errors
/// What the container engine cannot do.
pub fn wrap(
    inner: Invocation,
    job: &JobId,
    view: &View,
    wanted: &Wanted,
) -> Result<Invocation, Refused> {
    if view.warden.is_none() && wanted.strict {
        return Err(Refused::NoWarden);
    }
    if view.warden.is_none() && !view.relays.is_empty() {
        return Err(Refused::NoRelay);
    }
    if view.warden.is_none() && !view.doors.is_empty() {
        return Err(Refused::NoDoor);
    }
    let mut argv = options(&inner, job, view, wanted)?;
    let around = around(job, view);
    let Some(warden) = &view.warden else {
        let (env, words) = forwarded(&inner, view)?;
        argv.0.extend(words);
        let (program, args) = inner.argv.split_first().ok_or(Refused::Nothing)?;
        // Not behind the entry that the image has for people.
        argv.words(&["--entrypoint", program, &view.image]);
        argv.0.extend(args.iter().cloned());
        return Ok(Invocation {
            argv: argv.0,
            env,
            inside: Inside::Nobody,
            around: Some(around),
            writes: view.write.clone(),
            ..inner
        });
    };
    let policy = policy(view, wanted.strict);
    argv.words(&["--entrypoint"]);
    argv.0.push(text(&warden.program));
    argv.words(&["--env"]);
    argv.0
        .push(format!("{WARDEN_VARIABLE}={SOCKET_DIR}/{SOCKET}"));
    argv.0.push(view.image.clone());
    argv.words(&["warden"]);
    argv.0
        .push(serde_json::to_string(&policy).unwrap_or_default());
    argv.words(&["--"]);
    argv.0.extend(inner.argv.iter().cloned());
    Ok(Invocation {
        argv: argv.0,
        inside: Inside::Socket {
            dir: warden.socket.clone(),
            own: view.own.clone(),
        },
        around: Some(around),
        writes: view.write.clone(),
        ..inner
    })
}

/// Whether the image can run our warden, and what it could lock there: an argv that prints it.
#[must_use]
pub fn probe(
    client: &Client,
    image: &str,
    warden: &Path,
    init: bool,
    user: (u32, u32),
    (open_files_max, user_processes_max): (u64, Option<u64>),
) -> Vec<String> {
    let mut argv = Argv(vec![text(&client.program)]);
    argv.words(&["run", "--rm"]);
    if client.runtime != Runtime::Apple {
        argv.words(&["--pull=never", "--log-driver=none"]);
    }
    if init {
        argv.words(&["--init"]);
    }
    argv.words(&["--network", "none"]);
    argv.fenced(client, user);
    argv.ulimits(open_files_max, user_processes_max);
    argv.bind(warden, warden, true);
    argv.words(&["--entrypoint"]);
    argv.0.push(text(warden));
    argv.0.push(image.to_owned());
    let policy = Policy {
        outer: vec![client.layer()],
        read: vec!["/".into()],
        ..Policy::default()
    };
    argv.words(&["warden"]);
    argv.0
        .push(serde_json::to_string(&policy).unwrap_or_default());
    argv.words(&["--", "--layers"]);
    argv.0
}

/// Mounts and namespaces say what is visible; Landlock says again what of it is writable.
fn policy(view: &View, strict: bool) -> Policy {
    let mut write = view.write.clone();
    write.extend(TMP_DIRS.iter().map(|(dir, _)| PathBuf::from(dir)));
    write.extend(DEVICES.iter().map(|name| Path::new("/dev").join(name)));
    Policy {
        outer: vec![view.client.layer()],
        strict,
        read: vec!["/".into()],
        write,
        shared: view.shared.clone(),
        relays: view.relays.clone(),
        deny: Sockets::None,
    }
}

fn options(inner: &Invocation, job: &JobId, view: &View, wanted: &Wanted) -> Result<Argv, Refused> {
    let apple = view.client.runtime == Runtime::Apple;
    let mut argv = Argv(vec![text(&view.client.program)]);
    argv.words(&["run", "--rm", "--name", &name(job)]);
    argv.words(&["--label", &format!("dispatch.run={}", job.run)]);
    argv.words(&["--label", &format!("dispatch.part={}", job.part)]);
    if apple {
        argv.words(&["--progress", "none"]);
    } else {
        // An engine's own log would be a second copy of the output, with nothing masked in it.
        argv.words(&["--pull=never", "--log-driver=none"]);
        // What an image would start or mount by itself is in no list of ours.
        argv.words(&["--no-healthcheck"]);
        if view.client.runtime == Runtime::Podman {
            argv.words(&["--image-volume=ignore"]);
        }
        if view.init {
            argv.words(&["--init"]);
        }
    }
    if inner.stdin != Stdin::Null {
        argv.words(&["--interactive"]);
    }
    argv.fenced(&view.client, view.user);
    argv.words(&["--workdir", &text(&inner.cwd)]);
    limits(&mut argv, inner, view);
    // A list of hosts is reached through the warden's relays, and nothing else is.
    if wanted.network.is_own() {
        argv.words(&["--network", "none"]);
    }
    devices_and_names(&mut argv, view.client.runtime, wanted)?;
    for (dir, bytes) in TMP_DIRS {
        let options = format!("{dir}:rw,exec,nosuid,nodev,mode=1777,size={bytes}");
        argv.words(&["--tmpfs", if apple { dir } else { &options }]);
    }
    binds(&mut argv, view)?;
    Ok(argv)
}

fn limits(argv: &mut Argv, inner: &Invocation, view: &View) {
    let limits = &inner.limits;
    if limits.memory_bytes > 0 {
        let bytes = limits.memory_bytes.to_string();
        argv.words(&["--memory", &bytes]);
        if view.client.runtime != Runtime::Apple {
            // No swap on top of it.
            argv.words(&["--memory-swap", &bytes]);
        }
    }
    if limits.cpus_max > 0 {
        argv.words(&["--cpus", &limits.cpus_max.to_string()]);
    }
    if view.client.runtime == Runtime::Apple {
        return;
    }
    if limits.processes_max > 0 {
        argv.words(&["--pids-limit", &limits.processes_max.to_string()]);
    }
    argv.words(&["--shm-size", &SHM_BYTES.to_string()]);
    let mut files = view.open_files_max;
    if limits.open_files_max > 0 {
        files = files.min(limits.open_files_max);
    }
    argv.ulimits(files, view.user_processes_max);
}

fn devices_and_names(argv: &mut Argv, runtime: Runtime, wanted: &Wanted) -> Result<(), Refused> {
    match (wanted.gpu, runtime) {
        (false, _) => {}
        (true, Runtime::Docker) => argv.words(&["--gpus=all"]),
        (true, Runtime::Podman) => argv.words(&["--device", "nvidia.com/gpu=all"]),
        (true, Runtime::Apple) => return Err(Refused::AppleGpu),
    }
    match (wanted.host_alias && !wanted.network.is_own(), runtime) {
        // Podman writes `host.containers.internal` into every container by itself, and older ones
        // do not know the word host-gateway.
        (false, _) | (true, Runtime::Podman) => {}
        (true, Runtime::Docker) => {
            argv.words(&["--add-host", "host.docker.internal:host-gateway"]);
            argv.words(&["--add-host", "host.containers.internal:host-gateway"]);
        }
        (true, Runtime::Apple) => return Err(Refused::AppleHostAlias),
    }
    Ok(())
}

fn binds(argv: &mut Argv, view: &View) -> Result<(), Refused> {
    let mut binds: Vec<(&Path, &Path, bool)> = Vec::new();
    binds.extend(view.read.iter().map(|path| (&**path, &**path, true)));
    let written = view.write.iter().chain(&view.shared);
    binds.extend(written.map(|path| (&**path, &**path, false)));
    if let Some(warden) = &view.warden {
        binds.push((&warden.program, &warden.program, true));
        // Connecting is no writing: the agent can put nothing there.
        binds.push((&warden.socket, Path::new(SOCKET_DIR), true));
    }
    let relayed = view.relays.iter().map(|relay| &*relay.directory);
    binds.extend(relayed.map(|path| (path, path, true)));
    binds.extend(view.doors.iter().map(|path| (&**path, &**path, true)));
    // Outer directories first, so that one mount never hides another.
    binds.sort_by_key(|(_, to, _)| to.components().count());
    binds.dedup();
    for (from, to, read_only) in binds {
        if text(from).contains([',', '"', '\'']) {
            return Err(Refused::Path(from.to_owned()));
        }
        argv.bind(from, to, read_only);
    }
    Ok(())
}

/// Without a warden the client's environment carries the values, and its argv only names.
fn forwarded(
    inner: &Invocation,
    view: &View,
) -> Result<(BTreeMap<String, String>, Vec<String>), Refused> {
    let mut env = view.client.env.clone();
    let mut words = Vec::new();
    for (name, value) in &inner.env {
        // The image has its own, and what of the host's is seen in there nobody can add to it.
        if name == "PATH" || view.own.contains(name) {
            continue;
        }
        words.push("--env".to_owned());
        if !view.client.env.contains_key(name) {
            env.insert(name.clone(), value.clone());
            words.push(name.clone());
        } else if inner.secrets.contains(name) {
            return Err(Refused::Secret(name.clone()));
        } else {
            words.push(format!("{name}={value}"));
        }
    }
    Ok((env, words))
}

/// How the keeper, and whoever sweeps after it, ends the container.
fn around(job: &JobId, view: &View) -> Around {
    let client = &view.client;
    let (apple, name) = (client.runtime == Runtime::Apple, name(job));
    let call = |words: &[&str]| {
        let mut argv = Argv(vec![text(&client.program)]);
        argv.words(words);
        argv.0.push(name.clone());
        argv.0
    };
    let mut holds = vec!["memory".to_owned(), "processors".to_owned()];
    if !apple {
        holds.push("processes".into());
    }
    let layers = match view.warden {
        Some(_) => Vec::new(),
        None => vec![format!(
            "{}(no warden, the environment is in its records)",
            client.runtime.word()
        )],
    };
    Around {
        word: client.runtime.word().into(),
        env: client.env.clone(),
        term: call(&["kill", "--signal", "TERM"]),
        kill: call(&["kill", "--signal", "KILL"]),
        remove: if apple {
            call(&["delete", "--force"])
        } else {
            call(&["rm", "--force"])
        },
        layers,
        holds,
        dir: view.warden.as_ref().map(|warden| warden.socket.clone()),
    }
}

struct Argv(Vec<String>);

impl Argv {
    fn words(&mut self, words: &[&str]) {
        self.0.extend(words.iter().map(|word| (*word).to_owned()));
    }

    fn bind(&mut self, from: &Path, to: &Path, read_only: bool) {
        let end = if read_only { ",readonly" } else { "" };
        let mount = format!("type=bind,source={},target={}{end}", text(from), text(to));
        self.words(&["--mount", &mount]);
    }

    /// Container engines ask for more than one without CAP_SYS_RESOURCE may give, and then fail.
    fn ulimits(&mut self, files: u64, processes: Option<u64>) {
        self.words(&["--ulimit", &format!("nofile={files}:{files}")]);
        self.words(&["--ulimit", "core=0:0"]);
        if let Some(most) = processes {
            self.words(&["--ulimit", &format!("nproc={most}:{most}")]);
        }
    }

    /// What every container of ours gets, the probe included.
    fn fenced(&mut self, client: &Client, (user, group): (u32, u32)) {
        let same = format!("{user}:{group}");
        match (client.runtime, client.rootless) {
            (Runtime::Podman, true) => self.words(&["--userns=keep-id", "--user", &same]),
            // In there root is us.
            (Runtime::Docker, true) => self.words(&["--user", "0:0"]),
            _ => self.words(&["--user", &same]),
        }
        if client.runtime == Runtime::Apple {
            return;
        }
        self.words(&["--cap-drop=all", "--security-opt", "no-new-privileges"]);
        // What is bound is the person's own; SELinux's labels of it are not ours to change.
        self.words(&["--security-opt", "label=disable", "--read-only"]);
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::TaskId, job::Part, limits::JobLimits};

    fn job() -> JobId {
        JobId {
            run: crate::id::RunId {
                task: TaskId::from_bits(0x3f),
                n: 1,
            },
            part: Part::Check("go.vet".parse().unwrap()),
        }
    }

    fn inner() -> Invocation {
        Invocation {
            argv: vec!["claude".into(), "it's \"$HOME\"; rm -rf *".into()],
            env: [
                ("KEY".to_owned(), "hunter2".to_owned()),
                ("HOME".to_owned(), "/data/home".to_owned()),
                ("PATH".to_owned(), "/opt/agent/bin".to_owned()),
            ]
            .into(),
            secrets: vec!["KEY".into()],
            cwd: "/data/ws".into(),
            stdin: Stdin::Bytes(vec![1]),
            limits: JobLimits {
                memory_bytes: 7000,
                processes_max: 99,
                open_files_max: 1000,
                cpus_max: 2,
                ..JobLimits::default()
            },
            ..Invocation::default()
        }
    }

    fn view(runtime: Runtime) -> View {
        View {
            client: Client {
                runtime,
                program: format!("/usr/bin/{}", runtime.program()).into(),
                rootless: false,
                env: [("HOME".to_owned(), "/root".to_owned())].into(),
            },
            image: "abc".into(),
            warden: Some(Warden {
                program: "/data/bin/warden".into(),
                socket: "/data/inside/x".into(),
            }),
            init: true,
            user: (1000, 100),
            read: vec!["/opt/agent".into()],
            write: vec!["/data/ws".into()],
            shared: vec!["/data/logins/work".into()],
            relays: Vec::new(),
            doors: Vec::new(),
            own: vec!["GOROOT".into()],
            open_files_max: 5000,
            user_processes_max: Some(300),
        }
    }

    fn has(argv: &[String], words: &[&str]) -> bool {
        argv.windows(words.len()).any(|found| found == words)
    }

    fn wrapped(runtime: Runtime, wanted: &Wanted) -> Invocation {
        wrap(inner(), &job(), &view(runtime), wanted).unwrap()
    }

    #[test]
    fn the_program_comes_through_unquoted_and_no_secret_is_in_the_argv() {
        for runtime in Runtime::ALL {
            let with = wrapped(runtime, &Wanted::default());
            let mut bare = view(runtime);
            bare.warden = None;
            let without = wrap(inner(), &job(), &bare, &Wanted::default()).unwrap();
            assert!(with.argv.ends_with(&inner().argv), "{:?}", with.argv);
            assert!(
                without.argv.ends_with(&inner().argv[1..]),
                "{:?}",
                without.argv
            );
            assert!(has(&without.argv, &["--entrypoint", "claude", "abc"]));
            for got in [&with, &without] {
                let around = got.around.clone().unwrap();
                let words = [&got.argv, &around.kill, &around.remove, &around.term];
                assert!(!format!("{words:?}").contains("hunter2"));
                assert!(!around.env.contains_key("KEY"));
            }
            let at = with.argv.iter().rposition(|word| word == "--").unwrap();
            let policy: Policy = serde_json::from_str(&with.argv[at - 1]).unwrap();
            assert_eq!(policy.read, [PathBuf::from("/")]);
            assert!(policy.write.contains(&"/data/ws".into()));
            assert!(matches!(with.inside, Inside::Socket { .. }));
            // The client carries the value of a name that is its own only in words.
            assert!(has(&without.argv, &["--env", "KEY"]));
            assert!(has(&without.argv, &["--env", "HOME=/data/home"]));
            assert_eq!(without.env["HOME"], "/root");
            assert_eq!(without.env["KEY"], "hunter2");
            assert!(!without.argv.join(" ").contains("PATH"));
        }
    }

    #[test]
    fn privileges_go_and_the_root_is_closed_in_every_case() {
        for runtime in [Runtime::Docker, Runtime::Podman] {
            let argv = wrapped(runtime, &Wanted::default()).argv;
            for word in [
                "--cap-drop=all",
                "--read-only",
                "--rm",
                "--init",
                "--interactive",
            ] {
                assert!(argv.iter().any(|found| found == word), "{word}");
            }
            assert!(has(&argv, &["--security-opt", "no-new-privileges"]));
            assert!(has(&argv, &["--user", "1000:100"]));
            assert!(has(&argv, &["--pids-limit", "99"]));
            assert!(has(&argv, &["--memory", "7000", "--memory-swap", "7000"]));
            assert!(has(&argv, &["--cpus", "2"]));
            assert!(has(&argv, &["--ulimit", "nofile=1000:1000"]));
            assert!(has(&argv, &["--ulimit", "nproc=300:300"]));
            assert!(has(
                &argv,
                &["--name", "dispatch-000000000000003f-1-check.go.vet"]
            ));
            assert!(
                !argv
                    .iter()
                    .any(|word| word.contains("chmod") || word == "--privileged")
            );
        }
        let mut quiet = inner();
        quiet.stdin = Stdin::Null;
        let view = view(Runtime::Docker);
        let argv = wrap(quiet, &job(), &view, &Wanted::default()).unwrap().argv;
        assert!(!argv.iter().any(|word| word == "--interactive"));
    }

    #[test]
    fn only_what_is_named_is_bound_and_only_what_is_written_is_writable() {
        let argv = wrapped(Runtime::Podman, &Wanted::default()).argv;
        let mounts: Vec<&str> = argv
            .iter()
            .zip(&argv[1..])
            .filter_map(|(option, value)| (option == "--mount").then_some(value.as_str()))
            .collect();
        assert_eq!(
            mounts,
            [
                "type=bind,source=/opt/agent,target=/opt/agent,readonly",
                "type=bind,source=/data/ws,target=/data/ws",
                "type=bind,source=/data/inside/x,target=/run/dispatch,readonly",
                "type=bind,source=/data/logins/work,target=/data/logins/work",
                "type=bind,source=/data/bin/warden,target=/data/bin/warden,readonly",
            ]
        );
        let mut odd = view(Runtime::Podman);
        odd.read.push("/a,b".into());
        let refused = wrap(inner(), &job(), &odd, &Wanted::default());
        assert_eq!(refused, Err(Refused::Path("/a,b".into())));
    }

    #[test]
    fn rootless_engines_write_as_us() {
        for (runtime, words) in [
            (
                Runtime::Podman,
                &["--userns=keep-id", "--user", "1000:100"][..],
            ),
            (Runtime::Docker, &["--user", "0:0"][..]),
        ] {
            let mut rootless = view(runtime);
            rootless.client.rootless = true;
            let got = wrap(inner(), &job(), &rootless, &Wanted::default()).unwrap();
            assert!(has(&got.argv, words), "{:?}", got.argv);
            assert_eq!(
                rootless.client.layer(),
                format!("{}(rootless)", runtime.word())
            );
        }
        assert!(Runtime::Docker.is_rootless("[\"name=seccomp\",\"name=rootless\"]"));
        assert!(!Runtime::Docker.is_rootless("[\"name=seccomp,profile=builtin\"]"));
        assert!(Runtime::Podman.is_rootless("true\n") && !Runtime::Podman.is_rootless("false\n"));
    }

    #[test]
    fn networks_gpus_and_names_of_the_host() {
        let all = Wanted {
            gpu: true,
            host_alias: true,
            ..Wanted::default()
        };
        let docker = wrapped(Runtime::Docker, &all).argv;
        assert!(docker.iter().any(|word| word == "--gpus=all"));
        assert!(has(
            &docker,
            &["--add-host", "host.docker.internal:host-gateway"]
        ));
        let podman = wrapped(Runtime::Podman, &all).argv;
        assert!(has(&podman, &["--device", "nvidia.com/gpu=all"]));
        assert!(!podman.iter().any(|word| word == "--add-host"));
        let apple = |wanted| wrap(inner(), &job(), &view(Runtime::Apple), &wanted).unwrap_err();
        assert_eq!(apple(all.clone()), Refused::AppleGpu);
        let alias = Wanted { gpu: false, ..all };
        assert_eq!(apple(alias), Refused::AppleHostAlias);
        let none = Wanted {
            network: Network::None,
            host_alias: true,
            ..Wanted::default()
        };
        for runtime in Runtime::ALL {
            let argv = wrapped(
                runtime,
                &Wanted {
                    host_alias: false,
                    ..none.clone()
                },
            )
            .argv;
            assert!(has(&argv, &["--network", "none"]));
            let full = wrapped(runtime, &Wanted::default()).argv;
            assert!(!full.iter().any(|word| word.starts_with("--network")));
        }
        assert!(
            !wrapped(Runtime::Docker, &none)
                .argv
                .iter()
                .any(|word| word == "--add-host")
        );
    }

    #[test]
    fn strict_takes_no_image_without_our_warden_and_no_secret_shadows_the_client() {
        let mut bare = view(Runtime::Docker);
        bare.warden = None;
        let strict = Wanted {
            strict: true,
            ..Wanted::default()
        };
        assert_eq!(
            wrap(inner(), &job(), &bare, &strict),
            Err(Refused::NoWarden)
        );
        let mut shadow = inner();
        shadow.secrets.push("HOME".into());
        let refused = wrap(shadow, &job(), &bare, &Wanted::default());
        assert_eq!(refused, Err(Refused::Secret("HOME".into())));
    }

    #[test]
    fn images_are_parsed_and_pins_are_digests() {
        for bad in ["", "-v", "a b", "a\nb", "--rm", &"x".repeat(600)] {
            assert!(bad.parse::<Image>().is_err(), "{bad:?}");
        }
        let pinned = format!("debian@sha256:{}", "a1".repeat(32));
        let id = format!("sha256:{}", "a1".repeat(32));
        for (text, is) in [
            ("debian:12", false),
            ("debian@sha256:12", false),
            (pinned.as_str(), true),
            (id.as_str(), true),
        ] {
            let image: Image = text.parse().unwrap();
            assert_eq!(image.pinned(), is, "{text}");
            assert_eq!(image.warning().is_none(), is);
        }
        assert!(serde_json::from_str::<Image>("\"-x\"").is_err());
    }

    #[test]
    fn a_list_of_hosts_is_reached_by_the_wardens_relays_and_by_nothing_else() {
        let list = vec!["a.example".to_owned()];
        let wanted = Wanted {
            network: Network::Allow(list.try_into().unwrap()),
            ..Wanted::default()
        };
        let relay = Relay {
            listen_port: 3128,
            directory: "/data/inside/run".into(),
            socket: "proxy".into(),
        };
        let view = View {
            relays: vec![relay],
            ..view(Runtime::Podman)
        };
        let argv = wrap(inner(), &job(), &view, &wanted).unwrap().argv;
        assert!(has(&argv, &["--network", "none"]));
        assert!(
            argv.iter()
                .any(|word| word.contains("/data/inside/run") && word.contains("ro"))
        );
        assert!(
            argv.iter()
                .any(|word| word.contains("\"listen_port\":3128"))
        );
        let bare = View {
            warden: None,
            ..view
        };
        assert_eq!(wrap(inner(), &job(), &bare, &wanted), Err(Refused::NoRelay));
    }

    #[test]
    fn a_runtime_that_was_named_is_never_another_one() {
        assert_eq!("docker".parse(), Ok(RuntimeAsked::Docker));
        assert!("crio".parse::<RuntimeAsked>().is_err());
        for asked in [
            RuntimeAsked::Apple,
            RuntimeAsked::Docker,
            RuntimeAsked::Podman,
        ] {
            assert_eq!(asked.candidates().len(), 1);
            assert_eq!(RuntimeAsked::from(asked.candidates()[0]), asked);
        }
        let auto = RuntimeAsked::Auto.candidates();
        assert!(auto.ends_with(&[Runtime::Docker, Runtime::Podman]));
        assert!(is_layer("podman(rootless)") && is_layer("docker") && !is_layer("bwrap"));
    }
}
