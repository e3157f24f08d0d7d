//! The engine: what it is made of, how it is opened, and the handle that it is reached by. Commands
//! go in to the actor behind it, which alone appends events (I2).
//! Must not know a surface, a person's environment or a home (I7).

mod actor;
mod command;
mod desk;
mod family;
mod handle;
mod looks;
mod purse;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    panic::resume_unwind,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

use dispatch_core::{
    Millis,
    config::Config,
    drivers::DriverKind,
    event::Event,
    id::{AgentName, RunId, Seq, SiteName, TaskId},
    secret::Secret,
    state::{ApplyError, State},
    task::TaskSpec,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    attachments,
    clock::Clock,
    containers::Runtimes,
    door::Door,
    doorkeys::DoorKey,
    events::Logs,
    fence::Fences,
    jobdir::JobDir,
    lock, random,
    run::Ctx,
    sites::{
        Site,
        local::{Keeper, Local},
    },
    store::{Store, StoreError},
    tail::Tail,
    trees::Trees,
    view::{VerbError, Who},
};

use self::actor::{Opened, spawn_actor, who_works};
pub(crate) use self::{
    command::{Command, Reply, StopOrder},
    desk::{Desk, Holder},
    purse::Purse,
};

/// By name; held in memory only.
pub type Secrets = BTreeMap<String, Secret>;

const COMMANDS_MAX: usize = 1024;
/// Events that are read together, and how many times as many are read before they are applied.
const FOLD_CHUNK: usize = 2_000;
const FOLD_AHEAD: usize = 4;

/// What an engine is made of. Nothing else reaches it: no environment, no HOME.
#[derive(Clone, Debug)]
pub struct Settings {
    pub data: PathBuf,
    pub config: Config,
    pub version: String,
    pub git: PathBuf,
    /// What every job gets: PATH, LANG, the toolchains' variables.
    pub job_env: BTreeMap<String, String>,
    /// What a program that a key is read from finds, outside of every fence.
    pub program_env: BTreeMap<String, String>,
    pub keeper: Keeper,
    /// Where bubblewrap lies; without it a cage is Landlock and seccomp.
    pub bwrap: Option<PathBuf>,
    /// Clients of container engines, and what they need of the environment.
    pub runtimes: Runtimes,
    /// Argv of the program that is a run's sidecar, without its plan; empty: there can be none.
    pub sidecar: Vec<String>,
    /// Where agents come in; without it a grant gives nothing.
    pub door: Option<Door>,
    /// A person's own definitions of agents.
    pub definitions: Option<PathBuf>,
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
    Fold(#[from] ApplyError),
    #[error("set up the workspaces: {what}")]
    Trees { what: String },
    #[error("get the key of the agents' tokens in {}: {source}", data.display())]
    DoorKey {
        data: PathBuf,
        #[source]
        source: std::io::Error,
    },
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
        spawn_actor(Opened {
            state,
            store,
            ctx,
            inbox,
            open_now,
            failed_now,
            working_now,
            swept,
            lock,
        });
        let logs = Logs::new(settings.data.clone());
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
}

/// The state of a log. Reading takes longer than applying, so the two are done beside each other.
///
/// # Errors
/// When the log cannot be read, or is not one of ours.
pub(crate) fn fold(store: &Store) -> Result<State, OpenError> {
    thread::scope(|scope| {
        let (chunks, read) = sync_channel::<Vec<Event>>(FOLD_AHEAD);
        let applying = scope.spawn(move || {
            let mut state = State::default();
            for event in read.iter().flatten() {
                state.apply(&event)?;
            }
            Ok::<_, ApplyError>(state)
        });
        let read = read_whole(store, &chunks);
        drop(chunks);
        let applied = applying.join().unwrap_or_else(|bug| resume_unwind(bug));
        let mut state = applied?;
        read?;
        state.step_over(store.last());
        Ok(state)
    })
}

fn read_whole(store: &Store, chunks: &SyncSender<Vec<Event>>) -> Result<(), StoreError> {
    let mut after = 0;
    loop {
        let events = store.read_life(after, FOLD_CHUNK)?;
        let last = events.len() < FOLD_CHUNK;
        after = events.last().map_or(after, |event| event.seq);
        // Nobody listens any more who has met an event that does not fit: that is told instead.
        if chunks.send(events).is_err() || last {
            return Ok(());
        }
    }
}

pub(crate) fn now() -> Millis {
    Clock::System.now()
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

fn random_id() -> Result<TaskId, VerbError> {
    let bits = random::bytes().map_err(|error| VerbError::Failed {
        doing: "make a task id".to_owned(),
        source: Box::new(error),
    })?;
    Ok(TaskId::from_bits(u64::from_ne_bytes(bits)))
}

/// For a reader: whether the run's agent has ended without being judged.
pub(crate) fn agent_dir(data: &std::path::Path, run: RunId) -> JobDir {
    let part = dispatch_core::job::Part::Agent;
    JobDir::of(data, &dispatch_core::job::JobId { run, part })
}
