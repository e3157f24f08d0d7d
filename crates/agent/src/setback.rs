//! After a failure of a model: what it says of the key, and what comes next: a wait that everybody can
//! see, another of the chain, or the end.
//! Must not decide by itself: `fallback` does, and this does what it says.

use dispatch_core::{
    Millis,
    models::Endpoint,
    native::{Chunk, Fault},
    secret::Secret,
};

use crate::{
    agent::Agent,
    fallback::Next,
    model::ModelError,
    turn::{Halt, Turn, attend, failed, spread},
};

/// A wait is said again this often, so that nobody takes the agent for dead.
const WAIT_TOLD_EVERY_MS: Millis = 300_000;

impl Turn<'_> {
    /// After a failure: what it says of the key, and what comes next.
    pub(crate) async fn after(
        &mut self,
        error: &ModelError,
        endpoint: &Endpoint,
        key: Option<&Secret>,
    ) -> Result<(), Halt> {
        let now = self.agent.clock.now();
        let renewed = error.renewed && self.chain.renewed();
        if error.fault == Fault::Auth && (renewed || self.key_changed(endpoint, key).await?) {
            return Ok(());
        }
        let why = error.to_string();
        if let Some(out) = self.chain.key_out(error.fault, error.retry_at, &why, now) {
            self.put(out).await?;
        }
        let outs = self.agent.log.conversation.outs.clone();
        let spread = spread(&self.agent.settings.session, self.chain.failures());
        let next = self
            .chain
            .next(error.fault, error.retry_at, &outs, now, spread);
        let attempt = self.chain.failures();
        match next {
            Next::Fail => {
                if let Some(out) = self.chain.given_up(error.fault, &outs, now) {
                    self.put(out).await?;
                }
                Err(failed(error.fault, why, error.retry_at))
            }
            Next::Again { at } => self.wait(at, attempt, error.fault, &why).await,
            Next::Hop { to, at } => {
                if let Some(out) = self.chain.given_up(error.fault, &outs, now) {
                    self.put(out).await?;
                }
                let from = self.chain.choice().clone();
                self.chain.hop(to);
                let to = self.chain.choice().clone();
                let reason = why.clone();
                self.put(Chunk::ModelChanged {
                    from,
                    to,
                    why: reason,
                })
                .await?;
                self.wait(at, attempt, error.fault, &why).await
            }
        }
    }

    /// Before a step: where no key can be asked now, the first to be back is waited for.
    pub(crate) async fn until_usable(&mut self) -> Result<(), Halt> {
        let now = self.agent.clock.now();
        let outs = &self.agent.log.conversation.outs;
        let Some((at, next)) = self.chain.before(outs, now) else {
            return Ok(());
        };
        let why = format!(
            "key {} is out, and no other is there",
            self.chain.choice().key
        );
        match next {
            Next::Fail => Err(failed(Fault::Exhausted, why, Some(at))),
            Next::Again { .. } | Next::Hop { .. } => self.wait(at, 0, Fault::Exhausted, &why).await,
        }
    }

    /// A key that was refused may have been renewed where it comes from.
    async fn key_changed(
        &mut self,
        endpoint: &Endpoint,
        used: Option<&Secret>,
    ) -> Result<bool, Halt> {
        let Agent { inbox, keys, .. } = &mut *self.agent;
        keys.forget(&endpoint.key);
        match attend(inbox, self.deadline, keys.get(endpoint)).await? {
            Ok(now) => Ok(now.as_ref() != used),
            // It was there before; what is wrong now is told when it is asked for.
            Err(_) => Ok(false),
        }
    }

    /// Waits where everybody can see until when, and for what.
    async fn wait(
        &mut self,
        at: Millis,
        attempt: u32,
        fault: Fault,
        why: &str,
    ) -> Result<(), Halt> {
        loop {
            let left = at.saturating_sub(self.agent.clock.now());
            if left == 0 {
                return Ok(());
            }
            let why = why.to_owned();
            self.put(Chunk::Waiting {
                at,
                attempt,
                fault,
                why,
            })
            .await?;
            let Agent { inbox, clock, .. } = &mut *self.agent;
            let nap = clock.sleep(left.min(WAIT_TOLD_EVERY_MS));
            attend(inbox, self.deadline, nap).await?;
        }
    }
}
