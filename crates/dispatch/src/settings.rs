//! Environment, HOME and files in, resolved settings out: the only reader of env and HOME.
//! Must not hold a default that `defaults.toml` could hold.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use dispatch_core::{
    config::{self, AgentProfile, Config, EnvValue, Layer, Problem, Source, Sourced},
    container::Runtime,
    definition::FOLDER,
    id::AgentName,
    models::KeySource,
    prompt::{Library, TextFile, TextKind, TextName},
    secret::Secret,
};
use dispatch_engine::{
    clock::Clock, containers::Runtimes, door::Door, engine, sites::local::Keeper,
};

use crate::secrets::{self, SecretError};

const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Of a person's templates, personas, plans and workflows together.
const TEXTS_MAX: usize = 2000;
/// Without it a job would inherit whatever locale, or none, and CLIs print mojibake.
const LANG_DEFAULT: &str = "C.UTF-8";
/// Where password stores and their agents find what is the person's own.
const PROGRAM_VARIABLES: [&str; 10] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
    "GNUPGHOME",
    "SSH_AUTH_SOCK",
];
const PATH_DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin";

/// What clients of container engines need to find their engine. No proxies: those may hold a
/// password, and podman hands them on to what it starts.
const CLIENT_ENV: [&str; 24] = [
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_CACHE_HOME",
    "DBUS_SESSION_BUS_ADDRESS",
    "CONTAINERS_CONF",
    "CONTAINERS_CONF_OVERRIDE",
    "CONTAINERS_STORAGE_CONF",
    "CONTAINERS_REGISTRIES_CONF",
    "REGISTRY_AUTH_FILE",
    "STORAGE_DRIVER",
    "CONTAINER_HOST",
    "CONTAINER_CONNECTION",
    "DOCKER_HOST",
    "DOCKER_CONTEXT",
    "DOCKER_CONFIG",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
    "DOCKER_API_VERSION",
    "SSH_AUTH_SOCK",
];
/// Variables that stand for a setting of `[container]`, the older names first: a newer one wins.
const CONTAINER_VARIABLES: [(&str, &str); 4] = [
    ("CORE_AGENT_RUNTIME", "runtime"),
    ("AGENT_DOCKER_IMAGE", "image"),
    ("DISPATCH_RUNTIME", "runtime"),
    ("DISPATCH_IMAGE", "image"),
];

/// Where things lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Paths {
    pub(crate) config: PathBuf,
    pub(crate) data: PathBuf,
    /// The directory of the socket: ours alone, mode 0700.
    pub(crate) run: PathBuf,
}

impl Paths {
    pub(crate) const SOCKET: &'static str = "dispatch.sock";
    pub(crate) const AGENTS_SOCKET: &'static str = "engine.sock";

    pub(crate) fn socket(&self) -> PathBuf {
        self.run.join(Self::SOCKET)
    }

    /// The directory of the agents' socket, which can be mounted alone.
    pub(crate) fn agents(&self) -> PathBuf {
        self.run.join("agents")
    }

    pub(crate) fn engine_log(&self) -> PathBuf {
        self.data.join("engine.log")
    }
}

/// A snapshot of the environment, so that tests can hand in their own.
#[derive(Clone, Default)]
pub(crate) struct Env(BTreeMap<String, OsString>);

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Env {
    pub(crate) fn read() -> Self {
        let utf8 = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value));
        Self(env::vars_os().filter_map(utf8).collect())
    }

    #[cfg(test)]
    pub(crate) fn of(pairs: &[(&str, &str)]) -> Self {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), OsString::from(value));
        Self(pairs.iter().map(own).collect())
    }

    /// Set and not empty.
    fn get(&self, name: &str) -> Option<&OsString> {
        self.0.get(name).filter(|value| !value.is_empty())
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.to_str()
    }

    /// What variables say of containers, as layers over every file.
    fn container_layers(&self) -> Vec<(&'static str, String)> {
        let set = CONTAINER_VARIABLES.iter().filter_map(|(variable, key)| {
            let value = serde_json::Value::from(self.text(variable)?);
            // Text in JSON is text in TOML.
            Some((*variable, format!("[container]\n{key} = {value}\n")))
        });
        set.collect()
    }

    /// XDG says that a relative path in its variables is to be ignored.
    fn absolute(&self, name: &str) -> Option<PathBuf> {
        self.get(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    }
}

/// What is wrong with the settings.
#[derive(Debug)]
pub(crate) enum SettingsError {
    NoHome,
    Read { path: PathBuf, source: io::Error },
    Problems(Vec<Problem>),
}

impl std::error::Error for SettingsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            Self::NoHome | Self::Problems(_) => None,
        }
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHome => f.write_str("find a place for the data: HOME is not set"),
            Self::Read { path, .. } => write!(f, "read {}", path.display()),
            Self::Problems(problems) => {
                write!(f, "use the configuration: {} problem(s)", problems.len())?;
                problems.iter().try_for_each(|p| write!(f, "\n  {p}"))
            }
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) paths: Paths,
    pub(crate) config: Config,
    pub(crate) sourced: Vec<Sourced>,
    pub(crate) env: Env,
}

/// Under one directory when `DISPATCH_HOME` says so, else where XDG puts things.
pub(crate) fn paths(env: &Env, cwd: &Path) -> Result<Paths, SettingsError> {
    if let Some(home) = env.get("DISPATCH_HOME") {
        let home = cwd.join(home);
        return Ok(Paths {
            config: home.join("dispatch.toml"),
            data: home.join("data"),
            run: home.join("run"),
        });
    }
    let home = || env.absolute("HOME").ok_or(SettingsError::NoHome);
    let or_home = |name: &str, below: &str| match env.absolute(name) {
        Some(path) => Ok(path),
        None => home().map(|home| home.join(below)),
    };
    let data = or_home("XDG_DATA_HOME", ".local/share")?.join("dispatch");
    let run = match env.absolute("XDG_RUNTIME_DIR") {
        Some(run) => run.join("dispatch"),
        None => data.join("run"),
    };
    Ok(Paths {
        config: or_home("XDG_CONFIG_HOME", ".config")?.join("dispatch/dispatch.toml"),
        data,
        run,
    })
}

impl Settings {
    pub(crate) fn read() -> Result<Self, SettingsError> {
        let cwd = env::current_dir().map_err(|source| SettingsError::Read {
            path: PathBuf::from("."),
            source,
        })?;
        Self::from_env(Env::read(), &cwd)
    }

    pub(crate) fn from_env(env: Env, cwd: &Path) -> Result<Self, SettingsError> {
        let paths = paths(&env, cwd)?;
        let text = read_config(&paths.config).map_err(|source| SettingsError::Read {
            path: paths.config.clone(),
            source,
        })?;
        let name = paths.config.display().to_string();
        let variables = env.container_layers();
        let file = text.iter().map(|text| Layer {
            source: &name,
            text,
        });
        let over = variables
            .iter()
            .map(|(source, text)| Layer { source, text });
        let layers: Vec<Layer<'_>> = file.chain(over).collect();
        let (mut config, sourced) = config::load(&layers).map_err(SettingsError::Problems)?;
        config.library = library(&paths.config, &name, &config)?;
        Ok(Self {
            paths,
            config,
            sourced,
            env,
        })
    }

    /// The person's own home: to say what lies there, never to write.
    pub(crate) fn home(&self) -> Option<PathBuf> {
        self.env.absolute("HOME")
    }

    /// What a program that a secret is read from needs of the person's environment.
    fn program_env(&self) -> BTreeMap<String, String> {
        let set = |name: &&str| Some(((*name).to_owned(), self.env.text(name)?.to_owned()));
        PROGRAM_VARIABLES.iter().filter_map(set).collect()
    }

    /// The variables that every job gets.
    pub(crate) fn job_env(&self) -> BTreeMap<String, String> {
        let chosen = |name: &str, default: &str| self.env.text(name).unwrap_or(default).to_owned();
        let mut out = BTreeMap::from([
            ("PATH".to_owned(), chosen("PATH", PATH_DEFAULT)),
            ("LANG".to_owned(), chosen("LANG", LANG_DEFAULT)),
        ]);
        for name in &self.config.toolchains.pass_env {
            if let Some(value) = self.env.text(name) {
                out.insert(name.clone(), value.to_owned());
            }
        }
        // A job has a home of its own, so what lies below the person's must be named.
        let Some(home) = self.env.absolute("HOME") else {
            return out;
        };
        for (name, below) in &self.config.toolchains.home_default {
            let path = home.join(below);
            if let (false, true, Some(path)) =
                (out.contains_key(name), path.is_dir(), path.to_str())
            {
                out.insert(name.clone(), path.to_owned());
            }
        }
        out
    }

    pub(crate) fn engine(&self) -> engine::Settings {
        engine::Settings {
            data: self.paths.data.clone(),
            config: self.config.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            git: self.find("git").unwrap_or_else(|| PathBuf::from("git")),
            job_env: self.job_env(),
            program_env: self.program_env(),
            keeper: Keeper::own(),
            bwrap: self.find("bwrap"),
            runtimes: self.runtimes(),
            // In the keeper, which is this program too.
            sidecar: ["/proc/self/exe", "sidecar"].map(str::to_owned).into(),
            door: Some(Door {
                directory: self.paths.agents(),
                socket: Paths::AGENTS_SOCKET.into(),
                tools: ["mcp", "--run"].map(str::to_owned).into(),
            }),
            definitions: self.paths.config.parent().map(|own| own.join(FOLDER)),
            observer: engine::Observer::default(),
            clock: Clock::default(),
        }
    }

    /// Clients of container engines, and what of our environment they need.
    pub(crate) fn runtimes(&self) -> Runtimes {
        let set = |name: &&str| Some(((*name).to_owned(), self.env.text(name)?.to_owned()));
        let mut env: BTreeMap<String, String> = CLIENT_ENV.iter().filter_map(set).collect();
        let path = self.env.text("PATH").unwrap_or(PATH_DEFAULT);
        env.insert("PATH".into(), path.to_owned());
        let find = |runtime: Runtime| self.find(runtime.program());
        Runtimes {
            apple: find(Runtime::Apple),
            docker: find(Runtime::Docker),
            podman: find(Runtime::Podman),
            env,
        }
    }

    /// Image and runtime that the environment asks for: for this call, over every table.
    pub(crate) fn container_variables(&self) -> (Option<String>, Option<String>) {
        let said = |key: &str| {
            let named = CONTAINER_VARIABLES.iter().rev();
            let mut named = named.filter(|(_, other)| *other == key);
            named.find_map(|(variable, _)| self.env.text(variable).map(str::to_owned))
        };
        (said("image"), said("runtime"))
    }

    /// The same variables' names: an engine that is started for one call outlives it.
    pub(crate) fn container_variable_names() -> impl Iterator<Item = &'static str> {
        CONTAINER_VARIABLES.iter().map(|(variable, _)| *variable)
    }

    /// Where a program lies, as `exec` would find it.
    pub(crate) fn find(&self, program: &str) -> Option<PathBuf> {
        if program == config::OWN_PROGRAM {
            return env::current_exe().ok();
        }
        if program.contains('/') {
            let path = PathBuf::from(program);
            return is_program(&path).then_some(path);
        }
        let path = self.env.text("PATH").unwrap_or(PATH_DEFAULT);
        env::split_paths(path)
            .map(|dir| dir.join(program))
            .find(|path| is_program(path))
    }

    /// The secrets of an agent by key, and the variables that are not set and not optional.
    pub(crate) fn secrets_of(
        &self,
        name: &AgentName,
        agent: &AgentProfile,
    ) -> Result<(BTreeMap<String, Secret>, Vec<String>), SecretError> {
        let (mut found, mut missing) = (BTreeMap::new(), Vec::new());
        for (variable, value) in &agent.env {
            let (EnvValue::Taken { source, optional }, Some(key)) =
                (value, value.key(name, variable))
            else {
                continue;
            };
            match self.take(&key, source, *optional)? {
                Some(secret) => {
                    found.insert(key, secret);
                }
                None if *optional => {}
                None => missing.push(key),
            }
        }
        Ok((found, missing))
    }

    /// One secret by its key, when an agent's table names it and it is there.
    pub(crate) fn secret(&self, wanted: &str) -> Result<Option<Secret>, SecretError> {
        for (name, agent) in self.config.agents_with_keys() {
            for (variable, value) in &agent.env {
                if let EnvValue::Taken { source, optional } = value
                    && value.key(name, variable).as_deref() == Some(wanted)
                {
                    return self.take(wanted, source, *optional);
                }
            }
        }
        Ok(None)
    }

    /// A literal, or the secret that a value names, for a hook.
    pub(crate) fn value(&self, key: &str, value: &EnvValue) -> Result<Option<Secret>, SecretError> {
        match value {
            EnvValue::Literal(text) => Ok(Some(Secret::from(text.as_str()))),
            EnvValue::Taken { source, optional } => self.take(key, source, *optional),
        }
    }

    /// One secret from where the configuration says.
    pub(crate) fn take(
        &self,
        key: &str,
        source: &Source,
        optional: bool,
    ) -> Result<Option<Secret>, SecretError> {
        secrets::take(key, source, optional, |name| {
            self.env.text(name).map(Secret::from)
        })
    }

    /// Every variable that some agent takes as a secret.
    pub(crate) fn secret_variables(&self) -> Vec<&str> {
        let values = self.config.agents.values().flat_map(|agent| &agent.env);
        let agents = values.filter_map(|(_, value)| match value {
            EnvValue::Taken {
                source: Source::Variable(name),
                ..
            } => Some(name.as_str()),
            EnvValue::Taken { .. } | EnvValue::Literal(_) => None,
        });
        let keys = self.config.keys.values();
        let keys = keys.filter_map(|table| match &table.key {
            Some(KeySource::From(name)) => Some(name.as_str()),
            Some(KeySource::File(_) | KeySource::Command(_)) | None => None,
        });
        agents.chain(keys).collect()
    }
}

fn read_config(path: &Path) -> io::Result<Option<String>> {
    match fs::metadata(path) {
        Ok(meta) if meta.len() > CONFIG_BYTES_MAX => Err(io::Error::other(format!(
            "it is larger than {CONFIG_BYTES_MAX} bytes"
        ))),
        Ok(_) => fs::read_to_string(path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Ours with the texts beside the configuration laid over it.
fn library(config_file: &Path, name: &str, config: &Config) -> Result<Library, SettingsError> {
    let above = config_file.parent().unwrap_or(Path::new("/"));
    let mut files = Vec::new();
    for kind in TextKind::ALL {
        let root = above.join(kind.folder());
        let most = config.limits.template_bytes as u64;
        let read = read_texts(kind, &root, &root, TextName::PARTS_MAX, most, &mut files);
        read.map_err(|(path, source)| SettingsError::Read { path, source })?;
    }
    let problem = |at: &str, source: String, what| Problem {
        at: at.to_owned(),
        source,
        what,
    };
    let library = config.library.with(files, config.limits.template_bytes);
    let library = library.map_err(|problems| {
        let told = problems.into_iter();
        let told = told.map(|(source, what)| problem("the file", source, what));
        SettingsError::Problems(told.collect())
    })?;
    let default = config.task.template.as_str();
    match library.find(TextKind::Template, default) {
        Ok(_) => Ok(library),
        Err(error) => Err(SettingsError::Problems(vec![problem(
            "task.template",
            name.to_owned(),
            error.to_string(),
        )])),
    }
}

/// All files below `dir`, in order. What begins with a dot or ends with `~` is an editor's.
fn read_texts(
    kind: TextKind,
    root: &Path,
    dir: &Path,
    depth: usize,
    bytes_max: u64,
    files: &mut Vec<TextFile>,
) -> Result<(), (PathBuf, io::Error)> {
    use io::Read as _;
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| (path, error)
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at(dir)(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(at(dir))?.path());
    }
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') || name.ends_with('~') {
            continue;
        }
        if path.is_dir() {
            if depth == 0 {
                let why = format!("more than {} folders deep", TextName::PARTS_MAX);
                return Err(at(&path)(io::Error::other(why)));
            }
            read_texts(kind, root, &path, depth - 1, bytes_max, files)?;
            continue;
        }
        if !path.is_file() {
            return Err(at(&path)(io::Error::other("it is no plain file")));
        }
        if files.len() >= TEXTS_MAX {
            let why = format!("there are more than {TEXTS_MAX} files");
            return Err(at(&path)(io::Error::other(why)));
        }
        let mut text = String::new();
        let file = fs::File::open(&path).map_err(at(&path))?;
        // One byte more, so that the library says which one is too long.
        let read = file.take(bytes_max + 1).read_to_string(&mut text);
        read.map_err(at(&path))?;
        let below = path.strip_prefix(root).unwrap_or(&path);
        files.push(TextFile {
            kind,
            path: below.to_string_lossy().into_owned(),
            source: path.display().to_string(),
            text,
        });
    }
    Ok(())
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Env {
        Env::of(pairs)
    }

    #[test]
    fn one_directory_holds_everything_when_asked() {
        let got = paths(
            &env(&[("DISPATCH_HOME", "d"), ("HOME", "/h")]),
            Path::new("/w"),
        )
        .unwrap();
        assert_eq!(got.config, Path::new("/w/d/dispatch.toml"));
        assert_eq!(got.data, Path::new("/w/d/data"));
        assert_eq!(got.socket(), Path::new("/w/d/run/dispatch.sock"));
    }

    #[test]
    fn xdg_places_and_their_defaults() {
        let got = paths(&env(&[("HOME", "/h")]), Path::new("/w")).unwrap();
        assert_eq!(got.config, Path::new("/h/.config/dispatch/dispatch.toml"));
        assert_eq!(got.data, Path::new("/h/.local/share/dispatch"));
        assert_eq!(got.run, Path::new("/h/.local/share/dispatch/run"));
        let xdg = env(&[
            ("XDG_RUNTIME_DIR", "/run/u"),
            ("XDG_DATA_HOME", "relative"),
            ("HOME", "/h"),
        ]);
        let got = paths(&xdg, Path::new("/w")).unwrap();
        assert_eq!(got.run, Path::new("/run/u/dispatch"));
        assert_eq!(got.data, Path::new("/h/.local/share/dispatch"));
        assert!(paths(&env(&[]), Path::new("/w")).is_err());
    }

    #[test]
    fn jobs_get_a_locale_and_the_toolchains_that_exist() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join(".cargo")).unwrap();
        let home_text = home.path().to_str().unwrap();
        let env = env(&[
            ("HOME", home_text),
            ("GOROOT", "/go"),
            ("AWS_SECRET", "x"),
            ("PATH", "/p"),
        ]);
        let settings = Settings::from_env(env, Path::new("/w")).unwrap();
        let got = settings.job_env();
        assert_eq!(got["LANG"], "C.UTF-8");
        assert_eq!(got["PATH"], "/p");
        assert_eq!(got["GOROOT"], "/go");
        assert_eq!(got["CARGO_HOME"], format!("{home_text}/.cargo"));
        assert!(!got.contains_key("RUSTUP_HOME") && !got.contains_key("AWS_SECRET"));
    }

    #[test]
    fn variables_are_over_files_and_new_names_over_old_ones() {
        let home = tempfile::tempdir().unwrap();
        let text = "[container]\nruntime = \"docker\"\nimage = \"file:1\"\n";
        fs::write(home.path().join("dispatch.toml"), text).unwrap();
        let home = ("DISPATCH_HOME", home.path().to_str().unwrap());
        let read = |more: &[(&str, &str)]| {
            let all: Vec<_> = [home].into_iter().chain(more.iter().copied()).collect();
            let settings = Settings::from_env(env(&all), Path::new("/")).unwrap();
            let row = |key: &str| {
                let row = settings.sourced.iter().find(|row| row.key == key).unwrap();
                (row.value.clone(), row.source.clone())
            };
            (
                row("container.image"),
                row("container.runtime"),
                settings.container_variables(),
            )
        };
        let (image, _, none) = read(&[]);
        assert!(image.0 == "\"file:1\"" && image.1.ends_with("dispatch.toml"));
        assert_eq!(none, (None, None));
        let old = [
            ("CORE_AGENT_RUNTIME", "podman"),
            ("AGENT_DOCKER_IMAGE", "old:1"),
        ];
        let (image, runtime, asked) = read(&old);
        assert_eq!(image, ("\"old:1\"".into(), "AGENT_DOCKER_IMAGE".into()));
        assert_eq!(runtime, ("\"podman\"".into(), "CORE_AGENT_RUNTIME".into()));
        assert_eq!(asked, (Some("old:1".into()), Some("podman".into())));
        let both = [
            old[0],
            old[1],
            ("DISPATCH_RUNTIME", "auto"),
            ("DISPATCH_IMAGE", "new:\"2"),
        ];
        let home = home.1;
        let error = Settings::from_env(
            env(&[("DISPATCH_HOME", home), ("DISPATCH_IMAGE", "-v")]),
            Path::new("/"),
        );
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("DISPATCH_IMAGE: container.image: use image \"-v\""),
            "{error}"
        );
        let (image, runtime, asked) = read(&both);
        assert_eq!(image.1, "DISPATCH_IMAGE");
        assert_eq!(runtime, ("\"auto\"".into(), "DISPATCH_RUNTIME".into()));
        assert_eq!(asked, (Some("new:\"2".into()), Some("auto".into())));
    }

    #[test]
    fn clients_get_what_they_need_and_no_more() {
        let env = env(&[
            ("HOME", "/h"),
            ("PATH", "/p"),
            ("CONTAINERS_CONF", "/c"),
            ("HTTPS_PROXY", "http://me:secret@proxy"),
            ("ANTHROPIC_API_KEY", "k"),
        ]);
        let got = Settings::from_env(env, Path::new("/w"))
            .unwrap()
            .runtimes()
            .env;
        let names: Vec<&str> = got.keys().map(String::as_str).collect();
        assert_eq!(names, ["CONTAINERS_CONF", "HOME", "PATH"]);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let home = tempfile::tempdir().unwrap();
        fs::write(
            home.path().join("dispatch.toml"),
            "[nope]\na = 1\n[pools.x]\nslots = 0\n",
        )
        .unwrap();
        let env = env(&[("DISPATCH_HOME", home.path().to_str().unwrap())]);
        let error = Settings::from_env(env, Path::new("/"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("nope") && error.contains("pools.x"),
            "{error}"
        );
    }

    #[test]
    fn texts_beside_the_configuration_are_used_and_bad_ones_told() {
        let home = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = home.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let read = || {
            let env = env(&[("DISPATCH_HOME", home.path().to_str().unwrap())]);
            Settings::from_env(env, Path::new("/"))
        };
        write("personas/team/me.md", "I work slowly.\n");
        write("personas/team/.me.md.swp", "\u{1}");
        write("personas/me.md~", "old");
        write("dispatch.toml", "[task]\ntemplate = \"mine\"\n");
        let told = read().unwrap_err().to_string();
        assert!(
            told.contains("task.template: use template mine: there is none"),
            "{told}"
        );
        write("templates/mine.md", "As {{ repo }} does.\n");
        let settings = read().unwrap();
        let library = &settings.config.library;
        assert!(library.find(TextKind::Persona, "team/me").is_ok());
        assert_eq!(library.names(TextKind::Persona).count(), {
            Library::built_in().names(TextKind::Persona).count() + 1
        });
        write("templates/bad.md", "{{ x");
        write("plans/bad.toml", "title = 3\n");
        write("workflows/notes.txt", "x");
        let told = read().unwrap_err().to_string();
        for part in [
            "3 problem(s)",
            "bad.md: the file: line 1",
            "bad.toml",
            "ends in .md",
        ] {
            assert!(told.contains(part), "{told}");
        }
        write("templates/bad.md", &"x".repeat(65_537));
        assert!(read().unwrap_err().to_string().contains("65537 bytes"));
    }

    #[test]
    fn secrets_are_found_and_missing_ones_named() {
        let home = tempfile::tempdir().unwrap();
        fs::write(
            home.path().join("dispatch.toml"),
            "[agents.a]\ndriver = \"plain\"\nprogram = \"a\"\npool = \"default\"\nplacement = \"host\"\n\
             env = { K = { from = \"K\" }, L = { from = \"L\" }, M = { from = \"M\", optional = true }, N = \"lit\" }\n",
        )
        .unwrap();
        let env = env(&[
            ("DISPATCH_HOME", home.path().to_str().unwrap()),
            ("K", "s3-found-and-kept"),
        ]);
        let settings = Settings::from_env(env, Path::new("/")).unwrap();
        let name = "a".parse().unwrap();
        let agent = &settings.config.agents[&name];
        let (found, missing) = settings.secrets_of(&name, agent).unwrap();
        assert_eq!(
            found,
            BTreeMap::from([("K".into(), "s3-found-and-kept".into())])
        );
        assert_eq!(missing, ["L"]);
        assert!(!format!("{settings:?} {found:?}").contains("s3-found-and-kept"));
        assert_eq!(
            settings.secret("K").unwrap(),
            Some("s3-found-and-kept".into())
        );
        assert_eq!(settings.secret("HOME").unwrap(), None);
    }
}
