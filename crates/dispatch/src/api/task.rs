//! The task object of the scripting contract (docs/cli.md), made from what the engine knows.
//! Must not drop or rename a field: scripts depend on it, and a test holds its schema.

use std::{collections::BTreeMap, path::PathBuf};

use dispatch_core::{
    ask::{self, Ask as CoreAsk, Fate as AskFate},
    family::{End as CoreEnd, Fate as EndFate},
    grant::Grant,
    id::TaskId,
    job::Exit as CoreExit,
    limits::Lowered,
    message::{Fate, Message as CoreMessage},
    models::Choice,
    naming,
    outcome::Outcome,
    prompt::{Guide as CoreGuide, TextName},
    review::Review,
    run::RunState,
    state::{Check as CoreCheck, Run as CoreRun, Task as CoreTask},
    task::{Effort, Network, Terms},
    update::Usage,
};
use dispatch_engine::{
    reads::state_of,
    view::{ChildView, JobView, TaskView},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{shapes, time};

/// Why one waits that goes on when a person does something.
const NEEDS_YOU: &str = "needs_you";

/// Every state, in the order of a task's life.
pub(crate) const STATES: [&str; 11] = [
    "queued",
    "preparing",
    "running",
    "stopping",
    "checking",
    "parked",
    "completed",
    "blocked",
    "failed",
    "stopped",
    "lost",
];
pub(crate) const NOT_JUDGED: &str = "ended, not yet judged";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Task {
    pub(crate) id: String,
    /// The shortest prefix that names it; more tasks make it longer.
    pub(crate) short: String,
    pub(crate) title: String,
    pub(crate) repo: String,
    pub(crate) agent: String,
    pub(crate) model: Option<String>,
    /// Of our own agent: whom it asks, the first before the second.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<shapes::ChainEntry>")]
    pub(crate) chain: Vec<Choice>,
    pub(crate) pool: String,
    pub(crate) priority: String,
    /// Whole ids.
    pub(crate) after: Vec<String>,
    pub(crate) budget: Option<Budget>,
    pub(crate) placement: String,
    /// What it runs in, when that is a container.
    #[serde(default)]
    pub(crate) image: Option<String>,
    #[serde(default)]
    pub(crate) runtime: Option<String>,
    pub(crate) enforced: Option<String>,
    pub(crate) allow: Option<Vec<String>>,
    pub(crate) state: String,
    pub(crate) reason: Option<String>,
    pub(crate) waiting: Option<Waiting>,
    pub(crate) question: Option<String>,
    pub(crate) branch: String,
    /// The commit it started from, once it is known.
    pub(crate) base: Option<String>,
    /// What it starts from, in words: `head`, `branch main`, `pr 7`, `tag v1`, `folder`, `nothing`.
    #[serde(default)]
    pub(crate) from: String,
    pub(crate) workspace: Option<PathBuf>,
    /// Where that is, or will be.
    #[serde(default)]
    pub(crate) workspace_dir: PathBuf,
    #[serde(default)]
    pub(crate) workspace_name: String,
    /// The task that it was queued behind, or that it supersedes.
    #[serde(default)]
    pub(crate) behind: Option<String>,
    pub(crate) task: String,
    pub(crate) org: Option<String>,
    pub(crate) issue: Option<u64>,
    pub(crate) pr: Option<u64>,
    pub(crate) tag: Option<String>,
    pub(crate) parent: Option<String>,
    pub(crate) created_at: String,
    pub(crate) seq: u64,
    pub(crate) runs: Vec<Run>,
    pub(crate) verified: String,
    pub(crate) changed: bool,
    pub(crate) checks_touched: Vec<String>,
    pub(crate) diffstat: Option<Diffstat>,
    pub(crate) notes: Vec<String>,
    /// Configuration for agents in the base commit.
    #[serde(default)]
    pub(crate) carried: Vec<Carried>,
    /// What was said to it since; of settled messages the newest.
    #[serde(default)]
    pub(crate) messages: Vec<Message>,
    /// What becomes of its agent's permission requests: `allow`, `ask` or `deny`.
    #[serde(default)]
    pub(crate) permissions: String,
    /// What its agent may do at our door; null: nothing.
    #[serde(default)]
    #[schemars(with = "Option<shapes::Grant>")]
    pub(crate) grant: Option<Grant>,
    /// The run whose agent asked for it: `TASK-NUMBER`.
    #[serde(default)]
    pub(crate) asked_by: Option<String>,
    /// Its asker does not wait for it.
    #[serde(default)]
    pub(crate) detached: bool,
    /// The definition that our own agent was summoned by; null: none.
    #[serde(default)]
    pub(crate) summoned: Option<Summoned>,
    /// When it must have ended.
    #[serde(default)]
    pub(crate) until: Option<String>,
    /// What its agents asked for.
    #[serde(default)]
    pub(crate) children: Vec<Child>,
    /// How those ended, as far as it was owed to it; of settled ones the newest.
    #[serde(default)]
    pub(crate) ends: Vec<End>,
    /// What its agents asked permission for; of earlier runs the newest.
    #[serde(default)]
    pub(crate) asks: Vec<Ask>,
    /// Files that came with it and with what was said to it.
    #[serde(default)]
    pub(crate) attachments: Vec<Attachment>,
    /// What its next run has otherwise, while one goes on.
    #[serde(default)]
    pub(crate) next_run: Option<NextRun>,
    /// Those it has lower than the configuration.
    #[serde(default)]
    #[schemars(with = "shapes::Lowered")]
    pub(crate) limits: Lowered,
    /// How its prompt is made.
    #[serde(default)]
    pub(crate) guide: Guide,
    pub(crate) removed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Ask {
    pub(crate) id: u32,
    pub(crate) run: u32,
    pub(crate) tool: String,
    pub(crate) input: String,
    /// Who is to answer: `person`, or the whole id of a task.
    pub(crate) owner: String,
    pub(crate) at: String,
    /// Denied from then on.
    pub(crate) until: String,
    pub(crate) state: String,
    /// Who answered: `person`, a task's id, `deadline`, `limit` or `agent`.
    pub(crate) by: Option<String>,
    pub(crate) why: Option<String>,
}

impl Ask {
    pub(crate) fn is_open(&self) -> bool {
        self.state == "waiting"
    }
}

impl From<&CoreAsk> for Ask {
    fn from(ask: &CoreAsk) -> Self {
        let (by, why) = match &ask.fate {
            AskFate::Answered { by, why, .. } => (Some(by.to_string()), why.clone()),
            AskFate::Open | AskFate::Closed => (None, None),
        };
        Self {
            id: ask.id.0,
            run: ask.run,
            tool: ask.tool.clone(),
            input: ask.input.clone(),
            owner: ask.owner.to_string(),
            at: time(ask.at),
            until: time(ask.until),
            state: ask.word().into(),
            by,
            why,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Attachment {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    pub(crate) path: PathBuf,
    /// Which one it came with; null: the task itself.
    pub(crate) message: Option<u32>,
}

/// What an agent was summoned as. Fixed when its task was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Summoned {
    /// The name of the definition's file.
    pub(crate) agent: String,
    pub(crate) name: String,
    /// Whose definition: `person` or `repository`.
    pub(crate) scope: String,
    /// Below the root of the repository; empty: there.
    pub(crate) directory: String,
}

impl Summoned {
    fn of(terms: &Terms) -> Option<Self> {
        let role = terms.role.as_ref()?;
        Some(Self {
            agent: role.slug.to_string(),
            name: role.name.clone(),
            scope: role.scope.to_string(),
            directory: terms.directory.clone(),
        })
    }
}

/// A task that an agent of this one asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Child {
    pub(crate) id: String,
    pub(crate) short: String,
    pub(crate) state: String,
    pub(crate) detached: bool,
    /// Nothing of it runs or waits.
    pub(crate) done: bool,
}

/// An end of one of them, on its way to this task's agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct End {
    pub(crate) task: String,
    pub(crate) run: u32,
    /// `owed`, `told` in a message, `waited_for`, or `detached`.
    pub(crate) state: String,
    pub(crate) message: Option<u32>,
}

impl From<&ChildView> for Child {
    fn from(child: &ChildView) -> Self {
        Self {
            id: child.task.to_string(),
            short: child.short.clone(),
            state: child.state.into(),
            detached: child.detached,
            done: child.done,
        }
    }
}

impl From<&CoreEnd> for End {
    fn from(end: &CoreEnd) -> Self {
        Self {
            task: end.id.child.to_string(),
            run: end.id.run,
            state: end.word().into(),
            message: match end.fate {
                EndFate::Told { message } => Some(message.0),
                EndFate::Owed | EndFate::Waited { .. } | EndFate::Detached => None,
            },
        }
    }
}

/// Null: as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct NextRun {
    pub(crate) model: Option<String>,
    #[schemars(with = "Option<shapes::Effort>")]
    pub(crate) effort: Option<Effort>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Message {
    pub(crate) id: u32,
    /// `person`, the whole id of the task whose agent said it, or `dispatch`: how children ended.
    pub(crate) from: String,
    pub(crate) text: String,
    pub(crate) at: String,
    /// The event that began what led to it: a person's word, or a task of theirs.
    #[serde(default)]
    pub(crate) chain: u64,
    pub(crate) state: String,
    pub(crate) delivery: Option<String>,
    /// The run that has it.
    pub(crate) run: Option<u32>,
}

impl From<&CoreMessage> for Message {
    fn from(message: &CoreMessage) -> Self {
        Self {
            id: message.id.0,
            from: message.from.to_string(),
            text: message.text.clone(),
            at: time(message.at),
            chain: message.chain.0,
            state: message.word().into(),
            delivery: match message.fate {
                Fate::Delivered(delivery) => Some(delivery.word().into()),
                Fate::Waiting | Fate::Cancelled => None,
            },
            run: message.taken.map(|taken| taken.run),
        }
    }
}

/// Why it does not start, until when if that is known, and how many of its pool go first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Waiting {
    pub(crate) why: String,
    pub(crate) text: String,
    pub(crate) until: Option<String>,
    pub(crate) place: Option<usize>,
}

/// What all its runs together may spend; 0 means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Budget {
    pub(crate) tokens: u64,
    pub(crate) usd: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Guide {
    pub(crate) template: Option<String>,
    pub(crate) persona: Option<String>,
    pub(crate) plan: Option<String>,
    pub(crate) variables: BTreeMap<String, String>,
    #[schemars(with = "Option<shapes::Effort>")]
    pub(crate) effort: Option<Effort>,
}

/// What an agent was given to read, and the file that keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Prompt {
    pub(crate) path: PathBuf,
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
    pub(crate) cut: Vec<String>,
    pub(crate) repository: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Carried {
    pub(crate) path: String,
    pub(crate) can: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Run {
    pub(crate) n: u32,
    pub(crate) cause: String,
    #[serde(default)]
    pub(crate) chain: u64,
    /// Its end was not its task's, which waited for what it had asked for.
    #[serde(default)]
    pub(crate) parked: bool,
    pub(crate) state: String,
    pub(crate) exit: Option<Exit>,
    /// The keeper's, while it lives.
    pub(crate) pid: Option<i32>,
    pub(crate) log: Option<PathBuf>,
    pub(crate) started_at: Option<String>,
    pub(crate) ended_at: Option<String>,
    pub(crate) session: Option<String>,
    #[schemars(with = "Option<shapes::Usage>")]
    pub(crate) usage: Option<Usage>,
    pub(crate) checks: Vec<Check>,
    #[serde(default)]
    pub(crate) prompt: Option<Prompt>,
    /// What a reviewer said, where that was the task.
    #[serde(default)]
    #[schemars(with = "Option<shapes::Review>")]
    pub(crate) review: Option<Review>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) exit: Option<Exit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Diffstat {
    pub(crate) files: u64,
    pub(crate) insertions: u64,
    pub(crate) deletions: u64,
}

impl Task {
    /// What waits for an answer.
    pub(crate) fn open_asks(&self) -> impl Iterator<Item = &Ask> {
        self.asks.iter().filter(|ask| ask.is_open())
    }

    /// It waits for a person, and for nothing else.
    pub(crate) fn needs_you(&self) -> bool {
        let waiting = self.waiting.as_ref();
        waiting.is_some_and(|waiting| waiting.why == NEEDS_YOU)
    }

    pub(crate) fn is_parked(&self) -> bool {
        self.state == "parked"
    }

    pub(crate) fn is_open(&self) -> bool {
        !matches!(
            self.state.as_str(),
            "completed" | "blocked" | "failed" | "stopped" | "lost"
        )
    }
}

impl From<CoreExit> for Exit {
    fn from(exit: CoreExit) -> Self {
        match exit {
            CoreExit::Code(code) => Self::Code(code),
            CoreExit::Signal(signal) => Self::Signal(signal),
        }
    }
}

impl From<&CoreCheck> for Check {
    fn from(check: &CoreCheck) -> Self {
        Self {
            name: check.name.to_string(),
            state: check.state.word().into(),
            exit: check.exit.map(Exit::from),
        }
    }
}

fn run(run: &CoreRun, job: Option<&JobView>) -> Run {
    Run {
        n: run.n,
        cause: run.cause.word().into(),
        chain: run.chain.0,
        parked: run.parked,
        state: run.state.word().into(),
        exit: run.report.as_ref().map(|report| report.exit.into()),
        pid: job.and_then(|job| job.keeper_pid),
        log: job.map(|job| job.log.clone()),
        started_at: run.started_at.map(time),
        ended_at: run.ended_at.map(time),
        session: run.session.clone(),
        usage: run.usage.clone(),
        checks: run.checks.iter().map(Check::from).collect(),
        prompt: prompt(run, job),
        review: run.review.clone(),
    }
}

fn prompt(run: &CoreRun, job: Option<&JobView>) -> Option<Prompt> {
    let made = run.prompt.as_ref()?;
    Some(Prompt {
        path: job?.prompt.clone()?,
        sha256: made.sha256.clone(),
        bytes: made.bytes,
        cut: made.cut.clone(),
        repository: made.repository.clone(),
    })
}

impl From<&CoreGuide> for Guide {
    fn from(guide: &CoreGuide) -> Self {
        let word = |name: &Option<TextName>| name.as_ref().map(TextName::to_string);
        Self {
            template: word(&guide.template),
            persona: word(&guide.persona),
            plan: word(&guide.plan),
            variables: guide.variables.clone(),
            effort: guide.effort,
        }
    }
}

fn parked_waits(view: &TaskView) -> Option<Waiting> {
    view.family.parked.then(|| Waiting {
        why: if view.family.held {
            NEEDS_YOU.into()
        } else {
            "children".into()
        },
        text: parked(view),
        until: None,
        place: None,
    })
}

/// What a parked task waits for.
fn parked(view: &TaskView) -> String {
    if view.family.held {
        let note = view.task.notes.last().cloned();
        return note.unwrap_or_else(|| "what it asked for has ended, and it is not told".into());
    }
    let waits = |child: &&ChildView| !child.detached && !child.done;
    let open = view.family.children.iter().filter(waits);
    let open: Vec<String> = open
        .map(|child| format!("{} ({})", child.short, child.state))
        .collect();
    format!("waits for what it asked for: {}", open.join(", "))
}

fn reason(task: &CoreTask, view: &TaskView) -> Option<String> {
    if view.family.parked {
        return Some(parked(view));
    }
    let last = task.last_run()?;
    let text = match &last.state {
        RunState::Queued => view.waits.as_ref()?.text.clone(),
        RunState::Stopping { why } => why.to_string(),
        RunState::Finished(outcome) => outcome.reason(),
        RunState::Preparing | RunState::Running | RunState::Checking => {
            let mut asks = task.open_asks();
            if let Some(ask) = asks.next() {
                let more = match asks.count() {
                    0 => String::new(),
                    n => format!(", and {n} more"),
                };
                let what = ask::shown(&format!("{} {}", ask.tool, ask.input));
                return Some(format!("asks {}: {what}{more}", ask.id));
            }
            if let Some(waiting) = &view.waits {
                return Some(waiting.text.clone());
            }
            let ended = view.jobs.last().is_some_and(|job| job.ended_not_judged);
            ended.then(|| NOT_JUDGED.to_owned())?
        }
    };
    Some(text).filter(|text| !text.is_empty())
}

impl From<&TaskView> for Task {
    fn from(view: &TaskView) -> Self {
        let task = &view.task;
        let (spec, last, result) = (&task.spec, task.last_run(), task.result());
        let container = spec.placement.container.as_ref();
        let question = match task.outcome() {
            Some(Outcome::Blocked { question }) => Some(question.clone()),
            _ => None,
        };
        let mut notes = task.notes.clone();
        notes.extend(
            result
                .iter()
                .flat_map(|sealed| sealed.notes.iter().cloned()),
        );
        Self {
            id: task.id.to_string(),
            short: view.short.clone(),
            title: spec.title.clone(),
            repo: spec.repo.clone(),
            agent: spec.agent.to_string(),
            model: spec.terms.model.as_ref().map(ToString::to_string),
            chain: spec.terms.chain.clone(),
            pool: spec.pool.to_string(),
            priority: spec.terms.priority.word().into(),
            after: spec.terms.after.iter().map(TaskId::to_string).collect(),
            budget: (!task.budget().is_none()).then(|| Budget {
                tokens: task.budget().tokens,
                usd: task.budget().usd.into(),
            }),
            placement: spec.placement.word().into(),
            image: container.map(|container| container.image.to_string()),
            runtime: container.map(|container| container.runtime.word().into()),
            enforced: last.and_then(|run| run.enforced.clone()),
            allow: match &spec.placement.network {
                Network::Allow(list) => Some(list.clone().into()),
                Network::Full | Network::None => None,
            },
            state: state_of(task).into(),
            reason: reason(task, view),
            waiting: parked_waits(view).or_else(|| {
                view.waits.as_ref().map(|waiting| Waiting {
                    why: waiting.why.word().into(),
                    text: waiting.text.clone(),
                    until: waiting.until.map(time),
                    place: view.place,
                })
            }),
            question,
            branch: task.branch(),
            base: task.workspace.as_ref().map(|w| w.base.clone()),
            from: spec.base.words(),
            workspace_name: naming::workspace_name(spec, &task.short),
            behind: spec.turn.behind.as_ref().map(TaskId::to_string),
            workspace: task
                .workspace
                .as_ref()
                .filter(|w| !w.removed)
                .map(|w| w.path.clone()),
            workspace_dir: view.workspace.clone(),
            task: spec.text.clone(),
            org: spec.labels.org.clone(),
            issue: spec.labels.issue,
            pr: spec.labels.pr,
            tag: spec.labels.tag.clone(),
            parent: spec.parent.as_ref().map(TaskId::to_string),
            created_at: time(task.created_at),
            seq: view.seq,
            runs: task
                .runs
                .iter()
                .enumerate()
                .map(|(index, one)| run(one, view.jobs.get(index)))
                .collect(),
            verified: last
                .map_or("not_verified", |run| run.verified.word())
                .into(),
            changed: result.is_some_and(|sealed| sealed.commit.is_some()),
            checks_touched: result.map_or_else(Vec::new, |s| s.checks_touched.clone()),
            diffstat: result.map(|sealed| Diffstat {
                files: sealed.files,
                insertions: sealed.insertions,
                deletions: sealed.deletions,
            }),
            notes,
            carried: task
                .carried
                .iter()
                .map(|item| Carried {
                    path: item.path.clone(),
                    can: item.can.word().into(),
                })
                .collect(),
            messages: task.messages.iter().map(Message::from).collect(),
            permissions: spec.terms.permissions.word().into(),
            grant: spec.terms.grant.as_deref().cloned(),
            asked_by: spec.terms.asked_by.as_ref().map(ToString::to_string),
            detached: view.family.detached,
            summoned: Summoned::of(&spec.terms),
            until: spec.terms.until.map(time),
            children: view.family.children.iter().map(Child::from).collect(),
            ends: task.family.ends.iter().map(End::from).collect(),
            asks: task.asks.iter().map(Ask::from).collect(),
            attachments: view
                .attached
                .iter()
                .map(|(file, message, path)| Attachment {
                    name: file.name.to_string(),
                    bytes: file.bytes,
                    sha256: file.sha256.clone(),
                    path: path.clone(),
                    message: message.map(|message| message.0),
                })
                .collect(),
            next_run: (!task.tuning.is_empty()).then(|| NextRun {
                model: task.tuning.model.as_ref().map(ToString::to_string),
                effort: task.tuning.effort,
            }),
            limits: task.spec.limits.clone(),
            guide: Guide::from(&spec.guide),
            removed: task.removed,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use dispatch_core::review::{Finding, Range, Severity, Verdict};
    use dispatch_core::{
        ask::{AskId, By},
        attach::{Attachment as CoreAttachment, FileName},
        event::{CheckState, PromptMade, Sealed, Verified},
        family::{EndId, Family},
        job::ExitReport,
        message::{Chain, Delivery, MessageId, Sender, Taken},
        run::RunCause,
        state::Workspace,
        task::{
            Base, ChecksAsked, Expects, Labels, Placement, TaskSpec, Terms, Tuning, Turn, Wrap,
        },
    };

    use dispatch_engine::view::FamilyView;

    use super::*;

    pub(crate) fn view(id: u64, state: RunState) -> TaskView {
        let run = CoreRun {
            n: 1,
            cause: RunCause::Dispatched,
            chain: Chain(2),
            parked: false,
            state,
            queued_seq: 2,
            queued_at: 0,
            prompt: Some(PromptMade {
                sha256: "a1".into(),
                bytes: 3,
                cut: vec!["issue.md".into()],
                repository: vec![],
            }),
            range: None,
            review: Some(Review {
                verdict: Verdict::Fail,
                range: Range {
                    base: "b".into(),
                    head: "h".into(),
                },
                findings: vec![Finding {
                    severity: Severity::Major,
                    file: Some("a.rs".into()),
                    line: Some(3),
                    text: "off by one".into(),
                }],
                note: "no".into(),
            }),
            site: None,
            driver: None,
            enforced: Some("host: nothing".into()),
            started_at: Some(1_000),
            ended_at: Some(2_500),
            session: Some("s".into()),
            report: Some(ExitReport {
                exit: CoreExit::Code(0),
                stopped: None,
                started_at: 1_000,
                ended_at: 2_000,
                out_bytes: 0,
                err_bytes: 0,
                leftovers: 0,
                problems: vec![],
            }),
            usage: None,
            sealed: Some(Sealed {
                commit: Some("c".into()),
                files: 1,
                insertions: 2,
                deletions: 3,
                checks_touched: vec!["tests/a.rs".into()],
                notes: vec!["history rewritten".into()],
            }),
            checks: vec![CoreCheck {
                name: "test".parse().unwrap(),
                state: CheckState::Failed,
                exit: Some(CoreExit::Signal(9)),
                note: String::new(),
            }],
            verified: Verified::No,
        };
        let task = CoreTask {
            id: TaskId::from_bits(id),
            short: "3f".into(),
            spec: TaskSpec {
                title: "Fix it".into(),
                text: "Fix it\nplease".into(),
                repo: "/r".into(),
                base: Base::Head,
                agent: "claude".parse().unwrap(),
                pool: "default".parse().unwrap(),
                placement: Placement::of(Wrap::Host),
                expects: Expects::Change,
                checks: ChecksAsked::Detect,
                review_base: None,
                workspace: None,
                turn: Turn::default(),
                parent: None,
                labels: Labels::default(),
                terms: Terms::default(),
                limits: dispatch_core::limits::Lowered::default(),
                guide: CoreGuide {
                    template: Some("review".parse().unwrap()),
                    variables: BTreeMap::from([("a".into(), "b".into())]),
                    effort: Some(Effort::High),
                    ..CoreGuide::default()
                },
            },
            created_at: 500,
            seq: 9,
            runs: vec![run],
            workspace: Some(Workspace {
                path: "/w".into(),
                base: "b".into(),
                base_branch: None,
                removed: false,
            }),
            snapshots: vec![],
            applied: None,
            removed: false,
            removed_at: None,
            notes: vec![],
            carried: vec![dispatch_core::carried::Carried {
                path: ".mcp.json".into(),
                can: dispatch_core::carried::Can::RunCommands,
            }],
            messages: vec![CoreMessage {
                id: MessageId(1),
                text: "and UTC".into(),
                from: Sender::Person,
                at: 700,
                taken: Some(Taken {
                    run: 1,
                    out_offset: Some(4),
                }),
                barred: None,
                rank: dispatch_core::prompt::Rank::Above,
                chain: Chain(7),
                held: false,
                fate: Fate::Delivered(Delivery::Interrupt),
            }],
            messages_count: 1,
            asks: vec![CoreAsk {
                id: AskId(1),
                run: 1,
                tool: "Bash".into(),
                input: "ls".into(),
                owner: Sender::Person,
                at: 800,
                until: 1_800,
                fate: AskFate::Answered {
                    allow: false,
                    by: By::Person,
                    why: Some("no".into()),
                    always: false,
                },
            }],
            asks_count: 1,
            attached: vec![],
            attached_dropped: false,
            compacts: 0,
            tuning: Tuning {
                model: None,
                effort: Some(Effort::Low),
                chain: None,
            },
            wakes: 0,
            foreign_runs: 0,
            family: Family {
                ends: vec![CoreEnd {
                    id: EndId {
                        child: TaskId::from_bits(0x5a),
                        run: 1,
                    },
                    at: 900,
                    fate: EndFate::Told {
                        message: MessageId(1),
                    },
                }],
                ..Family::default()
            },
            completed: false,
        };
        TaskView {
            task,
            short: "3f".into(),
            seq: 12,
            waits: None,
            place: None,
            jobs: vec![JobView {
                keeper_pid: None,
                log: "/d/runs/x/agent/out".into(),
                prompt: Some("/d/tasks/x/prompts/1.md".into()),
                ended_not_judged: true,
            }],
            attached: vec![(
                CoreAttachment {
                    name: FileName::of("log.txt"),
                    bytes: 7,
                    sha256: "b2".into(),
                },
                Some(MessageId(1)),
                "/d/tasks/x/attachments/1/log.txt".into(),
            )],
            vault: None,
            workspace: "/d/workspaces/k/fix-it-3f".into(),
            family: FamilyView {
                children: vec![ChildView {
                    task: TaskId::from_bits(0x5a),
                    short: "5a".into(),
                    state: "completed",
                    detached: false,
                    done: true,
                }],
                ..FamilyView::default()
            },
        }
    }

    /// The contract with scripts: changing this test means telling every user.
    #[test]
    fn the_schema_of_a_task() {
        let blocked = RunState::Finished(Outcome::Blocked {
            question: "UTC?".into(),
        });
        let got = serde_json::to_value(Task::from(&view(0x3f, blocked))).unwrap();
        let review = r#"{
            "verdict": "fail", "range": {"base": "b", "head": "h"},
            "findings": [{"severity": "major", "file": "a.rs", "line": 3, "text": "off by one"}],
            "note": "no"
        }"#;
        let run = r#"{
            "n": 1, "cause": "dispatched", "chain": 2, "parked": false, "state": "blocked", "exit": {"code": 0},
            "pid": null, "log": "/d/runs/x/agent/out",
            "started_at": "1970-01-01T00:00:01.000Z", "ended_at": "1970-01-01T00:00:02.500Z",
            "session": "s", "usage": null,
            "checks": [{"name": "test", "state": "failed", "exit": {"signal": 9}}],
            "prompt": {
                "path": "/d/tasks/x/prompts/1.md", "sha256": "a1", "bytes": 3,
                "cut": ["issue.md"], "repository": []
            },
            "review": REVIEW
        }"#
        .replace("REVIEW", review);
        // As text: the macro has a limit on how much it reads.
        let want: serde_json::Value = serde_json::from_str(
            &r#"{
            "id": "000000000000003f", "short": "3f", "title": "Fix it", "repo": "/r",
            "agent": "claude", "model": null, "pool": "default", "priority": "normal",
            "after": [], "budget": null, "placement": "host", "image": null, "runtime": null,
            "enforced": "host: nothing", "allow": null,
            "state": "blocked", "reason": "UTC?", "waiting": null, "question": "UTC?",
            "branch": "dispatch/fix-it-3f", "base": "b", "from": "head", "workspace": "/w",
            "workspace_dir": "/d/workspaces/k/fix-it-3f",
            "workspace_name": "local/r/fix-it-3f", "behind": null,
            "task": "Fix it\nplease", "org": null, "issue": null, "pr": null, "tag": null,
            "parent": null, "created_at": "1970-01-01T00:00:00.500Z", "seq": 12,
            "runs": [RUN],
            "verified": "no", "changed": true, "checks_touched": ["tests/a.rs"],
            "diffstat": {"files": 1, "insertions": 2, "deletions": 3},
            "notes": ["history rewritten"],
            "carried": [{"path": ".mcp.json", "can": "run_commands"}],
            "messages": [{
                "id": 1, "from": "person", "text": "and UTC", "at": "1970-01-01T00:00:00.700Z",
                "chain": 7,
                "state": "delivered", "delivery": "interrupt", "run": 1
            }],
            "permissions": "allow", "grant": null, "asked_by": null, "detached": false, "summoned": null,
            "until": null,
            "children": [{
                "id": "000000000000005a", "short": "5a", "state": "completed", "detached": false,
                "done": true
            }],
            "ends": [{
                "task": "000000000000005a", "run": 1, "state": "told", "message": 1
            }],
            "asks": [{
                "id": 1, "run": 1, "tool": "Bash", "input": "ls", "owner": "person",
                "at": "1970-01-01T00:00:00.800Z", "until": "1970-01-01T00:00:01.800Z",
                "state": "denied", "by": "person", "why": "no"
            }],
            "attachments": [{
                "name": "log.txt", "bytes": 7, "sha256": "b2",
                "path": "/d/tasks/x/attachments/1/log.txt", "message": 1
            }],
            "next_run": {"model": null, "effort": "low"},
            "limits": {},
            "guide": {
                "template": "review", "persona": null, "plan": null, "variables": {"a": "b"},
                "effort": "high"
            },
            "removed": false
        }"#
            .replace("RUN", &run),
        )
        .unwrap();
        assert_eq!(got, want);
        assert_eq!(
            got.to_string(),
            want.to_string(),
            "the order of fields is kept"
        );
    }

    #[test]
    fn reasons_say_what_is_not_known_yet() {
        let ended = Task::from(&view(1, RunState::Running));
        assert_eq!(
            (ended.state.as_str(), ended.reason.as_deref()),
            ("running", Some(NOT_JUDGED))
        );
        assert!(ended.is_open());
        let mut waits = view(1, RunState::Queued);
        waits.waits = Some(dispatch_core::schedule::Waiting {
            why: dispatch_core::schedule::Why::Paused,
            text: "paused".into(),
            until: Some(1_500),
        });
        waits.place = Some(4);
        let queued = Task::from(&waits);
        assert_eq!(queued.reason.as_deref(), Some("paused"));
        let waiting = queued.waiting.unwrap();
        assert_eq!((waiting.why.as_str(), waiting.place), ("paused", Some(4)));
        assert_eq!(waiting.until.unwrap(), "1970-01-01T00:00:01.500Z");
        let lost = Task::from(&view(1, RunState::Finished(Outcome::Lost)));
        assert!(!lost.is_open() && lost.state == "lost");
    }
}
