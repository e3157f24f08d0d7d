//! One turn: what somebody said, and everything it takes to answer it. One function owns all of its
//! state, and takes the agent for itself until it is over: there is no second turn beside it.
//! Must not do anything before it is recorded that it is about to, must not do it twice, and must
//! not go on when it was told to stop.

use std::{future::pending, time::Duration};

use dispatch_core::{
    Millis,
    models::{Choice, Endpoint, Price},
    native::{Block, Chunk, Fault, Live, Message, StepEnd, StepId, Tokens, TurnEnd},
    secret::Secret,
};
use tokio::time::{Instant as At, sleep_until};

use crate::{
    agent::Agent,
    calls,
    conversation::{Call, INTERRUPTED, NOT_RUN},
    fallback::{Chain, Next, Waits},
    keys::KeyError,
    model::{Heard, ModelError, Question},
    record::RecordError,
};

/// Answers of full length in a row; one more is a model that does not come to an end.
const FULL_MAX: u32 = 3;
/// A wait is said again this often, so that nobody takes the agent for dead.
const WAIT_TOLD_EVERY_MS: Millis = 300_000;
const STOPPED: &str =
    "error: this call was stopped by whoever watches; it may have had some of its effects";

/// Why a turn does not go on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Halt {
    End(TurnEnd),
    Record(String),
}

impl From<RecordError> for Halt {
    /// Nothing can be recorded, so nothing may be done.
    fn from(error: RecordError) -> Self {
        Self::Record(error.to_string())
    }
}

fn limit(name: &str) -> Halt {
    let name = name.to_owned();
    Halt::End(TurnEnd::Limit { name })
}

fn failed(fault: Fault, message: String, retry_at: Option<Millis>) -> Halt {
    Halt::End(TurnEnd::Failed {
        fault,
        message,
        retry_at,
    })
}

pub(crate) struct Turn<'a> {
    pub(crate) agent: &'a mut Agent,
    chain: Chain,
    deadline: Option<At>,
    /// Answers of full length since one that was not.
    full: u32,
}

/// Runs a turn to its end, or goes on with the one that an earlier process did not end.
pub(crate) async fn run(agent: &mut Agent, said: Vec<Message>) -> Result<TurnEnd, RecordError> {
    let outs = agent.log.conversation.outs.clone();
    let limits = agent.settings.limits;
    let waits = Waits {
        retry_ms: limits.retry_ms,
        sum_ms_max: limits.wait_ms_max,
    };
    let now = agent.clock.now();
    let chain = Chain::new(agent.settings.chain.clone(), waits, &outs, now);
    let begun = agent.begin(said).await?;
    let end = match chain {
        Some(chain) => {
            let wall_clock = Duration::from_millis(limits.wall_clock_ms);
            let deadline = (limits.wall_clock_ms > 0).then(|| At::now() + wall_clock);
            let mut turn = Turn {
                agent,
                chain,
                deadline,
                full: 0,
            };
            turn.go(begun).await
        }
        None => failed(Fault::Key, "no model was asked for".into(), None),
    };
    let end = match end {
        Halt::End(end) => end,
        Halt::Record(why) => return Err(RecordError::Write(std::io::Error::other(why))),
    };
    agent.end(end.clone()).await?;
    Ok(end)
}

impl Turn<'_> {
    /// `said`: messages that are to be told to a turn that was begun before.
    async fn go(&mut self, mut said: Vec<Message>) -> Halt {
        loop {
            let halt = async {
                self.finish_step(&mut said).await?;
                self.check_limits()?;
                self.ask().await
            };
            if let Err(halt) = halt.await {
                return self.halted(halt).await;
            }
        }
    }

    /// What was under way is ended, and every call has its result, whatever the halt was.
    async fn halted(&mut self, halt: Halt) -> Halt {
        let Halt::End(end) = &halt else {
            return halt;
        };
        let stopped = *end == TurnEnd::Stopped;
        if stopped || matches!(end, TurnEnd::Limit { .. }) {
            self.agent.place.end().await;
        }
        match self.close_open(stopped).await {
            Ok(()) => halt,
            Err(error) => error.into(),
        }
    }

    async fn close_open(&mut self, stopped: bool) -> Result<(), RecordError> {
        let Some((end, left)) = self.agent.log.conversation.open_step() else {
            return Ok(());
        };
        if end.is_none() {
            let why = "the turn ended".to_owned();
            self.put(Chunk::StepEnded(StepEnd::Cut { why })).await?;
        }
        for call in left {
            let running = self.agent.log.conversation.is_running(&call.id);
            let text = match (running, stopped) {
                (true, true) => STOPPED,
                (true, false) => INTERRUPTED,
                (false, _) => NOT_RUN,
            };
            self.answer(&call, text.to_owned(), true).await?;
        }
        Ok(())
    }

    pub(crate) fn step(&self) -> StepId {
        self.agent.log.conversation.step()
    }

    pub(crate) async fn put(&mut self, chunk: Chunk) -> Result<(), RecordError> {
        let step = self.step();
        self.agent.log.put(step, chunk).await
    }

    pub(crate) async fn answer(
        &mut self,
        call: &Call,
        output: String,
        failed: bool,
    ) -> Result<(), RecordError> {
        let call = call.id.clone();
        self.put(Chunk::Result {
            call,
            output,
            failed,
        })
        .await
    }

    /// Waits for something, and hears what is said meanwhile.
    pub(crate) async fn attend<T>(
        inbox: &mut crate::inbox::Inbox,
        deadline: Option<At>,
        work: impl Future<Output = T>,
    ) -> Result<T, Halt> {
        tokio::pin!(work);
        let over = async {
            match deadline {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        tokio::pin!(over);
        loop {
            if inbox.stopped() {
                return Err(Halt::End(TurnEnd::Stopped));
            }
            tokio::select! {
                biased;
                () = inbox.hear() => {}
                () = &mut over => return Err(limit("wall_clock")),
                done = &mut work => return Ok(done),
            }
        }
    }

    pub(crate) fn deadline(&self) -> Option<At> {
        self.deadline
    }

    /// The step before the next question: what its end means, and the results of its calls.
    async fn finish_step(&mut self, said: &mut Vec<Message>) -> Result<(), Halt> {
        self.agent.note().await?;
        let Some((end, left)) = self.agent.log.conversation.open_step() else {
            return Ok(());
        };
        match end.unwrap_or_else(|| StepEnd::Cut { why: String::new() }) {
            StepEnd::Calls => {
                self.full = 0;
                calls::run(self, left).await?;
            }
            StepEnd::Done => return Err(Halt::End(TurnEnd::Done)),
            StepEnd::Refused => {
                let message = "the provider would not answer this".to_owned();
                return Err(failed(Fault::Refused, message, None));
            }
            StepEnd::Full => {
                self.full += 1;
                if self.full > FULL_MAX {
                    return Err(limit("answer"));
                }
                let text = "error: this call was not run, because the answer it was in is as long \
                            as it may be; do it in smaller parts";
                for call in left {
                    self.answer(&call, text.to_owned(), true).await?;
                }
            }
            StepEnd::Cut { .. } => self.close_open(false).await?,
        }
        self.tell(said).await
    }

    /// Messages that came meanwhile are told with the results.
    async fn tell(&mut self, said: &mut Vec<Message>) -> Result<(), Halt> {
        said.extend(self.agent.inbox.messages());
        self.agent.note().await?;
        if !said.is_empty() {
            let said = std::mem::take(said);
            self.put(Chunk::Said { said }).await?;
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), Halt> {
        let limits = &self.agent.settings.limits;
        let spent = self.agent.log.conversation.spent;
        if self.agent.inbox.stopped() {
            return Err(Halt::End(TurnEnd::Stopped));
        }
        if limits.steps_max > 0 && spent.steps >= limits.steps_max {
            return Err(limit("steps"));
        }
        if limits.tokens_max > 0 && spent.all_tokens() >= limits.tokens_max {
            return Err(limit("tokens"));
        }
        if limits.cost_usd_max > 0.0 && spent.cost_usd >= limits.cost_usd_max {
            return Err(limit("cost"));
        }
        Ok(())
    }

    /// One step: asks until there is an answer, or a piece of one, or nobody is left to ask.
    async fn ask(&mut self) -> Result<(), Halt> {
        let conversation = &self.agent.log.conversation;
        let step = match conversation.open_step() {
            Some(_) if conversation.open_is_empty() => conversation.step(),
            _ => conversation.next_step(),
        };
        loop {
            let choice = self.chain.choice().clone();
            let (endpoint, key) = self.key(&choice).await?;
            let begins = Chunk::Step {
                model: choice.clone(),
                wire: endpoint.wire,
            };
            self.agent.log.put(step, begins).await?;
            match self.stream(&endpoint, &choice, key.as_ref()).await? {
                Ok(()) => {
                    self.chain.answered();
                    if self.agent.log.conversation.outs.is_out(&choice.key) {
                        self.put(Chunk::KeyBack { key: choice.key }).await?;
                    }
                    return Ok(());
                }
                Err(error) => {
                    let cut = !self.agent.log.conversation.open_is_empty();
                    if cut {
                        let why = error.to_string();
                        self.put(Chunk::StepEnded(StepEnd::Cut { why })).await?;
                    }
                    self.after(&error, &endpoint, key.as_ref()).await?;
                    if cut {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn key(&mut self, choice: &Choice) -> Result<(Endpoint, Option<Secret>), Halt> {
        let endpoint = self.agent.endpoint(choice);
        let endpoint = endpoint.map_err(|why| failed(Fault::Key, why, None))?;
        let Agent { inbox, keys, .. } = &mut *self.agent;
        let key = Self::attend(inbox, self.deadline, keys.get(&endpoint)).await?;
        let key = key.map_err(|error: KeyError| failed(Fault::Key, error.to_string(), None))?;
        Ok((endpoint, key))
    }

    /// The answer as it streams: each piece is recorded when it is closed.
    async fn stream(
        &mut self,
        endpoint: &Endpoint,
        choice: &Choice,
        key: Option<&Secret>,
    ) -> Result<Result<(), ModelError>, Halt> {
        let step = self.step();
        let Agent {
            client,
            inbox,
            log,
            specs,
            system,
            settings,
            ..
        } = &mut *self.agent;
        let question = Question {
            endpoint,
            effort: choice.effort,
            system,
            tools: specs,
            session: &settings.session,
        };
        let made_ids = format!("call_{}_{}", step.turn, step.step);
        let entries = log.conversation.entries();
        let asked = client.ask(&question, &entries, key, made_ids);
        let asked = Self::attend(inbox, self.deadline, asked).await?;
        drop(entries);
        let mut answer = match asked {
            Ok(answer) => answer,
            Err(error) => return Ok(Err(error)),
        };
        if !answer.windows.is_empty() {
            let windows = std::mem::take(&mut answer.windows);
            let key = choice.key.clone();
            log.put(step, Chunk::Windows { key, windows }).await?;
        }
        let mut shown = Shown::new(settings.live);
        loop {
            let heard = match Self::attend(inbox, self.deadline, answer.next()).await? {
                Ok(Some(heard)) => heard,
                Ok(None) => return Ok(Ok(())),
                Err(error) => {
                    if let Some(live) = shown.void() {
                        log.show(live)?;
                    }
                    return Ok(Err(error));
                }
            };
            for live in shown.take(&heard, answer.is_waiting()) {
                log.show(live)?;
            }
            match heard {
                Heard::Text(_) | Heard::Thinking(_) => {}
                Heard::Closed(block) => log.put(step, Chunk::Block(block)).await?,
                Heard::Tokens(tokens) => {
                    let cost_usd = endpoint.row.price.map(|price| cost(&price, &tokens));
                    log.put(step, Chunk::Usage { tokens, cost_usd }).await?;
                }
                Heard::Ended(end) => log.put(step, Chunk::StepEnded(end)).await?,
            }
        }
    }

    /// After a failure: what it says of the key, and what comes next.
    async fn after(
        &mut self,
        error: &ModelError,
        endpoint: &Endpoint,
        key: Option<&Secret>,
    ) -> Result<(), Halt> {
        let now = self.agent.clock.now();
        if error.fault == Fault::Auth && self.key_changed(endpoint, key).await? {
            return Ok(());
        }
        let why = error.to_string();
        if let Some(out) = self.chain.key_out(error.fault, error.retry_at, &why, now) {
            self.put(out).await?;
        }
        let outs = self.agent.log.conversation.outs.clone();
        let spread = u64::from(std::process::id()) % 1000;
        let next = self
            .chain
            .next(error.fault, error.retry_at, &outs, now, spread);
        let attempt = self.chain.failures();
        match next {
            Next::Fail => Err(failed(error.fault, why, error.retry_at)),
            Next::Again { at } => self.wait(at, attempt, error.fault, &why).await,
            Next::Hop { to, at } => {
                if let Some(out) = self.chain.given_up(error.fault, &outs, now) {
                    self.put(out).await?;
                }
                let from = self.chain.choice().clone();
                self.chain.hop(to);
                let to = self.chain.choice().clone();
                let reason = why.clone();
                self.put(Chunk::ModelChanged {
                    from,
                    to,
                    why: reason,
                })
                .await?;
                self.wait(at, attempt, error.fault, &why).await
            }
        }
    }

    /// A key that was refused may have been renewed where it comes from.
    async fn key_changed(
        &mut self,
        endpoint: &Endpoint,
        used: Option<&Secret>,
    ) -> Result<bool, Halt> {
        let Agent { inbox, keys, .. } = &mut *self.agent;
        keys.forget(&endpoint.key);
        match Self::attend(inbox, self.deadline, keys.get(endpoint)).await? {
            Ok(now) => Ok(now.as_ref() != used),
            // It was there before; what is wrong now is told when it is asked for.
            Err(_) => Ok(false),
        }
    }

    /// Waits where everybody can see until when, and for what.
    async fn wait(
        &mut self,
        at: Millis,
        attempt: u32,
        fault: Fault,
        why: &str,
    ) -> Result<(), Halt> {
        loop {
            let left = at.saturating_sub(self.agent.clock.now());
            if left == 0 {
                return Ok(());
            }
            let why = why.to_owned();
            self.put(Chunk::Waiting {
                at,
                attempt,
                fault,
                why,
            })
            .await?;
            let Agent { inbox, clock, .. } = &mut *self.agent;
            let nap = clock.sleep(left.min(WAIT_TOLD_EVERY_MS));
            Self::attend(inbox, self.deadline, nap).await?;
        }
    }
}

fn cost(price: &Price, tokens: &Tokens) -> f64 {
    const MILLION: f64 = 1e6;
    #[expect(clippy::cast_precision_loss, reason = "no step has 2^52 tokens")]
    let of = |count: u64, usd: f64| count as f64 * usd / MILLION;
    of(tokens.input, price.input)
        + of(tokens.cache_read, price.cache_read.unwrap_or(price.input))
        + of(tokens.cache_write, price.cache_write.unwrap_or(price.input))
        + of(tokens.output, price.output)
}

/// What is not closed yet, for whoever looks: as much at once as came at once.
struct Shown {
    wanted: bool,
    text: String,
    thinking: bool,
    /// Something is shown that is not closed.
    open: bool,
}

impl Shown {
    fn new(wanted: bool) -> Self {
        Self {
            wanted,
            text: String::new(),
            thinking: false,
            open: false,
        }
    }

    fn take(&mut self, heard: &Heard, waits: bool) -> Vec<Live> {
        let mut lives = Vec::new();
        if !self.wanted {
            return lives;
        }
        let piece = match heard {
            Heard::Text(text) => Some((text, false)),
            Heard::Thinking(text) => Some((text, true)),
            Heard::Closed(Block::Text { .. } | Block::Thinking { .. }) => {
                lives.extend(self.flush());
                self.open = false;
                None
            }
            Heard::Closed(_) | Heard::Tokens(_) | Heard::Ended(_) => None,
        };
        if let Some((text, thinking)) = piece {
            if thinking != self.thinking {
                lives.extend(self.flush());
                self.thinking = thinking;
            }
            self.text.push_str(text);
            self.open = true;
            if waits {
                lives.extend(self.flush());
            }
        }
        lives
    }

    fn flush(&mut self) -> Option<Live> {
        let text = std::mem::take(&mut self.text);
        let live = if self.thinking {
            Live::Thinking(text)
        } else {
            Live::Text(text)
        };
        let (Live::Text(text) | Live::Thinking(text)) = &live else {
            return None;
        };
        (!text.is_empty()).then_some(live)
    }

    fn void(&self) -> Option<Live> {
        (self.wanted && self.open).then_some(Live::Void)
    }
}
