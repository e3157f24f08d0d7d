//! Bytes both ways between two connections, until both sides have ended or nothing came for long.
//! Must not look at what it carries.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, timeout_at},
};

const CHUNK_BYTES: usize = 16 << 10;
/// Longer silences of both sides together than this are an end.
pub(crate) const IDLE: Duration = Duration::from_secs(15 * 60);

/// Until one side breaks or both have said all they had.
pub(crate) async fn carry(
    left: impl AsyncRead + AsyncWrite,
    right: impl AsyncRead + AsyncWrite,
    idle: Duration,
) {
    let (left_read, left_write) = tokio::io::split(left);
    let (right_read, right_write) = tokio::io::split(right);
    // A long answer is no silence, whichever side it is that says nothing.
    let heard = Clock::new();
    let up = pump(left_read, right_write, &heard, idle);
    let down = pump(right_read, left_write, &heard, idle);
    match tokio::try_join!(up, down) {
        // Both connections are dropped in either case, which is all there is to say about it.
        Ok(_) | Err(_) => {}
    }
}

/// When something was last heard.
struct Clock {
    begun: Instant,
    after_ms: AtomicU64,
}

impl Clock {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            after_ms: AtomicU64::new(0),
        }
    }

    fn tick(&self) {
        let after = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.after_ms.store(after, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.begun + Duration::from_millis(self.after_ms.load(Ordering::Relaxed))
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    heard: &Clock,
    idle: Duration,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let limit = heard.last() + idle;
        let n = match timeout_at(limit, from.read(&mut chunk)).await {
            Ok(read) => read?,
            // The other direction may have moved on since.
            Err(_) if heard.last() + idle > Instant::now() => continue,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
        heard.tick();
        if n == 0 {
            return to.shutdown().await;
        }
        let sent = timeout_at(Instant::now() + idle, to.write_all(&chunk[..n])).await;
        sent.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        heard.tick();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_side_that_is_silent_while_the_other_speaks_is_not_idle() {
        let (mut client, left) = tokio::io::duplex(64);
        let (right, mut server) = tokio::io::duplex(64);
        let carried = carry(left, right, Duration::from_secs(10));
        let speak = async {
            let mut byte = [0];
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(9)).await;
                server.write_all(b"x").await.unwrap();
                client.read_exact(&mut byte).await.unwrap();
            }
            // Then nothing: both ends see the end.
            assert_eq!(client.read(&mut byte).await.unwrap(), 0);
            assert_eq!(server.read(&mut byte).await.unwrap(), 0);
        };
        tokio::join!(carried, speak);
    }

    #[tokio::test]
    async fn one_side_may_end_before_the_other() {
        let (mut client, left) = tokio::io::duplex(64);
        let (right, mut server) = tokio::io::duplex(64);
        let carried = carry(left, right, IDLE);
        let speak = async {
            client.write_all(b"ask").await.unwrap();
            client.shutdown().await.unwrap();
            let mut asked = String::new();
            server.read_to_string(&mut asked).await.unwrap();
            server.write_all(b"answer").await.unwrap();
            drop(server);
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            (asked, answer)
        };
        let ((), said) = tokio::join!(carried, speak);
        assert_eq!(said, ("ask".into(), "answer".into()));
    }
}
