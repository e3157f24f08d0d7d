//! One run, top to bottom: prepare, start, follow, judge, check, seal. First contact and
//! re-attachment are the same walk: it asks the job directory and goes on from there.
//! Must not change state: it reports facts and waits until they are durable before it acts on them.

mod account;
mod aid;
mod begin;
mod invocation;
mod placed;
mod recover;
mod tools;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use dispatch_core::{
    Millis,
    ask::{ASKS_MAX, AskId, By, Fate as AskFate, OPEN_MAX},
    checks::{self, Planned},
    config::AgentProfile,
    drivers::{Driver, Request, Step},
    event::{CheckState, Kind, Sealed, Subject, Verified},
    gate::Budget,
    id::{RunId, SiteName},
    job::{Exit, ExitReport, Invocation, JobId, Offset, Order, Output, Part, Stdin},
    message::{Delivery, Fate, Message, MessageId, Sender},
    outcome::{Failure, Outcome, Stop},
    redact::Redactor,
    review::{self, Range, Verdict},
    run::RunState,
    secret::Secret,
    state::{Run, Task},
    task::{Expects, Wrap},
    update::{ChunkId, Said, Update, Usage},
    verdict::{self, Tree},
};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{
    doorkeys::DoorKey,
    engine::{Command, Desk, Purse, Secrets, Settings, Sites, StopOrder},
    fence::Fences,
    lines::{Line, Lines},
    sidecar::{self, Followed, Watched, Watcher},
    sites::{JobEvent, Site, Start},
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

fn prepare_failed(error: &TreeError) -> Stopped {
    Failure::Prepare {
        reason: error.to_string(),
    }
    .into()
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
