//! Server-sent events, read: bytes in, events out.
//! Must not reconnect; whoever reads knows the last position and whether to go on.

use axum::body::Body;
use http_body_util::BodyExt;

use super::ClientError;
use crate::api::event::{Event, Live};

/// An event holds at most one update of an agent, whose lines are cut long before this.
const FRAME_BYTES_MAX: usize = 64 << 20;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard {
    Event(Box<Event>),
    Live(Live),
}

/// Splits a byte stream into events.
#[derive(Debug, Default)]
struct Frames {
    buffer: Vec<u8>,
}

impl Frames {
    /// The next whole frame, with what it holds; comments and unknown events are stepped over.
    fn next(&mut self) -> Option<Result<Heard, ClientError>> {
        loop {
            let end = self.buffer.windows(2).position(|pair| pair == b"\n\n")?;
            let frame: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let text = String::from_utf8_lossy(&frame);
            let (mut kind, mut data) = ("", String::new());
            for line in text.lines() {
                if let Some(value) = line.strip_prefix("event: ") {
                    kind = value;
                } else if let Some(value) = line.strip_prefix("data: ") {
                    data.push_str(value);
                }
            }
            let heard = match kind {
                "event" => serde_json::from_str(&data).map(|event| Heard::Event(Box::new(event))),
                "live" => serde_json::from_str(&data).map(Heard::Live),
                _ => continue,
            };
            return Some(heard.map_err(|error| ClientError::Lost(error.to_string())));
        }
    }
}

#[derive(Debug)]
pub(crate) struct Events {
    body: Body,
    frames: Frames,
}

impl Events {
    pub(crate) fn new(body: Body) -> Self {
        Self {
            body,
            frames: Frames::default(),
        }
    }

    /// `None` when the engine ended the stream. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<Option<Heard>, ClientError> {
        loop {
            if let Some(heard) = self.frames.next() {
                return heard.map(Some);
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(ClientError::Lost(error.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.frames.buffer.extend_from_slice(&data);
                    }
                }
            }
            if self.frames.buffer.len() > FRAME_BYTES_MAX {
                return Err(ClientError::Lost("an event is too long".into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_whole_however_they_are_cut() {
        let text = b": hello\n\nevent: live\ndata: {\"task\":\"a\",\"run\":1,\"text\":\"x\"}\n\n\
            event: event\nid: 4\ndata: {\"seq\":4,\"at\":\"\",\"task\":null,\"run\":null,\"kind\":\"admitted\"}\n\nevent: li";
        let mut frames = Frames::default();
        let mut heard = Vec::new();
        for byte in text {
            frames.buffer.push(*byte);
            while let Some(one) = frames.next() {
                heard.push(one.unwrap());
            }
        }
        assert!(
            matches!(&heard[..], [Heard::Live(live), Heard::Event(event)]
            if live.text == "x" && event.seq == 4 && event.body.is_empty())
        );
    }
}
