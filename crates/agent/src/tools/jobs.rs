//! Commands under way: each with what it prints, its input and its end, whether somebody waits for
//! it or not. Must not outlive the agent, and must not be more than there is room for.

use std::{
    collections::BTreeMap,
    process::ExitStatus,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use dispatch_core::native::Live;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::ChildStdin,
    sync::{mpsc, watch},
    time::{sleep, sleep_until, timeout},
};

use super::{
    Place, Wrong,
    capture::Capture,
    group::{Group, Pipes},
};

const RUNNING_MAX: usize = 32;
/// Ended ones that can still be asked about; the oldest go first.
const ENDED_MAX: usize = 64;
/// From the end of a command until what it left running, and what holds its output, is ended.
const DRAIN: Duration = Duration::from_millis(200);
/// From asking a command to end until it is ended: all of a stop is over within a second.
const GRACE: Duration = Duration::from_millis(400);
const END_ALL: Duration = Duration::from_millis(900);
const CHUNK_BYTES: usize = 64 << 10;
/// What is shown while it runs, and how often.
const SHOWN_BYTES: usize = 2 << 10;
const SHOWN_EVERY: Duration = Duration::from_millis(100);
/// For a command that does not read its input.
const INPUT_LIMIT: Duration = Duration::from_secs(5);

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Code(i32),
    Signal(i32),
    /// It took longer than it may.
    TimedOut(Duration),
    /// It was told to end.
    Killed,
    /// How it ended could not be found out.
    Unknown(String),
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: String,
    pub(super) command: String,
    begun: Instant,
    out: Mutex<Capture>,
    err: Mutex<Capture>,
    ended: watch::Receiver<Option<Ended>>,
    kill: mpsc::Sender<()>,
    input: tokio::sync::Mutex<Option<ChildStdin>>,
}

#[derive(Debug, Default)]
pub(super) struct Jobs(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    jobs: BTreeMap<u64, Arc<Job>>,
}

/// What is asked of a new job.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) call: String,
    pub(super) command: String,
    pub(super) limit: Option<Duration>,
    pub(super) open_input: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Jobs {
    pub(super) fn start(place: &Arc<Place>, order: Order) -> Result<Arc<Job>, Wrong> {
        let running = place.jobs.running().len();
        if running >= RUNNING_MAX {
            let text = format!("{running} commands are running; end some with shell_jobs first");
            return Err(Wrong::new(text));
        }
        let started = Group::start(
            &order.command,
            place.root(),
            &place.hidden,
            order.open_input,
        );
        let (group, pipes) =
            started.map_err(|error| Wrong::new(format!("start a shell: {error}")))?;
        let (tell, ended) = watch::channel(None);
        let (kill, killed) = mpsc::channel(1);
        let Pipes {
            stdin,
            stdout,
            stderr,
        } = pipes;
        let job = {
            let mut table = locked(&place.jobs.0);
            table.next += 1;
            let n = table.next;
            let job = Arc::new(Job {
                id: format!("job-{n}"),
                command: order.command,
                begun: Instant::now(),
                out: Mutex::default(),
                err: Mutex::default(),
                ended,
                kill,
                input: tokio::sync::Mutex::new(stdin),
            });
            table.jobs.insert(n, Arc::clone(&job));
            table.forget_oldest();
            job
        };
        let reads = (
            read(
                stdout,
                Arc::clone(&job),
                Arc::clone(place),
                order.call.clone(),
                true,
            ),
            read(
                stderr,
                Arc::clone(&job),
                Arc::clone(place),
                order.call,
                false,
            ),
        );
        // Ends with the runtime, and takes its group with it.
        tokio::spawn(async move {
            let ended = supervise(group, killed, order.limit, reads).await;
            tell.send_replace(Some(ended));
        });
        Ok(job)
    }

    pub(super) fn get(&self, id: &str) -> Result<Arc<Job>, Wrong> {
        let table = locked(&self.0);
        let found = table.jobs.values().find(|job| job.id == id).cloned();
        found.ok_or_else(|| {
            let there: Vec<&str> = table.jobs.values().map(|job| job.id.as_str()).collect();
            let there = if there.is_empty() {
                "none".into()
            } else {
                there.join(", ")
            };
            Wrong::new(format!("there is no job {id:?}; there are {there}"))
        })
    }

    pub(super) fn all(&self) -> Vec<Arc<Job>> {
        locked(&self.0).jobs.values().cloned().collect()
    }

    fn running(&self) -> Vec<Arc<Job>> {
        let mut all = self.all();
        all.retain(|job| job.ended().is_none());
        all
    }

    /// Nobody will ask about it again.
    pub(super) fn forget(&self, job: &Job) {
        locked(&self.0).jobs.retain(|_, known| known.id != job.id);
    }

    pub(super) async fn end_all(&self) {
        let running = self.running();
        for job in &running {
            job.kill();
        }
        let all = async {
            for job in &running {
                job.wait().await;
            }
        };
        match timeout(END_ALL, all).await {
            // What is left is killed with the runtime, and by the keeper after it.
            Ok(()) | Err(_) => {}
        }
    }
}

impl Table {
    fn forget_oldest(&mut self) {
        let ended = |(n, job): (&u64, &Arc<Job>)| job.ended().is_some().then_some(*n);
        let ended: Vec<u64> = self.jobs.iter().filter_map(ended).collect();
        for n in ended.iter().take(ended.len().saturating_sub(ENDED_MAX)) {
            self.jobs.remove(n);
        }
    }
}

impl Job {
    pub(super) fn ended(&self) -> Option<Ended> {
        self.ended.borrow().clone()
    }

    pub(super) async fn wait(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(Ended::Killed),
            // Its supervisor ended with the runtime.
            Err(_) => Ended::Killed,
        }
    }

    pub(super) fn kill(&self) {
        match self.kill.try_send(()) {
            // Once is enough, and none when it has ended.
            Ok(()) | Err(_) => {}
        }
    }

    pub(super) async fn say(&self, text: &str, close: bool) -> Result<(), Wrong> {
        let mut input = self.input.lock().await;
        let Some(pipe) = input.as_mut() else {
            return Err(Wrong::new(format!("the input of {} is closed", self.id)));
        };
        let written = timeout(INPUT_LIMIT, pipe.write_all(text.as_bytes())).await;
        if close {
            *input = None;
        }
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Wrong::new(format!("write to {}: {error}", self.id))),
            Err(_) => Err(Wrong::new(format!(
                "write to {}: it does not read",
                self.id
            ))),
        }
    }

    pub(super) fn last(&self, chars: usize) -> (String, String) {
        (locked(&self.out).last(chars), locked(&self.err).last(chars))
    }

    pub(super) fn seconds(&self) -> u64 {
        self.begun.elapsed().as_secs()
    }

    pub(super) fn bytes(&self) -> u64 {
        locked(&self.out).bytes() + locked(&self.err).bytes()
    }

    /// What the model is told of its end.
    pub(super) fn told(&self, ended: &Ended) -> String {
        let code = match ended {
            Ended::Code(code) => Some(*code),
            _ => None,
        };
        let mut told = json!({
            "stdout": locked(&self.out).told(),
            "stderr": locked(&self.err).told(),
            "exitCode": code,
        });
        let error = match ended {
            Ended::Code(_) => None,
            Ended::Signal(signal) => Some(format!("it was ended by signal {signal}")),
            Ended::TimedOut(limit) => Some(format!(
                "it was ended after {} ms; say how long it may take with timeout, or use background",
                limit.as_millis()
            )),
            Ended::Killed => Some("it was told to end".to_owned()),
            Ended::Unknown(why) => Some(format!("how it ended is not known: {why}")),
        };
        if let Some(error) = error {
            told["error"] = json!(error);
        }
        told.to_string()
    }
}

async fn supervise(
    mut group: Group,
    mut killed: mpsc::Receiver<()>,
    limit: Option<Duration>,
    reads: (impl Future<Output = ()>, impl Future<Output = ()>),
) -> Ended {
    let read_all = async { tokio::join!(reads.0, reads.1) };
    tokio::pin!(read_all);
    let mut read = false;
    let deadline = limit.map(|limit| tokio::time::Instant::now() + limit);
    let over = async {
        match deadline {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(over);
    let ended = loop {
        tokio::select! {
            _ = &mut read_all, if !read => read = true,
            status = group.wait() => break match status {
                Ok(status) => of_status(status),
                Err(error) => Ended::Unknown(error.to_string()),
            },
            _ = killed.recv() => {
                end(&mut group, &mut read_all, &mut read).await;
                break Ended::Killed;
            }
            () = &mut over => {
                end(&mut group, &mut read_all, &mut read).await;
                break Ended::TimedOut(limit.unwrap_or_default());
            }
        }
    };
    // What it left running may hold its output open.
    if !read {
        tokio::select! {
            _ = &mut read_all => read = true,
            () = sleep(DRAIN) => {}
        }
    }
    group.kill().await;
    if !read {
        tokio::select! {
            _ = &mut read_all => {}
            () = sleep(DRAIN) => {}
        }
    }
    ended
}

/// Its output is read meanwhile: what it says last may be why.
async fn end<T>(
    group: &mut Group,
    read_all: &mut (impl Future<Output = T> + Unpin),
    read: &mut bool,
) {
    let end = group.end(GRACE);
    tokio::pin!(end);
    loop {
        tokio::select! {
            _ = &mut *read_all, if !*read => *read = true,
            _ = &mut end => return,
        }
    }
}

fn of_status(status: ExitStatus) -> Ended {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Code(code),
        (None, Some(signal)) => Ended::Signal(signal),
        (None, None) => Ended::Unknown(status.to_string()),
    }
}

async fn read(
    pipe: Option<impl AsyncRead + Unpin>,
    job: Arc<Job>,
    place: Arc<Place>,
    call: String,
    out: bool,
) {
    let Some(mut pipe) = pipe else { return };
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut shown: Option<Instant> = None;
    loop {
        let n = match pipe.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(n) => n,
        };
        let capture = if out { &job.out } else { &job.err };
        locked(capture).push(&chunk[..n], &place.spill);
        if shown.is_none_or(|at| at.elapsed() >= SHOWN_EVERY) {
            shown = Some(Instant::now());
            let last = &chunk[n.saturating_sub(SHOWN_BYTES)..n];
            let text = String::from_utf8_lossy(last).into_owned();
            let call = call.clone();
            place.show(Live::Output { call, text });
        }
    }
}
