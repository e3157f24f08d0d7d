//! A site in memory: jobs that were decided beforehand, for tests of the engine and of embedders.
//! Must not start a process or touch a file.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dispatch_core::{
    id::RunId,
    job::{Exit, ExitReport, Invocation, JobId, Offset, Order, Part},
};
use tokio::sync::Notify;

use super::{BoxFuture, Follow, JobEvent, Site, Start};

/// What a fake job does.
#[derive(Clone, Debug)]
pub struct Plan {
    pub start: Start,
    pub out: Vec<u8>,
    /// `None`: it runs until it is told to stop.
    pub exit: Option<Exit>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            start: Start::Started,
            out: b"done\n".to_vec(),
            exit: Some(Exit::Code(0)),
        }
    }
}

#[derive(Debug)]
struct Job {
    out: Vec<u8>,
    report: Option<ExitReport>,
    said: BTreeSet<u64>,
    /// For how long each stop has asked before a kill.
    stops: Vec<u64>,
}

#[derive(Debug, Default)]
struct World {
    plan: Plan,
    /// The plan is for agents; every other job ends at once and well.
    talks: bool,
    /// Agents go on when they are asked to end, and end when they are killed.
    stubborn: bool,
    jobs: BTreeMap<JobId, Job>,
    starts: BTreeMap<JobId, u32>,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

/// Shared between clones, like a machine is between two engines.
#[derive(Clone, Debug, Default)]
pub struct Fake {
    world: Arc<Mutex<World>>,
    changed: Arc<Notify>,
}

impl Fake {
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        let fake = Self::default();
        fake.world().plan = plan;
        fake
    }

    /// Agents that run until they are ended and say what they are told to.
    #[must_use]
    pub fn talking() -> Self {
        let fake = Self::new(Plan {
            out: Vec::new(),
            exit: None,
            ..Plan::default()
        });
        fake.world().talks = true;
        fake
    }

    /// The same, and they end only when they are killed.
    #[must_use]
    pub fn stubborn() -> Self {
        let fake = Self::talking();
        fake.world().stubborn = true;
        fake
    }

    /// How long each stop of a run's agent has asked before it was to be killed, in milliseconds.
    #[must_use]
    pub fn stops(&self, run: RunId) -> Vec<u64> {
        let part = Part::Agent;
        let world = self.world();
        let job = world.jobs.get(&JobId { run, part });
        job.map(|job| job.stops.clone()).unwrap_or_default()
    }

    /// Waits until a run's agent was stopped so often.
    pub async fn stopped(&self, run: RunId, times: usize) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.stops(run).len() >= times {
                return;
            }
            changed.await;
        }
    }

    /// More output of a run's agent. One that has ended, or has not begun, says nothing.
    pub fn say(&self, run: RunId, bytes: &[u8]) {
        self.change(run, |job| job.out.extend_from_slice(bytes));
    }

    /// The end of a run's agent.
    pub fn end(&self, run: RunId, exit: Exit) {
        self.change(run, |job| {
            job.report = Some(report(exit, job.out.len() as u64));
        });
    }

    fn change(&self, run: RunId, change: impl FnOnce(&mut Job)) {
        let part = Part::Agent;
        let mut world = self.world();
        let job = world.jobs.get_mut(&JobId { run, part });
        job.filter(|job| job.report.is_none()).map(change);
        drop(world);
        self.changed.notify_waiters();
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often each agent job was given a body. More than once would be a doubled run.
    #[must_use]
    pub fn agent_starts(&self) -> Vec<u32> {
        let world = self.world();
        world
            .starts
            .iter()
            .filter(|(job, _)| job.part == Part::Agent)
            .map(|(_, n)| *n)
            .collect()
    }
}

fn report(exit: Exit, out_bytes: u64) -> ExitReport {
    ExitReport {
        exit,
        stopped: None,
        started_at: 0,
        ended_at: 0,
        out_bytes,
        err_bytes: 0,
        leftovers: 0,
        problems: Vec::new(),
    }
}

impl Site for Fake {
    fn put<'a>(&'a self, path: &'a Path, bytes: &'a [u8]) -> BoxFuture<'a, io::Result<()>> {
        self.world().files.insert(path.to_owned(), bytes.to_vec());
        Box::pin(async { Ok(()) })
    }

    fn start<'a>(&'a self, job: &'a JobId, _what: &'a Invocation) -> BoxFuture<'a, Start> {
        let mut world = self.world();
        let plan = if world.talks && job.part != Part::Agent {
            Plan::default()
        } else {
            world.plan.clone()
        };
        let start = if world.jobs.contains_key(job) {
            Start::Unknown("this job was started before".into())
        } else {
            if plan.start == Start::Started {
                *world.starts.entry(job.clone()).or_default() += 1;
                let exit = plan.exit.map(|exit| report(exit, plan.out.len() as u64));
                let fake = Job {
                    out: plan.out,
                    report: exit,
                    said: BTreeSet::new(),
                    stops: Vec::new(),
                };
                world.jobs.insert(job.clone(), fake);
            }
            plan.start
        };
        drop(world);
        Box::pin(async move { start })
    }

    fn follow<'a>(
        &'a self,
        job: &'a JobId,
        from: Offset,
    ) -> BoxFuture<'a, io::Result<Box<dyn Follow>>> {
        let follow = FakeFollow {
            site: self.clone(),
            job: job.clone(),
            at: from.out,
            told_alive: false,
        };
        Box::pin(async move { Ok(Box::new(follow) as Box<dyn Follow>) })
    }

    fn order<'a>(&'a self, job: &'a JobId, order: &'a Order) -> BoxFuture<'a, io::Result<()>> {
        let mut world = self.world();
        let stubborn = world.stubborn;
        let ended = || io::Error::new(io::ErrorKind::NotFound, "the job has ended");
        let result = match world.jobs.get_mut(job).filter(|job| job.report.is_none()) {
            None => Err(ended()),
            Some(job) => {
                match order {
                    Order::Say { id, .. } => {
                        job.said.insert(*id);
                    }
                    Order::CloseInput => {
                        job.report = Some(report(Exit::Code(0), job.out.len() as u64));
                    }
                    Order::Stop { grace_ms, .. } if stubborn && *grace_ms > 0 => {
                        job.stops.push(*grace_ms);
                    }
                    Order::Stop { why, .. } | Order::Kill { why } => {
                        job.stops.push(0);
                        let stopped = Some(why.clone());
                        let by = report(Exit::Signal(15), job.out.len() as u64);
                        job.report = Some(ExitReport { stopped, ..by });
                    }
                }
                Ok(())
            }
        };
        drop(world);
        self.changed.notify_waiters();
        Box::pin(async move { result })
    }
}

struct FakeFollow {
    site: Fake,
    job: JobId,
    at: u64,
    told_alive: bool,
}

impl FakeFollow {
    fn look(&mut self) -> Option<JobEvent> {
        let world = self.site.world();
        let Some(job) = world.jobs.get(&self.job) else {
            return Some(JobEvent::NeverStarted);
        };
        let from = usize::try_from(self.at)
            .unwrap_or(usize::MAX)
            .min(job.out.len());
        if from < job.out.len() {
            self.at = job.out.len() as u64;
            return Some(JobEvent::Out(job.out[from..].to_vec()));
        }
        if job.report.is_none() && !std::mem::replace(&mut self.told_alive, true) {
            return Some(JobEvent::Alive);
        }
        job.report.clone().map(JobEvent::Exited)
    }
}

impl Follow for FakeFollow {
    fn next(&mut self) -> BoxFuture<'_, io::Result<JobEvent>> {
        Box::pin(async move {
            loop {
                let changed = Arc::clone(&self.site.changed);
                let mut waiting = std::pin::pin!(changed.notified());
                waiting.as_mut().enable();
                if let Some(event) = self.look() {
                    return Ok(event);
                }
                waiting.await;
            }
        })
    }
}
