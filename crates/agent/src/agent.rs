//! The agent: what it was told at its opening, and what lasts from turn to turn. It opens, answers
//! what it is told, one turn after the other, and leaves when nothing more will come.
//! Must not have anything that its opening does not give: no home, no settings of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use dispatch_core::{
    id::{KeyName, ServerName},
    models::{Choice, Endpoint, KeySource, KeyTable},
    native::{Chunk, Handed, Kin, Message, Opening, Order, StepEnd, TurnEnd, TurnLimits, VERSION},
    rules::Rules,
    servers::{BadServer, ServerTable},
    toolset::Toolset,
    web::{BadWeb, Reach},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{
    around,
    clock::Clock,
    files::{self, Sorted},
    inbox::Inbox,
    keys::{self, Keys},
    log::{Log, ResumeError, resume},
    model::{Client, Timers, ToolSpec},
    net::{Connector, Proxy},
    record::{Record, RecordError, Sink},
    system,
    tools::{self, Granted, Outside, Place, Roots, Sign, Spill, kin, mcp},
    turn,
};

/// Signs of tools on their way; a tool waits for room, what is only shown is dropped.
const SIGNS_MAX: usize = 64;
/// From the first packet to a connection that is safe.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error("open: nothing was said")]
    Nothing,
    #[error("open: {0}")]
    Order(String),
    #[error("open: the first order is not to open")]
    NotOpened,
    #[error(
        "open: the lines have version {0}, and we speak {VERSION}; use the same release of both"
    )]
    Version(u32),
    #[error("open: {0}")]
    Tools(String),
    #[error("open: {0}")]
    Key(String),
    #[error("open: {0}")]
    Web(#[from] BadWeb),
    #[error("open: {0}")]
    Server(#[from] BadServer),
    #[error("open: the costs of {0} are limited, and its key's table has no price for it")]
    NoPrice(Choice),
    #[error("open: {0}")]
    Resume(#[from] ResumeError),
    #[error("open: use {what}: {source}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Record(#[from] RecordError),
}

#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) session: String,
    /// Instead of our own.
    identity: Option<String>,
    /// What it was summoned as.
    role: Option<String>,
    kin: Option<Kin>,
    pub(crate) chain: Vec<Choice>,
    pub(crate) tables: BTreeMap<KeyName, KeyTable>,
    pub(crate) limits: TurnLimits,
    pub(crate) live: bool,
    reach: Reach,
    /// How often a person has wanted the conversation shorter.
    pub(crate) compact: u32,
    /// What was handed over, until it is looked at.
    files: Vec<Handed>,
}

/// MCP servers: their tables until they are started, and what is to be ended.
#[derive(Debug)]
struct Servers {
    tables: BTreeMap<ServerName, ServerTable>,
    around: mcp::Around,
    there: Vec<Arc<mcp::Server>>,
}

#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) settings: Settings,
    pub(crate) clock: Clock,
    pub(crate) system: String,
    pub(crate) tools: Vec<Granted>,
    pub(crate) specs: Vec<ToolSpec>,
    /// Of the opening, for those that come with servers.
    names: Option<Vec<String>>,
    within: Toolset,
    servers: Servers,
    pub(crate) rules: Arc<Rules>,
    pub(crate) client: Client,
    pub(crate) keys: Keys,
    pub(crate) inbox: Inbox,
    pub(crate) log: Log,
    pub(crate) place: Arc<Place>,
    pub(crate) signs: mpsc::Receiver<Sign>,
}

/// From the first order to the last word.
pub(crate) async fn run(
    clock: Clock,
    input: impl Read + Send + 'static,
    output: impl Sink,
) -> Result<ExitCode, AgentError> {
    let started = |source| AgentError::Io {
        what: "standard input and output".into(),
        source,
    };
    let mut inbox = Inbox::start(input).map_err(started)?;
    inbox.listen_to(signal(SignalKind::terminate()).map_err(started)?);
    let opening = opened(&mut inbox).await?;
    let prompt = opening.prompt.clone();
    let mut agent = Agent::open(clock, opening, inbox, output)?;
    agent.live(prompt).await
}

async fn opened(inbox: &mut Inbox) -> Result<Opening, AgentError> {
    match inbox.first().await {
        None => Err(AgentError::Nothing),
        Some(Err(problem)) => Err(AgentError::Order(problem)),
        Some(Ok(Order::Open(opening))) if opening.version != VERSION => {
            Err(AgentError::Version(opening.version))
        }
        Some(Ok(Order::Open(opening))) => Ok(*opening),
        Some(Ok(_)) => Err(AgentError::NotOpened),
    }
}

impl Agent {
    fn open(
        clock: Clock,
        opening: Opening,
        inbox: Inbox,
        output: impl Sink,
    ) -> Result<Self, AgentError> {
        let used = |what: &std::path::Path| {
            let what = what.display().to_string();
            move |source| AgentError::Io { what, source }
        };
        let tools =
            tools::granted(opening.tools.as_deref(), &opening.web).map_err(AgentError::Tools)?;
        let tools = kin::offered(tools, &opening);
        let mut conversation = resume(&opening.resume)?;
        if let Some(known) = &opening.known {
            keys::know(known, &mut conversation.outs, &mut conversation.told);
        }
        let spill = Spill::new(&opening.spill).map_err(used(&opening.spill))?;
        let connector = Connector::new(Proxy::from(|name| std::env::var(name).ok()), CONNECT_LIMIT);
        let (sender, signs) = mpsc::channel(SIGNS_MAX);
        opening.web.check()?;
        for (name, table) in &opening.servers {
            table.way(name)?;
        }
        let secret = hidden(&opening);
        let hidden = secret.clone();
        let (role, within) = (opening.role.clone(), opening.within.clone());
        let around = mcp::Around {
            connector: connector.clone(),
            cwd: opening.cwd.clone(),
            hidden: secret.clone(),
            reach: opening.reach,
        };
        let way = kin::Way::of(&opening, around);
        let outside = Outside {
            connector: connector.clone(),
            reach: opening.reach,
            web: opening.web,
            keys: opening.keys.clone(),
        };
        let roots = Roots::new(&opening.cwd, opening.checkout.as_deref());
        let roots = roots.map_err(used(&opening.cwd))?;
        let place = Place::new(roots, spill, outside, hidden, inbox.count(), sender);
        way.into_iter().for_each(|way| place.at_door(way));
        let record = Record::start(output).map_err(|source| AgentError::Io {
            what: "standard output".into(),
            source,
        })?;
        let mut rules = opening.rules;
        for (group, subject) in conversation.allowed() {
            rules.allow_always(*group, subject.clone());
        }
        let around = mcp::Around {
            connector: connector.clone(),
            cwd: place.root().to_owned(),
            hidden: secret,
            reach: opening.reach,
        };
        let mut agent = Self {
            clock,
            system: String::new(),
            specs: Vec::new(),
            tools,
            names: opening.tools,
            within,
            servers: Servers {
                tables: opening.servers,
                around,
                there: Vec::new(),
            },
            rules: Arc::new(rules),
            client: Client::new(connector, Timers::default()),
            keys: Keys::default(),
            inbox,
            log: Log::new(record, conversation),
            place: Arc::new(place),
            signs,
            settings: Settings {
                session: opening.session,
                identity: opening.system,
                role,
                kin: opening.kin,
                chain: opening.chain,
                tables: opening.keys,
                limits: opening.limits,
                live: opening.live,
                reach: opening.reach,
                compact: opening.compact,
                files: opening.files,
            },
        };
        agent.check()?;
        agent.tell_system();
        Ok(agent)
    }

    /// What a model is told of itself and of the tools there are: its prompt begins with that.
    fn tell_system(&mut self) {
        let Settings { role, kin, .. } = &self.settings;
        self.system = system::prompt(&system::Parts {
            identity: self.settings.identity.as_deref(),
            tools: &self.tools,
            family: &kin::words(role.as_deref(), kin.as_ref(), &self.tools),
            around: self.log.conversation.around.as_deref().unwrap_or_default(),
        });
        self.specs = self.tools.iter().map(Granted::spec).collect();
    }

    /// Looks where it works, once for the whole conversation: what is found there may change, and the
    /// beginning of a prompt may not.
    async fn look_around(&mut self) -> Result<(), RecordError> {
        if self.log.conversation.around.is_none() {
            let (root, reach) = (self.place.root().to_owned(), self.settings.reach);
            let now = self.clock.now();
            let text = around::look(root, reach, now).await;
            let step = self.log.conversation.step();
            self.log.put(step, Chunk::Around { text }).await?;
        }
        self.tell_system();
        Ok(())
    }

    /// Starts the servers of MCP, and waits until it is known what they have to offer.
    async fn start_servers(&mut self) -> Result<(), RecordError> {
        if self.servers.tables.is_empty() {
            return Ok(());
        }
        let Servers { tables, around, .. } = &self.servers;
        let known = &self.log.conversation.served;
        let starts = mcp::start(tables, around, known, self.names.as_deref());
        // Told to stop meanwhile, it has nothing to ask a model for.
        let Ok(started) = turn::attend(&mut self.inbox, None, starts).await else {
            return Ok(());
        };
        self.servers.there = started.servers;
        let step = self.log.conversation.step();
        for text in started.notices {
            self.log.put(step, Chunk::Notice { text }).await?;
        }
        for (server, tools) in started.new {
            let served = Chunk::Served { server, tools };
            self.log.put(step, served).await?;
        }
        let tools = started.tools.into_iter();
        let tools = tools.filter(|served| self.within.has(&served.tool.name));
        let tools = tools.map(Granted::Served);
        self.tools.extend(tools);
        self.tell_system();
        Ok(())
    }

    /// Everything that would fail later for a mistake in the settings fails now.
    fn check(&self) -> Result<(), AgentError> {
        for choice in &self.settings.chain {
            let endpoint = self.endpoint(choice).map_err(AgentError::Key)?;
            if self.settings.limits.cost_usd_max > 0.0 && endpoint.row.price.is_none() {
                return Err(AgentError::NoPrice(choice.clone()));
            }
        }
        Ok(())
    }

    pub(crate) fn endpoint(&self, choice: &Choice) -> Result<Endpoint, String> {
        let Choice { key, model, .. } = choice;
        let Some(table) = self.settings.tables.get(key) else {
            let there: Vec<&str> = self.settings.tables.keys().map(KeyName::as_str).collect();
            let there = there.join(", ");
            return Err(format!(
                "use key {key}: it is not configured; there are {there}"
            ));
        };
        table
            .endpoint(key, model)
            .map_err(|error| error.to_string())
    }

    async fn live(&mut self, prompt: Option<String>) -> Result<ExitCode, AgentError> {
        let hello = Chunk::Hello {
            version: VERSION,
            session: self.settings.session.clone(),
        };
        let step = self.log.conversation.step();
        self.log.put(step, hello).await?;
        self.inbox.tells(self.log.aside());
        self.look_around().await?;
        self.start_servers().await?;
        for fault in self.settings.kin.iter().flat_map(|kin| &kin.faults) {
            let text = format!("a definition of an agent is of no use: {fault}");
            self.log.put(step, Chunk::Notice { text }).await?;
        }
        let mut said: Vec<Message> = match prompt {
            Some(text) => vec![self.prompt(text).await?],
            None => Vec::new(),
        };
        let mut last = TurnEnd::Done;
        loop {
            said.extend(self.inbox.messages());
            self.note().await?;
            if said.is_empty() && !self.log.conversation.in_turn() {
                if self.inbox.closed() || self.inbox.stopped() {
                    break;
                }
                self.inbox.hear().await;
                continue;
            }
            last = turn::run(self, std::mem::take(&mut said)).await?;
            // What waits after a stop or a failure is not taken up by itself.
            if last != TurnEnd::Done {
                break;
            }
        }
        self.end_all().await;
        Ok(match last {
            TurnEnd::Done | TurnEnd::Stopped => ExitCode::SUCCESS,
            TurnEnd::Failed { .. } | TurnEnd::Limit { .. } => ExitCode::FAILURE,
        })
    }

    /// All commands and servers, beside each other: each of both has a limit below a second.
    pub(crate) async fn end_all(&self) {
        tokio::join!(self.place.end(), mcp::end(&self.servers.there));
    }

    /// The first words, and the files that came with them or that no earlier run has told.
    async fn prompt(&mut self, text: String) -> Result<Message, RecordError> {
        let mut new = std::mem::take(&mut self.settings.files);
        new.retain(|file| !self.log.conversation.handed.contains(&file.path));
        let Sorted { files, unshown } = files::sort(new).await;
        let mut text = text;
        if !unshown.is_empty() {
            let told = unshown.join(", ");
            text.push_str(&format!(
                "\n\n[Of what is attached you are not shown these, and can only read them as \
                 files: {told}.]"
            ));
            let told = format!("of what is attached the model reads these as files only: {told}");
            let step = self.log.conversation.step();
            self.log.put(step, Chunk::Notice { text: told }).await?;
        }
        Ok(Message { id: 0, text, files })
    }

    /// A turn begins; or one goes on that an earlier process did not end, and then what is said now
    /// is told to it. What comes back is to be told.
    pub(crate) async fn begin(&mut self, said: Vec<Message>) -> Result<Vec<Message>, RecordError> {
        let conversation = &self.log.conversation;
        if conversation.in_turn() {
            let step = conversation.step();
            let over = conversation
                .open_step()
                .map(|(end, _)| end == Some(StepEnd::Done));
            let text = "an earlier run of this turn was ended; it goes on".to_owned();
            self.log.put(step, Chunk::Notice { text }).await?;
            match over {
                // It had answered already: what is said now is for the next turn.
                Some(true) if !said.is_empty() => self.end(TurnEnd::Done).await?,
                Some(_) => return Ok(said),
                None if said.is_empty() => return Ok(said),
                // It had not begun to answer: this belongs to what was said.
                None => {}
            }
        }
        let step = self.log.conversation.next_turn();
        self.log.put(step, Chunk::Turn { said }).await?;
        Ok(Vec::new())
    }

    pub(crate) async fn end(&mut self, end: TurnEnd) -> Result<(), RecordError> {
        let step = self.log.conversation.step();
        let text = self.log.conversation.last_text();
        self.log.put(step, Chunk::TurnEnded { end, text }).await
    }

    /// What the inbox has to tell.
    pub(crate) async fn note(&mut self) -> Result<(), RecordError> {
        let step = self.log.conversation.step();
        for chunk in self.inbox.untold() {
            self.log.put(step, chunk).await?;
        }
        for text in self.inbox.problems() {
            self.log.put(step, Chunk::Notice { text }).await?;
        }
        Ok(())
    }
}

/// Commands are not given the keys of models and services.
fn hidden(opening: &Opening) -> BTreeSet<String> {
    let keys = opening.keys.values().filter_map(|table| table.key.as_ref());
    let servers = opening.servers.values().flat_map(ServerTable::sources);
    let sources = keys.chain(opening.web.sources()).chain(servers);
    let names = sources.filter_map(|source| match source {
        KeySource::From(name) => Some(name.clone()),
        KeySource::File(_) | KeySource::Command(_) => None,
    });
    names.collect()
}
