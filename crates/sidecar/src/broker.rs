//! The broker: the agent has a placeholder for each key, its upstream gets the real one. One origin for
//! each, no redirect followed, every byte handed on as it comes.
//! Must not send a key anywhere but to its own upstream, and must not show it in an answer.

use std::{
    convert::Infallible,
    error::Error,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use dispatch_core::{
    causes::chain,
    secret::Secret,
    sidecar::{RENEWED_HEADER, Upstream, has_dot_segment},
};
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::{Body, Frame, Incoming, SizeHint},
    header::{
        ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, HOST, HeaderName,
        HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
    service::service_fn,
};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep, timeout},
};

use crate::{
    held::{Held, Look},
    masking::{Masking, mask},
    refusals::Refusals,
};

const REQUESTS_MAX: usize = 64;
const REQUEST_BYTES_MAX: usize = 128 << 20;
const HEAD_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 128;
/// From a connection's begin, or its last answer's end, to the end of the next request's head.
const HEAD: Duration = Duration::from_secs(300);
const CONNECT: Duration = Duration::from_secs(20);
/// A model may think for long before its first byte and between two: silence, not duration.
const SILENCE: Duration = Duration::from_secs(15 * 60);
const POOL_IDLE: Duration = Duration::from_secs(60);

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const RENEWED: HeaderName = HeaderName::from_static(RENEWED_HEADER);
/// Of one connection, and so not to be handed on (RFC 9110, 7.6.1).
const HOPS: [HeaderName; 8] = [
    CONNECTION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authorization"),
];

type Failure = Box<dyn Error + Send + Sync>;
type Sent = UnsyncBoxBody<Bytes, Failure>;

/// One placeholder, and what it stands for.
pub(crate) struct Row {
    pub(crate) upstream: Upstream,
    /// `None`: upstream wants none.
    pub(crate) key: Option<Held>,
    pub(crate) placeholder: String,
    /// What the agent calls the key.
    pub(crate) name: String,
}

pub(crate) struct Broker {
    rows: Vec<Row>,
    client: Client<HttpsConnector<HttpConnector>, Sent>,
    open: Arc<AtomicUsize>,
    refusals: Arc<Refusals>,
}

/// Taken while a request lives, its answer's body included.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Refusal {
    status: StatusCode,
    text: String,
}

impl Broker {
    pub(crate) fn new(rows: Vec<Row>, refusals: Arc<Refusals>) -> Result<Self, String> {
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT));
        http.enforce_http(false);
        let tls = hyper_rustls::HttpsConnectorBuilder::new();
        let connector = if rows.iter().any(|row| row.upstream.tls) {
            tls.with_provider_and_native_roots(rustls::crypto::ring::default_provider())
                .map_err(|error| {
                    format!("read the system's certificates: {error}; install ca-certificates")
                })?
                .https_or_http()
                .enable_http1()
                .wrap_connector(http)
        } else {
            // The plan's own rule is that this stays on the machine or in its network.
            let nothing = rustls::RootCertStore::empty();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| format!("set up TLS: {error}"))?
                .with_root_certificates(nothing)
                .with_no_client_auth();
            tls.with_tls_config(config)
                .https_or_http()
                .enable_http1()
                .wrap_connector(http)
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self {
            rows,
            client,
            open: Arc::default(),
            refusals,
        })
    }

    pub(crate) async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin) {
        let service =
            service_fn(|request| async { Ok::<_, Infallible>(self.answer(request).await) });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        match served.await {
            // The client has seen how its connection ended.
            Ok(()) | Err(_) => {}
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Sent> {
        match self.forward(request).await {
            Ok(response) => response,
            Err(Refusal { status, text }) => {
                // The shape that the providers' own clients know.
                let body = serde_json::json!({
                    "type": "error",
                    "error": { "type": "dispatch_broker", "message": text },
                });
                let body = Full::new(Bytes::from(body.to_string()));
                let mut response =
                    Response::new(body.map_err(|never| match never {}).boxed_unsync());
                *response.status_mut() = status;
                let json = HeaderValue::from_static("application/json");
                response.headers_mut().insert("content-type", json);
                response
            }
        }
    }

    async fn forward(&self, request: Request<Incoming>) -> Result<Response<Sent>, Refusal> {
        let place = Place(Arc::clone(&self.open));
        if self.open.fetch_add(1, Ordering::Relaxed) >= REQUESTS_MAX {
            let text = format!("more than {REQUESTS_MAX} requests at once");
            return Err(refuse(StatusCode::TOO_MANY_REQUESTS, text));
        }
        let (mut head, body) = request.into_parts();
        if head.method == Method::CONNECT {
            return Err(self.refused("CONNECT", "the broker forwards requests only"));
        }
        let path = self.path(&head.uri)?;
        let nobodys = || {
            self.refused(
                "a request to the model",
                "it has no placeholder, or another one",
            )
        };
        let row = self.whose(&head.headers).ok_or_else(nobodys)?;
        let key = match &row.key {
            Some(held) => Some(held.key().await),
            None => None,
        };
        put_in(&mut head.headers, key.as_ref()).ok_or_else(nobodys)?;
        let uri = uri(&row.upstream, &path)?;
        drop_hops(&mut head.headers);
        head.headers.remove(HOST);
        // What is packed cannot be looked through for the key.
        head.headers
            .insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let mut asked = Request::new(Limited::new(body, REQUEST_BYTES_MAX).boxed_unsync());
        *asked.method_mut() = head.method;
        *asked.uri_mut() = uri;
        *asked.headers_mut() = head.headers;
        let gateway = |why: String| {
            refuse(
                StatusCode::BAD_GATEWAY,
                format!("ask {}: {why}", row.upstream.authority),
            )
        };
        let answered = timeout(SILENCE, self.client.request(asked)).await;
        let mut answer = answered
            .map_err(|_| gateway("no answer in time".into()))?
            .map_err(|error| gateway(chain(&error)))?;
        answer.headers_mut().remove(RENEWED);
        if answer.status() == StatusCode::UNAUTHORIZED && self.renewed(row, key.as_ref()).await {
            let word = HeaderValue::from_static("1");
            answer.headers_mut().insert(RENEWED, word);
        }
        shown(key.as_ref(), answer, place)
    }

    /// Whether there is another key than the one that was refused.
    async fn renewed(&self, row: &Row, refused: Option<&Secret>) -> bool {
        let (Some(held), Some(refused)) = (&row.key, refused) else {
            return false;
        };
        match held.look(refused).await {
            Look::Renewed => true,
            Look::Same => false,
            Look::Lost(why) => {
                let what = format!("{}, which its upstream refuses, read again", row.name);
                self.refusals.refuse(&what, &why);
                false
            }
        }
    }

    /// What was asked for; of whom, says the placeholder.
    fn path(&self, asked: &Uri) -> Result<String, Refusal> {
        let path = asked.path_and_query().map_or("/", |path| path.as_str());
        let only_path = path.split('?').next().unwrap_or_default();
        if !path.starts_with('/') || has_dot_segment(only_path) {
            return Err(self.refused("a request to the model", "its path has dots for a part"));
        }
        Ok(path.to_owned())
    }

    fn refused(&self, what: &str, why: &str) -> Refusal {
        self.refusals.refuse(what, &why);
        let status = StatusCode::UNAUTHORIZED;
        refuse(status, format!("dispatch's broker refused this: {why}"))
    }

    /// Whose placeholder is in the one or two places where a key belongs. `None`: it is nobody's, or
    /// of two keys at once.
    fn whose(&self, headers: &HeaderMap) -> Option<&Row> {
        let mut used: Option<&Row> = None;
        for name in [AUTHORIZATION, API_KEY] {
            let mut values = headers.get_all(&name).iter();
            let (value, None) = (values.next(), values.next()) else {
                return None;
            };
            let Some(value) = value else { continue };
            let (_, token) = split(&name, value.as_bytes())?;
            let row = self.row(token)?;
            if used.is_some_and(|other| !std::ptr::eq(other, row)) {
                return None;
            }
            used = Some(row);
        }
        used
    }

    /// Looks at all of them, whichever it is.
    fn row(&self, token: &[u8]) -> Option<&Row> {
        self.rows.iter().fold(None, |found, row| {
            match same(token, row.placeholder.as_bytes()) {
                true => Some(row),
                false => found,
            }
        })
    }
}

/// A value's scheme and what follows. Another scheme is none of ours, and none of upstream's either.
fn split<'a>(name: &HeaderName, value: &'a [u8]) -> Option<(&'static [u8], &'a [u8])> {
    if *name != AUTHORIZATION {
        return Some((b"", value));
    }
    let (scheme, token) = value.split_at_checked(BEARER.len())?;
    scheme
        .eq_ignore_ascii_case(BEARER)
        .then_some((BEARER, token))
}

/// The key where its placeholder is, or nothing where upstream wants none. Anywhere else a placeholder
/// stays one.
fn put_in(headers: &mut HeaderMap, key: Option<&Secret>) -> Option<()> {
    for name in [AUTHORIZATION, API_KEY] {
        let Some(value) = headers.get(&name) else {
            continue;
        };
        let Some(key) = key else {
            headers.remove(&name);
            continue;
        };
        let (scheme, _) = split(&name, value.as_bytes())?;
        let real = [scheme, key.expose().as_bytes()].concat();
        let mut real = HeaderValue::from_bytes(&real).ok()?;
        real.set_sensitive(true);
        headers.insert(name, real);
    }
    Some(())
}

/// Upstream's origin and path before what was asked for; where it was asked of does not matter.
fn uri(upstream: &Upstream, path: &str) -> Result<Uri, Refusal> {
    let text = format!("{upstream}{path}");
    text.parse()
        .map_err(|_| refuse(StatusCode::BAD_REQUEST, "that is no path".into()))
}

fn shown(
    key: Option<&Secret>,
    answer: Response<Incoming>,
    place: Place,
) -> Result<Response<Sent>, Refusal> {
    let (mut head, body) = answer.into_parts();
    drop_hops(&mut head.headers);
    let packed = head.headers.get(CONTENT_ENCODING);
    if packed.is_some_and(|how| !how.as_bytes().eq_ignore_ascii_case(b"identity")) {
        let text = "upstream packed its answer although it was asked not to".to_owned();
        return Err(refuse(StatusCode::BAD_GATEWAY, text));
    }
    if let Some(key) = key {
        for value in head.headers.values_mut() {
            let mut bytes = value.as_bytes().to_vec();
            if mask(&mut bytes, key.expose().as_bytes()) {
                *value = HeaderValue::from_bytes(&bytes)
                    .unwrap_or_else(|_| HeaderValue::from_static("***"));
            }
        }
    }
    head.extensions.clear();
    let body = Shown {
        body,
        masking: Some(key.map(|key| Masking::new(key.expose()))),
        silence: Box::pin(sleep(SILENCE)),
        _place: place,
    };
    Ok(Response::from_parts(head, body.boxed_unsync()))
}

const BEARER: &[u8] = b"Bearer ";

fn refuse(status: StatusCode, text: String) -> Refusal {
    Refusal { status, text }
}

/// Takes as long for a wrong guess as for another.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

fn drop_hops(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|names| names.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOPS.iter().chain(&named) {
        headers.remove(name);
    }
}

/// Upstream's answer as it comes, the key masked in it.
struct Shown {
    body: Incoming,
    /// `None`: its end was shown; with `None` in it, there is nothing to mask.
    masking: Option<Option<Masking>>,
    silence: Pin<Box<Sleep>>,
    _place: Place,
}

impl Body for Shown {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        loop {
            let this = &mut *self;
            let frame = match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Pending => {
                    return match this.silence.as_mut().poll(cx) {
                        Poll::Pending => Poll::Pending,
                        Poll::Ready(()) => {
                            Poll::Ready(Some(Err("upstream said nothing for too long".into())))
                        }
                    };
                }
                Poll::Ready(frame) => frame,
            };
            this.silence.as_mut().reset(Instant::now() + SILENCE);
            let shown = match frame {
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(frame)) => match (frame.into_data(), &mut this.masking) {
                    (Ok(data), Some(Some(masking))) => masking.push(&data),
                    (Ok(data), Some(None)) => data.into(),
                    // Trailers: no client of a model's reads them.
                    _ => continue,
                },
                None => match this.masking.take() {
                    Some(Some(mut masking)) => masking.finish(),
                    Some(None) => Vec::new(),
                    None => return Poll::Ready(None),
                },
            };
            if !shown.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(shown.into()))));
            }
        }
    }

    /// Masking changes no length.
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
        net::{TcpListener, TcpStream},
    };

    use dispatch_core::models::KeySource;

    use super::*;
    use crate::held::Origin;

    const KEY: &str = "sk-real-0123456789abcdef";
    const PLACEHOLDER: &str = "dispatch-placeholder-0123";

    async fn upstream() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        (listener, url)
    }

    fn broker(url: &str) -> Arc<Broker> {
        let refusals = Arc::new(Refusals::new(std::io::sink()));
        let row = row(url, Some(KEY), PLACEHOLDER, None);
        Arc::new(Broker::new(vec![row], refusals).unwrap())
    }

    fn row(url: &str, key: Option<&str>, placeholder: &str, origin: Option<Origin>) -> Row {
        Row {
            upstream: url.parse().unwrap(),
            key: key.map(|key| Held::new(key.into(), origin).unwrap()),
            placeholder: placeholder.into(),
            name: "MODEL_KEY".into(),
        }
    }

    /// A client's end of a connection to the broker.
    fn connect(broker: &Arc<Broker>) -> DuplexStream {
        let (client, server) = tokio::io::duplex(1 << 20);
        let broker = Arc::clone(broker);
        tokio::spawn(async move { broker.serve(server).await });
        client
    }

    async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
        let mut read = Vec::new();
        while !read.ends_with(end.as_bytes()) {
            let byte = stream.read_u8().await;
            let byte = byte.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&read)));
            read.push(byte);
        }
        String::from_utf8(read).unwrap()
    }

    async fn accept(listener: &TcpListener) -> (TcpStream, String) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = read_until(&mut stream, "\r\n\r\n").await;
        (stream, head)
    }

    #[tokio::test]
    async fn the_key_goes_where_it_belongs_and_nowhere_else() {
        let (listener, url) = upstream().await;
        let broker = broker(&format!("{url}/base"));
        for (name, shown) in [("authorization", "bearer "), ("x-api-key", "")] {
            let mut client = connect(&broker);
            let request = format!(
                "POST /v1/messages?beta=true HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\
                 {name}: {shown}{PLACEHOLDER}\r\nX-Other: {PLACEHOLDER}\r\nX-Hop: 1\r\n\
                 Connection: keep-alive, x-hop\r\nProxy-Authorization: Basic x\r\n\
                 Accept-Encoding: gzip\r\nContent-Length: 4\r\n\r\nbody"
            );
            client.write_all(request.as_bytes()).await.unwrap();
            let (mut stream, head) = accept(&listener).await;
            let head = head.to_ascii_lowercase();
            let scheme = if shown.is_empty() { "" } else { "bearer " };
            assert!(
                head.starts_with("post /base/v1/messages?beta=true http/1.1\r\n"),
                "{head}"
            );
            assert!(
                head.contains(&format!("\r\n{name}: {scheme}{KEY}\r\n")),
                "{head}"
            );
            assert!(
                head.contains(&format!("\r\nx-other: {PLACEHOLDER}\r\n")),
                "{head}"
            );
            assert!(head.contains("\r\naccept-encoding: identity\r\n"), "{head}");
            assert!(
                head.contains(&format!("host: {}\r\n", &url["http://".len()..])),
                "{head}"
            );
            assert!(
                !head.contains("x-hop") && !head.contains("proxy-auth"),
                "{head}"
            );
            assert_eq!(read_until(&mut stream, "body").await, "body");
        }
    }

    #[tokio::test]
    async fn each_placeholder_has_its_own_upstream_and_one_without_a_key_hears_none() {
        let (keyed, keyed_url) = upstream().await;
        let (open, open_url) = upstream().await;
        let rows = vec![
            row(&keyed_url, Some(KEY), "placeholder-a", None),
            row(&open_url, None, "placeholder-b", None),
        ];
        let refusals = Arc::new(Refusals::new(std::io::sink()));
        let broker = Arc::new(Broker::new(rows, refusals).unwrap());
        let ask = async |placeholder: &str| {
            let mut client = connect(&broker);
            let head = format!("Host: x\r\nAuthorization: Bearer {placeholder}\r\n");
            let request = format!("GET / HTTP/1.1\r\n{head}\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            client
        };
        let _one = ask("placeholder-a").await;
        let (_, head) = accept(&keyed).await;
        assert!(
            head.to_ascii_lowercase().contains(&format!("bearer {KEY}")),
            "{head}"
        );
        let _two = ask("placeholder-b").await;
        let (_, head) = accept(&open).await;
        assert!(
            !head.to_ascii_lowercase().contains("authorization"),
            "{head}"
        );

        // Both at once are nobody's.
        let mut client = connect(&broker);
        let both = "GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer placeholder-a\r\n\
                    X-Api-Key: placeholder-b\r\n\r\n";
        client.write_all(both.as_bytes()).await.unwrap();
        let answer = read_until(&mut client, "}}").await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    }

    #[tokio::test]
    async fn whoever_has_no_placeholder_gets_nothing() {
        let (listener, url) = upstream().await;
        let broker = broker(&url);
        for headers in [
            String::new(),
            format!("Authorization: Bearer {PLACEHOLDER}x\r\n"),
            format!("Authorization: Bearer {}\r\n", &PLACEHOLDER[1..]),
            format!("Authorization: Basic {PLACEHOLDER}\r\n"),
            format!("Authorization: {PLACEHOLDER}\r\n"),
            format!("X-Other: {PLACEHOLDER}\r\n"),
            format!("X-Api-Key: {PLACEHOLDER}\r\nX-Api-Key: other\r\n"),
            format!("X-Api-Key: {PLACEHOLDER}\r\nAuthorization: Bearer other\r\n"),
        ] {
            let mut client = connect(&broker);
            let request = format!("GET / HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            let answer = read_until(&mut client, "}}").await;
            assert!(answer.starts_with("HTTP/1.1 401 "), "{headers}: {answer}");
        }
        let mut client = connect(&broker);
        let request =
            format!("GET /%2e%2E/x HTTP/1.1\r\nHost: x\r\nX-Api-Key: {PLACEHOLDER}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        assert!(
            read_until(&mut client, "}}")
                .await
                .starts_with("HTTP/1.1 401 ")
        );
        let nobody = listener.into_std().unwrap().accept().unwrap_err();
        assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
    }

    #[tokio::test]
    async fn an_answer_comes_as_it_is_said_with_the_key_masked_in_it() {
        let (listener, url) = upstream().await;
        let broker = broker(&url);
        let mut client = connect(&broker);
        let request = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Api-Key: {PLACEHOLDER}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let (mut stream, _) = accept(&listener).await;
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Echo: is {KEY}!\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let head = read_until(&mut client, "\r\n\r\n").await;
        let masked = "*".repeat(KEY.len());
        assert!(head.contains(&format!("x-echo: is {masked}!")), "{head}");
        // Each event is there before the next is said.
        for n in 0..3 {
            let event = format!("data: {n}\n\n");
            let chunk = format!("{:x}\r\n{event}\r\n", event.len());
            stream.write_all(chunk.as_bytes()).await.unwrap();
            read_until(&mut client, &format!("{event}\r\n")).await;
        }
        let (left, right) = KEY.split_at(9);
        let chunk = format!(
            "{:x}\r\n{left}\r\n{:x}\r\n{right}\r\n0\r\n\r\n",
            left.len(),
            right.len()
        );
        stream.write_all(chunk.as_bytes()).await.unwrap();
        let rest = read_until(&mut client, "0\r\n\r\n").await;
        assert!(rest.contains(&masked) && !rest.contains(KEY), "{rest}");
    }

    #[tokio::test]
    async fn a_redirect_is_the_clients_business_and_a_packed_answer_nobodys() {
        let (listener, url) = upstream().await;
        let broker = broker(&url);
        for (answer, status) in [
            (
                "302 Found\r\nLocation: http://evil.test/\r\nContent-Length: 2",
                "302",
            ),
            (
                "200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2",
                "502",
            ),
        ] {
            let mut client = connect(&broker);
            let request = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Api-Key: {PLACEHOLDER}\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            let (mut stream, _) = accept(&listener).await;
            let text = format!("HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n{{}}");
            stream.write_all(text.as_bytes()).await.unwrap();
            let head = read_until(&mut client, "\r\n\r\n").await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        }
    }

    #[tokio::test]
    async fn an_upstream_that_is_not_there_is_told() {
        let (listener, url) = upstream().await;
        drop(listener);
        let mut client = connect(&broker(&url));
        let request = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Api-Key: {PLACEHOLDER}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let answer = read_until(&mut client, "}}").await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert!(answer.contains("onnection refused"), "{answer}");
    }

    #[tokio::test]
    async fn a_key_that_was_renewed_is_taken_up_and_whoever_was_refused_is_told() {
        const NEWER: &str = "sk-newer-0123456789abcdef";
        let (listener, url) = upstream().await;
        let origin = Origin {
            name: "MODEL_KEY".into(),
            from: KeySource::File("/keys/model".into()),
            take: |_, _| Ok(NEWER.into()),
        };
        let refusals = Arc::new(Refusals::new(std::io::sink()));
        let rows = vec![row(&url, Some(KEY), PLACEHOLDER, Some(origin))];
        let broker = Arc::new(Broker::new(rows, refusals).unwrap());
        // What upstream says of renewals is not believed.
        let refused = "401 Unauthorized\r\nDispatch-Key-Renewed: 1";
        let cases = [
            (KEY, refused, true),
            (NEWER, refused, false),
            (NEWER, "200 OK\r\nDispatch-Key-Renewed: 1", false),
        ];
        for (key, says, renewed) in cases {
            let mut client = connect(&broker);
            let request = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Api-Key: {PLACEHOLDER}\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            let (mut stream, head) = accept(&listener).await;
            assert!(head.contains(&format!("x-api-key: {key}\r\n")), "{head}");
            let answer = format!(
                "HTTP/1.1 {says}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{key}",
                key.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
            let head = read_until(&mut client, "\r\n\r\n").await;
            assert_eq!(head.contains(RENEWED_HEADER), renewed, "{head}");
            let masked = "*".repeat(key.len());
            assert_eq!(read_until(&mut client, &masked).await, masked);
        }
    }

    #[test]
    fn a_key_that_no_header_can_carry_is_told_at_once() {
        for key in ["", "two\nlines", "a b", "ключ"] {
            assert!(Held::new(key.into(), None).is_err());
        }
    }
}
