//! A request's body: pieces that are shared between all requests of a conversation, so that a long
//! one is neither written again nor copied for each step.
//! Must not change a piece: that its bytes stay the same is what a provider's cache lives on.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

/// One entry of a conversation in a wire format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(super) bytes: Bytes,
    /// Where a mark can be put that says: keep all up to here in your cache.
    pub(super) mark: Option<usize>,
}

impl Segment {
    pub(super) fn plain(text: String) -> Self {
        Self {
            bytes: text.into(),
            mark: None,
        }
    }
}

/// How many of the last places that can have a mark get one: the end of this request, and the end
/// of the one before, where the cache is found even if this one was never taken in.
const MARKS: usize = 2;
const MARK: &[u8] = br#","cache_control":{"type":"ephemeral"}"#;

#[derive(Clone, Debug, Default)]
pub(crate) struct Pieces {
    queue: VecDeque<Bytes>,
    left: u64,
}

impl Pieces {
    pub(super) fn new(head: String, segments: &[Segment], tail: &'static str) -> Self {
        let marked = segments
            .iter()
            .rev()
            .filter(|segment| segment.mark.is_some());
        let mut unmarked = segments.len();
        if let Some(last) = marked.take(MARKS).last() {
            // By address: segments are told apart by where they stand.
            let first = segments
                .iter()
                .position(|segment| std::ptr::eq(segment, last));
            unmarked = first.unwrap_or(unmarked);
        }
        let mut pieces = Self::default();
        let comma = Bytes::from_static(b",");
        // Something of the list may be in the head.
        let begun = !head.ends_with('[');
        pieces.push(head.into());
        for (index, segment) in segments.iter().enumerate() {
            if begun || index > 0 {
                pieces.push(comma.clone());
            }
            match segment.mark.filter(|_| index >= unmarked) {
                Some(at) => {
                    pieces.push(segment.bytes.slice(..at));
                    pieces.push(Bytes::from_static(MARK));
                    pieces.push(segment.bytes.slice(at..));
                }
                None => pieces.push(segment.bytes.clone()),
            }
        }
        pieces.push(Bytes::from_static(tail.as_bytes()));
        pieces
    }

    fn push(&mut self, piece: Bytes) {
        self.left += piece.len() as u64;
        self.queue.push_back(piece);
    }

    #[cfg(test)]
    pub(super) fn text(&self) -> String {
        let bytes: Vec<u8> = self.queue.iter().flatten().copied().collect();
        String::from_utf8(bytes).unwrap()
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.queue.pop_front();
        if let Some(piece) = &piece {
            self.left -= piece.len() as u64;
        }
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.queue.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(text: &str, mark: Option<usize>) -> Segment {
        Segment {
            bytes: text.to_owned().into(),
            mark,
        }
    }

    #[test]
    fn the_last_two_places_get_the_mark() {
        let segments = [
            segment("{1}", Some(2)),
            segment("{2}", None),
            segment("{3}", Some(2)),
            segment("{4}", Some(2)),
            segment("{5}", None),
        ];
        let mark = std::str::from_utf8(MARK).unwrap();
        let pieces = Pieces::new("[".into(), &segments, "]");
        let expected = format!("[{{1}},{{2}},{{3{mark}}},{{4{mark}}},{{5}}]");
        assert_eq!(pieces.text(), expected);
        assert_eq!(pieces.size_hint().exact(), Some(expected.len() as u64));
        let pieces = Pieces::new("[{0}".into(), &segments[..1], "]");
        assert_eq!(pieces.text(), format!("[{{0}},{{1{mark}}}]"));
    }
}
