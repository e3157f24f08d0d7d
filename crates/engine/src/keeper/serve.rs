//! The keeper's loop: one `poll` over the job's output, its input, the `ctl` socket and the reaper.
//! Must not block on any of them, and must not lose a byte of output below the cap.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::{Child, ChildStdin},
    sync::mpsc,
    time::{Duration, Instant},
};

use dispatch_core::{
    container::SIGNALLED,
    job::{Around, Exit, Invocation, Stdin},
    limits::JobLimits,
    outcome::Stop,
    redact::Redactor,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, WaitOptions, WaitStatus},
};

use super::{
    around,
    inside::{Inside, Word},
    orders::{Order, Orders, TooLong},
    processes::{self, Cgroup},
    watch::Watch,
};

const CHUNK_BYTES: usize = 64 << 10;
const CONNECTIONS_MAX: usize = 64;
/// Said to one that is too many, and to whoever wants to say something to an input that takes nothing.
const TOO_MANY: &[u8] = b"no there are too many connections; try again\n";
pub(crate) const INPUT_CLOSED: &str = "its input is closed";
const PENDING_INPUT_BYTES_MAX: usize = 32 << 20;
/// From the program's exit until what still runs or still holds the output is ended.
const DRAIN: Duration = Duration::from_millis(200);
const DRAIN_FENCED: Duration = Duration::from_millis(1500);
/// An engine takes its container apart before its client ends.
const DRAIN_CONTAINER: Duration = Duration::from_secs(20);
/// From the engine's order to kill until what we can reach of it is killed without it.
const ENGINE_KILL: Duration = Duration::from_secs(5);
/// From the kill of the last process until we stop waiting for it.
const REAP: Duration = Duration::from_secs(10);
const KILL_AGAIN: Duration = Duration::from_millis(10);
const DISK_RETRY: Duration = Duration::from_secs(1);
const PROBLEMS_MAX: usize = 8;

pub(super) struct Files {
    pub(super) out: File,
    pub(super) err: File,
    pub(super) input: File,
}

pub(super) struct Ended {
    pub(super) exit: Exit,
    pub(super) stopped: Option<Stop>,
    pub(super) out_bytes: u64,
    pub(super) err_bytes: u64,
    pub(super) leftovers: u32,
    pub(super) problems: Vec<String>,
}

enum Reaped {
    One(Pid, WaitStatus),
    /// Nothing is left below us.
    All,
}

/// One output of the job: pipe, file, mask.
struct Stream {
    pipe: Option<OwnedFd>,
    file: File,
    /// None where only a program reads what the job writes.
    redactor: Option<Redactor>,
    bytes: u64,
    /// Taken from the pipe and not on disk yet, because the disk is full. While there is some, the
    /// pipe is not read: the job waits, and nothing is lost.
    unwritten: Vec<u8>,
}

impl Stream {
    fn write(&mut self) -> io::Result<()> {
        while !self.unwritten.is_empty() {
            match self.file.write(&self.unwritten) {
                Ok(n) => {
                    self.unwritten.drain(..n);
                    self.bytes += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

struct Connection {
    stream: UnixStream,
    orders: Orders,
    watches: bool,
    closed: bool,
}

/// What there is around the job.
pub(super) struct Body {
    pub(super) inside: Option<Inside>,
    pub(super) around: Option<Around>,
    /// When its engine was told to kill it.
    pub(super) killed: Option<Instant>,
    pub(super) cgroup: Option<Cgroup>,
    pub(super) watch: Watch,
}

pub(super) struct Serve {
    limits: JobLimits,
    out: Stream,
    err: Stream,
    stdin: Option<ChildStdin>,
    pending: VecDeque<u8>,
    close_input: bool,
    input: File,
    said: BTreeSet<u64>,
    listener: UnixListener,
    connections: Vec<Connection>,
    leader: Pid,
    body: Body,
    reaped: mpsc::Receiver<Reaped>,
    woken: UnixStream,
    begun: Instant,
    heard: Instant,
    stopped: Option<Stop>,
    kill_at: Option<Instant>,
    retry_at: Option<Instant>,
    exit: Option<Exit>,
    /// The warden's socket is at its end.
    deaf: bool,
    alone: bool,
    leftovers: u32,
    problems: Vec<String>,
}

/// Waits for every process below us on a thread of its own: waiting is the one thing that blocks.
fn reaper() -> io::Result<(mpsc::Receiver<Reaped>, UnixStream)> {
    let (tell, told) = mpsc::channel();
    let (mut wake, woken) = UnixStream::pair()?;
    woken.set_nonblocking(true)?;
    wake.set_nonblocking(true)?;
    let wait = move || {
        loop {
            let message = match rustix::process::wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) => Reaped::One(pid, status),
                Ok(None) | Err(rustix::io::Errno::INTR) => continue,
                Err(_) => Reaped::All,
            };
            let last = matches!(message, Reaped::All);
            if tell.send(message).is_err() {
                return;
            }
            match wake.write(&[1]) {
                // A full pipe wakes as well as a fuller one.
                Ok(_) | Err(_) => {}
            }
            if last {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("reaper".into())
        .stack_size(64 << 10)
        .spawn(wait)?;
    Ok((told, woken))
}

pub(super) fn nonblocking(fd: &impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(
        fd,
        flags | rustix::fs::OFlags::NONBLOCK,
    )?)
}

impl Serve {
    pub(super) fn new(
        what: &Invocation,
        files: Files,
        listener: UnixListener,
        child: &mut Child,
        body: Body,
        problems: Vec<String>,
    ) -> io::Result<Self> {
        let leader = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let leader = leader.ok_or_else(|| io::Error::other("the job has no process number"))?;
        let (reaped, woken) = reaper()?;
        let redactor = what.redactor();
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        for pipe in [&stdout, &stderr].into_iter().flatten() {
            nonblocking(pipe)?;
        }
        let stdin = child.stdin.take();
        if let Some(stdin) = &stdin {
            nonblocking(stdin)?;
        }
        let now = Instant::now();
        let mut serve = Self {
            limits: what.limits,
            out: Stream {
                pipe: stdout,
                file: files.out,
                redactor: redactor.clone(),
                bytes: 0,
                unwritten: Vec::new(),
            },
            err: Stream {
                pipe: stderr,
                file: files.err,
                redactor,
                bytes: 0,
                unwritten: Vec::new(),
            },
            stdin,
            pending: VecDeque::new(),
            close_input: false,
            input: files.input,
            said: BTreeSet::new(),
            listener,
            connections: Vec::new(),
            leader,
            body,
            reaped,
            woken,
            begun: now,
            heard: now,
            stopped: None,
            kill_at: None,
            retry_at: None,
            exit: None,
            deaf: false,
            alone: false,
            leftovers: 0,
            problems,
        };
        if let Stdin::Bytes(bytes) = &what.stdin {
            if let Err(reason) = serve.say(0, bytes)? {
                serve.problems.push(format!("give it its input: {reason}"));
            }
            serve.close()?;
        }
        Ok(serve)
    }

    pub(super) fn run(mut self) -> io::Result<Ended> {
        while self.exit.is_none() {
            self.turn(self.deadline())?;
            self.enforce();
        }
        self.drain()?;
        for stream in [&mut self.out, &mut self.err] {
            let rest = stream.redactor.as_mut().map(Redactor::finish);
            let rest = rest.unwrap_or_default();
            stream.unwritten.extend(rest);
            if let Err(error) = stream.write() {
                let lost = stream.unwritten.len();
                self.problems
                    .push(format!("write the last {lost} bytes of output: {error}"));
            }
        }
        self.notify();
        Ok(Ended {
            exit: self.exit.unwrap_or(Exit::Signal(Signal::KILL.as_raw())),
            stopped: self.stopped,
            out_bytes: self.out.bytes,
            err_bytes: self.err.bytes,
            leftovers: self.leftovers,
            problems: self.problems,
        })
    }

    /// The program has ended: give its output a moment, then end whatever it left behind.
    fn drain(&mut self) -> io::Result<()> {
        self.stdin = None;
        // A warden takes its own time for what the program left, and tells how many that were.
        let fenced = self.body.inside.is_some() || self.body.around.is_some();
        let give_up = match (&self.body.around, fenced) {
            (Some(_), _) => DRAIN_CONTAINER,
            (None, true) => DRAIN_FENCED,
            (None, false) => DRAIN,
        };
        let give_up = Instant::now() + give_up;
        while !self.settled() && Instant::now() < give_up {
            self.turn(Some(give_up))?;
        }
        if !self.alone && !fenced {
            self.leftovers = u32::try_from(processes::descendants().len()).unwrap_or(u32::MAX);
        }
        let give_up = Instant::now() + REAP;
        while !self.settled() {
            if Instant::now() >= give_up {
                let left = processes::descendants().len();
                self.problems
                    .push(format!("{left} processes could not be ended"));
                break;
            }
            self.kill_all();
            self.turn(Some(Instant::now() + KILL_AGAIN))?;
            // All dead and still not at the end of the output: its other end is held by somebody
            // who is not of this job (a descriptor passed over a socket).
            if self.alone && Instant::now() + REAP > give_up + DRAIN && !self.settled() {
                self.problems
                    .push("the output is held open by a process of another job".into());
                break;
            }
        }
        Ok(())
    }

    fn settled(&self) -> bool {
        self.alone && self.out.pipe.is_none() && self.err.pipe.is_none()
    }

    fn kill_all(&mut self) {
        // Its engine takes it apart in order, and knows processes that are not below us.
        match (&self.body.around, self.body.killed) {
            (None, _) => {}
            (Some(_), Some(at)) if Instant::now() >= at + ENGINE_KILL => {}
            (Some(_), Some(_)) => return,
            (Some(around), None) => {
                self.body.killed = Some(Instant::now());
                match around::begin(&around.kill, &around.env) {
                    // The reaper waits for it.
                    Ok(_) => return,
                    Err(error) => self.problems.push(format!("kill the container: {error}")),
                }
            }
        }
        processes::signal_group(self.leader, Signal::KILL);
        if let Some(cgroup) = &self.body.cgroup {
            cgroup.kill();
        }
        for pid in processes::descendants() {
            processes::kill(pid);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let limit = |from: Instant, ms: u64| (ms > 0).then(|| from + Duration::from_millis(ms));
        if self.stopped.is_some() {
            return self.kill_at;
        }
        let wall = limit(self.begun, self.limits.wall_clock_ms);
        let idle = limit(self.heard, self.limits.idle_ms);
        wall.into_iter()
            .chain(idle)
            .chain(self.body.watch.next)
            .min()
    }

    /// Limits and the second rung of the ladder.
    fn enforce(&mut self) {
        let now = Instant::now();
        if self.exit.is_some() || self.deadline().is_none_or(|at| now < at) {
            return;
        }
        if self.stopped.is_some() {
            self.kill_all();
            self.kill_at = Some(now + KILL_AGAIN);
            return;
        }
        if self.body.watch.next.is_some_and(|at| now >= at)
            && let Some(why) = self.body.watch.look(now)
        {
            self.stop(why, self.limits.grace_ms);
            return;
        }
        let (wall_ms, idle_ms) = (self.limits.wall_clock_ms, self.limits.idle_ms);
        let wall = wall_ms > 0 && now >= self.begun + Duration::from_millis(wall_ms);
        let idle = idle_ms > 0 && now >= self.heard + Duration::from_millis(idle_ms);
        if wall {
            self.stop(Stop::WallClock { limit_ms: wall_ms }, self.limits.grace_ms);
        } else if idle {
            self.stop(Stop::Idle { limit_ms: idle_ms }, self.limits.grace_ms);
        }
    }

    /// The first rung: ask the group, and set the time of the second.
    fn stop(&mut self, why: Stop, grace_ms: u64) {
        if self.exit.is_some() {
            return;
        }
        let kill_at = Instant::now() + Duration::from_millis(grace_ms);
        self.kill_at = Some(self.kill_at.map_or(kill_at, |at| at.min(kill_at)));
        if self.stopped.is_none() {
            self.stopped = Some(why);
            match (&mut self.body.inside, &self.body.around) {
                // What is around the warden would end everything at once.
                (Some(inside), _) => inside.signal(Signal::TERM.as_raw()),
                (None, Some(around)) => match around::begin(&around.term, &around.env) {
                    Ok(_) => {}
                    Err(error) => self.problems.push(format!("ask the container: {error}")),
                },
                (None, None) => processes::signal_group(self.leader, Signal::TERM),
            }
        }
    }

    fn turn(&mut self, until: Option<Instant>) -> io::Result<()> {
        let until = until.into_iter().chain(self.retry_at).min();
        let ready = self.wait(until)?;
        self.unstall();
        if ready.woken {
            let mut sink = [0; 64];
            while matches!(self.woken.read(&mut sink), Ok(n) if n > 0) {}
        }
        if ready.inside {
            self.hear_inside();
        }
        while let Ok(reaped) = self.reaped.try_recv() {
            match reaped {
                Reaped::One(pid, status) if pid == self.leader => {
                    // The warden's last words may still lie in the socket.
                    self.hear_inside();
                    let exit = exit_of(status);
                    let client = self.body.around.is_some();
                    self.exit = self.exit.or(Some(if client { behind(exit) } else { exit }));
                }
                Reaped::One(..) => {}
                Reaped::All => self.alone = true,
            }
        }
        let mut grew = false;
        if ready.out {
            grew |= self.pump(true)?;
        }
        if ready.err {
            grew |= self.pump(false)?;
        }
        if grew {
            self.heard = Instant::now();
            self.notify();
        }
        if ready.stdin {
            self.feed();
        }
        if ready.listener {
            self.accept();
        }
        for index in ready.connections {
            self.receive(index)?;
        }
        self.connections.retain(|connection| !connection.closed);
        Ok(())
    }

    fn hear_inside(&mut self) {
        let Some(inside) = &mut self.body.inside else {
            return;
        };
        match inside.hear() {
            None => self.deaf = true,
            Some(words) => {
                for word in words {
                    match word {
                        Word::Exit(exit) => self.exit = self.exit.or(Some(exit)),
                        Word::Left(left) => self.leftovers = left,
                        Word::Memory => {
                            let limit_bytes = self.limits.memory_bytes;
                            self.stopped.get_or_insert(Stop::Memory { limit_bytes });
                        }
                    }
                }
            }
        }
    }

    fn wait(&self, until: Option<Instant>) -> io::Result<Ready> {
        let mut fds = vec![
            PollFd::new(&self.woken, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        let out = self
            .out
            .pipe
            .as_ref()
            .filter(|_| self.out.unwritten.is_empty())
            .map(|pipe| {
                fds.push(PollFd::new(pipe, PollFlags::IN));
                fds.len() - 1
            });
        let err = self
            .err
            .pipe
            .as_ref()
            .filter(|_| self.err.unwritten.is_empty())
            .map(|pipe| {
                fds.push(PollFd::new(pipe, PollFlags::IN));
                fds.len() - 1
            });
        let stdin = self
            .stdin
            .as_ref()
            .filter(|_| !self.pending.is_empty())
            .map(|pipe| {
                fds.push(PollFd::new(pipe, PollFlags::OUT));
                fds.len() - 1
            });
        let socket = self
            .body
            .inside
            .as_ref()
            .filter(|_| !self.deaf)
            .map(Inside::socket);
        let inside = socket.as_ref().map(|socket| {
            fds.push(PollFd::new(socket, PollFlags::IN));
            fds.len() - 1
        });
        let first = fds.len();
        for connection in &self.connections {
            fds.push(PollFd::new(&connection.stream, PollFlags::IN));
        }
        // Rounded up to the next millisecond, so that a deadline is over when we wake for it.
        let timeout = until.map(|at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
            Timespec::try_from(left).unwrap_or(Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            })
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let hit = |index: usize| !fds[index].revents().is_empty();
        Ok(Ready {
            woken: hit(0),
            listener: hit(1),
            out: out.is_some_and(hit),
            err: err.is_some_and(hit),
            stdin: stdin.is_some_and(hit),
            inside: inside.is_some_and(hit),
            connections: (first..fds.len())
                .filter(|i| hit(*i))
                .map(|i| i - first)
                .collect(),
        })
    }

    /// Takes what one pipe has. Below the cap every byte is kept; the byte above it ends the job.
    fn pump(&mut self, out: bool) -> io::Result<bool> {
        let mut chunk = [0; CHUNK_BYTES];
        let waiting = self.out.unwritten.len() + self.err.unwritten.len();
        let total = self.out.bytes + self.err.bytes + waiting as u64;
        let stream = if out { &mut self.out } else { &mut self.err };
        let Some(pipe) = &stream.pipe else {
            return Ok(false);
        };
        let n = match rustix::io::read(pipe, &mut chunk) {
            Ok(0) => {
                stream.pipe = None;
                return Ok(false);
            }
            Ok(n) => n,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let shown = match &mut stream.redactor {
            Some(redactor) => redactor.push(&chunk[..n]),
            None => chunk[..n].to_vec(),
        };
        let cap = self.limits.output_bytes;
        let room = if cap == 0 {
            u64::MAX
        } else {
            cap.saturating_sub(total)
        };
        let kept = usize::try_from(room).unwrap_or(usize::MAX).min(shown.len());
        stream.unwritten.extend_from_slice(&shown[..kept]);
        let written = stream.write();
        if let Err(error) = written {
            self.stalled(&error);
        }
        if kept < shown.len() {
            self.stop(Stop::OutputBytes { limit_bytes: cap }, self.limits.grace_ms);
        }
        Ok(true)
    }

    fn stalled(&mut self, error: &io::Error) {
        self.retry_at = Some(Instant::now() + DISK_RETRY);
        if self.problems.len() < PROBLEMS_MAX {
            self.problems
                .push(format!("the job had to wait: write its output: {error}"));
        }
    }

    /// Tries again what a full disk refused.
    fn unstall(&mut self) {
        if self.retry_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.retry_at = None;
        let written = self.out.write().and_then(|()| self.err.write());
        if let Err(error) = written {
            self.stalled(&error);
        }
    }

    /// Tells the watchers; a full socket means that a notice is waiting already.
    fn notify(&mut self) {
        for connection in self
            .connections
            .iter_mut()
            .filter(|connection| connection.watches)
        {
            match connection.stream.write(b"g\n") {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => connection.closed = true,
            }
        }
    }

    fn feed(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        let (front, _) = self.pending.as_slices();
        match stdin.write(front) {
            Ok(n) => {
                self.pending.drain(..n);
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            // It reads no more.
            Err(_) => {
                self.pending.clear();
                self.stdin = None;
            }
        }
        if self.close_input && self.pending.is_empty() {
            self.stdin = None;
        }
    }

    /// Recorded before it is given, so that a replay knows what may have been heard.
    fn say(&mut self, id: u64, bytes: &[u8]) -> io::Result<Result<(), &'static str>> {
        if self.said.contains(&id) {
            return Ok(Ok(()));
        }
        if self.close_input || self.stdin.is_none() {
            return Ok(Err(INPUT_CLOSED));
        }
        if self.pending.len() + bytes.len() > PENDING_INPUT_BYTES_MAX {
            return Ok(Err("it does not read what it was given before"));
        }
        let mut frame = format!("say {id} {}\n", bytes.len()).into_bytes();
        frame.extend_from_slice(bytes);
        frame.push(b'\n');
        self.input.write_all(&frame)?;
        self.said.insert(id);
        self.pending.extend(bytes);
        self.feed();
        Ok(Ok(()))
    }

    fn close(&mut self) -> io::Result<()> {
        if !self.close_input {
            self.input.write_all(b"close\n")?;
            self.close_input = true;
            self.feed();
        }
        Ok(())
    }

    fn accept(&mut self) {
        while let Ok((mut stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.connections.len() >= CONNECTIONS_MAX {
                match stream.write(TOO_MANY) {
                    // Told or not, it is let go.
                    Ok(_) | Err(_) => {}
                }
            } else {
                let connection = Connection {
                    stream,
                    orders: Orders::default(),
                    watches: false,
                    closed: false,
                };
                self.connections.push(connection);
            }
        }
    }

    fn receive(&mut self, index: usize) -> io::Result<()> {
        let connection = &mut self.connections[index];
        let mut chunk = [0; CHUNK_BYTES];
        match connection.stream.read(&mut chunk) {
            Ok(n) if n > 0 => connection.orders.push(&chunk[..n]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Ok(_) | Err(_) => connection.closed = true,
        }
        loop {
            let order = match self.connections[index].orders.take() {
                Ok(Some(order)) => order,
                Ok(None) => return Ok(()),
                Err(TooLong) => {
                    self.connections[index].closed = true;
                    return Ok(());
                }
            };
            let answer = match self.obey(index, order)? {
                Ok(()) => "ok\n".to_owned(),
                Err(reason) => format!("no {reason}\n"),
            };
            let connection = &mut self.connections[index];
            if connection.stream.write_all(answer.as_bytes()).is_err() {
                connection.closed = true;
            }
        }
    }

    fn obey(&mut self, index: usize, order: Order) -> io::Result<Result<(), &'static str>> {
        match order {
            Order::Watch => self.connections[index].watches = true,
            Order::Close => self.close()?,
            Order::Say { id, bytes } => return self.say(id, &bytes),
            Order::Stop { grace_ms, why } => self.stop(why, grace_ms),
            Order::Bad(reason) => return Ok(Err(reason)),
        }
        Ok(Ok(()))
    }
}

struct Ready {
    woken: bool,
    listener: bool,
    out: bool,
    err: bool,
    stdin: bool,
    inside: bool,
    connections: Vec<usize>,
}

fn exit_of(status: WaitStatus) -> Exit {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Signal(Signal::KILL.as_raw()),
    }
}

/// What the exit of a container's client says of the program, where no warden said it.
fn behind(exit: Exit) -> Exit {
    match exit {
        Exit::Code(code) if code > SIGNALLED && code <= SIGNALLED + 64 => {
            Exit::Signal(code - SIGNALLED)
        }
        exit => exit,
    }
}

/// The loop failed (it can only be the disk or the kernel): end the job rather than lose sight of it.
pub(super) fn give_up(child: &mut Child, error: &io::Error) -> Ended {
    let mut problems = vec![format!("the keeper could not go on: {error}")];
    end_all();
    if let Err(error) = child.kill() {
        problems.push(format!("kill the job: {error}"));
    }
    Ended {
        exit: Exit::Signal(Signal::KILL.as_raw()),
        stopped: None,
        out_bytes: 0,
        err_bytes: 0,
        leftovers: 0,
        problems,
    }
}

/// Takes back a fence whose program never ran, and passes the reason on.
pub(super) fn undo(mut child: Child, reason: String) -> String {
    let killed = child.kill().and_then(|()| child.wait().map(drop));
    end_all();
    match killed {
        Ok(()) => reason,
        Err(error) => format!("{reason}; end the fence: {error}"),
    }
}

/// Whatever is below us, reaped too: a dead child that nobody waits for would count as alive.
fn end_all() {
    let until = Instant::now() + REAP;
    while !processes::descendants().is_empty() && Instant::now() < until {
        for pid in processes::descendants() {
            processes::kill(pid);
        }
        std::thread::sleep(KILL_AGAIN);
        while matches!(rustix::process::wait(WaitOptions::NOHANG), Ok(Some(_))) {}
    }
}
