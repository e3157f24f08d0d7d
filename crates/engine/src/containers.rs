//! Which container engines answer on this host, what they say of an image, and what of the host a
//! job in one needs, for `core::container`.
//! Must not decide what is shown, and must not take a client on PATH for an engine that answers.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dispatch_core::{
    container::{self, Client, Container, Image, Runtime, RuntimeAsked, View, Warden},
    job::{Invocation, JobId},
};
use rustix::process::{Resource, getrlimit};

use crate::{
    fence::{Needs, install_tree, utf8, visible},
    keeper::call,
};

/// What an image has of its own; whatever of a job's needs lies elsewhere is bound into it.
const IMAGE_OWN: [&str; 8] = [
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc",
];
/// Stores whose packages need one another by full path.
const STORES: [&str; 2] = ["/nix", "/gnu"];
const ANSWER: Duration = Duration::from_secs(10);
const INSPECT: Duration = Duration::from_secs(30);
const PULL: Duration = Duration::from_secs(30 * 60);
const PROBE: Duration = Duration::from_secs(60);
/// Open files where we ourselves have no limit.
const OPEN_FILES_MAX: u64 = 1 << 20;

/// Where the clients lie, and the environment that they need: engine and person share those, a job
/// never sees them.
#[derive(Clone, Debug, Default)]
pub struct Runtimes {
    pub apple: Option<PathBuf>,
    pub docker: Option<PathBuf>,
    pub podman: Option<PathBuf>,
    pub env: BTreeMap<String, String>,
}

/// What was found out about an image, once.
#[derive(Clone, Debug)]
struct Known {
    /// Why our warden cannot run in it, if it cannot.
    no_warden: Option<String>,
    init: bool,
}

#[derive(Debug)]
pub struct Containers {
    inside: PathBuf,
    runtimes: Runtimes,
    clients: Mutex<BTreeMap<Runtime, Client>>,
    images: Mutex<BTreeMap<(Runtime, Image), Known>>,
}

/// What was found out is whole whenever it is there.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Containers {
    #[must_use]
    pub fn new(data: &Path, runtimes: Runtimes) -> Self {
        Self {
            inside: data.join("inside"),
            runtimes,
            clients: Mutex::default(),
            images: Mutex::default(),
        }
    }

    /// Asks one engine whether it is there. Blocks for as long as it takes to answer, up to 10 s.
    ///
    /// # Errors
    /// In words for a person: why it is not.
    pub fn ask(&self, runtime: Runtime) -> Result<Client, String> {
        let program = match runtime {
            Runtime::Apple if !cfg!(target_os = "macos") => {
                return Err("it is for macOS only".into());
            }
            Runtime::Apple => &self.runtimes.apple,
            Runtime::Docker => &self.runtimes.docker,
            Runtime::Podman => &self.runtimes.podman,
        };
        let Some(program) = program else {
            return Err(format!("`{}` is not on PATH", runtime.program()));
        };
        let argv = words(program, runtime.asks());
        let answer = call(&argv, &self.runtimes.env, ANSWER)
            .map_err(|why| format!("{} does not answer: {why}", program.display()))?;
        Ok(Client {
            runtime,
            program: program.clone(),
            rootless: runtime.is_rootless(&answer),
            env: self.runtimes.env.clone(),
        })
    }

    /// The engine that is wanted; one that has answered once is not asked again.
    ///
    /// # Errors
    /// In words for a person: which did not answer and how to get one.
    pub fn choose(&self, asked: RuntimeAsked) -> Result<Client, String> {
        let mut clients = locked(&self.clients);
        let mut refused = Vec::new();
        for runtime in asked.candidates() {
            if let Some(client) = clients.get(runtime) {
                return Ok(client.clone());
            }
            match self.ask(*runtime) {
                Ok(client) => {
                    clients.insert(*runtime, client.clone());
                    return Ok(client);
                }
                Err(why) => refused.push((runtime, why)),
            }
        }
        let all: Vec<String> = refused
            .iter()
            .map(|(runtime, why)| format!("{}: {why}", runtime.word()))
            .collect();
        let hint = refused
            .last()
            .map_or("", |(runtime, _)| runtime.how_to_get());
        Err(format!(
            "find a container engine: none answers ({}); {hint}",
            all.join("; ")
        ))
    }

    /// Finds out what a job in this container will need. Blocks, for minutes when the image has to
    /// be fetched first.
    pub(crate) fn prepare(&self, wanted: &Container, warden: &Path) -> Result<(), String> {
        let client = self.choose(wanted.runtime)?;
        self.known(&client, &wanted.image, warden).map(drop)
    }

    /// What was known may be wrong by now: the image is looked at again for the next job.
    pub(crate) fn forget(&self, wanted: &Container) {
        locked(&self.images).retain(|(_, image), _| *image != wanted.image);
        locked(&self.clients).clear();
    }

    fn known(&self, client: &Client, image: &Image, warden: &Path) -> Result<Known, String> {
        let key = (client.runtime, image.clone());
        if let Some(known) = locked(&self.images).get(&key) {
            return Ok(known.clone());
        }
        let known = look_at(client, image, warden)?;
        locked(&self.images).insert(key, known.clone());
        Ok(known)
    }

    /// What `core::container` has to know of this host for one job, and the invocation as it can be
    /// in there.
    pub(crate) fn view(
        &self,
        inner: Invocation,
        job: &JobId,
        needs: Needs<'_>,
        wanted: &Container,
        warden: &Path,
    ) -> Result<(Invocation, View), String> {
        let client = self.choose(wanted.runtime)?;
        let known = self.known(&client, &wanted.image, warden)?;
        let (inner, read) = brought(inner, &needs)?;
        for path in read.iter().chain(&needs.write).chain(&needs.shared) {
            utf8(path)?;
        }
        let warden = known.no_warden.is_none().then(|| Warden {
            program: warden.to_owned(),
            socket: self.inside.join(container::name(job)),
        });
        let user = rustix::process::getuid().as_raw();
        let group = rustix::process::getgid().as_raw();
        let view = View {
            client,
            image: wanted.image.to_string(),
            warden,
            init: known.init,
            user: (user, group),
            read,
            write: needs.write,
            shared: needs.shared,
            relays: needs.relays,
            doors: needs.doors,
            own: needs.toolchains.to_vec(),
            open_files_max: own_open_files_max(),
            user_processes_max: own_processes_max(),
        };
        Ok((inner, view))
    }
}

/// What a process may open here at most; an engine cannot give more where we may not raise it.
#[must_use]
pub fn own_open_files_max() -> u64 {
    getrlimit(Resource::Nofile)
        .maximum
        .unwrap_or(OPEN_FILES_MAX)
}

/// The same of processes. Podman lowers its own to what the kernel can number at all.
#[must_use]
pub fn own_processes_max() -> Option<u64> {
    let numbers = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok();
    let numbers = numbers.and_then(|text| text.trim().parse().ok());
    let most = getrlimit(Resource::Nproc).maximum?;
    Some(numbers.map_or(most, |numbers: u64| most.min(numbers)))
}

/// Fetches it where it is not there, and tries whether our warden runs in it.
fn look_at(client: &Client, image: &Image, warden: &Path) -> Result<Known, String> {
    if client.runtime == Runtime::Apple {
        // Our program is of another system, and no socket of ours reaches into its machine.
        return Ok(Known {
            no_warden: Some("Apple's container runs another system than this one".into()),
            init: true,
        });
    }
    let call = |argv: &[String], limit| call(argv, &client.env, limit);
    let name = image.as_str();
    let there = words(
        &client.program,
        &["image", "inspect", "--format", "{{.Id}}", name],
    );
    if call(&there, INSPECT).is_err() {
        call(&words(&client.program, &["pull", "--quiet", name]), PULL).map_err(|why| {
            format!(
                "get the image {image} with {}: {why}",
                client.runtime.word()
            )
        })?;
    }
    let user = rustix::process::getuid().as_raw();
    let group = rustix::process::getgid().as_raw();
    let mut init = true;
    loop {
        let most = (own_open_files_max(), own_processes_max());
        let argv = container::probe(client, name, warden, init, (user, group), most);
        match call(&argv, PROBE) {
            Ok(_) => {
                return Ok(Known {
                    no_warden: None,
                    init,
                });
            }
            Err(why) if is_of_the_image(&why) => {
                return Ok(Known {
                    no_warden: Some(why),
                    init,
                });
            }
            // The warden is a good init itself where the engine has none to give.
            Err(why) if init && (why.contains("init binary") || why.contains("catatonit")) => {
                init = false;
            }
            Err(why) => {
                return Err(format!(
                    "start a container of {image} with {}: {why}",
                    client.runtime.word()
                ));
            }
        }
    }
}

/// Whether a warden could not be run because of what the image has, or has not: no glibc, an older
/// one, or one for another machine. Anything else is the engine's own trouble.
fn is_of_the_image(why: &str) -> bool {
    let said = why.to_lowercase();
    let loader = ["shared librar", "glibc", "exec format error", "relocat"];
    let executed = said.contains("exec ") || said.contains("exec:");
    let absent = ["no such file", "not found"];
    loader.iter().any(|part| said.contains(part))
        || executed && absent.iter().any(|part| said.contains(part))
}

fn words(program: &Path, words: &[&str]) -> Vec<String> {
    let mut argv = vec![program.to_string_lossy().into_owned()];
    argv.extend(words.iter().map(|word| (*word).to_owned()));
    argv
}

fn image_own() -> Vec<PathBuf> {
    IMAGE_OWN.iter().map(PathBuf::from).collect()
}

/// How a program is called in an image. What a person has outside of the system's directories is
/// brought along, by its full path; all else is the image's, and found on its own PATH.
pub(crate) fn program(name: &str, found: Option<&str>) -> String {
    let own = image_own();
    if name.contains('/') {
        return name.to_owned();
    }
    let real = found.and_then(|found| std::fs::canonicalize(found).ok());
    match real.filter(|real| !visible(&own, real)) {
        Some(real) => real.to_string_lossy().into_owned(),
        None => name.to_owned(),
    }
}

/// The invocation as it can be in an image, and what of the host comes with it.
fn brought(mut inner: Invocation, needs: &Needs<'_>) -> Result<(Invocation, Vec<PathBuf>), String> {
    let own = image_own();
    let mut read = needs.read.clone();
    for name in needs.toolchains {
        let Some(path) = inner.env.get(name).map(PathBuf::from) else {
            continue;
        };
        if !path.is_absolute() {
            continue;
        }
        if visible(&own, &path) || !path.exists() {
            // It would name something of the image that is not there.
            inner.env.remove(name);
        } else {
            read.push(path);
        }
    }
    let mut links = Vec::new();
    let first = inner.argv.first().map(PathBuf::from);
    let started = first.as_ref().filter(|path| path.is_absolute());
    for program in started.iter().copied().chain(&needs.programs) {
        if visible(&own, program) {
            continue;
        }
        install_tree(&own, &[], program, &inner.env, &mut read, &mut links);
    }
    if let (Some(first), Some(program)) = (inner.argv.first_mut(), started)
        && !visible(&own, program)
        && let Ok(real) = std::fs::canonicalize(program)
    {
        // A link to it cannot be made in there.
        *first = utf8(&real)?;
    }
    for store in STORES.map(PathBuf::from) {
        if read.iter().any(|path| path.starts_with(&store)) {
            read.push(store);
        }
    }
    read.retain(|path| path.exists() && !visible(&own, path));
    read.sort();
    read.dedup();
    if let Some(path) = inner.env.get("PATH") {
        let seen = path
            .split(':')
            .filter(|dir| read.iter().any(|path| Path::new(dir).starts_with(path)));
        let seen = seen.collect::<Vec<_>>().join(":");
        inner.env.insert("PATH".into(), seen);
    }
    Ok((inner, read))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn script(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_client_whose_engine_is_down_is_not_available_and_a_named_one_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (down, up) = (dir.path().join("docker"), dir.path().join("podman"));
        script(
            &down,
            "#!/bin/sh\necho 'Cannot connect to the daemon' >&2\nexit 1\n",
        );
        script(&up, "#!/bin/sh\necho true\n");
        let env = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        let runtimes = Runtimes {
            docker: Some(down),
            podman: Some(up),
            env,
            ..Runtimes::default()
        };
        let all = Containers::new(dir.path(), runtimes);
        if cfg!(target_os = "linux") {
            assert!(all.ask(Runtime::Apple).unwrap_err().contains("macOS only"));
        }
        let chosen = all.choose(RuntimeAsked::Auto).unwrap();
        assert_eq!((chosen.runtime, chosen.rootless), (Runtime::Podman, true));
        let error = all.choose(RuntimeAsked::Docker).unwrap_err();
        assert!(error.contains("Cannot connect to the daemon"), "{error}");
        assert!(error.contains("docker info"), "{error}");
        let none = Containers::new(dir.path(), Runtimes::default());
        let error = none.choose(RuntimeAsked::Auto).unwrap_err();
        assert!(error.contains("docker: `docker` is not on PATH"), "{error}");
        assert!(error.contains("podman: `podman` is not on PATH"), "{error}");
        assert!(error.contains("apt install podman"), "{error}");
    }

    #[test]
    fn what_the_system_has_is_the_images_and_the_rest_is_brought_along() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let real = root.join("n/lib/node_modules/cli/cli.js");
        script(&real, "#!/usr/bin/env node\n");
        script(&root.join("n/bin/node"), "");
        let link = root.join("local/bin/cli");
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(program("cli", link.to_str()), real.to_str().unwrap());
        assert_eq!(program("sh", Some("/bin/sh")), "sh");
        assert_eq!(program("only-there", None), "only-there");
        assert_eq!(
            program("/usr/bin/git", Some("/usr/bin/git")),
            "/usr/bin/git"
        );

        let node = root.join("n/bin");
        let inner = Invocation {
            argv: vec![link.to_str().unwrap().into()],
            env: [
                (
                    "PATH".to_owned(),
                    format!("/usr/bin:{}:/nowhere", node.display()),
                ),
                ("GOROOT".to_owned(), "/usr/lib/go".to_owned()),
                ("NVM_DIR".to_owned(), root.join("n").display().to_string()),
            ]
            .into(),
            ..Invocation::default()
        };
        let needs = Needs {
            programs: Vec::new(),
            read: vec!["/etc/ssl".into(), "/nowhere/at/all".into()],
            write: Vec::new(),
            shared: Vec::new(),
            relays: Vec::new(),
            doors: Vec::new(),
            toolchains: &["GOROOT".to_owned(), "NVM_DIR".to_owned()],
            gpu: false,
        };
        let (inner, read) = brought(inner, &needs).unwrap();
        assert_eq!(inner.argv, [real.to_str().unwrap()]);
        assert_eq!(inner.env["PATH"], node.display().to_string());
        assert!(!inner.env.contains_key("GOROOT") && inner.env.contains_key("NVM_DIR"));
        assert_eq!(read, [root.join("n"), root.join("n/lib/node_modules")]);
    }

    #[test]
    fn only_the_images_own_lack_does_without_a_warden() {
        for why in [
            "runc create failed: exec /w: no such file or directory",
            "catatonit: failed to exec pid1: No such file or directory",
            "[FATAL tini (7)] exec /w failed: No such file or directory",
            "/w: error while loading shared libraries: libgcc_s.so.1",
            "/w: /lib/libc.so.6: version `GLIBC_2.34' not found",
            "exec format error",
        ] {
            assert!(is_of_the_image(why), "{why}");
        }
        for why in [
            "permission denied",
            "cgroups in hybrid mode not supported",
            "container-init binary not found on the host: stat /usr/libexec/podman/catatonit: no \
             such file or directory",
            "statfs /data/bin/warden: no such file or directory",
        ] {
            assert!(!is_of_the_image(why), "{why}");
        }
    }
}
