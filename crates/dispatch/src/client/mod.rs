//! The client of our own API, over the unix socket.
//! Must not print and must not start an engine by itself; `start` does, when a verb asks for it.

pub(crate) mod fold;
pub(crate) mod start;
mod stream;
#[cfg(test)]
pub(crate) mod view;

use std::{fmt, io};

use dispatch_engine::jobdir::socket_path;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use crate::{
    api::{Problem, task::Task},
    settings::Paths,
};
pub(crate) use stream::{Events, Heard};

/// A list of all tasks with their texts is the longest answer.
const ANSWER_BYTES_MAX: usize = 256 << 20;

#[derive(Debug)]
pub(crate) enum ClientError {
    /// Nobody listens.
    Unreachable(io::Error),
    /// It broke off; whether the request was carried out is not known.
    Lost(String),
    Refused(Problem),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(error) => write!(f, "reach the engine: {error}"),
            Self::Lost(what) => write!(f, "hear from the engine: {what}"),
            Self::Refused(problem) => f.write_str(&problem.detail),
        }
    }
}

impl std::error::Error for ClientError {}

impl ClientError {
    /// The engine was not there or on its way out: nothing has happened, ask the next one.
    pub(crate) fn nothing_happened(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Lost(_) => false,
            Self::Refused(problem) => problem.code == "engine_gone",
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Client {
    paths: Paths,
}

impl Client {
    pub(crate) fn new(paths: Paths) -> Self {
        Self { paths }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, ClientError> {
        let (socket, handle) =
            socket_path(&self.paths.run, Paths::SOCKET).map_err(ClientError::Unreachable)?;
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
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "dispatch")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ClientError::Lost(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(lost)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = collect(response).await?;
        Err(ClientError::Refused(problem(status, &bytes)))
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.send(Method::GET, path, Vec::new()).await?;
        decode(&collect(response).await?)
    }

    pub(crate) async fn text(&self, path: &str) -> Result<String, ClientError> {
        let response = self.send(Method::GET, path, Vec::new()).await?;
        let bytes = collect(response).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(crate) async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|e| ClientError::Lost(e.to_string()))?;
        let response = self.send(Method::POST, path, body).await?;
        decode(&collect(response).await?)
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<Task, ClientError> {
        let response = self.send(Method::DELETE, path, Vec::new()).await?;
        decode(&collect(response).await?)
    }

    /// The log from `after` on, then what happens.
    pub(crate) async fn events(
        &self,
        after: u64,
        task: Option<&str>,
    ) -> Result<Events, ClientError> {
        let task = task.map(|task| format!("&task={task}")).unwrap_or_default();
        let path = format!("/v1/events?after={after}{task}");
        let response = self.send(Method::GET, &path, Vec::new()).await?;
        Ok(Events::new(response.into_body()))
    }
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    match body.collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) => Err(ClientError::Lost(error.to_string())),
    }
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
    })
}
