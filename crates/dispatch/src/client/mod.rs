//! The client of our own API: over a unix socket, with a token where that is needed, or straight to
//! the routes where they are in this process.
//! Must not print and must not start an engine by itself; `start` does, when a verb asks for it.

pub(crate) mod again;
pub(crate) mod fold;
mod pages;
pub(crate) mod start;
mod stream;
#[cfg(any(test, feature = "tui"))]
pub(crate) mod view;

use std::{
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use axum::{
    Router,
    body::{Body, Bytes},
};
use dispatch_core::secret::Secret;
use dispatch_engine::jobdir::socket_path;
use http_body_util::{BodyExt, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;
use tower::ServiceExt as _;

use crate::{
    api::{Problem, task::Task},
    http::{
        caller::Caller,
        reads::{END, NEXT},
    },
    settings::Paths,
};
pub(crate) use pages::Page;
pub(crate) use stream::{Events, Heard};

/// A list of all tasks with their texts is the longest answer.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// A token is one short line.
const TOKEN_BYTES_MAX: u64 = 4096;
/// A request with it is carried out once, however often it is sent.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

#[derive(Debug)]
pub(crate) enum ClientError {
    /// Nobody listens.
    Unreachable(io::Error),
    /// It broke off; whether the request was carried out is not known.
    Lost(String),
    Refused(Problem),
    /// Nothing was sent: the token could not be read.
    Token(String),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(error) => write!(f, "reach the engine: {error}"),
            Self::Lost(what) => write!(f, "hear from the engine: {what}"),
            Self::Refused(problem) => f.write_str(&problem.detail),
            Self::Token(what) => write!(f, "read the token: {what}"),
        }
    }
}

impl std::error::Error for ClientError {}

impl ClientError {
    /// The engine was not there or on its way out: nothing has happened, ask the next one.
    pub(crate) fn nothing_happened(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Token(_) => false,
            Self::Lost(_) => false,
            Self::Refused(problem) => problem.code == "engine_gone",
        }
    }
}

/// How a request gets to the routes.
#[derive(Clone)]
enum Way {
    Socket {
        dir: PathBuf,
        name: String,
        /// The file of a token. Read with each request: it may be made anew.
        token: Option<PathBuf>,
    },
    /// The routes are in this process, and it is known whose request it is.
    Inside { routes: Router, caller: Caller },
}

#[derive(Clone)]
pub(crate) struct Client {
    way: Way,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.way {
            Way::Socket { dir, name, .. } => {
                f.debug_tuple("Client").field(&dir.join(name)).finish()
            }
            Way::Inside { caller, .. } => f.debug_tuple("Client").field(caller).finish(),
        }
    }
}

/// A piece of what a job wrote.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) bytes: Bytes,
    /// The byte behind it.
    pub(crate) next: u64,
    /// Nothing comes after it any more.
    pub(crate) end: bool,
}

/// One request, before it is known how it travels.
struct Asked<'a> {
    method: Method,
    path: &'a str,
    body: Vec<u8>,
    key: Option<&'a str>,
}

impl<'a> Asked<'a> {
    fn new(method: Method, path: &'a str) -> Self {
        Self {
            method,
            path,
            body: Vec::new(),
            key: None,
        }
    }

    fn request(self, token: Option<&Secret>) -> Result<Request<Body>, ClientError> {
        let wrong = |error: &dyn fmt::Display| ClientError::Lost(error.to_string());
        let request = Request::builder()
            .method(self.method)
            .uri(self.path)
            .header(HOST, "dispatch")
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from(self.body));
        let mut request = request.map_err(|error| wrong(&error))?;
        let headers = request.headers_mut();
        if let Some(key) = self.key {
            let key = HeaderValue::from_str(key).map_err(|error| wrong(&error))?;
            headers.insert(IDEMPOTENCY_KEY, key);
        }
        if let Some(token) = token {
            let value = HeaderValue::from_str(&format!("Bearer {}", token.expose()));
            let mut value = value.map_err(|error| ClientError::Token(error.to_string()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(request)
    }
}

impl Client {
    /// The person's own: whoever has our user id needs no token.
    pub(crate) fn new(paths: Paths) -> Self {
        Self {
            way: Way::Socket {
                dir: paths.run,
                name: Paths::SOCKET.to_owned(),
                token: None,
            },
        }
    }

    /// Another socket, with the token that a file holds.
    pub(crate) fn at(socket: &Path, token: PathBuf) -> Result<Self, ClientError> {
        let wrong = || {
            let what = format!("{} is not the path of a socket", socket.display());
            ClientError::Unreachable(io::Error::new(io::ErrorKind::InvalidInput, what))
        };
        let dir = socket.parent().ok_or_else(wrong)?.to_owned();
        let name = socket.file_name().and_then(|name| name.to_str());
        Ok(Self {
            way: Way::Socket {
                dir,
                name: name.ok_or_else(wrong)?.to_owned(),
                token: Some(token),
            },
        })
    }

    /// Past the doors: whoever calls has found out who the caller is.
    pub(crate) fn inside(routes: Router, caller: Caller) -> Self {
        Self {
            way: Way::Inside { routes, caller },
        }
    }

    async fn send(&self, asked: Asked<'_>) -> Result<Response<Body>, ClientError> {
        let response = match &self.way {
            Way::Socket { dir, name, token } => {
                let token = token.as_deref().map(token_of).transpose()?;
                by_socket(dir, name, asked.request(token.as_ref())?).await?
            }
            Way::Inside { routes, caller } => {
                let mut request = asked.request(None)?;
                request.extensions_mut().insert(caller.clone());
                match routes.clone().oneshot(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                }
            }
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = collect(response).await?;
        Err(ClientError::Refused(problem(status, &bytes)))
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.send(Asked::new(Method::GET, path)).await?;
        decode(&collect(response).await?)
    }

    pub(crate) async fn piece(&self, path: &str) -> Result<Piece, ClientError> {
        let response = self.send(Asked::new(Method::GET, path)).await?;
        let next = header(&response, &NEXT).and_then(|next| next.parse().ok());
        let end = header(&response, &END) == Some("true");
        let bytes = collect(response).await?;
        let missing = || ClientError::Lost("it does not say where the next piece begins".into());
        Ok(Piece {
            bytes,
            next: next.ok_or_else(missing)?,
            end,
        })
    }

    pub(crate) async fn text(&self, path: &str) -> Result<String, ClientError> {
        let response = self.send(Asked::new(Method::GET, path)).await?;
        let bytes = collect(response).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(crate) async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        self.post_as(path, body, None).await
    }

    /// The same under a key: sent again it is answered again and carried out no second time.
    pub(crate) async fn post_once<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        key: &str,
    ) -> Result<T, ClientError> {
        self.post_as(path, body, Some(key)).await
    }

    async fn post_as<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        key: Option<&str>,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|e| ClientError::Lost(e.to_string()))?;
        let asked = Asked {
            body,
            key,
            ..Asked::new(Method::POST, path)
        };
        decode(&collect(self.send(asked).await?).await?)
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<Task, ClientError> {
        let response = self.send(Asked::new(Method::DELETE, path)).await?;
        decode(&collect(response).await?)
    }

    /// The log from `after` on, then what happens.
    pub(crate) async fn events(
        &self,
        after: u64,
        task: Option<&str>,
    ) -> Result<Events, ClientError> {
        let task = task.map(|task| format!("&task={task}")).unwrap_or_default();
        self.events_of(after, &task).await
    }

    /// The same of what the query names: `&task=...`, `&kinds=...`.
    pub(crate) async fn events_of(&self, after: u64, query: &str) -> Result<Events, ClientError> {
        let path = format!("/v1/events?after={after}{query}");
        let response = self.send(Asked::new(Method::GET, &path)).await?;
        Ok(Events::new(response.into_body()))
    }
}

async fn by_socket(
    dir: &Path,
    name: &str,
    request: Request<Body>,
) -> Result<Response<Body>, ClientError> {
    let (socket, handle) = socket_path(dir, name).map_err(ClientError::Unreachable)?;
    let stream = UnixStream::connect(&socket)
        .await
        .map_err(ClientError::Unreachable)?;
    drop(handle);
    let lost = |error: hyper::Error| ClientError::Lost(error.to_string());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(lost)?;
    // It ends with the response; its error is seen there.
    tokio::spawn(async move { connection.await.is_ok() });
    let response = sender.send_request(request).await.map_err(lost)?;
    Ok(response.map(Body::new))
}

fn token_of(path: &Path) -> Result<Secret, ClientError> {
    let wrong = |what: &dyn fmt::Display| ClientError::Token(format!("{}: {what}", path.display()));
    let file = fs::File::open(path).map_err(|error| wrong(&error))?;
    let mut text = String::new();
    file.take(TOKEN_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|error| wrong(&error))?;
    match text.trim() {
        "" => Err(wrong(&"it is empty")),
        token => Ok(Secret::from(token)),
    }
}

async fn collect(response: Response<Body>) -> Result<Bytes, ClientError> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    match body.collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) => Err(ClientError::Lost(error.to_string())),
    }
}

fn header<'a>(response: &'a Response<Body>, name: &HeaderName) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(|error| {
        ClientError::Lost(format!(
            "it answered something else ({error}); is it of another version?"
        ))
    })
}

fn problem(status: StatusCode, bytes: &[u8]) -> Problem {
    serde_json::from_slice(bytes).unwrap_or_else(|_| Problem {
        status: status.as_u16(),
        code: "unknown".into(),
        detail: format!("get an answer: status {status}"),
        task: None,
    })
}
