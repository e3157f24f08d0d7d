//! The record: lines on standard output, each written when what it tells is closed. It is the only
//! copy of the conversation that outlives this process, and it lies where no tool of ours reaches.
//! Must not let anything follow from a line before whoever keeps the output has taken it.

use std::{
    io::{self, PipeWriter, Stdout, Write},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use dispatch_core::native::{Chunk, Live, StepId};
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::sync::{mpsc, oneshot};

/// Lines on their way. What lasts waits for room, what is only shown is dropped instead.
const QUEUE_LINES: usize = 256;
/// Of what is only for the eye, in one process: an eighth of what a run may print where nobody says
/// otherwise, so that looking on never ends one. What lasts is told in full whatever was shown.
const SHOWN_BYTES_MAX: u64 = 32 << 20;
/// Of that, for what commands print: they must not take it from the model's words.
const PRINTED_BYTES_MAX: u64 = 8 << 20;
/// How often a full pipe is looked at: often at first, as a keeper needs well under a millisecond,
/// and seldom when its disk is full.
const LOOK_FIRST: Duration = Duration::from_micros(50);
const LOOK_LAST: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("write the record: {0}")]
    Write(#[source] io::Error),
    #[error("write the record: {0}")]
    Shape(#[from] serde_json::Error),
    #[error("write the record: nobody writes it any more")]
    Gone,
}

/// Where lines go: standard output, or a pipe of a test.
pub(crate) trait Sink: Write + AsFd + Send + 'static {}
impl Sink for Stdout {}
impl Sink for PipeWriter {}

struct Write1 {
    bytes: Vec<u8>,
    /// Whether it must have been taken out of the pipe.
    taken: bool,
    done: Option<oneshot::Sender<io::Result<()>>>,
}

impl Write1 {
    /// Nobody waits for it.
    fn aside(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            taken: false,
            done: None,
        }
    }
}

/// The way to it. The lines are numbered in the order in which they are written, whoever says them.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    queue: mpsc::Sender<Write1>,
    budget: Arc<Budget>,
}

/// What may still be shown, in bytes.
#[derive(Debug)]
struct Budget {
    all: AtomicU64,
    printed: AtomicU64,
}

impl Budget {
    fn new() -> Self {
        Self {
            all: AtomicU64::new(SHOWN_BYTES_MAX),
            printed: AtomicU64::new(PRINTED_BYTES_MAX),
        }
    }

    fn take(&self, live: &Live, bytes: usize) -> bool {
        match live {
            // What is on a screen is taken back, whatever is left.
            Live::Void => true,
            Live::Output { .. } => spend(&self.printed, bytes) && spend(&self.all, bytes),
            Live::Text(_) | Live::Thinking(_) => spend(&self.all, bytes),
        }
    }
}

fn spend(left: &AtomicU64, bytes: usize) -> bool {
    let less = |left: u64| left.checked_sub(bytes as u64);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
        .is_ok()
}

impl Record {
    /// A thread of its own: a pipe that nobody reads must not stop the rest of us.
    pub(crate) fn start(sink: impl Sink) -> io::Result<Self> {
        let (queue, lines) = mpsc::channel(QUEUE_LINES);
        thread::Builder::new()
            .name("record".into())
            .stack_size(256 << 10)
            .spawn(move || write_all(sink, lines))?;
        let budget = Arc::new(Budget::new());
        Ok(Self { queue, budget })
    }

    /// Written and flushed when this comes back.
    pub(crate) async fn put(&self, step: StepId, chunk: &Chunk) -> Result<(), RecordError> {
        self.send(step, chunk, false).await
    }

    /// Also taken by whoever reads our output. On a full disk that is when there is room again.
    pub(crate) async fn put_and_wait(
        &self,
        step: StepId,
        chunk: &Chunk,
    ) -> Result<(), RecordError> {
        self.send(step, chunk, true).await
    }

    async fn send(&self, step: StepId, chunk: &Chunk, taken: bool) -> Result<(), RecordError> {
        let bytes = line(step, chunk)?;
        let (done, written) = oneshot::channel();
        let write = Write1 {
            bytes,
            taken,
            done: Some(done),
        };
        self.queue
            .send(write)
            .await
            .map_err(|_| RecordError::Gone)?;
        written
            .await
            .map_err(|_| RecordError::Gone)?
            .map_err(RecordError::Write)
    }

    /// For the eye, as long as there is room and budget. Nobody waits for it, and nothing is lost with
    /// it.
    pub(crate) fn show(&self, step: StepId, live: Live) -> Result<(), RecordError> {
        let Ok(place) = self.queue.try_reserve() else {
            return Ok(());
        };
        let chunk = Chunk::Live(live);
        let bytes = line(step, &chunk)?;
        if let Chunk::Live(live) = &chunk
            && self.budget.take(live, bytes.len())
        {
            place.send(Write1::aside(bytes));
        }
        Ok(())
    }

    /// Without waiting for it: `false` when there is no room now. What the conversation is made of must
    /// not go this way.
    pub(crate) fn put_aside(&self, step: StepId, chunk: &Chunk) -> Result<bool, RecordError> {
        let Ok(place) = self.queue.try_reserve() else {
            return Ok(false);
        };
        place.send(Write1::aside(line(step, chunk)?));
        Ok(true)
    }
}

/// All of a line but its number.
fn line(step: StepId, chunk: &Chunk) -> Result<Vec<u8>, RecordError> {
    #[derive(serde::Serialize)]
    struct Borrowed<'a> {
        step: StepId,
        chunk: &'a Chunk,
    }
    let mut bytes = serde_json::to_vec(&Borrowed { step, chunk })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Puts the number before the other members.
fn numbered(n: u64, rest: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{{\"n\":{n},").into_bytes();
    bytes.extend_from_slice(rest.strip_prefix(b"{").unwrap_or(rest));
    bytes
}

fn write_all(mut sink: impl Sink, mut lines: mpsc::Receiver<Write1>) {
    let mut n = 0;
    while let Some(line) = lines.blocking_recv() {
        n += 1;
        let bytes = numbered(n, &line.bytes);
        let mut written = sink.write_all(&bytes).and_then(|()| sink.flush());
        if line.taken && written.is_ok() {
            written = wait_until_taken(sink.as_fd());
        }
        let failed = written.is_err();
        if let Some(done) = line.done {
            match done.send(written) {
                // Whoever asked has been ended meanwhile; the line is there.
                Ok(()) | Err(_) => {}
            }
        }
        if failed {
            return;
        }
    }
}

/// A pipe that is empty was read to its end. The keeper writes what it read before it reads on, and
/// is not ended together with us. A file or a terminal keeps everything at once.
fn wait_until_taken(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut pause = LOOK_FIRST;
    while let Ok(1..) = rustix::io::ioctl_fionread(fd) {
        let wait = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(pause.subsec_nanos()),
        };
        // Asked for nothing, it still wakes for the reader's end.
        let mut ends = [PollFd::new(&fd, PollFlags::empty())];
        match rustix::event::poll(&mut ends, Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if ends[0].revents().contains(PollFlags::ERR) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        pause = (pause * 2).min(LOOK_LAST);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, pipe};

    use dispatch_core::native::Line;

    use super::*;

    fn notice(text: &str) -> Chunk {
        Chunk::Notice { text: text.into() }
    }

    #[tokio::test]
    async fn lines_are_numbered_and_whole() {
        let (reader, writer) = pipe().unwrap();
        let record = Record::start(writer).unwrap();
        let step = StepId { turn: 1, step: 2 };
        for text in ["a", "b\nc"] {
            record.put(step, &notice(text)).await.unwrap();
        }
        record.show(step, Live::Text("d".into())).unwrap();
        drop(record);
        let lines: Vec<Line> = BufReader::new(reader)
            .lines()
            .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
            .collect();
        let numbers: Vec<u64> = lines.iter().map(|line| line.n).collect();
        assert_eq!(numbers, [1, 2, 3]);
        assert_eq!(lines[1].chunk, notice("b\nc"));
        assert_eq!(lines[2].step, step);
    }

    #[tokio::test]
    async fn an_intent_waits_until_it_was_taken() {
        let (mut reader, writer) = pipe().unwrap();
        let record = Record::start(writer).unwrap();
        let chunk = notice("intent");
        let put = record.put_and_wait(StepId::default(), &chunk);
        tokio::pin!(put);
        let soon = tokio::time::timeout(Duration::from_millis(60), &mut put).await;
        assert!(soon.is_err(), "nobody has read it");
        let mut taken = [0; 4096];
        let n = reader.read(&mut taken).unwrap();
        assert!(n > 0);
        put.await.unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_is_an_error_not_a_wait() {
        let (reader, writer) = pipe().unwrap();
        let record = Record::start(writer).unwrap();
        let chunk = notice("intent");
        let leaves = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(reader);
        };
        let (put, ()) = tokio::join!(record.put_and_wait(StepId::default(), &chunk), leaves);
        assert!(matches!(put, Err(RecordError::Write(_))));
        let next = record.put(StepId::default(), &notice("x")).await;
        assert!(next.is_err());
    }

    /// Whoever looks too slowly misses something; nobody waits for them.
    #[tokio::test]
    async fn what_is_only_shown_never_waits() {
        let (reader, writer) = pipe().unwrap();
        let record = Record::start(writer).unwrap();
        for _ in 0..20 * QUEUE_LINES {
            let text = Live::Text("x".repeat(4096));
            record.show(StepId::default(), text).unwrap();
        }
        drop(record);
        let lines = BufReader::new(reader).lines().count();
        assert!(lines < 2 * QUEUE_LINES, "{lines}");
    }

    /// However much is shown, what lasts has room.
    #[tokio::test]
    async fn what_is_only_shown_has_an_end() {
        let (reader, writer) = pipe().unwrap();
        let record = Record::start(writer).unwrap();
        let counted = thread::spawn(move || {
            let (mut printed, mut text, mut lasting) = (0, 0, 0);
            for line in BufReader::new(reader).lines() {
                let line = line.unwrap();
                match serde_json::from_str::<Line>(&line).unwrap().chunk {
                    Chunk::Live(Live::Output { .. }) => printed += line.len() as u64,
                    Chunk::Live(_) => text += line.len() as u64,
                    _ => lasting += 1,
                }
            }
            (printed, text, lasting)
        });
        let printed = Live::Output {
            call: "c".into(),
            text: "x".repeat(64 << 10),
        };
        let text = Live::Text("x".repeat(64 << 10));
        for _ in 0..6 {
            for live in [&printed, &text] {
                for _ in 0..QUEUE_LINES / 2 {
                    record.show(StepId::default(), live.clone()).unwrap();
                }
                // All that was let through is out when this is.
                record.put(StepId::default(), &notice("n")).await.unwrap();
            }
        }
        drop(record);
        let (printed, text, lasting) = counted.join().unwrap();
        let numbers = 2 * 12 * 6 * QUEUE_LINES as u64;
        assert!(
            printed > 7 << 20 && printed <= PRINTED_BYTES_MAX + numbers,
            "{printed}"
        );
        assert!(
            text > 20 << 20 && printed + text <= SHOWN_BYTES_MAX + numbers,
            "{text}"
        );
        assert_eq!(lasting, 12);
    }
}
