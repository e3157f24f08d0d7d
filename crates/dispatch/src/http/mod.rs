//! The HTTP API: `routes` is the whole table, `caller` who may, `door` who it is.
//! Must not decide anything about tasks; it decodes, calls a verb of the engine, encodes.

pub(crate) mod caller;
mod door;
pub(crate) mod error;
mod events;
pub(crate) mod family;
mod frames;
mod guesses;
mod letters;
mod listen;
mod metrics;
mod openapi;
mod own;
pub(crate) mod reads;
mod repeats;
mod room;
pub(crate) mod routes;
pub(crate) mod server;
mod stall;
pub(crate) mod standing;
mod strict;
mod summon;
mod tasks;
pub(crate) mod tokens;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use dispatch_core::config::Config;
use dispatch_engine::{clock::Clock, engine::Engine};
use tokio::sync::{Notify, watch};

use crate::settings::Settings;

/// Requests and followers that are being served, so that an idle engine does not leave under them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Busy {
    now: Arc<AtomicUsize>,
    ever: Arc<AtomicUsize>,
}

/// Counts for as long as it lives.
#[derive(Debug)]
pub(crate) struct BusyGuard(Arc<AtomicUsize>);

impl Busy {
    pub(crate) fn enter(&self) -> BusyGuard {
        self.now.fetch_add(1, Ordering::SeqCst);
        self.ever.fetch_add(1, Ordering::SeqCst);
        BusyGuard(self.now.clone())
    }

    /// Served now, and served so far.
    pub(crate) fn count(&self) -> (usize, usize) {
        (
            self.now.load(Ordering::SeqCst),
            self.ever.load(Ordering::SeqCst),
        )
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What every handler gets.
#[derive(Clone, Debug)]
pub(crate) struct Ctx {
    pub(crate) engine: Engine,
    pub(crate) settings: Arc<Settings>,
    pub(crate) config: Arc<Config>,
    /// Where that was read from.
    pub(crate) config_file: std::path::PathBuf,
    pub(crate) data: std::path::PathBuf,
    /// See [`crate::api::Health`].
    pub(crate) on_demand: bool,
    pub(crate) stop: Arc<Notify>,
    pub(crate) closing: watch::Receiver<bool>,
    pub(crate) busy: Busy,
    pub(crate) meter: Arc<metrics::Meter>,
    pub(crate) repeats: Arc<repeats::Repeats>,
    pub(crate) rooms: room::Rooms,
    pub(crate) standing: Arc<standing::Standing>,
}

impl Ctx {
    pub(crate) fn new(engine: Engine, settings: &Settings, closing: watch::Receiver<bool>) -> Self {
        let tokens = tokens::Tokens::of(&settings.paths.data);
        let standing = standing::Standing::new(tokens, engine.clone(), Clock::System);
        Self {
            engine,
            standing,
            config: Arc::new(settings.config.clone()),
            config_file: settings.paths.config.clone(),
            data: settings.paths.data.clone(),
            on_demand: false,
            settings: Arc::new(settings.clone()),
            stop: Arc::default(),
            closing,
            busy: Busy::default(),
            meter: Arc::default(),
            repeats: Arc::default(),
            rooms: room::Rooms::new(&settings.config),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_counts_what_is_served() {
        let busy = Busy::default();
        let (a, b) = (busy.enter(), busy.enter());
        assert_eq!(busy.count(), (2, 2));
        drop(a);
        assert_eq!(busy.count(), (1, 2));
        drop(b);
        assert_eq!(busy.count(), (0, 2));
    }
}
