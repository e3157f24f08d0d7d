//! One request and all of its answer, on a connection of its own, bounded in time and bytes.
//! Must not follow a redirect: who asks knows what may go along. Must not unpack anything: a few
//! bytes may hold a great many.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Request, StatusCode, Uri,
    body::Incoming,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, HOST, HeaderValue, USER_AGENT},
};
use tokio::time::timeout;

use super::{Connector, Guard, Host, NetError, NetFault, host_header, path_of};

const USER_AGENT_VALUE: &str = concat!("dispatch-agent/", env!("CARGO_PKG_VERSION"));

#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// From the connection to the last byte.
    pub(crate) time: Duration,
    pub(crate) bytes: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Question {
    pub(crate) fn get(uri: Uri) -> Self {
        Self {
            method: Method::GET,
            uri,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    /// There was more than there was room for.
    pub(crate) cut: bool,
}

pub(crate) async fn ask(
    connector: &Connector,
    guard: Guard<'_>,
    question: Question,
    bounds: Bounds,
) -> Result<Answered, NetError> {
    let asked = timeout(bounds.time, whole(connector, guard, question, bounds.bytes)).await;
    let late = || NetError::timed_out(&format!("it took longer than {:?}", bounds.time));
    asked.map_err(|_| late())?
}

async fn whole(
    connector: &Connector,
    guard: Guard<'_>,
    question: Question,
    bytes_max: usize,
) -> Result<Answered, NetError> {
    let Question {
        method,
        uri,
        headers,
        body,
    } = question;
    let host = Host::of(&uri)?;
    let mut request = Request::new(Full::new(body));
    *request.headers_mut() = headers;
    let plain = HeaderValue::from_static("identity");
    request.headers_mut().insert(HOST, host_header(&uri)?);
    request.headers_mut().insert(ACCEPT_ENCODING, plain);
    request
        .headers_mut()
        .insert(USER_AGENT, HeaderValue::from_static(USER_AGENT_VALUE));
    *request.method_mut() = method;
    *request.uri_mut() = path_of(&uri)?;
    let mut connection = connector.connect::<Full<Bytes>>(host, guard).await?;
    let answer = connection.sender.send_request(request).await;
    let answer = answer.map_err(|error| NetError::unreachable("read the answer", &error))?;
    let (head, body) = answer.into_parts();
    let packed = head.headers.get(CONTENT_ENCODING);
    if packed.is_some_and(|how| how.as_bytes() != b"identity") {
        let what = "the answer is packed although it was not to be";
        return Err(NetError::new(NetFault::Answer, what));
    }
    let (body, cut) = read(body, bytes_max).await?;
    Ok(Answered {
        status: head.status,
        headers: head.headers,
        body,
        cut,
    })
}

/// As much of it as there is room for, and whether there was more.
async fn read(mut body: Incoming, bytes_max: usize) -> Result<(Vec<u8>, bool), NetError> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| NetError::unreachable("read the answer", &error))?;
        let data = frame.into_data().unwrap_or_default();
        let room = bytes_max.saturating_sub(bytes.len()).min(data.len());
        bytes.extend_from_slice(&data[..room]);
        if room < data.len() {
            return Ok((bytes, true));
        }
    }
    Ok((bytes, false))
}
