//! An agent that works: its output to the driver, what the driver says to the log, until its end.
//! Must not act on anything that is not durable, and must come to the same steps when it hears all
//! of it again.

mod asks;
mod news;
mod outbox;
mod talk;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use dispatch_core::{
    Millis,
    ask::{AskId, By, OPEN_MAX},
    drivers::{Driver, Hearing, Request, Step},
    event::{Kind, Subject},
    gate::Budget,
    id::KeyName,
    job::{Offset, Order, Part},
    keyring::KeyNews,
    message::{Message, MessageId},
    outcome::{Outcome, Stop},
    update::{ChunkId, Update, Usage},
};

use super::{Heard, Stopped, Walk};
use crate::{
    engine::StopOrder,
    lines::{Line, Lines},
    sites::{JobEvent, Site},
    speech::Speech,
};

use self::{
    news::NewsOfKeys,
    outbox::{OUTBOX_BYTES_MAX, Outbox},
};

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
    /// What became of messages, of an agent that tells.
    fates: BTreeMap<MessageId, Hearing>,
    /// Said, and nothing of it is in the log.
    unsettled: BTreeSet<MessageId>,
    /// Asked for.
    recalled: BTreeSet<MessageId>,
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
    news: NewsOfKeys,
    outbox: Outbox,
    done: bool,
    /// It has spent what its task may, and has been told to end.
    over_budget: bool,
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

/// What the agent waits for.
struct Asking {
    id: AskId,
    until: Millis,
    request: Request,
}

impl Walk {
    /// From the first byte on, so that a fresh driver comes to the same point; updates up to the
    /// recorded offset are in the log already.
    pub(super) async fn follow_agent(
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
            fates: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            recalled: BTreeSet::new(),
            asked: 0,
            asks_count: self.job.task.asks_count,
            asks: Vec::new(),
            says: 1,
            recorded: self.job.recorded,
            session: self.run().and_then(|run| run.session.clone()),
            usage: None,
            spent: None,
            bytes_left: limits.updates_bytes,
            news: NewsOfKeys::default(),
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
                    self.recall(site, driver, &mut ear).await?;
                    continue;
                }
                () = clock.wait(ear.next_deadline()), if ear.live => {
                    self.look_at_asks(site, driver, &mut ear).await?;
                    continue;
                }
                () = ear.outbox.due() => {
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
                self.settle_messages(site, &ear, driver).await?;
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
                    Step::Key { key, news } => {
                        let fact = self.heard_of_key(ear, key, news);
                        facts.push(fact.filter(|_| fresh));
                    }
                    Step::Message { nth, hearing } => {
                        let told: Vec<Kind> = facts.drain(..).flatten().collect();
                        self.record(Subject::Run(self.job.run), told).await?;
                        self.settle(ear, nth, hearing).await?;
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
        if ear.outbox.has_overflowed() {
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
        if let (true, Update::ModelChanged { from, to, reason }) = (fresh, &update) {
            // Whoever reads the result should know whose it is.
            let text = format!("model changed from {from} to {to}: {reason}");
            facts.push(Some(Kind::Noted { text }));
        }
        if fresh {
            facts.push(ear.said(update, line.end, chunk));
        } else {
            ear.speech.known(chunk, &update);
        }
    }

    fn heard_of_key(&self, ear: &mut Ear, key: KeyName, news: KeyNews) -> Option<Kind> {
        let settings = &self.ctx.settings;
        let pause_max_ms = settings.config.gate.pause_max_s.saturating_mul(1000);
        let latest = settings.clock.now().saturating_add(pause_max_ms);
        let chain = &self.job.task.spec.terms.chain;
        ear.news.heard((chain, latest), key, news)
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
}
