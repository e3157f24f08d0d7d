//! The log as a stream: history, then live. A slow reader costs no memory: it falls back to the log.
//! Must not leave an event out or tell one twice.

use std::{collections::VecDeque, path::PathBuf, sync::Arc};

use dispatch_core::{event::Event, id::Seq};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::{
    store::{Store, StoreError},
    view::Told,
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
        }
    }

    /// `None` when the engine has ended or its log cannot be read any more.
    pub async fn next(&mut self) -> Option<Told> {
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
