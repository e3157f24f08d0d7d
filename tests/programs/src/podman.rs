//! A podman that runs here, and an image made of this system's own files: no registry is asked.
//! Must not touch the person's own containers: its store lies in a folder of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use dispatch_engine::containers::{self, Runtimes};
use rustix::fs::{FlockOperation, flock};

pub const IMAGE: &str = "localhost/dispatch-test:3";
/// The same without what our programs need, so that no warden runs in it.
pub const BARE_IMAGE: &str = "localhost/dispatch-bare:3";
const PROGRAMS: &[&str] = &[
    "sh", "bash", "env", "test", "cat", "ls", "sleep", "mkdir", "rm", "grep", "perl", "id", "stat",
    "true", "git", "touch",
];
/// What programs that are brought along are linked with; beside libc.
const LIBRARIES: &[&str] = &["libpthread.so.0", "libdl.so.2", "librt.so.1", "libm.so.6"];
const DIRS: &[&str] = &[
    "usr/bin",
    "usr/lib",
    "usr/lib64",
    "tmp",
    "proc",
    "dev",
    "sys",
    "run",
    "etc",
    "var/tmp",
    "root",
];
const LINKS: &[(&str, &str)] = &[
    ("usr/bin", "bin"),
    ("usr/bin", "sbin"),
    ("usr/lib", "lib"),
    ("usr/lib64", "lib64"),
];

#[derive(Clone, Debug)]
pub struct Podman {
    pub program: PathBuf,
    pub env: BTreeMap<String, String>,
}

impl Podman {
    /// `Err` says what is missing here. `place` is kept: the next call finds all of it made.
    ///
    /// # Errors
    /// In words for a person.
    pub fn find(place: &Path) -> Result<Self, String> {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut found = std::env::split_paths(&path).map(|dir| dir.join("podman"));
        let program = found.find(|file| file.is_file());
        let program = program.ok_or(
            "podman is not installed (on Debian or Ubuntu: apt-get install podman runc catatonit)",
        )?;
        fs::create_dir_all(place).map_err(|e| format!("make {}: {e}", place.display()))?;
        let lock = File::create(place.join("lock")).map_err(|e| e.to_string())?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| e.to_string())?;
        let mut why = String::new();
        // As the machine has it; then as a machine without systemd needs it.
        for runtime in [None, Some("runc")] {
            let podman = Self::with(place, &program, &path, runtime)?;
            match podman.make_images(place).and_then(|()| podman.works()) {
                Ok(()) => return Ok(podman),
                Err(error) => why.push_str(&format!(
                    "; with {}: {error}",
                    runtime.unwrap_or("its own runtime")
                )),
            }
        }
        Err(format!("podman starts no container here{why}"))
    }

    fn with(
        place: &Path,
        program: &Path,
        path: &str,
        runtime: Option<&str>,
    ) -> Result<Self, String> {
        let write = |name: &str, text: String| {
            let file = place.join(name);
            let written = fs::write(&file, text).map(|()| file.display().to_string());
            written.map_err(|e| format!("write {}: {e}", file.display()))
        };
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{0}/store\"\nrunroot = \"{0}/run\"\n",
            place.display()
        );
        let mut env = BTreeMap::from([
            ("PATH".to_owned(), path.to_owned()),
            (
                "CONTAINERS_STORAGE_CONF".to_owned(),
                write("storage.conf", storage)?,
            ),
        ]);
        for name in ["HOME", "XDG_RUNTIME_DIR"] {
            if let Ok(value) = std::env::var(name) {
                env.insert(name.to_owned(), value);
            }
        }
        if let Some(runtime) = runtime {
            let text = format!("[engine]\nruntime = \"{runtime}\"\n");
            env.insert("CONTAINERS_CONF".into(), write("containers.conf", text)?);
        }
        Ok(Self {
            program: program.to_owned(),
            env,
        })
    }

    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).env_clear().envs(&self.env);
        command.stdin(Stdio::null());
        command
    }

    /// Its standard output, or the last line of the other one.
    ///
    /// # Errors
    /// When it fails.
    pub fn call(&self, args: &[&str]) -> Result<String, String> {
        let output = self.command(args).output().map_err(|e| e.to_string())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(why.lines().last().unwrap_or("no reason given").to_owned())
    }

    /// The host's own address on the bridge that containers are on, once a container was.
    ///
    /// # Errors
    /// Where there is no bridge on this host: an engine without root has it elsewhere.
    pub fn bridge(&self) -> Result<std::net::IpAddr, String> {
        let limits = Self::ulimits();
        let mut args = vec!["run", "--rm", "--log-driver=none"];
        args.extend(limits.iter().map(String::as_str));
        args.extend([IMAGE, "true"]);
        self.call(&args)?;
        let format = "{{range .Subnets}}{{.Gateway}} {{end}}";
        let told = self.call(&["network", "inspect", "podman", "--format", format])?;
        let first = told.split_whitespace().next().unwrap_or_default();
        let address = first
            .parse()
            .map_err(|_| format!("no gateway in {told:?}"))?;
        let bound = std::net::TcpListener::bind((address, 0));
        bound.map_err(|error| format!("listen on the bridge at {address}: {error}"))?;
        Ok(address)
    }

    #[must_use]
    pub fn runtimes(&self) -> Runtimes {
        Runtimes {
            podman: Some(self.program.clone()),
            env: self.env.clone(),
            ..Runtimes::default()
        }
    }

    /// The options without which it starts nothing where a process may not raise its own limits.
    #[must_use]
    pub fn ulimits() -> Vec<String> {
        let files = containers::own_open_files_max();
        let mut words = vec![format!("--ulimit=nofile={files}:{files}")];
        if let Some(most) = containers::own_processes_max() {
            words.push(format!("--ulimit=nproc={most}:{most}"));
        }
        words
    }

    fn works(&self) -> Result<(), String> {
        let limits = Self::ulimits();
        let mut args = vec!["run", "--rm", "--log-driver=none", "--network=none"];
        args.extend(limits.iter().map(String::as_str));
        args.extend([IMAGE, "true"]);
        self.call(&args).map(drop)
    }

    fn make_images(&self, place: &Path) -> Result<(), String> {
        for (name, ours) in [(IMAGE, true), (BARE_IMAGE, false)] {
            if self.call(&["image", "inspect", name]).is_err() {
                let root = place.join("root");
                let made = self.make_image(name, &root, ours);
                fs::remove_dir_all(&root).map_err(|e| format!("remove {}: {e}", root.display()))?;
                made?;
            }
        }
        Ok(())
    }

    fn make_image(&self, name: &str, root: &Path, ours: bool) -> Result<(), String> {
        fill(root, ours).map_err(|e| format!("make an image of this system's files: {e}"))?;
        let tar = root.with_extension("tar");
        let packed = Command::new("tar")
            .arg("-C")
            .arg(root)
            .arg("-cf")
            .arg(&tar)
            .arg(".")
            .status();
        if !packed.is_ok_and(|status| status.success()) {
            return Err("tar failed".into());
        }
        let imported = self.call(&["import", "--quiet", &tar.to_string_lossy(), name]);
        fs::remove_file(&tar).map_err(|e| e.to_string())?;
        imported.map(drop)
    }
}

fn fill(root: &Path, ours: bool) -> std::io::Result<()> {
    for dir in DIRS {
        fs::create_dir_all(root.join(dir))?;
    }
    for (target, link) in LINKS {
        symlink(target, root.join(link))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut libraries = BTreeSet::new();
    for name in PROGRAMS {
        let found = std::env::split_paths(&path)
            .map(|dir| dir.join(name))
            .find(|file| file.is_file());
        let Some(found) = found else {
            return Err(std::io::Error::other(format!("{name} is not on PATH")));
        };
        fs::copy(&found, root.join("usr/bin").join(name))?;
        libraries.extend(needed(&found)?);
    }
    if ours {
        libraries.extend(needed(&std::env::current_exe()?)?);
        let libc = libraries.iter().find(|path| path.ends_with("libc.so.6"));
        let beside = |name: &&str| Some(libc?.with_file_name(name));
        let more: Vec<PathBuf> = LIBRARIES.iter().filter_map(beside).collect();
        libraries.extend(more.into_iter().filter(|path| path.exists()));
    }
    for library in libraries {
        let below = library.strip_prefix("/").unwrap_or(&library);
        // Where /lib is a link into /usr, it is one in the image, too.
        let to = root.join(below);
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::copy(&library, to)?;
    }
    Ok(())
}

/// The shared libraries of a program, and what loads them.
fn needed(program: &Path) -> std::io::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let path = |line: &str| {
        let word = line.split_whitespace().find(|word| word.starts_with('/'))?;
        Some(PathBuf::from(word))
    };
    Ok(text.lines().filter_map(path).collect())
}
