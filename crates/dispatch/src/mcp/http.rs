//! `/mcp`: the same server over streamable HTTP, as one row of the table of routes. Whose request it is
//! has been found out before; every tool is then a request of that caller to the other rows.
//! Must not let one caller into the session of another, and must not keep sessions without a bound.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
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
        streamable_http_server::session::local::LocalSessionManager,
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::{Service, service_fn};

use super::server::{Mcp, Tables};
use crate::http::{
    caller::Caller,
    error::{Code, Problem},
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

/// Whose each session is.
#[derive(Debug, Default)]
struct Owners {
    sessions: Arc<LocalSessionManager>,
    owners: Mutex<HashMap<String, Caller>>,
}

impl Owners {
    fn owns(&self, caller: &Caller, session: &str) -> bool {
        let owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.get(session) == Some(caller)
    }

    /// Whether this caller may begin another one. Those that are over are forgotten here.
    async fn have_room(&self, caller: &Caller) -> bool {
        let live: Vec<String> = {
            let sessions = self.sessions.sessions.read().await;
            sessions.keys().map(ToString::to_string).collect()
        };
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.retain(|session, _| live.contains(session));
        let own = owners.values().filter(|owner| *owner == caller).count();
        owners.len() < SESSIONS_MAX && own < SESSIONS_OF_ONE_MAX
    }

    fn began(&self, caller: Caller, session: &str) {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.insert(session.to_owned(), caller);
    }
}

/// The row's service. `routes` is the table without it.
pub(crate) fn service(
    routes: Router,
    mut closing: watch::Receiver<bool>,
    tables: &'static Tables,
) -> impl Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync
{
    let ended = CancellationToken::new();
    let end = ended.clone();
    tokio::spawn(async move {
        // Also when whoever could say so is gone.
        drop(closing.wait_for(|closing| *closing).await);
        end.cancel();
    });
    let mut sessions = LocalSessionManager::default();
    sessions.session_config.keep_alive = Some(SILENCE_MAX);
    let sessions = Arc::new(sessions);
    let owners = Arc::new(Owners {
        sessions: Arc::clone(&sessions),
        ..Owners::default()
    });
    let config = StreamableHttpServerConfig::default()
        // Both are looked at by the door, on every path.
        .disable_allowed_hosts()
        .disable_allowed_origins()
        .with_max_request_body_bytes(BODY_BYTES_MAX)
        .with_cancellation_token(ended);
    let server = move || Ok(Mcp::of_callers(routes.clone(), tables));
    let inner: Inner = StreamableHttpService::new(server, sessions, config);
    service_fn(move |request| {
        let (inner, owners) = (inner.clone(), Arc::clone(&owners));
        async move { Ok(serve(&inner, &owners, request).await) }
    })
}

async fn serve(inner: &Inner, owners: &Owners, request: Request) -> Response {
    // For what the conformance suite does to a stream.
    #[cfg(test)]
    let request = {
        let mut request = request;
        let sessions = Arc::clone(&owners.sessions);
        request.extensions_mut().insert(sessions);
        request
    };
    let Some(caller) = request.extensions().get::<Caller>().cloned() else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    let session = text(request.headers(), SESSION);
    match &session {
        // As for one that never was: the client begins another.
        Some(session) if !owners.owns(&caller, session) => {
            return (StatusCode::NOT_FOUND, "no such session").into_response();
        }
        None if begins(&request) && !owners.have_room(&caller).await => {
            let told = "begin a session: so many live; end one (DELETE), or wait";
            return Problem::new(Code::TooManySessions, told).into_response();
        }
        Some(_) | None => {}
    }
    let response = inner.handle(request).await.map(Body::new);
    if let (None, Some(began)) = (session, text(response.headers(), SESSION)) {
        owners.began(caller, &began);
    }
    response
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
