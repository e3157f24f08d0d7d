//! One turn: what somebody said, and everything it takes to answer it. One function owns all of its
//! state, and takes the agent for itself until it is over: there is no second turn beside it.
//! Must not do anything before it is recorded that it is about to, must not do it twice, and must
//! not go on when it was told to stop.

use std::{
    future::pending,
    hash::{DefaultHasher, Hasher},
    time::Duration,
};

use dispatch_core::{
    Millis,
    native::{Chunk, Fault, Message, StepEnd, StepId, TurnEnd},
};
use tokio::time::{Instant as At, sleep_until};

use crate::{
    agent::Agent,
    calls,
    conversation::{Call, INTERRUPTED, NOT_RUN},
    fallback::{Chain, Waits},
    inbox::Inbox,
    record::RecordError,
};

/// Answers of full length in a row; one more is a model that does not come to an end.
const FULL_MAX: u32 = 3;
const STOPPED: &str =
    "error: this call was stopped by whoever watches; it may have had some of its effects";

/// Why a turn does not go on.
#[derive(Debug)]
pub(crate) enum Halt {
    End(TurnEnd),
    /// Nothing can be recorded, so nothing may be done.
    Record(RecordError),
}

impl From<RecordError> for Halt {
    fn from(error: RecordError) -> Self {
        Self::Record(error)
    }
}

pub(crate) fn limit(name: &str) -> Halt {
    let name = name.to_owned();
    Halt::End(TurnEnd::Limit { name })
}

pub(crate) fn failed(fault: Fault, message: String, retry_at: Option<Millis>) -> Halt {
    Halt::End(TurnEnd::Failed {
        fault,
        message,
        retry_at,
    })
}

pub(crate) struct Turn<'a> {
    pub(crate) agent: &'a mut Agent,
    pub(crate) chain: Chain,
    pub(crate) deadline: Option<At>,
    /// Answers of full length since one that was not.
    full: u32,
    /// How often since the last answer the conversation was too long.
    pub(crate) squeezed: u32,
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
                squeezed: 0,
            };
            turn.go(begun).await
        }
        None => failed(Fault::Key, "no model was asked for".into(), None),
    };
    let end = match end {
        Halt::End(end) => end,
        Halt::Record(error) => return Err(error),
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
                self.keep_short().await?;
                self.ask().await
            };
            if let Err(halt) = halt.await {
                return self.halted(halt, said).await;
            }
        }
    }

    /// What was under way is ended, every call has its result, and what was said to this turn is in the
    /// record, whatever the halt was.
    async fn halted(&mut self, halt: Halt, said: Vec<Message>) -> Halt {
        let Halt::End(end) = &halt else {
            return halt;
        };
        let stopped = *end == TurnEnd::Stopped;
        if stopped || matches!(end, TurnEnd::Limit { .. }) {
            self.agent.end_all().await;
        }
        let closed = async {
            self.close_open(stopped).await?;
            if said.is_empty() {
                return Ok(());
            }
            self.put(Chunk::Said { said }).await
        };
        match closed.await {
            Ok(()) => halt,
            Err(error) => error.into(),
        }
    }

    pub(crate) async fn close_open(&mut self, stopped: bool) -> Result<(), RecordError> {
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

    pub(crate) fn check_limits(&self) -> Result<(), Halt> {
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
}

/// From 0 to 999, by what tells one agent from all others: those that failed together do not come back
/// together. The number of a process does not, as most agents have a namespace of their own for these.
pub(crate) fn spread(session: &str, failures: u32) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(session.as_bytes());
    hasher.write_u32(failures);
    hasher.finish() % 1000
}

/// Waits for something, and hears what is said meanwhile.
pub(crate) async fn attend<T>(
    inbox: &mut Inbox,
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
