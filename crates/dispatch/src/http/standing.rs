//! Whether a caller is still who it was when it came: what goes on for long is looked at again, so that
//! a token that is revoked or over, or a run that has ended, has nothing open for long.
//! Must not find out who somebody is: a door has done that.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::{Body, Bytes};
use dispatch_core::Millis;
use dispatch_engine::{clock::Clock, engine::Engine};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::{caller::Caller, tokens::Tokens};

/// How long something goes on before its caller is looked at again.
pub(crate) const LOOK_AGAIN_MS: Millis = 15_000;

#[derive(Debug)]
pub(crate) struct Standing {
    tokens: Tokens,
    engine: Engine,
    clock: Clock,
}

impl Standing {
    pub(crate) fn new(tokens: Tokens, engine: Engine, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            tokens,
            engine,
            clock,
        })
    }

    /// Until when nothing needs to be looked at. `None`: it is nobody any more.
    fn good_until(&self, caller: &Caller) -> Option<Millis> {
        let now = self.clock.now();
        let again = now.saturating_add(LOOK_AGAIN_MS);
        match caller {
            Caller::Own => Some(again),
            Caller::Run(run) => self.engine.is_working(*run).then_some(again),
            Caller::Token { id, .. } => {
                // Tokens that cannot be read let nobody in either.
                let rows = self.tokens.list().ok()?;
                let row = rows.iter().find(|row| row.id == *id)?;
                let until = row.expires_at.unwrap_or(Millis::MAX).min(again);
                (until > now).then_some(until)
            }
        }
    }

    pub(crate) fn is_good(&self, caller: &Caller) -> bool {
        self.good_until(caller).is_some()
    }

    /// Resolves when something may have to be looked at again.
    pub(crate) async fn look_again(&self) {
        let again = self.clock.now().saturating_add(LOOK_AGAIN_MS);
        self.clock.wait(Some(again)).await;
    }

    /// Resolves when the caller is nobody any more: at most [`LOOK_AGAIN_MS`] after that has happened.
    pub(crate) async fn over(self: Arc<Self>, caller: Caller) {
        if caller == Caller::Own {
            return std::future::pending().await;
        }
        while let Some(until) = self.good_until(&caller) {
            self.clock.wait(Some(until)).await;
        }
    }
}

/// The end of a caller, to be waited for.
pub(crate) type Over = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An answer that ends when its caller is nobody any more.
pub(crate) struct Leased {
    body: Body,
    over: Over,
}

impl Leased {
    /// What has a known length is out soon.
    pub(crate) fn body(body: Body, standing: &Arc<Standing>, caller: Caller) -> Body {
        if HttpBody::size_hint(&body).exact().is_some() {
            return body;
        }
        let over = Box::pin(Arc::clone(standing).over(caller));
        Body::new(Self { body, over })
    }
}

impl HttpBody for Leased {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.over.as_mut().poll(cx).is_ready() {
            // It stays over: whoever asks again is told the same.
            self.over = Box::pin(std::future::ready(()));
            return Poll::Ready(None);
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
