//! What callers may ask, and the one place where a request becomes a `TaskSpec`.
//! Must not leave a "maybe" behind: defaults are applied and names resolved here.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use dispatch_core::{
    ask::Permissions,
    attach::{self, BadAttachment},
    chain::BadChain,
    config::{AgentProfile, Config, SelectError, Selection, list},
    container::{BadImage, BadRuntime, Container, Image, RuntimeAsked},
    event::Scope,
    gate::MicroUsd,
    grant::{Grant, Offer, Tool},
    id::{AgentName, CheckName, GrantName, ModelName, PlacementName},
    keys::RequestKey,
    limits::Lowered,
    models::Choice,
    prompt::{Guide, GuideError, TextKind},
    redact::Redactor,
    rules::Rule,
    secret::{Secret, travel},
    servers::{self, BadServer},
    task::{
        Base, ChecksAsked, Effort, Expects, IssueText, Labels, Network, Placement, Priority, Taken,
        TaskSpec, Terms, Tuning, Turn, Wrap, title_of,
    },
    toolset::Toolset,
};
use dispatch_engine::{
    attachments::NewFile,
    reads::{Listing, Order},
    view::Given,
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{shapes, task::STATES};

/// Values of variables by name; never printed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct Secrets(
    #[serde(with = "travel")]
    #[schemars(with = "shapes::Secrets")]
    pub(crate) BTreeMap<String, Secret>,
);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What a file holds; never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Content(pub(crate) Vec<u8>);

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64_STANDARD.decode(text);
        bytes.map(Self).map_err(|error| {
            de::Error::custom(format!(
                "the content of an attachment is no base64: {error}"
            ))
        })
    }
}

/// A file that comes along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Attach {
    pub(crate) name: String,
    /// What it holds.
    #[schemars(with = "String")]
    pub(crate) base64: Content,
}

impl From<Attach> for NewFile {
    fn from(attach: Attach) -> Self {
        Self {
            name: attach.name,
            bytes: attach.base64.0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ChecksWord {
    Detect,
    None,
}

/// `"detect"`, `"none"` or names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum ChecksWanted {
    Word(ChecksWord),
    Named(#[schemars(with = "Vec<String>")] Vec<CheckName>),
}

/// By which definition the agent of a task summons another one.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Summon {
    /// The name of its file, without the ending.
    pub(crate) agent: String,
    /// Fewer tools than it has otherwise: names of tools or of groups.
    #[serde(default)]
    pub(crate) tools: Option<Vec<String>>,
    /// A directory of the repository, below the caller's own.
    #[serde(default)]
    pub(crate) working_directory: Option<String>,
    /// It stands for itself: it is not waited for, and goes on without its caller.
    #[serde(default)]
    pub(crate) top_level: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dispatch {
    pub(crate) task: String,
    /// Only for the agent of a task, and only where that is the native one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) summon: Option<Summon>,
    /// A configured name, an absolute path or a URL.
    #[serde(default)]
    pub(crate) repo: Option<String>,
    /// Instead of a repository: a directory, of which the task gets a copy.
    #[serde(default)]
    pub(crate) dir: Option<String>,
    /// Instead of a repository: nothing.
    #[serde(default)]
    pub(crate) no_repo: bool,
    pub(crate) title: Option<String>,
    pub(crate) branch: Option<String>,
    pub(crate) agent: Option<String>,
    pub(crate) model: Option<String>,
    /// Of our own agent: whom it asks, the first before the second, in place of a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<shapes::Choice>>")]
    pub(crate) chain: Option<Vec<Choice>>,
    #[schemars(with = "Option<shapes::Priority>")]
    pub(crate) priority: Option<Priority>,
    /// Whole ids of tasks that must complete first.
    #[serde(default)]
    pub(crate) after: Vec<String>,
    pub(crate) budget_tokens: Option<u64>,
    #[schemars(with = "Option<f64>")]
    pub(crate) budget_usd: Option<MicroUsd>,
    pub(crate) placement: Option<String>,
    /// A container's image; without a placement it makes one of the task's.
    pub(crate) image: Option<String>,
    /// auto, apple, docker or podman.
    pub(crate) runtime: Option<String>,
    #[schemars(with = "Option<shapes::Expects>")]
    pub(crate) expects: Option<Expects>,
    /// What becomes of the agent's permission requests, instead of what its table says.
    #[serde(default)]
    #[schemars(with = "Option<shapes::Permissions>")]
    pub(crate) permissions: Option<Permissions>,
    /// What its agent may do at our door: a configured grant, or `none`; instead of what its table says.
    #[serde(default)]
    pub(crate) grant: Option<String>,
    /// The most that the repository lets it have; never from a caller.
    #[serde(skip)]
    pub(crate) grant_most: Option<String>,
    /// Of our own agent: what it may not do, or not unasked, for this task. They only take away; the
    /// last one that matches counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<shapes::Rule>")]
    pub(crate) rules: Vec<Rule>,
    /// The same of the repository's; never from a caller.
    #[serde(skip)]
    pub(crate) rules_most: Vec<Rule>,
    /// Of an agent's: it does not wait for its end.
    #[serde(default)]
    pub(crate) detached: bool,
    pub(crate) checks: Option<ChecksWanted>,
    /// Where the commits under review begin; makes it a review.
    #[serde(default)]
    pub(crate) review_base: Option<String>,
    pub(crate) workspace: Option<String>,
    /// What to do when another task has the workspace.
    #[serde(default)]
    #[schemars(with = "shapes::Taken")]
    pub(crate) taken: Taken,
    pub(crate) parent: Option<String>,
    pub(crate) org: Option<String>,
    pub(crate) issue: Option<u64>,
    pub(crate) pr: Option<u64>,
    pub(crate) tag: Option<String>,
    /// Lower than the configuration's, for the jobs of this task.
    #[serde(default)]
    #[schemars(with = "shapes::Lowered")]
    pub(crate) limits: Lowered,
    pub(crate) template: Option<String>,
    pub(crate) persona: Option<String>,
    pub(crate) plan: Option<String>,
    #[serde(default)]
    pub(crate) variables: BTreeMap<String, String>,
    #[schemars(with = "Option<shapes::Effort>")]
    pub(crate) effort: Option<Effort>,
    #[serde(default)]
    #[schemars(with = "Option<shapes::IssueText>")]
    pub(crate) issue_text: Option<IssueText>,
    #[serde(default)]
    pub(crate) attachments: Vec<Attach>,
    #[serde(default)]
    pub(crate) secrets: Secrets,
}

/// An answer to what an agent asks permission for.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Permit {
    pub(crate) allow: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
    /// With `allow`, and of our own agent: the very same needs no more asking until the task's end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) always: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Answer {
    pub(crate) text: String,
    /// From the next run on.
    #[serde(default)]
    pub(crate) model: Option<String>,
    #[serde(default)]
    #[schemars(with = "Option<shapes::Effort>")]
    pub(crate) effort: Option<Effort>,
    /// Of our own agent: whom it asks from the next run on, in place of a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<shapes::Choice>>")]
    pub(crate) chain: Option<Vec<Choice>>,
    #[serde(default)]
    pub(crate) secrets: Secrets,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Say {
    pub(crate) text: String,
    #[serde(default)]
    pub(crate) attachments: Vec<Attach>,
    /// From the next run on.
    #[serde(default)]
    pub(crate) model: Option<String>,
    #[serde(default)]
    #[schemars(with = "Option<shapes::Effort>")]
    pub(crate) effort: Option<Effort>,
    /// Of our own agent: whom it asks from the next run on, in place of a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<shapes::Choice>>")]
    pub(crate) chain: Option<Vec<Choice>>,
    #[serde(default)]
    pub(crate) secrets: Secrets,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resume {
    /// Another agent than the one it has.
    #[serde(default)]
    pub(crate) agent: Option<String>,
    /// From the next run on.
    #[serde(default)]
    pub(crate) model: Option<String>,
    #[serde(default)]
    #[schemars(with = "Option<shapes::Effort>")]
    pub(crate) effort: Option<Effort>,
    /// Of our own agent: whom it asks from the next run on, in place of a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<shapes::Choice>>")]
    pub(crate) chain: Option<Vec<Choice>>,
    #[serde(default)]
    pub(crate) secrets: Secrets,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Force {
    #[default]
    Ask,
    Kill,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stop {
    #[serde(default)]
    pub(crate) force: Force,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WaitFor {
    #[default]
    All,
    /// The next one that was not heard of.
    Any,
}

/// Waits for the end of tasks. To an agent it delivers the ends of what it asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wait {
    /// Whole ids. For an agent, none: all that it waits for.
    #[serde(default)]
    pub(crate) tasks: Vec<String>,
    #[serde(default)]
    pub(crate) mode: WaitFor,
    /// 50 unless said, 3600 at most.
    #[serde(default)]
    pub(crate) timeout_s: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Apply {
    pub(crate) to: Option<PathBuf>,
    /// A person has said that the files of a directory without git may be written.
    #[serde(default)]
    pub(crate) write: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Clean {
    pub(crate) states: Vec<String>,
    pub(crate) older_than_ms: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Freeze {
    pub(crate) frozen: bool,
    /// Without these two, everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pool: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) repo: Option<String>,
}

impl Freeze {
    pub(crate) fn scope(&self) -> Result<Scope, BadRequest> {
        Ok(match (&self.pool, &self.repo) {
            (None, None) => Scope::All,
            (Some(pool), None) => Scope::Pool(pool.parse()?),
            (None, Some(repo)) => Scope::Repo(repo.clone()),
            (Some(_), Some(_)) => return Err(BadRequest::TwoScopes),
        })
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retry {
    /// From the next run on.
    #[serde(default)]
    pub(crate) model: Option<String>,
    #[serde(default)]
    #[schemars(with = "Option<shapes::Effort>")]
    pub(crate) effort: Option<Effort>,
    /// Of our own agent: whom it asks from the next run on, in place of a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<shapes::Choice>>")]
    pub(crate) chain: Option<Vec<Choice>>,
    #[serde(default)]
    pub(crate) secrets: Secrets,
}

/// Which tasks; without any of it the first thousand.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct List {
    /// In one of these states, with commas between.
    #[serde(default)]
    pub(crate) state: Option<String>,
    /// A configured name, an absolute path or a URL.
    #[serde(default)]
    pub(crate) repo: Option<String>,
    /// Whole id of the task that asked for them.
    #[serde(default)]
    pub(crate) parent: Option<String>,
    /// How their ids begin.
    #[serde(default)]
    pub(crate) prefix: Option<String>,
    /// The name of their workspace.
    #[serde(default)]
    pub(crate) workspace: Option<String>,
    /// Which come first.
    #[serde(default)]
    pub(crate) order: ListOrder,
    /// Whole id of the last task of the page before: `dispatch-next`.
    #[serde(default)]
    pub(crate) after: Option<String>,
    #[serde(default)]
    #[schemars(range(min = 1, max = 1000))]
    pub(crate) limit: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ListOrder {
    #[default]
    Oldest,
    Newest,
}

impl From<ListOrder> for Order {
    fn from(order: ListOrder) -> Self {
        match order {
            ListOrder::Oldest => Self::OldestFirst,
            ListOrder::Newest => Self::NewestFirst,
        }
    }
}

/// Tasks of one page.
pub(crate) const PAGE_MAX: usize = 1000;

impl List {
    pub(crate) fn listing(self, config: &Config) -> Result<Listing, BadRequest> {
        let limit = self.limit.unwrap_or(PAGE_MAX);
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(BadRequest::Page(limit));
        }
        let words = self.state.iter().flat_map(|words| words.split(','));
        let states: Vec<String> = words.map(str::to_owned).collect();
        if let Some(unknown) = states.iter().find(|word| !STATES.contains(&word.as_str())) {
            let state = unknown.clone();
            return Err(BadRequest::State { state });
        }
        let id = |text: Option<String>| text.map(|id| id.parse()).transpose();
        Ok(Listing {
            states,
            repo: self.repo.map(|repo| place(config, &repo).to_owned()),
            parent: id(self.parent)?,
            family: None,
            prefix: self.prefix,
            workspace: self.workspace,
            order: self.order.into(),
            after: id(self.after)?,
            limit,
        })
    }
}

/// Which part of what a job wrote.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogPart {
    /// The first byte.
    #[serde(default)]
    pub(crate) from: u64,
    /// Instead: so many bytes from the end.
    #[serde(default)]
    pub(crate) last: Option<u64>,
    /// How many bytes at most.
    #[serde(default)]
    #[schemars(range(min = 1, max = 8_388_608))]
    pub(crate) limit: Option<u64>,
    /// Standard error instead of output.
    #[serde(default)]
    pub(crate) err: bool,
    /// Of a check, by its name, instead of the agent.
    #[serde(default)]
    pub(crate) check: Option<String>,
}

/// Of which run.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfRun {
    /// Its number; without it, the last one.
    #[serde(default)]
    pub(crate) run: Option<u32>,
}

/// Why a request is refused before the engine hears of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRequest {
    #[error(transparent)]
    Agent(#[from] SelectError),
    #[error("use placement {name}: it is not configured; there are {there}")]
    UnknownPlacement { name: String, there: String },
    #[error(
        "use placement {0}: it has no fence, and task.allow_host is false; set it to true in \
         dispatch.toml to let tasks ask for it"
    )]
    HostNotAllowed(PlacementName),
    #[error(transparent)]
    Image(#[from] BadImage),
    #[error(transparent)]
    Runtime(#[from] BadRuntime),
    #[error(
        "use placement {0}: it is a container, and neither task nor agent nor configuration names \
         an image; name one with --image, or as `image` in dispatch.toml"
    )]
    NoImage(PlacementName),
    #[error(
        "use an image in placement {0}: it is no container; leave the placement out, or use one \
         with wrap = \"container\""
    )]
    NoContainer(PlacementName),
    #[error("use check {name}: it is not configured; there are {there}")]
    UnknownCheck { name: String, there: String },
    #[error("start the review at {0}: the task expects something else than a review")]
    NoReview(String),
    #[error("deny always: a denial is for this request; rules of the agent's table deny always")]
    DenyAlways,
    #[error("use rules: agent {agent} has none ({driver}); they are of the native agent")]
    Rules {
        agent: AgentName,
        driver: &'static str,
    },
    #[error("use a model and a chain: a chain says all of it; leave one of them out")]
    ModelAndChain,
    #[error(transparent)]
    Chain(#[from] BadChain),
    #[error("use one model: it is named behind the agent's colon and beside it")]
    TwoModels,
    #[error("freeze: name a pool or a repository, not both")]
    TwoScopes,
    #[error("read the task: {0}")]
    Text(String),
    #[error("list {0} tasks: a page has 1 to {PAGE_MAX}")]
    Page(usize),
    #[error("list tasks in state {state:?}: there are {}", STATES.join(", "))]
    State { state: String },
    #[error(
        "use repository {name:?}: it is neither configured, nor an absolute path, nor a URL; \
         configured are {there}"
    )]
    Repo { name: String, there: String },
    #[error("use directory {0:?}: it is not an absolute path")]
    Dir(String),
    #[error("start from {one} and {other}: a task starts from one of them; leave one out")]
    Together {
        one: &'static str,
        other: &'static str,
    },
    #[error("start a task: it names no repository; give `repo`, `dir` or `no_repo`")]
    NoPlace,
    #[error("start from pull request 0: they are numbered from 1")]
    Number,
    #[error("use {0}; no request can raise them")]
    Limit(String),
    /// Of the repository's own `dispatch.toml`, in whole words.
    #[error("{0}")]
    Project(String),
    #[error("make the prompt: {0}")]
    Guide(#[from] GuideError),
    #[error("use effort {}: agent {agent} {takes}", effort.word())]
    Effort {
        agent: AgentName,
        effort: Effort,
        takes: String,
    },
    #[error(
        "use permissions {}: agent {agent} asks for none ({driver}), its fence holds it; there are \
         {there}", asked.word()
    )]
    Permissions {
        agent: AgentName,
        driver: &'static str,
        asked: Permissions,
        there: String,
    },
    #[error("use grant {name}: it is not configured; there are none, {there}")]
    UnknownGrant { name: String, there: String },
    #[error("use grant {name}: agent {agent} takes no tools of ours ({driver})")]
    NoDoor {
        name: String,
        agent: AgentName,
        driver: &'static str,
    },
    #[error(transparent)]
    Servers(#[from] BadServer),
    #[error(transparent)]
    Attach(#[from] BadAttachment),
    #[error("{0}")]
    Name(#[from] dispatch_core::id::BadId),
}

/// In place of names that agents are not told.
const UNTOLD: &str = "some that people can look up";

impl BadRequest {
    /// The same for an agent, which hears of what its grant has and not of what else is configured.
    pub(crate) fn told_to(mut self, grant: &Grant) -> Self {
        match &mut self {
            Self::Agent(SelectError::Unknown { there, .. }) => *there = grant.agents.to_string(),
            Self::UnknownPlacement { there, .. } => *there = grant.placements.to_string(),
            Self::Repo { there, .. } => *there = grant.repos.to_string(),
            Self::UnknownCheck { there, .. }
            | Self::UnknownGrant { there, .. }
            | Self::Permissions { there, .. } => *there = UNTOLD.to_owned(),
            _ => {}
        }
        self
    }
}

/// `https://..`, `ssh://..`, `file://..` or `user@host:path`.
pub(crate) fn is_url(repo: &str) -> bool {
    let scheme = ["https://", "http://", "ssh://", "git://", "file://"];
    if scheme.iter().any(|s| repo.starts_with(s)) {
        return true;
    }
    // As git reads it: a colon before any slash, with something on both sides.
    match repo.split_once(':') {
        Some((host, path)) => {
            !host.is_empty()
                && !path.is_empty()
                && !host.contains('/')
                && !host.starts_with('-')
                && host.contains('@')
        }
        None => false,
    }
}

/// No repository of that name; says which there are.
pub(crate) fn unknown_repo(config: &Config, name: &str) -> BadRequest {
    let there = match config.repos.is_empty() {
        true => "none".to_owned(),
        false => list(config.repos.keys()),
    };
    let name = name.to_owned();
    BadRequest::Repo { name, there }
}

/// The path or URL behind a configured name; anything else is one already.
pub(crate) fn place<'a>(config: &'a Config, repo: &'a str) -> &'a str {
    let known = config.repos.iter().find(|(name, _)| name.as_str() == repo);
    known.map_or(repo, |(_, known)| &known.place)
}

/// The name of an agent that is configured, or of the default one.
pub(crate) fn agent(config: &Config, asked: Option<&str>) -> Result<Selection, BadRequest> {
    let default = config.task.agent.as_str();
    Ok(config.select(asked.unwrap_or(default))?)
}

/// The placement asked for, or the agent's own, or a container where an image is named and nothing
/// else was asked for. No fence is never what a task gets by default, and only what its
/// configuration names or allows.
fn placement(
    config: &Config,
    profile: &AgentProfile,
    asked: Option<&str>,
    container: &Asked,
) -> Result<Placement, BadRequest> {
    let own = profile.placement.as_ref().map(PlacementName::as_str);
    let own = own.filter(|name| container.image.is_none() || is_container(config, name));
    let Some(name) = asked.or(own) else {
        return unasked(config, profile, container);
    };
    let Some((name, placement)) = config.placements.iter().find(|(n, _)| n.as_str() == name) else {
        return Err(BadRequest::UnknownPlacement {
            name: name.to_owned(),
            there: list(config.placements.keys()),
        });
    };
    let named_by_agent = profile.placement.as_ref() == Some(name);
    if placement.wrap == Wrap::Host && !named_by_agent && !config.task.allow_host {
        return Err(BadRequest::HostNotAllowed(name.clone()));
    }
    if placement.wrap == Wrap::Container {
        return contained(config, profile, name, placement.clone(), container);
    }
    if container.image.is_some() || container.runtime.is_some() {
        return Err(BadRequest::NoContainer(name.clone()));
    }
    Ok(placement.clone())
}

/// Where a task starts, and for whom.
struct Place {
    repo: String,
    base: Base,
    org: Option<String>,
}

/// What a task may spend: less than the configuration allows, never more. 0 means no limit.
fn least<T: Ord + Default + Copy>(asked: Option<T>, configured: T) -> T {
    let none = T::default();
    match asked.filter(|asked| *asked != none) {
        Some(asked) if configured == none => asked,
        Some(asked) => asked.min(configured),
        None => configured,
    }
}

/// What a request says of containers, parsed.
#[derive(Debug, Default)]
struct Asked {
    image: Option<Image>,
    runtime: Option<RuntimeAsked>,
}

fn is_container(config: &Config, name: &str) -> bool {
    let found = config.placements.iter().find(|(n, _)| n.as_str() == name);
    found.is_some_and(|(_, placement)| placement.wrap == Wrap::Container)
}

/// Neither task nor agent ask for a placement.
fn unasked(
    config: &Config,
    profile: &AgentProfile,
    container: &Asked,
) -> Result<Placement, BadRequest> {
    let name = &config.task.placement;
    let image = container.image.as_ref().or(profile.image.as_ref());
    let named = image.is_some() || config.container.image.is_some();
    if !named || is_container(config, name.as_str()) {
        let bare = AgentProfile {
            placement: None,
            ..profile.clone()
        };
        return placement(config, &bare, Some(name.as_str()), container);
    }
    let usual = config.placements.get(name);
    let word = Wrap::Container.word();
    let found = config.placements.iter().find(|(n, _)| n.as_str() == word);
    let (Some((name, placement)), Some(usual)) = (found, usual) else {
        return Err(BadRequest::UnknownPlacement {
            name: word.into(),
            there: list(config.placements.keys()),
        });
    };
    // An image must not be a way to less than what tasks usually get here.
    let network = match (&usual.network, &placement.network) {
        (Network::Full, own) | (_, own @ Network::None) => own.clone(),
        (less, _) => less.clone(),
    };
    let placement = Placement {
        network,
        strict: placement.strict || usual.strict,
        ..placement.clone()
    };
    contained(config, profile, name, placement, container)
}

/// Image and runtime by the task, the agent, the placement, `[container]`: the first that says.
fn contained(
    config: &Config,
    profile: &AgentProfile,
    name: &PlacementName,
    placement: Placement,
    asked: &Asked,
) -> Result<Placement, BadRequest> {
    let own = config.containers.get(name).cloned().unwrap_or_default();
    let image = asked.image.clone().or_else(|| profile.image.clone());
    let image = image
        .or(own.image)
        .or_else(|| config.container.image.clone());
    let runtime = asked.runtime.or(own.runtime).or(config.container.runtime);
    Ok(Placement {
        container: Some(Container {
            image: image.ok_or_else(|| BadRequest::NoImage(name.clone()))?,
            runtime: runtime.unwrap_or_default(),
        }),
        ..placement
    })
}

/// How the prompt is made, with every name looked up and every variable accounted for.
fn guide(
    config: &Config,
    asked: &Dispatch,
    agent: &AgentName,
    expects: Expects,
) -> Result<Guide, BadRequest> {
    let library = &config.library;
    let find = |kind, name: &Option<String>| -> Result<_, GuideError> {
        name.as_deref()
            .map(|name| library.find(kind, name))
            .transpose()
    };
    let template = match (&asked.template, expects) {
        (None, Expects::Review) => library.find(TextKind::Template, "review").map(Some),
        (template, _) => find(TextKind::Template, template),
    }?;
    let guide = Guide {
        template: Some(template.unwrap_or_else(|| config.task.template.clone())),
        persona: find(TextKind::Persona, &asked.persona)?,
        plan: find(TextKind::Plan, &asked.plan)?,
        variables: asked.variables.clone(),
        effort: asked.effort,
    };
    let limits = &config.limits;
    library.check(&guide, limits.template_bytes, limits.variables_bytes)?;
    check_effort(config, agent, asked.effort)?;
    Ok(guide)
}

/// Asked of an agent that never asks, it would be a promise that nobody keeps.
fn permissions(
    config: &Config,
    asked: Option<Permissions>,
    agent: &AgentName,
    profile: &AgentProfile,
) -> Result<Permissions, BadRequest> {
    let permissions = asked.unwrap_or(profile.permissions);
    if permissions.is_default() || profile.driver.asks() {
        return Ok(permissions);
    }
    let can = config
        .agents
        .iter()
        .filter(|(_, agent)| agent.driver.asks());
    Err(BadRequest::Permissions {
        agent: agent.clone(),
        driver: profile.driver.word(),
        asked: permissions,
        there: list(can.map(|(name, _)| name)),
    })
}

/// The word for no grant at all.
pub(crate) const NO_GRANT: &str = GrantName::NONE;

fn offer<'a>(config: &'a Config, name: &str) -> Result<Option<&'a Offer>, BadRequest> {
    if name == NO_GRANT {
        return Ok(None);
    }
    let found = config
        .grants
        .iter()
        .find(|(known, _)| known.as_str() == name);
    match found {
        Some((_, offer)) => Ok(Some(offer)),
        None => Err(BadRequest::UnknownGrant {
            name: name.to_owned(),
            there: list(config.grants.keys()),
        }),
    }
}

/// What the task or its agent's table says, and no more than the repository allows.
fn grant<'a>(
    config: &'a Config,
    asked: &Dispatch,
    agent: &AgentName,
    profile: &'a AgentProfile,
) -> Result<Option<(&'a Offer, Option<&'a Offer>)>, BadRequest> {
    // Our own agent has one that gives nothing unasked.
    let usual = Some(&config.native.grant).filter(|_| profile.is_native());
    let own = profile.grant.as_ref().or(usual).map(GrantName::as_str);
    let Some(name) = asked.grant.as_deref().or(own) else {
        return Ok(None);
    };
    let Some(wanted) = offer(config, name)? else {
        return Ok(None);
    };
    if !profile.driver.knocks() {
        return Err(BadRequest::NoDoor {
            name: name.to_owned(),
            agent: agent.clone(),
            driver: profile.driver.word(),
        });
    }
    let most = match asked.grant_most.as_deref() {
        None => None,
        Some(name) => match offer(config, name)? {
            Some(most) => Some(most),
            None => return Ok(None),
        },
    };
    Ok(Some((wanted, most)))
}

fn check_effort(
    config: &Config,
    agent: &AgentName,
    asked: Option<Effort>,
) -> Result<(), BadRequest> {
    let profile = config.agents.get(agent);
    let takes = profile.map_or(&[][..], |profile| profile.driver.efforts());
    let Some(effort) = asked.filter(|effort| !takes.contains(effort)) else {
        return Ok(());
    };
    let takes = if takes.is_empty() {
        "cannot be told how hard to think".to_owned()
    } else {
        format!("takes {}", list(takes.iter().map(|effort| effort.word())))
    };
    Err(BadRequest::Effort {
        agent: agent.clone(),
        effort,
        takes,
    })
}

/// As the agent's program calls it, or a short name of the agent's table.
fn model(profile: Option<&AgentProfile>, asked: &str) -> Result<ModelName, BadRequest> {
    let known = profile.and_then(|profile| profile.models.get(asked));
    Ok(known.map_or_else(|| asked.parse(), |model| Ok(model.clone()))?)
}

/// What an agent's next run is to have, checked as it is for its first one.
pub(crate) fn tuning(
    config: &Config,
    agent: &AgentName,
    asked: Tuned<'_>,
) -> Result<Tuning, BadRequest> {
    let effort = asked.effort;
    check_effort(config, agent, effort)?;
    let profile = config.agents.get(agent);
    let model = asked.model.map(|asked| model(profile, asked)).transpose()?;
    let chain = match (asked.chain, &model) {
        (Some(_), Some(_)) => return Err(BadRequest::ModelAndChain),
        (None, None) => None,
        (chain, model) => Some(config.chain(agent, chain, model.as_ref())?),
    };
    Ok(Tuning {
        model,
        effort,
        chain: chain.filter(|chain| !chain.is_empty()),
    })
}

/// The same of an agent that the task did not have so far, which brings a chain of its own.
pub(crate) fn tuning_of(
    config: &Config,
    selection: &Selection,
    asked: Tuned<'_>,
) -> Result<Tuning, BadRequest> {
    let mut tuning = tuning(config, &selection.agent, asked)?;
    if tuning.chain.is_none() {
        let own = config.agents.get(&selection.agent);
        let model = selection.model.as_ref();
        let model = model.or(own.and_then(|own| own.model.as_ref()));
        let chain = config.chain(&selection.agent, None, model)?;
        tuning.chain = Some(chain).filter(|chain| !chain.is_empty());
    }
    Ok(tuning)
}

/// What a request says of an agent's next run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tuned<'a> {
    pub(crate) model: Option<&'a str>,
    pub(crate) effort: Option<Effort>,
    pub(crate) chain: Option<&'a [Choice]>,
}

impl Tuned<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.model.is_none() && self.effort.is_none() && self.chain.is_none()
    }
}

macro_rules! tuned {
    ($($request:ident),*) => {$(
        impl $request {
            pub(crate) fn tuned(&self) -> Tuned<'_> {
                Tuned {
                    model: self.model.as_deref(),
                    effort: self.effort,
                    chain: self.chain.as_deref(),
                }
            }
        }
    )*};
}

tuned!(Answer, Say, Resume, Retry);

/// What the engine would refuse, before it is sent there.
pub(crate) fn check_attachments(
    config: &Config,
    agent: &AgentName,
    files: &[Attach],
) -> Result<(), BadRequest> {
    let sizes = files.iter().map(|file| file.base64.0.len() as u64);
    match config.agents.get(agent) {
        Some(profile) if !files.is_empty() => {
            let agent = (agent, profile.driver);
            Ok(attach::allowed(&config.limits, agent, &[], sizes)?)
        }
        Some(_) | None => Ok(()),
    }
}

/// What the engine is given along with a task or a message.
pub(crate) fn given(
    secrets: Secrets,
    files: Vec<Attach>,
    tuning: Tuning,
    key: Option<RequestKey>,
) -> Given {
    Given {
        secrets: secrets.0,
        files: files.into_iter().map(NewFile::from).collect(),
        tuning,
        key,
    }
}

impl Dispatch {
    /// The first two of these that exclude each other.
    fn alone(&self) -> Result<(), BadRequest> {
        let given = [
            ("dir", self.dir.is_some()),
            ("no_repo", self.no_repo),
            ("repo", self.repo.is_some()),
        ];
        let bases = [
            ("branch", self.branch.is_some()),
            ("pr", self.pr.is_some()),
            ("tag", self.tag.is_some()),
        ];
        let without_git = given[..2].iter().chain(&bases);
        for words in [
            given.iter().collect::<Vec<_>>(),
            bases.iter().collect(),
            without_git.collect(),
        ] {
            let mut there = words.iter().filter(|(_, given)| *given);
            if let (Some((one, _)), Some((other, _))) = (there.next(), there.next()) {
                return Err(BadRequest::Together { one, other });
            }
        }
        Ok(())
    }

    fn place(&self, config: &Config) -> Result<Place, BadRequest> {
        self.alone()?;
        let org = self.org.clone();
        if self.no_repo {
            let (repo, base) = (String::new(), Base::Nothing);
            return Ok(Place { repo, base, org });
        }
        if let Some(dir) = &self.dir {
            if !Path::new(dir).is_absolute() {
                return Err(BadRequest::Dir(dir.clone()));
            }
            let (repo, base) = (dir.clone(), Base::Folder);
            return Ok(Place { repo, base, org });
        }
        let Some(name) = &self.repo else {
            return Err(BadRequest::NoPlace);
        };
        let known = config
            .repos
            .iter()
            .find(|(known, _)| known.as_str() == name);
        let known = known.map(|(_, repo)| repo);
        let repo = known.map_or(name, |repo| &repo.place).clone();
        if !is_url(&repo) && !Path::new(&repo).is_absolute() {
            return Err(unknown_repo(config, name));
        }
        let default = known.and_then(|repo| repo.default_branch.clone());
        let base = match (&self.branch, self.pr, &self.tag) {
            (Some(name), ..) => Base::Branch { name: name.clone() },
            (None, Some(0), _) => return Err(BadRequest::Number),
            (None, Some(number), _) => Base::Pr { number },
            (None, None, Some(name)) => Base::Tag { name: name.clone() },
            (None, None, None) => default.map_or(Base::Head, |name| Base::Default { name }),
        };
        let org = org.or_else(|| known.and_then(|repo| repo.org.clone()));
        Ok(Place { repo, base, org })
    }

    pub(crate) fn spec(self, config: &Config) -> Result<TaskSpec, BadRequest> {
        let Selection {
            agent: name,
            model,
            profile: own,
            command,
        } = agent(config, self.agent.as_deref())?;
        if model.is_some() && self.model.is_some() {
            return Err(BadRequest::TwoModels);
        }
        if self.chain.is_some() && (model.is_some() || self.model.is_some()) {
            return Err(BadRequest::ModelAndChain);
        }
        let Some(profile) = config.agents.get(&name) else {
            return Err(BadRequest::Agent(SelectError::Unknown {
                name: name.to_string(),
                there: list(config.agents.keys()),
            }));
        };
        let asked = match (self.expects, &self.review_base) {
            (None, Some(_)) => Some(Expects::Review),
            (Some(Expects::Review) | None, _) => self.expects,
            (Some(_), Some(base)) => return Err(BadRequest::NoReview(base.clone())),
            (Some(_), None) => self.expects,
        };
        let granted = grant(config, &self, &name, profile)?;
        let leads = |offer: &Offer| offer.tools.contains(&Tool::Dispatch) && !offer.asked;
        let dispatches = granted.is_some_and(|(offer, _)| leads(offer));
        let expects = match (asked.or(profile.expects), self.no_repo) {
            (Some(expects), _) => expects,
            // The answer is the result where nothing can be changed.
            (None, true) => Expects::Report,
            // What it has others do is not in its own tree.
            (None, false) if dispatches => Expects::Either,
            (None, false) => config.task.expects,
        };
        if self.task.trim().is_empty() {
            return Err(BadRequest::Text("it is empty".into()));
        }
        let max = config.limits.task_bytes;
        if self.task.len() > max {
            let what = format!(
                "it has {} bytes, limits.task_bytes is {max}",
                self.task.len()
            );
            return Err(BadRequest::Text(what));
        }
        let issue_bytes = self.issue_text.as_ref().map_or(0, |issue| {
            let labels: usize = issue.labels.iter().map(String::len).sum();
            issue.title.len() + issue.body.len() + labels
        });
        if issue_bytes > max {
            let what = format!("its issue has {issue_bytes} bytes, limits.task_bytes is {max}");
            return Err(BadRequest::Text(what));
        }
        let Place { repo, base, org } = self.place(config)?;
        if let Some(what) = config.limits.too_high(&self.limits) {
            return Err(BadRequest::Limit(what));
        }
        let guide = guide(config, &self, &name, expects)?;
        check_attachments(config, &name, &self.attachments)?;
        let checks = match self.checks {
            None | Some(ChecksWanted::Word(ChecksWord::Detect)) => ChecksAsked::Detect,
            Some(ChecksWanted::Word(ChecksWord::None)) => ChecksAsked::None,
            Some(ChecksWanted::Named(names)) => {
                if let Some(name) = names.iter().find(|name| !config.checks.contains_key(name)) {
                    return Err(BadRequest::UnknownCheck {
                        name: name.to_string(),
                        there: list(config.checks.keys()),
                    });
                }
                ChecksAsked::Named(names)
            }
        };
        let permissions = permissions(config, self.permissions, &name, profile)?;
        let container = Asked {
            image: self.image.map(|image| image.parse()).transpose()?,
            runtime: self.runtime.map(|word| word.parse()).transpose()?,
        };
        // The engine masks what it writes, but not the half of a secret that a title may end with.
        let redactor = Redactor::new(self.secrets.0.values().map(Secret::expose));
        let titled = redactor.redact(self.title.as_deref().unwrap_or(&self.task));
        let model = match self.model {
            Some(asked) => Some(self::model(Some(profile), &asked)?),
            None => model.or_else(|| profile.model.clone().filter(|_| own.is_none())),
        };
        let chain = config.chain(&name, self.chain.as_deref(), model.as_ref())?;
        let placement = placement(config, profile, self.placement.as_deref(), &container)?;
        let fenced = placement.wrap != Wrap::Host;
        if !profile.is_native() && !self.rules.is_empty() {
            return Err(BadRequest::Rules {
                agent: name,
                driver: profile.driver.word(),
            });
        }
        let rules = profile.is_native().then(|| {
            let own = config.rules(profile, fenced);
            own.narrowed(self.rules).narrowed(self.rules_most)
        });
        let servers = match profile.is_native() {
            true => Some(servers::chosen(&config.mcp, profile.mcp.as_deref())?),
            false => None,
        };
        let mut spec = TaskSpec {
            title: title_of(&titled),
            text: self.task,
            repo,
            base,
            agent: name,
            pool: profile.pool.clone(),
            placement,
            expects,
            checks,
            review_base: match expects {
                Expects::Review => self.review_base.or_else(|| profile.review_base.clone()),
                _ => None,
            },
            workspace: self.workspace.map(|name| name.parse()).transpose()?,
            turn: Turn {
                taken: self.taken,
                behind: None,
            },
            parent: self.parent.map(|id| id.parse()).transpose()?,
            labels: Labels {
                org: org.or_else(|| {
                    let org = config.task.org.clone();
                    Some(org).filter(|org| !org.is_empty())
                }),
                issue: self.issue,
                pr: self.pr,
                tag: self.tag,
                issue_text: self.issue_text.map(Box::new),
            },
            terms: Terms {
                model,
                chain,
                rules: rules.map(Box::new),
                tools: Toolset::of_agent(profile.tools.as_deref()),
                mcp: servers.map(|servers| servers.into_keys().collect()),
                profile: own,
                command,
                priority: self.priority.unwrap_or_default(),
                after: self
                    .after
                    .iter()
                    .map(|id| id.parse())
                    .collect::<Result<_, _>>()?,
                budget_tokens: least(self.budget_tokens, config.gate.task_tokens),
                budget_usd: least(self.budget_usd, config.gate.task_usd),
                permissions,
                detached: self.detached,
                ..Terms::default()
            },
            limits: self.limits,
            guide,
        };
        spec.terms.grant = granted.map(|(offer, most)| {
            let grant = offer.to(&spec);
            Box::new(most.map_or(grant.clone(), |most| grant.meet(&most.to(&spec))))
        });
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Result<TaskSpec, BadRequest> {
        let request: Dispatch = serde_json::from_str(json).unwrap();
        request.spec(&Config::defaults())
    }

    #[test]
    fn defaults_are_applied_at_the_door() {
        let got = spec(r#"{"task": "Fix it\nnow", "repo": "/r"}"#).unwrap();
        assert_eq!(got.agent.as_str(), "codex");
        assert_eq!(got.pool.as_str(), "openai");
        assert_eq!(got.labels.org.as_deref(), Some("core"));
        assert_eq!(got.guide.template.unwrap().as_str(), "coding");
        assert_eq!(
            (got.expects, got.checks),
            (Expects::Change, ChecksAsked::Detect)
        );
        assert_eq!(got.placement.word(), "cage");
        assert_eq!(got.title, "Fix it");
    }

    #[test]
    fn permissions_are_the_tasks_or_the_agents() {
        let text = "[agents.claude]\npermissions = \"ask\"\n";
        let layer = dispatch_core::config::Layer {
            source: "mine",
            text,
        };
        let config = dispatch_core::config::load(&[layer]).unwrap().0;
        let resolved = |json: &str| {
            let request: Dispatch = serde_json::from_str(json).unwrap();
            request.spec(&config).map(|spec| spec.terms.permissions)
        };
        let task = |more: &str| format!(r#"{{"task": "x", "repo": "/r", {more}}}"#);
        for (more, wanted) in [
            (r#""agent": "codex""#, Permissions::Allow),
            (r#""agent": "claude""#, Permissions::Ask),
            (
                r#""agent": "claude", "permissions": "allow""#,
                Permissions::Allow,
            ),
            (
                r#""agent": "claude", "permissions": "deny""#,
                Permissions::Deny,
            ),
            (
                r#""agent": "gemini", "permissions": "ask""#,
                Permissions::Ask,
            ),
        ] {
            assert_eq!(resolved(&task(more)), Ok(wanted), "{more}");
        }
        let error = resolved(&task(r#""agent": "codex", "permissions": "ask""#)).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("agent codex asks for none (codex)"),
            "{error}"
        );
        assert!(
            error.contains("there are acp, claude, claude-acp"),
            "{error}"
        );
    }

    #[test]
    fn a_grant_is_the_tasks_or_the_agents_and_a_repository_takes_away() {
        let text = "[agents.claude]\ngrant = \"helpers\"\n[grants.less]\ntools = [\"wait\", \"list\"]\n\
                    children_max = 2\nchildren_live_max = 9\n";
        let source = "mine";
        let config = dispatch_core::config::load(&[dispatch_core::config::Layer { source, text }]);
        let config = config.unwrap().0;
        let granted = |agent: &str, asked: Option<&str>, most: Option<&str>| {
            let json = format!(r#"{{"task": "x", "repo": "/r", "agent": "{agent}"}}"#);
            let mut request: Dispatch = serde_json::from_str(&json).unwrap();
            request.grant = asked.map(str::to_owned);
            request.grant_most = most.map(str::to_owned);
            request.spec(&config)
        };
        let tools = |spec: TaskSpec| spec.terms.grant.map(|grant| grant.tools.len());
        for (agent, asked, most, wanted) in [
            ("codex", None, None, None),
            ("codex", Some("helpers"), None, Some(8)),
            ("claude", None, None, Some(8)),
            ("claude", Some("none"), None, None),
            ("claude", Some("less"), None, Some(2)),
            ("claude", None, Some("less"), Some(2)),
            ("claude", None, Some("none"), None),
            // What nobody granted cannot be lowered.
            ("codex", None, Some("helpers"), None),
        ] {
            let spec = granted(agent, asked, most).unwrap();
            assert_eq!(tools(spec), wanted, "{agent} {asked:?} {most:?}");
        }
        let least = granted("claude", None, Some("less"))
            .unwrap()
            .terms
            .grant
            .unwrap();
        assert_eq!((least.children_max, least.children_live_max), (2, 4));
        let lead = granted("claude", None, None).unwrap();
        assert_eq!(
            lead.expects,
            Expects::Either,
            "what others do is not its own change"
        );
        assert_eq!(
            granted("codex", None, None).unwrap().expects,
            Expects::Change
        );
        for (agent, asked, most, part) in [
            ("codex", Some("nope"), None, "there are none, helpers, less"),
            ("codex", Some("helpers"), Some("nope"), "use grant nope"),
            (
                "coderabbit",
                Some("helpers"),
                None,
                "takes no tools of ours",
            ),
        ] {
            let error = granted(agent, asked, most).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let sent = r#"{"task": "x", "repo": "/r", "grant_most": "helpers"}"#;
        assert!(serde_json::from_str::<Dispatch>(sent).is_err());
    }

    #[test]
    fn what_cannot_be_is_refused_and_names_what_exists() {
        let error = spec(r#"{"task": "x", "repo": "/r", "agent": "gpt"}"#).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("there are acp, claude, claude-acp"),
            "{error}"
        );
        for bad in [
            r#"{"task": " ", "repo": "/r"}"#,
            r#"{"task": "x", "repo": "r"}"#,
            r#"{"task": "x", "repo": "/r", "checks": ["nope"]}"#,
            r#"{"task": "x", "repo": "/r", "workspace": "../x"}"#,
        ] {
            assert!(spec(bad).is_err(), "{bad}");
        }
        assert!(
            serde_json::from_str::<Dispatch>(r#"{"task":"x","repo":"/r","modle":"y"}"#).is_err()
        );
        for (bad, part) in [
            (
                r#"{"task": "x", "repo": "/r", "placement": "cave"}"#,
                "there are cage, container, host",
            ),
            (
                r#"{"task": "x", "repo": "/r", "model": "--help"}"#,
                "a model's name",
            ),
            (
                r#"{"task": "x", "repo": "/r", "after": ["3f"]}"#,
                "a task id",
            ),
            (
                r#"{"task": "x", "repo": "/r", "placement": "host"}"#,
                "task.allow_host is false",
            ),
            (
                r#"{"task": "x", "repo": "/r", "template": "codng"}"#,
                "there are coding, conventions",
            ),
            (
                r#"{"task": "x", "repo": "/r", "persona": "../x"}"#,
                "there are engineering/backend-architect",
            ),
            (
                r#"{"task": "x", "repo": "/r", "plan": "new-feature"}"#,
                "it needs feature (",
            ),
            (
                r#"{"task": "x", "repo": "/r", "variables": {"a": "b"}}"#,
                "use variable a: nothing takes it",
            ),
            (
                r#"{"task": "x", "repo": "/r", "effort": "max"}"#,
                "agent codex takes minimal, low, medium, high, xhigh",
            ),
        ] {
            let error = spec(bad).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let none = spec(r#"{"task": "x", "repo": "/r", "checks": "none"}"#).unwrap();
        assert_eq!(none.checks, ChecksAsked::None);
    }

    #[test]
    fn a_task_starts_from_one_thing() {
        let base = |json: &str| spec(&format!(r#"{{"task": "x", {json}}}"#)).map(|spec| spec.base);
        let name = || "b".to_owned();
        for (json, wanted) in [
            (r#""repo": "/r""#, Base::Head),
            (
                r#""repo": "/r", "branch": "b""#,
                Base::Branch { name: name() },
            ),
            (
                r#""repo": "/r", "pr": 7, "issue": 5"#,
                Base::Pr { number: 7 },
            ),
            (
                r#""repo": "/r", "tag": "b", "issue": 5"#,
                Base::Tag { name: name() },
            ),
            (r#""dir": "/d""#, Base::Folder),
            (r#""no_repo": true"#, Base::Nothing),
        ] {
            assert_eq!(base(json), Ok(wanted), "{json}");
        }
        for (json, one, other) in [
            (r#""repo": "/r", "branch": "b", "pr": 7"#, "branch", "pr"),
            (r#""repo": "/r", "tag": "b", "pr": 7"#, "pr", "tag"),
            (
                r#""repo": "/r", "tag": "b", "branch": "b""#,
                "branch",
                "tag",
            ),
            (r#""repo": "/r", "dir": "/d""#, "dir", "repo"),
            (r#""dir": "/d", "pr": 7"#, "dir", "pr"),
            (r#""no_repo": true, "tag": "b""#, "no_repo", "tag"),
        ] {
            let told = base(json).unwrap_err().to_string();
            assert!(told.contains(&format!("{one} and {other}")), "{told}");
        }
        assert_eq!(base(r#""issue": 5"#), Err(BadRequest::NoPlace));
        assert_eq!(base(r#""repo": "/r", "pr": 0"#), Err(BadRequest::Number));
        assert!(matches!(base(r#""dir": "d""#), Err(BadRequest::Dir(_))));
        let answer = spec(r#"{"task": "x", "no_repo": true}"#).unwrap();
        assert_eq!(answer.expects, Expects::Report);
    }

    #[test]
    fn repositories_have_names() {
        let text = "[repos.api]\nurl = \"https://h/api.git\"\ndefault_branch = \"dev\"\n\
                    org = \"acme\"\n[repos.web]\npath = \"/src/web\"\n";
        let layer = dispatch_core::config::Layer { source: "t", text };
        let config = dispatch_core::config::load(&[layer]).unwrap().0;
        let spec = |json: &str| {
            let request: Dispatch = serde_json::from_str(json).unwrap();
            request.spec(&config)
        };
        let api = spec(r#"{"task": "x", "repo": "api"}"#).unwrap();
        assert_eq!(api.repo, "https://h/api.git");
        assert_eq!(api.base, Base::Default { name: "dev".into() });
        assert_eq!(api.labels.org.as_deref(), Some("acme"));
        let web = spec(r#"{"task": "x", "repo": "web", "org": "o"}"#).unwrap();
        assert_eq!((web.repo.as_str(), web.base), ("/src/web", Base::Head));
        assert_eq!(web.labels.org.as_deref(), Some("o"));
        let error = spec(r#"{"task": "x", "repo": "nope"}"#).unwrap_err();
        assert!(
            error.to_string().contains("configured are api, web"),
            "{error}"
        );
        for bad in [
            "[repos.x]\norg = \"o\"\n",
            "[repos.x]\npath = \"/x\"\nurl = \"https://h/x\"\n",
            "[repos.x]\npath = \"x\"\n",
            "[repos.x]\nurl = \"-x\"\n",
            "[repos.\"a/b\"]\npath = \"/x\"\n",
        ] {
            let layer = dispatch_core::config::Layer {
                source: "t",
                text: bad,
            };
            let problems = dispatch_core::config::load(&[layer]).unwrap_err();
            assert!(problems[0].at.starts_with("repos"), "{bad}: {problems:?}");
        }
    }

    #[test]
    fn a_request_can_lower_a_budget_and_never_raise_it() {
        assert_eq!(least(None, 5), 5);
        assert_eq!(least(Some(3), 5), 3);
        assert_eq!(least(Some(9), 5), 5);
        assert_eq!(least(Some(0), 5), 5);
        assert_eq!(least(Some(9), 0), 9);
    }

    #[test]
    fn an_image_makes_a_container_and_never_less_of_a_fence() {
        let text = "[agents.img]\ndriver = \"plain\"\nprogram = \"x\"\npool = \"default\"\nimage = \"agent:1\"\n\
                    [agents.caged]\ndriver = \"plain\"\nprogram = \"x\"\npool = \"default\"\nplacement = \"cage\"\n\
                    [task]\nagent = \"img\"\nplacement = \"locked\"\n[placements.locked]\nwrap = \"cage\"\n\
                    network = \"none\"\nstrict = true\n[placements.boxed]\nwrap = \"container\"\n\
                    image = \"boxed:1\"\nruntime = \"podman\"\n[placements.empty]\nwrap = \"container\"\n";
        let source = "mine";
        let layer = dispatch_core::config::Layer { source, text };
        let config = dispatch_core::config::load(&[layer]).unwrap().0;
        let spec = |more: &str| {
            let json = format!(r#"{{"task": "x", "repo": "/r"{more}}}"#);
            let request: Dispatch = serde_json::from_str(&json).unwrap();
            request.spec(&config).map(|spec| spec.placement)
        };
        let of = |placement: &Placement| {
            let container = placement.container.clone().unwrap();
            (container.image.to_string(), container.runtime.word())
        };
        let agents = spec("").unwrap();
        assert_eq!(
            (agents.word(), of(&agents)),
            ("container", ("agent:1".into(), "auto"))
        );
        assert!(agents.strict && agents.network == Network::None);
        let tasks = spec(r#", "image": "mine:2", "runtime": "docker""#).unwrap();
        assert_eq!(of(&tasks), ("mine:2".into(), "docker"));
        let boxed = spec(r#", "placement": "boxed", "agent": "caged""#).unwrap();
        assert_eq!(
            (boxed.word(), of(&boxed)),
            ("boxed", ("boxed:1".into(), "podman"))
        );
        // The word of a person beats the table of an agent, towards the stronger fence.
        let person = spec(r#", "image": "mine:2", "agent": "caged""#).unwrap();
        assert_eq!(person.wrap, Wrap::Container);
        let caged = spec(r#", "agent": "caged""#).unwrap();
        assert_eq!((caged.wrap, caged.container), (Wrap::Cage, None));
        for (more, part) in [
            (r#", "image": "-v""#, "begins with a dash"),
            (
                r#", "image": "a", "runtime": "crio""#,
                "there are auto, apple",
            ),
            (
                r#", "image": "a", "placement": "locked""#,
                "it is no container",
            ),
            (
                r#", "agent": "caged", "placement": "empty""#,
                "name one with --image",
            ),
        ] {
            let error = spec(more).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn urls_are_told_from_paths() {
        for url in ["https://h/r", "git@github.com:a/b.git", "file:///r"] {
            assert!(is_url(url), "{url}");
        }
        for path in ["/r", "r", "./a:b", "a/b@c:d", "ext::sh -c x", "-x@y:z"] {
            assert!(!is_url(path), "{path}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let secrets = Secrets(BTreeMap::from([("K".into(), "s3cret".into())]));
        assert!(!format!("{secrets:?}").contains("s3cret"));
    }
}
