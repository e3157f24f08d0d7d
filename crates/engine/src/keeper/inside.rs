//! The keeper's end of the socket to the warden inside a fence (`crate::warden` has the words).
//! Must believe nothing from in there but an end and a number: the warden is locked in with the
//! program, and a program may take it over.

use std::{
    fs::{self, DirBuilder},
    io::{self, Read, Write},
    os::{
        fd::AsFd,
        unix::{
            fs::DirBuilderExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::Child,
    time::{Duration, Instant},
};

use dispatch_core::{
    container::SOCKET,
    job::{Exit, Handed},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::jobdir::socket_path;

/// From the start of the fence to the warden's first word.
const READY: Duration = Duration::from_secs(20);
/// The same where a container engine has to make a container first.
const CONTAINER_READY: Duration = Duration::from_secs(120);
/// A fence that could not be made says why on standard error.
const WHY_BYTES_MAX: usize = 4096;
const LINE_BYTES_MAX: usize = 4096;
const LAYERS_MAX: usize = 16;

/// What the warden says while the program lives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Word {
    Exit(Exit),
    Left(u32),
    /// The kernel has killed something in there for memory.
    Memory,
}

/// Where a warden in a container comes to: a socket that is there for one connection.
#[derive(Debug)]
pub(super) struct Door {
    listener: UnixListener,
    path: PathBuf,
    /// Keeps a path through our descriptors valid.
    _open: Option<fs::File>,
}

impl Door {
    /// `dir` is for this job alone, and for us alone.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        match fs::remove_dir_all(dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let (path, open) = socket_path(dir, SOCKET)?;
        Ok(Self {
            listener: UnixListener::bind(&path)?,
            path,
            _open: open,
        })
    }

    /// The one connection; nobody comes after it. `None`: the container ended before its warden came.
    pub(super) fn wait(self, client: &Child) -> io::Result<Option<Inside>> {
        let pid = i32::try_from(client.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the client has no process number"))?;
        let client = pidfd_open(pid, PidfdFlags::empty())?;
        let until = Instant::now() + CONTAINER_READY;
        let came = loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut fds = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::new(&client, PollFlags::IN),
            ];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => {
                    let late = format!("no warden came within {} s", CONTAINER_READY.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, late));
                }
                Ok(_) => break !fds[0].revents().is_empty(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        if !came {
            return Ok(None);
        }
        let (socket, _) = self.listener.accept()?;
        fs::remove_file(&self.path)?;
        socket.set_read_timeout(Some(READY))?;
        Ok(Some(Inside {
            socket,
            received: Vec::new(),
        }))
    }
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
            _ => Err(no_fence(stderr)),
        }
    }

    /// Lets the program start, with what a warden from a container has yet to be told.
    pub(super) fn go(&mut self, handed: Option<&Handed>) -> Result<(), String> {
        let mut words = Vec::new();
        if let Some(handed) = handed {
            let body = serde_json::to_vec(handed).map_err(|e| format!("hand over: {e}"))?;
            words.extend(format!("env {}\n", body.len()).into_bytes());
            words.extend(body);
        }
        words.extend(b"go\n");
        let started = self.socket.write_all(&words).and_then(|()| self.line());
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

/// What was said on standard error instead of a first word.
pub(super) fn no_fence(stderr: Option<&mut impl Read>) -> String {
    let mut bytes = vec![0; WHY_BYTES_MAX];
    let n = stderr.and_then(|stderr| stderr.read(&mut bytes).ok());
    let said = String::from_utf8_lossy(&bytes[..n.unwrap_or(0)]);
    format!("the fence could not be made: {}", printable(said.trim()))
}

fn word(line: &str) -> Option<Word> {
    if line == "memory" {
        return Some(Word::Memory);
    }
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
        assert_eq!(word("memory"), Some(Word::Memory));
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
