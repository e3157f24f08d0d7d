//! Models: one question, one streamed answer, over three wire formats. Written by hand, because an
//! agent depends on what libraries hide: assistant blocks that go back byte for byte, prompts whose
//! beginning never changes, limits told on success, errors with a kind.
//! Must not retry, must not choose another model, must not run anything.
//!
//! * [`sse`] events out of bytes; [`fields`] JSON kept as it was written
//! * [`entry`] a conversation as it is sent; [`body`] a request without a copy of it; [`media`] the
//!   files that are shown in it
//! * [`anthropic`], [`responses`], [`chat`] the wire formats; [`effort`] how hard to think in each
//! * [`ids`] names of calls; [`error`] what went wrong; [`limits`] what the headers say
//! * [`http`] the connection that is kept; [`client`] all of it together

mod anthropic;
mod body;
mod chat;
mod client;
mod effort;
mod entry;
mod error;
mod fields;
#[cfg(test)]
mod golden;
mod http;
mod ids;
mod limits;
mod media;
mod responses;
pub(crate) mod sse;
#[cfg(test)]
mod tests;

pub(crate) use client::{Client, Timers, now};
pub(crate) use entry::{Entry, Origin, Said, ToolResult};
pub(crate) use error::ModelError;
pub(crate) use limits::reset as resets_at;

use dispatch_core::{
    models::{Endpoint, Wire},
    native::{Block, StepEnd, Tokens},
    task::Effort,
};
use serde_json::Value;

use body::Segment;
use ids::CallIds;
use media::Part;
use sse::Event;

/// A tool as a model is told of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ToolSpec {
    pub(crate) name: String,
    pub(crate) help: String,
    pub(crate) schema: Value,
}

/// What a model is asked, but for the conversation itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    pub(crate) endpoint: &'a Endpoint,
    /// None: nothing is said of it.
    pub(crate) effort: Option<Effort>,
    pub(crate) system: &'a str,
    pub(crate) tools: &'a [ToolSpec],
    /// The same for all questions of one conversation.
    pub(crate) session: &'a str,
}

/// What is heard while a model answers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard {
    /// Of a block that is not closed yet.
    Text(String),
    Thinking(String),
    Closed(Block),
    Tokens(Tokens),
    Ended(StepEnd),
}

/// How the answer's events are read. One for each answer.
trait Decode: Send + std::fmt::Debug {
    fn hear(&mut self, event: &Event) -> Result<Vec<Heard>, ModelError>;
    /// The stream is at its end: what is still to be told, or that it broke off.
    fn finish(&mut self) -> Result<Vec<Heard>, ModelError>;
}

fn decoder(wire: Wire, made_ids: String) -> Box<dyn Decode> {
    let ids = CallIds::new(made_ids);
    match wire {
        Wire::Anthropic => Box::new(anthropic::Decoder::new(ids)),
        Wire::Responses => Box::new(responses::Decoder::new(ids)),
        Wire::Chat => Box::new(chat::Decoder::new(ids)),
    }
}

/// One entry of a conversation, in the words of an endpoint; `None`: it has none for it. `parts` are
/// the files of what was said in it.
fn segment(
    origin: &Origin,
    entry: &Entry,
    parts: &[Part],
) -> Result<Option<Segment>, serde_json::Error> {
    match origin.wire {
        Wire::Anthropic => anthropic::segment(origin, entry, parts),
        Wire::Responses => responses::segment(origin, entry, parts),
        Wire::Chat => chat::segment(origin, entry, parts),
    }
}

/// The members that all formats fill alike: tools, and how hard to think. Open at its end.
fn head(
    mut head: Value,
    question: &Question<'_>,
    tool: fn(&ToolSpec) -> Value,
) -> Result<String, serde_json::Error> {
    if !question.tools.is_empty() {
        head["tools"] = question.tools.iter().map(tool).collect();
    }
    for (name, value) in effort::fragment(question.endpoint, question.effort) {
        head[name] = value;
    }
    let mut head = serde_json::to_string(&head)?;
    // The brace that closes it comes behind the conversation.
    head.pop();
    Ok(head)
}

/// Everything of a request's body before its conversation, and what comes after it.
fn frame(question: &Question<'_>) -> Result<(String, &'static str), serde_json::Error> {
    match question.endpoint.wire {
        Wire::Anthropic => anthropic::frame(question),
        Wire::Responses => responses::frame(question),
        Wire::Chat => chat::frame(question),
    }
}
