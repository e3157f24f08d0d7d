//! Why a request is refused, with what there is instead.
//! Must not name to an agent what is outside of its grant.

use dispatch_core::{
    ask::Permissions,
    attach::BadAttachment,
    chain::BadChain,
    config::SelectError,
    container::{BadImage, BadRuntime},
    grant::Grant,
    id::{AgentName, PlacementName},
    prompt::GuideError,
    servers::BadServer,
    task::Effort,
};

use super::super::task::STATES;
use super::PAGE_MAX;

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
