//! What is where on this host, for `core::cage`: the system's directories, what of them is not for
//! everybody, the install tree of a program, whether bubblewrap works, and a copy of ourselves for
//! the warden to run from.
//! Must not decide what is shown: it finds facts, the cage turns them into mounts.

use std::{
    collections::BTreeMap,
    fs, io,
    io::{Read, Write as _},
    os::{
        fd::AsFd as _,
        unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use dispatch_core::{
    cage::{self, Hidden, Relay, View},
    cargo_config,
    container::{self, Container, Wanted},
    job::{Inside, Invocation, JobId},
    task::Network,
};

use crate::{
    containers::{Containers, Runtimes},
    files,
    sites::local::Keeper,
};

/// Apple's, where it has been since there is macOS.
const SEATBELT: &str = "/usr/bin/sandbox-exec";
/// Whatever of these a system has; a name that is not here is not visible in a cage.
#[cfg(target_os = "macos")]
const SYSTEM: [&str; 11] = [
    "/usr",
    "/bin",
    "/sbin",
    "/System",
    "/Library",
    "/etc",
    "/private/etc",
    "/private/var/db/timezone",
    "/private/var/select",
    "/opt",
    "/nix",
];
#[cfg(not(target_os = "macos"))]
const SYSTEM: [&str; 12] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc",
    "/opt",
    "/nix",
    "/gnu",
    "/sys/devices/system/cpu",
];
/// Where private keys and passwords of the system lie among public files.
#[cfg(target_os = "macos")]
const MIXED: &str = "/private/etc";
#[cfg(not(target_os = "macos"))]
const MIXED: &str = "/etc";
const MIXED_ENTRIES_MAX: usize = 20_000;
/// As the kernel's error is worded without a locale, by us and by bubblewrap.
const BUSY: &str = "Text file busy";
const BUSY_TRIES_MAX: u32 = 200;
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// Links and `#!` lines from a program's name to what runs.
const HOPS_MAX: usize = 8;
const SHEBANG_BYTES_MAX: u64 = 512;
const DEVICES: [&str; 8] = [
    "/dev/dri",
    "/dev/kfd",
    "/dev/nvidia0",
    "/dev/nvidia1",
    "/dev/nvidiactl",
    "/dev/nvidia-uvm",
    "/dev/nvidia-uvm-tools",
    "/dev/nvidia-modeset",
];

/// The variable of cargo's own directory.
pub(crate) const CARGO: &str = "CARGO_HOME";

/// What a job needs to see and to write.
#[derive(Debug)]
pub struct Needs<'a> {
    /// Programs beside the one that is started: scripts that an interpreter is given.
    pub programs: Vec<PathBuf>,
    /// Read-only: the mirror's objects, the agent's own list.
    pub read: Vec<PathBuf>,
    pub write: Vec<PathBuf>,
    /// Written by other jobs, too.
    pub shared: Vec<PathBuf>,
    /// Variables of the job whose directories are toolchains.
    pub toolchains: &'a [String],
    pub gpu: bool,
    /// Ports of its own loopback; only where its network is its own.
    pub relays: Vec<Relay>,
    /// Directories with sockets of ours that it connects to itself.
    pub doors: Vec<PathBuf>,
}

/// The facts that are the same for every job of an engine.
#[derive(Debug)]
pub struct Fences {
    data: PathBuf,
    keeper: Keeper,
    bwrap: Option<PathBuf>,
    containers: Containers,
    host: OnceLock<Result<Host, String>>,
}

#[derive(Debug)]
struct Host {
    bwrap: Option<PathBuf>,
    /// Why there is none.
    refused: String,
    warden: Vec<String>,
    warden_file: PathBuf,
    links: Vec<(PathBuf, PathBuf)>,
    system: Vec<PathBuf>,
    /// Looked through for every job: what was hidden when the engine began may be gone by now, and
    /// then nothing can be mounted over it; and a key that came since must not be shown.
    mixed: PathBuf,
    resolver: Option<PathBuf>,
}

impl Fences {
    #[must_use]
    pub fn new(data: PathBuf, keeper: Keeper, bwrap: Option<PathBuf>) -> Self {
        Self {
            containers: Containers::new(&data, Runtimes::default()),
            data,
            keeper,
            bwrap,
            host: OnceLock::new(),
        }
    }

    /// The same with container engines.
    #[must_use]
    pub fn with(mut self, runtimes: Runtimes) -> Self {
        self.containers = Containers::new(&self.data, runtimes);
        self
    }

    #[must_use]
    pub fn containers(&self) -> &Containers {
        &self.containers
    }

    /// Finds out what a job in this container will need. Blocks, for minutes when the image has to
    /// be fetched first; then [`Fences::contain`] is quick.
    ///
    /// # Errors
    /// In words for a person: no engine answers, no such image, or it starts no container.
    pub fn prepare(&self, container: &Container) -> Result<(), String> {
        self.containers
            .prepare(container, &self.host()?.warden_file)
    }

    /// `inner` in a container.
    ///
    /// # Errors
    /// In words for a person: what could not be found out, or what the engine cannot do.
    pub fn contain(
        &self,
        inner: Invocation,
        job: &JobId,
        needs: Needs<'_>,
        container: &Container,
        wanted: &Wanted,
    ) -> Result<Invocation, String> {
        let warden = &self.host()?.warden_file;
        let viewed = self.containers.view(inner, job, needs, container, warden);
        let (inner, view) = viewed?;
        container::wrap(inner, job, &view, wanted).map_err(|refused| refused.to_string())
    }

    /// `inner` in a cage of this host.
    ///
    /// # Errors
    /// In words for a person: what could not be found out or laid down.
    pub fn cage(
        &self,
        inner: Invocation,
        needs: Needs<'_>,
        network: &Network,
        strict: bool,
    ) -> Result<Invocation, String> {
        let host = self.host()?;
        let held = matches!(network, Network::Allow(_)) || !needs.relays.is_empty();
        if held && host.bwrap.is_none() {
            return Err(format!(
                "a list of allowed hosts, or a broker in a network of its own, needs bubblewrap, \
                 which cannot be used here: {}; `dispatch doctor` tells more",
                host.refused
            ));
        }
        // Whoever may connect to one socket may connect to all of them where no mounts hide the rest:
        // a person's among them, whose word is ours to obey.
        let bare = host.bwrap.is_none() && !cfg!(target_os = "macos");
        if bare && !needs.doors.is_empty() {
            return Err(format!(
                "a grant needs bubblewrap around the agent, which cannot be used here: {}; \
                 `dispatch doctor` tells more",
                host.refused
            ));
        }
        let view = host.view(&inner, needs)?;
        Ok(cage::wrap(inner, &view, network, strict))
    }

    /// Whether a cage can show a job one socket and no other.
    #[must_use]
    pub fn hold_doors(&self) -> bool {
        let bwrap = self.host().is_ok_and(|host| host.bwrap.is_some());
        bwrap || cfg!(target_os = "macos")
    }

    /// Our own program, where every job can see it.
    ///
    /// # Errors
    /// In words for a person: what could not be laid down.
    pub fn program(&self) -> Result<&Path, String> {
        Ok(&self.host()?.warden_file)
    }

    /// The layers that a cage has on this machine, tried out; and why bubblewrap is not among them.
    ///
    /// # Errors
    /// When there would be no fence at all.
    pub fn layers(&self) -> Result<(Vec<String>, Option<String>), String> {
        let host = self.host()?;
        let refused = match &self.bwrap {
            None if cfg!(target_os = "macos") => None,
            None => Some("bubblewrap is not installed".to_owned()),
            Some(bwrap) => host.try_out(Some(bwrap)).err(),
        };
        Ok((host.try_out(host.bwrap.as_deref())?, refused))
    }

    fn host(&self) -> Result<&Host, String> {
        let found = self.host.get_or_init(|| self.find_out());
        found.as_ref().map_err(Clone::clone)
    }

    fn find_out(&self) -> Result<Host, String> {
        let warden_file = self
            .lay_down_warden()
            .map_err(|e| format!("copy the warden into {}: {e}", self.data.display()))?;
        let (mut links, mut system) = (Vec::new(), Vec::new());
        for path in SYSTEM.map(PathBuf::from) {
            match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_symlink() => {
                    let target = fs::read_link(&path);
                    links.push((
                        path.clone(),
                        target.map_err(|e| format!("read the link {}: {e}", path.display()))?,
                    ));
                }
                Ok(_) => system.push(path),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(format!("look at {}: {error}", path.display())),
            }
        }
        let data = fs::canonicalize(&self.data)
            .map_err(|e| format!("look at {}: {e}", self.data.display()))?;
        let system = beside(&system, &data);
        let resolver = fs::canonicalize("/etc/resolv.conf").ok();
        let mut host = Host {
            bwrap: None,
            refused: "it is not installed".into(),
            warden: vec![utf8(&warden_file)?, "warden".into()],
            warden_file,
            links,
            resolver: resolver.filter(|path| !visible(&system, path)),
            system,
            mixed: MIXED.into(),
        };
        if let Some(bwrap) = &self.bwrap {
            // What is hidden may go while it is being mounted over: once more before that counts.
            let tried = host.try_out(Some(bwrap));
            match tried.or_else(|_| host.try_out(Some(bwrap))) {
                Ok(_) => host.bwrap = Some(bwrap.clone()),
                Err(why) => host.refused = why,
            }
        }
        if host.bwrap.is_none() {
            // Only to wait for a warden that can be run; what it could lock is asked where it counts.
            drop(host.try_out(None));
        }
        Ok(host)
    }

    /// A copy that an upgrade of the program on disk leaves alone, named by what it is a copy of.
    fn lay_down_warden(&self) -> io::Result<PathBuf> {
        let dir = self.data.join("bin");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&dir)?;
        let source = self.keeper.path();
        let meta = fs::metadata(source)?;
        let stamp = format!("{}-{}.{}", meta.len(), meta.mtime(), meta.mtime_nsec());
        let dest = dir.join(format!("warden-{stamp}"));
        if dest.exists() {
            return Ok(dest);
        }
        let making = dir.join(files::unique("making-"));
        fs::copy(source, &making)?;
        fs::set_permissions(&making, fs::Permissions::from_mode(0o555))?;
        fs::rename(&making, &dest)?;
        Ok(dest)
    }
}

impl Host {
    fn view(&self, inner: &Invocation, needs: Needs<'_>) -> Result<View, String> {
        let mut links = self.links.clone();
        let mut read = needs.read;
        read.extend(self.resolver.iter().cloned());
        read.push(self.warden_file.clone());
        for name in needs.toolchains {
            let path = inner.env.get(name).map(PathBuf::from);
            read.extend(path.filter(|path| path.is_absolute()));
        }
        let started = inner.argv.first().map(PathBuf::from);
        for program in started.iter().chain(&needs.programs) {
            self.install_tree(program, &inner.env, &mut read, &mut links);
        }
        read.retain(|path| !visible(&self.system, path) && path.exists());
        read.sort();
        read.dedup();
        for path in read.iter().chain(&needs.write).chain(&needs.shared) {
            utf8(path)?;
        }
        let hidden = not_for_everybody(&self.mixed);
        let mut parts = Vec::new();
        for dir in &self.system {
            without(dir, &hidden, &mut parts);
        }
        let devices = if needs.gpu { &DEVICES[..] } else { &[] };
        let devices = devices.iter().map(PathBuf::from).filter(|d| d.exists());
        let seatbelt = cfg!(target_os = "macos").then(|| PathBuf::from(SEATBELT));
        Ok(View {
            bwrap: self.bwrap.clone(),
            seatbelt: seatbelt.filter(|program| program.exists()),
            warden: self.warden.clone(),
            links,
            system: self.system.clone(),
            hidden,
            parts,
            read,
            write: needs.write,
            shared: needs.shared,
            devices: devices.collect(),
            relays: needs.relays,
            doors: needs.doors,
        })
    }

    /// What a program needs of its own: every link on the way to it, the package it lies in, and
    /// the same for the interpreter that its first line names.
    fn install_tree(
        &self,
        program: &Path,
        env: &BTreeMap<String, String>,
        read: &mut Vec<PathBuf>,
        links: &mut Vec<(PathBuf, PathBuf)>,
    ) {
        install_tree(&self.system, &self.links, program, env, read, links);
    }

    /// Runs the cage with nothing in it; what the warden in there could lock. The warden may have been
    /// written a moment ago: a program that we started just then holds the open file until its exec,
    /// and the kernel does not run a file that is open for writing.
    fn try_out(&self, bwrap: Option<&Path>) -> Result<Vec<String>, String> {
        let mut tried = self.try_once(bwrap);
        for _ in 0..BUSY_TRIES_MAX {
            if !tried.as_ref().is_err_and(|why| why.contains(BUSY)) {
                break;
            }
            std::thread::sleep(BUSY_PAUSE);
            tried = self.try_once(bwrap);
        }
        tried
    }

    fn try_once(&self, bwrap: Option<&Path>) -> Result<Vec<String>, String> {
        let probe = Invocation {
            argv: vec!["--layers".into()],
            cwd: "/".into(),
            ..Invocation::default()
        };
        let mut view = self.view(
            &probe,
            Needs {
                programs: Vec::new(),
                read: Vec::new(),
                write: Vec::new(),
                shared: Vec::new(),
                toolchains: &[],
                gpu: false,
                relays: Vec::new(),
                doors: Vec::new(),
            },
        )?;
        view.bwrap = bwrap.map(Path::to_owned);
        let wrapped = cage::wrap(probe, &view, &Network::Full, false);
        debug_assert_eq!(wrapped.inside, Inside::Warden);
        let (program, args) = wrapped.argv.split_first().ok_or("the cage has no argv")?;
        let output = Command::new(program)
            .args(args)
            .env_clear()
            .stdin(Stdio::null())
            .output()
            .map_err(|e| format!("run {program}: {e}"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            return Ok(said.lines().map(str::to_owned).collect());
        }
        let why = String::from_utf8_lossy(&output.stderr);
        Err(why.lines().next().unwrap_or("it gave no reason").to_owned())
    }
}

/// What of a person's cargo configuration a job needs to find its crates, into the job's own
/// directory. What is there already stays: an earlier run may have changed it.
///
/// # Errors
/// When a job has left something there that is no directory.
pub(crate) fn hand_over_cargo_config(theirs: &Path, own: &Path) -> io::Result<()> {
    let (Some(home), Some(name)) = (own.parent(), own.file_name()) else {
        return Ok(());
    };
    // Cargo reads the older name first.
    let found = ["config", "config.toml"].map(|name| theirs.join(name));
    let Some(file) = found.iter().find_map(|path| fs::File::open(path).ok()) else {
        return Ok(());
    };
    let mut text = String::new();
    let read = file.take(cargo_config::BYTES_MAX).read_to_string(&mut text);
    // A file that cannot be read as text says nothing to cargo either.
    let Some(allowed) = read.ok().and_then(|_| cargo_config::allowed(&text)) else {
        return Ok(());
    };
    let root = files::open_dir(home)?;
    let path = Path::new(name).join("config.toml");
    match files::create_beneath(root.as_fd(), &path, 0o644) {
        Ok(mut file) => file.write_all(allowed.as_bytes()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// See [`Host::install_tree`]; `system` and `known` are what is there anyway.
pub(crate) fn install_tree(
    system: &[PathBuf],
    known: &[(PathBuf, PathBuf)],
    program: &Path,
    env: &BTreeMap<String, String>,
    read: &mut Vec<PathBuf>,
    links: &mut Vec<(PathBuf, PathBuf)>,
) {
    let mut program = program.to_owned();
    for _ in 0..HOPS_MAX {
        let mut at = program.clone();
        for _ in 0..HOPS_MAX {
            let Ok(target) = fs::read_link(&at) else {
                break;
            };
            let there = known.iter().any(|(link, _)| at.starts_with(link));
            if !there && !visible(system, &at) {
                links.push((at.clone(), target.clone()));
            }
            at = at
                .parent()
                .map_or_else(|| target.clone(), |dir| dir.join(&target));
        }
        let Ok(real) = fs::canonicalize(&program) else {
            return;
        };
        if !visible(system, &real) {
            read.push(package(&real));
        }
        match interpreter(&real, env) {
            Some(next) => program = next,
            None => return,
        }
    }
}

pub(crate) fn utf8(path: &Path) -> Result<String, String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| format!("{} is not UTF-8: a fence cannot show it", path.display()))
}

pub(crate) fn visible(system: &[PathBuf], path: &Path) -> bool {
    system.iter().any(|dir| path.starts_with(dir))
}

/// The system's directories without the one that our data lies in: with the data below `/opt` every
/// job would see the store and the other tasks, and beside the data the engine's socket.
fn beside(system: &[PathBuf], data: &Path) -> Vec<PathBuf> {
    let ours = data.parent().unwrap_or(data);
    let data = [Hidden::Directory(ours.to_owned())];
    let mut shown = Vec::new();
    for dir in system {
        without(dir, &data, &mut shown);
    }
    shown
}

/// The directory that a program cannot do without, or the program alone.
fn package(real: &Path) -> PathBuf {
    let modules = real.ancestors().filter(|dir| dir.ends_with("node_modules"));
    if let Some(outermost) = modules.last() {
        return outermost.to_owned();
    }
    let bin = real.parent().filter(|dir| dir.ends_with("bin"));
    if let Some(prefix) = bin.and_then(Path::parent) {
        // ~/.local has a lib, too, and much else that is nobody's business.
        let own = prefix.join("pyvenv.cfg").exists()
            || (prefix.join("lib").is_dir() && !prefix.ends_with(".local"));
        if own && prefix.components().count() > 3 {
            return prefix.to_owned();
        }
    }
    real.to_owned()
}

/// What the `#!` of a script names, found on the job's PATH when `env` is asked for it.
fn interpreter(script: &Path, env: &BTreeMap<String, String>) -> Option<PathBuf> {
    let mut head = Vec::new();
    let file = fs::File::open(script).ok()?;
    file.take(SHEBANG_BYTES_MAX).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_whitespace();
    let program = Path::new(words.next()?);
    if !program.ends_with("env") {
        return Some(program.to_owned());
    }
    let name = words.find(|word| !word.starts_with('-') && !word.contains('='))?;
    let dirs = env.get("PATH").map_or("", String::as_str).split(':');
    let mut found = dirs.map(|dir| Path::new(dir).join(name));
    found.find(|path| path.is_absolute() && path.is_file())
}

/// What other users of this machine could not read.
fn not_for_everybody(root: &Path) -> Vec<Hidden> {
    let mut hidden = Vec::new();
    let mut left = MIXED_ENTRIES_MAX;
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        // Not to be read, or more than we look through: then nobody in a cage looks either.
        let Ok(entries) = fs::read_dir(&dir) else {
            hidden.push(Hidden::Directory(dir));
            continue;
        };
        if left == 0 {
            hidden.push(Hidden::Directory(dir));
            continue;
        }
        for entry in entries.flatten() {
            left = left.saturating_sub(1);
            let Ok(meta) = entry.metadata() else { continue };
            let path = entry.path();
            match (meta.is_dir(), meta.is_symlink()) {
                (true, _) if meta.mode() & 0o005 == 0o005 => open.push(path),
                (true, _) => hidden.push(Hidden::Directory(path)),
                (false, false) if meta.mode() & 0o004 == 0 => hidden.push(Hidden::File(path)),
                _ => {}
            }
        }
    }
    hidden.sort_by_key(|hidden| match hidden {
        Hidden::File(path) | Hidden::Directory(path) => path.clone(),
    });
    hidden
}

/// `dir` as the largest parts that hold nothing hidden.
fn without(dir: &Path, hidden: &[Hidden], parts: &mut Vec<PathBuf>) {
    let path_of = |hidden: &Hidden| match hidden {
        Hidden::File(path) | Hidden::Directory(path) => path.clone(),
    };
    if hidden.iter().any(|hidden| path_of(hidden) == dir) {
        return;
    }
    if !hidden.iter().any(|hidden| path_of(hidden).starts_with(dir)) {
        parts.push(dir.to_owned());
        return;
    }
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    let mut children: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    children.sort();
    for child in children {
        without(&child, hidden, parts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &Path, mode: u32, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn host(system: &[&str], mixed: &Path) -> Host {
        Host {
            bwrap: None,
            refused: String::new(),
            warden: Vec::new(),
            warden_file: PathBuf::new(),
            links: Vec::new(),
            system: system.iter().map(PathBuf::from).collect(),
            mixed: mixed.to_owned(),
            resolver: None,
        }
    }

    /// An engine lives for weeks; a mount over a file that is gone would end every job of it.
    #[test]
    fn what_is_hidden_is_as_it_is_when_a_job_starts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        file(&root.join("hosts"), 0o644, "");
        file(&root.join("old-key"), 0o600, "");
        let host = host(&[root.to_str().unwrap()], root);
        let view = || {
            let needs = Needs {
                programs: Vec::new(),
                read: Vec::new(),
                write: Vec::new(),
                shared: Vec::new(),
                toolchains: &[],
                gpu: false,
                relays: Vec::new(),
                doors: Vec::new(),
            };
            host.view(&Invocation::default(), needs).unwrap()
        };
        assert_eq!(view().hidden, [Hidden::File(root.join("old-key"))]);
        fs::remove_file(root.join("old-key")).unwrap();
        file(&root.join("new-key"), 0o600, "");
        let now = view();
        assert_eq!(now.hidden, [Hidden::File(root.join("new-key"))]);
        assert_eq!(now.parts, [root.join("hosts")]);
    }

    #[test]
    fn what_is_not_for_everybody_is_hidden_and_the_rest_is_left_whole() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        file(&root.join("hosts"), 0o644, "");
        file(&root.join("shadow"), 0o640, "");
        file(&root.join("ssl/certs/a.pem"), 0o644, "");
        file(&root.join("ssl/private/key"), 0o644, "");
        let private = root.join("ssl/private");
        fs::set_permissions(&private, fs::Permissions::from_mode(0o710)).unwrap();
        let hidden = not_for_everybody(root);
        assert_eq!(
            hidden,
            [
                Hidden::File(root.join("shadow")),
                Hidden::Directory(private)
            ]
        );
        let mut parts = Vec::new();
        without(root, &hidden, &mut parts);
        assert_eq!(parts, [root.join("hosts"), root.join("ssl/certs")]);
    }

    #[test]
    fn our_own_data_in_a_system_directory_is_not_shown_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        file(&root.join("opt/tool/bin/tool"), 0o755, "");
        file(&root.join("opt/dispatch/data/log.sqlite"), 0o644, "");
        file(&root.join("opt/dispatch/run/engine.sock"), 0o600, "");
        file(&root.join("usr/bin/env"), 0o755, "");
        let shown = beside(
            &[root.join("usr"), root.join("opt")],
            &root.join("opt/dispatch/data"),
        );
        assert_eq!(shown, [root.join("usr"), root.join("opt/tool")]);
    }

    #[test]
    fn a_program_brings_its_package_its_links_and_its_interpreter() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let cli = root.join("n/lib/node_modules/cli/bin/cli.js");
        file(&cli, 0o755, "#!/usr/bin/env -S node --x\n");
        file(&root.join("n/bin/node"), 0o755, "");
        let link = root.join("home/.local/bin/cli");
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("../../../n/lib/node_modules/cli/bin/cli.js", &link).unwrap();
        let host = host(&["/usr"], Path::new("/none"));
        let path = format!("relative:{}", root.join("n/bin").display());
        let env = BTreeMap::from([("PATH".to_owned(), path)]);
        let (mut read, mut links) = (Vec::new(), Vec::new());
        host.install_tree(&link, &env, &mut read, &mut links);
        assert_eq!(read, [root.join("n/lib/node_modules"), root.join("n")]);
        assert_eq!(links.len(), 1);
        assert_eq!(links[0].0, link);
    }

    #[test]
    fn a_mirror_is_handed_over_once_and_through_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let (theirs, home) = (dir.path().join("theirs"), dir.path().join("home"));
        fs::create_dir(&home).unwrap();
        let own = home.join(".cargo");
        hand_over_cargo_config(&theirs, &own).unwrap();
        assert!(!own.exists(), "there is nothing to hand over");
        let text = "[registry]\ndefault = \"m\"\ntoken = \"t0ken\"\n";
        file(&theirs.join("config.toml"), 0o600, text);
        file(&theirs.join("credentials.toml"), 0o600, text);
        hand_over_cargo_config(&theirs, &own).unwrap();
        let got = fs::read_to_string(own.join("config.toml")).unwrap();
        assert!(
            got.contains("default = \"m\"") && !got.contains("t0ken"),
            "{got}"
        );
        assert_eq!(fs::read_dir(&own).unwrap().count(), 1);
        fs::write(own.join("config.toml"), "mine").unwrap();
        hand_over_cargo_config(&theirs, &own).unwrap();
        assert_eq!(fs::read_to_string(own.join("config.toml")).unwrap(), "mine");
        fs::remove_dir_all(&own).unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, &own).unwrap();
        hand_over_cargo_config(&theirs, &own).unwrap_err();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn a_program_in_a_shared_bin_comes_alone() {
        let dir = tempfile::tempdir().unwrap();
        let tool = dir.path().join("home/.local/bin/tool");
        file(&tool, 0o755, "");
        fs::create_dir_all(dir.path().join("home/.local/lib")).unwrap();
        assert_eq!(package(&tool), tool);
        let venv = dir.path().join("a/b/venv/bin/aider");
        file(&venv, 0o755, "");
        file(&dir.path().join("a/b/venv/pyvenv.cfg"), 0o644, "");
        assert_eq!(package(&venv), dir.path().join("a/b/venv"));
    }
}
