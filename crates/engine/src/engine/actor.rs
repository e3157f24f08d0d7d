//! The actor behind the handle: it alone appends events (I2). It applies a batch in memory, commits
//! it, and only then lets its effects out.
//! Must not wait for anything but its channel and its disk; whatever takes long is a run's.

mod again;
mod append;
mod asks;
mod commands;
mod dispatch;
mod family;
mod gate;
mod letters;
mod messages;
mod once;
mod runs;
mod sayers;
mod secrets;
mod stop;
mod views;
mod waits;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use dispatch_core::{
    Millis,
    event::{Event, Kind, Subject},
    id::{RunId, TaskId},
    schedule::{Held, Host},
    state::{Run, State},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};

use super::{
    Secrets,
    command::{Command, Reply, StopOrder, answer},
    purse::Purse,
};
use crate::{
    lock::EngineLock,
    run::{self, Ctx, Ended},
    store::Store,
    tail,
    view::VerbError,
};

use self::{messages::Recall, sayers::Sayer, waits::Waiter};

const BATCH_MAX: usize = 512;
const DAY_MS: u64 = 24 * 3600 * 1000;

#[expect(
    clippy::disallowed_methods,
    reason = "the actor is the one task nobody waits for"
)]
pub(super) fn spawn_actor(opened: Opened) {
    tokio::spawn(Actor::new(opened).run());
}

/// Runs whose agent may come to our door.
pub(super) fn who_works(state: &State) -> BTreeSet<RunId> {
    let works = |run: &RunId| state.run(*run).is_some_and(Run::may_knock);
    state.live().filter(works).collect()
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
    /// Who waits for a message that an agent is asked to give back.
    recalls: Vec<Recall>,
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

/// What opening an engine has found and made, for its actor.
pub(super) struct Opened {
    pub(super) state: State,
    pub(super) store: Store,
    pub(super) ctx: Ctx,
    pub(super) inbox: mpsc::Receiver<Command>,
    pub(super) open_now: watch::Sender<usize>,
    pub(super) failed_now: watch::Sender<Option<String>>,
    pub(super) working_now: watch::Sender<BTreeSet<RunId>>,
    /// Whether what a crash left of attachments is gone.
    pub(super) swept: std::io::Result<()>,
    pub(super) lock: EngineLock,
}

impl Actor {
    fn new(opened: Opened) -> Self {
        let tail = Arc::clone(&opened.ctx.tail);
        Self {
            state: opened.state,
            store: opened.store,
            ctx: opened.ctx,
            inbox: opened.inbox,
            open_now: opened.open_now,
            failed_now: opened.failed_now,
            working_now: opened.working_now,
            runs: JoinSet::new(),
            orders: HashMap::new(),
            bells: HashMap::new(),
            sayers: Vec::new(),
            recalls: Vec::new(),
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
            swept: opened.swept,
            _ends: tail::Ends(tail),
            _lock: opened.lock,
        }
    }

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
                // Whoever comes behind the end is the next engine's.
                if self.shutdown.is_some() {
                    break;
                }
                let Ok(command) = self.inbox.try_recv() else {
                    break;
                };
                self.handle(command);
            }
            if !self.settle().await {
                return;
            }
        }
        self.let_sayers_go();
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
            self.answer_recalls();
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

    fn now(&self) -> Millis {
        self.ctx.settings.clock.now()
    }

    fn reply_later<T: Send + 'static>(&mut self, reply: Reply<T>, value: Result<T, VerbError>) {
        self.effects.push(Box::new(move |_| answer(reply, value)));
    }
}
