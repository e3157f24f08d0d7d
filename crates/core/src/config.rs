//! The settings: layers of TOML in, one resolved `Config` or every problem at once out.
//! Must not read files, the environment or HOME: the caller hands texts in. No default is in code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};
use toml::{Table, Value};

use crate::{
    ask::Permissions,
    chain::NativeSettings,
    checks::Checks,
    container::{Image, RuntimeAsked},
    drivers::DriverKind,
    gate::{Gate, Pool},
    grant::{Offer, Word},
    id::{
        AccountName, AgentName, BadId, ForgeName, GrantName, HookName, KeyName, ModelName,
        PlacementName, PoolName, RepoName, ServerName,
    },
    lent,
    limits::Limits,
    models::{Choice, KeyTable},
    notify::Hook,
    prompt::{Library, TextName},
    rules::{Grade, Group, Rule},
    schedule::Pools,
    server::{Server, ServerTable},
    servers::{self, ServerTable as McpTable},
    sidecar::{BROKER_URL, Upstream},
    task::{Expects, Network, Placement, Wrap},
    web::WebTable,
};

/// What our own program is called where a program is named.
pub const OWN_PROGRAM: &str = "dispatch";
/// The only place of defaults; also the reference manual.
pub const DEFAULTS_TOML: &str = include_str!("defaults.toml");

/// Something wrong in a layer, for a person to mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Dotted path of the key or table, and the layer it came from.
    pub at: String,
    pub source: String,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.source, self.at, self.what)
    }
}

/// A value of an agent's environment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub enum EnvValue {
    Literal(String),
    /// A secret as far as we know, taken by whoever dispatches.
    Taken {
        source: Source,
        optional: bool,
    },
}

/// Where whoever dispatches takes a secret from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A variable of their environment.
    Variable(String),
    /// A file that is theirs alone, by its absolute path.
    File(PathBuf),
    /// The output of a program: an argv, no shell.
    Command(Vec<String>),
}

impl EnvValue {
    /// The name under which a secret is asked for and handed over: the variable it comes from, or
    /// `AGENT/VARIABLE` it goes to. No variable's name that we take holds a slash, and no agent's.
    #[must_use]
    pub fn key(&self, agent: &AgentName, variable: &str) -> Option<String> {
        match self {
            Self::Literal(_) => None,
            Self::Taken { source, .. } => Some(match source {
                Source::Variable(name) => name.clone(),
                Source::File(_) | Source::Command(_) => format!("{agent}/{variable}"),
            }),
        }
    }
}

impl TryFrom<Value> for EnvValue {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let rule = || {
            "a value is text, or one of { from = \"VAR\" }, { file = \"/absolute/path\" } and \
             { command = [\"program\", \"argument\"] }, each with optional = true or without"
                .to_owned()
        };
        let mut table = match value {
            Value::String(text) => return Ok(Self::Literal(text)),
            Value::Table(table) => table,
            _ => return Err(rule()),
        };
        let optional = match table.remove("optional") {
            None => false,
            Some(Value::Boolean(optional)) => optional,
            Some(_) => return Err(rule()),
        };
        let mut sources = table.into_iter();
        let (Some((word, value)), None) = (sources.next(), sources.next()) else {
            return Err(rule());
        };
        let source = match (word.as_str(), value) {
            ("from", Value::String(name)) if !name.is_empty() && !name.contains(['/', '=']) => {
                Source::Variable(name)
            }
            ("file", Value::String(path)) if path.starts_with('/') => Source::File(path.into()),
            ("command", Value::Array(words)) => {
                let text = |word: Value| word.as_str().map(str::to_owned);
                let argv: Option<Vec<String>> = words.into_iter().map(text).collect();
                let argv = argv.filter(|argv| argv.first().is_some_and(|word| !word.is_empty()));
                Source::Command(argv.ok_or_else(rule)?)
            }
            _ => return Err(rule()),
        };
        Ok(Self::Taken { source, optional })
    }
}

/// One `[placements.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlacementTable {
    wrap: Wrap,
    #[serde(default)]
    network: Network,
    #[serde(default)]
    strict: bool,
    #[serde(default)]
    gpu: bool,
    image: Option<Image>,
    runtime: Option<RuntimeAsked>,
}

/// `[container]`, or what a placement says of the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerSettings {
    pub image: Option<Image>,
    pub runtime: Option<RuntimeAsked>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContainerTable {
    image: String,
    runtime: RuntimeAsked,
}

/// One `[agents.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentProfile {
    pub driver: DriverKind,
    /// Empty for our own agent: the program is ours.
    #[serde(default)]
    pub program: String,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, EnvValue>,
    pub pool: PoolName,
    /// Of a task that names none. Absent: what the program takes by itself.
    pub model: Option<ModelName>,
    /// Absent: `task.placement`.
    pub placement: Option<PlacementName>,
    /// Absent: `task.expects`.
    pub expects: Option<Expects>,
    /// What becomes of its permission requests, where a task does not say.
    #[serde(default)]
    pub permissions: Permissions,
    /// What it may do at our door, where a task does not say. Absent: nothing.
    pub grant: Option<GrantName>,
    /// Where a review begins that names no base; absent: the commit before the last.
    pub review_base: Option<String>,
    /// Absolute paths it may read inside a fence, besides the system and its own program.
    #[serde(default)]
    pub paths: Vec<String>,
    /// Laid into the task's private home before each run, by their path below it.
    #[serde(default)]
    pub files: BTreeMap<HomePath, FileText>,
    /// Short names of its models: `gemini:flash`.
    #[serde(default)]
    pub models: BTreeMap<String, ModelName>,
    /// Words behind the colon that mean another agent: `codex:review`.
    #[serde(default)]
    pub variants: BTreeMap<String, AgentName>,
    /// Words behind the colon that mean a profile of the CLI's own: `codex:lemma`.
    #[serde(default)]
    pub profiles: Vec<ModelName>,
    /// Absent: it takes keys from the environment only.
    pub login: Option<Login>,
    /// The image that it runs in, when the task names none.
    pub image: Option<Image>,
    /// In a container: a name for the host, for models that are served there.
    #[serde(default)]
    pub host_alias: bool,
    /// Keeps one of its secrets outside the fence; absent: it gets them all.
    pub broker: Option<BrokerTable>,
    /// Of a task that asks for no model: whom our own agent asks, the first before the second.
    #[serde(default)]
    pub chain: Vec<Choice>,
    /// In place of what our own agent says of itself.
    pub system_prompt: Option<String>,
    /// Names of our own agent's tools; absent: all.
    pub tools: Option<Vec<String>>,
    /// The MCP servers whose tools it has; absent: all of `[mcp.*]`.
    pub mcp: Option<Vec<ServerName>>,
    /// Over `[native.groups]`.
    #[serde(default)]
    pub groups: BTreeMap<Group, Grade>,
    /// The last one that matches says what becomes of it.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// One for each key of a task's chain; no table says them.
    #[serde(skip)]
    pub brokers: Vec<BrokerTable>,
}

/// One `[agents.NAME.broker]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerTable {
    /// The variable in the agent's `env` whose value stays outside.
    pub key: String,
    /// The variable that gets the address to send requests to; absent where `args` name it.
    pub base_url: Option<String>,
    pub upstream: Upstream,
    /// Upstream wants no key: a model on this machine. No table says it.
    #[serde(skip)]
    pub keyless: bool,
}

impl AgentProfile {
    /// The account whose login this agent uses, and what that login consists of.
    #[must_use]
    pub fn account<'a>(&'a self, name: &'a AgentName) -> Option<(&'a str, &'a Login)> {
        let login = self.login.as_ref()?;
        let account = login.account.as_ref().map(AccountName::as_str);
        Some((account.unwrap_or(name.as_str()), login))
    }
}

/// `[agents.NAME.login]`: how its CLI logs in, and in which files it keeps that.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// Absent: the agent's own name.
    pub account: Option<AccountName>,
    /// What `dispatch login` gives the agent's program.
    pub args: Vec<String>,
    /// Where the CLI looks for its login, below the home directory.
    pub files: Vec<HomePath>,
    /// The variable that tells the CLI of a directory for these files and nothing else. Without one
    /// they are links in the task's home, which the CLI must write through.
    pub variable: Option<String>,
}

/// What a file holds: text, or a file of the person's that is read for each run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum FileText {
    Text(String),
    From { file: PathBuf },
}

/// What `agent[:word]` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    pub agent: AgentName,
    pub model: Option<ModelName>,
    pub profile: Option<ModelName>,
    /// Of `acp:COMMAND`: a program and its arguments.
    pub command: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    #[error("use agent {name}: it is not configured; there are {there}")]
    Unknown { name: String, there: String },
    #[error(
        "use agent {0}:: behind the colon stands the command of an ACP agent, such as \"acp:goose acp\""
    )]
    NoCommand(AgentName),
    #[error(
        "use profile {profile} of agent {agent}: nothing puts it on disk, and the CLI would ignore \
         that in silence; add \".codex/{profile}.config.toml\" to [agents.{agent}.files]"
    )]
    NoProfile {
        agent: AgentName,
        profile: ModelName,
    },
    #[error(transparent)]
    Word(#[from] BadId),
}

/// The agent whose command is part of its selector.
const ANY_ACP: &str = "acp";

/// A relative path that stays below the directory it is taken from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct HomePath(PathBuf);

impl HomePath {
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// Its last component.
    #[must_use]
    pub fn name(&self) -> &str {
        let name = self.0.file_name().and_then(|name| name.to_str());
        name.unwrap_or_default()
    }
}

impl TryFrom<String> for HomePath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parts: Vec<Component<'_>> = Path::new(&text).components().collect();
        let plain = |part: &Component<'_>| matches!(part, Component::Normal(_));
        if parts.is_empty() || !parts.iter().all(plain) || text.contains('\0') {
            return Err(format!(
                "{text:?} is not a path below the private home, such as .gemini/settings.json"
            ));
        }
        Ok(Self(text.into()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct RepoTable {
    path: Option<String>,
    url: Option<String>,
    default_branch: Option<String>,
    org: Option<String>,
}

/// `[forges.NAME]`: a host of repositories that issues are read from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forge {
    /// As the URLs of its repositories have it.
    pub host: String,
    /// Its address, up to `/repos/OWNER/REPO/issues/N`.
    pub api: String,
    pub token: Option<EnvValue>,
}

/// A repository by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repo {
    /// An absolute path or a URL.
    pub place: String,
    /// What a task starts from that names nothing; without it, what the repository says.
    pub default_branch: Option<String>,
    pub org: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskDefaults {
    pub agent: AgentName,
    /// How to work, where a task does not say.
    pub template: TextName,
    /// The label of a task that has none; empty for no label.
    pub org: String,
    pub expects: Expects,
    pub placement: PlacementName,
    pub allow_host: bool,
}

/// `[retention]`, in days; 0 means for ever.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    pub completed_d: u64,
    pub failed_d: u64,
    pub stopped_d: u64,
    pub lost_d: u64,
    pub blocked_d: u64,
    pub snapshots_d: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Toolchains {
    pub pass_env: Vec<String>,
    pub home_default: BTreeMap<String, String>,
    pub private: Vec<String>,
    pub paths: Vec<String>,
}

/// Everything resolved; no `Option` that means "the default".
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub task: TaskDefaults,
    pub limits: Limits,
    pub gate: Gate,
    pub retention: Retention,
    pub toolchains: Toolchains,
    pub pools: Pools,
    /// As they are asked for; `sites` is empty, which means this machine.
    pub placements: BTreeMap<PlacementName, Placement>,
    /// What the placements with `wrap = container` say of image and runtime themselves.
    pub containers: BTreeMap<PlacementName, ContainerSettings>,
    /// `[container]`: what neither task, agent nor placement say.
    pub container: ContainerSettings,
    pub agents: BTreeMap<AgentName, AgentProfile>,
    /// `repos` of them are places, not names.
    pub grants: BTreeMap<GrantName, Offer>,
    pub checks: Checks,
    pub notify: BTreeMap<HookName, Hook>,
    pub repos: BTreeMap<RepoName, Repo>,
    pub forges: BTreeMap<ForgeName, Forge>,
    /// What our own agent asks models with.
    pub keys: BTreeMap<KeyName, KeyTable>,
    pub native: NativeSettings,
    /// What its tools may look up.
    pub web: WebTable,
    /// Whose tools it may use.
    pub mcp: BTreeMap<ServerName, McpTable>,
    pub server: Server,
    /// What prompts are made of: ours, until the caller lays a person's own over it.
    pub library: Library,
}

/// One file, or what stands for one.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    pub source: &'a str,
    pub text: &'a str,
}

/// A value in force and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced {
    pub key: String,
    pub value: String,
    pub source: String,
}

/// The merged tables, before they are typed.
#[derive(Debug)]
struct Merged {
    table: Table,
    /// The value of each place, as TOML writes both, and the layer it came from.
    sources: BTreeMap<String, (String, String)>,
}

const TABLES: [&str; 19] = [
    "task",
    "limits",
    "gate",
    "retention",
    "toolchains",
    "pools",
    "placements",
    "container",
    "agents",
    "grants",
    "checks",
    "notify",
    "repos",
    "forges",
    "keys",
    "native",
    "web",
    "mcp",
    "server",
];

/// Lays later layers over earlier ones and types the whole.
///
/// # Errors
/// Every problem of every layer, at once.
pub fn load(layers: &[Layer<'_>]) -> Result<(Config, Vec<Sourced>), Vec<Problem>> {
    let mut problems = Vec::new();
    let mut merged = Merged {
        table: Table::new(),
        sources: BTreeMap::new(),
    };
    let defaults = Layer {
        source: "defaults",
        text: DEFAULTS_TOML,
    };
    for layer in std::iter::once(&defaults).chain(layers) {
        match layer.text.parse::<Table>() {
            Ok(table) => merge(&mut merged, &[], table, layer.source),
            Err(error) => problems.push(Problem {
                at: "the file".into(),
                source: layer.source.into(),
                what: error.to_string().trim_end().to_owned(),
            }),
        }
    }
    let sourced = flatten(&merged);
    let config = Typing {
        merged,
        problems: &mut problems,
    }
    .config();
    match config {
        Some(config) if problems.is_empty() => Ok((config, sourced)),
        _ => Err(problems),
    }
}

impl Config {
    /// Where an agent's jobs go when the task does not say.
    #[must_use]
    pub fn placement_of<'a>(&'a self, agent: &'a AgentProfile) -> &'a PlacementName {
        agent.placement.as_ref().unwrap_or(&self.task.placement)
    }

    /// `agent`, `agent:model`, and the words that an agent's table gives a meaning.
    ///
    /// # Errors
    /// When there is no such agent, or its profile is not there.
    pub fn select(&self, text: &str) -> Result<Selection, SelectError> {
        let (name, word) = match text.split_once(':') {
            Some((name, word)) => (name, Some(word)),
            None => (text, None),
        };
        let known = self.agents.iter().find(|(known, _)| known.as_str() == name);
        let Some((agent, profile)) = known else {
            return Err(SelectError::Unknown {
                name: name.to_owned(),
                there: list(self.agents.keys()),
            });
        };
        let mut selection = Selection {
            agent: agent.clone(),
            model: None,
            profile: None,
            command: Vec::new(),
        };
        if agent.as_str() == ANY_ACP {
            let words = word.unwrap_or_default().split_whitespace();
            selection.command = words.map(str::to_owned).collect();
            if selection.command.is_empty() {
                return Err(SelectError::NoCommand(agent.clone()));
            }
            return Ok(selection);
        }
        let Some(word) = word else {
            return Ok(selection);
        };
        if let Some(other) = profile.variants.get(word) {
            selection.agent = other.clone();
        } else if let Some(own) = profile.profiles.iter().find(|own| own.as_str() == word) {
            let file = format!(".codex/{own}.config.toml");
            if !profile
                .files
                .keys()
                .any(|path| path.as_path() == Path::new(&file))
            {
                return Err(SelectError::NoProfile {
                    agent: agent.clone(),
                    profile: own.clone(),
                });
            }
            selection.profile = Some(own.clone());
        } else if let Some(model) = profile.models.get(word) {
            selection.model = Some(model.clone());
        } else {
            selection.model = Some(word.parse()?);
        }
        Ok(selection)
    }

    /// The defaults alone; a test holds that they are valid.
    ///
    /// # Panics
    /// Never in a released build: `defaults.toml` is compiled in and tested.
    #[must_use]
    #[expect(
        clippy::expect_used,
        reason = "defaults.toml is compiled in and tested to be valid"
    )]
    pub fn defaults() -> Self {
        load(&[]).expect("defaults.toml is valid").0
    }
}

fn merge(into: &mut Merged, above: &[&str], table: Table, source: &str) {
    for (key, value) in table {
        let path = [above, &[key.as_str()]].concat();
        let whole = is_leaf(&path, &value);
        match value {
            Value::Table(inner) if !whole => merge(into, &path, inner, source),
            leaf => {
                let at = place(&path);
                let text = on_one_line(&leaf);
                put(&mut into.table, &path, leaf);
                // What it is laid over, or is laid below, is no longer in force.
                let below = format!("{at}.");
                into.sources.retain(|known, _| {
                    !known.starts_with(&below) && !at.starts_with(&format!("{known}."))
                });
                into.sources.insert(at, (text, source.to_owned()));
            }
        }
    }
}

/// A value as TOML writes it, on one line. What JSON escapes in a string, TOML reads the same way.
fn on_one_line(value: &Value) -> String {
    match value {
        Value::String(text) if text.contains('\n') => {
            serde_json::to_string(text).unwrap_or_default()
        }
        other => other.to_string(),
    }
}

/// A path of keys as TOML writes it. Names may hold dots, so joining alone would not tell which.
fn place(path: &[&str]) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let mut out = String::new();
    for key in path {
        if !out.is_empty() {
            out.push('.');
        }
        if !key.is_empty() && key.chars().all(bare) {
            out.push_str(key);
            continue;
        }
        out.push('"');
        for c in key.chars() {
            match c {
                '"' | '\\' => out.extend(['\\', c]),
                c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
                c => out.push(c),
            }
        }
        out.push('"');
    }
    out
}

/// `{ from = .. }` is one value, not a table to merge into.
fn is_leaf(path: &[&str], value: &Value) -> bool {
    !matches!(value, Value::Table(_))
        || (path.len() > 3 && path[0] == "agents" && matches!(path[2], "env" | "files"))
        || (path.len() > 2 && path[0] == "notify")
        || (path.len() > 2 && path[0] == "forges" && path[2] == "token")
        || (path.len() > 2 && matches!(path[0], "keys" | "web") && path[2] == "key")
        || (path.len() > 3 && path[0] == "mcp" && matches!(path[2], "env" | "headers"))
}

fn put(table: &mut Table, path: &[&str], leaf: Value) {
    match path {
        [] => {}
        [key] => {
            table.insert((*key).to_owned(), leaf);
        }
        [head, rest @ ..] => {
            let slot = table
                .entry(*head)
                .or_insert_with(|| Value::Table(Table::new()));
            if !slot.is_table() {
                *slot = Value::Table(Table::new());
            }
            if let Value::Table(inner) = slot {
                put(inner, rest, leaf);
            }
        }
    }
}

fn flatten(merged: &Merged) -> Vec<Sourced> {
    let row = |(key, (value, source)): (&String, &(String, String))| Sourced {
        key: key.clone(),
        value: value.clone(),
        source: source.clone(),
    };
    merged.sources.iter().map(row).collect()
}

/// Types each table on its own, so that one problem does not hide the next.
struct Typing<'a> {
    merged: Merged,
    problems: &'a mut Vec<Problem>,
}

impl Typing<'_> {
    fn config(mut self) -> Option<Config> {
        let known: BTreeSet<&str> = TABLES.into();
        let unknown: Vec<String> = self
            .merged
            .table
            .keys()
            .filter(|key| !known.contains(key.as_str()))
            .cloned()
            .collect();
        for key in unknown {
            let what = format!("unknown table; there are {}", TABLES.join(", "));
            self.problem(&place(&[&key]), what);
        }
        let task = self.one::<TaskDefaults>("task");
        let limits = self.one::<Limits>("limits");
        let gate = self.one::<Gate>("gate");
        let retention = self.one::<Retention>("retention");
        let toolchains = self.one::<Toolchains>("toolchains");
        let pools = self.many::<PoolName, Pool>("pools");
        let (placements, containers) = self.placements();
        let container = self.container();
        let mut agents = self.many::<AgentName, AgentProfile>("agents");
        let checks = self.many("checks");
        let notify = self.hooks(&agents);
        let repos = self.repos();
        let forges = self.forges();
        let keys = self.keys();
        let native = self.one::<NativeSettings>("native");
        let mut web = self.one::<WebTable>("web");
        let mut mcp = self.mcp();
        let server = self.server();
        let grants = self.grants(&agents, &placements, &repos);
        for what in limits.iter().flat_map(Limits::problems) {
            self.problem("limits", what);
        }
        for (name, agent) in &agents {
            self.own_or_foreign(name, agent, &keys);
            if !pools.contains_key(&agent.pool) {
                let there = list(pools.keys());
                let what = format!("pool {} is not configured; there are {there}", agent.pool);
                self.problem(&place(&["agents", name.as_str(), "pool"]), what);
            }
        }
        for (name, agent) in &agents {
            if let Some(asked) = &agent.placement
                && !placements.contains_key(asked)
            {
                let there = list(placements.keys());
                let what = format!("placement {asked} is not configured; there are {there}");
                self.problem(&format!("agents.{name}.placement"), what);
            }
            if !agent.driver.asks() && !agent.permissions.is_default() {
                let what = format!(
                    "{} asks for no permission, so there is nothing to {}; its fence holds it",
                    agent.driver.word(),
                    agent.permissions.word()
                );
                self.problem(&place(&["agents", name.as_str(), "permissions"]), what);
            }
            if let Some(grant) = &agent.grant {
                self.granted(name, agent, grant, &grants);
            }
            self.absolute(&format!("agents.{name}.paths"), &agent.paths);
            for (word, other) in &agent.variants {
                if !agents.contains_key(other) {
                    let there = list(agents.keys());
                    let what = format!("agent {other} is not configured; there are {there}");
                    self.problem(&place(&["agents", name.as_str(), "variants", word]), what);
                }
            }
            self.broker(name, agent);
        }
        let own = native.as_ref().map(|native| &native.grant);
        if let Some(grant) = own.filter(|grant| !grant.is_none() && !grants.contains_key(grant)) {
            let there = list(grants.keys());
            let what = format!("grant {grant} is not configured; there are none, {there}");
            self.problem("native.grant", what);
        }
        if let Some(Err(error)) = web.as_ref().map(WebTable::check) {
            self.problem("web", error.to_string());
        }
        for (name, agent) in &agents {
            let at = place(&["agents", name.as_str(), "mcp"]);
            if let Err(error) = servers::chosen(&mcp, agent.mcp.as_deref()) {
                self.problem(&at, error.to_string());
            }
        }
        let of_web = web.as_mut().map(lent::to_web).unwrap_or_default();
        let of_servers = lent::to_servers(&mut mcp);
        for agent in agents.values_mut() {
            if agent.is_native() {
                agent.program = OWN_PROGRAM.to_owned();
                let all = agent.mcp.is_none();
                let has = |name: &ServerName| all || agent.mcp.iter().flatten().any(|n| n == name);
                let lent = of_servers.iter().filter(|(name, _)| has(name));
                let lent = lent.flat_map(|(_, lent)| lent).chain(&of_web);
                let taken = lent.map(|(variable, source)| {
                    let source = Source::from(source);
                    let optional = false;
                    (variable.clone(), EnvValue::Taken { source, optional })
                });
                agent.env.extend(taken.collect::<Vec<_>>());
            }
            // A broker without its key could only be passed by, and that is what it is there against.
            let key = agent.broker.as_ref().map(|broker| &broker.key);
            if let Some(EnvValue::Taken { optional, .. }) =
                key.and_then(|key| agent.env.get_mut(key))
            {
                *optional = false;
            }
        }
        for (key, what) in gate.iter().flat_map(Gate::problems) {
            self.problem(&place(&["gate", key]), what);
        }
        self.logins(&agents);
        for (name, pool) in &pools {
            for (key, what) in pool.problems() {
                self.problem(&place(&["pools", name.as_str(), key]), what);
            }
        }
        let task = task?;
        if !agents.contains_key(&task.agent) {
            let what = format!(
                "agent {} is not configured; there are {}",
                task.agent,
                list(agents.keys())
            );
            self.problem("task.agent", what);
        }
        if !placements.contains_key(&task.placement) {
            let there = list(placements.keys());
            let what = format!(
                "placement {} is not configured; there are {there}",
                task.placement
            );
            self.problem("task.placement", what);
        }
        let toolchains = toolchains?;
        self.absolute("toolchains.paths", &toolchains.paths);
        Some(Config {
            task,
            limits: limits?,
            gate: gate?,
            retention: retention?,
            toolchains,
            pools,
            placements,
            containers,
            container: container?,
            agents,
            grants,
            checks,
            notify,
            repos,
            forges,
            keys,
            native: native?,
            web: web?,
            mcp,
            server: server?,
            library: Library::built_in(),
        })
    }

    /// Every other agent has a program, and only ours knows of keys, tools and rules.
    fn own_or_foreign(
        &mut self,
        name: &AgentName,
        agent: &AgentProfile,
        keys: &BTreeMap<KeyName, KeyTable>,
    ) {
        let at = |key: &str| place(&["agents", name.as_str(), key]);
        if agent.is_native() {
            for (key, said) in [
                ("program", !agent.program.is_empty()),
                ("args", !agent.args.is_empty()),
                ("env", !agent.env.is_empty()),
                ("broker", agent.broker.is_some()),
                ("login", agent.login.is_some()),
            ] {
                if said {
                    let what = "our own agent has none: the program is ours, and [keys.*] say what \
                                it asks models with";
                    self.problem(&at(key), what.into());
                }
            }
            for choice in &agent.chain {
                let found = keys
                    .get(&choice.key)
                    .map(|table| table.endpoint(&choice.key, &choice.model));
                match found {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => self.problem(&at("chain"), error.to_string()),
                    None => {
                        let there = list(keys.keys());
                        let what =
                            format!("key {} is not configured; there are {there}", choice.key);
                        self.problem(&at("chain"), what);
                    }
                }
            }
            return;
        }
        if agent.program.is_empty() {
            self.problem(&at("program"), "it is empty".into());
        }
        for (key, said) in [
            ("chain", !agent.chain.is_empty()),
            ("system_prompt", agent.system_prompt.is_some()),
            ("tools", agent.tools.is_some()),
            ("mcp", agent.mcp.is_some()),
            ("groups", !agent.groups.is_empty()),
            ("rules", !agent.rules.is_empty()),
        ] {
            if said {
                let what = format!(
                    "{} has no use for it; it is for driver = \"native\"",
                    agent.driver.word()
                );
                self.problem(&at(key), what);
            }
        }
    }

    fn keys(&mut self) -> BTreeMap<KeyName, KeyTable> {
        let written = self.merged.table.get("keys").and_then(Value::as_table);
        let is_text = |table: &Value| table.get("key").is_some_and(|key| !key.is_table());
        let shown: Vec<String> = written
            .into_iter()
            .flatten()
            .filter(|(_, table)| is_text(table))
            .map(|(name, _)| name.clone())
            .collect();
        // A parser's error would show it.
        for name in &shown {
            let what = "a key is taken { from = \"VAR\" }, { file = \"/absolute/path\" } or \
                        { command = [..] }, and never written here";
            self.problem(&place(&["keys", name, "key"]), what.into());
            if let Some(Value::Table(tables)) = self.merged.table.get_mut("keys") {
                tables.remove(name);
            }
        }
        let keys = self.many::<KeyName, KeyTable>("keys");
        for (name, table) in &keys {
            let at = place(&["keys", name.as_str()]);
            for what in table.problems(name) {
                self.problem(&at, what);
            }
        }
        keys
    }

    fn mcp(&mut self) -> BTreeMap<ServerName, McpTable> {
        let servers = self.many::<ServerName, McpTable>("mcp");
        for (name, server) in &servers {
            if let Err(error) = server.way(name) {
                self.problem(&place(&["mcp", name.as_str()]), error.to_string());
            }
        }
        servers
    }

    fn forges(&mut self) -> BTreeMap<ForgeName, Forge> {
        let forges = self.many::<ForgeName, Forge>("forges");
        for (name, forge) in &forges {
            let at = place(&["forges", name.as_str()]);
            // What goes there carries a token.
            let own = ["http://127.0.0.1:", "http://localhost:"];
            if !forge.api.starts_with("https://") && !own.iter().any(|s| forge.api.starts_with(s)) {
                let what = "it is no https:// address";
                self.problem(&format!("{at}.api"), what.into());
            }
            if let Some(EnvValue::Literal(_)) = forge.token {
                let what = "a token is taken { from = .. }, { file = .. } or { command = [..] }, \
                            and never written here";
                self.problem(&format!("{at}.token"), what.into());
            }
        }
        forges
    }

    /// With every name looked up, so that a task is granted no more than what there is.
    fn grants(
        &mut self,
        agents: &BTreeMap<AgentName, AgentProfile>,
        placements: &BTreeMap<PlacementName, Placement>,
        repos: &BTreeMap<RepoName, Repo>,
    ) -> BTreeMap<GrantName, Offer> {
        let mut grants = self.many::<GrantName, Offer>("grants");
        for (name, offer) in &mut grants {
            let at = |key: &str| place(&["grants", name.as_str(), key]);
            for (key, what) in offer.problems() {
                self.problem(&at(key), what);
            }
            for word in &offer.agents {
                let Word::Name(agent) = word else { continue };
                if !agents.contains_key(agent) {
                    let there = list(agents.keys());
                    let what = format!("agent {agent} is not configured; there are {there}");
                    self.problem(&at("agents"), what);
                }
            }
            for word in &offer.placements {
                let Word::Name(wanted) = word else { continue };
                if !placements.contains_key(wanted) {
                    let there = list(placements.keys());
                    let what = format!("placement {wanted} is not configured; there are {there}");
                    self.problem(&at("placements"), what);
                }
            }
            for word in &mut offer.repos {
                let Word::Name(text) = word else { continue };
                let known = repos.iter().find(|(known, _)| known.as_str() == text);
                if let Some((_, repo)) = known {
                    text.clone_from(&repo.place);
                } else if !text.contains(['/', ':']) {
                    let there = match repos.is_empty() {
                        true => "none".to_owned(),
                        false => list(repos.keys()),
                    };
                    let what = format!(
                        "{text:?} is neither a path, nor a URL, nor configured; configured are \
                         {there}"
                    );
                    self.problem(&at("repos"), what);
                }
            }
        }
        grants
    }

    fn granted(
        &mut self,
        name: &AgentName,
        agent: &AgentProfile,
        grant: &GrantName,
        grants: &BTreeMap<GrantName, Offer>,
    ) {
        let at = place(&["agents", name.as_str(), "grant"]);
        if !grants.contains_key(grant) {
            let there = list(grants.keys());
            self.problem(
                &at,
                format!("grant {grant} is not configured; there are {there}"),
            );
        }
        if !agent.driver.knocks() {
            let driver = agent.driver.word();
            let what = format!("{driver} takes no tools of ours, so a grant would be for nothing");
            self.problem(&at, what);
        }
    }

    fn repos(&mut self) -> BTreeMap<RepoName, Repo> {
        let mut out = BTreeMap::new();
        for (name, table) in self.many::<RepoName, RepoTable>("repos") {
            let at = place(&["repos", name.as_str()]);
            let found = match (table.path, table.url) {
                (Some(path), None) if path.starts_with('/') => path,
                (Some(path), None) => {
                    let what = format!("{path:?} is not an absolute path");
                    self.problem(&format!("{at}.path"), what);
                    continue;
                }
                (None, Some(url)) if !url.is_empty() && !url.starts_with(['/', '-']) => url,
                (None, Some(url)) => {
                    self.problem(&format!("{at}.url"), format!("{url:?} is not a URL"));
                    continue;
                }
                (Some(_), Some(_)) | (None, None) => {
                    let what = "give it a path or a url, and not both";
                    self.problem(&at, what.into());
                    continue;
                }
            };
            let repo = Repo {
                place: found,
                default_branch: table.default_branch,
                org: table.org,
            };
            out.insert(name, repo);
        }
        out
    }

    fn hooks(&mut self, agents: &BTreeMap<AgentName, AgentProfile>) -> BTreeMap<HookName, Hook> {
        let hooks = self.many::<HookName, Hook>("notify");
        for (name, hook) in &hooks {
            for agent in hook.agents.iter().filter(|name| !agents.contains_key(name)) {
                let there = list(agents.keys());
                let what = format!("agent {agent} is not configured; there are {there}");
                self.problem(&place(&["notify", name.as_str(), "agents"]), what);
            }
        }
        hooks
    }

    fn server(&mut self) -> Option<Server> {
        let table = self.one::<ServerTable>("server")?;
        let resolved = table.resolve();
        let tell = |(key, what): (&str, String)| self.problem(&place(&["server", key]), what);
        resolved
            .map_err(|problems| problems.into_iter().for_each(tell))
            .ok()
    }

    fn container(&mut self) -> Option<ContainerSettings> {
        let table = self.one::<ContainerTable>("container")?;
        let image = if table.image.is_empty() {
            None
        } else {
            match table.image.parse::<Image>() {
                Ok(image) => Some(image),
                Err(error) => {
                    self.problem("container.image", error.to_string());
                    return None;
                }
            }
        };
        Some(ContainerSettings {
            image,
            runtime: Some(table.runtime),
        })
    }

    fn placements(
        &mut self,
    ) -> (
        BTreeMap<PlacementName, Placement>,
        BTreeMap<PlacementName, ContainerSettings>,
    ) {
        let tables = self.many::<PlacementName, PlacementTable>("placements");
        let (mut out, mut containers) = (BTreeMap::new(), BTreeMap::new());
        for (name, table) in tables {
            let at = format!("placements.{name}");
            if table.wrap == Wrap::Host && (table.strict || table.network != Network::Full) {
                let what = "wrap host has no fence, so it can be neither strict nor with less \
                            than the full network; use wrap = \"cage\"";
                self.problem(&at, what.into());
            }
            // Every surface warns by this name, so it and no other may mean that.
            if (table.wrap == Wrap::Host) != (name.as_str() == Wrap::Host.word()) {
                let what = "wrap host is for the placement named host, and for no other";
                self.problem(&at, what.into());
            }
            let said = ContainerSettings {
                image: table.image,
                runtime: table.runtime,
            };
            if table.wrap == Wrap::Container {
                containers.insert(name.clone(), said);
            } else if said != ContainerSettings::default() {
                let what = "image and runtime are for wrap = \"container\"";
                self.problem(&at, what.into());
            } else if name.as_str() == Wrap::Container.word() {
                let what = "the placement named container is what a task with an image gets, so \
                            its wrap is container";
                self.problem(&at, what.into());
            }
            let placement = Placement {
                name: Some(name.clone()),
                network: table.network,
                strict: table.strict,
                gpu: table.gpu,
                ..Placement::of(table.wrap)
            };
            out.insert(name, placement);
        }
        (out, containers)
    }

    /// Agents that share an account see each other's login, so it must be one and the same.
    fn logins(&mut self, agents: &BTreeMap<AgentName, AgentProfile>) {
        let mut known: BTreeMap<&str, (&AgentName, &Login)> = BTreeMap::new();
        for (name, agent) in agents {
            let Some((account, login)) = agent.account(name) else {
                continue;
            };
            let at = place(&["agents", name.as_str(), "login"]);
            let names: BTreeSet<&str> = login.files.iter().map(HomePath::name).collect();
            if names.is_empty() || names.len() < login.files.len() {
                let what = "files: name at least one, and no two that are called the same";
                self.problem(&at, what.into());
            }
            let variable = login.variable.as_deref();
            if variable.is_some_and(|name| name.is_empty() || name.contains(['=', '\0'])) {
                let what = "variable: it is no name of a variable".to_owned();
                self.problem(&at, what);
            }
            let (first, other) = *known.entry(account).or_insert((name, login));
            if other.files != login.files || other.variable != login.variable {
                let what = format!(
                    "account {account} is agent {first}'s, whose login is kept in other files; \
                     give one of them another `account`"
                );
                self.problem(&at, what);
            }
        }
    }

    /// A broker without a key would hand the agent nothing, and one that nobody is told of is not used.
    fn broker(&mut self, name: &AgentName, agent: &AgentProfile) {
        let named = agent.args.iter().any(|arg| arg.contains(BROKER_URL));
        let Some(broker) = &agent.broker else {
            if named {
                let what = format!("{BROKER_URL} is in it and there is no [agents.{name}.broker]");
                self.problem(&place(&["agents", name.as_str(), "args"]), what);
            }
            return;
        };
        let at = place(&["agents", name.as_str(), "broker"]);
        if !matches!(agent.env.get(&broker.key), Some(EnvValue::Taken { .. })) {
            let what = format!(
                "key = {:?} names no secret of the agent's env, as {{ from = \"{}\" }} is one",
                broker.key, broker.key
            );
            self.problem(&at, what);
        }
        if broker.base_url.is_none() && !named {
            let what = format!(
                "the agent is not told where to send its requests: give base_url = \"VARIABLE\", \
                 or write {BROKER_URL} into its args"
            );
            self.problem(&at, what);
        }
        if broker
            .base_url
            .as_deref()
            .is_some_and(|name| name.is_empty() || name.contains('='))
        {
            self.problem(&at, "base_url is the name of a variable".into());
        }
    }

    fn absolute(&mut self, at: &str, paths: &[String]) {
        for path in paths.iter().filter(|path| !path.starts_with('/')) {
            self.problem(at, format!("{path:?} is not an absolute path"));
        }
    }

    fn problem(&mut self, at: &str, what: String) {
        let below = format!("{at}.");
        let hit = |(key, _): &(&String, &(String, String))| *key == at || key.starts_with(&below);
        // The newest layer that touches the place is the one to mend.
        let mut sources: Vec<&String> = self
            .merged
            .sources
            .iter()
            .filter(hit)
            .map(|(_, (_, source))| source)
            .collect();
        sources.sort_by_key(|source| *source == "defaults");
        let source = sources
            .first()
            .map_or_else(|| "defaults".to_owned(), |s| (*s).clone());
        self.problems.push(Problem {
            at: at.to_owned(),
            source,
            what,
        });
    }

    fn typed<T: DeserializeOwned>(&mut self, at: &str, value: Value) -> Option<T> {
        match value.try_into::<T>() {
            Ok(typed) => Some(typed),
            Err(error) => {
                self.problem(at, error.to_string().trim().replace('\n', " "));
                None
            }
        }
    }

    fn one<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let value = self
            .merged
            .table
            .get(name)
            .cloned()
            .unwrap_or(Value::Table(Table::new()));
        self.typed(name, value)
    }

    fn many<K, T>(&mut self, name: &str) -> BTreeMap<K, T>
    where
        K: Ord + std::str::FromStr<Err = crate::id::BadId>,
        T: DeserializeOwned,
    {
        let mut out = BTreeMap::new();
        let table = match self.merged.table.get(name).cloned() {
            None => return out,
            Some(Value::Table(table)) => table,
            Some(_) => {
                let what = format!("it is no table; write [{name}.NAME]");
                self.problem(name, what);
                return out;
            }
        };
        for (key, value) in table {
            let at = place(&[name, &key]);
            match key.parse::<K>() {
                Err(error) => self.problem(&at, error.to_string()),
                Ok(key) => {
                    if let Some(typed) = self.typed(&at, value) {
                        out.insert(key, typed);
                    }
                }
            }
        }
        out
    }
}

/// Names for a message.
pub fn list<T: fmt::Display>(names: impl Iterator<Item = T>) -> String {
    names
        .map(|name| name.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        match load(&[Layer {
            source: "dispatch.toml",
            text,
        }]) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn a_key_is_named_and_never_written_not_in_an_error_either() {
        let keyed = |key: &str| format!("[keys.main]\nprovider = \"anthropic\"\nkey = {key}\n");
        assert_eq!(problems(&keyed("{ from = \"K\" }")), [""; 0]);
        let written = problems(&keyed("\"sk-ant-api03-secret\"")).join("\n");
        assert!(
            written.contains("keys.main.key: a key is taken { from"),
            "{written}"
        );
        assert!(!written.contains("sk-ant"), "{written}");
        for (table, says) in [
            (
                "key = { file = \"relative\" }",
                "relative is not an absolute path",
            ),
            ("key = { from = \"A=B\" }", "is no name of a variable"),
            ("key = { command = [] }", "the command has no program"),
            ("kye = { from = \"K\" }", "kye"),
            ("auth = \"bearer\"", "names no key"),
            (
                "key = { from = \"K\" }\nheaders = { Authorization = \"x\" }",
                "the key's own",
            ),
            (
                "key = { from = \"K\" }\nmodels = [{ match = \"q*\", path = \"x\" }]",
                "begin with a slash",
            ),
        ] {
            let got = problems(&format!("[keys.main]\nprovider = \"anthropic\"\n{table}\n"));
            assert!(got.join("\n").contains(says), "{table}: {got:?}");
        }
    }

    #[test]
    fn what_is_of_our_own_agent_is_of_no_other() {
        for (text, says) in [
            (
                "[agents.native]\nprogram = \"x\"\n",
                "agents.native.program: our own agent has none",
            ),
            ("[agents.native]\nargs = [\"x\"]\n", "agents.native.args"),
            (
                "[agents.native]\nchain = [{ key = \"gone\", model = \"m\" }]\n",
                "agents.native.chain: key gone is not configured",
            ),
            (
                "[agents.codex]\nrules = [{ group = \"edit\", pattern = \"*\", action = \"deny\" }]\n",
                "codex has no use for it",
            ),
            ("[agents.native.groups]\nfly = \"allow\"\n", "fly"),
            ("[native.groups]\nshell = \"maybe\"\n", "maybe"),
            ("[native]\nsteps = 3\n", "steps"),
        ] {
            let got = problems(text).join("\n");
            assert!(got.contains(says), "{text}: {got}");
        }
        let own: AgentName = "native".parse().unwrap();
        let config = Config::defaults();
        assert_eq!(config.agents[&own].program, OWN_PROGRAM);
        assert_eq!(config.agents[&own].permissions, Permissions::Ask);
    }

    #[test]
    fn what_stands_behind_the_colon() {
        let extra = "[agents.codex.files]\n\".codex/lemma.config.toml\" = { file = \"/p\" }\n";
        let layer = Layer {
            source: "mine",
            text: extra,
        };
        let config = load(&[layer]).unwrap().0;
        let got = |text: &str| {
            let selection = config.select(text).unwrap();
            let word = |name: Option<ModelName>| name.map_or(String::new(), String::from);
            let (model, profile) = (word(selection.model), word(selection.profile));
            format!(
                "{} {model} {profile} {:?}",
                selection.agent, selection.command
            )
        };
        for (text, want) in [
            ("codex", "codex   []"),
            ("codex:gpt-5.1", "codex gpt-5.1  []"),
            ("codex:review", "codex-review   []"),
            ("codex:lemma", "codex  lemma []"),
            ("gemini:flash", "gemini gemini-2.5-flash  []"),
            ("opencode:anthropic/x:y", "opencode anthropic/x:y  []"),
            ("coderabbit:committed", "coderabbit committed  []"),
            ("acp:goose acp --x", "acp   [\"goose\", \"acp\", \"--x\"]"),
        ] {
            assert_eq!(got(text), want, "{text}");
        }
        for (text, part) in [
            ("gpt", "there are acp, claude"),
            ("codex:", "name"),
            ("codex:--yolo", "name"),
            ("codex:lemer", ".codex/lemer.config.toml"),
            ("acp", "behind the colon"),
            ("acp: ", "behind the colon"),
        ] {
            let error = config.select(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(config.select("local").unwrap().model, None);
        let local: AgentName = "local".parse().unwrap();
        let model = config.agents[&local].model.clone().map(String::from);
        assert_eq!(model.as_deref(), Some("devstral-24b"));
    }

    #[test]
    fn grants_name_what_there_is() {
        let text = "[repos.api]\nurl = \"https://h/api.git\"\n[grants.lead]\ntools = [\"dispatch\"]\n\
                    repos = [\"own\", \"api\", \"/src/web\"]\nagents = [\"own\", \"codex\"]\n\
                    placements = [\"any\"]\nchildren_max = 2\nchildren_live_max = 1\n\
                    [agents.claude]\ngrant = \"lead\"\n";
        let config = load(&[Layer {
            source: "mine",
            text,
        }])
        .unwrap()
        .0;
        let lead: GrantName = "lead".parse().unwrap();
        let claude: AgentName = "claude".parse().unwrap();
        assert_eq!(config.agents[&claude].grant, Some(lead.clone()));
        let named = |text: &str| Word::Name(text.to_owned());
        let places = [Word::Own, named("https://h/api.git"), named("/src/web")];
        assert_eq!(config.grants[&lead].repos, places);
        for (text, part) in [
            (
                "agents = [\"nobody\"]",
                "grants.x.agents: agent nobody is not configured",
            ),
            (
                "placements = [\"cave\"]",
                "grants.x.placements: placement cave is not",
            ),
            (
                "repos = [\"nope\"]",
                "grants.x.repos: \"nope\" is neither a path",
            ),
            ("children_max = 0", "grants.x.children_max: it is 0"),
            ("depth = 99", "grants.x.depth: it is 99"),
            (
                "[agents.coderabbit]\ngrant = \"x\"",
                "coderabbit takes no tools of ours",
            ),
            (
                "[agents.claude]\ngrant = \"y\"",
                "grant y is not configured; there are helpers, summons, x",
            ),
        ] {
            let most = "children_max = 1\n";
            let most = if text.starts_with("children_max") {
                ""
            } else {
                most
            };
            let all = problems(&format!(
                "[grants.x]\ntools = [\"dispatch\"]\nchildren_live_max = 1\n{most}{text}\n"
            ));
            assert!(all.join("\n").contains(part), "{all:?}");
        }
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(problems(""), [""; 0]);
        assert_eq!(Config::defaults().limits.wall_clock_s, 4 * 3600);
    }

    #[test]
    fn every_problem_is_told_at_once_and_lists_what_exists() {
        let got = problems(
            "[limits]\nwall_clock = 3\n[agents.x]\ndriver = \"plain\"\nprogram = \"\"\npool = \"nope\"\n\
             placement = \"host\"\n[agents.y]\ndriver = \"telepathy\"\n[nonsense]\na = 1\n[pools.p]\nslots = 0\n\
             [task]\nplacement = \"cave\"\n[placements.open]\nwrap = \"host\"\nnetwork = \"none\"\n\
             [placements.cage]\nwrap = \"host\"\n",
        );
        let all = got.join("\n");
        for part in [
            "unknown field `wall_clock`, expected one of `wall_clock_s`",
            "agents.x.program: it is empty",
            "pool nope is not configured; there are anthropic, coderabbit, default",
            "agents.y",
            "expected one of `plain`",
            "nonsense: unknown table; there are task",
            "pools.p.slots: 0 slots",
            "placement cave is not configured; there are cage, container, host",
            "placements.open: wrap host has no fence",
            "placements.cage: wrap host is for the placement named host",
        ] {
            assert!(all.contains(part), "{part} not in:\n{all}");
        }
        assert!(
            got.iter().all(|line| line.starts_with("dispatch.toml: ")),
            "{all}"
        );
    }

    #[test]
    fn layers_lay_over_each_other_key_by_key() {
        let text = "[limits]\nidle_s = 7\n[agents.claude]\nargs = [\"--model\", \"x\"]\n\
                    [agents.claude.env]\nA = { from = \"B\" }\n";
        let (config, sourced) = load(&[Layer {
            source: "mine",
            text,
        }])
        .unwrap();
        assert_eq!(
            (config.limits.idle_s, config.limits.wall_clock_s),
            (7, 14400)
        );
        let claude = &config.agents[&"claude".parse().unwrap()];
        assert_eq!(claude.args, ["--model", "x"]);
        assert_eq!(
            claude.env["A"],
            EnvValue::Taken {
                source: Source::Variable("B".into()),
                optional: false
            }
        );
        assert!(claude.env.contains_key("ANTHROPIC_API_KEY"));
        let idle = sourced.iter().find(|s| s.key == "limits.idle_s").unwrap();
        assert_eq!((idle.value.as_str(), idle.source.as_str()), ("7", "mine"));
    }

    /// Found by the fuzz target `config`: such a name was taken apart at its dots.
    #[test]
    fn a_name_may_hold_dots() {
        let text = "[agents.\"claude-3.5\"]\ndriver = \"claude\"\nprogram = \"c\"\npool = \"p.q\"\n\
                    placement = \"host\"\nenv = { \"A.B\" = \"x\" }\n[pools.\"p.q\"]\nslots = 2\n";
        let (config, sourced) = load(&[Layer {
            source: "mine",
            text,
        }])
        .unwrap();
        let agent = &config.agents[&"claude-3.5".parse().unwrap()];
        assert_eq!(agent.env["A.B"], EnvValue::Literal("x".into()));
        let slots = sourced.iter().find(|s| s.key == "pools.\"p.q\".slots");
        assert_eq!(slots.unwrap().value, "2");
        for (text, at) in [
            (
                "[pools.\"a.b\"]\nslots = 0\n",
                "pools.\"a.b\".slots: 0 slots",
            ),
            (
                "[pools.\"\"]\nslots = 1\n",
                "pools.\"\": read a pool's name",
            ),
            ("\"a.b\" = 1\n", "\"a.b\": unknown table"),
        ] {
            assert!(problems(text)[0].contains(at), "{:?}", problems(text));
        }
    }

    /// Without the message `checks = 3` would mean that nothing is checked.
    #[test]
    fn what_should_be_a_table_is_never_passed_over() {
        for name in TABLES {
            let got = problems(&format!("{name} = 3\n"));
            assert!(
                got[0].starts_with(&format!("dispatch.toml: {name}: ")),
                "{got:?}"
            );
        }
    }

    #[test]
    fn secrets_come_from_three_places() {
        let value = |text: &str| format!("x = {text}").parse::<Table>().unwrap().remove("x");
        let read = |text: &str| EnvValue::try_from(value(text).unwrap());
        let agent = "claude".parse().unwrap();
        let key = |text: &str| read(text).unwrap().key(&agent, "KEY");
        assert_eq!(key("\"text\""), None);
        assert_eq!(key("{ from = \"VAR\" }"), Some("VAR".into()));
        assert_eq!(key("{ file = \"/a\" }"), Some("claude/KEY".into()));
        assert_eq!(
            read("{ command = [\"pass\", \"show\"], optional = true }").unwrap(),
            EnvValue::Taken {
                source: Source::Command(vec!["pass".into(), "show".into()]),
                optional: true
            }
        );
        for bad in [
            "1",
            "{ }",
            "{ from = \"\" }",
            "{ from = \"a/b\" }",
            "{ file = \"relative\" }",
            "{ command = \"pass show\" }",
            "{ command = [] }",
            "{ command = [1] }",
            "{ from = \"A\", file = \"/a\" }",
            "{ from = \"A\", optional = 1 }",
            "{ form = \"A\" }",
        ] {
            assert!(read(bad).unwrap_err().contains("absolute"), "{bad}");
        }
    }

    #[test]
    fn a_login_stays_below_the_home_and_an_account_is_of_one_kind() {
        let table = |files: &str, account: &str| {
            format!(
                "[agents.x]\ndriver = \"plain\"\nprogram = \"x\"\npool = \"default\"\n\
                 [agents.x.login]\nargs = []\nfiles = {files}\naccount = \"{account}\"\n"
            )
        };
        for (text, part) in [
            (table("[\"../x\"]", "x"), "below the private home"),
            (table("[\"/etc/x\"]", "x"), "below the private home"),
            (table("[]", "x"), "at least one"),
            (table("[\"a/x\", \"b/x\"]", "x"), "called the same"),
            (table("[\"x\"]", "../x"), "account"),
            (table("[\"x\"]", "codex"), "account codex is agent codex's"),
            (
                table("[\"x\"]", "x") + "variable = \"A=B\"\n",
                "no name of a variable",
            ),
        ] {
            let got = problems(&text).join("\n");
            assert!(got.contains(part), "{part} not in {got}");
        }
        let config = Config::defaults();
        let name: AgentName = "codex".parse().unwrap();
        let (account, login) = config.agents[&name].account(&name).unwrap();
        assert_eq!((account, login.files[0].name()), ("codex", "auth.json"));
    }

    #[test]
    fn only_one_that_asks_can_be_asked_for() {
        let agent = |driver: &str, word: &str| {
            problems(&format!(
                "[agents.x]\ndriver = \"{driver}\"\nprogram = \"x\"\npool = \"default\"\n\
                 permissions = \"{word}\"\n"
            ))
            .join("\n")
        };
        for driver in ["acp", "claude", "codex_app", "codex", "plain", "coderabbit"] {
            assert_eq!(agent(driver, "allow"), "");
            for word in ["ask", "deny"] {
                let got = agent(driver, word);
                let asks = ["acp", "claude", "codex_app"].contains(&driver);
                assert_eq!(got.is_empty(), asks, "{driver} {word}: {got}");
                let named = format!("agents.x.permissions: {driver} asks for no permission");
                assert!(asks || got.contains(&named), "{got}");
            }
        }
        assert!(agent("acp", "never").contains("expected one of `allow`, `ask`, `deny`"));
        let zero = problems("[limits]\nask_wait_s = 0\n");
        assert!(zero[0].contains("limits.ask_wait_s is 0"), "{zero:?}");
    }

    #[test]
    fn images_are_parsed_where_they_are_written() {
        let got = problems(
            "[container]\nimage = \"-v\"\n[placements.c]\nwrap = \"container\"\nimage = \"a b\"\n\
             [placements.d]\nwrap = \"cage\"\nimage = \"debian\"\n[placements.container]\n\
             wrap = \"cage\"\n[agents.claude]\nimage = \"\"\n",
        );
        let all = got.join("\n");
        for part in [
            "container.image: use image \"-v\"",
            "placements.c: use image \"a b\"",
            "placements.d: image and runtime are for wrap",
            "placements.container: the placement named container",
            "agents.claude: use image \"\"",
        ] {
            assert!(all.contains(part), "{part} not in:\n{all}");
        }
        let text = "[container]\nruntime = \"podman\"\n[placements.c]\nwrap = \"container\"\n\
                    image = \"debian:12\"\nnetwork = \"none\"\n";
        let source = "mine";
        let (config, _) = load(&[Layer { source, text }]).unwrap();
        assert_eq!(config.container.runtime, Some(RuntimeAsked::Podman));
        let said = &config.containers[&"c".parse().unwrap()];
        assert_eq!(said.image, Some("debian:12".parse().unwrap()));
        assert_eq!(said.runtime, None);
    }

    #[test]
    fn a_list_of_hosts_is_read_and_a_bad_one_is_told() {
        let read = |network: &str| {
            let text = format!("[placements.open]\nwrap = \"cage\"\nnetwork = {network}\n");
            load(&[Layer {
                source: "x",
                text: &text,
            }])
        };
        let (config, _) = read("{ allow = [\"api.anthropic.com\", \"*.a.test:8443\"] }").unwrap();
        let network = &config.placements[&"open".parse().unwrap()].network;
        assert_eq!(network.word(), "allow(2 hosts)");
        let json = serde_json::to_string(network).unwrap();
        assert_eq!(json, r#"{"allow":["api.anthropic.com","*.a.test:8443"]}"#);
        assert_eq!(serde_json::from_str::<Network>(&json).unwrap(), *network);
        for bad in [
            "{ allow = [\"10.0.0.1\"] }",
            "{ deny = [] }",
            "\"some\"",
            "{ allow = \"a.test\" }",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_broker_has_a_key_and_the_agent_is_told_of_it() {
        let agent = |rest: &str| {
            problems(&format!(
                "[agents.x]\ndriver = \"plain\"\nprogram = \"x\"\npool = \"default\"\n{rest}"
            ))
            .join("\n")
        };
        let key = "env = { K = { from = \"K\" } }\n";
        let broker = "[agents.x.broker]\nkey = \"K\"\nupstream = \"https://a.test\"\n";
        assert_eq!(agent(&format!("{key}{broker}base_url = \"URL\"\n")), "");
        assert_eq!(
            agent(&format!("{key}args = [\"u={{broker_url}}/v1\"]\n{broker}")),
            ""
        );
        for (rest, what) in [
            (format!("{key}{broker}"), "write {broker_url} into its args"),
            (
                format!("env = {{ K = \"text\" }}\n{broker}base_url = \"URL\"\n"),
                "names no secret",
            ),
            (
                format!("{key}args = [\"{{broker_url}}\"]\n"),
                "there is no [agents.x.broker]",
            ),
            (
                format!("{key}{broker}base_url = \"\"\n"),
                "the name of a variable",
            ),
            (
                format!(
                    "{key}[agents.x.broker]\nkey = \"K\"\nbase_url = \"U\"\nupstream = \"http://a.test\"\n"
                ),
                "where nobody else reads the key",
            ),
        ] {
            let got = agent(&rest);
            assert!(got.contains(what), "{what} not in {got:?}");
        }
    }

    #[test]
    fn a_file_that_is_not_toml_says_where() {
        assert!(problems("[limits\n")[0].contains("line 1"));
    }
}
