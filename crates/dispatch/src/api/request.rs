//! What callers may ask: the words of their requests. `resolve` is the one place where a request becomes
//! a `TaskSpec`, `bad` why it does not.
//! Must not leave a "maybe" behind: defaults are applied and names resolved there.

mod bad;
mod resolve;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, path::PathBuf};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use dispatch_core::{
    ask::Permissions,
    config::Config,
    event::Scope,
    gate::MicroUsd,
    id::CheckName,
    limits::Lowered,
    models::Choice,
    rules::Rule,
    secret::{Secret, travel},
    task::{Effort, Expects, IssueText, Priority, Taken},
};
use dispatch_engine::{
    attachments::NewFile,
    reads::{Listing, Order},
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{shapes, task::STATES};

pub(crate) use bad::BadRequest;
pub(crate) use resolve::{
    NO_GRANT, Tuned, agent, check_attachments, given, is_url, place, tuning, tuning_of,
    unknown_repo,
};

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
