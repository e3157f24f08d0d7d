//! One question and its answer as it streams.
//! Must not ask twice: who asks decides that, and knows what came of the first time.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use dispatch_core::{
    Millis,
    attach::MediaKind,
    models::{Auth, Endpoint, Wire},
    native::{Fault, Window},
    secret::Secret,
};
use http_body_util::{BodyExt, Limited};
use hyper::{
    HeaderMap, Request, Uri,
    body::Incoming,
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT},
};
use tokio::time::timeout;

use super::{
    Decode, Entry, Heard, ModelError, Origin, Question,
    body::{Pieces, Segment},
    decoder, frame,
    http::Http,
    limits, media, segment, sse,
};
use crate::net::{self, Connector, NetError};

/// Of an answer that is an error.
const ERROR_BYTES_MAX: usize = 64 << 10;
const ERROR_LIMIT: Duration = Duration::from_secs(10);
const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const USER_AGENT_VALUE: &str = concat!("dispatch-agent/", env!("CARGO_PKG_VERSION"));

/// How long what may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timers {
    /// From the request to the head of its answer.
    pub(crate) head: Duration,
    /// Between two pieces of the answer.
    pub(crate) silence: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10 * 60),
            silence: Duration::from_secs(5 * 60),
        }
    }
}

/// A conversation in one endpoint's words: each entry is written once, and then sent for ever.
#[derive(Debug)]
struct Written {
    origin: Origin,
    /// What its model takes besides text.
    media: Option<Vec<MediaKind>>,
    segments: Vec<Option<Segment>>,
}

#[derive(Debug)]
pub(crate) struct Client {
    connector: Connector,
    http: Http,
    timers: Timers,
    written: Option<Written>,
}

impl Client {
    pub(crate) fn new(connector: Connector, timers: Timers) -> Self {
        Self {
            http: Http::new(connector.clone(), timers.head),
            connector,
            timers,
            written: None,
        }
    }

    /// One with a connection of its own, for another conversation.
    pub(crate) fn another(&self) -> Self {
        Self::new(self.connector.clone(), self.timers)
    }

    /// The entries are not those of the call before any more.
    pub(crate) fn forget(&mut self) {
        self.written = None;
    }

    /// Asks. The entries are those of the call before, and more.
    pub(crate) async fn ask(
        &mut self,
        question: &Question<'_>,
        entries: &[Entry],
        key: Option<&Secret>,
        made_ids: String,
    ) -> Result<Answer<'_>, ModelError> {
        let endpoint = question.endpoint;
        let body = self.body(question, entries).await?;
        let uri: Uri = endpoint.url.parse().map_err(|_| {
            ModelError::new(
                Fault::BadRequest,
                format!("{}: it is no address", endpoint.url),
            )
        })?;
        let mut request = Request::new(body);
        *request.headers_mut() = headers(endpoint, key)?;
        let response = self.http.post(&uri, request).await?;
        let (head, body) = response.into_parts();
        if !head.status.is_success() {
            let bytes = error_body(body).await;
            self.http.forget();
            let error = ModelError::of_answer(head.status, &head.headers, &bytes, now());
            return Err(error);
        }
        if let Some(how) = head.headers.get(hyper::header::CONTENT_ENCODING)
            && how.as_bytes() != b"identity"
        {
            self.http.forget();
            return Err(ModelError::protocol(
                "it is packed although it was not to be",
            ));
        }
        Ok(Answer {
            windows: limits::windows(&head.headers, now()),
            body,
            events: sse::Decoder::default(),
            decode: decoder(endpoint.wire, made_ids),
            heard: VecDeque::new(),
            silence: self.timers.silence,
            begun: false,
            over: false,
            broken: None,
            http: &mut self.http,
        })
    }

    async fn body(
        &mut self,
        question: &Question<'_>,
        entries: &[Entry],
    ) -> Result<Pieces, ModelError> {
        let origin = Origin::of(question.endpoint);
        let row = &question.endpoint.row;
        let written = match &mut self.written {
            Some(written) if written.origin == origin && written.media == row.media => written,
            other => other.insert(Written {
                origin,
                media: row.media.clone(),
                segments: Vec::new(),
            }),
        };
        written.segments.truncate(entries.len());
        for entry in &entries[written.segments.len()..] {
            let parts = media::parts(entry.files(), row).await;
            let segment = segment(&written.origin, entry, &parts)?;
            written.segments.push(segment);
        }
        let segments: Vec<Segment> = written.segments.iter().flatten().cloned().collect();
        let (head, tail) = frame(question)?;
        Ok(Pieces::new(head, &segments, tail))
    }
}

fn headers(endpoint: &Endpoint, key: Option<&Secret>) -> Result<HeaderMap, ModelError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &endpoint.headers {
        let bad = || ModelError::new(Fault::BadRequest, format!("{name} is no header"));
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
        let value = HeaderValue::from_str(value).map_err(|_| bad())?;
        headers.insert(name, value);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_VALUE));
    if endpoint.wire == Wire::Anthropic {
        headers
            .entry(ANTHROPIC_VERSION)
            .or_insert(HeaderValue::from_static("2023-06-01"));
    }
    if let Some(key) = key {
        let (name, value) = match endpoint.auth {
            Auth::XApiKey => (API_KEY, net::secret_header(key.expose())?),
            Auth::Bearer => net::bearer(key.expose())?,
            Auth::None => return Ok(headers),
        };
        headers.insert(name, value);
    }
    Ok(headers)
}

/// As much of it as there is room and time for: an error without its text is still an error.
async fn error_body(body: Incoming) -> Vec<u8> {
    let mut body = Limited::new(body, ERROR_BYTES_MAX);
    let mut bytes = Vec::new();
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(data) = frame.into_data() {
                bytes.extend_from_slice(&data);
            }
        }
    };
    match timeout(ERROR_LIMIT, read).await {
        Ok(()) | Err(_) => bytes,
    }
}

pub(crate) fn now() -> Millis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}

/// An answer as it comes. Dropped before its end, its connection ends with it.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) windows: Vec<Window>,
    body: Incoming,
    events: sse::Decoder,
    decode: Box<dyn Decode>,
    heard: VecDeque<Heard>,
    silence: Duration,
    /// Something of it was heard.
    begun: bool,
    /// All of it was read.
    over: bool,
    /// What is wrong behind what was heard.
    broken: Option<ModelError>,
    http: &'a mut Http,
}

impl Answer<'_> {
    /// The next piece; `None` after the last. May be dropped while it waits, and asked again.
    pub(crate) async fn next(&mut self) -> Result<Option<Heard>, ModelError> {
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return Ok(Some(heard));
            }
            if self.over {
                return Ok(None);
            }
            let more = match self.broken.take() {
                Some(error) => Err(error),
                None => self.more().await,
            };
            let more = more.map_err(|error| ModelError {
                begun: self.begun,
                ..error
            })?;
            let tells = |heard: &Heard| !matches!(heard, Heard::Tokens(_) | Heard::Ended(_));
            self.begun |= more.iter().any(tells);
            self.heard.extend(more);
        }
    }

    /// Nothing more of it has come so far.
    pub(crate) fn is_waiting(&self) -> bool {
        self.heard.is_empty()
    }

    async fn more(&mut self) -> Result<Vec<Heard>, ModelError> {
        let frame = timeout(self.silence, self.body.frame())
            .await
            .map_err(|_| ModelError::new(Fault::Timeout, "the answer stood still"))?;
        let data = match frame {
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(error)) => return Err(NetError::unreachable("read the answer", &error).into()),
            None => {
                self.over = true;
                let mut heard = match self.events.finish()? {
                    Some(event) => self.decode.hear(&event)?,
                    None => Vec::new(),
                };
                heard.extend(self.decode.finish()?);
                return Ok(heard);
            }
        };
        let mut heard = Vec::new();
        for event in self.events.push(&data)? {
            match self.decode.hear(&event) {
                Ok(more) => heard.extend(more),
                // What came before it came.
                Err(error) => {
                    self.broken = Some(error);
                    break;
                }
            }
        }
        Ok(heard)
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.http.forget();
        }
    }
}
