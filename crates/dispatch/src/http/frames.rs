//! What a stream tells, as it goes over the wire: blocks of server-sent events, or messages of a
//! WebSocket with the same words in them.
//! Must not leave out or hold back; what goes out together is the caller's to say.

use axum::extract::ws::Message;
use dispatch_engine::view::Told;
use serde::Serialize;

use crate::api::event::{At, Frame, Live, Open, line};

/// A word, the position to come back to where it has one, and JSON.
struct Parts<'a> {
    word: &'static str,
    id: Option<u64>,
    data: Data<'a>,
}

enum Data<'a> {
    Shared(&'a str),
    Own(String),
}

impl Data<'_> {
    fn text(&self) -> &str {
        match self {
            Self::Shared(text) => text,
            Self::Own(text) => text,
        }
    }
}

/// Plain data of ours always serialises; should it not, the reader sees that something is wrong.
fn json(value: &impl Serialize) -> Data<'static> {
    Data::Own(
        serde_json::to_string(value).unwrap_or_else(|error| format!("{:?}", error.to_string())),
    )
}

fn parts(told: &Told) -> Parts<'_> {
    match told {
        Told::Event(event) => Parts {
            word: "event",
            id: Some(event.seq),
            data: Data::Shared(event.encoded(line)),
        },
        Told::Live(live) => Parts {
            word: Frame::LIVE,
            id: None,
            data: json(&Live::from(&**live)),
        },
        Told::Open { seq, open } => Parts {
            word: Frame::OPEN,
            id: None,
            data: json(&Open::new(*seq, open)),
        },
        Told::At(seq) => Parts {
            word: "at",
            id: Some(*seq),
            data: json(&At { seq: *seq }),
        },
    }
}

/// Lines end with a line feed, and JSON of ours has none in it.
pub(crate) fn block(out: &mut String, told: &Told) {
    let Parts { word, id, data } = parts(told);
    out.push_str("event: ");
    out.push_str(word);
    if let Some(id) = id {
        out.push_str("\nid: ");
        out.push_str(&id.to_string());
    }
    out.push_str("\ndata: ");
    out.push_str(data.text());
    out.push_str("\n\n");
}

/// `{"event":"live","data":{..}}`, with `id` where a block has one.
pub(crate) fn message(told: &Told) -> Message {
    let Parts { word, id, data } = parts(told);
    let data = data.text();
    let text = match id {
        Some(id) => format!("{{\"event\":\"{word}\",\"id\":{id},\"data\":{data}}}"),
        None => format!("{{\"event\":\"{word}\",\"data\":{data}}}"),
    };
    Message::Text(text.into())
}
