//! What tools of MCP take and give: our own, in the words of the API. Each comment is read by a model
//! that decides by it.
//! Must not carry a secret: a model would see it.

use std::collections::BTreeMap;

use dispatch_core::{
    ask::Permissions,
    gate::MicroUsd,
    task::{Effort, Expects, Priority, Taken},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    request::{self, ChecksWanted},
    shapes,
    task::{Task, Waiting},
};

/// Seconds that one call waits where it does not say: below the patience of every client known.
pub(crate) const WAIT_S: u64 = 50;
/// Seconds that one call may wait; to wait longer is to call again.
pub(crate) const WAIT_S_MAX: u64 = 600;
/// Bytes of a log in one answer where it is not said, and at most.
pub(crate) const LOG_BYTES: u64 = 16 << 10;
pub(crate) const LOG_BYTES_MAX: u64 = 256 << 10;
/// Tasks in one answer where it is not said, and at most.
pub(crate) const LISTED: usize = 50;
pub(crate) const LISTED_MAX: usize = 1000;

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DispatchInput {
    /// What to do, in full. The agent sees nothing of this conversation, only this text and the
    /// repository.
    pub(crate) task: String,
    /// A git repository: a configured name, an absolute path or a URL. Left out: the one that this
    /// server was started in, where it was started in one.
    #[serde(default)]
    pub(crate) repo: Option<String>,
    /// Instead of a repository: the absolute path of a directory without git, of which the agent gets
    /// a private copy.
    #[serde(default)]
    pub(crate) dir: Option<String>,
    /// Instead of a repository: nothing. The answer is the result.
    #[serde(default)]
    pub(crate) no_repo: bool,
    /// Shown in lists instead of the first line.
    #[serde(default)]
    pub(crate) title: Option<String>,
    /// Start from this branch. Only one of branch, pr and tag.
    #[serde(default)]
    pub(crate) branch: Option<String>,
    /// Start from the head of this pull or merge request.
    #[serde(default)]
    pub(crate) pr: Option<u64>,
    /// Start from this tag; the result is kept and cannot be applied.
    #[serde(default)]
    pub(crate) tag: Option<String>,
    /// The issue that this is about.
    #[serde(default)]
    pub(crate) issue: Option<u64>,
    /// The name of a configured agent, or NAME:MODEL. Left out: the configured default.
    #[serde(default)]
    pub(crate) agent: Option<String>,
    /// The model, as the agent's program calls it.
    #[serde(default)]
    pub(crate) model: Option<String>,
    /// How hard to think: none, minimal, low, medium, high, xhigh or max, as far as the agent takes it.
    #[serde(default)]
    #[schemars(with = "Option<shapes::Effort>")]
    pub(crate) effort: Option<Effort>,
    /// Who goes first where tasks wait: low, normal, high or urgent.
    #[serde(default)]
    #[schemars(with = "Option<shapes::Priority>")]
    pub(crate) priority: Option<Priority>,
    /// Whole ids of tasks that must complete before this one starts.
    #[serde(default)]
    pub(crate) after: Vec<String>,
    /// What a good end looks like: change (the default), report, either or review.
    #[serde(default)]
    #[schemars(with = "Option<shapes::Expects>")]
    pub(crate) expects: Option<Expects>,
    /// Where the commits under review begin; makes it a review.
    #[serde(default)]
    pub(crate) review_base: Option<String>,
    /// "detect" (the default), "none", or a list of names of checks that must pass.
    #[serde(default)]
    pub(crate) checks: Option<ChecksWanted>,
    /// How to work: coding (the default), review, security, ...
    #[serde(default)]
    pub(crate) template: Option<String>,
    /// Who works: engineering/rust-engineer, security/auditor, ...
    #[serde(default)]
    pub(crate) persona: Option<String>,
    /// What to do in which order: bug-fix, new-feature, code-review, ...
    #[serde(default)]
    pub(crate) plan: Option<String>,
    /// Variables of the template, persona or plan.
    #[serde(default)]
    pub(crate) variables: BTreeMap<String, String>,
    /// What its agent may do with tools like these: the name of a configured grant, or none. Of an
    /// agent's task never more than its own.
    #[serde(default)]
    pub(crate) grant: Option<String>,
    /// For the agent of a task: it does not wait for this one, and is not told how it ends.
    #[serde(default)]
    pub(crate) detached: bool,
    /// A name of its own for the workspace. Two live tasks never share one.
    #[serde(default)]
    pub(crate) workspace: Option<String>,
    /// When another task has the workspace: refuse (the default), queue or supersede.
    #[serde(default)]
    #[schemars(with = "shapes::Taken")]
    pub(crate) taken: Taken,
    /// What all its runs together may spend in US dollars.
    #[serde(default)]
    #[schemars(with = "Option<f64>")]
    pub(crate) budget_usd: Option<MicroUsd>,
    /// The same in tokens.
    #[serde(default)]
    pub(crate) budget_tokens: Option<u64>,
    /// What becomes of the agent's permission requests: allow, ask or deny.
    #[serde(default)]
    #[schemars(with = "Option<shapes::Permissions>")]
    pub(crate) permissions: Option<Permissions>,
    /// A configured placement: cage, container, ...
    #[serde(default)]
    pub(crate) placement: Option<String>,
    /// Run in a container of this image.
    #[serde(default)]
    pub(crate) image: Option<String>,
    /// For whom: a label, and the first part of the workspace's name.
    #[serde(default)]
    pub(crate) org: Option<String>,
    /// For the agent of a task, and only the native one: by one of its definitions.
    #[serde(default)]
    pub(crate) summon: Option<request::Summon>,
    /// Only for clients that speak the tasks of MCP: answer with a handle all the same.
    #[serde(default)]
    pub(crate) handle: bool,
}

impl From<DispatchInput> for request::Dispatch {
    fn from(input: DispatchInput) -> Self {
        Self {
            summon: input.summon,
            chain: None,
            task: input.task,
            repo: input.repo,
            dir: input.dir,
            no_repo: input.no_repo,
            title: input.title,
            branch: input.branch,
            agent: input.agent,
            model: input.model,
            priority: input.priority,
            after: input.after,
            budget_tokens: input.budget_tokens,
            budget_usd: input.budget_usd,
            placement: input.placement,
            image: input.image,
            runtime: None,
            expects: input.expects,
            permissions: input.permissions,
            grant: input.grant,
            grant_most: None,
            rules: Vec::new(),
            rules_most: Vec::new(),
            detached: input.detached,
            checks: input.checks,
            review_base: input.review_base,
            workspace: input.workspace,
            taken: input.taken,
            parent: None,
            org: input.org,
            issue: input.issue,
            pr: input.pr,
            tag: input.tag,
            limits: dispatch_core::limits::Lowered::default(),
            template: input.template,
            persona: input.persona,
            plan: input.plan,
            variables: input.variables,
            effort: input.effort,
            issue_text: None,
            attachments: Vec::new(),
            secrets: request::Secrets::default(),
        }
    }
}

/// A task in short: what it is, how it stands, what it needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Handle {
    /// The whole id.
    pub(crate) task: String,
    /// The shortest prefix of it that names the task now.
    pub(crate) short: String,
    pub(crate) title: String,
    /// queued, preparing, running, stopping, checking, or parked (it waits for tasks of its own); or
    /// ended: completed, blocked, failed, stopped or lost.
    pub(crate) state: String,
    /// Whether it goes on by itself.
    pub(crate) open: bool,
    /// Why it is as it is.
    pub(crate) reason: Option<String>,
    /// What a blocked task asks. The tool `answer` goes on with it.
    pub(crate) question: Option<String>,
    /// How many tasks of its pool go first, while it waits for its turn.
    pub(crate) ahead: Option<usize>,
    pub(crate) waiting: Option<Waiting>,
    /// What its agent waits for permission for.
    pub(crate) asks: Vec<OpenAsk>,
    pub(crate) agent: String,
    pub(crate) repo: String,
    /// The branch that its result gets.
    pub(crate) branch: String,
    pub(crate) workspace_name: String,
    /// How many runs it has had.
    pub(crate) runs: usize,
    /// yes, no or not_verified (no check could vouch for it).
    pub(crate) verified: String,
    /// Whether there is a result to look at (`dispatch://tasks/ID/diff`).
    pub(crate) changed: bool,
    /// The event of the log up to which this is true.
    pub(crate) seq: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct OpenAsk {
    pub(crate) ask: u32,
    pub(crate) tool: String,
    pub(crate) input: String,
    /// Denied from then on.
    pub(crate) until: String,
}

impl From<&Task> for Handle {
    fn from(task: &Task) -> Self {
        let waiting = task.waiting.clone();
        let place = waiting.as_ref().and_then(|waiting| waiting.place);
        let asks = task.open_asks().map(|ask| OpenAsk {
            ask: ask.id,
            tool: ask.tool.clone(),
            input: ask.input.clone(),
            until: ask.until.clone(),
        });
        Self {
            task: task.id.clone(),
            short: task.short.clone(),
            title: task.title.clone(),
            state: task.state.clone(),
            open: task.is_open(),
            reason: task.reason.clone(),
            question: task.question.clone(),
            ahead: place.map(|place| place.saturating_sub(1)),
            waiting,
            asks: asks.collect(),
            agent: task.agent.clone(),
            repo: task.repo.clone(),
            branch: task.branch.clone(),
            workspace_name: task.workspace_name.clone(),
            runs: task.runs.len(),
            verified: task.verified.clone(),
            changed: task.changed,
            seq: task.seq,
        }
    }
}

/// Which task: its whole id, or a prefix that no other task has.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OneTask {
    /// The id of a task, a prefix of it that no other task has, or the name of its workspace.
    pub(crate) task: String,
}

/// When a wait is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Until {
    /// All of them have ended or need something.
    #[default]
    All,
    /// One of them has.
    Any,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WaitInput {
    /// Ids of tasks, prefixes of them, or names of their workspaces. The agent of a task may leave it
    /// out: all that it dispatched.
    #[serde(default)]
    pub(crate) tasks: Vec<String>,
    /// Wait until all of them have ended or need something, or any one.
    #[serde(default)]
    pub(crate) mode: Until,
    /// How long this call waits at most, in seconds: 50 unless said, 600 at most. Call again to wait
    /// longer; nothing is lost in between.
    #[serde(default)]
    pub(crate) timeout_s: Option<u64>,
    /// Whether the person before the client is asked what a task needs, where the client can do that:
    /// true unless said. With false it is yours to answer, with the tool `answer`.
    #[serde(default)]
    pub(crate) ask_person: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct WaitOutput {
    /// Whether what was waited for has come; false: the time is over, call again.
    pub(crate) done: bool,
    /// All of them, as they are now.
    pub(crate) tasks: Vec<Handle>,
    /// For the agent of a task: how they ended, in words.
    #[serde(default)]
    pub(crate) words: String,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogsInput {
    /// The id of a task, a prefix of it, or the name of its workspace.
    pub(crate) task: String,
    /// The number of a run; left out: the last one.
    #[serde(default)]
    pub(crate) run: Option<u32>,
    /// Read from this byte on (`next` of an earlier answer); left out: the end of the log.
    #[serde(default)]
    pub(crate) from: Option<u64>,
    /// Bytes in this answer: 16384 unless said, 262144 at most.
    #[serde(default)]
    pub(crate) bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct LogsOutput {
    pub(crate) task: String,
    pub(crate) run: u32,
    /// What the agent wrote, from byte `from` on.
    pub(crate) text: String,
    pub(crate) from: u64,
    /// Ask from here on for more.
    pub(crate) next: u64,
    /// Whether the run goes on and may write more.
    pub(crate) open: bool,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SayInput {
    /// The id of a task, a prefix of it, or the name of its workspace.
    pub(crate) task: String,
    /// What its agent is told: while it runs, or with its next run.
    pub(crate) text: String,
    /// Another model from the next run on.
    #[serde(default)]
    pub(crate) model: Option<String>,
    /// Another effort from the next run on.
    #[serde(default)]
    #[schemars(with = "Option<shapes::Effort>")]
    pub(crate) effort: Option<Effort>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct SayOutput {
    /// The number of the message.
    pub(crate) message: u32,
    /// delivered (in the running agent's input), on_its_way (the running agent takes it up at its next
    /// step), queued (it comes with a run) or held (kept until a person says something).
    pub(crate) how: String,
    pub(crate) task: Handle,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AnswerInput {
    /// The id of a task, a prefix of it, or the name of its workspace.
    pub(crate) task: String,
    /// The answer to the question of a blocked task.
    #[serde(default)]
    pub(crate) text: Option<String>,
    /// Instead of a text: allow (true) or deny (false) what its agent asks permission for.
    #[serde(default)]
    pub(crate) allow: Option<bool>,
    /// Which of its asks; left out where only one waits.
    #[serde(default)]
    pub(crate) ask: Option<u32>,
    /// Why it is denied.
    #[serde(default)]
    pub(crate) why: Option<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StopInput {
    /// The id of a task, a prefix of it, or the name of its workspace. The tasks that it asked for are
    /// stopped too.
    pub(crate) task: String,
    /// End it at once, without asking its agent.
    #[serde(default)]
    pub(crate) kill: bool,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListInput {
    /// Only tasks in one of these states.
    #[serde(default)]
    pub(crate) states: Vec<String>,
    /// Only tasks that go on by themselves.
    #[serde(default)]
    pub(crate) open: bool,
    /// The newest of them: 50 unless said, 1000 at most.
    #[serde(default)]
    pub(crate) limit: Option<usize>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ListOutput {
    /// The newest, newest first.
    pub(crate) tasks: Vec<Handle>,
    /// Whether there are older ones.
    pub(crate) more: bool,
}
