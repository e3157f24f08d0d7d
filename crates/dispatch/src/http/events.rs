//! The log as server-sent events: history, then live. `event: event` is durable and has an id to
//! resume from; `event: live` is lossy. Must not buffer: a slow reader slows only itself.

use std::convert::Infallible;

use axum::{
    extract::State,
    response::sse::{Event as Sse, KeepAlive, Sse as SseResponse},
};
use dispatch_core::id::TaskId;
use dispatch_engine::{events::EventStream, view::Told};
use futures_util::{Stream, stream};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::watch;

use super::{
    BusyGuard, Ctx, KEEP_ALIVE,
    error::{self, Problem},
};
use crate::api::event::{Event, Live};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    #[serde(default)]
    after: u64,
    #[schemars(with = "Option<String>")]
    task: Option<TaskId>,
}

struct Following {
    events: EventStream,
    task: Option<TaskId>,
    /// Changes when the server closes: followers must not keep it.
    closing: watch::Receiver<bool>,
    /// A watched engine does not leave.
    _busy: BusyGuard,
}

/// The next one that was asked for, as it goes over the wire.
async fn step(mut from: Following) -> Option<(Result<Sse, Infallible>, Following)> {
    loop {
        let told = tokio::select! {
            biased;
            told = from.events.next() => told?,
            _ = from.closing.changed() => return None,
        };
        let about = match &told {
            Told::Event(event) => event.subject.task(),
            Told::Live { run, .. } => Some(run.task),
        };
        if from.task.is_some() && about != from.task {
            continue;
        }
        let sse = match &told {
            Told::Event(event) => Sse::default()
                .event("event")
                .id(event.seq.to_string())
                .json_data(Event::from(event.as_ref())),
            Told::Live { run, text } => Sse::default().event("live").json_data(Live {
                task: run.task.to_string(),
                run: run.n,
                text: text.clone(),
            }),
        };
        // Plain data always serialises; a hole in the log would be worse than an end.
        return Some((Ok(sse.ok()?), from));
    }
}

pub(crate) async fn follow(
    State(ctx): State<Ctx>,
    error::Params(asked): error::Params<Asked>,
) -> Result<SseResponse<impl Stream<Item = Result<Sse, Infallible>>>, Problem> {
    let from = Following {
        events: ctx.engine.events(asked.after),
        task: asked.task,
        closing: ctx.closing.clone(),
        _busy: ctx.busy.enter(),
    };
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(SseResponse::new(stream::unfold(from, step)).keep_alive(keep_alive))
}
