//! Server-sent events out of bytes, however these are cut.
//! Must not hold more than its limits say, whatever the server sends, and must not know what an
//! event means.

/// One line. A whole answer with everything in it is one line at some providers.
const LINE_BYTES_MAX: usize = 16 << 20;
/// All lines of one event.
const EVENT_BYTES_MAX: usize = 16 << 20;
/// Of one answer: what no model says in one go.
const STREAM_BYTES_MAX: u64 = 256 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// Empty where the server gave none.
    pub(crate) name: String,
    pub(crate) data: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SseError {
    #[error("read the stream: {what} has more than {limit} bytes")]
    TooLong { what: &'static str, limit: u64 },
    #[error("read the stream: it is not UTF-8")]
    NotText,
}

/// Bytes in, events out.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    line: Vec<u8>,
    name: Vec<u8>,
    data: Vec<u8>,
    /// A `data` line came, even an empty one.
    filled: bool,
    /// The last line ended in a carriage return: a newline that follows belongs to it.
    returned: bool,
    /// Something came: only before that there may be a byte order mark.
    begun: bool,
    bytes: u64,
}

const MARK: &[u8] = b"\xef\xbb\xbf";

impl Decoder {
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, SseError> {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if self.bytes > STREAM_BYTES_MAX {
            return Err(too_long("it", STREAM_BYTES_MAX));
        }
        let mut events = Vec::new();
        let mut rest = bytes;
        if self.returned && rest.first() == Some(&b'\n') {
            rest = &rest[1..];
        }
        if !bytes.is_empty() {
            self.returned = false;
        }
        while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            self.keep(&rest[..at])?;
            let ended = rest[at];
            rest = &rest[at + 1..];
            if ended == b'\r' {
                match rest.first() {
                    Some(b'\n') => rest = &rest[1..],
                    Some(_) => {}
                    None => self.returned = true,
                }
            }
            events.extend(self.end_line()?);
        }
        self.keep(rest)?;
        Ok(events)
    }

    /// What had all its lines when the stream ended, and lacks only the empty one after them.
    pub(crate) fn finish(&mut self) -> Result<Option<Event>, SseError> {
        if self.line.is_empty() {
            self.event()
        } else {
            Ok(None)
        }
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), SseError> {
        if self.line.len() + bytes.len() > LINE_BYTES_MAX {
            return Err(too_long("a line", LINE_BYTES_MAX as u64));
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(&mut self) -> Result<Option<Event>, SseError> {
        let mut line = std::mem::take(&mut self.line);
        if !self.begun {
            self.begun = true;
            if line.starts_with(MARK) {
                line.drain(..MARK.len());
            }
        }
        if line.is_empty() {
            return self.event();
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = match colon {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (&line[..], &line[line.len()..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                if self.data.len() + value.len() >= EVENT_BYTES_MAX {
                    return Err(too_long("an event", EVENT_BYTES_MAX as u64));
                }
                if self.filled {
                    self.data.push(b'\n');
                }
                self.filled = true;
                self.data.extend_from_slice(value);
            }
            b"event" => self.name = value.to_vec(),
            // A comment, an id, a time to reconnect, something new: nothing for us.
            _ => {}
        }
        // The buffer is used again where it is of a usual size.
        if line.capacity() <= 64 << 10 {
            line.clear();
            self.line = line;
        }
        Ok(None)
    }

    fn event(&mut self) -> Result<Option<Event>, SseError> {
        let name = std::mem::take(&mut self.name);
        let data = std::mem::take(&mut self.data);
        if !std::mem::take(&mut self.filled) {
            return Ok(None);
        }
        let text = |bytes| String::from_utf8(bytes).map_err(|_| SseError::NotText);
        Ok(Some(Event {
            name: text(name)?,
            data: text(data)?,
        }))
    }
}

fn too_long(what: &'static str, limit: u64) -> SseError {
    SseError::TooLong { what, limit }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn all(pieces: &[&[u8]]) -> Result<Vec<Event>, SseError> {
        let mut decoder = Decoder::default();
        let mut events = Vec::new();
        for piece in pieces {
            events.extend(decoder.push(piece)?);
        }
        events.extend(decoder.finish()?);
        Ok(events)
    }

    fn event(name: &str, data: &str) -> Event {
        Event {
            name: name.to_owned(),
            data: data.to_owned(),
        }
    }

    #[test]
    fn fields_comments_and_line_ends_are_as_the_standard_has_them() {
        let stream = "\u{feff}: hello\r\nevent: a\r\ndata: one\r\ndata:two\rdata:  three\n\nid: 7\n\n\
                      event: lost\n\nretry: 5\ndata\n\ndata: last\n";
        let expected = [
            event("a", "one\ntwo\n three"),
            event("", ""),
            event("", "last"),
        ];
        assert_eq!(all(&[stream.as_bytes()]).unwrap(), expected);
    }

    #[test]
    fn a_line_that_was_cut_is_no_event() {
        assert_eq!(all(&[b"data: {\"a\":"]).unwrap(), []);
        assert_eq!(all(&[b"data: a\ndata: b"]).unwrap(), []);
    }

    #[test]
    fn what_could_fill_the_memory_is_refused() {
        let mut decoder = Decoder::default();
        let piece = vec![b'x'; 1 << 20];
        let refused = (0..32).find_map(|_| decoder.push(&piece).err());
        let too_long = SseError::TooLong {
            what: "a line",
            limit: LINE_BYTES_MAX as u64,
        };
        assert_eq!(refused, Some(too_long));
        let mut decoder = Decoder::default();
        let line = [b"data: ", &piece[..], b"\n"].concat();
        let refused = (0..32).find_map(|_| decoder.push(&line).err());
        let too_long = SseError::TooLong {
            what: "an event",
            limit: EVENT_BYTES_MAX as u64,
        };
        assert_eq!(refused, Some(too_long));
        let mut decoder = Decoder::default();
        let comments = [b":", &piece[..], b"\n"].concat();
        let refused = (0..300).find_map(|_| decoder.push(&comments).err());
        assert!(refused.is_some());
    }

    #[test]
    fn bytes_that_are_no_text_are_told() {
        assert_eq!(all(&[b"data: \xff\n\n"]), Err(SseError::NotText));
    }

    /// However a stream is cut, its events are the same; and whatever comes, nothing panics.
    #[test]
    fn where_it_is_cut_does_not_matter() {
        let words: [&[u8]; 14] = [
            b"data:",
            b"data: ",
            b"event: ",
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b":",
            b"{\"a\":1}",
            b"\xc3\xa9",
            b"\xff",
            b"id: 1",
            MARK,
            b"text",
        ];
        let mut random = Random::new(7);
        for _ in 0..3000 {
            let mut stream = Vec::new();
            for _ in 0..random.below(40) {
                stream.extend_from_slice(words[random.below(words.len())]);
            }
            let whole = all(&[&stream]);
            let pieces = random.pieces(&stream);
            assert_eq!(
                all(&pieces),
                whole,
                "{:?}",
                String::from_utf8_lossy(&stream)
            );
            let bytes: Vec<&[u8]> = stream.chunks(1).collect();
            assert_eq!(all(&bytes), whole, "{:?}", String::from_utf8_lossy(&stream));
        }
    }
}
