//! What comes in, before anything parses it: bytes of which two readers could make different requests
//! are not read on. Parsers forgive a bare line feed, two lengths that agree, a length beside a
//! transfer coding; a proxy in front of us may forgive otherwise, and then one request hides another.
//! Must not understand a request beyond where it ends.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is kept of a line to know its header: the three that matter have short names and values.
const LINE_KEPT_BYTES: usize = 64;
/// Of a chunk's size, or of a content length: more than any body has.
const DIGITS_MAX: usize = 15;
/// Of a request's head, its first line and all headers.
pub(crate) const HEAD_BYTES_MAX: usize = 64 << 10;
/// In place of what is not let through: no parser takes it for the rest of a head.
const POISON: &[u8] = b"\0\r\n\r\n";

/// Two readers could disagree about this request, or it is longer than one should read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ambiguous;

/// A line so far: its first bytes, and how many there were.
#[derive(Debug, Default)]
struct Line {
    kept: Vec<u8>,
    bytes: usize,
    /// The last one was a carriage return.
    cr: bool,
}

impl Line {
    /// `true`: the line is whole.
    fn push(&mut self, byte: u8) -> Result<bool, Ambiguous> {
        match (byte, self.cr) {
            (b'\n', true) => return Ok(true),
            (b'\n', false) | (0, _) | (_, true) => return Err(Ambiguous),
            (b'\r', false) => self.cr = true,
            (byte, false) => {
                self.bytes += 1;
                if self.kept.len() < LINE_KEPT_BYTES {
                    self.kept.push(byte);
                }
            }
        }
        Ok(false)
    }

    fn is_cut(&self) -> bool {
        self.bytes > self.kept.len()
    }
}

/// What a head has said so far.
#[derive(Debug, Default)]
struct Head {
    line: Line,
    lines: usize,
    bytes: usize,
    hosts: u32,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

impl Head {
    /// `Some` when the head is over: what follows it.
    fn push(&mut self, byte: u8) -> Result<Option<Scan>, Ambiguous> {
        self.bytes += 1;
        if self.bytes > HEAD_BYTES_MAX {
            return Err(Ambiguous);
        }
        if !self.line.push(byte)? {
            return Ok(None);
        }
        let line = std::mem::take(&mut self.line);
        self.lines += 1;
        match (self.lines, line.bytes) {
            // Nothing stands before a request.
            (1, 0) => Err(Ambiguous),
            (1, _) => Ok(None),
            (_, 0) => self.end().map(Some),
            (_, _) => self.header(&line).map(|()| None),
        }
    }

    fn header(&mut self, line: &Line) -> Result<(), Ambiguous> {
        let colon = line.kept.iter().position(|byte| *byte == b':');
        // Longer than any name that matters.
        let Some(colon) = colon else {
            return line.is_cut().then_some(()).ok_or(Ambiguous);
        };
        let (name, value) = line.kept.split_at(colon);
        let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
        // Also a line that goes on from the one before, and a space before the colon.
        if name.is_empty() || !name.iter().all(token) {
            return Err(Ambiguous);
        }
        let value = value[1..].trim_ascii();
        match name.to_ascii_lowercase().as_slice() {
            b"host" => {
                self.hosts += 1;
                (self.hosts == 1).then_some(()).ok_or(Ambiguous)
            }
            b"content-length" => {
                let digits = (1..=DIGITS_MAX).contains(&value.len())
                    && value.iter().all(u8::is_ascii_digit)
                    && !line.is_cut();
                if self.length.is_some() || !digits {
                    return Err(Ambiguous);
                }
                self.length = Some(number(value, 10)?);
                Ok(())
            }
            b"transfer-encoding" => {
                let chunked = value.eq_ignore_ascii_case(b"chunked") && !line.is_cut();
                if self.chunked || !chunked {
                    return Err(Ambiguous);
                }
                self.chunked = true;
                Ok(())
            }
            b"upgrade" => {
                self.upgrade = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn end(&self) -> Result<Scan, Ambiguous> {
        match (self.length, self.chunked) {
            (Some(_), true) => Err(Ambiguous),
            (None, true) => Ok(Scan::ChunkSize(Line::default())),
            (Some(0) | None, false) if self.upgrade => Ok(Scan::MayUpgrade),
            (Some(0) | None, false) => Ok(Scan::Head(Head::default())),
            (Some(left), false) => Ok(Scan::Body(left)),
        }
    }
}

fn number(digits: &[u8], radix: u32) -> Result<u64, Ambiguous> {
    let text = std::str::from_utf8(digits).map_err(|_| Ambiguous)?;
    u64::from_str_radix(text, radix).map_err(|_| Ambiguous)
}

/// Where in a request the next byte is.
#[derive(Debug)]
enum Scan {
    Head(Head),
    /// So many bytes of a body are left.
    Body(u64),
    ChunkSize(Line),
    Chunk(u64),
    /// The end of a chunk's line.
    ChunkEnd(Line),
    /// Headers behind the last chunk, up to an empty line.
    Trailer(Line),
    /// Another protocol follows if the answer says so.
    MayUpgrade,
    Upgraded,
}

impl Scan {
    /// How many of these bytes can be let through. Fewer than there are: the next one is refused.
    fn take(&mut self, bytes: &[u8], upgraded: &AtomicBool) -> usize {
        let mut at = 0;
        while let Some(byte) = bytes.get(at).copied() {
            match self {
                Self::Upgraded => return bytes.len(),
                Self::MayUpgrade if upgraded.load(Ordering::SeqCst) => *self = Self::Upgraded,
                Self::MayUpgrade => *self = Self::Head(Head::default()),
                Self::Body(left) | Self::Chunk(left) => {
                    let there = u64::try_from(bytes.len() - at).unwrap_or(u64::MAX);
                    let taken = there.min(*left);
                    *left -= taken;
                    at += usize::try_from(taken).unwrap_or(usize::MAX);
                    if *left == 0 {
                        *self = match self {
                            Self::Chunk(_) => Self::ChunkEnd(Line::default()),
                            _ => Self::Head(Head::default()),
                        };
                    }
                }
                Self::Head(_) | Self::ChunkSize(_) | Self::ChunkEnd(_) | Self::Trailer(_) => {
                    match self.step(byte) {
                        Ok(None) => {}
                        Ok(Some(next)) => *self = next,
                        Err(Ambiguous) => return at,
                    }
                    at += 1;
                }
            }
        }
        at
    }

    /// One byte of what is read line by line.
    fn step(&mut self, byte: u8) -> Result<Option<Self>, Ambiguous> {
        match self {
            Self::Head(head) => head.push(byte),
            Self::ChunkSize(line) => {
                if !line.push(byte)? {
                    return Ok(None);
                }
                let end = line.kept.iter().position(|byte| *byte == b';');
                let size = line.kept[..end.unwrap_or(line.kept.len())].trim_ascii_end();
                let hex = (1..=DIGITS_MAX).contains(&size.len())
                    && size.iter().all(u8::is_ascii_hexdigit);
                if !hex || (line.is_cut() && end.is_none()) {
                    return Err(Ambiguous);
                }
                Ok(Some(match number(size, 16)? {
                    0 => Self::Trailer(Line::default()),
                    size => Self::Chunk(size),
                }))
            }
            Self::ChunkEnd(line) => match line.push(byte)? {
                true => Ok(Some(Self::ChunkSize(Line::default()))),
                false if line.bytes > 0 => Err(Ambiguous),
                false => Ok(None),
            },
            Self::Trailer(line) => match line.push(byte)? {
                true if line.bytes == 0 => Ok(Some(Self::Head(Head::default()))),
                true => Ok(Some(Self::Trailer(Line::default()))),
                false => Ok(None),
            },
            Self::Body(_) | Self::Chunk(_) | Self::MayUpgrade | Self::Upgraded => Ok(None),
        }
    }
}

/// A stream whose requests have one meaning.
#[derive(Debug)]
pub(crate) struct Strict<S> {
    stream: S,
    scan: Scan,
    /// The answer to the last request was another protocol.
    upgraded: Arc<AtomicBool>,
    /// What is still to be given of the poison.
    poison: Option<&'static [u8]>,
}

impl<S> Strict<S> {
    pub(crate) fn new(stream: S, upgraded: Arc<AtomicBool>) -> Self {
        Self {
            stream,
            scan: Scan::Head(Head::default()),
            upgraded,
            poison: None,
        }
    }

    /// Ends the request in a way that its parser answers, and the stream behind it.
    fn refuse(&mut self, buffer: &mut ReadBuf<'_>) {
        let poison = self.poison.unwrap_or_default();
        let (now, later) = poison.split_at(poison.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.poison = Some(later);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Strict<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.poison.is_some() {
            this.refuse(buffer);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        let new = &buffer.filled()[before..];
        let (good, all) = (this.scan.take(new, &this.upgraded), new.len());
        if good < all {
            buffer.set_filled(before + good);
            this.poison = Some(POISON);
            this.refuse(buffer);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much is let through, whole and byte by byte.
    #[track_caller]
    fn taken(text: &str) -> usize {
        let upgraded = AtomicBool::new(false);
        let whole = Scan::Head(Head::default()).take(text.as_bytes(), &upgraded);
        let mut scan = Scan::Head(Head::default());
        let bytes = text.as_bytes().chunks(1);
        let single = bytes
            .take_while(|byte| scan.take(byte, &upgraded) == 1)
            .count();
        assert_eq!(whole, single, "{text:?}");
        whole
    }

    const GET: &str = "GET / HTTP/1.1\r\nhost: h\r\n";

    #[test]
    fn what_has_one_meaning_goes_through() {
        let long = format!("{GET}x-{}: y\r\n\r\n", "a".repeat(300));
        for text in [
            "GET / HTTP/1.1\r\nHost: h\r\nAccept:*/*\r\n\r\nGET /b HTTP/1.1\r\nhost: h\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: h\r\nContent-Length:  5 \r\n\r\n\n\n\n\n\nGET / HTTP/1.1\r\n",
            "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: Chunked\r\n\r\n5;x=y\r\nab\ncd\r\n0\r\nt: u\r\n\r\nGET",
            "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\nGET / HTTP/1.1\r\n",
            &long,
        ] {
            assert_eq!(taken(text), text.len(), "{text:?}");
        }
    }

    #[test]
    fn what_two_readers_could_read_otherwise_does_not() {
        for (more, what) in [
            ("a: b\n\r\n", "a bare line feed"),
            ("a: b\rc\r\n\r\n", "a bare carriage return"),
            ("a: b\0\r\n\r\n", "a nul"),
            ("host: other\r\n\r\n", "two hosts"),
            ("HOST: h\r\n\r\n", "two hosts that agree"),
            (
                "content-length: 1\r\ncontent-length: 2\r\n\r\n",
                "two lengths",
            ),
            (
                "content-length: 1\r\ncontent-length: 1\r\n\r\n",
                "two that agree",
            ),
            (
                "content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
                "both",
            ),
            (
                "transfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n",
                "both",
            ),
            ("content-length: +1\r\n\r\n", "a sign"),
            ("content-length: 1, 1\r\n\r\n", "a list"),
            ("content-length:\r\n\r\n", "no number"),
            (
                "content-length: 9999999999999999\r\n\r\n",
                "more than there is",
            ),
            ("transfer-encoding: gzip, chunked\r\n\r\n", "two codings"),
            (
                "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
                "twice",
            ),
            ("transfer-encoding: xchunked\r\n\r\n", "another coding"),
            ("content-length : 1\r\n\r\n", "a space before the colon"),
            (" content-length: 1\r\n\r\n", "a line that goes on"),
            ("\tx\r\n\r\n", "the same with a tab"),
            ("no colon\r\n\r\n", "no header"),
            (": x\r\n\r\n", "no name"),
        ] {
            let text = format!("{GET}{more}");
            assert!(taken(&text) < text.len(), "{what}: {text:?}");
        }
        for text in [
            "\r\nGET / HTTP/1.1\r\n",
            "\nGET / HTTP/1.1\r\n",
            "GET / HTTP/1.1\n",
        ] {
            assert!(taken(text) < text.len(), "{text:?}");
        }
        let chunked = "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
        for more in [
            "5\nabcde\r\n",
            "0x5\r\n",
            "-1\r\n",
            "\r\n",
            "5\r\nabcdef\r\n",
            "1\r\na\n0\r\n",
        ] {
            let text = format!("{chunked}{more}");
            assert!(taken(&text) < text.len(), "{text:?}");
        }
    }

    #[test]
    fn a_head_has_an_end() {
        let long = format!("{GET}x: {}\r\n\r\n", "y".repeat(HEAD_BYTES_MAX));
        assert_eq!(taken(&long), HEAD_BYTES_MAX);
    }

    #[test]
    fn another_protocol_is_let_through_when_the_answer_is_one() {
        let ask = b"GET /ws HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\n\r\n";
        for (answer, taken) in [(true, 4), (false, 2)] {
            let upgraded = AtomicBool::new(false);
            let mut scan = Scan::Head(Head::default());
            assert_eq!(scan.take(ask, &upgraded), ask.len());
            upgraded.store(answer, Ordering::SeqCst);
            assert_eq!(scan.take(b"\x81\x85\0\n", &upgraded), taken, "{answer}");
        }
    }

    #[tokio::test]
    async fn what_is_refused_ends_the_stream() {
        use tokio::io::AsyncReadExt as _;
        let text = format!("{GET}a: b\n\r\nGET /hidden HTTP/1.1\r\n\r\n");
        let mut read = Vec::new();
        let mut strict = Strict::new(text.as_bytes(), Arc::default());
        strict.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, [GET.as_bytes(), b"a: b", POISON].concat());
        // In the smallest pieces, too.
        let (mut strict, mut pieces) = (Strict::new(text.as_bytes(), Arc::default()), Vec::new());
        let mut one = [0];
        while strict.read(&mut one).await.unwrap() == 1 {
            pieces.push(one[0]);
        }
        assert_eq!(pieces, read);
    }
}
