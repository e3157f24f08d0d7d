//! The engine: a handle with verbs, and the actor behind it. The actor alone appends events (I2):
//! it applies a batch in memory, commits it, and only then lets its effects out.
//! Must not wait for anything but its channel and its disk; whatever takes long is a run's.

mod family;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dispatch_core::{
    Millis,
    ask::{AskId, By, Fate as AskFate},
    attach,
    config::{Config, EnvValue, Selection},
    drivers::DriverKind,
    event::{Event, Kind, Scope, Subject, Verified},
    family::Deed,
    gate::Budget,
    id::{AgentName, RunId, Seq, SiteName, TaskId},
    keys::{Made, RequestKey},
    letter::{Letter, Written},
    message::{Fate, Message, MessageId, SETTLED_MAX, Sender},
    naming,
    outcome::{Outcome, Stop},
    redact::Redactor,
    run::{RunCause, RunState},
    schedule::{self, Held, Host, Next, View, Waiting, Why},
    secret::Secret,
    spending::Spending,
    state::{Run, State},
    task::{AFTER_MAX, Base, Effort, Taken, TaskSpec, Tuning},
    update::Usage,
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinSet,
};

use crate::{
    attachments::{self, Kept, NewFile},
    clock::Clock,
    containers::Runtimes,
    door::Door,
    doorkeys::DoorKey,
    events::{EventStream, Logs},
    fence::Fences,
    jobdir::JobDir,
    letters::{self, Post},
    lock::{self, EngineLock},
    mirror::Wanted,
    pressure,
    reads::{self, Listed, Listing, Overview},
    run::{self, Ctx, Ended},
    sites::{
        Site,
        local::{Keeper, Local},
    },
    store::{Store, StoreError},
    tail::{self, Tail},
    trees::Trees,
    verbs,
    view::{Force, Given, Heard, Inbox, Spoken, TaskView, Until, VerbError, Waited, Who},
};

pub(crate) use self::family::Purse;
use self::family::Waiter;

/// By name; held in memory only.
pub type Secrets = BTreeMap<String, Secret>;

const COMMANDS_MAX: usize = 1024;
const BATCH_MAX: usize = 512;
const FOLD_CHUNK: usize = 10_000;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// What an engine is made of. Nothing else reaches it: no environment, no HOME.
#[derive(Clone, Debug)]
pub struct Settings {
    pub data: PathBuf,
    pub config: Config,
    pub version: String,
    pub git: PathBuf,
    /// What every job gets: PATH, LANG, the toolchains' variables.
    pub job_env: BTreeMap<String, String>,
    pub keeper: Keeper,
    /// Where bubblewrap lies; without it a cage is Landlock and seccomp.
    pub bwrap: Option<PathBuf>,
    /// Clients of container engines, and what they need of the environment.
    pub runtimes: Runtimes,
    /// Argv of the program that is a run's sidecar, without its plan; empty: there can be none.
    pub sidecar: Vec<String>,
    /// Where agents come in; without it a grant gives nothing.
    pub door: Option<Door>,
    pub observer: Observer,
    pub clock: Clock,
}

/// Called by the actor with the last event of each commit, before anything acts on it. For embedders
/// that mirror the log, and for tests that die right there.
#[derive(Clone, Default)]
pub struct Observer(pub Option<Arc<dyn Fn(Seq) + Send + Sync>>);

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Observer").field(&self.0.is_some()).finish()
    }
}

/// Sites by name. `local` is always there.
pub type Sites = BTreeMap<SiteName, Arc<dyn Site>>;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("become the engine of {}: another one holds its lock", data.display())]
    Busy { data: PathBuf },
    #[error("become the engine of {}: {source}", data.display())]
    Lock {
        data: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("fold the log: {0}")]
    Fold(#[from] dispatch_core::state::ApplyError),
    #[error("set up the workspaces: {what}")]
    Trees { what: String },
    #[error("get the key of the agents' tokens in {}: {source}", data.display())]
    DoorKey {
        data: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T, VerbError>>;

/// Everything the actor can be told. Closed: this is all that can happen to an engine.
pub(crate) enum Command {
    /// Whether the agent of that run may do that.
    May {
        run: RunId,
        deed: Deed,
        reply: Reply<()>,
    },
    /// A task and all that was asked for below it.
    Family {
        task: TaskId,
        reply: Reply<BTreeSet<TaskId>>,
    },
    Wait {
        who: Who,
        tasks: Vec<TaskId>,
        mode: Until,
        until: Millis,
        reply: Reply<Waited>,
    },
    /// A caller that waited has gone away.
    Left,
    /// Whoever asked for that task does not wait for it.
    Detach {
        task: TaskId,
        reply: Reply<()>,
    },
    /// From a run: whether its task is owed ends, so that its own end is not the task's.
    Owed {
        run: RunId,
        reply: Reply<bool>,
    },
    Dispatch {
        who: Who,
        spec: Box<TaskSpec>,
        /// Under the id that its files lie under already.
        kept: Option<(TaskId, Kept)>,
        secrets: Secrets,
        key: Option<RequestKey>,
        reply: Reply<RunId>,
    },
    Answer {
        task: TaskId,
        text: String,
        by: Sender,
        tuning: Tuning,
        secrets: Secrets,
        key: Option<RequestKey>,
        reply: Reply<RunId>,
    },
    Retry {
        task: TaskId,
        tuning: Tuning,
        secrets: Secrets,
        key: Option<RequestKey>,
        reply: Reply<RunId>,
    },
    Resume {
        task: TaskId,
        agent: Option<Selection>,
        tuning: Tuning,
        secrets: Secrets,
        key: Option<RequestKey>,
        reply: Reply<RunId>,
    },
    Say {
        task: TaskId,
        text: String,
        from: Sender,
        kept: Option<Kept>,
        tuning: Tuning,
        secrets: Secrets,
        key: Option<RequestKey>,
        reply: Reply<Spoken>,
    },
    Unsay {
        task: TaskId,
        message: MessageId,
        reply: Reply<()>,
    },
    Permit {
        task: TaskId,
        ask: AskId,
        allow: bool,
        by: By,
        why: Option<String>,
        reply: Reply<()>,
    },
    /// From a run: what became of all that its agent has asked.
    Asks {
        run: RunId,
        reply: Reply<Vec<(AskId, AskFate)>>,
    },
    /// From a run: all that waits is said with its first words. Answered with every message of the
    /// task when that is durable.
    TakeAll {
        run: RunId,
        reply: Reply<Vec<Message>>,
    },
    /// From a run whose agent can be spoken to: the next message is its own now.
    Take {
        run: RunId,
        out_offset: u64,
        reply: Reply<Option<Message>>,
    },
    /// From a run whose agent cannot be spoken to now.
    Deaf {
        run: RunId,
        reply: Reply<()>,
    },
    Letters(Post),
    Stop {
        task: TaskId,
        force: Force,
        why: Stop,
        reply: Reply<()>,
    },
    StopAll {
        force: Force,
        reply: Reply<Vec<TaskId>>,
    },
    Freeze {
        frozen: bool,
        scope: Scope,
        reply: Reply<()>,
    },
    Provide {
        secrets: Secrets,
        reply: Reply<()>,
    },
    Needs {
        reply: Reply<Vec<String>>,
    },
    Tasks {
        /// Only this one and those below it.
        of: Option<TaskId>,
        reply: Reply<Vec<TaskView>>,
    },
    List {
        listing: Listing,
        reply: Reply<Listed>,
    },
    Overview {
        reply: Reply<Overview>,
    },
    Spending {
        reply: Reply<(Seq, Spending)>,
    },
    Task {
        task: TaskId,
        reply: Reply<TaskView>,
    },
    /// From a run or a verb: facts to record. Answered when they are durable.
    Record {
        subject: Subject,
        kinds: Vec<Kind>,
        reply: Reply<()>,
    },
    /// From a run: its end. `swept` says that nothing of it is left, so that another may follow.
    Finish {
        run: RunId,
        outcome: Outcome,
        verified: Verified,
        swept: bool,
        reply: Reply<()>,
    },
    Shutdown {
        reply: Reply<()>,
    },
}

/// What a running supervisor is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StopOrder {
    pub(crate) force: Force,
}

struct Shared {
    settings: Settings,
    commands: mpsc::Sender<Command>,
    tail: Arc<Tail>,
    logs: Logs,
    open: watch::Receiver<usize>,
    failed: watch::Receiver<Option<String>>,
    /// Runs whose agent may come to our door.
    working: watch::Receiver<BTreeSet<RunId>>,
    door_key: Arc<DoorKey>,
    trees: Arc<Trees>,
    fences: Arc<Fences>,
    desk: Arc<Desk>,
}

/// The handle: cheap to clone, and all verbs there are.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    /// On whose behalf.
    who: Who,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("data", &self.shared.settings.data)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Takes the data directory's lock, folds the log and goes on with every open run.
    ///
    /// # Errors
    /// When another engine is there, or the log cannot be read.
    pub async fn open(settings: Settings) -> Result<Self, OpenError> {
        Self::with_sites(settings, Sites::new()).await
    }

    /// The same with sites of the embedder beside `local`.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub async fn with_sites(settings: Settings, mut sites: Sites) -> Result<Self, OpenError> {
        let data = settings.data.clone();
        let failed = |source| OpenError::Lock {
            data: data.clone(),
            source,
        };
        let lock = lock::take(&data)
            .map_err(failed)?
            .ok_or(OpenError::Busy { data: data.clone() })?;
        let store = Store::open(&data)?;
        let state = fold(&store)?;
        let door_key = DoorKey::of(&data).map_err(|source| OpenError::DoorKey {
            data: data.clone(),
            source,
        })?;
        let door_key = Arc::new(door_key);
        // Before anybody can hand something over; what stays is no reason to serve nobody.
        let swept = attachments::sweep(&data, &state);
        if let Ok(name) = "local".parse::<SiteName>() {
            let local = Local::new(data.clone(), settings.keeper.clone());
            sites.entry(name).or_insert_with(|| Arc::new(local));
        }
        let trees = Trees::new(&settings).map_err(|what| OpenError::Trees { what })?;
        let trees = Arc::new(trees);
        let fences = Fences::new(data, settings.keeper.clone(), settings.bwrap.clone());
        let fences = Arc::new(fences.with(settings.runtimes.clone()));
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let tail = Arc::new(Tail::new(&state, store.last()));
        let (open_now, open) = watch::channel(usize::MAX);
        let (failed_now, failed) = watch::channel(None);
        let (working_now, working) = watch::channel(who_works(&state));
        let ctx = Ctx {
            settings: Arc::new(settings.clone()),
            sites: Arc::new(sites),
            trees: Arc::clone(&trees),
            fences: Arc::clone(&fences),
            desk: Arc::default(),
            door_key: Arc::clone(&door_key),
            commands: commands.clone(),
            tail: Arc::clone(&tail),
        };
        let desk = Arc::clone(&ctx.desk);
        let actor = Actor {
            state,
            store,
            ctx,
            inbox,
            open_now,
            failed_now,
            working_now,
            runs: JoinSet::new(),
            orders: HashMap::new(),
            bells: HashMap::new(),
            sayers: Vec::new(),
            waiters: Vec::new(),
            owing: BTreeSet::new(),
            purses: HashMap::new(),
            secrets: HashMap::new(),
            held: Held::new(),
            pending: Vec::new(),
            effects: Vec::new(),
            shutdown: None,
            fresh: Vec::new(),
            host: Host::default(),
            wake_at: None,
            turns_changed: false,
            swept,
            _ends: tail::Ends(Arc::clone(&tail)),
            _lock: lock,
        };
        let logs = Logs::new(settings.data.clone());
        spawn_actor(actor);
        let shared = Shared {
            settings,
            commands,
            tail,
            logs,
            open,
            failed,
            working,
            door_key,
            trees,
            fences,
            desk,
        };
        Ok(Self {
            shared: Arc::new(shared),
            who: Who::Person,
        })
    }

    pub(crate) async fn ask<T>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, VerbError> {
        let (reply, answer) = oneshot::channel();
        self.shared
            .commands
            .send(command(reply))
            .await
            .map_err(|_| VerbError::Gone)?;
        answer.await.map_err(|_| VerbError::Gone)?
    }

    /// Queues a task. Durable when it returns.
    ///
    /// # Errors
    /// See [`VerbError`]; nothing has changed then.
    pub async fn dispatch(
        &self,
        spec: TaskSpec,
        given: impl Into<Given>,
    ) -> Result<RunId, VerbError> {
        let Given {
            secrets,
            files,
            tuning,
            key,
        } = given.into();
        self.may(Deed::Dispatch).await?;
        if self.who != Who::Person {
            agents_bring_no_secrets("dispatch", &secrets)?;
        }
        let mut spec = self.resolved(spec).await?;
        spec.tune(tuning);
        let kept = if files.is_empty() {
            None
        } else {
            can_attach(self.config(), &spec, &[], &files)?;
            let id = self.unused_id()?;
            Some((id, self.keep(id, files).await?))
        };
        let who = self.who;
        self.ask(|reply| Command::Dispatch {
            who,
            spec: Box::new(spec),
            kept,
            secrets,
            key,
            reply,
        })
        .await
    }

    /// For a task whose files come before itself: nothing on the disk has that name either.
    fn unused_id(&self) -> Result<TaskId, VerbError> {
        let tasks = self.shared.settings.data.join("tasks");
        loop {
            let id = random_id()?;
            if !tasks.join(id.to_string()).exists() {
                return Ok(id);
            }
        }
    }

    /// Off the runtime: what is handed over is durable before the log tells of it.
    async fn keep(&self, task: TaskId, files: Vec<NewFile>) -> Result<Kept, VerbError> {
        let data = self.shared.settings.data.clone();
        let keep = move || attachments::keep(&data, task, &files);
        let kept = tokio::task::spawn_blocking(keep).await;
        let kept = kept.map_err(|_| VerbError::Gone)?;
        kept.map_err(|source| VerbError::Failed {
            doing: format!("keep what is attached to task {task}"),
            source: Box::new(source),
        })
    }

    /// A task says which container engine it goes to, and is refused while none answers.
    async fn resolved(&self, mut spec: TaskSpec) -> Result<TaskSpec, VerbError> {
        let Some(container) = &mut spec.placement.container else {
            return Ok(spec);
        };
        let (fences, asked) = (Arc::clone(&self.shared.fences), container.runtime);
        let chosen = tokio::task::spawn_blocking(move || fences.containers().choose(asked)).await;
        let client = chosen.map_err(|_| VerbError::Gone)?;
        let client = client.map_err(|what| VerbError::BadInput { what })?;
        container.runtime = client.runtime.into();
        Ok(spec)
    }

    /// Answers the question of a blocked task: queues a run that goes on with it.
    ///
    /// # Errors
    /// When the task is not blocked.
    pub async fn answer(
        &self,
        task: TaskId,
        text: String,
        given: impl Into<Given>,
    ) -> Result<RunId, VerbError> {
        self.may(Deed::Answer(task)).await?;
        let (secrets, tuning, key) = without_files("answer", given)?;
        let by = self.speaker("answer", &secrets)?;
        let _busy = self.hold("answer", task).await?;
        self.ask(|reply| Command::Answer {
            task,
            text,
            by,
            tuning,
            secrets,
            key,
            reply,
        })
        .await
    }

    /// Tries a task again that failed, was stopped or was lost: queues a run that goes on in the same
    /// workspace, and in the same session where the agent can.
    ///
    /// # Errors
    /// When it has not ended so, or cannot run again.
    pub async fn retry(&self, task: TaskId, given: impl Into<Given>) -> Result<RunId, VerbError> {
        self.may(Deed::Other("retry")).await?;
        let (secrets, tuning, key) = without_files("retry", given)?;
        let _busy = self.hold("retry", task).await?;
        self.ask(|reply| Command::Retry {
            task,
            tuning,
            secrets,
            key,
            reply,
        })
        .await
    }

    /// Goes on with a task that has ended, however it did: queues a run in the same workspace. With
    /// another agent it is a new session, which is told everything.
    ///
    /// # Errors
    /// When it has not ended, cannot run again, or the agent is not configured.
    pub async fn resume(
        &self,
        task: TaskId,
        agent: Option<Selection>,
        given: impl Into<Given>,
    ) -> Result<RunId, VerbError> {
        self.may(Deed::Other("resume")).await?;
        let (secrets, tuning, key) = without_files("resume", given)?;
        let _busy = self.hold("resume", task).await?;
        self.bring_back("resume", task).await?;
        self.ask(|reply| Command::Resume {
            task,
            agent,
            tuning,
            secrets,
            key,
            reply,
        })
        .await
    }

    /// Says something to a task. Durable when it returns; each message is heard once, in order: by
    /// the running agent if it can be spoken to, else with the first words of the next run, which an
    /// ended task is given for it. With files, another model or another effort it is for a run that
    /// has not begun.
    ///
    /// # Errors
    /// When the task was put away or cannot run again, or too much waits for it already.
    pub async fn say(
        &self,
        task: TaskId,
        text: String,
        from: Sender,
        given: impl Into<Given>,
    ) -> Result<Spoken, VerbError> {
        let Given {
            secrets,
            files,
            tuning,
            key,
        } = given.into();
        self.may(Deed::Say(task)).await?;
        let found = self.look(task).await?.task;
        let from = match self.speaker("say", &secrets)? {
            Sender::Person => from,
            agent => agent,
        };
        if let Sender::Task(own) = from
            && self.who != Who::Person
            && !tuning.is_empty()
            && self.look(own).await?.task.asker() == Some(task)
        {
            let what = "say that with another model or effort: those of the task that asked for \
                        yours are not yours to set";
            return Err(VerbError::BadInput { what: what.into() });
        }
        let busy = if found.is_open() {
            None
        } else {
            let busy = self.hold("say to", task).await?;
            self.bring_back("say to", task).await?;
            Some(busy)
        };
        let kept = if files.is_empty() {
            None
        } else {
            can_attach(self.config(), &found.spec, &found.attached, &files)?;
            Some(self.keep(task, files).await?)
        };
        let spoken = self
            .ask(|reply| Command::Say {
                task,
                text,
                from,
                kept,
                tuning,
                secrets,
                key,
                reply,
            })
            .await;
        drop(busy);
        spoken
    }

    /// Withdraws a message that no run has taken yet.
    ///
    /// # Errors
    /// When there is none, or it is delivered or on its way.
    pub async fn unsay(&self, task: TaskId, message: MessageId) -> Result<(), VerbError> {
        self.may(Deed::Other("unsay")).await?;
        self.ask(|reply| Command::Unsay {
            task,
            message,
            reply,
        })
        .await
    }

    /// Answers what the agent of a task asks permission for. Durable when it returns; the agent gets
    /// it once.
    ///
    /// # Errors
    /// When that is not asked, was answered, or its time is over.
    pub async fn permit(
        &self,
        task: TaskId,
        ask: AskId,
        allow: bool,
        why: Option<String>,
    ) -> Result<(), VerbError> {
        self.may(Deed::Permit { task, allow }).await?;
        let by = match self.who {
            Who::Person => By::Person,
            Who::Run(run) => By::Task(run.task),
        };
        self.ask(|reply| Command::Permit {
            task,
            ask,
            allow,
            by,
            why,
            reply,
        })
        .await
    }

    /// Asks the run of every open task to end, or kills it; which tasks those were.
    ///
    /// # Errors
    /// When the engine has ended.
    pub async fn stop_all(&self, force: Force) -> Result<Vec<TaskId>, VerbError> {
        self.may(Deed::Other("stop all tasks")).await?;
        self.ask(|reply| Command::StopAll { force, reply }).await
    }

    /// Asks a task's run to end, and those of the tasks that it asked for; a second time, or with
    /// force, they are killed.
    ///
    /// # Errors
    /// When nothing of them runs or waits.
    pub async fn stop(&self, task: TaskId, force: Force) -> Result<(), VerbError> {
        self.may(Deed::Stop(task)).await?;
        let why = match self.who {
            Who::Person => Stop::ByPerson,
            Who::Run(_) => Stop::ByAsker,
        };
        self.ask(|reply| Command::Stop {
            task,
            force,
            why,
            reply,
        })
        .await
    }

    /// Starts nothing new of all, of a pool or of a repository; or does again.
    ///
    /// # Errors
    /// When there is no such pool, or the engine has ended.
    pub async fn set_frozen(&self, frozen: bool, scope: Scope) -> Result<(), VerbError> {
        self.may(Deed::Other("freeze")).await?;
        self.ask(|reply| Command::Freeze {
            frozen,
            scope,
            reply,
        })
        .await
    }

    /// Gives what queued runs lack.
    ///
    /// # Errors
    /// When the engine has ended.
    pub async fn provide(&self, secrets: Secrets) -> Result<(), VerbError> {
        self.may(Deed::Other("hand over secrets")).await?;
        self.ask(|reply| Command::Provide { secrets, reply }).await
    }

    /// Names of variables that runs lack.
    ///
    /// # Errors
    /// When the engine has ended.
    pub async fn needs(&self) -> Result<Vec<String>, VerbError> {
        self.may(Deed::Other("list secrets")).await?;
        self.ask(|reply| Command::Needs { reply }).await
    }

    /// All tasks, oldest first, removed ones too; of an agent its own and those below it.
    ///
    /// # Errors
    /// When the engine has ended.
    pub async fn tasks(&self) -> Result<Vec<TaskView>, VerbError> {
        self.may(Deed::List).await?;
        let of = match self.who {
            Who::Person => None,
            Who::Run(run) => Some(run.task),
        };
        self.ask(|reply| Command::Tasks { of, reply }).await
    }

    /// A page of tasks, all true at one position of the log; of an agent, of its family.
    ///
    /// # Errors
    /// When the engine has ended, or whoever asks may not.
    pub async fn list(&self, mut listing: Listing) -> Result<Listed, VerbError> {
        self.may(Deed::List).await?;
        if let Who::Run(run) = self.who {
            listing.family = Some(run.task);
        }
        self.ask(|reply| Command::List { listing, reply }).await
    }

    /// How many tasks are in which state, and how the pools do.
    ///
    /// # Errors
    /// When the engine has ended.
    pub async fn overview(&self) -> Result<Overview, VerbError> {
        self.may(Deed::Other("look at the pools")).await?;
        self.ask(|reply| Command::Overview { reply }).await
    }

    /// What runs have spent, and the position of the log at which that is true.
    ///
    /// # Errors
    /// When the engine has ended.
    pub async fn spending(&self) -> Result<(Seq, Spending), VerbError> {
        self.may(Deed::Other("look at what was spent")).await?;
        self.ask(|reply| Command::Spending { reply }).await
    }

    /// # Errors
    /// When there is no such task.
    pub async fn task(&self, task: TaskId) -> Result<TaskView, VerbError> {
        self.may(Deed::Show(task)).await?;
        self.look(task).await
    }

    /// For ourselves, whoever this handle is for: a door that shows it has asked `may`.
    ///
    /// # Errors
    /// When there is no such task.
    pub async fn look(&self, task: TaskId) -> Result<TaskView, VerbError> {
        self.ask(|reply| Command::Task { task, reply }).await
    }

    /// Who says something with this handle. An agent brings no secrets: those that it has are ours.
    fn speaker(&self, verb: &str, secrets: &Secrets) -> Result<Sender, VerbError> {
        match self.who {
            Who::Person => Ok(Sender::Person),
            Who::Run(run) => {
                agents_bring_no_secrets(verb, secrets)?;
                Ok(Sender::Task(run.task))
            }
        }
    }

    /// History after `after`, then what happens: no gap, none twice. Only events; of an agent, those of
    /// its family.
    #[must_use]
    pub fn events(&self, after: Seq) -> EventStream {
        let shared = &self.shared;
        let events = EventStream::new(shared.logs.clone(), Arc::clone(&shared.tail), after);
        match self.who {
            Who::Person => events,
            Who::Run(run) => events.of_family(self.clone(), run),
        }
    }

    /// The same of some tasks or of everything, and what is open in their live runs beside it: first
    /// as it is when history has been told, then as it grows.
    #[must_use]
    pub fn watch(&self, after: Seq, tasks: Option<BTreeSet<TaskId>>) -> EventStream {
        self.events(after).watching(tasks)
    }

    /// What time it is for this engine.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.shared.settings.clock.now()
    }

    /// The position of the last durable event: whatever is asked from now on is at least as new.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.shared.tail.seq()
    }

    /// Resolves when nothing is live, queued or waiting, or the engine has ended.
    pub async fn idle(&self) {
        let mut open = self.shared.open.clone();
        match open.wait_for(|open| *open == 0).await {
            Ok(_) | Err(_) => {}
        }
    }

    /// Resolves with the reason when the engine has ended because its log could not be written.
    /// Jobs live on; nothing that was answered is missing from the log.
    pub async fn failed(&self) -> String {
        let mut failed = self.shared.failed.clone();
        let reason = failed
            .wait_for(Option::is_some)
            .await
            .map(|reason| reason.clone());
        match reason {
            Ok(Some(reason)) => reason,
            // Ended in order: there is no failure to wait for.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Ends the engine; jobs live on with their keepers.
    ///
    /// # Errors
    /// When it has ended already.
    pub async fn shutdown(&self) -> Result<(), VerbError> {
        self.may(Deed::Other("shut the engine down")).await?;
        self.ask(|reply| Command::Shutdown { reply }).await
    }

    pub(crate) async fn record(&self, subject: Subject, kinds: Vec<Kind>) -> Result<(), VerbError> {
        self.ask(|reply| Command::Record {
            subject,
            kinds,
            reply,
        })
        .await
    }

    /// What the agent of a run shows at our door. The same whenever it is asked.
    #[must_use]
    pub fn run_token(&self, run: RunId) -> String {
        self.shared.door_key.token(run)
    }

    /// Whose token this is, as long as that run's agent can be at work.
    #[must_use]
    pub fn whose(&self, token: &str) -> Option<RunId> {
        let run = self.shared.door_key.whose(token)?;
        self.shared.working.borrow().contains(&run).then_some(run)
    }

    pub(crate) fn trees(&self) -> Arc<Trees> {
        Arc::clone(&self.shared.trees)
    }

    /// What it was opened with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.shared.settings.config
    }

    /// One verb at a time may touch a task's workspace. Retention is waited for: nobody asked for it.
    pub(crate) async fn hold(&self, verb: &'static str, task: TaskId) -> Result<Busy, VerbError> {
        loop {
            let freed = self.shared.desk.freed.notified();
            match Desk::take(&self.shared.desk, task, Holder::Verb) {
                Ok(busy) => return Ok(busy),
                Err(Holder::Retention) => freed.await,
                Err(Holder::Verb) => {
                    let hint =
                        "another command works on it right now; try again when that one is done";
                    return Err(VerbError::Nothing {
                        verb,
                        task,
                        hint: hint.into(),
                    });
                }
            }
        }
    }
}

/// Who works on a task and must be alone with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Verb,
    Retention,
}

/// The tasks that somebody works on.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    held: Mutex<BTreeMap<TaskId, Holder>>,
    /// Rung whenever one is let go of.
    freed: Notify,
}

impl Desk {
    /// `Err`: who has it.
    pub(crate) fn take(desk: &Arc<Self>, task: TaskId, holder: Holder) -> Result<Busy, Holder> {
        let mut held = desk.held();
        if let Some(other) = held.get(&task) {
            return Err(*other);
        }
        held.insert(task, holder);
        let desk = Arc::clone(desk);
        Ok(Busy { desk, task })
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<TaskId, Holder>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets go of a task when dropped.
pub(crate) struct Busy {
    desk: Arc<Desk>,
    task: TaskId,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.desk.held().remove(&self.task);
        self.desk.freed.notify_waiters();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the actor is the one task nobody waits for"
)]
fn spawn_actor(actor: Actor) {
    tokio::spawn(actor.run());
}

/// The state of a log.
///
/// # Errors
/// When the log cannot be read, or is not one of ours.
pub(crate) fn fold(store: &Store) -> Result<State, OpenError> {
    let mut state = State::default();
    loop {
        let events = store.read_life(state.seq(), FOLD_CHUNK)?;
        for event in &events {
            state.apply(event)?;
        }
        if events.len() < FOLD_CHUNK {
            state.step_over(store.last());
            return Ok(state);
        }
    }
}

/// Runs whose agent may come to our door.
fn who_works(state: &State) -> BTreeSet<RunId> {
    let works = |run: &RunId| state.run(*run).is_some_and(Run::may_knock);
    state.live().filter(works).collect()
}

pub(crate) fn now() -> Millis {
    Clock::System.now()
}

struct Sayer {
    task: TaskId,
    message: MessageId,
    /// The running agent cannot be spoken to now.
    deaf: bool,
    reply: Reply<Spoken>,
}

type Effect = Box<dyn FnOnce(&mut Actor) + Send>;

struct Actor {
    state: State,
    store: Store,
    ctx: Ctx,
    inbox: mpsc::Receiver<Command>,
    open_now: watch::Sender<usize>,
    failed_now: watch::Sender<Option<String>>,
    working_now: watch::Sender<BTreeSet<RunId>>,
    runs: JoinSet<(RunId, Ended)>,
    orders: HashMap<RunId, mpsc::Sender<StopOrder>>,
    bells: HashMap<RunId, Arc<Notify>>,
    /// Who waits to hear what became of a message.
    sayers: Vec<Sayer>,
    /// Who waits for the end of tasks.
    waiters: Vec<Waiter>,
    /// Tasks that may have something to hear of what they asked for.
    owing: BTreeSet<TaskId>,
    /// Of live runs.
    purses: HashMap<RunId, Arc<Purse>>,
    secrets: HashMap<TaskId, Secrets>,
    held: Held,
    /// Applied and not yet durable.
    pending: Vec<Event>,
    /// Let out when they are.
    effects: Vec<Effect>,
    shutdown: Option<Reply<()>>,
    /// Queued since the last decision.
    fresh: Vec<RunId>,
    /// What the last decision knew of the machine.
    host: Host,
    /// When a decision is due although nothing happens.
    wake_at: Option<Millis>,
    /// Who has a workspace has changed since those that wait for one were looked at.
    turns_changed: bool,
    /// Whether what a crash left of attachments is gone.
    swept: std::io::Result<()>,
    _ends: tail::Ends,
    _lock: EngineLock,
}

impl Actor {
    async fn run(mut self) {
        self.put(
            Subject::Engine,
            Kind::EngineStarted {
                version: self.ctx.settings.version.clone(),
            },
        );
        if let Err(error) = &self.swept {
            let text = format!("attachments that no task has stay on the disk: {error}");
            self.put(Subject::Engine, Kind::Noted { text });
        }
        let live: Vec<RunId> = self.state.live().collect();
        for run in live {
            self.effects
                .push(Box::new(move |actor| actor.supervise(run, run::From::Log)));
        }
        let queued: Vec<RunId> = self.state.queue().collect();
        for run in queued {
            self.look_for_secrets(run);
        }
        if !self.settle().await {
            return;
        }
        let mut clean = tokio::time::interval(Duration::from_millis(DAY_MS / 24));
        while self.shutdown.is_none() {
            let clock = self.ctx.settings.clock.clone();
            let waiters = self.waiters_wake_at();
            let wake_at = self.wake_at.into_iter().chain(waiters).min();
            tokio::select! {
                command = self.inbox.recv() => match command {
                    Some(command) => self.handle(command),
                    None => break,
                },
                Some(joined) = self.runs.join_next(), if !self.runs.is_empty() => self.ended(joined),
                () = clock.wait(wake_at), if wake_at.is_some() => {}
                _ = clean.tick() => self.clean(),
            }
            for _ in 0..BATCH_MAX {
                let Ok(command) = self.inbox.try_recv() else {
                    break;
                };
                self.handle(command);
            }
            if !self.settle().await {
                return;
            }
        }
        // Supervisors are followers: dropping them leaves their jobs alone.
        self.runs.shutdown().await;
        if let Some(reply) = self.shutdown.take() {
            drop(self.inbox);
            drop(self.store);
            drop(self._lock);
            answer(reply, Ok(()));
        }
    }

    /// Decides, commits and lets the effects out, until nothing follows. `false`: the log failed.
    async fn settle(&mut self) -> bool {
        loop {
            self.answer_waiters();
            self.look_at_owing();
            let before = self.state.seq();
            self.decide();
            self.answer_sayers();
            let decided = self.state.seq() != before;
            // What a decision has ended may be what somebody waits for.
            if decided && !(self.waiters.is_empty() && self.owing.is_empty()) {
                continue;
            }
            if !self.pending.is_empty() {
                let events = std::mem::take(&mut self.pending);
                let appended = tokio::task::block_in_place(|| self.store.append(&events));
                let kinds = match appended {
                    Ok(kinds) => kinds,
                    Err(error) => {
                        // A failed commit ends the engine: what is in memory is not what is on disk.
                        // Jobs live on, and the next engine starts from the log.
                        self.effects.clear();
                        self.runs.shutdown().await;
                        let hint = if error.is_full() {
                            "; make room and start again"
                        } else {
                            ""
                        };
                        self.failed_now.send_replace(Some(format!("{error}{hint}")));
                        if let Some(reply) = self.shutdown.take() {
                            let doing = "end the engine".to_owned();
                            answer(
                                reply,
                                Err(VerbError::Failed {
                                    doing,
                                    source: Box::new(error),
                                }),
                            );
                        }
                        return false;
                    }
                };
                if let Some(observe) = &self.ctx.settings.observer.0 {
                    observe(self.store.last());
                }
                let events = events.into_iter().zip(kinds);
                self.ctx.tail.tell(events, &self.state);
            }
            // Before any reply: whoever hears that a task is queued must not find the engine idle.
            let open = self.state.live().len() + self.state.queue().len();
            self.open_now
                .send_if_modified(|now| std::mem::replace(now, open) != open);
            self.tell_who_works();
            if self.effects.is_empty() {
                return true;
            }
            for effect in std::mem::take(&mut self.effects) {
                effect(self);
            }
        }
    }

    /// Before any effect: an agent whose start is on its way must not find the door closed.
    fn tell_who_works(&self) {
        let working = who_works(&self.state);
        self.working_now.send_if_modified(|now| {
            let changed = *now != working;
            *now = working;
            changed
        });
    }

    /// Those that wait for a workspace look again whether it is free.
    fn look_at_turns(&mut self) {
        if !std::mem::take(&mut self.turns_changed) {
            return;
        }
        let behind = |run: &&RunId| {
            let task = self.state.task(run.task);
            task.is_some_and(|task| task.spec.turn.behind.is_some())
        };
        let held: Vec<RunId> = self.held.keys().filter(behind).copied().collect();
        for run in held {
            self.look_for_secrets(run);
        }
    }

    fn decide(&mut self) {
        self.wake_at = None;
        if self.shutdown.is_some() || self.state.queue().len() == 0 {
            self.fresh.clear();
            return;
        }
        if !self.state.frozen() {
            self.host = pressure::host(&self.ctx.settings.data);
        }
        loop {
            self.look_at_turns();
            // What one start changes for the next is in the state by then.
            let decision = self.gate().decide();
            let mut settled = decision.admit.is_empty() && decision.fail.is_empty();
            for (run, failure) in decision.fail {
                self.finish(run, Outcome::Failed(failure));
                // A decision that cannot be applied is a bug, noted; it must not be made for ever.
                settled |= self
                    .state
                    .run(run)
                    .is_some_and(|run| run.state == RunState::Queued);
            }
            for run in decision.admit {
                let admitted = self.put(Subject::Run(run), Kind::Admitted);
                settled |= !admitted;
                if admitted {
                    self.effects.push(Box::new(move |actor| {
                        actor.supervise(run, run::From::Start);
                    }));
                }
            }
            if settled {
                self.wake_at = decision.wake_at;
                break;
            }
        }
        for run in std::mem::take(&mut self.fresh) {
            let waiting = self.gate().waits_for(run);
            if let Some(Waiting { text, until, .. }) = waiting {
                let reason = text;
                self.put(Subject::Run(run), Kind::Waits { reason, until });
            }
        }
    }

    fn gate(&self) -> View<'_> {
        let config = &self.ctx.settings.config;
        View {
            state: &self.state,
            gate: &config.gate,
            pools: &config.pools,
            disk_free_min_bytes: config.limits.disk_free_min_bytes,
            held: &self.held,
            host: self.host,
            now: self.now(),
        }
    }

    fn now(&self) -> Millis {
        self.ctx.settings.clock.now()
    }

    /// What masks the secrets of a task, or of nobody in particular.
    fn redactor(&self, task: Option<TaskId>) -> Redactor {
        let known = task.and_then(|task| self.secrets.get(&task));
        match known {
            Some(known) if !known.is_empty() => Redactor::new(known.values().map(Secret::expose)),
            Some(_) | None => Redactor::shapes(),
        }
    }

    /// Applies an event in memory and keeps it for the commit. An illegal one is a bug: it is noted
    /// instead, and changes nothing. The one place where events are written, so where secrets are
    /// masked in them: neither the log nor the state has one.
    fn put(&mut self, subject: Subject, kind: Kind) -> bool {
        let kind = match self.redactor(subject.task()).event(kind) {
            Ok(kind) => kind,
            Err(error) => Kind::Noted {
                text: format!("bug: an event cannot be written: {error}"),
            },
        };
        let event = Event {
            seq: self.state.seq() + 1,
            at: self.now(),
            subject,
            kind,
        };
        let before = self.may_let_go(&event);
        match self.state.apply(&event) {
            Ok(()) => {
                self.remove_let_go(subject, before);
                let spent = match (&event.subject, &event.kind) {
                    (
                        Subject::Run(run),
                        Kind::AgentEnded {
                            usage: Some(usage), ..
                        },
                    ) => Some((run.task, usage.clone())),
                    _ => None,
                };
                self.turns_changed |= matches!(
                    event.kind,
                    Kind::Finished { .. }
                        | Kind::RunQueued { .. }
                        | Kind::StopRequested { .. }
                        | Kind::TaskRemoved
                        | Kind::TaskRestored
                );
                self.pending.push(event);
                if let Some((task, usage)) = spent {
                    self.warn_of_budgets(task, &usage);
                }
                true
            }
            Err(error) => {
                let mut text = format!("bug: {error}");
                if let Some(source) = std::error::Error::source(&error) {
                    text.push_str(&format!(": {source}"));
                }
                let text = self.redactor(subject.task()).redact(&text);
                let kind = Kind::Noted { text };
                let note = Event {
                    seq: self.state.seq() + 1,
                    at: self.now(),
                    subject: Subject::Engine,
                    kind,
                };
                if self.state.apply(&note).is_ok() {
                    self.pending.push(note);
                }
                false
            }
        }
    }

    /// The attachments of a task that this event may be the last of.
    fn may_let_go(&self, event: &Event) -> Vec<attach::Attached> {
        let lets_go = matches!(
            event.kind,
            Kind::MessageCancelled { .. }
                | Kind::SnapshotDropped { .. }
                | Kind::WorkspaceRemoved
                | Kind::AttachmentsDropped
        );
        let task = event.subject.task().filter(|_| lets_go);
        let task = task.and_then(|task| self.state.task(task));
        task.map(|task| task.attached.clone()).unwrap_or_default()
    }

    /// Of these, what the state has no more goes from the disk. After the commit: what the log tells of
    /// is there.
    fn remove_let_go(&mut self, subject: Subject, mut before: Vec<attach::Attached>) {
        let Some(task) = subject.task().and_then(|task| self.state.task(task)) else {
            return;
        };
        before.retain(|attached| !task.attached.contains(attached));
        if before.is_empty() {
            return;
        }
        let id = task.id;
        self.effects.push(Box::new(move |actor| {
            for attached in &before {
                attachments::remove(&actor.ctx.settings.data, id, attached);
            }
        }));
    }

    /// Tells of the budgets of a day that this usage has brought near their end.
    fn warn_of_budgets(&mut self, task: TaskId, usage: &Usage) {
        let config = &self.ctx.settings.config;
        let Some(pool) = self.state.task(task).map(|task| &task.spec.pool) else {
            return;
        };
        let (now, percent) = (self.now(), config.gate.warn_percent);
        let spent = Budget::of(usage);
        let mut warnings = Vec::new();
        let mut look = |what: String, budget: Budget, after: Budget| {
            if let Some(spent) = budget.crossed(after.less(spent), after, percent) {
                warnings.push(Kind::BudgetWarned { what, spent });
            }
        };
        if let (Some(limits), Some(ledger)) = (config.pools.get(pool), self.state.pool(pool)) {
            let reset = limits.reset_utc.unwrap_or(config.gate.reset_utc);
            let after = ledger.spent(reset.before(now), now);
            look(format!("day of pool {pool}"), limits.day_budget(), after);
        }
        let from = config.gate.reset_utc.before(now);
        let pools = self
            .state
            .pools()
            .map(|(_, ledger)| ledger.spent(from, now));
        let after = pools.fold(Budget::default(), Budget::plus);
        look("day".to_owned(), config.gate.day_budget(), after);
        for warning in warnings {
            self.put(Subject::Engine, warning);
        }
    }

    fn reply_later<T: Send + 'static>(&mut self, reply: Reply<T>, value: Result<T, VerbError>) {
        self.effects.push(Box::new(move |_| answer(reply, value)));
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::May { run, deed, reply } => {
                let may = self.may(run, deed);
                self.reply_later(reply, may);
            }
            Command::Family { task, reply } => {
                let family = self.family(task);
                self.reply_later(reply, Ok(family));
            }
            Command::Wait {
                who,
                tasks,
                mode,
                until,
                reply,
            } => self.wait(who, tasks, mode, until, reply),
            // It is looked at with everything that happens.
            Command::Left => {}
            Command::Detach { task, reply } => {
                let detached = self.detach(task);
                self.reply_later(reply, detached);
            }
            Command::Owed { run, reply } => {
                let owed = self.is_owed(run);
                self.reply_later(reply, Ok(owed));
            }
            Command::Dispatch {
                who,
                spec,
                kept,
                secrets,
                key,
                reply,
            } => {
                let made = self.once(key, secrets, |actor, secrets| {
                    let made = match who {
                        Who::Person => actor.dispatch(*spec, kept, secrets),
                        Who::Run(by) => actor.dispatch_for(by, *spec, kept),
                    };
                    made.map(Made::Run)
                });
                self.reply_later(reply, made.and_then(a_run));
            }
            Command::Answer {
                task,
                text,
                by,
                tuning,
                secrets,
                key,
                reply,
            } => {
                let queued = self.once(key, secrets, |actor, secrets| {
                    actor.answer(task, text, by, tuning, secrets).map(Made::Run)
                });
                self.reply_later(reply, queued.and_then(a_run));
            }
            Command::Retry {
                task,
                tuning,
                secrets,
                key,
                reply,
            } => {
                let queued = self.once(key, secrets, |actor, secrets| {
                    actor.retry(task, tuning, secrets).map(Made::Run)
                });
                self.reply_later(reply, queued.and_then(a_run));
            }
            Command::Resume {
                task,
                agent,
                tuning,
                secrets,
                key,
                reply,
            } => {
                let queued = self.once(key, secrets, |actor, secrets| {
                    let queued = actor.resume(task, agent, tuning, secrets);
                    queued.map(Made::Run)
                });
                self.reply_later(reply, queued.and_then(a_run));
            }
            Command::Say {
                task,
                text,
                from,
                kept,
                tuning,
                secrets,
                key,
                reply,
            } => {
                let queued = self.once(key, secrets, |actor, secrets| {
                    let message = actor.say(task, text, from, (kept, tuning), secrets)?;
                    Ok(Made::Message { task, message })
                });
                match queued.and_then(a_message) {
                    Ok((task, message)) => self.sayers.push(Sayer {
                        task,
                        message,
                        deaf: self.is_barred(task, message),
                        reply,
                    }),
                    Err(error) => self.reply_later(reply, Err(error)),
                }
            }
            Command::Unsay {
                task,
                message,
                reply,
            } => {
                let withdrawn = self.unsay(task, message);
                self.reply_later(reply, withdrawn);
            }
            Command::Permit {
                task,
                ask,
                allow,
                by,
                why,
                reply,
            } => {
                let answered = self.permit(task, ask, allow, by, why);
                self.reply_later(reply, answered);
            }
            Command::Asks { run, reply } => {
                let task = self.state.task(run.task);
                let asks = task.into_iter().flat_map(|task| &task.asks);
                let asks = asks.filter(|ask| ask.run == run.n);
                let fates = asks.map(|ask| (ask.id, ask.fate.clone())).collect();
                self.reply_later(reply, Ok(fates));
            }
            Command::TakeAll { run, reply } => {
                let messages = self.take_all(run);
                self.reply_later(reply, Ok(messages));
            }
            Command::Take {
                run,
                out_offset,
                reply,
            } => {
                let message = self.take(run, out_offset);
                if message.is_none() {
                    self.deaf(run.task);
                }
                self.reply_later(reply, Ok(message));
            }
            Command::Deaf { run, reply } => {
                self.deaf(run.task);
                self.reply_later(reply, Ok(()));
            }
            Command::Letters(post) => self.post(post),
            Command::Stop {
                task,
                force,
                why,
                reply,
            } => {
                let stopped = self.stop(task, force, &why);
                self.reply_later(reply, stopped);
            }
            Command::StopAll { force, reply } => {
                let stopped = self.stop_all(force);
                self.reply_later(reply, Ok(stopped));
            }
            Command::Freeze {
                frozen,
                scope,
                reply,
            } => {
                let set = self.freeze(frozen, scope);
                self.reply_later(reply, set);
            }
            Command::Provide { secrets, reply } => {
                self.provide(&secrets);
                self.reply_later(reply, Ok(()));
            }
            Command::Needs { reply } => {
                let needs = self.needs();
                self.reply_later(reply, Ok(needs));
            }
            Command::Tasks { of, reply } => self.effects.push(Box::new(move |actor| {
                let seen = |task: &&dispatch_core::state::Task| {
                    of.is_none_or(|own| task.id == own || actor.state.is_below(task.id, own))
                };
                let ids: Vec<TaskId> = actor.state.tasks().filter(seen).map(|t| t.id).collect();
                answer(reply, actor.views(&ids));
            })),
            Command::List { listing, reply } => self.effects.push(Box::new(move |actor| {
                answer(reply, actor.list(&listing));
            })),
            Command::Overview { reply } => self.effects.push(Box::new(move |actor| {
                answer(reply, Ok(reads::overview(&actor.gate())));
            })),
            Command::Spending { reply } => self.effects.push(Box::new(move |actor| {
                let spending = Spending::of(&actor.state);
                answer(reply, Ok((actor.state.seq(), spending)));
            })),
            Command::Task { task, reply } => self.effects.push(Box::new(move |actor| {
                let view = actor.view(task, |run| {
                    let task = actor.state.task(run.task)?;
                    actor.state.pool(&task.spec.pool)?.place(run)
                });
                answer(reply, view);
            })),
            Command::Record {
                subject,
                kinds,
                reply,
            } => {
                let mut good = true;
                for kind in kinds {
                    good &= self.put(subject, kind);
                }
                let what = || "record what happened: see the log's last note".to_owned();
                let result = if good {
                    Ok(())
                } else {
                    Err(VerbError::BadInput { what: what() })
                };
                self.reply_later(reply, result);
            }
            Command::Finish {
                run,
                outcome,
                verified,
                swept,
                reply,
            } => {
                self.end(run, outcome, verified, swept);
                self.reply_later(reply, Ok(()));
            }
            Command::Shutdown { reply } => self.shutdown = Some(reply),
        }
    }

    fn post(&mut self, post: Post) {
        match post {
            Post::Send {
                workspace,
                written,
                from,
                reply,
            } => {
                let sent = self.send_letter(&workspace, written, from);
                self.reply_later(reply, sent);
            }
            Post::Fetch {
                workspace,
                reader,
                limit,
                reply,
            } => {
                let inbox = self.fetch_letters(&workspace, &reader, limit);
                self.reply_later(reply, inbox);
            }
            Post::Between {
                workspace,
                names,
                limit,
                reply,
            } => {
                let found = letters::between(&self.state, &workspace, &names, limit);
                self.reply_later(reply, found);
            }
        }
    }

    fn send_letter(
        &mut self,
        workspace: &str,
        written: Written,
        from: Sender,
    ) -> Result<Letter, VerbError> {
        let config = &self.ctx.settings.config;
        let (task, letter) = letters::address(&self.state, config, workspace, &written)?;
        let sent = Kind::LetterSent {
            letter,
            written,
            from,
        };
        self.put(Subject::Task(task), sent);
        // As it was kept, with what was masked in it.
        let kept = self.state.letterbox(workspace);
        let kept = kept.and_then(|post| post.letters().find(|kept| kept.id == letter));
        kept.cloned().ok_or_else(|| VerbError::BadInput {
            what: "send a letter: it could not be kept; see the log's last note".to_owned(),
        })
    }

    fn fetch_letters(
        &mut self,
        workspace: &str,
        reader: &str,
        limit: usize,
    ) -> Result<Inbox, VerbError> {
        let (subject, read, handed) = letters::fetched(&self.state, workspace, reader, limit)?;
        let new = match &read {
            Some(Kind::LettersRead { letters }) => letters.len(),
            Some(_) | None => 0,
        };
        if let Some(read) = read {
            self.put(subject, read);
        }
        Ok(letters::inbox(&self.state, workspace, reader, &handed, new))
    }

    fn list(&self, listing: &Listing) -> Result<Listed, VerbError> {
        let (page, next) = reads::page(&self.gate(), listing);
        Ok(Listed {
            seq: self.state.seq(),
            tasks: self.views(&page)?,
            next,
        })
    }

    fn views(&self, tasks: &[TaskId]) -> Result<Vec<TaskView>, VerbError> {
        let queued = |id: &TaskId| {
            let last = self.state.task(*id).and_then(|task| task.last_run());
            last.is_some_and(|run| run.state == RunState::Queued)
        };
        // All places at once, where somebody waits: each on its own counts those before it.
        let places: HashMap<RunId, usize> = if tasks.iter().any(queued) {
            let pools = self.state.pools().map(|(_, ledger)| ledger.places());
            pools.flatten().collect()
        } else {
            HashMap::new()
        };
        let place = |run: RunId| places.get(&run).copied();
        tasks.iter().map(|task| self.view(*task, place)).collect()
    }

    fn view(
        &self,
        task: TaskId,
        place: impl Fn(RunId) -> Option<usize>,
    ) -> Result<TaskView, VerbError> {
        let mut view = crate::reader::view(&self.state, &self.ctx.settings.data, task)
            .ok_or(VerbError::NoSuchTask { task })?;
        if let Some(run) = view.task.last_run() {
            let id = RunId { task, n: run.n };
            let held = |text: &String| Waiting {
                why: Why::NeedsYou,
                text: text.clone(),
                until: None,
            };
            view.waits = self
                .gate()
                .waits_for(id)
                .or_else(|| self.held.get(&id).map(held));
            view.place = place(id);
            // While we live, we judge.
            for job in &mut view.jobs {
                job.ended_not_judged = false;
            }
        }
        Ok(view)
    }

    /// The place that it takes is taken with this commit.
    fn dispatch_for(
        &mut self,
        by: RunId,
        spec: TaskSpec,
        kept: Option<(TaskId, Kept)>,
    ) -> Result<RunId, VerbError> {
        self.may(by, Deed::Dispatch)?;
        let (spec, secrets) = self.asked_by_agent(by, spec)?;
        let made = self.dispatch(spec, kept, secrets)?;
        self.fill_purse(by.task);
        Ok(made)
    }

    /// Does what is asked, or says what came of it when it came before: what is made and the key that
    /// it came with are one commit, so there is no crash between them.
    fn once(
        &mut self,
        key: Option<RequestKey>,
        secrets: Secrets,
        work: impl FnOnce(&mut Self, Secrets) -> Result<Made, VerbError>,
    ) -> Result<Made, VerbError> {
        let Some(key) = key else {
            return work(self, secrets);
        };
        let known = self.state.keys().find(&key, self.now());
        if let Some(made) = known.map_err(|_| VerbError::KeyUsed)? {
            // The engine that had them may be gone.
            let task = made.task();
            let queued = self.state.queue().find(|run| run.task == task);
            if let Some(run) = queued {
                self.secrets.entry(task).or_default().extend(secrets);
                self.look_for_secrets(run);
            }
            // A supervisor that took the run over since has been asked about it by nobody.
            self.ring(task);
            return Ok(made);
        }
        let made = work(self, secrets)?;
        let (subject, message) = match made {
            Made::Run(run) => (Subject::Run(run), None),
            Made::Message { task, message } => (Subject::Task(task), Some(message)),
        };
        self.put(subject, Kind::Keyed { key, message });
        Ok(made)
    }

    fn dispatch(
        &mut self,
        mut spec: TaskSpec,
        kept: Option<(TaskId, Kept)>,
        secrets: Secrets,
    ) -> Result<RunId, VerbError> {
        let limits = &self.ctx.settings.config.limits;
        if self.state.queue().len() >= limits.queue_max {
            return Err(VerbError::QueueFull {
                max: limits.queue_max,
            });
        }
        if spec.text.len() > limits.task_bytes {
            let what = format!(
                "take the task: its text has {} bytes, and limits.task_bytes is {}",
                spec.text.len(),
                limits.task_bytes
            );
            return Err(VerbError::BadInput { what });
        }
        if names_a_secret(&spec, &secrets) {
            let what = "take the task: the name of its repository, branch, model or workspace \
                        holds a secret; give one without, and let ssh log in"
                .to_owned();
            return Err(VerbError::BadInput { what });
        }
        if let Some((_, kept)) = &kept {
            names_no_secret(kept, &secrets)?;
        }
        self.takes_effort(&spec.agent, spec.guide.effort)?;
        Wanted::of(&spec.base).map_err(|error| VerbError::BadInput {
            what: error.to_string(),
        })?;
        let older: Vec<TaskId> = self.state.holders(&spec).map(|task| task.id).collect();
        if let (Taken::Refuse, Some(holder)) = (spec.turn.taken, older.last()) {
            let name = naming::workspace_name(&spec, "");
            let holder = *holder;
            return Err(VerbError::WorkspaceTaken { name, holder });
        }
        self.can_follow(&spec)?;
        spec.turn.behind = older.last().copied();
        let task = match &kept {
            Some((id, _)) => *id,
            None => self.fresh_id()?,
        };
        if self.state.task(task).is_some() {
            let what = "take the task: its id is another one's; try again".to_owned();
            return Err(VerbError::BadInput { what });
        }
        let short = self.state.short(task);
        let supersedes = spec.turn.taken == Taken::Supersede;
        let spec = Box::new(spec);
        // Before the first event, so that they are masked in it.
        self.secrets.insert(task, secrets);
        self.put(Subject::Task(task), Kind::TaskCreated { spec, short });
        if let Some((_, kept)) = kept {
            self.attach(task, kept, None);
        }
        let run = RunId { task, n: 1 };
        self.queue(run, RunCause::Dispatched);
        if supersedes {
            older.into_iter().for_each(|old| self.supersede(old, task));
            self.look_for_secrets(run);
        }
        Ok(run)
    }

    /// Ends what has the workspace. Its result is kept by its own end, and its workspace stays.
    fn supersede(&mut self, old: TaskId, by: TaskId) {
        let text = format!("superseded by task {by}, which wants its workspace");
        self.put(Subject::Task(old), Kind::Noted { text });
        let state = self.state.task(old).and_then(|task| task.last_run());
        // A second request would be a kill.
        if state.is_some_and(|run| !matches!(run.state, RunState::Stopping { .. })) {
            match self.stop(old, Force::Ask, &Stop::ByPerson) {
                // Blocked: nothing of it runs.
                Ok(()) | Err(_) => {}
            }
        }
    }

    /// Every run of every task comes to the gate here.
    fn queue(&mut self, run: RunId, cause: RunCause) {
        if self.put(Subject::Run(run), Kind::RunQueued { cause }) {
            self.fresh.push(run);
        }
        self.look_for_secrets(run);
    }

    /// What it waits for exists and can still complete.
    fn can_follow(&self, spec: &TaskSpec) -> Result<(), VerbError> {
        let after = &spec.terms.after;
        if after.len() > AFTER_MAX {
            let what = format!("take the task: it may wait for {AFTER_MAX} others at most");
            return Err(VerbError::BadInput { what });
        }
        for id in after {
            let task = *id;
            let other = self
                .state
                .task(task)
                .ok_or(VerbError::NoSuchTask { task })?;
            if other.is_hopeless() {
                let short = self.state.short(task);
                let what = format!(
                    "wait for task {short}: it ended as {} and will not complete; \
                     `dispatch retry {short}` first",
                    other.outcome().map_or("unknown", Outcome::word)
                );
                return Err(VerbError::BadInput { what });
            }
        }
        Ok(())
    }

    fn freeze(&mut self, frozen: bool, scope: Scope) -> Result<(), VerbError> {
        if let Scope::Pool(pool) = &scope {
            let pools = &self.ctx.settings.config.pools;
            // One that is not configured any more can still be thawed.
            if frozen && !pools.contains_key(pool) {
                let there = dispatch_core::config::list(pools.keys());
                let what = format!("freeze pool {pool}: it is not configured; there are {there}");
                return Err(VerbError::BadInput { what });
            }
        }
        if self.state.is_frozen(&scope) != frozen {
            self.put(Subject::Engine, Kind::FrozenSet { frozen, scope });
        }
        Ok(())
    }

    fn attach(&mut self, task: TaskId, kept: Kept, message: Option<MessageId>) {
        let attached = kept.attached(message);
        if self.put(Subject::Task(task), Kind::Attached { attached }) {
            kept.told();
        }
    }

    fn tune(&mut self, task: TaskId, tuning: Tuning) {
        if !tuning.is_empty() {
            self.put(Subject::Task(task), Kind::TuningSet { tuning });
        }
    }

    /// Whether it waits for a later run than the one that goes on.
    fn is_barred(&self, task: TaskId, message: MessageId) -> bool {
        let task = self.state.task(task);
        let barred = |task: &dispatch_core::state::Task| {
            let last = task.last_run()?.n;
            Some(task.message(message)?.is_barred_from(last))
        };
        task.and_then(barred).unwrap_or(false)
    }

    fn fresh_id(&self) -> Result<TaskId, VerbError> {
        loop {
            let id = random_id()?;
            if self.state.task(id).is_none() {
                return Ok(id);
            }
        }
    }

    fn answer(
        &mut self,
        task: TaskId,
        text: String,
        by: Sender,
        tuning: Tuning,
        secrets: Secrets,
    ) -> Result<RunId, VerbError> {
        let limits = &self.ctx.settings.config.limits;
        let found = self
            .state
            .task(task)
            .ok_or(VerbError::NoSuchTask { task })?;
        let state = found.last_run().map_or("queued", |run| run.state.word());
        let wrong = |hint| VerbError::WrongState {
            verb: "answer",
            task,
            state,
            hint,
        };
        if !matches!(found.outcome(), Some(Outcome::Blocked { .. })) {
            return Err(wrong("only a blocked task has a question"));
        }
        if found.workspace.is_none() {
            return Err(wrong("it has no workspace"));
        }
        self.can_run_again("answer", found)?;
        if text.trim().is_empty() || text.len() > limits.task_bytes {
            let what = format!(
                "answer task {task}: an answer has 1 to {} bytes (limits.task_bytes)",
                limits.task_bytes
            );
            return Err(VerbError::BadInput { what });
        }
        if self.is_held(by) {
            let hint = "one word of a person has led to all the messages of agents that it may \
                        (limits.chain_messages_max); a person answers it, or says something to you";
            return Err(wrong(hint));
        }
        let n = u32::try_from(found.runs.len() + 1).unwrap_or(u32::MAX);
        let run = RunId { task, n };
        self.tunes_no_secret(task, &tuning, &secrets)?;
        self.takes_effort(&found.spec.agent, tuning.effort)?;
        self.secrets.entry(task).or_default().extend(secrets);
        self.tune(task, tuning);
        let answered = Kind::Answered {
            text: text.clone(),
            by,
        };
        self.put(Subject::Task(task), answered);
        self.queue(run, RunCause::Answer { text, by });
        Ok(run)
    }

    fn say(
        &mut self,
        task: TaskId,
        text: String,
        from: Sender,
        (kept, tuning): (Option<Kept>, Tuning),
        secrets: Secrets,
    ) -> Result<MessageId, VerbError> {
        let limits = &self.ctx.settings.config.limits;
        let found = self
            .state
            .task(task)
            .ok_or(VerbError::NoSuchTask { task })?;
        let nothing = |hint: String| VerbError::Nothing {
            verb: "say to",
            task,
            hint,
        };
        if text.trim().is_empty() || text.len() > limits.task_bytes {
            let what = format!(
                "say to task {task}: a message has 1 to {} bytes (limits.task_bytes)",
                limits.task_bytes
            );
            return Err(VerbError::BadInput { what });
        }
        if found.removed {
            let hint = "it was put away; bring it back with `dispatch undo` first";
            return Err(nothing(hint.to_owned()));
        }
        let waiting = found.waiting().count();
        if waiting >= limits.messages_max {
            return Err(nothing(format!(
                "{waiting} messages wait for it already (limits.messages_max); \
                 `dispatch unsay` withdraws one"
            )));
        }
        // What a person says to an ended task starts a run, however it ended; refused, nothing has
        // changed. An agent's message does not go on after a stop or a hard failure.
        let ended = found.outcome();
        let held = self.is_held(from);
        let starts = ended.is_some_and(|outcome| from == Sender::Person || outcome.goes_on());
        if from == Sender::Person && ended.is_some() {
            self.can_run_again("say to", found)?;
        }
        let message = MessageId(found.messages_count.saturating_add(1));
        if let Some(kept) = &kept {
            let sizes = kept.files().iter().map(|file| file.bytes);
            let agent = takes_files(&self.ctx.settings.config, &found.spec)?;
            attach::allowed(limits, agent, &found.attached, sizes)?;
            let known = self.secrets.get(&task);
            names_no_secret(kept, known.unwrap_or(&secrets))?;
            names_no_secret(kept, &secrets)?;
        }
        self.tunes_no_secret(task, &tuning, &secrets)?;
        self.takes_effort(&found.spec.agent, tuning.effort)?;
        self.secrets.entry(task).or_default().extend(secrets);
        let queued = Kind::MessageQueued {
            message,
            text,
            from,
            fresh: kept.is_some() || !tuning.is_empty(),
            held,
            ends: Vec::new(),
        };
        self.put(Subject::Task(task), queued);
        if let Some(kept) = kept {
            self.attach(task, kept, Some(message));
        }
        self.tune(task, tuning);
        if held {
            self.tell_held(task, from);
        } else if starts {
            self.start_for_messages(task);
        } else {
            self.ring(task);
        }
        Ok(message)
    }

    /// Tells the supervisor of a running agent that there is a message or an answer.
    fn ring(&mut self, task: TaskId) {
        self.effects.push(Box::new(move |actor| {
            let run = actor.state.task(task).and_then(|task| task.last_run());
            let bell = run.and_then(|run| actor.bells.get(&RunId { task, n: run.n }));
            if let Some(bell) = bell {
                bell.notify_one();
            }
        }));
    }

    /// What waits when a run ends starts the next one, if that end allows it.
    fn go_on(&mut self, id: TaskId) {
        let Some(task) = self.state.task(id) else {
            return;
        };
        let due = task.waiting().any(Message::is_due);
        let outcome = task.outcome().filter(|_| due);
        match outcome {
            Some(outcome) if outcome.goes_on() => self.start_for_messages(id),
            Some(outcome) => {
                let word = outcome.word();
                let text =
                    format!("it ended as {word}: its messages wait until a person says something");
                self.put(Subject::Task(id), Kind::Noted { text });
            }
            None => {}
        }
    }

    /// The next run of an ended task, for the messages that wait. Where there cannot be one, they are
    /// kept and a person sees why.
    fn start_for_messages(&mut self, id: TaskId) {
        let Some(task) = self.state.task(id) else {
            return;
        };
        let by_person = task.waiting().any(|message| message.from == Sender::Person);
        let wakes_max = self.ctx.settings.config.limits.wakes_max;
        let able = self.can_run_again("say to", task);
        let text = match able {
            Err(error) => format!("its messages wait: {error}"),
            Ok(()) if !by_person && task.wakes >= wakes_max => format!(
                "messages of agents wait: they have started {wakes_max} runs since a person said \
                 something (limits.wakes_max)"
            ),
            Ok(()) => {
                let n = u32::try_from(task.runs.len() + 1).unwrap_or(u32::MAX);
                self.queue(RunId { task: id, n }, RunCause::Said { by_person });
                return;
            }
        };
        self.put(Subject::Task(id), Kind::Noted { text });
    }

    fn unsay(&mut self, task: TaskId, message: MessageId) -> Result<(), VerbError> {
        let found = self
            .state
            .task(task)
            .ok_or(VerbError::NoSuchTask { task })?;
        let nothing = |hint: String| VerbError::Nothing {
            verb: "unsay to",
            task,
            hint,
        };
        let Some(known) = found.message(message) else {
            let hint = if message.0 <= found.messages_count {
                "delivered long ago"
            } else {
                "not known; `dispatch show` lists them"
            };
            return Err(nothing(format!("message {message} is {hint}")));
        };
        if known.from == Sender::Dispatch {
            return Err(nothing(format!(
                "message {message} tells how tasks have ended that it asked for"
            )));
        }
        if !known.waits() {
            let word = match known.word() {
                "on_its_way" => "on its way to the agent",
                word => word,
            };
            return Err(nothing(format!("message {message} is {word} already")));
        }
        self.put(Subject::Task(task), Kind::MessageCancelled { message });
        self.call_off(task);
        Ok(())
    }

    /// The first answer counts, whoever's it is.
    fn permit(
        &mut self,
        task: TaskId,
        ask: AskId,
        allow: bool,
        by: By,
        why: Option<String>,
    ) -> Result<(), VerbError> {
        let found = self
            .state
            .task(task)
            .ok_or(VerbError::NoSuchTask { task })?;
        let nothing = |hint: String| VerbError::Nothing {
            verb: "answer what is asked by",
            task,
            hint,
        };
        let open: Vec<String> = found
            .open_asks()
            .map(|ask| format!("{} ({})", ask.id, ask.tool))
            .collect();
        let open = match open.len() {
            0 => "nothing waits for an answer".to_owned(),
            1 => format!("{} waits for one", open[0]),
            _ => format!("{} wait for one", open.join(", ")),
        };
        let Some(known) = found.ask(ask) else {
            return Err(nothing(format!("ask {ask} is not known; {open}")));
        };
        let (run, late) = (RunId { task, n: known.run }, known.until <= self.now());
        match &known.fate {
            AskFate::Open => {}
            AskFate::Closed => {
                let hint = format!("ask {ask} is closed, its run was stopped or has ended; {open}");
                return Err(nothing(hint));
            }
            AskFate::Answered { .. } => {
                let word = known.word();
                return Err(nothing(format!("ask {ask} is {word} already; {open}")));
            }
        }
        let max = self.ctx.settings.config.limits.task_bytes;
        if why.as_ref().is_some_and(|why| why.len() > max) {
            let what = format!("answer task {task}: a reason has {max} bytes (limits.task_bytes)");
            return Err(VerbError::BadInput { what });
        }
        // The engine may have been away when it was.
        let by_somebody = matches!(by, By::Person | By::Task(_));
        let (allow, by, why) = if late && by_somebody {
            (false, By::Deadline, None)
        } else {
            (allow, by, why)
        };
        let answered = Kind::PermissionAnswered {
            ask,
            allow,
            by,
            reason: why,
        };
        self.put(Subject::Run(run), answered);
        self.ring(task);
        if late && by_somebody {
            let hint = format!("the time of ask {ask} is over (limits.ask_wait_s); it is denied");
            let error = VerbError::Nothing {
                verb: "answer what is asked by",
                task,
                hint,
            };
            return Err(error);
        }
        Ok(())
    }

    /// A run that was queued for messages only, which are all withdrawn, ends before it began, and
    /// the task is as it was.
    fn call_off(&mut self, id: TaskId) {
        let Some(task) = self.state.task(id) else {
            return;
        };
        let [.., before, last] = task.runs.as_slice() else {
            return;
        };
        let idle = last.state == RunState::Queued
            && matches!(last.cause, RunCause::Said { .. })
            && !task.waiting().any(Message::is_due);
        if let (true, RunState::Finished(outcome)) = (idle, &before.state) {
            let (outcome, verified, before) = (outcome.clone(), before.verified, before.n);
            let run = RunId {
                task: id,
                n: last.n,
            };
            self.call_off_run(run, before, outcome, verified);
        }
    }

    fn take_all(&mut self, run: RunId) -> Vec<Message> {
        let waiting = |task: &dispatch_core::state::Task| {
            // In order: what was said later waits behind what is for another run.
            let due = task.waiting().filter(|message| message.is_due());
            let ids = due.take_while(|m| !m.is_barred_from(run.n));
            ids.map(|message| message.id).collect::<Vec<_>>()
        };
        self.put_ends(run.task);
        let out_offset = None;
        for message in self.state.task(run.task).map(waiting).unwrap_or_default() {
            let taken = Kind::MessageTaken {
                message,
                out_offset,
            };
            self.put(Subject::Run(run), taken);
        }
        let task = self.state.task(run.task);
        task.map(|task| task.messages.clone()).unwrap_or_default()
    }

    /// The next message for a running agent; none for one that has been asked to end.
    fn take(&mut self, run: RunId, out_offset: u64) -> Option<Message> {
        let task = self.state.task(run.task)?;
        let running = self.state.run(run)?.state == RunState::Running;
        // What one run has heard is kept until its end, for a replay.
        let heard = task.messages.iter().filter(|m| m.is_with(run.n)).count();
        let hears = running && heard < SETTLED_MAX;
        if !hears {
            return None;
        }
        let next = task.waiting().find(|message| message.is_due());
        let next = next.map(|message| (message.id, message.is_barred_from(run.n)));
        let message = match next {
            Some((_, true)) => return None,
            Some((message, false)) => message,
            None => self.put_ends(run.task)?,
        };
        let taken = Kind::MessageTaken {
            message,
            out_offset: Some(out_offset),
        };
        let taken = self.put(Subject::Run(run), taken);
        let task = self.state.task(run.task).filter(|_| taken)?;
        task.message(message).cloned()
    }

    /// Whoever has said something so far hears that it is for later.
    fn deaf(&mut self, task: TaskId) {
        let theirs = |sayer: &&mut Sayer| sayer.task == task;
        for sayer in self.sayers.iter_mut().filter(theirs) {
            sayer.deaf = true;
        }
    }

    /// Answers those whose message has come as far as it will for now.
    fn answer_sayers(&mut self) {
        for sayer in std::mem::take(&mut self.sayers) {
            match self.heard(&sayer) {
                Some(how) => {
                    let message = sayer.message;
                    self.reply_later(sayer.reply, Ok(Spoken { message, how }));
                }
                None => self.sayers.push(sayer),
            }
        }
    }

    fn heard(&self, sayer: &Sayer) -> Option<Heard> {
        let task = self.state.task(sayer.task)?;
        let Some(message) = task.message(sayer.message) else {
            return Some(Heard::Delivered);
        };
        let goes = |run: &dispatch_core::state::Run| match run.state {
            // A person has asked for the end: nothing follows by itself.
            RunState::Stopping { .. } | RunState::Finished(_) => false,
            RunState::Queued | RunState::Preparing | RunState::Running | RunState::Checking => true,
        };
        let listens = |run: &dispatch_core::state::Run| {
            run.state == RunState::Running && run.report.is_none()
        };
        match message.fate {
            Fate::Delivered(_) => Some(Heard::Delivered),
            Fate::Cancelled => Some(Heard::Held),
            Fate::Waiting if message.held || !task.last_run().is_some_and(goes) => {
                Some(Heard::Held)
            }
            Fate::Waiting if !task.last_run().is_some_and(listens) => Some(Heard::Queued),
            Fate::Waiting if message.taken.is_none() && sayer.deaf => Some(Heard::Queued),
            Fate::Waiting => None,
        }
    }

    fn resume(
        &mut self,
        task: TaskId,
        agent: Option<Selection>,
        tuning: Tuning,
        secrets: Secrets,
    ) -> Result<RunId, VerbError> {
        let found = self
            .state
            .task(task)
            .ok_or(VerbError::NoSuchTask { task })?;
        let Some((last, outcome)) = found.last_run().zip(found.outcome()) else {
            return Err(VerbError::WrongState {
                verb: "resume",
                task,
                state: found.last_run().map_or("queued", |run| run.state.word()),
                hint: "it has not ended; `dispatch say` speaks to it",
            });
        };
        self.can_run_again("resume", found)?;
        self.can_follow(&found.spec)?;
        let cause = RunCause::Resumed {
            agent: found.spec.agent.clone(),
            ended: format!("{}: {}", outcome.word(), outcome.reason()),
        };
        let run = RunId {
            task,
            n: last.n.saturating_add(1),
        };
        self.tunes_no_secret(task, &tuning, &secrets)?;
        // What it had before counts for another agent, too, unless it is said anew.
        let next = agent.as_ref().map(|selection| &selection.agent);
        let effort = tuning
            .effort
            .or(found.spec.guide.effort.filter(|_| next.is_some()));
        self.takes_effort(next.unwrap_or(&found.spec.agent), effort)?;
        if let Some(Selection {
            agent,
            model,
            profile: own,
            command,
        }) = agent
        {
            let agents = &self.ctx.settings.config.agents;
            let Some(profile) = agents.get(&agent) else {
                let there = dispatch_core::config::list(agents.keys());
                let what = format!("use agent {agent}: it is not configured; there are {there}");
                return Err(VerbError::BadInput { what });
            };
            let permissions = found.spec.terms.permissions;
            if !permissions.is_default() && !profile.driver.asks() {
                let what = format!(
                    "use agent {agent}: it asks for no permission ({}), and the task says \
                     permissions = \"{}\"; take one that asks, or dispatch another task",
                    profile.driver.word(),
                    permissions.word()
                );
                return Err(VerbError::BadInput { what });
            }
            if !found.attached.is_empty() {
                attach::allowed(
                    &self.ctx.settings.config.limits,
                    (&agent, profile.driver),
                    &found.attached,
                    [],
                )?;
            }
            let set = Kind::AgentSet {
                agent,
                pool: profile.pool.clone(),
                model: model.or_else(|| profile.model.clone().filter(|_| own.is_none())),
                profile: own,
                command,
                permissions: Some(profile.permissions).filter(|own| !own.is_default()),
            };
            self.put(Subject::Task(task), set);
        }
        self.tune(task, tuning);
        self.secrets.entry(task).or_default().extend(secrets);
        self.queue(run, cause);
        Ok(run)
    }

    /// The agent of the next run may be another one than whoever asked has seen, or than the effort was
    /// for. There is nothing to check of a model: each agent takes any name, and another agent never
    /// gets the model of the one before.
    fn takes_effort(&self, agent: &AgentName, effort: Option<Effort>) -> Result<(), VerbError> {
        let profile = self.ctx.settings.config.agents.get(agent);
        let Some((profile, effort)) = profile.zip(effort) else {
            return Ok(());
        };
        let takes = profile.driver.efforts();
        if takes.contains(&effort) {
            return Ok(());
        }
        let word = effort.word();
        let what = if takes.is_empty() {
            format!(
                "use effort {word}: agent {agent} cannot be told how hard to think; take one that \
                 can, or dispatch another task"
            )
        } else {
            let takes = dispatch_core::config::list(takes.iter().map(|effort| effort.word()));
            format!("use effort {word}: agent {agent} takes {takes}; say which with --effort")
        };
        Err(VerbError::BadInput { what })
    }

    /// A model's name goes where nothing can mask it.
    fn tunes_no_secret(
        &self,
        task: TaskId,
        tuning: &Tuning,
        secrets: &Secrets,
    ) -> Result<(), VerbError> {
        let known = self.secrets.get(&task).into_iter().flatten();
        let values = known.chain(secrets).map(|(_, value)| value.expose());
        let redactor = Redactor::new(values);
        match &tuning.model {
            Some(model) if redactor.redact(model.as_str()) != model.as_str() => {
                let what = "use that model: its name holds a secret".to_owned();
                Err(VerbError::BadInput { what })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// What holds for every further run of a task, whoever wants it.
    fn can_run_again(
        &self,
        verb: &'static str,
        found: &dispatch_core::state::Task,
    ) -> Result<(), VerbError> {
        let limits = &self.ctx.settings.config.limits;
        let (task, state) = (found.id, found.last_run());
        let state = state.map_or("queued", |run| run.state.word());
        let wrong = |hint| VerbError::WrongState {
            verb,
            task,
            state,
            hint,
        };
        if found.removed || found.workspace.as_ref().is_some_and(|w| w.removed) {
            return Err(wrong(
                "its workspace was removed; bring it back with `dispatch undo` first",
            ));
        }
        if found.attached_dropped {
            return Err(wrong(
                "its attachments are not kept any more (retention.snapshots_d); dispatch it again \
                 with them",
            ));
        }
        // Whoever waits for the workspace, or lost it to another, does not have it.
        let mut holders = self.state.holders(&found.spec);
        if holders.any(|other| {
            other.id != task
                && self.state.waits_behind(other.id).is_none()
                && self.state.taken_over(other.id).is_none()
        }) {
            return Err(wrong("another task has its workspace; stop that one first"));
        }
        if found.runs.len() >= limits.runs_max as usize {
            return Err(wrong("it has had all its runs (limits.runs_max)"));
        }
        if let Some(spent) = found.budget().reached(found.spent()) {
            let hint = format!("its budget is spent ({spent}); dispatch a task with a larger one");
            return Err(VerbError::Nothing { verb, task, hint });
        }
        self.budget_allows(found)?;
        if self.state.queue().len() >= limits.queue_max {
            return Err(VerbError::QueueFull {
                max: limits.queue_max,
            });
        }
        Ok(())
    }

    fn retry(
        &mut self,
        task: TaskId,
        tuning: Tuning,
        secrets: Secrets,
    ) -> Result<RunId, VerbError> {
        let found = self
            .state
            .task(task)
            .ok_or(VerbError::NoSuchTask { task })?;
        let state = found.last_run().map_or("queued", |run| run.state.word());
        let wrong = |hint| VerbError::WrongState {
            verb: "retry",
            task,
            state,
            hint,
        };
        match found.outcome() {
            Some(Outcome::Failed(_) | Outcome::Stopped(_) | Outcome::Lost) => {}
            Some(Outcome::Blocked { .. }) => {
                return Err(wrong(
                    "it asks something; `dispatch answer` goes on with it",
                ));
            }
            Some(Outcome::Completed { .. }) => return Err(wrong("it needs no other run")),
            None => return Err(wrong("it has not ended")),
        }
        self.can_run_again("retry", found)?;
        self.can_follow(&found.spec)?;
        let n = u32::try_from(found.runs.len()).unwrap_or(u32::MAX);
        let cause = RunCause::RetryOf { n, by_person: true };
        let run = RunId {
            task,
            n: n.saturating_add(1),
        };
        self.tunes_no_secret(task, &tuning, &secrets)?;
        self.takes_effort(&found.spec.agent, tuning.effort)?;
        self.tune(task, tuning);
        self.secrets.entry(task).or_default().extend(secrets);
        self.queue(run, cause);
        Ok(run)
    }

    /// The task, and what it asked for, and so on: whoever wants an end wants no more work of it.
    fn stop(&mut self, task: TaskId, force: Force, why: &Stop) -> Result<(), VerbError> {
        let mut family = vec![task];
        let mut next = 0;
        while let Some(parent) = family.get(next).copied() {
            next += 1;
            let asker = self.state.task(parent);
            let let_go = |child: TaskId| {
                let child = asker.and_then(|asker| asker.family.child(child));
                child.is_some_and(|child| child.detached)
            };
            let theirs = |other: &&dispatch_core::state::Task| {
                other.spec.parent == Some(parent) && !let_go(other.id)
            };
            let children = self.state.tasks().filter(theirs).map(|child| child.id);
            let new: Vec<_> = children.filter(|id| !family.contains(id)).collect();
            family.extend(new);
        }
        // The end of one may stop another, for which that must not be the second time.
        let stopping: BTreeSet<TaskId> = family
            .iter()
            .copied()
            .filter(|id| self.is_stopping(*id))
            .collect();
        let own = self.stop_one(task, force, why.clone());
        let mut any = own.is_ok();
        for child in family.into_iter().skip(1) {
            if self.is_stopping(child) && !stopping.contains(&child) {
                continue;
            }
            any |= self.stop_one(child, force, why.clone()).is_ok();
        }
        if any { Ok(()) } else { own }
    }

    fn is_stopping(&self, task: TaskId) -> bool {
        let run = self.state.task(task).and_then(|task| task.last_run());
        run.is_some_and(|run| matches!(run.state, RunState::Stopping { .. }))
    }

    fn stop_all(&mut self, force: Force) -> Vec<TaskId> {
        let open = self.state.tasks().filter(|task| !task.is_done());
        let open: Vec<TaskId> = open.map(|task| task.id).collect();
        let stopping: BTreeSet<TaskId> = open
            .iter()
            .copied()
            .filter(|id| self.is_stopping(*id))
            .collect();
        let mut stopped = Vec::new();
        for id in open {
            let with_another = self.is_stopping(id) && !stopping.contains(&id);
            if with_another || self.stop_one(id, force, Stop::ByPerson).is_ok() {
                stopped.push(id);
            }
        }
        stopped
    }

    fn stop_one(&mut self, task: TaskId, force: Force, why: Stop) -> Result<(), VerbError> {
        let found = self
            .state
            .task(task)
            .ok_or(VerbError::NoSuchTask { task })?;
        let Some(run) = found.last_run() else {
            return Err(VerbError::NoSuchTask { task });
        };
        let (id, state) = (RunId { task, n: run.n }, run.state.clone());
        match state {
            RunState::Finished(_) if found.is_parked() => {
                self.end_parking(task, why);
                Ok(())
            }
            RunState::Finished(_) => Err(VerbError::WrongState {
                verb: "stop",
                task,
                state: state.word(),
                hint: "nothing of it runs or waits",
            }),
            RunState::Queued => {
                self.finish(id, Outcome::Stopped(why));
                Ok(())
            }
            RunState::Preparing | RunState::Running | RunState::Checking => {
                self.put(Subject::Run(id), Kind::StopRequested { why });
                self.tell_to_stop(id, force);
                Ok(())
            }
            // The second time is a kill.
            RunState::Stopping { .. } => {
                self.tell_to_stop(id, Force::Kill);
                Ok(())
            }
        }
    }

    fn tell_to_stop(&mut self, run: RunId, force: Force) {
        if self.held.remove(&run).is_some() && !self.orders.contains_key(&run) {
            // It waits for a key and nothing of it runs.
            self.finish(run, Outcome::Stopped(Stop::ByPerson));
            return;
        }
        self.effects.push(Box::new(move |actor| {
            if let Some(orders) = actor.orders.get(&run) {
                match orders.try_send(StopOrder { force }) {
                    // A full queue of stops says the same.
                    Ok(()) | Err(_) => {}
                }
            }
        }));
    }

    /// An end that nobody tries again without a person.
    fn finish(&mut self, run: RunId, outcome: Outcome) {
        self.end(run, outcome, Verified::NotVerified, false);
    }

    /// The end of a run, and what follows from it in the same commit: another run, a pause of its pool,
    /// word for its parent.
    fn end(&mut self, run: RunId, outcome: Outcome, verified: Verified, swept: bool) {
        let config = &self.ctx.settings.config;
        let Some(task) = self.state.task(run.task) else {
            return;
        };
        let (pool, runs_max) = (task.spec.pool.clone(), config.limits.runs_max);
        let outcome = match (outcome, task.last_run().map(|run| &run.state)) {
            // A keeper knows of persons only; the log knows who it was.
            (Outcome::Stopped(Stop::ByPerson), Some(RunState::Stopping { why })) => {
                Outcome::Stopped(why.clone())
            }
            (outcome, _) => outcome,
        };
        let next = if swept && self.shutdown.is_none() {
            schedule::next_after(task, &outcome, &config.gate, runs_max)
        } else {
            Next::Stays
        };
        let (outcome, again) = match next {
            Next::Stays => (outcome, false),
            Next::Again => (outcome, true),
            Next::GivesUp(failure) => (Outcome::Failed(failure), false),
        };
        let paused = self.gate().pause(&pool).map(|pause| pause.until);
        self.held.remove(&run);
        if !self.put(Subject::Run(run), Kind::Finished { outcome, verified }) {
            return;
        }
        if let Some(pause) = self.gate().pause(&pool)
            && paused.is_none_or(|before| before < pause.until)
        {
            let told = Kind::PoolPaused {
                pool,
                until: pause.until,
                reason: pause.reason,
            };
            self.put(Subject::Engine, told);
        }
        if again {
            let (n, by_person) = (run.n, false);
            let next = RunId { n: n + 1, ..run };
            self.queue(next, RunCause::RetryOf { n, by_person });
            return;
        }
        self.go_on(run.task);
        self.family_ended(run);
    }

    /// What the run's agent takes from whoever dispatches and has not been given.
    fn lacks(&self, run: RunId) -> Vec<String> {
        let Some(task) = self.state.task(run.task) else {
            return Vec::new();
        };
        let (name, chain) = (&task.spec.agent, &task.spec.terms.chain);
        let Some(agent) = self.ctx.settings.config.agent_for(name, chain) else {
            return Vec::new();
        };
        let have = self.secrets.get(&run.task);
        let lacking = |(variable, value): (&String, &EnvValue)| match value {
            EnvValue::Taken {
                optional: false, ..
            } => value
                .key(name, variable)
                .filter(|key| !have.is_some_and(|have| have.contains_key(key))),
            EnvValue::Taken { .. } | EnvValue::Literal(_) => None,
        };
        agent.env.iter().filter_map(lacking).collect()
    }

    fn look_for_secrets(&mut self, run: RunId) {
        if let Some(why) = schedule::behind(&self.state, run) {
            self.held.insert(run, why);
            return;
        }
        let lacks = self.lacks(run);
        if lacks.is_empty() {
            self.held.remove(&run);
        } else {
            self.held
                .insert(run, format!("needs {} from you", lacks.join(", ")));
        }
    }

    fn needs(&self) -> Vec<String> {
        let mut needs: Vec<String> = self.held.keys().flat_map(|run| self.lacks(*run)).collect();
        needs.sort();
        needs.dedup();
        needs
    }

    fn provide(&mut self, secrets: &Secrets) {
        let held: Vec<RunId> = self.held.keys().copied().collect();
        for run in held {
            for var in self.lacks(run) {
                if let Some(value) = secrets.get(&var) {
                    self.secrets
                        .entry(run.task)
                        .or_default()
                        .insert(var, value.clone());
                }
            }
            self.look_for_secrets(run);
            let waits = self.held.contains_key(&run);
            let preparing = self
                .state
                .run(run)
                .is_some_and(|r| r.state == RunState::Preparing);
            if !waits && preparing && !self.orders.contains_key(&run) {
                self.effects
                    .push(Box::new(move |actor| actor.supervise(run, run::From::Log)));
            }
        }
    }

    fn supervise(&mut self, run: RunId, from: run::From) {
        let Some(task) = self.state.task(run.task).cloned() else {
            return;
        };
        let recorded = match from {
            run::From::Start => 0,
            run::From::Log => self.store.recorded_offset(run).unwrap_or(0),
        };
        let complete = self.lacks(run).is_empty();
        let secrets = self.secrets.get(&run.task).cloned().unwrap_or_default();
        let (orders, told) = mpsc::channel(4);
        if let Some(RunState::Stopping { .. }) = self.state.run(run).map(|run| &run.state) {
            match orders.try_send(StopOrder { force: Force::Ask }) {
                Ok(()) | Err(_) => {}
            }
        }
        self.orders.insert(run, orders);
        let bell = Arc::new(Notify::new());
        self.bells.insert(run, Arc::clone(&bell));
        let purse = Arc::new(Purse::default());
        self.purses.insert(run, Arc::clone(&purse));
        self.fill_purse(run.task);
        let answers = self.answers_for(&task);
        let job = run::Supervised {
            task,
            run,
            purse,
            answers,
            recorded,
            secrets,
            complete,
            from,
            bell,
        };
        let ctx = self.ctx.clone();
        self.runs
            .spawn(async move { (run, run::supervise(ctx, job, told).await) });
    }

    fn ended(&mut self, joined: Result<(RunId, Ended), tokio::task::JoinError>) {
        match joined {
            Ok((run, ended)) => {
                self.orders.remove(&run);
                self.bells.remove(&run);
                self.purses.remove(&run);
                match ended {
                    Ended::Judged => {}
                    Ended::NeedsSecrets => self.look_for_secrets(run),
                    // The engine is going away; the next one goes on.
                    Ended::Cut => {}
                }
            }
            Err(error) => {
                // A supervisor that panicked is a bug of ours; its run must not hang for ever.
                let text = format!("bug: a supervisor ended: {error}");
                self.put(Subject::Engine, Kind::Noted { text });
                let supervised: Vec<RunId> = self.orders.keys().copied().collect();
                for run in supervised {
                    if self.orders.get(&run).is_some_and(mpsc::Sender::is_closed) {
                        self.orders.remove(&run);
                        self.finish(run, Outcome::Lost);
                    }
                }
            }
        }
    }

    /// Retention: workspaces whose time is over are snapshotted and removed, old snapshots dropped.
    fn clean(&mut self) {
        let retention = self.ctx.settings.config.retention.clone();
        let now = self.now();
        let put_away: Vec<TaskId> = self
            .state
            .tasks()
            .filter(|task| verbs::are_files_over(task, &retention, now))
            .map(|task| task.id)
            .collect();
        for task in put_away {
            self.put(Subject::Task(task), Kind::AttachmentsDropped);
        }
        let due = |task: &&dispatch_core::state::Task| {
            verbs::is_over(task, &retention, now) || verbs::old_snapshot(task, now).is_some()
        };
        let due: Vec<TaskId> = self.state.tasks().filter(due).map(|task| task.id).collect();
        for task in due {
            let (ctx, run) = (self.ctx.clone(), RunId { task, n: 0 });
            self.runs.spawn(async move {
                verbs::retain(&ctx, task, now).await;
                (run, Ended::Judged)
            });
        }
    }
}

/// It would be in the log, in an argv of git and in a path, where nothing can mask it.
fn names_a_secret(spec: &TaskSpec, secrets: &Secrets) -> bool {
    let redactor = Redactor::new(secrets.values().map(Secret::expose));
    let shows = |name: &str| redactor.redact(name) != name;
    let branch = match &spec.base {
        Base::Head | Base::Pr { .. } | Base::Folder | Base::Nothing => false,
        Base::Branch { name } | Base::Default { name } | Base::Tag { name } => shows(name),
    };
    let model = spec.terms.model.as_ref();
    branch
        || model.is_some_and(|name| shows(name.as_str()))
        || shows(&spec.repo)
        || spec
            .workspace
            .as_ref()
            .is_some_and(|name| shows(&name.to_string()))
}

/// The names of files are in the log and in paths.
fn names_no_secret(kept: &Kept, secrets: &Secrets) -> Result<(), VerbError> {
    let redactor = Redactor::new(secrets.values().map(Secret::expose));
    let shows = |name: &str| redactor.redact(name) != name;
    if kept.files().iter().any(|file| shows(file.name.as_str())) {
        let what = "attach a file: its name holds a secret; rename it".to_owned();
        return Err(VerbError::BadInput { what });
    }
    Ok(())
}

/// Of which kind the agent is that is to read what is attached.
fn takes_files<'a>(
    config: &'a Config,
    spec: &'a TaskSpec,
) -> Result<(&'a AgentName, DriverKind), VerbError> {
    let (agent, agents) = (&spec.agent, &config.agents);
    let profile = agents.get(agent).ok_or_else(|| VerbError::BadInput {
        what: format!("attach files: agent {agent} is not configured any more"),
    })?;
    Ok((agent, profile.driver))
}

fn can_attach(
    config: &Config,
    spec: &TaskSpec,
    there: &[attach::Attached],
    files: &[NewFile],
) -> Result<(), VerbError> {
    let sizes = files.iter().map(|file| file.bytes.len() as u64);
    let agent = takes_files(config, spec)?;
    Ok(attach::allowed(&config.limits, agent, there, sizes)?)
}

/// What an agent was given is handed on by us; anything else would be a way to point a child at
/// another provider.
fn agents_bring_no_secrets(verb: &str, secrets: &Secrets) -> Result<(), VerbError> {
    if secrets.is_empty() {
        return Ok(());
    }
    let what =
        format!("{verb} with secrets: a task that an agent asks for gets those of its asker");
    Err(VerbError::BadInput { what })
}

type WithoutFiles = (Secrets, Tuning, Option<RequestKey>);

fn without_files(verb: &str, given: impl Into<Given>) -> Result<WithoutFiles, VerbError> {
    let given = given.into();
    if given.files.is_empty() {
        return Ok((given.secrets, given.tuning, given.key));
    }
    let what = format!("{verb} with files: they come with a task or a message");
    Err(VerbError::BadInput { what })
}

/// A key says which verb it came with, so neither of these can be another's.
fn a_run(made: Made) -> Result<RunId, VerbError> {
    match made {
        Made::Run(run) => Ok(run),
        Made::Message { .. } => Err(VerbError::KeyUsed),
    }
}

fn a_message(made: Made) -> Result<(TaskId, MessageId), VerbError> {
    match made {
        Made::Message { task, message } => Ok((task, message)),
        Made::Run(_) => Err(VerbError::KeyUsed),
    }
}

fn random_id() -> Result<TaskId, VerbError> {
    let mut bits = [0; 8];
    let n = rustix::rand::getrandom(&mut bits, rustix::rand::GetRandomFlags::empty());
    n.map_err(|error| VerbError::Failed {
        doing: "make a task id".to_owned(),
        source: Box::new(error),
    })?;
    Ok(TaskId::from_bits(u64::from_ne_bytes(bits)))
}

fn answer<T>(reply: Reply<T>, value: Result<T, VerbError>) {
    // Whoever asked may have gone.
    drop(reply.send(value));
}

/// For a reader: whether the run's agent has ended without being judged.
pub(crate) fn agent_dir(data: &std::path::Path, run: RunId) -> JobDir {
    let part = dispatch_core::job::Part::Agent;
    JobDir::of(data, &dispatch_core::job::JobId { run, part })
}
