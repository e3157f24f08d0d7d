//! The time, and waiting for it. Tests have a clock that jumps instead of waiting, so that what takes
//! hours takes none there.
//! Must not be used for limits of what happens outside: those are the runtime's own timers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dispatch_core::Millis;

use crate::model::now;

#[derive(Clone, Debug, Default)]
pub(crate) struct Clock {
    ahead_ms: Arc<AtomicU64>,
    jumps: bool,
}

impl Clock {
    #[cfg(test)]
    pub(crate) fn jumping() -> Self {
        Self {
            jumps: true,
            ..Self::default()
        }
    }

    pub(crate) fn now(&self) -> Millis {
        now() + self.ahead_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn jump(&self, by_ms: Millis) {
        self.ahead_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// May be dropped while it waits.
    pub(crate) async fn sleep(&self, by_ms: Millis) {
        if self.jumps {
            self.jump(by_ms);
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(Duration::from_millis(by_ms)).await;
        }
    }
}
