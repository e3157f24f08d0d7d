//! The log as a stream: history, then live. A slow reader costs no memory: it falls back to the log.
//! Must not leave an event out or tell one twice; of what is lossy nothing comes before what was open.

use std::{
    collections::{BTreeSet, VecDeque},
    path::PathBuf,
    sync::Arc,
};

use dispatch_core::id::{Seq, TaskId};
use tokio::sync::{Mutex, watch};

use crate::{
    store::{Page, Store, StoreError},
    tail::{Place, Snapshot, Tail},
    view::{Logged, Told},
};

/// What a stream holds for its reader, beside one event more and what is open in live runs.
const HELD_BYTES_MAX: usize = 128 << 10;
const HELD_MAX: usize = 500;

/// The log as all streams read it: one at a time, through one connection.
#[derive(Clone, Debug)]
pub(crate) struct Logs {
    data: PathBuf,
    store: Arc<Mutex<Option<Store>>>,
}

impl Logs {
    pub(crate) fn new(data: PathBuf) -> Self {
        Self {
            data,
            store: Arc::new(Mutex::new(None)),
        }
    }

    async fn read(
        &self,
        after: Seq,
        tasks: Option<Arc<BTreeSet<TaskId>>>,
    ) -> Result<Page, StoreError> {
        let data = self.data.clone();
        let mut store = Arc::clone(&self.store).lock_owned().await;
        let read = move || {
            let opened = match store.take() {
                Some(opened) => opened,
                None => Store::read_only(&data)?,
            };
            let page = opened.read_page(after, tasks.as_deref(), HELD_MAX, HELD_BYTES_MAX)?;
            *store = Some(opened);
            Ok(page)
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(page) => page,
            // Only at the end of the runtime.
            Err(_) => Ok(Page::nothing(after)),
        }
    }
}

/// Which frames about open texts a stream still owes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owes {
    Nothing,
    /// Before anything live.
    AtOnce,
    /// It has fallen behind and some of what is lossy is lost: when it has nothing else to tell, so
    /// that a reader who never keeps up is not burdened with it again and again.
    WhenIdle,
}

#[derive(Debug)]
pub struct EventStream {
    logs: Logs,
    tail: Arc<Tail>,
    grown: watch::Receiver<()>,
    /// All events up to here have been told or are held.
    after: Seq,
    /// Only of these.
    tasks: Option<Arc<BTreeSet<TaskId>>>,
    /// Where it is in memory; `None`: in the log.
    place: Option<Place>,
    /// Only events are told.
    plain: bool,
    owes: Owes,
    /// What was open when it caught up, to be told at its place.
    joining: Option<Snapshot>,
    held: VecDeque<Told>,
}

/// What came of a look into memory.
enum Look {
    Found,
    Nothing,
    Behind,
}

impl EventStream {
    pub(crate) fn new(logs: Logs, tail: Arc<Tail>, after: Seq) -> Self {
        Self {
            logs,
            grown: tail.grown(),
            tail,
            after,
            tasks: None,
            place: None,
            plain: true,
            owes: Owes::Nothing,
            joining: None,
            held: VecDeque::new(),
        }
    }

    /// With all that is told beside events.
    pub(crate) fn watching(mut self, tasks: Option<BTreeSet<TaskId>>) -> Self {
        self.plain = false;
        self.owes = Owes::AtOnce;
        self.tasks = tasks.map(Arc::new);
        self
    }

    /// All events up to here have been told, of those that are asked for; `None` while some are held.
    #[must_use]
    pub fn position(&self) -> Option<Seq> {
        self.held.is_empty().then_some(self.after)
    }

    /// `None` when the engine has ended or its log cannot be read any more. Safe to cancel.
    pub async fn next(&mut self) -> Option<Told> {
        loop {
            self.grown.mark_unchanged();
            // Asked before the look: what is told before the end is there.
            let ended = self.tail.has_ended();
            if let Some(told) = self.next_ready() {
                return Some(told);
            }
            if self.place.is_none() {
                self.read_log().await.ok()?;
            } else if ended {
                return None;
            } else {
                self.grown.changed().await.ok()?;
            }
        }
    }

    /// The same without waiting, as far as memory goes.
    pub fn next_ready(&mut self) -> Option<Told> {
        loop {
            if let Some(told) = self.held.pop_front() {
                return Some(told);
            }
            match self.look(self.place?) {
                Look::Found => {}
                Look::Nothing => return None,
                Look::Behind => {
                    (self.place, self.joining) = (None, None);
                    if self.owes == Owes::Nothing && !self.plain {
                        self.owes = Owes::WhenIdle;
                    }
                }
            }
        }
    }

    async fn read_log(&mut self) -> Result<(), StoreError> {
        let page = self.logs.read(self.after, self.tasks.clone()).await?;
        self.after = page.upto;
        let events = page.events.into_iter();
        let events = events.map(|(event, json)| Told::Event(Arc::new(Logged::new(event, json))));
        self.held.extend(events);
        self.place = self.tail.find(self.after);
        Ok(())
    }

    /// Takes up what memory has behind `place`.
    fn look(&mut self, place: Place) -> Look {
        if self.owes == Owes::AtOnce && self.joining.is_none() {
            self.joining = Some(self.tail.snapshot());
        }
        let until = self.joining.as_ref().map(|join| join.place);
        if until.is_some_and(|until| until <= place) {
            return self.join();
        }
        // What is live before the join is in what is open there.
        let live = !self.plain && until.is_none();
        let (mut after, held) = (self.after, &mut self.held);
        let tasks = self.tasks.as_deref();
        let found = self.tail.read(place, until, HELD_BYTES_MAX, |told| {
            let wanted = match told {
                Told::Event(event) => {
                    let news = event.seq > after;
                    after = after.max(event.seq);
                    news
                }
                Told::Live(_) | Told::Open { .. } | Told::At(_) => live,
            };
            if wanted && is_of(told, tasks) {
                held.push_back(told.clone());
            }
        });
        let Some(next) = found else {
            return Look::Behind;
        };
        self.after = after;
        self.place = Some(next);
        if next > place {
            return Look::Found;
        }
        if self.owes == Owes::WhenIdle {
            self.joining = self.tail.snapshot_at(place);
            return Look::Found;
        }
        Look::Nothing
    }

    fn join(&mut self) -> Look {
        if let Some(Snapshot { seq, open, .. }) = self.joining.take() {
            let tasks = self.tasks.as_deref();
            let open = open.into_iter().map(|open| Told::Open { seq, open });
            let open = open.filter(|told| is_of(told, tasks));
            self.held.extend(open);
            self.held.push_back(Told::At(seq));
            self.owes = Owes::Nothing;
        }
        Look::Found
    }
}

fn is_of(told: &Told, tasks: Option<&BTreeSet<TaskId>>) -> bool {
    let task = match told {
        Told::Event(event) => event.subject.task(),
        Told::Live(live) => Some(live.run.task),
        Told::Open { open, .. } => Some(open.run.task),
        Told::At(_) => return true,
    };
    tasks.is_none_or(|tasks| task.is_some_and(|task| tasks.contains(&task)))
}
