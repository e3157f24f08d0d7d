//! Requests of a chat on their way to the engine. What a person says goes in order, one after the other,
//! and each is delivered once: it keeps its key until an engine says what came of it.
//! Must not decide what is asked for.

use std::{
    collections::VecDeque,
    future::pending,
    path::PathBuf,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt as _, StreamExt as _, future::LocalBoxFuture, stream::FuturesUnordered,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{task::spawn_blocking, time::sleep};

use super::machine::{Request, Told};
use crate::{
    api::{
        Applied, Spoken,
        request::{self, Attach, Dispatch, Secrets},
        task::Task,
    },
    cli::{
        attach::{self, Tune},
        error::{CliError, Result},
        run::{Whom, agent_of, agent_secrets},
    },
    client::{
        Client, ClientError,
        start::{self, StartError},
    },
    settings::Settings,
};

/// An engine that does not come for so long has something wrong with it.
const GIVE_UP: Duration = Duration::from_secs(600);
const TRY_AGAIN: Duration = Duration::from_millis(200);
const TRY_AGAIN_MAX: Duration = Duration::from_secs(5);

type Done = (Request, Told);

/// What a request is about: the task as it was when it was asked for, and who works on it.
#[derive(Clone, Debug, Default)]
pub(super) struct About {
    pub(super) task: Option<Task>,
    pub(super) agent: String,
}

pub(super) struct Desk {
    settings: Settings,
    /// What the first words become a task of.
    begin: Option<Box<Dispatch>>,
    words: VecDeque<(Request, About)>,
    word: Option<LocalBoxFuture<'static, Done>>,
    others: FuturesUnordered<LocalBoxFuture<'static, Done>>,
}

impl Desk {
    pub(super) fn new(settings: Settings, begin: Option<Box<Dispatch>>) -> Self {
        Self {
            settings,
            begin,
            words: VecDeque::new(),
            word: None,
            others: FuturesUnordered::new(),
        }
    }

    pub(super) fn ask(&mut self, request: Request, about: About) {
        if request.is_word() {
            self.words.push_back((request, about));
        } else {
            let done = self.done(request, about);
            self.others.push(done);
        }
    }

    /// Before the words that wait.
    pub(super) fn ask_first(&mut self, request: Request, about: About) {
        self.words.push_front((request, about));
    }

    fn done(&self, request: Request, about: About) -> LocalBoxFuture<'static, Done> {
        let asked = Asked {
            settings: self.settings.clone(),
            begin: self.begin.clone(),
            about,
        };
        let done = async move {
            let told = asked.carry_out(&request).await;
            (request, told.unwrap_or_else(Fault::told))
        };
        done.boxed_local()
    }

    /// The next one that was carried out or refused. Safe to cancel.
    pub(super) async fn next(&mut self) -> Done {
        if self.word.is_none()
            && let Some((request, about)) = self.words.pop_front()
        {
            self.word = Some(self.done(request, about));
        }
        let word = async {
            match &mut self.word {
                Some(word) => word.await,
                None => pending().await,
            }
        };
        tokio::select! {
            done = word => {
                self.word = None;
                done
            }
            Some(done) = self.others.next() => done,
        }
    }
}

/// Why a request came to nothing.
enum Fault {
    Start(StartError),
    Cli(CliError),
}

impl From<StartError> for Fault {
    fn from(error: StartError) -> Self {
        Self::Start(error)
    }
}

impl From<CliError> for Fault {
    fn from(error: CliError) -> Self {
        Self::Cli(error)
    }
}

impl Fault {
    fn told(self) -> Told {
        let code = match &self {
            Self::Start(StartError::Client(ClientError::Refused(problem))) => {
                Some(problem.code.clone())
            }
            Self::Start(_) | Self::Cli(_) => None,
        };
        let error = match self {
            Self::Start(error) => error.into(),
            Self::Cli(error) => error,
        };
        Told::Refused { error, code }
    }
}

struct Asked {
    settings: Settings,
    begin: Option<Box<Dispatch>>,
    about: About,
}

impl Asked {
    fn path(&self, verb: &str) -> String {
        let id = self.about.task.as_ref().map_or("", |task| &task.id);
        format!("/v1/tasks/{id}/{verb}")
    }

    async fn carry_out(&self, request: &Request) -> std::result::Result<Told, Fault> {
        match request {
            Request::Begin { text, tune, files } => {
                let Some(begin) = &self.begin else {
                    return Err(CliError::usage("make a task: the chat has one").into());
                };
                let mut asked = begin.clone();
                asked.task.clone_from(text);
                asked.attachments.extend(self.files(files).await?);
                if tune.model.is_some() {
                    // Another one may need another key.
                    let secrets = self.secrets(&self.about.agent, tune).await?;
                    asked.secrets.0.extend(secrets.0);
                    asked.model.clone_from(&tune.model);
                }
                asked.effort = tune.effort.or(asked.effort);
                let (_, task): (_, Task) =
                    start::make(&self.settings, "/v1/tasks", &*asked).await?;
                Ok(Told::Task(Box::new(task)))
            }
            Request::Say { text, tune, files } => {
                let asked = request::Say {
                    text: text.clone(),
                    attachments: self.files(files).await?,
                    model: tune.model.clone(),
                    effort: tune.effort,
                    chain: None,
                    secrets: self.secrets(&self.about.agent, tune).await?,
                };
                let spoken: Spoken = self.at_last(&self.path("say"), &asked).await?;
                Ok(Told::Spoken(Box::new(spoken)))
            }
            Request::Answer { text, tune } => {
                let asked = request::Answer {
                    text: text.clone(),
                    model: tune.model.clone(),
                    effort: tune.effort,
                    chain: None,
                    secrets: self.secrets(&self.about.agent, tune).await?,
                };
                self.task(self.at_last(&self.path("answer"), &asked).await?)
            }
            Request::Resume { agent, tune } => {
                let whose = agent.as_deref().unwrap_or(&self.about.agent);
                tune.check(&self.settings, whose)?;
                let asked = request::Resume {
                    agent: agent.clone(),
                    model: tune.model.clone(),
                    effort: tune.effort,
                    chain: None,
                    secrets: self.secrets(whose, tune).await?,
                };
                self.task(self.at_last(&self.path("resume"), &asked).await?)
            }
            Request::Permit {
                ask,
                allow,
                always,
                why,
            } => {
                let asked = request::Permit {
                    allow: *allow,
                    why: why.clone(),
                    always: *always && self.remembers(),
                };
                self.task(self.post(&format!("asks/{ask}"), &asked).await?)
            }
            Request::Stop { kill } => {
                let force = match kill {
                    true => request::Force::Kill,
                    false => request::Force::Ask,
                };
                let asked = request::Stop { force };
                let (_, task) = start::make(&self.settings, &self.path("stop"), &asked).await?;
                self.task(task)
            }
            Request::Unsay(message) => {
                let path = self.path(&format!("messages/{message}"));
                let ask = async |client: &Client| client.delete(&path).await;
                self.task(start::ask(&self.settings, ask).await?.1)
            }
            Request::Compact => {
                let nothing = serde_json::json!({});
                self.task(self.post("compact", &nothing).await?)
            }
            Request::Check(tune) => {
                tune.check(&self.settings, &self.about.agent)?;
                Ok(Told::Nothing)
            }
            Request::Look(files) => {
                self.files(files).await?;
                Ok(Told::Nothing)
            }
            Request::Diff => {
                let path = self.path("diff");
                let ask = async |client: &Client| client.text(&path).await;
                Ok(Told::Diff(start::ask(&self.settings, ask).await?.1))
            }
            Request::Apply { write } => {
                let asked = request::Apply {
                    to: None,
                    write: *write,
                };
                let done: Applied = self.post("apply", &asked).await?;
                Ok(Told::Applied(done))
            }
            Request::Child(id) => {
                let path = format!("/v1/tasks/{id}");
                let ask = async |client: &Client| client.get(&path).await;
                self.task(start::ask(&self.settings, ask).await?.1)
            }
        }
    }

    fn task(&self, task: Task) -> std::result::Result<Told, Fault> {
        Ok(Told::Task(Box::new(task)))
    }

    /// A secret's program may take its time, and the screen goes on.
    async fn secrets(&self, agent: &str, tune: &Tune) -> Result<Secrets> {
        let (settings, agent, tune) = (self.settings.clone(), agent.to_owned(), tune.clone());
        // Another agent does not ask whom the one before asked.
        let task = self.about.task.clone();
        let task = task.filter(|task| task.agent == agent);
        let taken = spawn_blocking(move || {
            let whom = task.as_ref().map(Whom::of).unwrap_or_default();
            agent_secrets(&settings, &agent, whom.tuned(tune.tuned()))
        });
        let taken = taken.await;
        taken.map_err(|error| CliError::failed("take the secrets of the agent", &error))?
    }

    /// What `say --attach` would hand over. They may be large, and the screen goes on.
    async fn files(&self, paths: &[PathBuf]) -> Result<Vec<Attach>> {
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let agent = agent_of(&self.settings, &self.about.agent)?;
        let (settings, paths) = (self.settings.clone(), paths.to_vec());
        let read = spawn_blocking(move || {
            let files = attach::read(&settings, &paths)?;
            request::check_attachments(&settings.config, &agent, &files)?;
            Ok(files)
        });
        let read = read.await;
        read.map_err(|error| CliError::failed("read the files", &error))?
    }

    /// Whether the agent itself knows again what is always allowed.
    fn remembers(&self) -> bool {
        let name = agent_of(&self.settings, &self.about.agent).ok();
        let profile = name.and_then(|name| self.settings.config.agents.get(&name));
        profile.is_some_and(|profile| profile.driver.remembers())
    }

    async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        verb: &str,
        asked: &B,
    ) -> std::result::Result<T, StartError> {
        let path = self.path(verb);
        let ask = async |client: &Client| client.post(&path, asked).await;
        Ok(start::ask(&self.settings, ask).await?.1)
    }

    /// Asks one engine after the other with the same key, until one says what came of it: so a word
    /// that is typed while there is none, or that an engine dies over, is heard, and once.
    async fn at_last<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        asked: &B,
    ) -> std::result::Result<T, StartError> {
        let key = start::random_key()?;
        let (begun, mut pause) = (Instant::now(), TRY_AGAIN);
        loop {
            match start::make_as(&self.settings, path, asked, &key).await {
                Ok((_, answer)) => return Ok(answer),
                Err(error) if is_final(&error) || begun.elapsed() > GIVE_UP => return Err(error),
                Err(_) => sleep(pause).await,
            }
            pause = (pause * 2).min(TRY_AGAIN_MAX);
        }
    }
}

/// An engine has said no, or asking again changes nothing.
fn is_final(error: &StartError) -> bool {
    match error {
        StartError::Client(error @ ClientError::Refused(_)) => !error.nothing_happened(),
        StartError::Client(ClientError::Token(_)) | StartError::Random(_) => true,
        StartError::Client(ClientError::Unreachable(_) | ClientError::Lost(_))
        | StartError::Spawn(_)
        | StartError::Died { .. }
        | StartError::Silent { .. }
        | StartError::Lock(_) => false,
    }
}
