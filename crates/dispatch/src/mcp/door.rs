//! How a tool reaches the engine: a person's own engine, started when there is none; the routes of this
//! process; or, for an agent inside its fence, the one socket that is mounted there.
//! Must not send a request that may have been carried out again without a key that makes it one.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use axum::Router;
use dispatch_engine::random;
use futures_util::{FutureExt as _, future::BoxFuture};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::sleep;

use crate::{
    api::{
        request::{Dispatch, PAGE_MAX, Secrets},
        task::Task,
    },
    cli::{
        error::CliError,
        run::{self, Whom},
    },
    client::{
        Client, ClientError, Events, Page, Piece,
        again::{Patience, Twice},
        start,
    },
    http::caller::Caller,
    settings::Settings,
};

/// Of a follower that waits for an engine.
const TRY_AGAIN_FIRST: Duration = Duration::from_millis(50);
const TRY_AGAIN_MAX: Duration = Duration::from_secs(1);
const KEY_BYTES: usize = 16;

/// Why a tool did not do what was asked, for whoever called it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The stable word of the API, where it was the API that refused.
    pub(crate) code: Option<String>,
    /// Goes on from "failed to".
    pub(crate) what: String,
}

impl Refusal {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self {
            code: None,
            what: what.into(),
        }
    }

    fn is(&self, codes: &[&str]) -> bool {
        let code = self.code.as_deref();
        code.is_some_and(|code| codes.contains(&code))
    }

    /// What was to be answered is answered, or asked no more.
    pub(crate) fn is_too_late(&self) -> bool {
        self.is(&["wrong_state", "nothing_to_do", "no_such_ask"])
    }

    /// Whoever asks again is told the same.
    fn is_for_good(&self) -> bool {
        self.is(&[
            "no_token",
            "bad_token",
            "token_expired",
            "wrong_scope",
            "not_granted",
            "not_for_agents",
        ])
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to {}", self.what)
    }
}

impl From<ClientError> for Refusal {
    fn from(error: ClientError) -> Self {
        let code = match &error {
            ClientError::Refused(problem) => Some(problem.code.clone()),
            ClientError::Unreachable(_) | ClientError::Lost(_) | ClientError::Token(_) => None,
        };
        // The words of the API name flags of the command line.
        let more = match code.as_deref() {
            Some("workspace_taken") => {
                "; here that is `taken`: \"queue\", \"supersede\", or another `workspace`"
            }
            Some(_) | None => "",
        };
        Self {
            code,
            what: format!("{error}{more}"),
        }
    }
}

impl From<CliError> for Refusal {
    fn from(error: CliError) -> Self {
        let hint = error.hint.map(|hint| format!("; {hint}"));
        Self::new(format!("{}{}", error.what, hint.unwrap_or_default()))
    }
}

#[derive(Clone, Debug)]
enum Way {
    /// `dispatch mcp`.
    Own(Arc<Settings>),
    /// `dispatch mcp --run`.
    Fence(Client),
    /// `/mcp` of an engine.
    Inside(Client),
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    way: Way,
    /// It is the agent of a run that comes by it.
    agents: bool,
}

impl Door {
    pub(crate) fn own(settings: Settings) -> Self {
        let way = Way::Own(Arc::new(settings));
        Self { way, agents: false }
    }

    /// Where the engine's socket is and what file holds our token, from inside a fence.
    pub(crate) fn fence(socket: &std::path::Path, token: PathBuf) -> Result<Self, Refusal> {
        let way = Way::Fence(Client::at(socket, token)?);
        Ok(Self { way, agents: true })
    }

    /// The routes of this process, for whoever they are called for.
    pub(crate) fn inside(routes: Router, caller: Caller) -> Self {
        let agents = matches!(caller, Caller::Run(_));
        let way = Way::Inside(Client::inside(routes, caller));
        Self { way, agents }
    }

    pub(crate) fn is_an_agents(&self) -> bool {
        self.agents
    }

    /// What only whoever runs on the person's own machine can add to a task: the repository they are
    /// in, and the keys that its agent takes from them.
    pub(crate) async fn complete(&self, asked: &mut Dispatch) -> Result<(), Refusal> {
        match &self.way {
            Way::Own(settings) => Ok(run::complete(settings, asked).await?),
            Way::Fence(_) | Way::Inside(_) => Ok(()),
        }
    }

    /// The keys that an agent takes from whoever lets it go on.
    pub(crate) fn secrets(&self, agent: &str, whom: Whom<'_>) -> Result<Secrets, Refusal> {
        match &self.way {
            Way::Own(settings) => Ok(run::agent_secrets(settings, agent, whom)?),
            Way::Fence(_) | Way::Inside(_) => Ok(Secrets::default()),
        }
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Refusal> {
        self.tried(|client| async move { client.get(path).await }.boxed())
            .await
    }

    pub(crate) async fn text(&self, path: &str) -> Result<String, Refusal> {
        self.tried(|client| async move { client.text(path).await }.boxed())
            .await
    }

    /// The newest tasks that fit, newest first, and whether there are more.
    pub(crate) async fn tasks(
        &self,
        query: &str,
        most: usize,
    ) -> Result<(Vec<Task>, bool), Refusal> {
        let (mut found, mut after) = (Vec::new(), String::new());
        loop {
            let limit = (most - found.len()).clamp(1, PAGE_MAX);
            let path = format!("/v1/tasks?order=newest&limit={limit}{query}{after}");
            let path = path.as_str();
            let page = |client: Client| async move { client.page(path).await }.boxed();
            let Page { tasks, next, .. } = self.tried(page).await?;
            found.extend(tasks);
            match next {
                Some(next) if found.len() < most => after = format!("&after={next}"),
                next => return Ok((found, next.is_some())),
            }
        }
    }

    pub(crate) async fn piece(&self, path: &str) -> Result<Piece, Refusal> {
        self.tried(|client| async move { client.piece(path).await }.boxed())
            .await
    }

    pub(crate) async fn post<B: Serialize + Sync, T: DeserializeOwned + Send>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, Refusal> {
        let key = fresh_key()?;
        let key = key.as_str();
        self.tried(|client| async move { client.post_once(path, body, key).await }.boxed())
            .await
    }

    /// A request that only looks, although it has a body: nothing of it needs to be remembered.
    pub(crate) async fn look<B: Serialize + Sync, T: DeserializeOwned + Send>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, Refusal> {
        self.tried(|client| async move { client.post(path, body).await }.boxed())
            .await
    }

    pub(crate) async fn events(&self, after: u64, query: &str) -> Result<Events, Refusal> {
        self.tried(|client| async move { client.events_of(after, query).await }.boxed())
            .await
    }

    /// The log from `after` on, or from now on; waits for an engine, and starts none. With the event
    /// behind which it begins.
    ///
    /// # Errors
    /// When whoever asks may not hear of it.
    pub(crate) async fn follow(&self, after: Option<u64>) -> Result<(Events, u64), Refusal> {
        let mut pause = TRY_AGAIN_FIRST;
        loop {
            match self.follow_once(after).await {
                Ok(Some(found)) => return Ok(found),
                Err(refusal) if refusal.is_for_good() => return Err(refusal),
                // None serves, or it is on its way out.
                Ok(None) | Err(_) => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(TRY_AGAIN_MAX);
        }
    }

    /// The log from now on, where an engine serves; else whoever waits for one begins with its end.
    ///
    /// # Errors
    /// When whoever asks may not hear of it.
    pub(crate) async fn begin(&self) -> Result<Option<(Events, u64)>, Refusal> {
        match self.follow_once(None).await {
            Err(refusal) if refusal.is_for_good() => Err(refusal),
            begun => Ok(begun.ok().flatten()),
        }
    }

    fn living(&self) -> Result<Option<Client>, Refusal> {
        Ok(match &self.way {
            Way::Own(settings) => start::living(settings).map_err(CliError::from)?,
            Way::Fence(client) | Way::Inside(client) => Some(client.clone()),
        })
    }

    async fn follow_once(&self, after: Option<u64>) -> Result<Option<(Events, u64)>, Refusal> {
        let Some(client) = self.living()? else {
            return Ok(None);
        };
        let after = match after {
            Some(after) => after,
            None => client.position().await?,
        };
        let events = client.events(after, None).await?;
        Ok(Some((events, after)))
    }

    async fn client(&self) -> Result<Client, Refusal> {
        match &self.way {
            Way::Own(settings) => {
                let client = start::connect(settings).await;
                client.map_err(|error| CliError::from(error).into())
            }
            Way::Fence(client) | Way::Inside(client) => Ok(client.clone()),
        }
    }

    /// Until it is answered, as long as an engine may come back.
    async fn tried<'a, T>(
        &self,
        ask: impl Fn(Client) -> BoxFuture<'a, Result<T, ClientError>>,
    ) -> Result<T, Refusal> {
        // What was asked has a key or changes nothing.
        let mut patience = Patience::new(match self.way {
            Way::Own(_) | Way::Fence(_) => Twice::Safe,
            Way::Inside(_) => Twice::Useless,
        });
        loop {
            let client = self.client().await?;
            match ask(client).await {
                Ok(answer) => return Ok(answer),
                Err(error) => patience.again(error).await?,
            }
        }
    }
}

fn fresh_key() -> Result<String, Refusal> {
    let key = random::hex::<KEY_BYTES>()
        .map_err(|error| Refusal::new(format!("make a key for the request: {error}")))?;
    Ok(format!("mcp-{key}"))
}
