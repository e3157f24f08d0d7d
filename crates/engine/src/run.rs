//! One run, top to bottom: prepare, start, follow, judge, check, seal. First contact and
//! re-attachment are the same walk: it asks the job directory and goes on from there.
//! Must not change state: it reports facts and waits until they are durable before it acts on them.

mod account;
mod aid;
mod begin;
mod follow;
mod invocation;
mod judge;
mod placed;
mod recover;
mod tools;

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use dispatch_core::{
    config::AgentProfile,
    event::{Kind, Subject, Verified},
    id::{RunId, SiteName},
    job::{ExitReport, JobId, Order, Part},
    message::Sender,
    outcome::{Failure, Outcome, Stop},
    redact::Redactor,
    review::Range,
    run::RunState,
    secret::Secret,
    state::{Run, Task},
    update::Said,
};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{
    doorkeys::DoorKey,
    engine::{Command, Desk, Purse, Secrets, Settings, Sites, StopOrder},
    fence::Fences,
    sidecar::{Followed, Watched, Watcher},
    sites::Site,
    tail::Tail,
    trees::{TreeError, Trees},
    view::{Force, VerbError},
};

/// Behind any output: only the end is of interest. A file offset is a signed number.
const FAR: u64 = 1 << 62;

/// What every supervisor works with.
#[derive(Clone)]
pub(crate) struct Ctx {
    pub(crate) settings: Arc<Settings>,
    pub(crate) sites: Arc<Sites>,
    pub(crate) trees: Arc<Trees>,
    pub(crate) fences: Arc<Fences>,
    pub(crate) desk: Arc<Desk>,
    pub(crate) door_key: Arc<DoorKey>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) tail: Arc<Tail>,
}

/// Whether the run was admitted just now or found open in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Start,
    Log,
}

pub(crate) struct Supervised {
    pub(crate) task: Task,
    pub(crate) run: RunId,
    /// Offset in the output up to which updates are in the log.
    pub(crate) recorded: u64,
    pub(crate) secrets: Secrets,
    /// All the agent needs from the dispatcher's environment is there.
    pub(crate) complete: bool,
    pub(crate) from: From,
    /// Rung when there is a message for it.
    pub(crate) bell: Arc<Notify>,
    /// What it spends, and what those spend that it asks for.
    pub(crate) purse: Arc<Purse>,
    /// Who is to answer what its agent asks permission for.
    pub(crate) answers: Sender,
}

/// Why a supervisor ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Judged,
    NeedsSecrets,
    /// The engine is gone; nothing was decided.
    Cut,
}

/// The engine has ended, so nothing more can be made durable.
struct Cut;

/// Either the run is over with an outcome, or we cannot go on.
enum Stopped {
    Outcome(Outcome),
    NeedsSecrets,
    Cut,
}

impl std::convert::From<Cut> for Stopped {
    fn from(_: Cut) -> Self {
        Self::Cut
    }
}

impl std::convert::From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Outcome(Outcome::Failed(failure))
    }
}

pub(crate) async fn supervise(
    ctx: Ctx,
    job: Supervised,
    orders: mpsc::Receiver<StopOrder>,
) -> Ended {
    let run = job.run;
    let redactor = Redactor::new(job.secrets.values().map(Secret::expose));
    let (watcher, told) = mpsc::channel(1);
    let watching = Watcher {
        ctx: ctx.clone(),
        run,
        told,
        redactor: redactor.clone(),
        known: match job.from {
            // What an earlier run was refused is no reason to be silent about this one's.
            From::Start => BTreeSet::new(),
            From::Log => job.task.notes.iter().cloned().collect(),
        },
    };
    let mut walk = Walk {
        ctx,
        redactor,
        job,
        orders,
        stop: None,
        range: None,
        first: None,
        swept: false,
        watcher,
        aided: None,
    };
    walk.range = walk.run().and_then(|run| run.range.clone());
    // A note must not wait for the agent's next word, nor the agent for a note.
    let mut watching = std::pin::pin!(watching.watch());
    let walked = {
        let mut walking = std::pin::pin!(walk.walk_and_end_sidecar());
        tokio::select! {
            walked = &mut walking => walked,
            // Never before the walk, which can tell it of another sidecar.
            () = &mut watching => walking.await,
        }
    };
    let (outcome, verified) = match walked {
        Ok(ended) => ended,
        Err(Stopped::Outcome(outcome)) => (outcome, Verified::NotVerified),
        Err(Stopped::NeedsSecrets) => return Ended::NeedsSecrets,
        Err(Stopped::Cut) => return Ended::Cut,
    };
    match walk.finish(run, outcome, verified).await {
        Ok(()) => Ended::Judged,
        Err(Cut) => Ended::Cut,
    }
}

struct Walk {
    ctx: Ctx,
    job: Supervised,
    orders: mpsc::Receiver<StopOrder>,
    /// For what is told and never recorded; events are masked where they are written.
    redactor: Redactor,
    /// Set once a person asked for the end.
    stop: Option<Force>,
    /// The commits under review.
    range: Option<Range>,
    /// What is said to it first.
    first: Option<Vec<u8>>,
    /// Its keeper has ended all of it, so another run may have the workspace.
    swept: bool,
    watcher: mpsc::Sender<Watched>,
    /// This run's sidecar, once it was started or found.
    aided: Option<Followed>,
}

/// What following the agent to its end has shown.
struct Heard {
    said: Said,
    /// `None`: the end was not seen.
    report: Option<ExitReport>,
}

impl Walk {
    fn id(&self, part: Part) -> JobId {
        JobId {
            run: self.job.run,
            part,
        }
    }

    fn run(&self) -> Option<&Run> {
        self.job
            .task
            .runs
            .get((self.job.run.n as usize).checked_sub(1)?)
    }

    async fn record(&self, subject: Subject, kinds: Vec<Kind>) -> Result<(), Cut> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Record {
            subject,
            kinds,
            reply,
        };
        self.ctx.commands.send(command).await.map_err(|_| Cut)?;
        match answer.await {
            // A refused event is a bug that the actor has noted; the run goes on to its end.
            Ok(Ok(()) | Err(_)) => Ok(()),
            Err(_) => Err(Cut),
        }
    }

    async fn finish(&self, run: RunId, outcome: Outcome, verified: Verified) -> Result<(), Cut> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Finish {
            run,
            outcome,
            verified,
            swept: self.swept,
            reply,
        };
        self.ctx.commands.send(command).await.map_err(|_| Cut)?;
        match answer.await {
            Ok(Ok(()) | Err(_)) => Ok(()),
            Err(_) => Err(Cut),
        }
    }

    async fn tell(&self, kind: Kind) -> Result<(), Cut> {
        self.record(Subject::Run(self.job.run), vec![kind]).await
    }

    /// Work on files and git, off the runtime.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Trees, &Task) -> T + Send + 'static,
    ) -> Result<T, Cut> {
        let (trees, task) = (Arc::clone(&self.ctx.trees), self.job.task.clone());
        tokio::task::spawn_blocking(move || work(&trees, &task))
            .await
            .map_err(|_| Cut)
    }

    async fn walk(&mut self) -> Result<(Outcome, Verified), Stopped> {
        let state = self.run().map_or(RunState::Queued, |run| run.state.clone());
        let from_log = self.job.from == From::Log;
        let checking = from_log && state == RunState::Checking;
        let (site, profile, mut driver) = match self.attach(from_log).await? {
            Some(site) => match self
                .adopt(&site, from_log && state == RunState::Preparing)
                .await
            {
                Ok((profile, driver)) => (site, profile, driver),
                Err(Stopped::Cut) => return Err(Stopped::Cut),
                // It lives, and we cannot understand it: a run that has ended leaves nothing alive.
                Err(stopped) => {
                    self.abandon(&site).await?;
                    return Err(stopped);
                }
            },
            None => {
                // Nothing of it has been said before.
                self.ctx.tail.show(self.job.run);
                if from_log {
                    self.clear_sidecar().await?;
                }
                if !self.job.complete {
                    return Err(Stopped::NeedsSecrets);
                }
                let profile = self.profile()?;
                let mut driver = profile.driver.driver();
                let site = self.begin(driver.as_mut(), &profile).await?;
                (site, profile, driver)
            }
        };
        if let Ok(StopOrder { force }) = self.orders.try_recv() {
            self.order_stop(&site, Part::Agent, force).await;
        }
        let heard = self.follow_agent(&site, driver.as_mut()).await?;
        self.take_back_login(&profile).await?;
        self.judge(&site, heard, checking).await
    }

    fn profile(&self) -> Result<AgentProfile, Stopped> {
        let name = &self.job.task.spec.agent;
        let chain = &self.job.task.spec.terms.chain;
        let configured = self.ctx.settings.config.agent_for(name, chain);
        let mut profile = configured.map(Cow::into_owned).ok_or_else(|| {
            let reason = format!("agent {name} is not configured any more");
            Stopped::from(Failure::Prepare { reason })
        })?;
        if let Some((program, args)) = self.job.task.spec.terms.command.split_first() {
            profile.program.clone_from(program);
            profile.args = args.to_vec();
        }
        Ok(profile)
    }

    /// The sites of the placement; nothing registered means this machine.
    fn sites(&self) -> Vec<(SiteName, Arc<dyn Site>)> {
        let asked = &self.job.task.spec.placement.sites;
        let known = |name: &SiteName| Some((name.clone(), Arc::clone(self.ctx.sites.get(name)?)));
        let found: Vec<_> = asked.iter().filter_map(known).collect();
        if found.is_empty() && asked.is_empty() {
            return "local".parse().iter().filter_map(known).collect();
        }
        found
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, VerbError>>) -> Command,
    ) -> Result<Option<T>, Cut> {
        let (reply, answer) = oneshot::channel();
        let sent = self.ctx.commands.send(command(reply)).await;
        sent.map_err(|_| Cut)?;
        Ok(answer.await.map_err(|_| Cut)?.ok())
    }

    async fn order_stop(&mut self, site: &Arc<dyn Site>, part: Part, force: Force) {
        let grace_ms = match force {
            Force::Ask => self.ctx.settings.config.limits.grace_s * 1000,
            Force::Kill => 0,
        };
        self.stop = Some(force);
        let order = Order::Stop {
            why: Stop::ByPerson,
            grace_ms,
        };
        match site.order(&self.id(part), &order).await {
            // It has ended by itself; the verdict still says that a person wanted the end.
            Ok(()) | Err(_) => {}
        }
    }
}

fn prepare_failed(error: &TreeError) -> Stopped {
    Failure::Prepare {
        reason: error.to_string(),
    }
    .into()
}
