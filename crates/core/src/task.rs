//! What was asked: one typed request, correct by construction once it exists.
//! Must not hold an `Option` that means "the default": defaults are applied before.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::naming::Leaf;
use crate::{
    Millis,
    ask::Permissions,
    container::Container,
    definition::Role,
    gate::MicroUsd,
    grant::Grant,
    id::{
        AgentName, CheckName, ModelName, PlacementName, PoolName, RunId, ServerName, SiteName,
        TaskId, WorkspaceName, slug,
    },
    limits::Lowered,
    models::Choice,
    network::AllowList,
    prompt::Guide,
    rules::Rules,
    toolset::Toolset,
};

/// What a good end looks like: a coder changes something, a reviewer says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expects {
    Change,
    Report,
    Either,
    /// A verdict on commits and what was found in them: `core::review`. No file changes.
    Review,
}

/// Where the work starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// What the repository has checked out, or its default branch.
    Head,
    Branch {
        name: String,
    },
    /// The branch that the configuration names for this repository.
    Default {
        name: String,
    },
    /// The head of a pull or merge request, as the forge's own reference has it.
    Pr {
        number: u64,
    },
    /// The result is kept, and cannot be applied or pushed: a tag is not a place to go on from.
    Tag {
        name: String,
    },
    /// A private copy of the directory that `TaskSpec::repo` names; there is no git in it.
    Folder,
    /// An empty directory: the answer is the result.
    Nothing,
}

impl Base {
    /// What it starts from, in words for a person.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Head => "head".into(),
            Self::Branch { name } | Self::Default { name } => format!("branch {name}"),
            Self::Pr { number } => format!("pr {number}"),
            Self::Tag { name } => format!("tag {name}"),
            Self::Folder => "folder".into(),
            Self::Nothing => "nothing".into(),
        }
    }

    /// Whether there is a repository, of which there is a mirror.
    #[must_use]
    pub fn is_repository(&self) -> bool {
        !matches!(self, Self::Folder | Self::Nothing)
    }
}

/// What happens when another task has the workspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Taken {
    /// The request is an error that names the holder.
    #[default]
    Refuse,
    /// It starts when no older task has the workspace any more.
    Queue,
    /// The holder is stopped, and its result kept, before it starts.
    Supersede,
}

impl Taken {
    /// The word used in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Queue => "queue",
            Self::Supersede => "supersede",
        }
    }
}

/// A task's place among those that want the same workspace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    #[serde(default)]
    pub taken: Taken,
    /// Who had the workspace when this was asked for: it starts after that.
    #[serde(default)]
    pub behind: Option<TaskId>,
}

/// Which checks must pass after the agent is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChecksAsked {
    /// By what lies in the base commit.
    Detect,
    Named(Vec<CheckName>),
    None,
}

/// How a job is fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wrap {
    /// The OS sandbox without an image: `core::cage`.
    Cage,
    /// An image, by a container engine: `core::container`.
    Container,
    /// No fence at all.
    Host,
}

impl Wrap {
    /// The word used in JSON and on the screen.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Cage => "cage",
            Self::Container => "container",
            Self::Host => "host",
        }
    }
}

/// What a fenced job reaches of the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// All that the host reaches, its loopback included.
    #[default]
    Full,
    /// Nothing but a loopback of its own.
    None,
    /// A loopback of its own, with a proxy of ours on it that lets these hosts through.
    Allow(AllowList),
}

impl Network {
    /// The word used on the screen and in the record of what was enforced.
    #[must_use]
    pub fn word(&self) -> String {
        match self {
            Self::Full => "full".into(),
            Self::None => "none".into(),
            Self::Allow(list) if list.len() == 1 => "allow(1 host)".into(),
            Self::Allow(list) => format!("allow({} hosts)", list.len()),
        }
    }

    /// What both let through.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::None, _) | (_, Self::None) => Self::None,
            (Self::Full, less) | (less, Self::Full) => less.clone(),
            (Self::Allow(one), Self::Allow(two)) => {
                let both = one.meet(two);
                if both.is_empty() {
                    Self::None
                } else {
                    Self::Allow(both)
                }
            }
        }
    }

    /// Whether the other lets all of it through, too.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, _) | (_, Self::Full) => true,
            (Self::Full, Self::None | Self::Allow(_)) | (Self::Allow(_), Self::None) => false,
            (Self::Allow(one), Self::Allow(two)) => one.is_within(two),
        }
    }

    /// Whether the job's network is its own and not the host's.
    #[must_use]
    pub fn is_own(&self) -> bool {
        match self {
            Self::Full => false,
            Self::None | Self::Allow(_) => true,
        }
    }
}

/// Sites to try in order, and the wrap with all that it is asked to hold. It is resolved when the
/// task is made, so a change of the configuration never weakens the fence of a task that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub sites: Vec<SiteName>,
    pub wrap: Wrap,
    /// What it is called in the configuration; logs of the first format have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<PlacementName>,
    #[serde(default)]
    pub network: Network,
    /// Less than the full list of fences is a failed start, not a weaker fence.
    #[serde(default)]
    pub strict: bool,
    #[serde(default)]
    pub gpu: bool,
    /// With `wrap = container`, and only then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
}

impl Placement {
    #[must_use]
    pub fn of(wrap: Wrap) -> Self {
        Self {
            sites: Vec::new(),
            wrap,
            name: None,
            network: Network::Full,
            strict: false,
            gpu: false,
            container: None,
        }
    }

    /// The word used in JSON and on the screen: the name in the configuration, else the wrap.
    #[must_use]
    pub fn word(&self) -> &str {
        match &self.name {
            Some(name) => name.as_str(),
            None => self.wrap.word(),
        }
    }
}

/// How hard a model is to think, in the words of the CLIs. Which of them an agent takes, its driver
/// knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effort {
    /// Not at all.
    #[serde(rename = "none")]
    Off,
    Minimal,
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

impl Effort {
    pub const ALL: [Self; 7] = [
        Self::Off,
        Self::Minimal,
        Self::Low,
        Self::Medium,
        Self::High,
        Self::Xhigh,
        Self::Max,
    ];

    /// The word used in JSON, on the screen and by the CLIs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "none",
            Self::Minimal => "minimal",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Xhigh => "xhigh",
            Self::Max => "max",
        }
    }
}

/// What a person wants to be different from the next run on; `None` leaves it as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effort: Option<Effort>,
    /// Of our own agent, resolved: what the model asked for means, or a list of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Vec<Choice>>,
}

impl Tuning {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What was asked for later counts.
    #[must_use]
    pub fn then(self, later: &Self) -> Self {
        Self {
            model: later.model.clone().or(self.model),
            effort: later.effort.or(self.effort),
            chain: later.chain.clone().or(self.chain),
        }
    }
}

/// What an issue says. Somebody outside wrote it: it is never an instruction of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssueText {
    pub number: u64,
    pub title: String,
    #[serde(default)]
    pub body: String,
    #[serde(default)]
    pub labels: Vec<String>,
}

/// Who the work is for, as the caller knows it; kept and shown, never interpreted here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    pub org: Option<String>,
    pub issue: Option<u64>,
    pub pr: Option<u64>,
    pub tag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issue_text: Option<Box<IssueText>>,
}

/// Who goes first where tasks wait for the same pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
    Urgent,
}

impl Priority {
    /// The word used in JSON and on the screen.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Urgent => "urgent",
        }
    }

    /// Steps above normal.
    #[must_use]
    pub fn steps(self) -> i64 {
        match self {
            Self::Low => -1,
            Self::Normal => 0,
            Self::High => 1,
            Self::Urgent => 2,
        }
    }
}

/// Tasks that one task may wait for.
pub const AFTER_MAX: usize = 32;

/// A commit to start from, whatever has become of its branch since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    pub commit: String,
    /// The short name of the branch that it is a commit of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

/// On what terms the gate lets a task in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    #[serde(default)]
    pub model: Option<ModelName>,
    /// Whom our own agent asks, the first before the second. Resolved when the task is made: another
    /// key or model is never taken because a table has changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<Choice>,
    /// What our own agent may do unasked. As resolved then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<Box<Rules>>,
    /// Which tools our own agent has. As resolved then.
    #[serde(default, skip_serializing_if = "Toolset::is_all")]
    pub tools: Toolset,
    /// The only MCP servers whose tools it has. As resolved then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcp: Option<BTreeSet<ServerName>>,
    /// The definition that it was summoned by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Box<Role>>,
    /// Where our own agent works, below the root of the workspace; empty: there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub directory: String,
    /// A profile of the CLI's own, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<ModelName>,
    /// Of the agent `acp`: the program and its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    #[serde(default)]
    pub priority: Priority,
    /// It starts when all of these have completed.
    #[serde(default)]
    pub after: Vec<TaskId>,
    /// Of all its runs together; 0 means no budget.
    #[serde(default)]
    pub budget_tokens: u64,
    #[serde(default)]
    pub budget_usd: MicroUsd,
    /// What becomes of its agent's permission requests. Resolved when the task is made: a replay
    /// must come to the same answers whatever the configuration says by then.
    #[serde(default, skip_serializing_if = "Permissions::is_default")]
    pub permissions: Permissions,
    /// What its agent may do at our door. `None`: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<Box<Grant>>,
    /// The run whose agent asked for it, and is owed its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<RunId>,
    /// Its asker does not wait for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detached: bool,
    /// Where its asker started, if it is to start there too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
    /// It has ended by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Millis>,
}

/// What a person or an agent asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    pub title: String,
    pub text: String,
    /// An absolute path or a URL.
    pub repo: String,
    pub base: Base,
    pub agent: AgentName,
    pub pool: PoolName,
    pub placement: Placement,
    pub expects: Expects,
    pub checks: ChecksAsked,
    /// Where the commits under review begin, as a revision; only for [`Expects::Review`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub review_base: Option<String>,
    /// Asked for by name: two live tasks never share it.
    pub workspace: Option<WorkspaceName>,
    #[serde(default)]
    pub turn: Turn,
    pub parent: Option<TaskId>,
    pub labels: Labels,
    #[serde(default)]
    pub terms: Terms,
    /// Lower than the configuration's, for the jobs of this task.
    #[serde(default, skip_serializing_if = "Lowered::is_empty")]
    pub limits: Lowered,
    /// How its prompt is made.
    #[serde(default)]
    pub guide: Guide,
}

const TITLE_CHARS_MAX: usize = 72;
const SLUG_CHARS_MAX: usize = 24;

/// The first line of a task's text, shortened for lists.
#[must_use]
pub fn title_of(text: &str) -> String {
    let line = text
        .lines()
        .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>())
        .find(|line| !line.trim().is_empty())
        .unwrap_or_else(|| "(no text)".into());
    let clean = line.trim().to_owned();
    if clean.chars().count() <= TITLE_CHARS_MAX {
        return clean;
    }
    let cut: String = clean.chars().take(TITLE_CHARS_MAX - 1).collect();
    format!("{}…", cut.trim_end())
}

impl TaskSpec {
    /// The branch of the result. Its prefix of the id is fixed when the task is made.
    #[must_use]
    pub fn branch(&self, id_prefix: &str) -> String {
        format!("dispatch/{}-{id_prefix}", slug(&self.title, SLUG_CHARS_MAX))
    }

    /// The task whose agent asked for it.
    #[must_use]
    pub fn asker(&self) -> Option<TaskId> {
        self.terms.asked_by.map(|run| run.task)
    }

    /// What its workspace is of, by its name or by what it starts from.
    #[must_use]
    pub fn subject(&self) -> Option<Leaf<'_>> {
        if let Some(name) = &self.workspace {
            return Some(Leaf::Named(name));
        }
        match (&self.base, self.labels.issue) {
            (Base::Pr { number }, _) => Some(Leaf::Pr(*number)),
            (Base::Folder | Base::Nothing, _) => None,
            (_, Some(issue)) => Some(Leaf::Issue(issue)),
            (Base::Branch { name }, None) => Some(Leaf::Branch(name)),
            (Base::Tag { name }, None) => Some(Leaf::Tag(name)),
            (Base::Head | Base::Default { .. }, None) => None,
        }
    }

    /// The same, if its workspace can be another task's too. What an agent asks for has one of its own
    /// unless it was given a name: its asker works at the same branch and waits for it. A name that an
    /// agent gives is one among what that agent asks for; the plain ones are people's.
    #[must_use]
    pub fn leaf(&self) -> Option<Leaf<'_>> {
        let alone = |leaf: &Leaf<'_>| self.asker().is_none() || matches!(leaf, Leaf::Named(_));
        self.subject().filter(alone)
    }

    /// Whether both would work in a workspace of one name. Two live tasks never do.
    #[must_use]
    pub fn same_workspace(&self, other: &Self) -> bool {
        self.asker() == other.asker()
            && self.same_place(other)
            && self.leaf().is_some_and(|leaf| other.leaf() == Some(leaf))
    }

    /// Whether both are about the same, whoever asked for them.
    #[must_use]
    pub fn same_subject(&self, other: &Self) -> bool {
        let subject = self.subject();
        self.same_place(other) && subject.is_some_and(|subject| other.subject() == Some(subject))
    }

    fn same_place(&self, other: &Self) -> bool {
        self.repo == other.repo && self.base.is_repository() == other.base.is_repository()
    }

    pub fn tune(&mut self, tuning: Tuning) {
        let Tuning {
            model,
            effort,
            chain,
        } = tuning;
        if let Some(chain) = chain {
            self.terms.chain = chain;
        }
        self.terms.model = model.or_else(|| self.terms.model.take());
        self.guide.effort = effort.or(self.guide.effort);
    }

    /// A short name of the repository for people.
    #[must_use]
    pub fn repo_name(&self) -> &str {
        let trimmed = self.repo.trim_end_matches('/');
        let last = trimmed.rsplit(['/', ':']).next().unwrap_or(trimmed);
        last.strip_suffix(".git").unwrap_or(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_hard_to_think_has_one_word_each() {
        for effort in Effort::ALL {
            assert_eq!(serde_json::to_value(effort).unwrap(), effort.word());
            let read: Effort = serde_json::from_value(effort.word().into()).unwrap();
            assert_eq!(read, effort);
        }
    }

    /// The first was found by the fuzz target `names`.
    #[test]
    fn a_title_is_never_empty_and_always_one_short_line() {
        for (text, title) in [
            ("\u{1}\n", "(no text)"),
            ("", "(no text)"),
            ("\u{1}\n  Fix it \u{7}\nmore", "Fix it"),
        ] {
            assert_eq!(title_of(text), title);
        }
        assert_eq!(title_of(&"x".repeat(100)).chars().count(), TITLE_CHARS_MAX);
    }
}
