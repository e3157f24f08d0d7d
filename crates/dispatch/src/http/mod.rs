//! The HTTP API over a unix socket: `app` is the whole table of routes.
//! Must not decide anything about tasks; it decodes, calls a verb of the engine, encodes.

mod error;
mod events;
pub(crate) mod server;
mod tasks;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::{delete, get, post},
};
use dispatch_core::config::Config;
use dispatch_engine::engine::Engine;
use tokio::sync::{Notify, watch};

use crate::api::{Health, request};
use error::{Body, Problem};

/// Texts are limited by `limits.task_bytes`; secrets and JSON quoting come on top, and so do files
/// where they can be attached.
const BODY_BYTES_MAX: usize = 4 << 20;

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
    pub(crate) config: Arc<Config>,
    /// Where that was read from.
    pub(crate) config_file: std::path::PathBuf,
    pub(crate) data: std::path::PathBuf,
    pub(crate) stop: Arc<Notify>,
    pub(crate) closing: watch::Receiver<bool>,
    pub(crate) busy: Busy,
}

pub(crate) fn app(ctx: Ctx) -> Router {
    let with_files = DefaultBodyLimit::max(body_bytes_max(ctx.config.limits.attach_bytes));
    Router::new()
        .route(
            "/v1/tasks",
            post(tasks::dispatch).layer(with_files).get(tasks::all),
        )
        .route("/v1/tasks/{id}", get(tasks::one).delete(tasks::remove))
        .route("/v1/tasks/{id}/answer", post(tasks::answer))
        .route("/v1/tasks/{id}/retry", post(tasks::retry))
        .route("/v1/tasks/{id}/resume", post(tasks::resume))
        .route("/v1/tasks/{id}/say", post(tasks::say).layer(with_files))
        .route("/v1/tasks/{id}/messages/{message}", delete(tasks::unsay))
        .route("/v1/tasks/{id}/asks/{ask}", post(tasks::permit))
        .route("/v1/tasks/{id}/stop", post(tasks::stop))
        .route("/v1/stop", post(tasks::stop_all))
        .route("/v1/tasks/{id}/undo", post(tasks::undo))
        .route("/v1/tasks/{id}/apply", post(tasks::apply))
        .route("/v1/tasks/{id}/diff", get(tasks::diff))
        .route("/v1/clean", post(tasks::clean))
        .route("/v1/events", get(events::follow))
        .route("/v1/secrets", post(secrets))
        .route("/v1/needs", get(needs))
        .route("/v1/freeze", post(freeze))
        .route("/v1/health", get(health))
        .route("/v1/shutdown", post(shutdown))
        .fallback(error::no_route)
        .layer(from_fn_with_state(ctx.clone(), count))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(ctx)
}

/// Base64 has four characters for three bytes. One file too many is told by its own error, so there is
/// room for more than is allowed.
fn body_bytes_max(attach_bytes: u64) -> usize {
    let files = usize::try_from(attach_bytes).unwrap_or(usize::MAX);
    BODY_BYTES_MAX.saturating_add(files.saturating_mul(2))
}

async fn count(State(ctx): State<Ctx>, request: Request, next: Next) -> Response {
    let guard = ctx.busy.enter();
    let response = next.run(request).await;
    drop(guard);
    response
}

async fn secrets(
    State(ctx): State<Ctx>,
    Body(secrets): Body<request::Secrets>,
) -> Result<Json<()>, Problem> {
    ctx.engine.provide(secrets.0).await?;
    Ok(Json(()))
}

async fn needs(State(ctx): State<Ctx>) -> Result<Json<Vec<String>>, Problem> {
    Ok(Json(ctx.engine.needs().await?))
}

async fn freeze(
    State(ctx): State<Ctx>,
    Body(mut asked): Body<request::Freeze>,
) -> Result<Json<()>, Problem> {
    let place = |repo: String| request::place(&ctx.config, &repo).to_owned();
    asked.repo = asked.repo.map(place);
    ctx.engine.set_frozen(asked.frozen, asked.scope()?).await?;
    Ok(Json(()))
}

async fn health(State(ctx): State<Ctx>) -> Json<Health> {
    Json(Health {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        data: ctx.data,
    })
}

async fn shutdown(State(ctx): State<Ctx>) -> Json<()> {
    ctx.stop.notify_one();
    Json(())
}

/// How often a silent stream says that it lives.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);

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
