//! The log as a stream: history, then live. A slow reader costs no memory: it falls back to the log.
//! Must not leave an event out or tell one twice.

use std::{
    collections::{BTreeSet, VecDeque},
    path::PathBuf,
    sync::Arc,
};

use dispatch_core::{
    event::{Event, Kind},
    id::{RunId, Seq, TaskId},
};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::{
    engine::Engine,
    store::{Store, StoreError},
    view::{Told, Who},
};

const CHUNK: usize = 500;

#[derive(Debug)]
pub struct EventStream {
    data: PathBuf,
    after: Seq,
    history: VecDeque<Arc<Event>>,
    /// The log may hold events between `after` and what comes live.
    behind: bool,
    live: Receiver<Told>,
    /// Only what is about these.
    kin: Option<Kin>,
    over: bool,
}

/// The tasks whose events an agent may see.
#[derive(Debug)]
enum Kin {
    /// Asked for when the first event is: that may take a while, and may be refused.
    Unknown(Engine),
    Known {
        /// The agent's own run, with which its view ends.
        own: Option<RunId>,
        family: BTreeSet<TaskId>,
    },
}

impl Kin {
    /// Whether nothing may be seen after this.
    fn ends_with(&self, told: &Told) -> bool {
        let Self::Known { own: Some(own), .. } = self else {
            return false;
        };
        matches!(told, Told::Event(event)
            if event.subject.run() == Some(*own) && matches!(event.kind, Kind::Finished { .. }))
    }

    fn sees(&mut self, told: &Told) -> bool {
        let Self::Known { family, .. } = self else {
            return false;
        };
        match told {
            Told::Live { run, .. } => family.contains(&run.task),
            Told::Event(event) => {
                let Some(task) = event.subject.task() else {
                    return false;
                };
                if let Kind::TaskCreated { spec, .. } = &event.kind
                    && let Some(asker) = spec.terms.asked_by
                    && family.contains(&asker.task)
                {
                    family.insert(task);
                }
                family.contains(&task)
            }
        }
    }
}

impl EventStream {
    /// Subscribed before the log is read, so that nothing falls between.
    pub(crate) fn new(data: PathBuf, after: Seq, live: Receiver<Told>) -> Self {
        Self {
            data,
            after,
            history: VecDeque::new(),
            behind: true,
            live,
            kin: None,
            over: false,
        }
    }

    /// Only what the agent may see on whose behalf this engine is asked.
    pub(crate) fn of_family(self, engine: Engine) -> Self {
        let kin = Some(Kin::Unknown(engine));
        Self { kin, ..self }
    }

    /// `None` when the engine has ended or its log cannot be read any more, or whoever asks may not.
    pub async fn next(&mut self) -> Option<Told> {
        if let Some(Kin::Unknown(engine)) = &self.kin {
            let own = match engine.who() {
                Who::Person => None,
                Who::Run(run) => Some(run),
            };
            let family = engine.family().await.ok()?;
            self.kin = Some(Kin::Known { own, family });
        }
        loop {
            if self.over {
                return None;
            }
            let told = self.any().await?;
            self.over = self.kin.as_ref().is_some_and(|kin| kin.ends_with(&told));
            if self.kin.as_mut().is_none_or(|kin| kin.sees(&told)) {
                return Some(told);
            }
        }
    }

    async fn any(&mut self) -> Option<Told> {
        loop {
            if let Some(event) = self.history.pop_front() {
                self.after = event.seq;
                return Some(Told::Event(event));
            }
            if self.behind {
                let events = self.read().await.ok()?;
                self.behind = events.len() == CHUNK;
                self.history.extend(events.into_iter().map(Arc::new));
                continue;
            }
            match self.live.recv().await {
                Ok(Told::Event(event)) if event.seq <= self.after => {}
                Ok(Told::Event(event)) if event.seq == self.after + 1 => {
                    self.after = event.seq;
                    return Some(Told::Event(event));
                }
                Ok(Told::Event(_)) | Err(RecvError::Lagged(_)) => self.behind = true,
                Ok(live @ Told::Live { .. }) => return Some(live),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    async fn read(&self) -> Result<Vec<Event>, StoreError> {
        let (data, after) = (self.data.clone(), self.after);
        let read = move || Store::read_only(&data)?.read(after, CHUNK);
        match tokio::task::spawn_blocking(read).await {
            Ok(events) => events,
            // Only at the end of the runtime.
            Err(_) => Ok(Vec::new()),
        }
    }
}
