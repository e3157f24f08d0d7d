//! MCP over HTTP on our own connection: what rmcp asks for, one request at a time.
//! Must not follow a redirect: a token in the headers is for one address. Must not hold more of an
//! answer than a message may have.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream, stream::BoxStream};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HOST, HeaderName, HeaderValue},
};
use rmcp::{
    model::{ClientJsonRpcMessage, ServerJsonRpcMessage},
    transport::streamable_http_client::{
        SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
    },
};
use sse_stream::Sse;

use crate::{
    model::sse::{Decoder, Event},
    net::{Connection, Connector, Guard, Host, NetError, NetFault, host_header, path_of},
};

const MESSAGE_BYTES_MAX: usize = 4 << 20;
const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
const LAST_EVENT: HeaderName = HeaderName::from_static("last-event-id");
const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

type Failed = StreamableHttpError<NetError>;
type Headers = HashMap<HeaderName, HeaderValue>;
type Events = BoxStream<'static, Result<Sse, SseError>>;

#[derive(Clone, Debug)]
pub(super) struct Http {
    connector: Connector,
}

/// An answer, and the connection that it comes on.
struct Answer {
    response: Response<Incoming>,
    connection: Connection<Full<Bytes>>,
}

impl Http {
    pub(super) fn new(connector: Connector) -> Self {
        Self { connector }
    }

    async fn send(
        &self,
        method: Method,
        uri: &str,
        session: Option<&str>,
        headers: Headers,
        body: Option<Vec<u8>>,
    ) -> Result<Answer, NetError> {
        let bad = |what: String| NetError::new(NetFault::Request, what);
        let uri: Uri = uri
            .parse()
            .map_err(|_| bad(format!("{uri}: it is no address")))?;
        let mut all: HeaderMap = headers.into_iter().collect();
        if let Some(session) = session {
            let session = HeaderValue::from_str(session);
            let session = session.map_err(|error| bad(error.to_string()))?;
            all.insert(SESSION, session);
        }
        let accept = HeaderValue::from_static("application/json, text/event-stream");
        all.insert(ACCEPT, accept);
        all.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        all.insert(HOST, host_header(&uri)?);
        if body.is_some() {
            all.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        }
        let mut request = Request::new(Full::new(Bytes::from(body.unwrap_or_default())));
        *request.method_mut() = method;
        *request.uri_mut() = path_of(&uri)?;
        *request.headers_mut() = all;
        let mut connection = self.connector.connect(Host::of(&uri)?, Guard::Open).await?;
        let response = connection.sender.send_request(request).await;
        let response =
            response.map_err(|error| NetError::unreachable("read the answer", &error))?;
        Ok(Answer {
            response,
            connection,
        })
    }
}

impl Answer {
    fn kind(&self) -> &str {
        let kind = self.response.headers().get(CONTENT_TYPE);
        kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default()
    }

    fn session(&self) -> Option<String> {
        let session = self.response.headers().get(SESSION)?;
        session.to_str().ok().map(str::to_owned)
    }

    async fn whole(self) -> Result<Bytes, Failed> {
        let body = Limited::new(self.response.into_body(), MESSAGE_BYTES_MAX);
        let read = body.collect().await;
        let read = read.map_err(|error| {
            let what = format!("read the answer: {error}");
            Failed::Client(NetError::new(NetFault::Network, what))
        })?;
        drop(self.connection);
        Ok(read.to_bytes())
    }

    fn events(self) -> Events {
        let open = Open {
            body: self.response.into_body(),
            decoder: Decoder::default(),
            waiting: VecDeque::new(),
            over: false,
            _connection: self.connection,
        };
        let next = |mut open: Open| async move {
            let next = open.next().await?;
            Some((next, open))
        };
        stream::unfold(open, next).boxed()
    }
}

/// A stream of events. Its connection ends with it.
struct Open {
    body: Incoming,
    decoder: Decoder,
    waiting: VecDeque<Event>,
    over: bool,
    _connection: Connection<Full<Bytes>>,
}

impl Open {
    async fn next(&mut self) -> Option<Result<Sse, SseError>> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(Ok(Sse {
                    event: (!event.name.is_empty()).then_some(event.name),
                    data: Some(event.data),
                    ..Sse::default()
                }));
            }
            if self.over {
                return None;
            }
            let more = match self.body.frame().await {
                Some(Ok(frame)) => self.decoder.push(&frame.into_data().unwrap_or_default()),
                Some(Err(error)) => {
                    self.over = true;
                    return Some(Err(SseError::Body(Box::new(error))));
                }
                None => {
                    self.over = true;
                    self.decoder
                        .finish()
                        .map(|event| event.into_iter().collect())
                }
            };
            match more {
                Ok(events) => self.waiting.extend(events),
                Err(error) => {
                    self.over = true;
                    return Some(Err(SseError::Body(Box::new(error))));
                }
            }
        }
    }
}

impl StreamableHttpClient for Http {
    type Error = NetError;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        _token: Option<String>,
        headers: Headers,
    ) -> Result<StreamableHttpPostResponse, Failed> {
        let is_request = matches!(message, ClientJsonRpcMessage::Request(_));
        let body = serde_json::to_vec(&message)?;
        let sent = self
            .send(Method::POST, &uri, session.as_deref(), headers, Some(body))
            .await;
        let answer = sent.map_err(Failed::Client)?;
        let status = answer.response.status();
        match status {
            StatusCode::ACCEPTED | StatusCode::NO_CONTENT => {
                return Ok(StreamableHttpPostResponse::Accepted);
            }
            StatusCode::NOT_FOUND if session.is_some() => return Err(Failed::SessionExpired),
            _ => {}
        }
        let own = answer.session();
        if status.is_success() && answer.kind().starts_with(EVENTS) {
            return Ok(StreamableHttpPostResponse::Sse(answer.events(), own));
        }
        let body = answer.whole().await?;
        // A refusal may be a message, too: that of another generation is one.
        match serde_json::from_slice::<ServerJsonRpcMessage>(&body) {
            Ok(message) => Ok(StreamableHttpPostResponse::Json(message, own)),
            Err(_) if status.is_success() && !is_request => {
                Ok(StreamableHttpPostResponse::Accepted)
            }
            Err(error) => {
                let said: String = String::from_utf8_lossy(&body).chars().take(300).collect();
                let what = format!("it answered {status} and no message ({error}): {said}");
                Err(Failed::UnexpectedServerResponse(what.into()))
            }
        }
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session: Arc<str>,
        _token: Option<String>,
        headers: Headers,
    ) -> Result<(), Failed> {
        let sent = self
            .send(Method::DELETE, &uri, Some(&session), headers, None)
            .await;
        let status = sent.map_err(Failed::Client)?.response.status();
        if status.is_success() || status == StatusCode::METHOD_NOT_ALLOWED {
            return Ok(());
        }
        let what = format!("it would not end the session: {status}");
        Err(Failed::UnexpectedServerResponse(what.into()))
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last_event: Option<String>,
        _token: Option<String>,
        mut headers: Headers,
    ) -> Result<Events, Failed> {
        if let Some(last) = last_event.and_then(|last| HeaderValue::from_str(&last).ok()) {
            headers.insert(LAST_EVENT, last);
        }
        let sent = self
            .send(Method::GET, &uri, session.as_deref(), headers, None)
            .await;
        let answer = sent.map_err(Failed::Client)?;
        let status = answer.response.status();
        if status == StatusCode::METHOD_NOT_ALLOWED {
            return Err(Failed::ServerDoesNotSupportSse);
        }
        if !status.is_success() || !answer.kind().starts_with(EVENTS) {
            let what = format!("it answered {status} and no stream");
            return Err(Failed::UnexpectedServerResponse(what.into()));
        }
        Ok(answer.events())
    }
}
