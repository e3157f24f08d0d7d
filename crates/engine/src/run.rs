//! One run, top to bottom: prepare, start, follow, judge, check, seal. First contact and
//! re-attachment are the same walk: it asks the job directory and goes on from there.
//! Must not change state: it reports facts and waits until they are durable before it acts on them.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, VecDeque},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use dispatch_core::{
    Millis,
    ask::{ASKS_MAX, AskId, By, Fate as AskFate, OPEN_MAX},
    cage::{self, Relay},
    checks::{self, Planned},
    config::{AgentProfile, EnvValue, FileText, HomePath, Login},
    container::Wanted,
    drivers::{Ask, Driver, Request, Step, Tools},
    event::{CheckState, Kind, Sealed, Subject, Verified},
    gate::Budget,
    id::{ModelName, RunId, SiteName},
    job::{Exit, ExitReport, Invocation, JobId, Offset, Order, Output, Part, Stdin},
    limits::{JobLimits, Limits},
    message::{Delivery, Fate, Message, MessageId, Sender},
    outcome::{Failure, Outcome, Stop},
    prompt,
    redact::Redactor,
    review::{self, Range, Verdict},
    run::{RunCause, RunState},
    secret::Secret,
    sidecar::BROKER_URL,
    state::{Run, Task},
    task::{Expects, Wrap},
    update::{ChunkId, Said, Update, Usage},
    verdict::{self, Tree},
};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{
    attachments, containers,
    door::{self, Door},
    doorkeys::DoorKey,
    engine::{Command, Desk, Purse, Secrets, Settings, Sites, StopOrder},
    fence::{self, Fences, Needs},
    files,
    lines::{Line, Lines},
    logins::{Account, LoginError},
    native,
    prompts::{self, Words},
    sidecar::{self, Aid, Followed, Watched, Watcher},
    sites::{Enforced, JobEvent, Site, Start},
    speech::Speech,
    tail::Tail,
    trees::{TreeError, Trees},
    view::{Force, VerbError},
};

/// Behind any output: only the end is of interest. A file offset is a signed number.
const FAR: u64 = 1 << 62;
const BUNDLE_MS_MAX: u64 = 120_000;
/// Orders of a driver itself are counted from 0; those that carry a message from here.
const MESSAGE_ORDERS: u64 = 1 << 32;
/// And those that carry an answer to an ask from here.
const ASK_ORDERS: u64 = 2 << 32;

/// From an order that its keeper could not be given until it is tried again; doubled each time.
const ORDER_AGAIN: Duration = Duration::from_millis(100);
const ORDER_AGAIN_MAX: Duration = Duration::from_secs(30);
/// What may wait to be given to a keeper, which itself keeps as much for an agent that does not read.
const OUTBOX_BYTES_MAX: usize = 32 << 20;

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

    /// Goes on with an agent that an engine before us started.
    async fn adopt(
        &mut self,
        site: &Arc<dyn Site>,
        untold: bool,
    ) -> Result<(AgentProfile, Box<dyn Driver>), Stopped> {
        let profile = self.profile()?;
        let mut driver = profile.driver.driver();
        if untold {
            self.tell_started(site, &profile).await?;
        }
        self.tell(Kind::Adopted).await?;
        self.find_sidecar(site, &profile).await;
        // The same first words as before: the keeper ignores what it has heard.
        let words = self.words_again().await?;
        self.first = self.open(driver.as_mut(), &profile, None, &words)?.1;
        Ok((profile, driver))
    }

    /// Ends an agent that nobody can follow, and waits until it is gone.
    async fn abandon(&mut self, site: &Arc<dyn Site>) -> Result<(), Cut> {
        let job = self.id(Part::Agent);
        let kill = Order::Kill {
            why: Stop::Shutdown,
        };
        match site.order(&job, &kill).await {
            // Gone already; the wait below is the judge.
            Ok(()) | Err(_) => {}
        }
        let from = Offset {
            out: FAR,
            err: FAR,
            input: 0,
        };
        let Ok(mut follow) = site.follow(&job, from).await else {
            return Ok(());
        };
        let last = loop {
            match follow.next().await {
                Ok(JobEvent::Out(_) | JobEvent::Err(_) | JobEvent::Alive) => {}
                last => break last,
            }
        };
        self.swept = matches!(last, Ok(JobEvent::Exited(_) | JobEvent::Gone));
        let text = "the agent was ended: this engine could not go on with it".to_owned();
        self.tell(Kind::Noted { text }).await
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

    /// The site that has this run's agent already, if any has: the one question of recovery.
    async fn attach(&self, from_log: bool) -> Result<Option<Arc<dyn Site>>, Stopped> {
        if !from_log {
            return Ok(None);
        }
        let known = self.run().and_then(|run| run.site.clone());
        for (name, site) in self.sites() {
            if known.as_ref().is_some_and(|known| *known != name) {
                continue;
            }
            let job = self.id(Part::Agent);
            let asked = match site.follow(&job, Offset::default()).await {
                Ok(mut follow) => follow.next().await,
                Err(error) => Err(error),
            };
            return match asked {
                Ok(JobEvent::NeverStarted) => continue,
                Ok(_) => Ok(Some(site)),
                // The one question of recovery has no answer.
                Err(_) => Err(Stopped::Outcome(Outcome::Lost)),
            };
        }
        match known {
            // It was started and now it says it never was: that is not an end we saw.
            Some(_) => Err(Stopped::Outcome(Outcome::Lost)),
            None => Ok(None),
        }
    }

    /// Prepares the workspace and starts the agent.
    async fn begin(
        &mut self,
        driver: &mut dyn Driver,
        profile: &AgentProfile,
    ) -> Result<Arc<dyn Site>, Stopped> {
        self.in_time()?;
        let ready = self
            .blocking(Trees::prepare)
            .await?
            .map_err(|error| prepare_failed(&error))?;
        if let Some(old) = ready.old_question {
            let text = format!(
                "{} of an earlier run was moved out: {old}",
                prompt::BLOCKED_FILE
            );
            self.tell(Kind::Noted { text }).await?;
        }
        for text in ready.notes {
            self.tell(Kind::Noted { text }).await?;
        }
        let workspace = Kind::WorkspaceReady {
            path: ready.workspace.path.clone(),
            base: ready.workspace.base.clone(),
            base_branch: ready.workspace.base_branch.clone(),
            how: ready.how,
        };
        let kept = self
            .job
            .task
            .workspace
            .as_ref()
            .is_some_and(|before| !before.removed);
        self.job.task.workspace = Some(ready.workspace);
        self.tell(workspace).await?;
        let carried = self
            .blocking(Trees::carried)
            .await?
            .map_err(|error| prepare_failed(&error))?;
        if !carried.is_empty() {
            self.tell(Kind::CarriedFound { carried }).await?;
        }
        self.set_range().await?;
        if !kept {
            self.refill();
        }
        self.asked_to_stop()?;
        if let Some(container) = &self.job.task.spec.placement.container
            && let Some(text) = container.image.warning()
        {
            self.tell(Kind::Noted { text }).await?;
        }
        let home = self.ctx.trees.home(&self.job.task);
        let start = |reason: String| Stopped::from(Failure::Start { reason });
        self.prepare_fence().await?.map_err(start)?;
        self.take_first_words().await?;
        let words = self.words().await?;
        let job = self.id(Part::Agent);
        let mut refused = Vec::new();
        for (name, site) in self.sites() {
            let aid = match self.start_sidecar(&site, profile).await {
                Ok(aid) => aid,
                Err(why) => {
                    self.clear_sidecar().await?;
                    let reason = format!("start the run's sidecar: {why}");
                    refused.push(format!("{name}: {reason}"));
                    self.tell(Kind::SiteRefused { site: name, reason }).await?;
                    continue;
                }
            };
            let (invocation, first) = self.open(driver, profile, aid.as_ref(), &words)?;
            self.link_login(profile)?;
            self.open_door().map_err(start)?;
            let relays = self.relays(Some(profile));
            let invocation = self.fence(invocation, &home, Some(profile), Part::Agent, relays);
            let invocation = invocation.map_err(start)?;
            let reason = match site.start(&job, &invocation).await {
                // Unknown may be running: ask this one until it is known, and never the next.
                Start::Started | Start::Unknown(_) => {
                    self.tell_started_at(&name, profile).await?;
                    self.first = first;
                    return Ok(site);
                }
                Start::Declined(reason) => format!("declined: {reason}"),
                Start::NotStarted(reason) => {
                    self.forget_fence();
                    reason
                }
            };
            if aid.is_some() {
                self.clear_sidecar().await?;
            }
            refused.push(format!("{name}: {reason}"));
            self.tell(Kind::SiteRefused { site: name, reason }).await?;
        }
        if refused.is_empty() {
            let asked: Vec<String> = self
                .job
                .task
                .spec
                .placement
                .sites
                .iter()
                .map(ToString::to_string)
                .collect();
            refused.push(format!("no site named {} is registered", asked.join(", ")));
        }
        Err(Failure::Start {
            reason: refused.join("; "),
        }
        .into())
    }

    /// Of a review: the commits it is about.
    async fn set_range(&mut self) -> Result<(), Stopped> {
        if self.job.task.spec.expects != Expects::Review || self.range.is_some() {
            return Ok(());
        }
        let range = self
            .blocking(Trees::review_range)
            .await?
            .map_err(|error| prepare_failed(&error))?;
        self.range = Some(range.clone());
        self.tell(Kind::RangeSet { range }).await?;
        Ok(())
    }

    fn asked_to_stop(&mut self) -> Result<(), Stopped> {
        if let Ok(StopOrder { force }) = self.orders.try_recv() {
            self.stop = Some(force);
            return Err(Stopped::Outcome(Outcome::Stopped(Stop::ByPerson)));
        }
        Ok(())
    }

    /// A prepared tree for the next task, made while this one's agent works.
    fn refill(&self) {
        let (trees, task) = (Arc::clone(&self.ctx.trees), self.job.task.clone());
        // Nobody waits for it: a pool that is not filled costs the next task some time, no more.
        drop(tokio::task::spawn_blocking(move || trees.refill(&task)));
    }

    async fn tell_started(&self, site: &Arc<dyn Site>, profile: &AgentProfile) -> Result<(), Cut> {
        let same = |other: &&(SiteName, Arc<dyn Site>)| Arc::ptr_eq(&other.1, site);
        match self.sites().iter().find(same) {
            Some((name, _)) => self.tell_started_at(name, profile).await,
            None => Ok(()),
        }
    }

    async fn tell_started_at(&self, site: &SiteName, profile: &AgentProfile) -> Result<(), Cut> {
        let placement = &self.job.task.spec.placement;
        let mut enforced = Enforced::default();
        for (_, known) in self.sites().iter().filter(|(name, _)| name == site) {
            match known.enforced(&self.id(Part::Agent)).await {
                Ok(Some(found)) => enforced = found,
                Ok(None) => {}
                Err(error) => enforced.layers = vec![format!("unknown ({error})")],
            }
        }
        let enforced = match placement.wrap {
            Wrap::Host => "nothing (host)".to_owned(),
            Wrap::Cage | Wrap::Container => {
                cage::enforced(&enforced.layers, &enforced.limits, &placement.network)
            }
        };
        let brokered: Vec<&str> = profile.brokers().map(|broker| &*broker.key).collect();
        let enforced = match brokered.is_empty() {
            false => format!("{enforced}; {} by the broker", brokered.join(", ")),
            true => enforced,
        };
        let started = Kind::Started {
            site: site.clone(),
            driver: profile.driver,
            enforced,
        };
        let words = self.job.task.messages.iter().filter(|message| {
            let first = message
                .taken
                .is_some_and(|taken| taken.out_offset.is_none());
            first && message.is_with(self.job.run.n) && message.fate == Fate::Waiting
        });
        let heard = words.map(|message| Kind::MessageDelivered {
            message: message.id,
            delivery: Delivery::Continuation,
        });
        let kinds = std::iter::once(started).chain(heard).collect();
        self.record(Subject::Run(self.job.run), kinds).await
    }

    /// What waits for this run is said with its first words. Fixed in the log before the start, so
    /// that the next engine opens with the same ones.
    async fn take_first_words(&mut self) -> Result<(), Cut> {
        let run = self.job.run;
        let taken = self.ask(|reply| Command::TakeAll { run, reply }).await?;
        self.job.task.messages = taken.unwrap_or_default();
        Ok(())
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

    /// The session that this run goes on with.
    fn resume(&self) -> Option<&str> {
        match self.run().map(|run| &run.cause) {
            None | Some(RunCause::Dispatched) => None,
            Some(
                RunCause::Answer { .. }
                | RunCause::RetryOf { .. }
                | RunCause::Said { .. }
                | RunCause::Ends
                | RunCause::Resumed { .. },
            ) => self.job.task.session_for(self.job.run.n),
        }
    }

    /// Makes the prompt and keeps it before anything is started.
    async fn words(&self) -> Result<Words, Stopped> {
        let (settings, redactor) = (Arc::clone(&self.ctx.settings), self.redactor.clone());
        let (n, remembers) = (self.job.run.n, self.resume().is_some());
        let range = self.range.clone();
        let made = self
            .blocking(move |trees, task| {
                prompts::make(
                    trees,
                    task,
                    n,
                    remembers,
                    range.as_ref(),
                    &settings.config,
                    &redactor,
                )
            })
            .await?;
        let (words, made) = made.map_err(|error| Failure::Prepare {
            reason: error.to_string(),
        })?;
        if self.run().and_then(|run| run.prompt.as_ref()) != Some(&made) {
            self.tell(Kind::PromptMade { made }).await?;
        }
        Ok(words)
    }

    /// What the agent of this run was given, or was about to be.
    async fn words_again(&self) -> Result<Words, Stopped> {
        let run = self.job.run;
        let kept = self
            .blocking(move |trees, _| prompts::kept(trees.data(), run))
            .await?;
        match kept {
            Ok(Some(words)) => Ok(words),
            Ok(None) | Err(_) => self.words().await,
        }
    }

    /// The invocation of the agent, and what is said first.
    fn open(
        &self,
        driver: &mut dyn Driver,
        profile: &AgentProfile,
        aid: Option<&Aid>,
        words: &Words,
    ) -> Result<(Invocation, Option<Vec<u8>>), Stopped> {
        let task = &self.job.task;
        let home = self.ctx.trees.home(task);
        let start = |reason: String| Stopped::from(Failure::Start { reason });
        let program = match profile.is_native() {
            true => native::program(&self.ctx.fences),
            false => self.program(&profile.program, &self.ctx.settings.job_env),
        };
        let program = program.map_err(start)?;
        let native = native::setup(&self.ctx, task, self.job.run.n, profile, aid, self.resume());
        let native = native.map_err(start)?;
        let home_text = home.to_string_lossy();
        let workspace = self.workspace();
        let door_env = self.door_env();
        let our_tools = self.our_tools();
        let broker_url = aid.and_then(|aid| aid.broker_url.as_deref());
        let args: Vec<String> = profile
            .args
            .iter()
            .map(|arg| arg.replace(BROKER_URL, broker_url.unwrap_or_default()))
            .collect();
        let data = &self.ctx.settings.data;
        let context = Some(prompts::context(data, self.job.run)).filter(|dir| dir.is_dir());
        let folders = attachments::top(data, task, self.job.run.n).into_iter();
        let folders = folders.chain(context);
        let folders: Vec<String> = folders
            .map(|dir| dir.to_string_lossy().into_owned())
            .collect();
        let ask = Ask {
            prompt: &words.prompt,
            whole: &words.whole,
            cwd: &workspace.to_string_lossy(),
            folders: &folders,
            program: &program,
            args: &args,
            home: &home_text,
            resume: self.resume(),
            effort: task.spec.guide.effort,
            review: self.range.as_ref(),
            model: task.spec.terms.model.as_ref().map(ModelName::as_str),
            profile: task.spec.terms.profile.as_ref().map(ModelName::as_str),
            unfenced: task.spec.placement.wrap == Wrap::Host,
            permissions: task.spec.terms.permissions,
            tools: our_tools.as_deref().map(|argv| Tools {
                argv,
                env: &door_env,
            }),
            native: native.as_ref(),
        };
        let opening = driver.open(&ask);
        let mut env = self.job_env(&home).map_err(start)?;
        lay_down(&home, &profile.files).map_err(start)?;
        env.extend(opening.env);
        env.extend(door_env);
        if let Some((account, login)) = self.login(profile)
            && let Some(variable) = &login.variable
        {
            let store = account.store().to_string_lossy().into_owned();
            env.insert(variable.clone(), store);
        }
        let (mut secrets, mut masked) = (Vec::new(), self.login_secrets(profile));
        for (name, value) in &profile.env {
            match value {
                EnvValue::Literal(text) => {
                    env.insert(name.clone(), text.clone());
                }
                EnvValue::Taken { .. } => {
                    let key = value.key(&task.spec.agent, name);
                    if let Some(text) = key.and_then(|key| self.job.secrets.get(&key)) {
                        if profile.brokers().any(|broker| broker.key == *name) {
                            masked.push(text.clone());
                            continue;
                        }
                        env.insert(name.clone(), text.expose().to_owned());
                        secrets.push(name.clone());
                    }
                }
            }
        }
        for (broker, aid) in aid
            .iter()
            .flat_map(|aid| profile.brokers().map(move |b| (b, aid)))
        {
            let placeholder = aid.placeholders.get(&broker.key).cloned();
            env.insert(broker.key.clone(), placeholder.unwrap_or_default());
            if let (Some(name), Some(url)) = (&broker.base_url, &aid.broker_url) {
                env.insert(name.clone(), url.clone());
            }
        }
        let network = &task.spec.placement.network;
        for (name, value) in sidecar::proxy_env(network) {
            env.insert(name.to_owned(), value);
        }
        let invocation = Invocation {
            argv: opening.argv,
            env,
            secrets,
            masked,
            output: Output::Text,
            cwd: self.workspace(),
            stdin: opening.stdin,
            limits: self.agent_limits(),
            ..Invocation::default()
        };
        Ok((invocation, opening.first))
    }

    /// The door of this run, if its task has a grant to use it.
    fn door(&self) -> Option<&Door> {
        let grant = self.job.task.spec.terms.grant.as_ref();
        let door = self.ctx.settings.door.as_ref();
        door.filter(|_| grant.is_some_and(|grant| !grant.tools.is_empty()))
    }

    fn door_env(&self) -> Vec<(String, String)> {
        let (data, run) = (&self.ctx.settings.data, self.job.run);
        self.door()
            .map_or_else(Vec::new, |door| door.env(data, run))
    }

    /// The argv of our tools where the job runs: the copy of our program that every fence shows. Where
    /// there can be none no fence can be made either, and one that stands already has it.
    fn our_tools(&self) -> Option<Vec<String>> {
        let door = self.door().filter(|door| !door.tools.is_empty())?;
        let program = self.ctx.fences.program().and_then(fence::utf8).ok()?;
        let words = door.tools.iter().cloned();
        Some(std::iter::once(program).chain(words).collect())
    }

    /// What the agent shows there is laid down before its start.
    fn open_door(&self) -> Result<(), String> {
        let Some(door) = self.door() else {
            return Ok(());
        };
        let (data, run) = (&self.ctx.settings.data, self.job.run);
        let token = self.ctx.door_key.token(run);
        let made = door.make().and_then(|()| door::lay_down(data, run, &token));
        made.map_err(|error| format!("open a door for the agent: {error}"))
    }

    /// What a program is called where the job runs: an image may have it although this host has not.
    fn program(&self, name: &str, env: &BTreeMap<String, String>) -> Result<String, String> {
        let found = find_program(name, env);
        match self.job.task.spec.placement.wrap {
            Wrap::Container => Ok(containers::program(name, found.as_deref().ok())),
            Wrap::Cage | Wrap::Host => found,
        }
    }

    /// What takes long about a fence, off the runtime: asking a container engine, getting an image.
    async fn prepare_fence(&self) -> Result<Result<(), String>, Cut> {
        let Some(container) = self.job.task.spec.placement.container.clone() else {
            return Ok(Ok(()));
        };
        let fences = Arc::clone(&self.ctx.fences);
        tokio::task::spawn_blocking(move || fences.prepare(&container))
            .await
            .map_err(|_| Cut)
    }

    /// What was found out about an image may be why a start failed.
    fn forget_fence(&self) {
        if let Some(container) = &self.job.task.spec.placement.container {
            self.ctx.fences.containers().forget(container);
        }
    }

    /// The invocation in the task's own placement, with `home` as its private home.
    fn fence(
        &self,
        mut inner: Invocation,
        home: &Path,
        agent: Option<&AgentProfile>,
        part: Part,
        relays: Vec<Relay>,
    ) -> Result<Invocation, String> {
        let placement = &self.job.task.spec.placement;
        let temporary = inner.env.get("TMPDIR").map(PathBuf::from);
        let mut write = vec![self.workspace(), home.to_owned()];
        write.extend(temporary);
        if placement.wrap == Wrap::Host {
            inner.writes = write;
            return Ok(inner);
        }
        for dir in &write {
            std::fs::create_dir_all(dir).map_err(|e| format!("make {}: {e}", dir.display()))?;
        }
        let login = agent.and_then(|agent| self.login(agent));
        let shared = login.map(|(account, _)| account.dir().to_owned());
        let toolchains = &self.ctx.settings.config.toolchains;
        let objects = self.ctx.trees.objects(&self.job.task);
        let mut read = vec![objects.map_err(|error| error.to_string())?];
        let context = prompts::context(&self.ctx.settings.data, self.job.run);
        read.extend(agent.map(|_| context).filter(|dir| dir.is_dir()));
        if let Some(agent) = agent {
            let (data, task) = (&self.ctx.settings.data, &self.job.task);
            let resumes = agent.is_native().then(|| self.resume()).flatten();
            read.extend(native::records(data, task, self.job.run.n, resumes));
            read.extend(attachments::folders(data, task, self.job.run.n));
        }
        let mut doors = Vec::new();
        if let Some(door) = self.door().filter(|_| agent.is_some()) {
            doors.push(door.directory.clone());
            read.push(door::directory(&self.ctx.settings.data, self.job.run));
        }
        let paths = agent.map_or(&[][..], |agent| &agent.paths);
        read.extend(toolchains.paths.iter().chain(paths).map(PathBuf::from));
        let mut seen = toolchains.pass_env.clone();
        for name in &toolchains.private {
            seen.retain(|other| other != name);
            // Of the person's own directory only the programs; what it caches is the task's.
            if let Some(theirs) = inner.env.get(name).map(PathBuf::from) {
                let own = home.join(theirs.file_name().unwrap_or_default());
                read.push(theirs.join("bin"));
                if name == fence::CARGO {
                    fence::hand_over_cargo_config(&theirs, &own)
                        .map_err(|e| format!("write {}: {e}", own.join("config.toml").display()))?;
                }
                inner
                    .env
                    .insert(name.clone(), own.to_string_lossy().into_owned());
            }
        }
        // `python3 /home/me/agent.py`: a file that the person's own table names is its program, too.
        let named = agent.map_or(&[][..], |agent| &agent.args);
        let programs = named.iter().map(PathBuf::from);
        let programs = programs.filter(|path| path.is_absolute() && path.is_file());
        let needs = Needs {
            programs: programs.collect(),
            read,
            write,
            shared: shared.into_iter().collect(),
            toolchains: &seen,
            gpu: placement.gpu,
            relays,
            doors,
        };
        let fences = &self.ctx.fences;
        if placement.wrap == Wrap::Cage {
            return fences.cage(inner, needs, &placement.network, placement.strict);
        }
        let container = placement.container.as_ref().ok_or_else(|| {
            "the placement is a container without an image; name one with --image".to_owned()
        })?;
        let wanted = Wanted {
            network: placement.network.clone(),
            strict: placement.strict,
            gpu: placement.gpu,
            host_alias: agent.is_some_and(|agent| agent.host_alias),
        };
        fences.contain(inner, &self.id(part), needs, container, &wanted)
    }

    /// The login of the agent's account, when somebody has logged in there.
    fn login<'a>(&'a self, agent: &'a AgentProfile) -> Option<(Account, &'a Login)> {
        let (name, login) = agent.account(&self.job.task.spec.agent)?;
        let account = Account::of(&self.ctx.settings.data, name);
        account.exists().then_some((account, login))
    }

    /// The home is there by now, so the login of the agent's account can be seen from it.
    fn link_login(&self, profile: &AgentProfile) -> Result<(), Stopped> {
        let Some((account, login)) = self.login(profile) else {
            return Ok(());
        };
        if self.job.task.spec.placement.wrap == Wrap::Host && !account.is_plain() {
            let dir = account.dir().display();
            let reason = format!(
                "{dir} holds a link, and without a fence the agent would follow it; look who made \
                 it, remove it, and `dispatch login` again"
            );
            return Err(Failure::Start { reason }.into());
        }
        let linked = account.link(login, &self.ctx.trees.home(&self.job.task));
        linked.map_err(|error| {
            let reason = words(&error);
            Failure::Start { reason }.into()
        })
    }

    fn login_secrets(&self, agent: &AgentProfile) -> Vec<Secret> {
        let found = self.login(agent);
        found.map_or_else(Vec::new, |(account, login)| account.secrets(login))
    }

    /// A CLI that wrote its login past our link would else have renewed it for this task alone.
    async fn take_back_login(&self, profile: &AgentProfile) -> Result<(), Cut> {
        let Some((account, login)) = self.login(profile) else {
            return Ok(());
        };
        let text = match account.take_back(login, &self.ctx.trees.home(&self.job.task)) {
            Ok(moved) if moved.is_empty() => return Ok(()),
            Ok(moved) => format!(
                "the agent wrote {} in its own home; it was moved to its account's login",
                moved.join(", ")
            ),
            Err(error) => format!(
                "a login that the agent renewed could not be kept ({}); `dispatch login` makes a \
                 new one",
                words(&error)
            ),
        };
        self.tell(Kind::Noted { text }).await
    }

    /// What the task's own jobs may use.
    fn limits(&self) -> Limits {
        let limits = &self.ctx.settings.config.limits;
        limits.lowered(&self.job.task.spec.limits)
    }

    /// Those of its agent, which may have to end with others.
    fn agent_limits(&self) -> JobLimits {
        let mut limits = self.limits().agent_job();
        if let Some(until) = self.job.task.spec.terms.until {
            let left = until.saturating_sub(self.ctx.settings.clock.now());
            limits.wall_clock_ms = limits.wall_clock_ms.min(left.max(1));
        }
        limits
    }

    /// What it belongs to has an end, after which nothing of it begins.
    fn in_time(&self) -> Result<(), Stopped> {
        let until = self.job.task.spec.terms.until;
        if until.is_none_or(|until| until > self.ctx.settings.clock.now()) {
            return Ok(());
        }
        let reason = "the time is over in which the task that asked for it wanted it done \
                      (wall_clock_s of its grant)";
        let reason = reason.to_owned();
        Err(Failure::Start { reason }.into())
    }

    /// For the agent, and with `None` for a check.
    fn relays(&self, agent: Option<&AgentProfile>) -> Vec<Relay> {
        let placement = &self.job.task.spec.placement;
        sidecar::relays(&self.ctx.settings.data, self.job.run, placement, agent)
    }

    /// `None`: this run needs none.
    async fn start_sidecar(
        &mut self,
        site: &Arc<dyn Site>,
        profile: &AgentProfile,
    ) -> Result<Option<Aid>, String> {
        let spec = &self.job.task.spec;
        if !sidecar::needed(&spec.placement, profile) {
            return Ok(None);
        }
        let keys = |variable: &str| {
            let key = profile.env.get(variable)?.key(&spec.agent, variable)?;
            let secret = self.job.secrets.get(&key)?;
            Some(secret.expose().to_owned())
        };
        let what = sidecar::invocation(&self.ctx, self.job.run, &spec.placement, profile, &keys)?;
        sidecar::start(site, self.job.run, &what).await?;
        let (followed, answer) = sidecar::follow(site, &self.watcher).await;
        self.aided = Some(followed);
        sidecar::ready(answer).await.map(Some)
    }

    /// Follows the sidecar of an agent that an engine before us started.
    async fn find_sidecar(&mut self, site: &Arc<dyn Site>, profile: &AgentProfile) {
        if !self.has_sidecar() && !sidecar::needed(&self.job.task.spec.placement, profile) {
            return;
        }
        // The agent has what it needs of it since its start, so nobody waits for the answer.
        let (followed, _) = sidecar::follow(site, &self.watcher).await;
        self.aided = Some(followed);
    }

    /// Whether anything of one lies in the data directory, whoever put it there.
    fn has_sidecar(&self) -> bool {
        let (data, run) = (&self.ctx.settings.data, self.job.run);
        let job = crate::jobdir::JobDir::of(data, &sidecar::id(run));
        job.path().exists() || sidecar::directory(data, run).exists()
    }

    /// Ends a sidecar whose agent never was, so that another can be started.
    async fn clear_sidecar(&mut self) -> Result<(), Stopped> {
        if let Some(followed) = self.aided.take() {
            followed.end(self.job.run).await;
        } else if !self.has_sidecar() {
            return Ok(());
        }
        let sites = self.sites();
        let sites = sites.iter().map(|(_, site)| site);
        sidecar::clear(&self.ctx, self.job.run, sites)
            .await
            .map_err(|reason| Failure::Start { reason }.into())
    }

    /// The sidecar ends before the run's end is recorded: then no process of it is left.
    async fn walk_and_end_sidecar(&mut self) -> Result<(Outcome, Verified), Stopped> {
        let walked = self.walk().await;
        if let Err(Stopped::Cut) = walked {
            return walked;
        }
        let closed = door::take_away(&self.ctx.settings.data, self.job.run);
        if let Err(text) = closed {
            self.tell(Kind::Noted { text }).await?;
        }
        let cleared = match self.aided.take() {
            Some(followed) => {
                followed.end(self.job.run).await;
                let dir = sidecar::directory(&self.ctx.settings.data, self.job.run);
                sidecar::forget(&dir)
            }
            // Lost before anything of it was found: then its sidecar was not, either.
            None if self.has_sidecar() => {
                let sites = self.sites();
                let sites = sites.iter().map(|(_, site)| site);
                sidecar::clear(&self.ctx, self.job.run, sites).await
            }
            None => Ok(()),
        };
        if let Err(text) = cleared {
            self.tell(Kind::Noted { text }).await?;
        }
        walked
    }

    fn workspace(&self) -> PathBuf {
        self.job
            .task
            .workspace
            .as_ref()
            .map_or_else(|| "/".into(), |w| w.path.clone())
    }

    /// What agents and checks get: the engine's list, and a home of the task's own.
    fn job_env(&self, home: &Path) -> Result<BTreeMap<String, String>, String> {
        // Beside the home, because some CLIs refuse a home below the temporary directory.
        let name = home.file_name().unwrap_or_default().to_string_lossy();
        let temporary = home.with_file_name(format!("{name}-tmp"));
        for dir in [
            home,
            &home.join(".claude"),
            &home.join(".codex"),
            &temporary,
        ] {
            std::fs::create_dir_all(dir)
                .map_err(|error| format!("make the private home {}: {error}", dir.display()))?;
        }
        let mut env = self.ctx.settings.job_env.clone();
        let text = |path: &Path| path.to_string_lossy().into_owned();
        env.insert("HOME".into(), text(home));
        env.insert("TMPDIR".into(), text(&temporary));
        for (name, below) in [
            ("XDG_CONFIG_HOME", ".config"),
            ("XDG_CACHE_HOME", ".cache"),
            ("XDG_DATA_HOME", ".local/share"),
            ("XDG_STATE_HOME", ".local/state"),
        ] {
            env.insert(name.into(), text(&home.join(below)));
        }
        for (name, value) in [
            ("TERM", "dumb"),
            ("NO_COLOR", "1"),
            ("CI", "true"),
            ("GIT_AUTHOR_NAME", "Dispatch agent"),
            ("GIT_AUTHOR_EMAIL", "agent@dispatch.invalid"),
            ("GIT_COMMITTER_NAME", "Dispatch agent"),
            ("GIT_COMMITTER_EMAIL", "agent@dispatch.invalid"),
        ] {
            env.insert(name.into(), value.into());
        }
        Ok(env)
    }

    async fn say(&self, site: &Arc<dyn Site>, ear: &mut Ear, id: u64, bytes: Vec<u8>) {
        ear.outbox.push(Order::Say { id, bytes });
        self.hand_over(site, ear).await;
    }

    async fn close_input(&self, site: &Arc<dyn Site>, ear: &mut Ear) {
        ear.outbox.push(Order::CloseInput);
        self.hand_over(site, ear).await;
    }

    /// What is for the agent's input, in order. One that its keeper cannot be given now (no descriptor
    /// is left, it does not answer in time) stays and is tried again: an agent that hears nothing waits
    /// for ever. Ids make it harmless when it did arrive.
    async fn hand_over(&self, site: &Arc<dyn Site>, ear: &mut Ear) {
        let outbox = &mut ear.outbox;
        if outbox
            .again
            .is_some_and(|at| tokio::time::Instant::now() < at)
        {
            return;
        }
        while let Some(order) = outbox.orders.front() {
            match site.order(&self.id(Part::Agent), order).await {
                Ok(()) => {}
                // Ended, or its input is closed: what it had to say is in its output.
                Err(error) if is_for_nobody(&error) => {}
                Err(_) => {
                    outbox.again = Some(tokio::time::Instant::now() + outbox.pause);
                    outbox.pause = (outbox.pause * 2).min(ORDER_AGAIN_MAX);
                    return;
                }
            }
            outbox.pop();
        }
        (outbox.pause, outbox.again) = (ORDER_AGAIN, None);
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

    /// From the first byte on, so that a fresh driver comes to the same point; updates up to the
    /// recorded offset are in the log already.
    async fn follow_agent(
        &mut self,
        site: &Arc<dyn Site>,
        driver: &mut dyn Driver,
    ) -> Result<Heard, Stopped> {
        let job = self.id(Part::Agent);
        let lost = |_| Stopped::Outcome(Outcome::Lost);
        let mut follow = site.follow(&job, Offset::default()).await.map_err(lost)?;
        let limits = self.ctx.settings.config.limits.clone();
        let mut ear = Ear {
            lines: Lines::new(limits.line_bytes),
            speech: Speech::new(
                self.job.run,
                Arc::clone(&self.ctx.tail),
                self.redactor.clone(),
            ),
            heard: 0,
            live: false,
            awaited: true,
            said: Vec::new(),
            on_their_way: self.on_their_way(),
            unsure: Vec::new(),
            asked: 0,
            asks_count: self.job.task.asks_count,
            asks: Vec::new(),
            says: 1,
            recorded: self.job.recorded,
            session: self.run().and_then(|run| run.session.clone()),
            usage: None,
            spent: None,
            bytes_left: limits.updates_bytes,
            outbox: Outbox::default(),
            done: false,
            over_budget: false,
        };
        if let Some(first) = self.first.take() {
            self.say(site, &mut ear, 0, first).await;
        }
        let linger = tokio::time::sleep(Duration::from_secs(limits.linger_s));
        let mut linger = std::pin::pin!(linger);
        let (mut shown_the_door, mut told_to_save) = (false, false);
        let bell = Arc::clone(&self.job.bell);
        let clock = self.ctx.settings.clock.clone();
        loop {
            let event = tokio::select! {
                event = follow.next() => event.map_err(lost)?,
                Some(StopOrder { force }) = self.orders.recv() => {
                    self.order_stop(site, Part::Agent, force).await;
                    continue;
                }
                () = bell.notified(), if ear.live => {
                    self.look_at_asks(site, driver, &mut ear).await?;
                    self.speak(site, driver, &mut ear).await?;
                    continue;
                }
                () = clock.wait(ear.next_deadline()), if ear.live => {
                    self.look_at_asks(site, driver, &mut ear).await?;
                    continue;
                }
                () = at(ear.outbox.again) => {
                    self.hand_over(site, &mut ear).await;
                    if ear.live && ear.awaited {
                        self.speak(site, driver, &mut ear).await?;
                    }
                    continue;
                }
                () = &mut linger, if ear.done && !shown_the_door => {
                    shown_the_door = true;
                    let grace_ms = limits.grace_s * 1000;
                    let order = Order::Stop { why: Stop::Lingered, grace_ms };
                    match site.order(&job, &order).await {
                        Ok(()) | Err(_) => {}
                    }
                    continue;
                }
            };
            let was_done = ear.done;
            let report = match event {
                JobEvent::Out(bytes) => {
                    let lines = ear.lines.push(&bytes);
                    self.hear(site, driver, &mut ear, lines).await?;
                    if ear.live && ear.awaited && driver.listens() {
                        self.speak(site, driver, &mut ear).await?;
                    }
                    // One that is done has nothing left to spend.
                    if ear.over_budget && !ear.done && !told_to_save {
                        told_to_save = true;
                        let grace_ms = limits.grace_s * 1000;
                        let order = Order::Stop {
                            why: Stop::Budget,
                            grace_ms,
                        };
                        match site.order(&job, &order).await {
                            // It has ended by itself.
                            Ok(()) | Err(_) => {}
                        }
                    }
                    None
                }
                JobEvent::Alive => {
                    // What an engine before this one has heard is heard again, and answered alike:
                    // from here on there can be something new.
                    ear.live = true;
                    ear.speech.caught_up();
                    self.look_at_asks(site, driver, &mut ear).await?;
                    if ear.awaited {
                        self.speak(site, driver, &mut ear).await?;
                    }
                    None
                }
                JobEvent::Err(_) => None,
                JobEvent::Exited(report) => {
                    self.swept = true;
                    Some(Some(report))
                }
                JobEvent::Gone => {
                    self.swept = true;
                    Some(None)
                }
                JobEvent::NeverStarted => Some(None),
            };
            if ear.done && !was_done {
                let after = tokio::time::Instant::now() + Duration::from_secs(limits.linger_s);
                linger.as_mut().reset(after);
            }
            if let Some(report) = report {
                let rest: Vec<Line> = ear.lines.finish().into_iter().collect();
                self.hear(site, driver, &mut ear, rest).await?;
                ear.speech.caught_up();
                self.settle_messages(site, &ear, driver.unheard()).await?;
                let mut said = driver.close();
                said.usage = said.usage.or(ear.usage);
                let known = self.run().is_some_and(|run| run.report.is_some());
                if let (Some(report), false) = (&report, known) {
                    let usage = said.usage.clone();
                    self.tell(Kind::AgentEnded {
                        report: report.clone(),
                        usage,
                    })
                    .await?;
                }
                return Ok(Heard { said, report });
            }
        }
    }

    async fn hear(
        &self,
        site: &Arc<dyn Site>,
        driver: &mut dyn Driver,
        ear: &mut Ear,
        lines: Vec<Line>,
    ) -> Result<(), Stopped> {
        let mut facts = Vec::new();
        for line in lines {
            self.say_again(site, driver, ear).await?;
            let fresh = line.end > ear.recorded;
            ear.heard = line.end;
            if line.cut && fresh {
                let text = "a line was too long and was cut for reading; all of it is in the log";
                let notice = Update::Notice { text: text.into() };
                facts.push(ear.said(notice, line.end, None));
            }
            for step in driver.hear(&line.text) {
                match step {
                    Step::Said(update) => self.said(ear, None, update, &line, &mut facts),
                    Step::Whole(chunk, update) => {
                        self.said(ear, Some(chunk), update, &line, &mut facts);
                    }
                    Step::Piece { chunk, voice, text } => ear.speech.piece(chunk, voice, &text),
                    Step::Live(text) => ear.speech.line(&text),
                    Step::Spent(usage) => {
                        let before = ear.spent.replace(usage.clone());
                        let warning = self.look_at_budget(before.as_ref(), &usage, ear);
                        facts.push(warning.filter(|_| fresh));
                    }
                    Step::Send(bytes) => {
                        // Ids are counted, so a replay says the same under the same id.
                        let id = ear.says;
                        ear.says += 1;
                        self.say(site, ear, id, bytes).await;
                    }
                    Step::Ask(request) => {
                        let fact = self.asked(site, driver, ear, request, line.end).await;
                        facts.push(
                            fact.filter(|fact| {
                                fresh || matches!(fact, Kind::PermissionAsked { .. })
                            }),
                        );
                    }
                    Step::Withdrawn { id } => {
                        // Two in one piece of output: what it takes back must be in the log first.
                        let told: Vec<Kind> = facts.drain(..).flatten().collect();
                        self.record(Subject::Run(self.job.run), told).await?;
                        self.withdraw(ear, &id).await?;
                    }
                    Step::CloseInput => self.close_input(site, ear).await,
                    Step::Done => {
                        ear.done = true;
                        self.close_input(site, ear).await;
                    }
                }
            }
        }
        self.say_again(site, driver, ear).await?;
        // Whoever looks need not wait for the disk.
        ear.speech.flush();
        if std::mem::take(&mut ear.outbox.overflowed) {
            let text = format!(
                "its keeper takes no orders, and more than {OUTBOX_BYTES_MAX} bytes wait: what the \
                 agent should have been told is lost until another engine follows it"
            );
            facts.push(Some(Kind::Noted { text }));
        }
        let facts: Vec<Kind> = facts.into_iter().flatten().collect();
        if !facts.is_empty() {
            self.record(Subject::Run(self.job.run), facts).await?;
        }
        // What is too much at once is not kept waiting: it would be kept in memory.
        if ear.asks.len() > OPEN_MAX {
            for asking in &ear.asks[OPEN_MAX..] {
                self.answer_ask(asking.id, By::Limit).await?;
            }
            self.look_at_asks(site, driver, ear).await?;
        }
        Ok(())
    }

    /// Something whole, for the log; of what a replay hears again, only what has to be remembered.
    fn said(
        &self,
        ear: &mut Ear,
        chunk: Option<ChunkId>,
        update: Update,
        line: &Line,
        facts: &mut Vec<Option<Kind>>,
    ) {
        let fresh = line.end > ear.recorded;
        if let Update::Usage(usage) = &update {
            ear.usage = Some(usage.clone());
            let before = ear.spent.replace(usage.clone());
            let warning = self.look_at_budget(before.as_ref(), usage, ear);
            facts.push(warning.filter(|_| fresh));
        }
        if let Update::Session { id } = &update
            && ear.session.as_ref() != Some(id)
        {
            ear.session = Some(id.clone());
            facts.push(Some(Kind::SessionSeen {
                session: id.clone(),
            }));
        }
        if fresh {
            facts.push(ear.said(update, line.end, chunk));
        } else {
            ear.speech.known(chunk, &update);
        }
    }

    /// The agent waits for an answer. A replay finds what it asked, by its order, and gives the answers
    /// that were given; the keeper ignores what it has.
    async fn asked(
        &self,
        site: &Arc<dyn Site>,
        driver: &mut dyn Driver,
        ear: &mut Ear,
        request: Request,
        out_offset: u64,
    ) -> Option<Kind> {
        let run = self.job.run.n;
        let mut known = self.job.task.asks.iter().filter(|ask| ask.run == run);
        let known = known.nth(ear.asked);
        ear.asked += 1;
        if let Some(ask) = known {
            let (id, until) = (ask.id, ask.until);
            let asking = Asking { id, until, request };
            match &ask.fate {
                AskFate::Open => ear.asks.push(asking),
                AskFate::Closed => {}
                fate @ AskFate::Answered { .. } => {
                    self.give(site, driver, ear, &asking, fate).await;
                }
            }
            return None;
        }
        let Request { tool, input, .. } = request.clone();
        if ear.asked > ASKS_MAX {
            // By counting, as the driver's own answers are.
            let id = ear.says;
            ear.says += 1;
            let why = format!("This run has asked {ASKS_MAX} times, which is all it may ask.");
            let bytes = driver.permit(&request, false, &why);
            self.say(site, ear, id, bytes).await;
            let allowed = false;
            let update = Update::Asked {
                tool,
                input,
                allowed,
            };
            return ear.said(update, out_offset, None);
        }
        ear.asks_count = ear.asks_count.saturating_add(1);
        let ask = AskId(ear.asks_count);
        let since = self.silent_since(site, ear).await;
        let until = since.saturating_add(self.limits().ask_wait_ms());
        ear.asks.push(Asking {
            id: ask,
            until,
            request,
        });
        Some(Kind::PermissionAsked {
            ask,
            tool,
            input,
            owner: self.job.answers,
            until,
        })
    }

    /// From when an ask that is heard now has waited. Its keeper counts the silence from when the agent
    /// wrote it, which no engine may have heard.
    async fn silent_since(&self, site: &Arc<dyn Site>, ear: &Ear) -> Millis {
        let now = self.ctx.settings.clock.now();
        if ear.live {
            return now;
        }
        match site.grew_at(&self.id(Part::Agent)).await {
            Ok(Some(at)) => at.min(now),
            // As well as it is known.
            Ok(None) | Err(_) => now,
        }
    }

    /// Gives the agent what was answered, after what nobody has answered in time was denied.
    async fn look_at_asks(
        &self,
        site: &Arc<dyn Site>,
        driver: &mut dyn Driver,
        ear: &mut Ear,
    ) -> Result<(), Cut> {
        let now = self.ctx.settings.clock.now();
        for asking in ear.asks.iter().filter(|asking| asking.until <= now) {
            self.answer_ask(asking.id, By::Deadline).await?;
        }
        if ear.asks.is_empty() {
            return Ok(());
        }
        let run = self.job.run;
        let fates = self.ask(|reply| Command::Asks { run, reply }).await?;
        let fates: BTreeMap<AskId, AskFate> = fates.into_iter().flatten().collect();
        for asking in std::mem::take(&mut ear.asks) {
            match fates.get(&asking.id) {
                Some(AskFate::Open) => ear.asks.push(asking),
                Some(fate @ AskFate::Answered { .. }) => {
                    self.give(site, driver, ear, &asking, fate).await;
                }
                // Nobody is there to hear it.
                Some(AskFate::Closed) | None => {}
            }
        }
        Ok(())
    }

    /// An answer that is durable, under an id of its own: however often it is given, it is heard once.
    async fn give(
        &self,
        site: &Arc<dyn Site>,
        driver: &mut dyn Driver,
        ear: &mut Ear,
        asking: &Asking,
        fate: &AskFate,
    ) {
        let AskFate::Answered { allow, by, why } = fate else {
            return;
        };
        if *by == By::Agent {
            return;
        }
        let why = by.refusal(why.as_deref());
        let bytes = driver.permit(&asking.request, *allow, &why);
        let id = ASK_ORDERS + u64::from(asking.id.0);
        self.say(site, ear, id, bytes).await;
    }

    /// The agent does not wait for it any more.
    async fn withdraw(&self, ear: &mut Ear, id: &str) -> Result<(), Cut> {
        let at = ear.asks.iter().position(|asking| asking.request.id == id);
        if let Some(at) = at {
            let asking = ear.asks.remove(at);
            self.answer_ask(asking.id, By::Agent).await?;
        }
        Ok(())
    }

    /// A denial that is nobody's. Whoever was first has answered it.
    async fn answer_ask(&self, ask: AskId, by: By) -> Result<(), Cut> {
        let answered = self.ask(|reply| Command::Permit {
            task: self.job.run.task,
            ask,
            allow: false,
            by,
            why: None,
            reply,
        });
        answered.await.map(|_| ())
    }

    /// What an engine before this one has taken for the running agent, in order.
    fn on_their_way(&self) -> VecDeque<(u64, Message)> {
        let of_this_run = |message: &&Message| message.is_with(self.job.run.n);
        let messages = self.job.task.messages.iter().filter(of_this_run);
        let spoken = |message: &Message| Some((message.taken?.out_offset?, message.clone()));
        messages.filter_map(spoken).collect()
    }

    /// A replay says what was said, after the same line of output: the driver comes to the same
    /// state and the same bytes, and the keeper ignores what it has.
    async fn say_again(
        &self,
        site: &Arc<dyn Site>,
        driver: &mut dyn Driver,
        ear: &mut Ear,
    ) -> Result<(), Cut> {
        let heard = ear.heard;
        let due = |(offset, _): &mut (u64, Message)| *offset <= heard;
        while let Some((_, message)) = ear.on_their_way.pop_front_if(due) {
            self.utter(site, driver, ear, message).await?;
        }
        Ok(())
    }

    /// Says what waits, for as long as the agent can be spoken to.
    async fn speak(
        &self,
        site: &Arc<dyn Site>,
        driver: &mut dyn Driver,
        ear: &mut Ear,
    ) -> Result<(), Cut> {
        let run = self.job.run;
        // What was taken before comes first.
        let open = !ear.done && !ear.over_budget && ear.outbox.orders.is_empty();
        while open && ear.on_their_way.is_empty() && driver.listens() {
            let out_offset = ear.heard;
            let command = |reply| Command::Take {
                run,
                out_offset,
                reply,
            };
            let Some(message) = self.ask(command).await?.flatten() else {
                ear.awaited = false;
                return Ok(());
            };
            self.utter(site, driver, ear, message).await?;
        }
        ear.awaited = true;
        self.ask(|reply| Command::Deaf { run, reply }).await?;
        Ok(())
    }

    async fn utter(
        &self,
        site: &Arc<dyn Site>,
        driver: &mut dyn Driver,
        ear: &mut Ear,
        message: Message,
    ) -> Result<(), Cut> {
        ear.said.push(message.id);
        let Some(bytes) = driver.say(&message.words()) else {
            ear.unsure.push(message.id);
            return Ok(());
        };
        let order = Order::Say {
            id: message_order(message.id),
            bytes,
        };
        let given = site.order(&self.id(Part::Agent), &order).await;
        if message.fate != Fate::Waiting {
            return Ok(());
        }
        match given {
            Ok(()) => self.tell_delivered(message.id).await,
            // Ended, or hung up in the middle: its keeper's own record says it at the end.
            Err(_) => {
                ear.unsure.push(message.id);
                Ok(())
            }
        }
    }

    async fn tell_delivered(&self, message: MessageId) -> Result<(), Cut> {
        let delivery = Delivery::Interrupt;
        self.tell(Kind::MessageDelivered { message, delivery })
            .await
    }

    /// What was in its input before the end is delivered; the rest waits again, and so does what it
    /// has not taken up from there.
    async fn settle_messages(
        &self,
        site: &Arc<dyn Site>,
        ear: &Ear,
        unheard: usize,
    ) -> Result<(), Stopped> {
        let heard = ear.said.len().saturating_sub(unheard);
        if ear.unsure.is_empty() && heard == ear.said.len() {
            return Ok(());
        }
        let given = site.given(&self.id(Part::Agent)).await;
        // Not to know it is not to have seen the end.
        let given = given.map_err(|_| Stopped::Outcome(Outcome::Lost))?;
        let delivery = Delivery::Interrupt;
        let unsure = ear.unsure.iter().copied();
        let arrived = unsure.filter(|message| given.contains(&message_order(*message)));
        let arrived = arrived.map(|message| Kind::MessageDelivered { message, delivery });
        let returned = ear.said.iter().skip(heard).copied();
        let returned = returned
            .filter(|message| {
                !ear.unsure.contains(message) || given.contains(&message_order(*message))
            })
            .map(|message| Kind::MessageReturned { message });
        let kinds = arrived.chain(returned).collect();
        self.record(Subject::Run(self.job.run), kinds).await?;
        Ok(())
    }

    /// The task's budget against what all its runs have spent: a word at its warning, an end at its
    /// limit.
    fn look_at_budget(&self, before: Option<&Usage>, now: &Usage, ear: &mut Ear) -> Option<Kind> {
        let task = &self.job.task;
        let earlier = task.runs.iter().filter(|run| run.n < self.job.run.n);
        let earlier = earlier.filter_map(|run| run.usage.as_ref()).map(Budget::of);
        let (budget, earlier) = (task.budget(), earlier.fold(Budget::default(), Budget::plus));
        let purse = &self.job.purse;
        purse.spend(Budget::of(now));
        // What is given to others is not there to be spent.
        let earlier = earlier.plus(purse.given());
        let after = earlier.plus(Budget::of(now));
        let before = earlier.plus(before.map(Budget::of).unwrap_or_default());
        ear.over_budget |= budget.reached(after).is_some();
        let percent = self.ctx.settings.config.gate.warn_percent;
        let spent = budget.crossed(before, after, percent)?;
        let what = "task".to_owned();
        Some(Kind::BudgetWarned { what, spent })
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

/// What a follower of an agent has to remember.
struct Ear {
    lines: Lines,
    speech: Speech,
    /// End of the last line that the driver has heard.
    heard: u64,
    /// All that was there when it began has been heard.
    live: bool,
    /// There may be a message for it.
    awaited: bool,
    /// Said to it, in order.
    said: Vec<MessageId>,
    /// Said before, and not yet again, each after that much of the output.
    on_their_way: VecDeque<(u64, Message)>,
    /// The keeper did not confirm them.
    unsure: Vec<MessageId>,
    /// How much it has asked, and the number of the task's last ask.
    asked: usize,
    asks_count: u32,
    /// What it waits for, in order.
    asks: Vec<Asking>,
    says: u64,
    recorded: u64,
    session: Option<String>,
    usage: Option<dispatch_core::update::Usage>,
    /// As far as it is known while it works.
    spent: Option<Usage>,
    bytes_left: u64,
    outbox: Outbox,
    done: bool,
    /// It has spent what its task may, and has been told to end.
    over_budget: bool,
}

/// Orders for the agent's input that its keeper has not taken yet, in order. Mostly there is none.
struct Outbox {
    orders: VecDeque<Order>,
    bytes: usize,
    /// More than may wait was for it.
    overflowed: bool,
    pause: Duration,
    /// When the first one is tried again.
    again: Option<tokio::time::Instant>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            orders: VecDeque::new(),
            bytes: 0,
            overflowed: false,
            pause: ORDER_AGAIN,
            again: None,
        }
    }
}

impl Outbox {
    fn push(&mut self, order: Order) {
        let bytes = said_bytes(&order);
        // The end of the input always has room.
        if bytes > 0 && self.bytes > 0 && self.bytes + bytes > OUTBOX_BYTES_MAX {
            self.overflowed = true;
        } else {
            self.bytes += bytes;
            self.orders.push_back(order);
        }
    }

    fn pop(&mut self) {
        if let Some(order) = self.orders.pop_front() {
            self.bytes -= said_bytes(&order);
        }
    }
}

fn said_bytes(order: &Order) -> usize {
    match order {
        Order::Say { bytes, .. } => bytes.len(),
        Order::CloseInput | Order::Stop { .. } | Order::Kill { .. } => 0,
    }
}

/// Whether whoever an order was for is not there to take it, now or later.
fn is_for_nobody(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::BrokenPipe)
}

/// Never for `None`.
async fn at(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// What the agent waits for.
struct Asking {
    id: AskId,
    until: Millis,
    request: Request,
}

fn message_order(message: MessageId) -> u64 {
    MESSAGE_ORDERS + u64::from(message.0)
}

impl Ear {
    /// When the next one is denied that nobody answers.
    fn next_deadline(&self) -> Option<Millis> {
        self.asks.iter().map(|asking| asking.until).min()
    }

    /// A fact for the log, as long as this run may still say some.
    fn said(&mut self, update: Update, out_offset: u64, chunk: Option<ChunkId>) -> Option<Kind> {
        if self.bytes_left == 0 {
            return None;
        }
        let size = serde_json::to_vec(&update).map_or(0, |bytes| bytes.len() as u64);
        self.bytes_left = self.bytes_left.saturating_sub(size.max(1));
        if self.bytes_left == 0 {
            let text = "it has said more than limits.updates_bytes; the rest is in its output only";
            return Some(Kind::Said {
                update: Update::Notice { text: text.into() },
                out_offset,
                chunk,
            });
        }
        Some(Kind::Said {
            update,
            out_offset,
            chunk,
        })
    }
}

/// An error with its cause.
fn words(error: &LoginError) -> String {
    use std::error::Error as _;
    let cause = error.source().map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

fn prepare_failed(error: &TreeError) -> Stopped {
    Failure::Prepare {
        reason: error.to_string(),
    }
    .into()
}

/// The agent's own files in its private home. An earlier run may have put anything in their places.
fn lay_down(home: &Path, wanted: &BTreeMap<HomePath, FileText>) -> Result<(), String> {
    for (path, text) in wanted {
        let path = path.as_path();
        let bytes = match text {
            FileText::Text(text) => text.clone().into_bytes(),
            FileText::From { file } => std::fs::read(file).map_err(|e| {
                format!(
                    "read {} for {} of the private home: {e}",
                    file.display(),
                    path.display()
                )
            })?,
        };
        let written = files::open_dir(home)
            .and_then(|root| files::replace_beneath(root.as_fd(), path, &bytes));
        written.map_err(|e| format!("write {} into the private home: {e}", path.display()))?;
    }
    Ok(())
}

/// The program's full path, found on the job's own PATH.
fn find_program(program: &str, env: &BTreeMap<String, String>) -> Result<String, String> {
    let runnable = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        path.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        let path = Path::new(program);
        return if path.is_absolute() && runnable(path) {
            Ok(program.to_owned())
        } else {
            Err(format!("{program} is not an absolute path to a program"))
        };
    }
    let path = env.get("PATH").map_or("", String::as_str);
    path.split(':')
        .filter(|dir| dir.starts_with('/'))
        .map(|dir| Path::new(dir).join(program))
        .find(|candidate| runnable(candidate))
        .map(|found| found.to_string_lossy().into_owned())
        .ok_or_else(|| {
            format!("the program {program} is not on PATH; `dispatch doctor` tells more")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_keeper_is_bounded() {
        let say = |bytes| Order::Say {
            id: 1,
            bytes: vec![0; bytes],
        };
        let mut outbox = Outbox::default();
        // One alone may be larger: its keeper decides.
        for (bytes, waiting) in [(OUTBOX_BYTES_MAX + 1, 1), (1, 1), (0, 2)] {
            outbox.push(say(bytes));
            assert_eq!(outbox.orders.len(), waiting);
        }
        assert!(outbox.overflowed);
        outbox.pop();
        outbox.push(say(1));
        outbox.push(Order::CloseInput);
        assert_eq!((outbox.orders.len(), outbox.bytes), (3, 1));
    }
}
