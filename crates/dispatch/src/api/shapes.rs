//! What core's own words and numbers look like on the wire, for whoever makes a schema: core knows no
//! schemas. A test holds each against what core really writes.
#![expect(dead_code, reason = "read as schemas only, never made")]

use std::collections::BTreeMap;

use schemars::JsonSchema;

/// What a good end looks like.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Expects {
    Change,
    Report,
    Either,
    Review,
}

/// What happens when another task has the workspace.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Taken {
    Refuse,
    Queue,
    Supersede,
}

/// How hard a model is to think. Which of them an agent takes, its driver knows.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

/// One entry of a chain: a configured key, and a model as its provider calls it.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) struct Choice {
    key: String,
    model: String,
    /// Null: as the model does by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    effort: Option<Effort>,
}

/// The same of a task.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) struct ChainEntry {
    key: String,
    model: String,
    /// Null: as the model does by itself.
    effort: Option<Effort>,
}

/// Who goes first where tasks wait for the same pool.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Priority {
    Low,
    Normal,
    High,
    Urgent,
}

/// A rule of our own agent's: what becomes of what it is about to do.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) struct Rule {
    /// A group of tools, as in `[native.groups]`.
    group: String,
    /// Of a path, a command, an address or a name: `*` is any text, `?` any character.
    pattern: String,
    action: Permissions,
}

/// What becomes of an agent's permission requests.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Permissions {
    Allow,
    Ask,
    Deny,
}

/// Limits of `[limits]` that a task has lower for its own jobs.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Lowered {
    #[serde(skip_serializing_if = "Option::is_none")]
    wall_clock_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    check_wall_clock_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    processes_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    open_files_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace_bytes: Option<u64>,
}

/// What an issue says; somebody outside wrote it.
#[derive(JsonSchema)]
pub(crate) struct IssueText {
    number: u64,
    title: String,
    #[serde(default)]
    body: String,
    #[serde(default)]
    labels: Vec<String>,
}

/// Tokens and money of one run, as its agent told them; null is not zero.
#[derive(JsonSchema)]
pub(crate) struct Usage {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_read_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
    cost_usd: Option<f64>,
    turns: Option<u32>,
}

/// The commits whose difference was read.
#[derive(JsonSchema)]
struct Range {
    base: String,
    head: String,
}

#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Pass,
    Fail,
    NotVerified,
}

#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Severity {
    Critical,
    Major,
    Minor,
    Info,
}

#[derive(JsonSchema)]
struct Finding {
    severity: Severity,
    file: Option<String>,
    line: Option<u64>,
    text: String,
}

/// What a reviewer said.
#[derive(JsonSchema)]
pub(crate) struct Review {
    verdict: Verdict,
    range: Range,
    findings: Vec<Finding>,
    note: String,
}

/// What a text that comes in pieces is.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Voice {
    Text,
    Thinking,
    Output,
}

#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
enum TodoState {
    Pending,
    Active,
    Done,
}

/// One thing that an agent means to do.
#[derive(JsonSchema)]
pub(crate) struct Todo {
    text: String,
    state: TodoState,
}

/// Who said something, or is to answer: a person, the agent of a task, or we ourselves.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sender {
    Person,
    Task(String),
    Dispatch,
}

/// Values by the name of the variable they are for.
pub(crate) type Secrets = BTreeMap<String, String>;

/// What the agent of a task may do at our door.
#[derive(JsonSchema)]
pub(crate) struct Grant {
    tools: Vec<Tool>,
    /// Only for what somebody lets its agent summon, one by one.
    #[serde(default)]
    asked: bool,
    agents: Among,
    /// Configured names, absolute paths or URLs.
    repos: Among,
    placements: Among,
    fence: Fence,
    permissions: Permissions,
    /// Of all that it asks for together; 0: none of its own.
    budget_tokens: u64,
    /// In US dollars; 0: none of its own.
    budget_usd: f64,
    /// From its first start until all that it asked for must have ended; 0: none of its own.
    wall_clock_s: u64,
    /// Levels below it.
    depth: u32,
    /// Of all levels below it.
    children_max: u32,
    /// Those of them that are not done.
    children_live_max: u32,
}

#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Tool {
    Dispatch,
    Wait,
    Show,
    Logs,
    Say,
    Answer,
    Stop,
    List,
}

#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
enum AnyWord {
    Any,
}

/// `"any"`, or names.
#[derive(JsonSchema)]
#[serde(untagged)]
enum Among {
    Any(AnyWord),
    Only(Vec<String>),
}

/// The least that has to be around a job.
#[derive(JsonSchema)]
struct Fence {
    /// It may be none at all.
    unfenced: bool,
    network: Network,
    strict: bool,
    gpu: bool,
}

/// What a fenced job reaches of the network.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Network {
    Full,
    None,
    /// Hosts by name.
    Allow(Vec<String>),
}
