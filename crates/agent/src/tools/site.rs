//! A site of the web for tests: answers on 127.0.0.1 as its function says, and keeps what it was
//! asked. Must not be used outside tests.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Frame, Incoming},
    header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Whole(Bytes),
    /// The same bytes again and again, for ever.
    Endless(Bytes),
    /// Nothing, and no end.
    Hangs,
}

#[derive(Clone, Debug)]
pub(crate) struct Page {
    status: u16,
    headers: Vec<(HeaderName, String)>,
    piece: Piece,
}

impl Page {
    pub(crate) fn new(kind: &str, body: impl Into<Bytes>) -> Self {
        Self {
            status: 200,
            headers: vec![(CONTENT_TYPE, kind.to_owned())],
            piece: Piece::Whole(body.into()),
        }
    }

    pub(crate) fn html(body: &str) -> Self {
        Self::new("text/html; charset=utf-8", body.to_owned())
    }

    pub(crate) fn json(body: &Value) -> Self {
        Self::new("application/json", body.to_string())
    }

    pub(crate) fn moved(to: &str) -> Self {
        let page = Self::html("").with(LOCATION, to);
        Self {
            status: 302,
            ..page
        }
    }

    pub(crate) fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    pub(crate) fn with(mut self, name: HeaderName, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(crate) fn piece(self, piece: Piece) -> Self {
        Self { piece, ..self }
    }
}

impl Body for Piece {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        match this {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Endless(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes.clone())))),
            Self::Hangs => Poll::Pending,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Visit {
    pub(crate) target: String,
    pub(crate) headers: hyper::HeaderMap,
    pub(crate) body: Value,
}

#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) url: String,
    visits: Arc<Mutex<Vec<Visit>>>,
    task: JoinHandle<()>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Site {
    pub(crate) async fn start(answer: impl Fn(&Visit) -> Page + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let visits: Arc<Mutex<Vec<Visit>>> = Arc::default();
        let kept = Arc::clone(&visits);
        let answer = Arc::new(answer);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (kept, answer) = (Arc::clone(&kept), Arc::clone(&answer));
                connections.spawn(async move {
                    let served = service_fn(|request| visited(request, &kept, &*answer));
                    let served =
                        http1::Builder::new().serve_connection(TokioIo::new(stream), served);
                    // Whoever has enough goes away.
                    drop(served.await);
                });
            }
        });
        Self { url, visits, task }
    }

    pub(crate) fn visits(&self) -> Vec<Visit> {
        self.visits.lock().unwrap().clone()
    }

    /// As a list of private addresses names it.
    pub(crate) fn address(&self) -> String {
        self.url.trim_start_matches("http://").to_owned()
    }
}

async fn visited(
    request: Request<Incoming>,
    kept: &Mutex<Vec<Visit>>,
    answer: &(impl Fn(&Visit) -> Page + ?Sized),
) -> Result<Response<Piece>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let visit = Visit {
        target: head.uri.to_string(),
        headers: head.headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    let page = answer(&visit);
    kept.lock().unwrap().push(visit);
    let mut response = Response::new(page.piece);
    *response.status_mut() = StatusCode::from_u16(page.status).unwrap();
    for (name, value) in page.headers {
        response
            .headers_mut()
            .append(name, HeaderValue::from_str(&value).unwrap());
    }
    Ok(response)
}
