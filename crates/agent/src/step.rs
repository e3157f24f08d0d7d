//! One step of a turn: a model is asked, and each piece of its answer is recorded when it is closed.
//! Must not run a call: the step ends before its calls begin.

use dispatch_core::{
    models::{Choice, Endpoint, Price},
    native::{Block, Chunk, Fault, Live, StepEnd, Tokens},
    secret::Secret,
};

use crate::{
    agent::Agent,
    keys::KeyError,
    model::{Heard, ModelError, Question, now},
    turn::{Halt, Turn, attend, failed},
};

impl Turn<'_> {
    /// One step: asks until there is an answer, or a piece of one, or nobody is left to ask.
    pub(crate) async fn ask(&mut self) -> Result<(), Halt> {
        self.until_usable().await?;
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
                    self.squeezed = 0;
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
                    if error.fault == Fault::ContextTooLong {
                        self.make_room(&error).await?;
                    } else {
                        let error = self.hinted(error);
                        self.after(&error, &endpoint, key.as_ref()).await?;
                    }
                    if cut {
                        return Ok(());
                    }
                }
            }
        }
    }

    pub(crate) async fn key(
        &mut self,
        choice: &Choice,
    ) -> Result<(Endpoint, Option<Secret>), Halt> {
        let endpoint = self.agent.endpoint(choice);
        let endpoint = endpoint.map_err(|why| failed(Fault::Key, why, None))?;
        let Agent { inbox, keys, .. } = &mut *self.agent;
        let key = attend(inbox, self.deadline, keys.get(&endpoint)).await?;
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
        let asked = attend(inbox, self.deadline, asked).await?;
        drop(entries);
        let mut answer = match asked {
            Ok(answer) => answer,
            Err(error) => return Ok(Err(error)),
        };
        if !answer.windows.is_empty() {
            let windows = std::mem::take(&mut answer.windows);
            let key = choice.key.clone();
            let at = Some(now());
            log.put(step, Chunk::Windows { key, windows, at }).await?;
        }
        let mut shown = Shown::new(settings.live);
        loop {
            let heard = match attend(inbox, self.deadline, answer.next()).await? {
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
}

pub(crate) fn cost(price: &Price, tokens: &Tokens) -> f64 {
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
