//! The log as a stream over HTTP, as server-sent events or over a WebSocket: history, then what is open,
//! then live. Frames and how they compose: docs/events.md.
//! Must not buffer: a slow reader slows only itself, and one that takes nothing is cut off (`stall`).

use std::{collections::BTreeSet, convert::Infallible, future::ready, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::ws::{Message, WebSocket, WebSocketUpgrade},
    http::{
        HeaderMap,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use dispatch_core::{
    event::Kind,
    family::Deed,
    id::{Seq, TaskId},
};
use dispatch_engine::{events::EventStream, view::Told};
use futures_util::{SinkExt as _, StreamExt as _, stream};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    BusyGuard, Ctx,
    caller::Caller,
    error::{Code, Params, Problem},
    family::Acting,
    frames,
    room::Portion,
    standing::Over,
};
use crate::api::event::Frame;

/// Tasks that one stream can name.
const TASKS_MAX: usize = 100;
/// What goes out together, when so much is there.
const BATCH_BYTES_MAX: usize = 32 << 10;
/// How often a silent stream says that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How soon a browser comes back by itself.
const RETRY: &str = "retry: 1000\n\n";
/// A client has nothing to say here; what it says all the same is read and dropped.
const HEARD_BYTES_MAX: usize = 4 << 10;
/// The position in a header, as browsers send it when they come back.
const LAST_EVENT_ID: &str = "last-event-id";

/// From where, and of what.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(try_from = "Vec<(String, String)>")]
pub(crate) struct Asked {
    after: Seq,
    tasks: Option<BTreeSet<TaskId>>,
    kinds: Option<BTreeSet<&'static str>>,
}

/// The same for a document.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "read as a schema only")]
struct AskedShape {
    /// Only what came after this event.
    #[serde(default)]
    after: u64,
    /// Whole ids, with commas between them or as several parameters: only of these tasks.
    task: Option<Vec<String>>,
    /// Words of events, `live` and `open`, likewise: only these.
    kinds: Option<Vec<String>>,
}

impl JsonSchema for Asked {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "EventsAsked".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        AskedShape::json_schema(generator)
    }
}

impl TryFrom<Vec<(String, String)>> for Asked {
    type Error = String;

    fn try_from(pairs: Vec<(String, String)>) -> Result<Self, String> {
        let mut asked = Self::default();
        let mut known_after = false;
        for (name, value) in pairs {
            let words = || value.split(',').filter(|word| !word.is_empty());
            match name.as_str() {
                "after" if known_after => return Err("after is there twice".into()),
                "after" => {
                    known_after = true;
                    asked.after = position(&value)?;
                }
                "task" => {
                    let tasks = asked.tasks.get_or_insert_default();
                    for word in words() {
                        tasks.insert(word.parse().map_err(|error| format!("task: {error}"))?);
                    }
                    if tasks.len() > TASKS_MAX {
                        return Err(format!("there are more than {TASKS_MAX} tasks"));
                    }
                }
                "kinds" => {
                    let kinds = asked.kinds.get_or_insert_default();
                    for word in words() {
                        kinds.insert(kind(word)?);
                    }
                }
                other => {
                    return Err(format!(
                        "there is no parameter {other:?}; there are after, task, kinds"
                    ));
                }
            }
        }
        Ok(asked)
    }
}

fn position(text: &str) -> Result<Seq, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let parsed = text.parse().ok().filter(|_| digits);
    parsed.ok_or_else(|| format!("a position is the number of an event, and {text:?} is none"))
}

fn kind(word: &str) -> Result<&'static str, String> {
    let there = || Kind::WORDS.into_iter().chain([Frame::LIVE, Frame::OPEN]);
    there().find(|known| *known == word).ok_or_else(|| {
        let there: Vec<&str> = there().collect();
        let there = there.join(", ");
        format!("there are no events of kind {word:?}; there are {there}")
    })
}

/// One subscription, whatever carries it.
struct Following {
    events: EventStream,
    kinds: Option<BTreeSet<&'static str>>,
    /// The position that was told last.
    told: Seq,
    silent_at: Instant,
    /// Resolves when whoever follows is nobody any more.
    over: Over,
    /// Changes when the server closes: followers must not keep it.
    closing: watch::Receiver<bool>,
    /// A watched engine does not leave.
    _busy: BusyGuard,
    _place: Portion,
}

/// What is to be sent next.
enum Next {
    Told(Told),
    /// Nothing has come for a while.
    Silence,
}

impl Following {
    async fn new(ctx: &Ctx, caller: &Caller, asked: Asked) -> Result<Self, Problem> {
        let place = ctx.rooms.streams.take(caller, 1)?;
        let last = ctx.engine.seq();
        if asked.after > last {
            let detail = format!(
                "follow events after {}: the log ends at {last}, so that position is of another \
                 log; begin again",
                asked.after
            );
            return Err(Problem::new(Code::NoSuchPosition, detail));
        }
        ctx.engine.may(Deed::Events).await?;
        for task in asked.tasks.iter().flatten() {
            ctx.engine.task(*task).await?;
        }
        Ok(Self {
            events: ctx.engine.watch(asked.after, asked.tasks),
            kinds: asked.kinds,
            told: asked.after,
            silent_at: Instant::now() + KEEP_ALIVE,
            closing: ctx.closing.clone(),
            _busy: ctx.busy.enter(),
            _place: place,
            over: Box::pin(Arc::clone(&ctx.standing).over(caller.clone())),
        })
    }

    fn wants(&self, told: &Told) -> bool {
        let word = match told {
            Told::Event(event) => event.kind.word(),
            Told::Live(_) => Frame::LIVE,
            Told::Open { .. } => Frame::OPEN,
            Told::At(_) => return true,
        };
        self.kinds.as_ref().is_none_or(|kinds| kinds.contains(word))
    }

    fn sends(&mut self, told: &Told) {
        self.silent_at = Instant::now() + KEEP_ALIVE;
        match told {
            Told::Event(event) => self.told = event.seq,
            Told::At(seq) => self.told = *seq,
            Told::Live(_) | Told::Open { .. } => {}
        }
    }

    /// `None`: the server closes, the engine has ended, or the caller is nobody any more. Safe to cancel.
    async fn next(&mut self) -> Option<Next> {
        loop {
            let told = tokio::select! {
                biased;
                _ = self.closing.changed() => return None,
                () = &mut self.over => {
                    // It is asked again by whoever has not understood.
                    self.over = Box::pin(ready(()));
                    return None;
                }
                told = self.events.next() => told?,
                () = sleep_until(self.silent_at) => return Some(self.silence()),
            };
            if self.wants(&told) {
                self.sends(&told);
                return Some(Next::Told(told));
            }
        }
    }

    /// What was passed over need not be looked at again by whoever comes back.
    fn silence(&mut self) -> Next {
        self.silent_at = Instant::now() + KEEP_ALIVE;
        match self.events.position() {
            Some(seq) if seq > self.told => {
                self.told = seq;
                Next::Told(Told::At(seq))
            }
            Some(_) | None => Next::Silence,
        }
    }

    fn next_ready(&mut self) -> Option<Told> {
        loop {
            let told = self.events.next_ready()?;
            if self.wants(&told) {
                self.sends(&told);
                return Some(told);
            }
        }
    }
}

/// What is there, in one piece.
async fn blocks(mut from: Following) -> Option<(Result<Bytes, Infallible>, Following)> {
    let mut out = String::new();
    match from.next().await? {
        Next::Told(told) => frames::block(&mut out, &told),
        Next::Silence => out.push_str(":\n\n"),
    }
    while out.len() < BATCH_BYTES_MAX
        && let Some(told) = from.next_ready()
    {
        frames::block(&mut out, &told);
    }
    Some((Ok(out.into()), from))
}

/// An answer that goes on.
#[derive(Debug)]
pub(crate) struct Blocks(Body);

impl IntoResponse for Blocks {
    fn into_response(self) -> Response {
        let headers = [
            (CONTENT_TYPE, "text/event-stream"),
            (CACHE_CONTROL, "no-cache"),
        ];
        (headers, self.0).into_response()
    }
}

pub(crate) async fn follow(
    Acting(ctx): Acting,
    caller: Caller,
    headers: HeaderMap,
    Params(mut asked): Params<Asked>,
) -> Result<Blocks, Problem> {
    if let Some(last) = headers.get(LAST_EVENT_ID) {
        let last = String::from_utf8_lossy(last.as_bytes());
        asked.after = position(&last)
            .map_err(|what| Problem::new(Code::BadQuery, format!("read Last-Event-ID: {what}")))?;
    }
    let from = Following::new(&ctx, &caller, asked).await?;
    let first = stream::iter([Ok::<_, Infallible>(Bytes::from_static(RETRY.as_bytes()))]);
    let blocks = first.chain(stream::unfold(from, blocks));
    Ok(Blocks(Body::from_stream(blocks)))
}

/// A connection that has become a WebSocket.
#[derive(Debug)]
pub(crate) struct Upgraded(Response);

impl IntoResponse for Upgraded {
    fn into_response(self) -> Response {
        self.0
    }
}

pub(crate) async fn socket(
    Acting(ctx): Acting,
    caller: Caller,
    Params(asked): Params<Asked>,
    upgrade: WebSocketUpgrade,
) -> Result<Upgraded, Problem> {
    let from = Following::new(&ctx, &caller, asked).await?;
    let upgrade = upgrade
        .max_message_size(HEARD_BYTES_MAX)
        .max_frame_size(HEARD_BYTES_MAX)
        .read_buffer_size(HEARD_BYTES_MAX)
        // And one message more: the next is taken when this much has been written.
        .write_buffer_size(BATCH_BYTES_MAX);
    Ok(Upgraded(
        upgrade.on_upgrade(move |socket| messages(socket, from)),
    ))
}

/// Until either side has had enough.
async fn messages(socket: WebSocket, mut from: Following) {
    let (mut out, mut heard) = socket.split();
    loop {
        let next = tokio::select! {
            next = from.next() => next,
            heard = heard.next() => match heard {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
        };
        let Some(next) = next else {
            // How it is taken is the other side's.
            out.close().await.ok();
            return;
        };
        let mut closing = from.closing.clone();
        let sent = tokio::select! {
            sent = send(&mut out, next, &mut from) => sent,
            _ = closing.changed() => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn send(
    out: &mut stream::SplitSink<WebSocket, Message>,
    next: Next,
    from: &mut Following,
) -> Result<(), axum::Error> {
    let Next::Told(told) = next else {
        return out.send(Message::Ping(Bytes::new())).await;
    };
    let mut bytes = 0;
    let mut next = Some(told);
    while let Some(told) = next {
        let message = frames::message(&told);
        bytes += match &message {
            Message::Text(text) => text.len(),
            _ => 0,
        };
        out.feed(message).await?;
        next = if bytes < BATCH_BYTES_MAX {
            from.next_ready()
        } else {
            None
        };
    }
    out.flush().await
}

#[cfg(test)]
mod tests;
