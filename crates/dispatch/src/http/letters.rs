//! Routes of letters between agents, and of what a task would be.
//! Must not open to the agents of tasks: these `say` something to whoever they may, which is counted,
//! bounded and heard. Letters are for programs that a person lets in.

use axum::{Json, extract::State};
use dispatch_core::letter::Written;
use dispatch_engine::view::VerbError;

use super::{
    Ctx,
    error::{Body, Problem},
};
use crate::{
    api::{
        letter::{Between, Fetch, Inbox, Letter, Letters, Send},
        plan::Plan,
        request,
    },
    plan, project,
};

pub(crate) async fn send(
    State(ctx): State<Ctx>,
    Body(asked): Body<Send>,
) -> Result<Json<Letter>, Problem> {
    let written = Written {
        writer: asked.writer,
        reader: asked.reader,
        subject: asked.subject,
        text: asked.text,
    };
    let sent = ctx.engine.send_letter(asked.workspace, written).await;
    Ok(Json(Letter::from(&sent?)))
}

/// Changes what counts as read, so it is a POST.
pub(crate) async fn fetch(
    State(ctx): State<Ctx>,
    Body(asked): Body<Fetch>,
) -> Result<Json<Inbox>, Problem> {
    let Fetch {
        workspace,
        reader,
        limit,
    } = asked;
    let inbox = ctx.engine.fetch_letters(workspace, reader, limit).await?;
    Ok(Json(Inbox::from(&inbox)))
}

pub(crate) async fn between(
    State(ctx): State<Ctx>,
    Body(asked): Body<Between>,
) -> Result<Json<Letters>, Problem> {
    let names = [asked.agent, asked.with];
    let found = ctx
        .engine
        .letters_between(asked.workspace, names, asked.limit);
    let letters = found.await?.iter().map(Letter::from).collect();
    Ok(Json(Letters { letters }))
}

/// Starts nothing and writes nothing.
pub(crate) async fn planned(
    State(ctx): State<Ctx>,
    Body(mut asked): Body<request::Dispatch>,
) -> Result<Json<Plan>, Problem> {
    // It asks git, and tries out a fence.
    let made = tokio::task::spawn_blocking(move || {
        let settings = &ctx.settings;
        project::fill(&mut asked, &ctx.config, &ctx.config_file)?;
        let files = asked.attachments.clone();
        let spec = asked.spec(&ctx.config)?;
        plan::plan(settings, &spec, &files).map_err(Problem::from)
    });
    Ok(Json(made.await.map_err(VerbError::from)??))
}
