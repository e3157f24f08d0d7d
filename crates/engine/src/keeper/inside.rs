//! The keeper's end of the socket to the warden inside a fence (`crate::warden` has the words).
//! Must believe nothing from in there but an end and a number: the warden is locked in with the
//! program, and a program may take it over.

use std::{
    io::{self, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    time::Duration,
};

use dispatch_core::job::Exit;

/// From the start of the fence to the warden's first word.
const READY: Duration = Duration::from_secs(20);
/// A fence that could not be made says why on standard error.
const WHY_BYTES_MAX: usize = 4096;
const LINE_BYTES_MAX: usize = 4096;
const LAYERS_MAX: usize = 16;

/// What the warden says while the program lives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Word {
    Exit(Exit),
    Left(u32),
}

#[derive(Debug)]
pub(super) struct Inside {
    socket: UnixStream,
    received: Vec<u8>,
}

/// Both ends; the other one passes on to the program that is started next, and must be dropped then.
pub(super) fn pair() -> io::Result<(Inside, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?;
    ours.set_read_timeout(Some(READY))?;
    let inside = Inside {
        socket: ours,
        received: Vec::new(),
    };
    Ok((inside, theirs))
}

impl Inside {
    /// The layers that hold, or why there is no fence.
    pub(super) fn ready(&mut self, stderr: Option<&mut impl Read>) -> Result<Vec<String>, String> {
        let line = self
            .line()
            .map_err(|e| format!("wait for the warden: {e}"))?;
        match line.as_deref().map(|line| line.split_once(' ')) {
            Some(Some(("ready", layers))) => {
                let words = layers.split(' ').take(LAYERS_MAX).map(printable);
                Ok(join_brackets(
                    words.filter(|word| !word.is_empty()).collect(),
                ))
            }
            Some(Some(("refused", why))) => Err(printable(why)),
            _ => {
                let mut bytes = vec![0; WHY_BYTES_MAX];
                let n = stderr.and_then(|stderr| stderr.read(&mut bytes).ok());
                let said = String::from_utf8_lossy(&bytes[..n.unwrap_or(0)]);
                Err(format!(
                    "the fence could not be made: {}",
                    printable(said.trim())
                ))
            }
        }
    }

    /// Lets the program start.
    pub(super) fn go(&mut self) -> Result<(), String> {
        let started = self.socket.write_all(b"go\n").and_then(|()| self.line());
        let line = started.map_err(|e| format!("start the program inside the fence: {e}"))?;
        match line.as_deref() {
            Some("running") => {}
            Some(line) => return Err(printable(line.strip_prefix("failed ").unwrap_or(line))),
            None => return Err("the fence ended before the program could start".into()),
        }
        self.socket
            .set_nonblocking(true)
            .map_err(|e| format!("speak to the warden: {e}"))
    }

    fn line(&mut self) -> io::Result<Option<String>> {
        let mut byte = [0];
        loop {
            if let Some(line) = self.take_line() {
                return Ok(Some(line));
            }
            match self.socket.read(&mut byte) {
                Ok(0) => return Ok(None),
                Ok(_) if self.received.len() < LINE_BYTES_MAX => self.received.push(byte[0]),
                Ok(_) => return Err(io::Error::other("a line without an end")),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn take_line(&mut self) -> Option<String> {
        let end = self.received.iter().position(|b| *b == b'\n')?;
        let line: Vec<u8> = self.received.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line[..end]).into_owned())
    }

    pub(super) fn socket(&self) -> impl AsFd + '_ {
        &self.socket
    }

    /// What came since the last time; `None` at the end of the socket.
    pub(super) fn hear(&mut self) -> Option<Vec<Word>> {
        let mut chunk = [0; LINE_BYTES_MAX];
        let ended = match self.socket.read(&mut chunk) {
            Ok(0) => true,
            Ok(n) => {
                self.received.extend_from_slice(&chunk[..n]);
                self.received.len() > 2 * LINE_BYTES_MAX
            }
            Err(error) => !matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ),
        };
        let mut words = Vec::new();
        while let Some(line) = self.take_line() {
            words.extend(word(&line));
        }
        (!ended || !words.is_empty()).then_some(words)
    }

    pub(super) fn signal(&mut self, signal: i32) {
        match self
            .socket
            .write_all(format!("signal {signal}\n").as_bytes())
        {
            // It has ended; the kill that follows asks nobody.
            Ok(()) | Err(_) => {}
        }
    }
}

fn word(line: &str) -> Option<Word> {
    let mut words = line.split(' ');
    match (words.next()?, words.next()?, words.next()) {
        ("exit", "code", Some(n)) => Some(Word::Exit(Exit::Code(n.parse().ok()?))),
        ("exit", "signal", Some(n)) => Some(Word::Exit(Exit::Signal(n.parse().ok()?))),
        ("left", n, None) => Some(Word::Left(n.parse().ok()?)),
        _ => None,
    }
}

/// `landlock(abi 7)` has a space in it.
fn join_brackets(words: Vec<String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for word in words {
        match out.last_mut() {
            Some(last) if last.contains('(') && !last.contains(')') => {
                last.push(' ');
                last.push_str(&word);
            }
            _ => out.push(word),
        }
    }
    out
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ends_and_numbers_are_believed() {
        assert_eq!(word("exit code 3"), Some(Word::Exit(Exit::Code(3))));
        assert_eq!(word("exit signal 9"), Some(Word::Exit(Exit::Signal(9))));
        assert_eq!(word("left 2"), Some(Word::Left(2)));
        for nonsense in [
            "",
            "exit",
            "exit code",
            "exit code x",
            "left -1",
            "left 1 2",
            "stop now",
        ] {
            assert_eq!(word(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn layers_keep_their_brackets() {
        let (mut ours, mut theirs) = pair().unwrap();
        theirs
            .write_all(b"ready bwrap landlock(abi 7) seccomp\n")
            .unwrap();
        let layers = ours.ready(None::<&mut io::Empty>).unwrap();
        assert_eq!(layers, ["bwrap", "landlock(abi 7)", "seccomp"]);
        drop(theirs);
        let error = ours
            .ready(Some(&mut io::Cursor::new(b"bwrap: no\n")))
            .unwrap_err();
        assert_eq!(error, "the fence could not be made: bwrap: no");
    }
}
