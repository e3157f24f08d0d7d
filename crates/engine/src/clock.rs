//! What time it is, and waking up at a time: the system's, or one that a test sets.
//! Must not be asked by anything that decides: a decision is handed its time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use dispatch_core::Millis;
use tokio::sync::watch;

/// A wall clock can be set while we sleep: it is looked at again after this at the latest.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug, Default)]
pub enum Clock {
    #[default]
    System,
    Set(SetClock),
}

/// Shows what it is told, and wakes whoever waits for that.
#[derive(Clone, Debug)]
pub struct SetClock {
    now: Arc<AtomicU64>,
    changed: watch::Sender<()>,
}

impl SetClock {
    #[must_use]
    pub fn at(now: Millis) -> Self {
        Self {
            now: Arc::new(AtomicU64::new(now)),
            changed: watch::Sender::new(()),
        }
    }

    #[must_use]
    pub fn now(&self) -> Millis {
        self.now.load(Ordering::SeqCst)
    }

    pub fn set(&self, now: Millis) {
        self.now.store(now, Ordering::SeqCst);
        self.changed.send_replace(());
    }
}

impl Clock {
    #[must_use]
    pub fn now(&self) -> Millis {
        match self {
            Self::System => system_now(),
            Self::Set(clock) => clock.now(),
        }
    }

    /// Resolves at `at`, or earlier: whoever waits looks at the clock again. Never for `None`.
    pub async fn wait(&self, at: Option<Millis>) {
        let Some(at) = at else {
            return std::future::pending().await;
        };
        match self {
            Self::System => {
                let left = Duration::from_millis(at.saturating_sub(system_now()));
                tokio::time::sleep(left.min(SLEEP_MAX)).await;
            }
            Self::Set(clock) => {
                let mut changed = clock.changed.subscribe();
                while clock.now() < at {
                    // It cannot end while we hold its sender.
                    if changed.changed().await.is_err() {
                        return std::future::pending().await;
                    }
                }
            }
        }
    }
}

fn system_now() -> Millis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
