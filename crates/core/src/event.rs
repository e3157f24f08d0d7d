//! Everything that can happen: durable, numbered, never changed afterwards.
//! Must not carry a secret or a process handle.
//!
//! To add one: a variant here, an arm in `Kind::word`, `Kind::class` and `State::apply`, a raise of
//! [`FORMAT_VERSION`] when an older reader could misread the log, a line in the golden log.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    Millis,
    ask::{AskId, By, Permissions},
    attach::Attached,
    carried::Carried,
    drivers::DriverKind,
    family::EndId,
    id::{AgentName, CheckName, KeyName, ModelName, PoolName, RunId, Seq, SiteName, TaskId},
    job::{Exit, ExitReport},
    keyring::KeyNews,
    keys::RequestKey,
    letter::{LetterId, Written},
    message::{Delivery, MessageId, Sender},
    outcome::{Outcome, Stop},
    review::{Range, Review},
    run::{self, RunCause},
    task::{TaskSpec, Tuning},
    update::{ChunkId, Update, Usage},
};

/// Version of the log's content. A newer one than this is refused, never guessed at.
pub const FORMAT_VERSION: u32 = 4;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub seq: Seq,
    pub at: Millis,
    pub subject: Subject,
    pub kind: Kind,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    Engine,
    Task(TaskId),
    Run(RunId),
}

impl Subject {
    #[must_use]
    pub fn task(&self) -> Option<TaskId> {
        match self {
            Self::Engine => None,
            Self::Task(task) => Some(*task),
            Self::Run(run) => Some(run.task),
        }
    }

    #[must_use]
    pub fn run(&self) -> Option<RunId> {
        match self {
            Self::Engine | Self::Task(_) => None,
            Self::Run(run) => Some(*run),
        }
    }
}

/// What is frozen, or thawed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    #[default]
    All,
    Pool(PoolName),
    Repo(String),
}

/// Which events make the state, and which are only told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Folded into `State`; kept as long as the log.
    Life,
    /// What agents said: stored by task, not folded, kept for some days.
    Update,
}

/// What the tree shows after a run: the third witness, and what was kept of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The result: a commit in the vault. `None` when nothing changed.
    pub commit: Option<String>,
    pub files: u64,
    pub insertions: u64,
    pub deletions: u64,
    /// Changed files that checks consist of, so that a passed check can be read with care.
    pub checks_touched: Vec<String>,
    /// What a person should know: history rewritten, files left out.
    pub notes: Vec<String>,
}

/// A prompt as it was given, without its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptMade {
    /// In hexadecimal.
    pub sha256: String,
    pub bytes: u64,
    /// Names of files that hold what did not fit.
    pub cut: Vec<String>,
    /// Paths of texts of the repository that stand in place of ours.
    pub repository: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckState {
    Running,
    Passed,
    Failed,
    /// Not run, because its program is not there or an earlier one failed.
    NotRun,
}

impl CheckState {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::NotRun => "not_run",
        }
    }
}

/// Whether checks vouch for the result. Unknown is said, never passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verified {
    Yes,
    No,
    NotVerified,
}

impl Verified {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::NotVerified => "not_verified",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    EngineStarted {
        version: String,
    },
    FrozenSet {
        frozen: bool,
        #[serde(default)]
        scope: Scope,
    },
    /// Starts of a pool stand still until then. Told: the pause itself follows from how runs ended.
    PoolPaused {
        pool: PoolName,
        until: Millis,
        reason: String,
    },
    /// Most of a budget is used. Nothing stops yet.
    BudgetWarned {
        what: String,
        spent: String,
    },

    /// `short` is the prefix of the id that names the branch and the workspace.
    TaskCreated {
        spec: Box<TaskSpec>,
        short: String,
    },
    Answered {
        text: String,
        #[serde(default = "run::by_person", skip_serializing_if = "run::is_person")]
        by: Sender,
    },
    /// Something was said to it. Durable before anybody hears it.
    MessageQueued {
        message: MessageId,
        text: String,
        from: Sender,
        /// It brings something along that a run has from its start only: not for one that has begun.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        fresh: bool,
        /// Its chain has led to enough: no run gets it before a person says something.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        held: bool,
        /// The ends that it tells of.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        ends: Vec<EndId>,
    },
    /// Files were handed over, and are on the disk. Said before anybody is told of them.
    Attached {
        attached: Attached,
    },
    /// From the next run on.
    TuningSet {
        tuning: Tuning,
    },
    /// Withdrawn before a run had it.
    MessageCancelled {
        message: MessageId,
    },
    /// An agent left something for another under the name of this task's workspace.
    LetterSent {
        letter: LetterId,
        written: Written,
        from: Sender,
    },
    /// They were handed out. What was not is still to be read.
    LettersRead {
        letters: Vec<LetterId>,
    },
    /// A person wants its agent's conversation to become shorter before its next turn.
    CompactAsked,
    /// Its next runs are another agent's.
    AgentSet {
        agent: AgentName,
        pool: PoolName,
        model: Option<ModelName>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        profile: Option<ModelName>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        command: Vec<String>,
        /// Stricter than it was; a looser agent leaves the task as it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        permissions: Option<Permissions>,
    },
    /// A task that this one asked for has ended. If its agent asked for it, the end is owed to it from
    /// here on.
    ChildEnded {
        child: TaskId,
        state: String,
        /// Of the child; 0 in logs that did not say. Not `run`: a subscriber is told that name of whom
        /// an event is about.
        #[serde(default, alias = "run")]
        child_run: u32,
        /// In words, cut.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// It does not wait for that task any more.
    Detached {
        child: TaskId,
    },
    /// Its run has ended, and it has not: it waits for these. Told: it follows from what is owed to it.
    Parked {
        children: Vec<TaskId>,
    },
    /// This was made by a request that its sender may repeat. In the same commit as what it made.
    Keyed {
        #[serde(flatten)]
        key: RequestKey,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<MessageId>,
    },
    /// The result was brought into a person's repository.
    Applied {
        repo: PathBuf,
        branch: String,
        commit: String,
    },
    /// The content of a workspace was kept under a ref before something destructive.
    Snapshotted {
        refname: String,
        commit: String,
        keep_until: Millis,
    },
    /// Its time is over (`retention.snapshots_d`).
    SnapshotDropped {
        refname: String,
    },
    /// So is that of the files of a task that was put away and never had a workspace.
    AttachmentsDropped,
    WorkspaceRemoved,
    WorkspaceRestored,
    /// A person put the task away; its events stay.
    TaskRemoved,
    TaskRestored,

    RunQueued {
        cause: RunCause,
    },
    /// It did not start at once, and why. Told once; what changes later is asked of the engine.
    Waits {
        reason: String,
        until: Option<Millis>,
    },
    Admitted,
    WorkspaceReady {
        path: PathBuf,
        base: String,
        base_branch: Option<String>,
        how: String,
    },
    /// The base commit carries configuration for agents. Said before the agent starts.
    CarriedFound {
        carried: Vec<Carried>,
    },
    /// What the agent is given to read, kept in a file beside the task. Said before it starts.
    PromptMade {
        made: PromptMade,
    },
    /// The commits that a reviewer is to read. Said before the agent starts.
    RangeSet {
        range: Range,
    },
    /// What a reviewer said. Said before the run is finished.
    Reviewed {
        review: Review,
    },
    /// A site refused before anything ran; the next one is tried.
    SiteRefused {
        site: SiteName,
        reason: String,
    },
    Started {
        site: SiteName,
        driver: DriverKind,
        enforced: String,
    },
    /// An engine that began after this run did follows it now.
    Adopted,
    SessionSeen {
        session: String,
    },
    /// Its agent says something of a key, for all that ask with it.
    KeyHeard {
        key: KeyName,
        news: KeyNews,
    },
    /// This run says it to its agent: durable before a byte of it is sent, with how much of the
    /// output the driver had heard, so that a replay says the same at the same point. Without an
    /// offset it is one of the first words. It waits again if the run ends without having delivered
    /// it.
    MessageTaken {
        message: MessageId,
        out_offset: Option<u64>,
    },
    /// It is in the input of the agent, as its keeper wrote down; of one that gives messages back, its
    /// model has it.
    MessageDelivered {
        message: MessageId,
        delivery: Delivery,
    },
    /// The agent ended without having taken it up: it waits again.
    MessageReturned {
        message: MessageId,
    },
    /// Its agent waits for a permission, until then: durable before anybody can answer.
    PermissionAsked {
        ask: AskId,
        tool: String,
        input: String,
        /// Who is to answer.
        owner: Sender,
        until: Millis,
    },
    /// Durable before a byte of it is sent, so that a replay gives the same answer.
    PermissionAnswered {
        ask: AskId,
        allow: bool,
        by: By,
        /// In the words of whoever denied it. Not `why`, which in an event is one of our own words and
        /// so not masked; the first logs had it under that name.
        #[serde(default, alias = "why", skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// The very same needs no more asking, until the task's end.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        always: bool,
    },
    /// Its agent waited for these, and is about to be given them: durable before the answer goes out.
    EndsDelivered {
        ends: Vec<EndId>,
    },
    StopRequested {
        why: Stop,
    },
    AgentEnded {
        report: ExitReport,
        usage: Option<Usage>,
    },
    WorkspaceSealed {
        sealed: Sealed,
    },
    ChecksStarted {
        checks: Vec<CheckName>,
    },
    CheckFinished {
        check: CheckName,
        state: CheckState,
        exit: Option<Exit>,
        note: String,
    },
    Finished {
        outcome: Outcome,
        verified: Verified,
    },

    /// Something a person should know that changes nothing.
    Noted {
        text: String,
    },
    Said {
        update: Update,
        out_offset: u64,
        /// The text that came in pieces before, of which this is the whole.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        chunk: Option<ChunkId>,
    },
}

impl Kind {
    /// The words of all kinds.
    pub const WORDS: [&str; 53] = [
        "engine_started",
        "frozen_set",
        "pool_paused",
        "budget_warned",
        "waits",
        "task_created",
        "answered",
        "message_queued",
        "message_cancelled",
        "attached",
        "tuning_set",
        "key_heard",
        "compact_asked",
        "message_taken",
        "message_delivered",
        "message_returned",
        "letter_sent",
        "letters_read",
        "agent_set",
        "child_ended",
        "detached",
        "parked",
        "ends_delivered",
        "keyed",
        "applied",
        "snapshotted",
        "snapshot_dropped",
        "attachments_dropped",
        "workspace_removed",
        "workspace_restored",
        "task_removed",
        "task_restored",
        "run_queued",
        "admitted",
        "workspace_ready",
        "carried_found",
        "prompt_made",
        "range_set",
        "reviewed",
        "site_refused",
        "started",
        "adopted",
        "session_seen",
        "permission_asked",
        "permission_answered",
        "stop_requested",
        "agent_ended",
        "workspace_sealed",
        "checks_started",
        "check_finished",
        "finished",
        "noted",
        "said",
    ];

    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::EngineStarted { .. } => "engine_started",
            Self::FrozenSet { .. } => "frozen_set",
            Self::PoolPaused { .. } => "pool_paused",
            Self::BudgetWarned { .. } => "budget_warned",
            Self::Waits { .. } => "waits",
            Self::TaskCreated { .. } => "task_created",
            Self::Answered { .. } => "answered",
            Self::MessageQueued { .. } => "message_queued",
            Self::MessageCancelled { .. } => "message_cancelled",
            Self::Attached { .. } => "attached",
            Self::TuningSet { .. } => "tuning_set",
            Self::KeyHeard { .. } => "key_heard",
            Self::CompactAsked => "compact_asked",
            Self::MessageTaken { .. } => "message_taken",
            Self::MessageDelivered { .. } => "message_delivered",
            Self::MessageReturned { .. } => "message_returned",
            Self::LetterSent { .. } => "letter_sent",
            Self::LettersRead { .. } => "letters_read",
            Self::AgentSet { .. } => "agent_set",
            Self::ChildEnded { .. } => "child_ended",
            Self::Detached { .. } => "detached",
            Self::Parked { .. } => "parked",
            Self::EndsDelivered { .. } => "ends_delivered",
            Self::Keyed { .. } => "keyed",
            Self::Applied { .. } => "applied",
            Self::Snapshotted { .. } => "snapshotted",
            Self::SnapshotDropped { .. } => "snapshot_dropped",
            Self::AttachmentsDropped => "attachments_dropped",
            Self::WorkspaceRemoved => "workspace_removed",
            Self::WorkspaceRestored => "workspace_restored",
            Self::TaskRemoved => "task_removed",
            Self::TaskRestored => "task_restored",
            Self::RunQueued { .. } => "run_queued",
            Self::Admitted => "admitted",
            Self::WorkspaceReady { .. } => "workspace_ready",
            Self::CarriedFound { .. } => "carried_found",
            Self::PromptMade { .. } => "prompt_made",
            Self::RangeSet { .. } => "range_set",
            Self::Reviewed { .. } => "reviewed",
            Self::SiteRefused { .. } => "site_refused",
            Self::Started { .. } => "started",
            Self::Adopted => "adopted",
            Self::SessionSeen { .. } => "session_seen",
            Self::PermissionAsked { .. } => "permission_asked",
            Self::PermissionAnswered { .. } => "permission_answered",
            Self::StopRequested { .. } => "stop_requested",
            Self::AgentEnded { .. } => "agent_ended",
            Self::WorkspaceSealed { .. } => "workspace_sealed",
            Self::ChecksStarted { .. } => "checks_started",
            Self::CheckFinished { .. } => "check_finished",
            Self::Finished { .. } => "finished",
            Self::Noted { .. } => "noted",
            Self::Said { .. } => "said",
        }
    }

    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Said { .. } => Class::Update,
            Self::EngineStarted { .. }
            | Self::FrozenSet { .. }
            | Self::PoolPaused { .. }
            | Self::BudgetWarned { .. }
            | Self::Waits { .. }
            | Self::TaskCreated { .. }
            | Self::Answered { .. }
            | Self::MessageQueued { .. }
            | Self::MessageCancelled { .. }
            | Self::Attached { .. }
            | Self::TuningSet { .. }
            | Self::KeyHeard { .. }
            | Self::CompactAsked
            | Self::MessageTaken { .. }
            | Self::MessageDelivered { .. }
            | Self::MessageReturned { .. }
            | Self::LetterSent { .. }
            | Self::LettersRead { .. }
            | Self::AgentSet { .. }
            | Self::ChildEnded { .. }
            | Self::Detached { .. }
            | Self::Parked { .. }
            | Self::EndsDelivered { .. }
            | Self::Keyed { .. }
            | Self::Applied { .. }
            | Self::Snapshotted { .. }
            | Self::SnapshotDropped { .. }
            | Self::AttachmentsDropped
            | Self::WorkspaceRemoved
            | Self::WorkspaceRestored
            | Self::TaskRemoved
            | Self::TaskRestored
            | Self::RunQueued { .. }
            | Self::Admitted
            | Self::WorkspaceReady { .. }
            | Self::CarriedFound { .. }
            | Self::PromptMade { .. }
            | Self::RangeSet { .. }
            | Self::Reviewed { .. }
            | Self::SiteRefused { .. }
            | Self::Started { .. }
            | Self::Adopted
            | Self::SessionSeen { .. }
            | Self::PermissionAsked { .. }
            | Self::PermissionAnswered { .. }
            | Self::StopRequested { .. }
            | Self::AgentEnded { .. }
            | Self::WorkspaceSealed { .. }
            | Self::ChecksStarted { .. }
            | Self::CheckFinished { .. }
            | Self::Finished { .. }
            | Self::Noted { .. } => Class::Life,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_word_in_the_list() {
        let unknown = serde_json::from_str::<Kind>("\"from_the_future\"").unwrap_err();
        let unknown = unknown.to_string();
        let mut named: Vec<&str> = unknown.split('`').skip(3).step_by(2).collect();
        let mut listed = Kind::WORDS.to_vec();
        named.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, named);
    }
}
