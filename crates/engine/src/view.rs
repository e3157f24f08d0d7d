//! What a reader sees of a task: the fold, and what only the job directory or the schedule knows.
//! Must not hold a wire type: the doors convert.

use std::{
    ops::Deref,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use dispatch_core::{
    ask::Ask,
    attach::{Attachment, BadAttachment},
    event::Event,
    family::{EndId, Refusal},
    id::{RunId, Seq, TaskId},
    keys::RequestKey,
    letter::Letter,
    message::{Message, MessageId, Sender},
    outcome::Stop,
    schedule::Waiting,
    state::Task,
    task::Tuning,
    update::{ChunkId, Todo, Voice},
};
use tokio::task::JoinError;

use crate::{attachments::NewFile, engine::Secrets};

/// One task, true at `seq`.
#[derive(Clone, Debug)]
pub struct TaskView {
    pub task: Task,
    /// The shortest prefix of the id that no other task has.
    pub short: String,
    pub seq: Seq,
    /// Why its run waits.
    pub waits: Option<Waiting>,
    /// Of a queued run: how many of its pool go first, and one for itself.
    pub place: Option<usize>,
    /// Per run, by index: what the job directory says.
    pub jobs: Vec<JobView>,
    /// What is attached, what it came with, and where it lies.
    pub attached: Vec<(Attachment, Option<MessageId>, PathBuf)>,
    /// Where its workspace is, or will be.
    pub workspace: PathBuf,
    /// The vault that holds its results.
    pub vault: Option<PathBuf>,
    pub family: FamilyView,
}

/// What a task's agents have asked for, as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FamilyView {
    pub children: Vec<ChildView>,
    /// It waits for them, or to hear how they ended.
    pub parked: bool,
    /// And nothing happens before a person says something.
    pub held: bool,
    /// Whoever asked for it does not wait for it, or does not any more.
    pub detached: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildView {
    pub task: TaskId,
    pub short: String,
    /// The word of its state; `parked` where it waits itself.
    pub state: &'static str,
    pub detached: bool,
    pub done: bool,
}

/// Whose verbs an engine's handle does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Whoever may do all of it; the doors say who that is.
    Person,
    /// The agent of that run, with the grant of its task.
    Run(RunId),
}

impl Who {
    pub(crate) fn sender(self) -> Sender {
        match self {
            Self::Person => Sender::Person,
            Self::Run(run) => Sender::Task(run.task),
        }
    }

    /// Whose stop it is.
    pub(crate) fn stop(self) -> Stop {
        match self {
            Self::Person => Stop::ByPerson,
            Self::Run(_) => Stop::ByAsker,
        }
    }
}

/// For which of several ends one waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Until {
    #[default]
    All,
    /// The next one that was not heard of; all of them where nothing more can be heard.
    Any,
}

/// What a wait ended with.
#[derive(Clone, Debug)]
pub struct Waited {
    /// As they were asked for.
    pub tasks: Vec<WaitedFor>,
    /// What was waited for did not happen in time.
    pub over: bool,
    /// The ends among them, in words for an agent.
    pub words: String,
}

#[derive(Clone, Debug)]
pub struct WaitedFor {
    pub view: TaskView,
    /// Nothing of it runs or waits.
    pub done: bool,
    /// Ends of it that this answer delivers; what was delivered before is not among them.
    pub delivered: Vec<EndId>,
}

#[derive(Clone, Debug)]
pub struct JobView {
    /// The keeper's process, while it lives.
    pub keeper_pid: Option<i32>,
    /// The agent's standard output.
    pub log: PathBuf,
    /// The file that keeps its prompt, once there is one.
    pub prompt: Option<PathBuf>,
    /// The job has ended and no engine has judged it yet.
    pub ended_not_judged: bool,
}

/// What a subscriber is told.
#[derive(Clone, Debug)]
pub enum Told {
    /// Durable; none is left out and none comes twice.
    Event(Arc<Logged>),
    /// More of what a running agent says; lossy, and nothing depends on it.
    Live(Arc<Live>),
    /// What is open in a live run, true at `seq`. It stands in place of all that was told live of it.
    Open { seq: Seq, open: Arc<Open> },
    /// All events up to this one have been told, and what was open by then.
    At(Seq),
}

/// An event on its way to whoever listens.
#[derive(Debug)]
pub struct Logged {
    event: Event,
    /// Its kind as the log has it.
    json: String,
    encoded: OnceLock<String>,
}

impl Logged {
    pub(crate) fn new(event: Event, json: String) -> Self {
        Self {
            event,
            json,
            encoded: OnceLock::new(),
        }
    }

    /// The event in the words of one door, made once for all who listen there.
    pub fn encoded(&self, encode: impl FnOnce(&Event, &str) -> String) -> &str {
        self.encoded.get_or_init(|| encode(&self.event, &self.json))
    }
}

impl Deref for Logged {
    type Target = Event;

    fn deref(&self) -> &Event {
        &self.event
    }
}

/// A piece of a text that is being said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    pub run: RunId,
    pub chunk: ChunkId,
    pub voice: Voice,
    /// Bytes of the text before this piece.
    pub offset: u64,
    pub text: String,
}

/// What is open in a live run and in no event yet, and what waits in it.
#[derive(Clone, Debug)]
pub struct Open {
    pub run: RunId,
    /// The text that is being said.
    pub text: Option<OpenText>,
    /// The end of what is only for the eye.
    pub output: Option<OpenText>,
    pub todo: Vec<Todo>,
    /// That wait, and that were delivered to this run; long ones cut.
    pub messages: Vec<Message>,
    /// That nobody has answered yet.
    pub asks: Vec<Ask>,
}

/// The end of a text so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenText {
    pub chunk: ChunkId,
    pub voice: Voice,
    /// Bytes of the text before what is held here.
    pub offset: u64,
    pub text: String,
}

/// The result in a person's repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub repo: PathBuf,
    pub branch: String,
    pub commit: String,
}

/// The result in a directory without git.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub folder: PathBuf,
    pub commit: String,
    /// How many files differ from what was copied.
    pub files: u64,
}

/// What became of a message by the time its sender is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spoken {
    pub message: MessageId,
    pub how: Heard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is in the agent's input.
    Delivered,
    /// The running agent is given it, tells when it has heard it, and until then it can be had back.
    OnItsWay,
    /// It comes with the next run's first words; that run is queued, or follows this one's end.
    Queued,
    /// It is kept, and nothing starts for it until a person says something.
    Held,
}

impl Heard {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::OnItsWay => "on_its_way",
            Self::Queued => "queued",
            Self::Held => "held",
        }
    }
}

/// What lies at a workspace for one reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbox {
    /// Handed out, oldest first.
    pub letters: Vec<Letter>,
    /// How many of them had not been read before.
    pub new: usize,
    /// How many still wait for it.
    pub unread: usize,
}

/// What whoever asks gives along.
#[derive(Clone, Debug, Default)]
pub struct Given {
    pub secrets: Secrets,
    /// With a task or a message.
    pub files: Vec<NewFile>,
    pub tuning: Tuning,
    /// It may come again, and is done once.
    pub key: Option<RequestKey>,
}

impl From<Secrets> for Given {
    fn from(secrets: Secrets) -> Self {
        Self {
            secrets,
            ..Self::default()
        }
    }
}

/// How hard to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    Ask,
    Kill,
}

/// Why a verb was refused. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum VerbError {
    #[error("find task {task}: there is none")]
    NoSuchTask { task: TaskId },
    #[error("queue the task: {max} tasks wait already (limits.queue_max); try again later")]
    QueueFull { max: usize },
    #[error(
        "use workspace {name}: task {holder} has it; --queue waits for that one, --supersede stops \
         it, --workspace takes another name"
    )]
    WorkspaceTaken { name: String, holder: TaskId },
    #[error("{verb} task {task}: it is {state}; {hint}")]
    WrongState {
        verb: &'static str,
        task: TaskId,
        state: &'static str,
        hint: &'static str,
    },
    #[error("{verb} task {task}: {hint}")]
    Nothing {
        verb: &'static str,
        task: TaskId,
        hint: String,
    },
    #[error("{what}")]
    BadInput { what: String },
    #[error(
        "take the request: its key came with another one before; make a new key for each request"
    )]
    KeyUsed,
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("wait: {max} callers do already (limits.waits_max); try again later")]
    TooManyWait { max: usize },
    #[error(transparent)]
    Attachment(#[from] BadAttachment),
    #[error("start: less than {min_bytes} bytes are free on the disk of the data directory")]
    DiskFull { min_bytes: u64 },
    #[error("{doing}")]
    Failed {
        doing: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing of it has happened.
    #[error("reach the engine: it has ended")]
    Gone,
}

/// Work off the runtime that a bug of ours has ended. Whether it did anything is not known, so it is no
/// [`VerbError::Gone`].
impl From<JoinError> for VerbError {
    fn from(error: JoinError) -> Self {
        Self::Failed {
            doing: "do that: a bug of ours ended it".to_owned(),
            source: Box::new(error),
        }
    }
}
