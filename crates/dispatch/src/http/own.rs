//! Routes of the engine itself: secrets, freeze, health, shutdown.
//! Must not decide anything: each decodes, calls a verb of the engine, encodes.

use axum::{Json, extract::State};

use super::{
    Ctx,
    error::{Body, Problem},
};
use crate::api::{Health, request};

pub(crate) async fn secrets(
    State(ctx): State<Ctx>,
    Body(secrets): Body<request::Secrets>,
) -> Result<Json<()>, Problem> {
    ctx.engine.provide(secrets.0).await?;
    Ok(Json(()))
}

pub(crate) async fn needs(State(ctx): State<Ctx>) -> Result<Json<Vec<String>>, Problem> {
    Ok(Json(ctx.engine.needs().await?))
}

pub(crate) async fn freeze(
    State(ctx): State<Ctx>,
    Body(mut asked): Body<request::Freeze>,
) -> Result<Json<()>, Problem> {
    let place = |repo: String| request::place(&ctx.config, &repo).to_owned();
    asked.repo = asked.repo.map(place);
    ctx.engine.set_frozen(asked.frozen, asked.scope()?).await?;
    Ok(Json(()))
}

pub(crate) async fn health(State(ctx): State<Ctx>) -> Json<Health> {
    Json(Health {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        data: ctx.data,
        on_demand: ctx.on_demand,
    })
}

pub(crate) async fn shutdown(State(ctx): State<Ctx>) -> Json<()> {
    ctx.stop.notify_one();
    Json(())
}
