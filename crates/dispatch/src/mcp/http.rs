//! `/mcp`: the same server over streamable HTTP, as one row of the table of routes. Whose request it is
//! has been found out before; every tool is then a request of that caller to the other rows.
//! Must not let one caller into the session of another, and must not keep sessions without a bound.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse as _, Response},
};
use rmcp::{
    model::ProtocolVersion,
    transport::{
        StreamableHttpServerConfig, StreamableHttpService,
        streamable_http_server::session::{SessionManager as _, local::LocalSessionManager},
    },
};
use tokio_util::sync::CancellationToken;
use tower::{Service, service_fn};

use super::server::{Mcp, Tables};
use crate::http::{
    Ctx,
    caller::Caller,
    error::{Code, Problem},
    standing::{Leased, Standing},
};

/// Sessions of the older generation that live at once, of all callers and of one.
const SESSIONS_MAX: usize = 256;
const SESSIONS_OF_ONE_MAX: usize = 32;
/// A session of which nothing is heard for so long is over; its client begins another.
const SILENCE_MAX: Duration = Duration::from_secs(1800);
/// Texts of tasks and answers, with their quoting.
const BODY_BYTES_MAX: usize = 4 << 20;

const SESSION: &str = "mcp-session-id";
const VERSION: &str = "mcp-protocol-version";

type Inner = StreamableHttpService<Mcp, LocalSessionManager>;

/// Whose each session is, and who is about to begin one.
#[derive(Debug, Default)]
struct Table {
    owners: HashMap<String, Caller>,
    beginning: Vec<Caller>,
}

#[derive(Debug, Default)]
struct Owners {
    sessions: Arc<LocalSessionManager>,
    table: Mutex<Table>,
}

/// Room for a session that may begin; given back when it is dropped.
struct Beginning<'a> {
    owners: &'a Owners,
    caller: &'a Caller,
}

impl Beginning<'_> {
    fn began(&self, session: &str) {
        let mut table = self.owners.table();
        table.owners.insert(session.to_owned(), self.caller.clone());
    }
}

impl Drop for Beginning<'_> {
    fn drop(&mut self) {
        let mut table = self.owners.table();
        let own = table.beginning.iter().position(|who| who == self.caller);
        if let Some(own) = own {
            table.beginning.swap_remove(own);
        }
    }
}

impl Owners {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owns(&self, caller: &Caller, session: &str) -> bool {
        self.table().owners.get(session) == Some(caller)
    }

    /// Room for another session of this caller, if there is any. Those that are over are forgotten here,
    /// and those that are about to begin count: as many come at once as there are connections.
    async fn reserve<'a>(&'a self, caller: &'a Caller) -> Option<Beginning<'a>> {
        let known: BTreeSet<String> = self.table().owners.keys().cloned().collect();
        let live: BTreeSet<String> = {
            let sessions = self.sessions.sessions.read().await;
            sessions.keys().map(ToString::to_string).collect()
        };
        let mut table = self.table();
        // One that has begun meanwhile is not among those that were looked for.
        let over = |session: &String| known.contains(session) && !live.contains(session);
        table.owners.retain(|session, _| !over(session));
        let all = || table.owners.values().chain(&table.beginning);
        let own = all().filter(|owner| *owner == caller).count();
        if all().count() >= SESSIONS_MAX || own >= SESSIONS_OF_ONE_MAX {
            return None;
        }
        table.beginning.push(caller.clone());
        let owners = self;
        Some(Beginning { owners, caller })
    }

    /// Ends the sessions of those who are nobody any more.
    async fn sweep(&self, standing: &Standing) {
        let over: Vec<String> = {
            let table = self.table();
            let over = table.owners.iter();
            let over = over.filter(|(_, caller)| !standing.is_good(caller));
            over.map(|(session, _)| session.clone()).collect()
        };
        for session in over {
            let id = session.as_str().into();
            match self.sessions.close_session(&id).await {
                // One that has ended by itself is as good.
                Ok(()) | Err(_) => {}
            }
            self.table().owners.remove(&session);
        }
    }
}

/// The row's service. `routes` is the table without it.
pub(crate) fn service(
    routes: Router,
    ctx: &Ctx,
    tables: &'static Tables,
) -> impl Service<Request, Response = Response, Error = Infallible, Future: Send>
+ Clone
+ Send
+ Sync
+ use<> {
    let ended = CancellationToken::new();
    let mut sessions = LocalSessionManager::default();
    sessions.session_config.keep_alive = Some(SILENCE_MAX);
    let sessions = Arc::new(sessions);
    let owners = Arc::new(Owners {
        sessions: Arc::clone(&sessions),
        ..Owners::default()
    });
    let (end, swept, standing) = (
        ended.clone(),
        Arc::clone(&owners),
        Arc::clone(&ctx.standing),
    );
    let mut closing = ctx.closing.clone();
    tokio::spawn(async move {
        loop {
            // Also when whoever could say so is gone.
            let closed = async { drop(closing.wait_for(|closing| *closing).await) };
            tokio::select! {
                () = closed => break,
                () = standing.look_again() => swept.sweep(&standing).await,
            }
        }
        end.cancel();
    });
    let config = StreamableHttpServerConfig::default()
        // Both are looked at by the door, on every path.
        .disable_allowed_hosts()
        .disable_allowed_origins()
        .with_max_request_body_bytes(BODY_BYTES_MAX)
        .with_cancellation_token(ended);
    let server = move || Ok(Mcp::of_callers(routes.clone(), tables));
    let inner: Inner = StreamableHttpService::new(server, sessions, config);
    let standing = Arc::clone(&ctx.standing);
    service_fn(move |request: Request| {
        let (inner, owners, standing) = (inner.clone(), owners.clone(), standing.clone());
        async move {
            let caller = request.extensions().get::<Caller>().cloned();
            let Some(caller) = caller else {
                return Ok(StatusCode::UNAUTHORIZED.into_response());
            };
            let response = serve(&inner, &owners, &caller, request).await;
            // What it is told of goes on for as long as it is somebody.
            Ok(response.map(|body| Leased::body(body, &standing, caller)))
        }
    })
}

async fn serve(inner: &Inner, owners: &Owners, caller: &Caller, request: Request) -> Response {
    // For what the conformance suite does to a stream.
    #[cfg(test)]
    let request = {
        let mut request = request;
        let sessions = Arc::clone(&owners.sessions);
        request.extensions_mut().insert(sessions);
        request
    };
    let session = text(request.headers(), SESSION);
    match &session {
        // As for one that never was: the client begins another.
        Some(session) if !owners.owns(caller, session) => {
            return (StatusCode::NOT_FOUND, "no such session").into_response();
        }
        None if begins(&request) => {
            let Some(beginning) = owners.reserve(caller).await else {
                let told = "begin a session: so many live; end one (DELETE), or wait";
                return Problem::new(Code::TooManySessions, told).into_response();
            };
            let response = inner.handle(request).await.map(Body::new);
            if let Some(began) = text(response.headers(), SESSION) {
                beginning.began(&began);
            }
            return response;
        }
        Some(_) | None => {}
    }
    inner.handle(request).await.map(Body::new)
}

/// Only the older generation has sessions, and it has one from its first request on.
fn begins(request: &Request) -> bool {
    let version = text(request.headers(), VERSION);
    let modern =
        version.is_some_and(|version| *version >= *ProtocolVersion::NO_INITIALIZE.as_str());
    request.method() == Method::POST && !modern
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    Some(value.to_owned())
}
