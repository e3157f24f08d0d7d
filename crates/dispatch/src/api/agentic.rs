//! What the tools of the Go dispatcher take and give, under its names. Its fields are kept as they are;
//! where an old one misled, an honest one stands beside it.
//! Must not drop or rename a field: prompts and clients written for it depend on them.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::{mcp::Handle, plan::Plan, request, task::Task};

/// Seconds that `agentic_watch` waits where it does not say, and at most.
pub(crate) const WATCH_S: u64 = 600;
pub(crate) const WATCH_S_MAX: u64 = 3600;
/// Letters in one answer where it is not said.
pub(crate) const LETTERS: usize = 50;

/// Zero and an empty text stood for nothing there.
fn absent<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let number = Option::<u64>::deserialize(from)?;
    Ok(number.filter(|number| *number != 0))
}

fn blank<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    Ok(text.filter(|text| !text.trim().is_empty()))
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DispatchInput {
    /// The repository: a configured name, a path or a URL.
    pub(crate) repo: String,
    /// For whom it is; the first part of the workspace's name. `core` unless configured otherwise.
    #[serde(default, deserialize_with = "blank")]
    pub(crate) org: Option<String>,
    /// What to do, in full.
    pub(crate) task: String,
    /// AGENT or AGENT:MODEL. `codex` unless configured otherwise.
    #[serde(default, deserialize_with = "blank")]
    pub(crate) agent: Option<String>,
    /// How to work: coding (the default), conventions, security, ...
    #[serde(default, deserialize_with = "blank")]
    pub(crate) template: Option<String>,
    /// What to do in which order: bug-fix, new-feature, ...
    #[serde(default, deserialize_with = "blank")]
    pub(crate) plan_template: Option<String>,
    /// Values for the plan's variables.
    #[serde(default)]
    pub(crate) variables: BTreeMap<String, String>,
    /// Who works, such as engineering/backend-architect.
    #[serde(default, deserialize_with = "blank")]
    pub(crate) persona: Option<String>,
    /// The issue that it is about; the workspace is then task-N.
    #[serde(default, deserialize_with = "absent")]
    pub(crate) issue: Option<u64>,
    /// The pull request to start from; the workspace is then pr-N. Goes before issue, branch and tag.
    #[serde(default, deserialize_with = "absent")]
    pub(crate) pr: Option<u64>,
    /// The branch to start from.
    #[serde(default, deserialize_with = "blank")]
    pub(crate) branch: Option<String>,
    /// The tag to start from; the result is kept and cannot be applied.
    #[serde(default, deserialize_with = "blank")]
    pub(crate) tag: Option<String>,
    /// Return the prompt and where everything would be; start nothing and write nothing.
    #[serde(default)]
    pub(crate) dry_run: bool,
}

/// The same with a task that may be left out, since nothing is started.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PrepInput {
    /// The repository: a configured name, a path or a URL.
    pub(crate) repo: String,
    #[serde(default, deserialize_with = "blank")]
    pub(crate) org: Option<String>,
    /// What would be done.
    #[serde(default, deserialize_with = "blank")]
    pub(crate) task: Option<String>,
    #[serde(default, deserialize_with = "blank")]
    pub(crate) agent: Option<String>,
    #[serde(default, deserialize_with = "blank")]
    pub(crate) template: Option<String>,
    #[serde(default, deserialize_with = "blank")]
    pub(crate) plan_template: Option<String>,
    #[serde(default)]
    pub(crate) variables: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "blank")]
    pub(crate) persona: Option<String>,
    #[serde(default, deserialize_with = "absent")]
    pub(crate) issue: Option<u64>,
    #[serde(default, deserialize_with = "absent")]
    pub(crate) pr: Option<u64>,
    #[serde(default, deserialize_with = "blank")]
    pub(crate) branch: Option<String>,
    #[serde(default, deserialize_with = "blank")]
    pub(crate) tag: Option<String>,
    /// Without meaning: nothing is ever written.
    #[serde(default)]
    #[expect(dead_code, reason = "clients of the Go dispatcher send it")]
    pub(crate) dry_run: bool,
}

impl From<PrepInput> for DispatchInput {
    fn from(input: PrepInput) -> Self {
        Self {
            repo: input.repo,
            org: input.org,
            task: input.task.unwrap_or_default(),
            agent: input.agent,
            template: input.template,
            plan_template: input.plan_template,
            variables: input.variables,
            persona: input.persona,
            issue: input.issue,
            pr: input.pr,
            branch: input.branch,
            tag: input.tag,
            dry_run: true,
        }
    }
}

impl DispatchInput {
    /// The workspace is named by the first of pr, issue, branch and tag that is given, and the task
    /// starts from the first of pr, branch and tag: those behind it have no meaning any more.
    pub(crate) fn request(self) -> (request::Dispatch, Vec<&'static str>) {
        let (on_pr, on_branch) = (self.pr.is_some(), self.branch.is_some());
        let beside = [
            ("branch", on_branch && on_pr),
            ("tag", self.tag.is_some() && (on_pr || on_branch)),
        ];
        let ignored = beside.into_iter().filter(|(_, given)| *given);
        let ignored = ignored.map(|(name, _)| name).collect();
        let asked = request::Dispatch {
            summon: None,
            chain: None,
            task: self.task,
            repo: Some(self.repo),
            dir: None,
            no_repo: false,
            title: None,
            branch: self.branch.filter(|_| !on_pr),
            agent: self.agent,
            model: None,
            priority: None,
            after: Vec::new(),
            budget_tokens: None,
            budget_usd: None,
            placement: None,
            image: None,
            runtime: None,
            expects: None,
            permissions: None,
            grant: None,
            grant_most: None,
            rules: Vec::new(),
            rules_most: Vec::new(),
            detached: false,
            checks: None,
            review_base: None,
            workspace: None,
            taken: dispatch_core::task::Taken::Refuse,
            parent: None,
            org: self.org,
            issue: self.issue,
            pr: self.pr,
            tag: self.tag.filter(|_| !on_pr && !on_branch),
            limits: dispatch_core::limits::Lowered::default(),
            template: self.template,
            persona: self.persona,
            plan: self.plan_template,
            variables: self.variables,
            effort: None,
            issue_text: None,
            attachments: Vec::new(),
            secrets: request::Secrets::default(),
        };
        (asked, ignored)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct DispatchOutput {
    /// True also when it is only queued; `state` says which.
    pub(crate) success: bool,
    pub(crate) agent: String,
    pub(crate) repo: String,
    /// Where its workspace is or will be; of a dry run, where it would be.
    pub(crate) workspace_dir: PathBuf,
    /// Of a dry run: what the agent would be given to read.
    pub(crate) prompt: String,
    /// The keeper's process while it lives; 0 before and after.
    pub(crate) pid: i32,
    /// The path of the log, always; empty for a dry run, which has none.
    pub(crate) output_file: PathBuf,
    /// The task's id; empty for a dry run.
    pub(crate) task: String,
    /// The workspace's name, as the other tools take it.
    pub(crate) workspace: String,
    /// queued, preparing, running, ...; `planned` for a dry run.
    pub(crate) state: String,
    /// Why it does not run yet, or null.
    pub(crate) reason: Option<String>,
    /// How many of its pool go first, or null.
    pub(crate) ahead: Option<usize>,
    pub(crate) branch: String,
    /// What was given and has no meaning beside what goes before it.
    pub(crate) ignored: Vec<String>,
}

impl DispatchOutput {
    pub(crate) fn of(task: &Task, ignored: &[&str]) -> Self {
        let handle = Handle::from(task);
        let run = task.runs.last();
        Self {
            success: true,
            agent: task.agent.clone(),
            repo: task.repo.clone(),
            workspace_dir: task.workspace_dir.clone(),
            prompt: String::new(),
            pid: run.and_then(|run| run.pid).unwrap_or(0),
            output_file: run.and_then(|run| run.log.clone()).unwrap_or_default(),
            task: handle.task,
            workspace: handle.workspace_name,
            state: handle.state,
            reason: handle.reason,
            ahead: handle.ahead,
            branch: handle.branch,
            ignored: ignored.iter().map(ToString::to_string).collect(),
        }
    }

    pub(crate) fn planned(plan: Plan, ignored: &[&str]) -> Self {
        Self {
            success: true,
            agent: plan.agent,
            repo: plan.repo,
            workspace_dir: plan.workspace_dir,
            prompt: plan.prompt,
            workspace: plan.workspace_name,
            state: PLANNED.to_owned(),
            reason: Some(NOTHING.to_owned()),
            branch: plan.branch,
            ignored: ignored.iter().map(ToString::to_string).collect(),
            ..Self::default()
        }
    }
}

const PLANNED: &str = "planned";
const NOTHING: &str = "nothing was started and nothing was written";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct PrepOutput {
    pub(crate) success: bool,
    /// Where the workspace of a task like this would be. It is made when the task starts.
    pub(crate) workspace_dir: PathBuf,
    /// The same: the checkout is the workspace.
    pub(crate) repo_dir: PathBuf,
    pub(crate) branch: String,
    /// What the agent would be given to read.
    pub(crate) prompt: String,
    /// The sha256 of `prompt`.
    pub(crate) prompt_version: String,
    /// Always 0: there is no such memory.
    pub(crate) memories: u32,
    /// Always 0: nothing counts them.
    pub(crate) consumers: u32,
    /// Whether a task with that workspace exists already.
    pub(crate) resumed: bool,
    /// The workspace's name.
    pub(crate) workspace: String,
    /// `planned`: nothing is on the disk yet.
    pub(crate) state: String,
    pub(crate) reason: Option<String>,
    pub(crate) ignored: Vec<String>,
}

impl PrepOutput {
    pub(crate) fn planned(
        plan: Plan,
        prompt_version: String,
        resumed: bool,
        ignored: &[&str],
    ) -> Self {
        Self {
            success: true,
            repo_dir: plan.workspace_dir.clone(),
            workspace_dir: plan.workspace_dir,
            branch: plan.branch,
            prompt: plan.prompt,
            prompt_version,
            memories: 0,
            consumers: 0,
            resumed,
            workspace: plan.workspace_name,
            state: PLANNED.to_owned(),
            reason: Some(format!(
                "{NOTHING}: the workspace is made when a task starts; `agentic_dispatch` does both"
            )),
            ignored: ignored.iter().map(ToString::to_string).collect(),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StatusInput {
    /// Only this workspace: its name (`core/api/task-5`), its directory, or a task's id.
    #[serde(default, deserialize_with = "blank")]
    pub(crate) workspace: Option<String>,
    /// How many at most, the newest; 0 means all.
    #[serde(default)]
    pub(crate) limit: usize,
    /// Only those with this status.
    #[serde(default, deserialize_with = "blank")]
    pub(crate) status: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct StatusOutput {
    pub(crate) total: usize,
    /// With those that are being prepared, checked or stopped.
    pub(crate) running: usize,
    pub(crate) queued: usize,
    pub(crate) completed: usize,
    /// With those whose end was not seen.
    pub(crate) failed: usize,
    pub(crate) blocked: Vec<BlockedInfo>,
    pub(crate) stopped: usize,
    /// Each of them, the newest first.
    pub(crate) workspaces: Vec<WorkspaceInfo>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BlockedInfo {
    pub(crate) name: String,
    pub(crate) repo: String,
    pub(crate) agent: String,
    pub(crate) question: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct WorkspaceInfo {
    pub(crate) name: String,
    pub(crate) task: String,
    pub(crate) status: String,
    pub(crate) reason: Option<String>,
    pub(crate) ahead: Option<usize>,
    pub(crate) repo: String,
    pub(crate) agent: String,
    pub(crate) branch: String,
    pub(crate) runs: usize,
}

impl From<&Task> for WorkspaceInfo {
    fn from(task: &Task) -> Self {
        let handle = Handle::from(task);
        Self {
            name: handle.workspace_name,
            task: handle.task,
            status: handle.state,
            reason: handle.reason,
            ahead: handle.ahead,
            repo: handle.repo,
            agent: handle.agent,
            branch: handle.branch,
            runs: handle.runs,
        }
    }
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResumeInput {
    /// The workspace's name, its directory, or a task's id.
    pub(crate) workspace: String,
    /// What its agent is told: the answer to its question, or what else to do.
    #[serde(default, deserialize_with = "blank")]
    pub(crate) answer: Option<String>,
    /// Another agent than the one it had.
    #[serde(default, deserialize_with = "blank")]
    pub(crate) agent: Option<String>,
    /// Return what would be said to the agent; start nothing.
    #[serde(default)]
    pub(crate) dry_run: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ResumeOutput {
    /// True also when it is only queued.
    pub(crate) success: bool,
    pub(crate) workspace: String,
    pub(crate) agent: String,
    pub(crate) pid: i32,
    /// The path of the log, always.
    pub(crate) output_file: PathBuf,
    /// Of a dry run: the task, and what would be said.
    pub(crate) prompt: String,
    pub(crate) task: String,
    pub(crate) state: String,
    pub(crate) reason: Option<String>,
    pub(crate) ahead: Option<usize>,
}

impl ResumeOutput {
    pub(crate) fn of(task: &Task) -> Self {
        let handle = Handle::from(task);
        let run = task.runs.last();
        Self {
            success: true,
            workspace: handle.workspace_name,
            agent: handle.agent,
            pid: run.and_then(|run| run.pid).unwrap_or(0),
            output_file: run.and_then(|run| run.log.clone()).unwrap_or_default(),
            prompt: String::new(),
            task: handle.task,
            state: handle.state,
            reason: handle.reason,
            ahead: handle.ahead,
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WatchInput {
    /// Names of workspaces or their beginnings, directories, or ids of tasks; none: all that run or
    /// wait.
    #[serde(default)]
    pub(crate) workspaces: Vec<String>,
    /// Without meaning: nothing is polled.
    #[serde(default)]
    #[expect(dead_code, reason = "clients of the Go dispatcher send it")]
    pub(crate) poll_interval: u64,
    /// Seconds: 600 unless said, 3600 at most.
    #[serde(default, deserialize_with = "absent")]
    pub(crate) timeout: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct WatchOutput {
    /// Whether none of them failed, is blocked or was still going on.
    pub(crate) success: bool,
    pub(crate) completed: Vec<WatchResult>,
    /// All others; `status` says which, `timeout` for one that goes on.
    pub(crate) failed: Vec<WatchResult>,
    pub(crate) duration: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct WatchResult {
    pub(crate) workspace: String,
    pub(crate) agent: String,
    pub(crate) repo: String,
    pub(crate) status: String,
    /// Empty: none is made yet.
    pub(crate) pr_url: String,
    pub(crate) task: String,
    /// The state that it really is in.
    pub(crate) state: String,
    pub(crate) reason: Option<String>,
}

impl From<&Task> for WatchResult {
    fn from(task: &Task) -> Self {
        let status = if task.is_open() {
            "timeout"
        } else {
            task.state.as_str()
        };
        Self {
            workspace: task.workspace_name.clone(),
            agent: task.agent.clone(),
            repo: task.repo.clone(),
            status: status.to_owned(),
            pr_url: String::new(),
            task: task.id.clone(),
            state: task.state.clone(),
            reason: task.reason.clone(),
        }
    }
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CompleteInput {
    /// The workspace's name, its directory, or a task's id.
    pub(crate) workspace: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct CompleteOutput {
    /// Whether its last run completed: checks have run by themselves, and the result is kept.
    pub(crate) success: bool,
    pub(crate) workspace: String,
    pub(crate) task: String,
    pub(crate) state: String,
    pub(crate) reason: Option<String>,
    /// yes, no or not_verified.
    pub(crate) verified: String,
    pub(crate) changed: bool,
}

/// Nothing.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct GateOutput {
    pub(crate) success: bool,
    /// How many run now.
    pub(crate) running: usize,
    /// How many wait now.
    pub(crate) queued: usize,
    pub(crate) message: String,
    /// How many were ended by this call.
    pub(crate) stopped: usize,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SendInput {
    /// The workspace's name, its directory, or a task's id.
    pub(crate) workspace: String,
    /// The name you sign with.
    pub(crate) from_agent: String,
    /// The name of whoever is to read it.
    pub(crate) to_agent: String,
    #[serde(default)]
    pub(crate) subject: String,
    pub(crate) content: String,
    /// Without meaning here.
    #[serde(default)]
    #[expect(dead_code, reason = "clients of the Go dispatcher send it")]
    pub(crate) workspace_id: Option<i64>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InboxInput {
    /// The workspace's name, its directory, or a task's id.
    pub(crate) workspace: String,
    /// Whose letters.
    pub(crate) agent: String,
    /// How many at most: 50 unless said, 500 at most.
    #[serde(default)]
    pub(crate) limit: usize,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConversationInput {
    /// The workspace's name, its directory, or a task's id.
    pub(crate) workspace: String,
    pub(crate) agent: String,
    pub(crate) with_agent: String,
    /// How many at most, the newest: 50 unless said, 500 at most.
    #[serde(default)]
    pub(crate) limit: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct AgentMessage {
    pub(crate) id: String,
    pub(crate) workspace: String,
    pub(crate) from_agent: String,
    pub(crate) to_agent: String,
    pub(crate) subject: String,
    pub(crate) content: String,
    /// Empty: not read yet.
    pub(crate) read_at: String,
    pub(crate) created_at: String,
    /// Who really sent it: `person`, or the id of the task whose agent did.
    pub(crate) sent_by: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct SendOutput {
    pub(crate) success: bool,
    pub(crate) message: AgentMessage,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct MessagesOutput {
    pub(crate) success: bool,
    /// How many of them had not been read before.
    pub(crate) new: usize,
    pub(crate) count: usize,
    pub(crate) messages: Vec<AgentMessage>,
    /// How many still wait to be read; ask again for them.
    pub(crate) unread: usize,
}

#[cfg(test)]
mod tests {
    use dispatch_core::{config::Config, naming};
    use serde_json::json;

    use super::*;

    fn made(more: &serde_json::Value) -> (String, String, Vec<&'static str>) {
        let mut input = json!({"repo": "/src/go-io", "task": "Fix it", "org": "core"});
        let members = more.as_object().unwrap().clone();
        input.as_object_mut().unwrap().extend(members);
        let input: DispatchInput = serde_json::from_value(input).unwrap();
        let (asked, ignored) = input.request();
        let spec = asked.spec(&Config::defaults()).unwrap();
        assert_eq!(spec.agent.as_str(), "codex");
        let name = naming::workspace_name(&spec, "3f");
        (name, spec.base.words(), ignored)
    }

    #[test]
    fn the_workspace_is_named_by_the_first_that_is_given() {
        let all = json!({"pr": 7, "issue": 5, "branch": "dev", "tag": "v1"});
        let told = |name: &str, base: &str, ignored: &[&'static str]| {
            (name.to_owned(), base.to_owned(), ignored.to_vec())
        };
        assert_eq!(
            made(&all),
            told("core/go-io/pr-7", "pr 7", &["branch", "tag"])
        );
        let three = json!({"issue": 5, "branch": "dev", "tag": "v1"});
        assert_eq!(
            made(&three),
            told("core/go-io/task-5", "branch dev", &["tag"])
        );
        let two = json!({"branch": "dev", "tag": "v1"});
        assert_eq!(made(&two), told("core/go-io/dev", "branch dev", &["tag"]));
        assert_eq!(
            made(&json!({"tag": "v1"})),
            told("core/go-io/v1", "tag v1", &[])
        );
        // What clients in Go send for what they do not mean.
        let zero =
            json!({"pr": 0, "issue": 5, "branch": "", "tag": " ", "agent": "", "persona": ""});
        assert_eq!(made(&zero), told("core/go-io/task-5", "head", &[]));
    }
}
