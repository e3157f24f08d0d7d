//! Server-sent events, read: bytes in, frames out.
//! Must not reconnect; whoever reads knows the last position and whether to go on.

use axum::body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep_until};

use super::ClientError;
use crate::api::event::Frame;

/// An event holds at most one update of an agent, whose lines are cut long before this.
const FRAME_BYTES_MAX: usize = 64 << 20;

pub(crate) use crate::api::event::Frame as Heard;

/// Splits a byte stream into frames.
#[derive(Debug, Default)]
struct Frames {
    buffer: Vec<u8>,
    /// Read already.
    read: usize,
    /// Looked at for an end already.
    looked: usize,
}

impl Frames {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.looked -= self.read;
        self.read = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, with what it holds; comments and unknown events are stepped over.
    fn next(&mut self) -> Option<Result<Heard, ClientError>> {
        loop {
            let rest = &self.buffer[self.looked..];
            let Some(end) = rest.windows(2).position(|pair| pair == b"\n\n") else {
                // The first half of an end may be there.
                let whole = self.buffer.len().saturating_sub(1);
                self.looked = whole.max(self.looked);
                return None;
            };
            let (from, end) = (self.read, self.looked + end);
            (self.read, self.looked) = (end + 2, end + 2);
            let text = String::from_utf8_lossy(&self.buffer[from..end]);
            let (mut word, mut data) = ("", String::new());
            for line in text.lines() {
                if let Some(value) = line.strip_prefix("event: ") {
                    word = value;
                } else if let Some(value) = line.strip_prefix("data: ") {
                    data.push_str(value);
                }
            }
            if let Some(frame) = Frame::parse(word, &data) {
                return Some(frame.map_err(|error| ClientError::Lost(error.to_string())));
            }
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
                        self.frames.push(&data);
                    }
                }
            }
            if self.frames.buffer.len() > FRAME_BYTES_MAX {
                return Err(ClientError::Lost("an event is too long".into()));
            }
        }
    }

    /// The same, or `None` at this moment, if one is named: also where there is always something to hear.
    pub(crate) async fn next_before(
        &mut self,
        at: Option<Instant>,
    ) -> Option<Result<Option<Heard>, ClientError>> {
        let due = async {
            match at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            heard = self.next() => Some(heard),
            () = due => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"retry: 1000\n\n:\n\nevent: live\ndata: {\"task\":\"a\",\"run\":1,\
        \"chunk\":2,\"voice\":\"text\",\"offset\":7,\"text\":\"x\",\"lossy\":true}\n\n\
        event: from_the_future\ndata: 1\n\nevent: event\nid: 4\ndata: {\"seq\":4,\"at\":\"\",\
        \"task\":null,\"run\":null,\"kind\":\"admitted\"}\n\nevent: at\nid: 5\ndata: {\"seq\":5}\n\n\
        event: li";

    #[test]
    fn frames_come_whole_however_they_are_cut() {
        for size in 1..TEXT.len() {
            let mut frames = Frames::default();
            let mut heard = Vec::new();
            for piece in TEXT.chunks(size) {
                frames.push(piece);
                while let Some(one) = frames.next() {
                    heard.push(one.unwrap());
                }
            }
            assert!(
                matches!(&heard[..], [Heard::Live(live), Heard::Event(event), Heard::At(at)]
                if live.text == "x" && live.offset == 7 && event.seq == 4 && at.seq == 5),
                "pieces of {size}: {heard:?}"
            );
        }
    }
}
