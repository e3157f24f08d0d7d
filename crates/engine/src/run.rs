//! One run, top to bottom: prepare, start, follow, judge, check, seal. First contact and
//! re-attachment are the same walk: it asks the job directory and goes on from there.
//! Must not change state: it reports facts and waits until they are durable before it acts on them.

mod account;
mod aid;
mod begin;
mod follow;
mod invocation;
mod placed;
mod recover;
mod tools;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use dispatch_core::{
    checks::{self, Planned},
    config::AgentProfile,
    event::{CheckState, Kind, Sealed, Subject, Verified},
    id::{RunId, SiteName},
    job::{Exit, ExitReport, Invocation, JobId, Offset, Order, Output, Part, Stdin},
    message::Sender,
    outcome::{Failure, Outcome, Stop},
    redact::Redactor,
    review::{self, Range, Verdict},
    run::RunState,
    secret::Secret,
    state::{Run, Task},
    task::{Expects, Wrap},
    update::Said,
    verdict::{self, Tree},
};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{
    doorkeys::DoorKey,
    engine::{Command, Desk, Purse, Secrets, Settings, Sites, StopOrder},
    fence::Fences,
    sidecar::{self, Followed, Watched, Watcher},
    sites::{JobEvent, Site, Start},
    tail::Tail,
    trees::{TreeError, Trees},
    view::{Force, VerbError},
};

/// Behind any output: only the end is of interest. A file offset is a signed number.
const FAR: u64 = 1 << 62;

const BUNDLE_MS_MAX: u64 = 120_000;

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
        let configured = self.ctx.settings.config.agents.get(name).cloned();
        let mut profile = configured.ok_or_else(|| {
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

    /// Keeps the result, hears the three witnesses, and lets the checks speak.
    async fn judge(
        &mut self,
        site: &Arc<dyn Site>,
        heard: Heard,
        checking: bool,
    ) -> Result<(Outcome, Verified), Stopped> {
        let spec = self.job.task.spec.clone();
        let sealed = self.seal(site).await?;
        let (sealed, question) = match sealed {
            Ok(sealed) => sealed,
            Err(reason) => return Err(Failure::Seal { reason }.into()),
        };
        let tree = Tree {
            changed: sealed.commit.is_some(),
            question,
        };
        let ended_at = heard.report.as_ref().map_or(0, |report| report.ended_at);
        // Where what it asked for goes on, this is not the end that something is expected of.
        let owed = self.is_owed().await?;
        let expects = if owed { Expects::Either } else { spec.expects };
        let outcome =
            verdict::verdict(heard.report.as_ref(), &heard.said, &tree, expects, ended_at);
        let outcome = match outcome {
            Outcome::Failed(Failure::NothingSaid) if owed => Outcome::Completed {
                summary: String::new(),
            },
            outcome => outcome,
        };
        if self.stop.is_some() {
            return Ok((Outcome::Stopped(Stop::ByPerson), Verified::NotVerified));
        }
        if owed || !matches!(outcome, Outcome::Completed { .. }) {
            return Ok((outcome, Verified::NotVerified));
        }
        if let Some(range) = self.range.clone() {
            return self.review(&heard.said.text, range).await;
        }
        let planned = self.planned().await?;
        if planned.is_empty() {
            return Ok((outcome, Verified::NotVerified));
        }
        if !checking {
            let names = planned.iter().map(|check| check.name.clone()).collect();
            self.tell(Kind::ChecksStarted { checks: names }).await?;
        }
        self.check(site, &planned, outcome).await
    }

    async fn is_owed(&self) -> Result<bool, Cut> {
        let run = self.job.run;
        let owed = self.ask(|reply| Command::Owed { run, reply }).await?;
        Ok(owed.unwrap_or(false))
    }

    /// The reviewer's word, which stands where checks stand otherwise.
    async fn review(&self, said: &str, range: Range) -> Result<(Outcome, Verified), Stopped> {
        let known = self.run().and_then(|run| run.review.clone());
        let review = match known {
            Some(review) => review,
            None => {
                let review = review::read(said, range);
                let told = review.clone();
                self.tell(Kind::Reviewed { review: told }).await?;
                review
            }
        };
        let findings = review.findings.len();
        Ok(match review.verdict {
            Verdict::Pass => {
                let summary = format!("the review passes, with {findings} findings");
                (Outcome::Completed { summary }, Verified::Yes)
            }
            Verdict::Fail => {
                let note = review.note;
                (Failure::Review { findings, note }.into(), Verified::No)
            }
            Verdict::NotVerified => {
                let reason = review.note;
                (
                    Failure::NotReviewed { reason }.into(),
                    Verified::NotVerified,
                )
            }
        })
    }

    async fn planned(&self) -> Result<Vec<Planned>, Stopped> {
        let config = self.ctx.settings.config.checks.clone();
        let asked = self.job.task.spec.checks.clone();
        let root = self
            .blocking(move |trees, task| trees.root_files(task, &checks::marker_files(&config)))
            .await?
            .map_err(|error| prepare_failed(&error))?;
        Ok(checks::plan(
            &self.ctx.settings.config.checks,
            &asked,
            &root,
        ))
    }

    /// The agent's commits come out by a job in the task's own placement, the rest by a snapshot.
    async fn seal(
        &mut self,
        site: &Arc<dyn Site>,
    ) -> Result<Result<(Sealed, Option<String>), String>, Stopped> {
        if let Some(sealed) = self.run().and_then(|run| run.sealed.clone()) {
            let question = self.blocking(|trees, task| trees.question(task)).await?;
            return Ok(Ok((sealed, question)));
        }
        let wanted = self.blocking(Trees::bundle_job).await?;
        let mut bundle = None;
        let mut notes = Vec::new();
        if let Some(job) = wanted {
            match self.bundle(site, job).await? {
                Ok(path) => bundle = Some(path),
                Err(reason) => {
                    let note = format!("the agent's own commits could not be kept: {reason}");
                    notes.push(format!(
                        "{note}; what the tree held at the end is in the result"
                    ));
                }
            }
        }
        let n = self.job.run.n;
        let config = self.ctx.settings.config.checks.clone();
        let sealed = self
            .blocking(move |trees, task| trees.seal(task, n, bundle.as_deref(), &config))
            .await?;
        Ok(match sealed {
            Ok((mut sealed, question)) => {
                sealed.notes.extend(notes);
                let kind = Kind::WorkspaceSealed {
                    sealed: sealed.clone(),
                };
                self.tell(kind).await?;
                Ok((sealed, question))
            }
            Err(error) => Err(error.to_string()),
        })
    }

    async fn bundle(
        &mut self,
        site: &Arc<dyn Site>,
        (argv, env): (Vec<String>, BTreeMap<String, String>),
    ) -> Result<Result<PathBuf, String>, Stopped> {
        let limits = &self.ctx.settings.config.limits;
        let mut job_limits = limits.check_job();
        job_limits.output_bytes = limits.snapshot_bytes;
        job_limits.wall_clock_ms = job_limits.wall_clock_ms.min(BUNDLE_MS_MAX);
        let what = Invocation {
            argv,
            env,
            secrets: Vec::new(),
            masked: Vec::new(),
            output: Output::Bytes,
            cwd: self.workspace(),
            stdin: Stdin::Null,
            limits: job_limits,
            ..Invocation::default()
        };
        // The agent's home holds its configuration of git, so this job does not see it.
        let home = self.ctx.trees.check_home(&self.job.task);
        let mut what = what;
        if let Some(first) = what.argv.first_mut()
            && self.job.task.spec.placement.wrap == Wrap::Container
        {
            // This host's git is not the image's.
            *first = "git".into();
        }
        if let Err(reason) = self.prepare_fence().await? {
            return Ok(Err(reason));
        }
        let what = match self.fence(what, &home, None, Part::Seal, Vec::new()) {
            Ok(what) => what,
            Err(reason) => return Ok(Err(reason)),
        };
        let ended = self.job_to_its_end(site, Part::Seal, &what).await?;
        Ok(match ended {
            Ok(ExitReport {
                exit: Exit::Code(0),
                stopped: None,
                ..
            }) => {
                let job = self.id(Part::Seal);
                let dir = crate::jobdir::JobDir::of(&self.ctx.settings.data, &job);
                Ok(dir.file("out"))
            }
            Ok(report) => Err(format!("git bundle ended with {:?}", report.exit)),
            Err(reason) => Err(reason),
        })
    }

    /// Runs a job that is not the agent; adopts it when it has a body already.
    async fn job_to_its_end(
        &mut self,
        site: &Arc<dyn Site>,
        part: Part,
        what: &Invocation,
    ) -> Result<Result<ExitReport, String>, Stopped> {
        let job = self.id(part.clone());
        if let Start::Declined(reason) | Start::NotStarted(reason) = site.start(&job, what).await {
            return Ok(Err(reason));
        }
        let mut follow = match site
            .follow(
                &job,
                Offset {
                    out: FAR,
                    err: FAR,
                    input: 0,
                },
            )
            .await
        {
            Ok(follow) => follow,
            Err(error) => return Ok(Err(format!("follow it: {error}"))),
        };
        loop {
            tokio::select! {
                event = follow.next() => match event {
                    Ok(JobEvent::Out(_) | JobEvent::Err(_) | JobEvent::Alive) => {}
                    Ok(JobEvent::Exited(report)) => return Ok(Ok(report)),
                    Ok(JobEvent::NeverStarted | JobEvent::Gone) => {
                        return Ok(Err("its keeper died".into()));
                    }
                    Err(error) => return Ok(Err(format!("follow it: {error}"))),
                },
                Some(StopOrder { force }) = self.orders.recv() => {
                    self.order_stop(site, part.clone(), force).await;
                }
            }
        }
    }

    /// In order; the first failure ends the chain. What could not be run vouches for nothing.
    async fn check(
        &mut self,
        site: &Arc<dyn Site>,
        planned: &[Planned],
        outcome: Outcome,
    ) -> Result<(Outcome, Verified), Stopped> {
        let home = self.ctx.trees.check_home(&self.job.task);
        let mut masked: Vec<Secret> = self.job.secrets.values().cloned().collect();
        masked.extend(self.login_secrets(&self.profile()?));
        let base_env = self
            .job_env(&home)
            .map_err(|reason| Failure::Start { reason })?;
        let mut verified = Verified::Yes;
        let mut failed = Vec::new();
        for check in planned {
            if self.stop.is_some() {
                return Ok((Outcome::Stopped(Stop::ByPerson), Verified::NotVerified));
            }
            let ended = |state, exit, note: String| Kind::CheckFinished {
                check: check.name.clone(),
                state,
                exit,
                note,
            };
            if !failed.is_empty() || verified == Verified::NotVerified {
                let note = "an earlier one did not pass".into();
                let kind = ended(CheckState::NotRun, None, note);
                self.tell(kind).await?;
                continue;
            }
            let program = check.argv.first().map_or("", String::as_str);
            let program = match self.program(program, &base_env) {
                Ok(program) => program,
                Err(reason) => {
                    verified = Verified::NotVerified;
                    let kind = ended(CheckState::NotRun, None, reason);
                    self.tell(kind).await?;
                    continue;
                }
            };
            let mut env = base_env.clone();
            env.extend(check.env.clone());
            for (name, value) in sidecar::proxy_env(&self.job.task.spec.placement.network) {
                env.insert(name.to_owned(), value);
            }
            let mut argv = check.argv.clone();
            if let Some(first) = argv.first_mut() {
                *first = program;
            }
            let what = Invocation {
                argv,
                env,
                secrets: Vec::new(),
                masked: masked.clone(),
                output: Output::Text,
                cwd: self.workspace(),
                stdin: Stdin::Null,
                limits: self.limits().check_job(),
                ..Invocation::default()
            };
            self.prepare_fence()
                .await?
                .map_err(|reason| Failure::Start { reason })?;
            let part = Part::Check(check.name.clone());
            let what = self
                .fence(what, &home, None, part, self.relays(None))
                .map_err(|reason| Failure::Start { reason })?;
            let (state, exit, note) = self.check_one(site, check, &what).await?;
            if state != CheckState::Passed {
                failed.push(if note.is_empty() {
                    check.name.to_string()
                } else {
                    format!("{} ({note})", check.name)
                });
            }
            let kind = ended(state, exit, note);
            self.tell(kind).await?;
        }
        if self.stop.is_some() {
            return Ok((Outcome::Stopped(Stop::ByPerson), Verified::NotVerified));
        }
        if failed.is_empty() {
            return Ok((outcome, verified));
        }
        Ok((Outcome::Failed(Failure::Checks { failed }), Verified::No))
    }

    async fn check_one(
        &mut self,
        site: &Arc<dyn Site>,
        check: &Planned,
        what: &Invocation,
    ) -> Result<(CheckState, Option<Exit>, String), Stopped> {
        let mut name = check.name.clone();
        // A check whose keeper died has shown nothing: it may run once more, under a new name.
        for _ in 0..2 {
            let ended = self
                .job_to_its_end(site, Part::Check(name.clone()), what)
                .await?;
            let report = match ended {
                Ok(report) => report,
                Err(reason) if reason == "its keeper died" => {
                    let Ok(again) = format!("{}.again", check.name).parse() else {
                        break;
                    };
                    name = again;
                    continue;
                }
                Err(reason) => return Ok((CheckState::Failed, None, reason)),
            };
            let note = report
                .stopped
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default();
            let passed = report.exit == Exit::Code(0) && report.stopped.is_none();
            let state = if passed {
                CheckState::Passed
            } else {
                CheckState::Failed
            };
            return Ok((state, Some(report.exit), note));
        }
        Ok((CheckState::Failed, None, "its keeper died twice".into()))
    }
}

fn prepare_failed(error: &TreeError) -> Stopped {
    Failure::Prepare {
        reason: error.to_string(),
    }
    .into()
}
