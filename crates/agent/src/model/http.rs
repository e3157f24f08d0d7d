//! One connection to a provider at a time: TLS with the system's certificates, by way of a proxy
//! where the environment names one, kept for the next request.
//! Must not follow a redirect, send a key in the clear to anywhere but this machine's own network, or
//! put a limit on a whole answer: a model may think for long. Silence has a limit.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use dispatch_core::native::Fault;
use http_body_util::Empty;
use hyper::{
    Method, Request, Response, Uri,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    header::{AUTHORIZATION, HOST, HeaderValue},
    rt::{Read, Write},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{net::TcpStream, task::AbortHandle, time::timeout};
use tokio_rustls::TlsConnector;

use super::{ModelError, body::Pieces};

/// An answer's head.
const HEAD_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 128;
const HTTPS_PORT: u16 = 443;
const HTTP_PORT: u16 = 80;

/// Where requests go through, from the environment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proxy {
    https: Option<String>,
    http: Option<String>,
    /// Hosts that are asked directly.
    direct: Vec<String>,
}

impl Proxy {
    /// The variables as programs read them; both spellings are in use.
    pub(crate) fn from(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let either = |name: &str| {
            lookup(&name.to_lowercase())
                .or_else(|| lookup(name))
                .filter(|value| !value.is_empty())
        };
        let all = either("ALL_PROXY");
        let direct = either("NO_PROXY").unwrap_or_default();
        Self {
            https: either("HTTPS_PROXY").or_else(|| all.clone()),
            http: either("HTTP_PROXY").or(all),
            direct: direct
                .split(',')
                .map(|host| host.trim().trim_start_matches('.').to_lowercase())
                .filter(|host| !host.is_empty())
                .collect(),
        }
    }

    fn of(&self, tls: bool, host: &str) -> Option<&str> {
        let host = host.to_lowercase();
        let below = |known: &String| {
            let rest = host.strip_suffix(known.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if self.direct.iter().any(|known| known == "*" || below(known)) {
            return None;
        }
        if tls {
            self.https.as_deref()
        } else {
            self.http.as_deref()
        }
    }
}

/// Who is asked: connections are kept for one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    tls: bool,
    host: String,
    port: u16,
}

impl Place {
    fn of(uri: &Uri) -> Result<Self, ModelError> {
        let bad = |what: &str| ModelError::new(Fault::BadRequest, format!("{uri}: {what}"));
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad("it is neither https nor http")),
        };
        let host = uri.host().ok_or_else(|| bad("it has no host"))?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let usual = if tls { HTTPS_PORT } else { HTTP_PORT };
        let port = uri.port_u16().unwrap_or(usual);
        Ok(Self { tls, host, port })
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Ends with whoever holds it.
struct Connection {
    place: Place,
    sender: SendRequest<Pieces>,
    task: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection to {}", self.place.authority())
    }
}

#[derive(Debug)]
pub(crate) struct Http {
    proxy: Proxy,
    /// Made at the first request that needs it: reading the certificates takes a while.
    tls: Option<Arc<ClientConfig>>,
    kept: Option<Connection>,
    connect_limit: Duration,
    head_limit: Duration,
}

trait Stream: Read + Write + Send + Unpin {}
impl<T: Read + Write + Send + Unpin> Stream for T {}

impl Http {
    pub(crate) fn new(proxy: Proxy, connect_limit: Duration, head_limit: Duration) -> Self {
        Self {
            proxy,
            tls: None,
            kept: None,
            connect_limit,
            head_limit,
        }
    }

    /// The head of the answer; its body comes as it comes.
    pub(crate) async fn post(
        &mut self,
        uri: &Uri,
        mut request: Request<Pieces>,
    ) -> Result<Response<Incoming>, ModelError> {
        let place = Place::of(uri)?;
        let host = uri.authority().map_or("", |authority| authority.as_str());
        let host = host.rsplit('@').next().unwrap_or_default();
        let host = HeaderValue::from_str(host)
            .map_err(|error| ModelError::new(Fault::BadRequest, error.to_string()))?;
        request.headers_mut().insert(HOST, host);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = path_of(uri)?;
        let mut connection = self.connection(place).await?;
        let sent = timeout(self.head_limit, connection.sender.send_request(request)).await;
        let response = sent.map_err(|_| timed_out("no answer began"))?;
        let response = response.map_err(|error| unreachable("read the answer", &error))?;
        self.kept = Some(connection);
        Ok(response)
    }

    /// What is not to be used again: an answer that was not read to its end.
    pub(crate) fn forget(&mut self) {
        self.kept = None;
    }

    async fn connection(&mut self, place: Place) -> Result<Connection, ModelError> {
        if let Some(mut kept) = self.kept.take()
            && kept.place == place
            && !kept.sender.is_closed()
            && kept.sender.ready().await.is_ok()
        {
            return Ok(kept);
        }
        let made = timeout(self.connect_limit, self.connect(&place)).await;
        let stream = made.map_err(|_| timed_out("no connection was made"))??;
        let (sender, task) = shake_hands(stream).await?;
        Ok(Connection {
            place,
            sender,
            task,
        })
    }

    async fn connect(&mut self, place: &Place) -> Result<Box<dyn Stream>, ModelError> {
        let proxy = self.proxy.of(place.tls, &place.host).map(str::to_owned);
        let tcp = match proxy {
            Some(proxy) => tunnel(&proxy, place).await?,
            None => tcp(place).await?,
        };
        if !place.tls {
            return Ok(Box::new(TokioIo::new(tcp)));
        }
        let name = ServerName::try_from(place.host.clone())
            .map_err(|error| ModelError::new(Fault::BadRequest, error.to_string()))?;
        let tls = TlsConnector::from(self.tls()?);
        let stream = tls.connect(name, tcp).await;
        let stream = stream.map_err(|error| unreachable("make it safe with TLS", &error))?;
        Ok(Box::new(TokioIo::new(stream)))
    }

    fn tls(&mut self) -> Result<Arc<ClientConfig>, ModelError> {
        if let Some(tls) = &self.tls {
            return Ok(Arc::clone(tls));
        }
        let network = |text: String| ModelError::new(Fault::Network, text);
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        let (good, _) = roots.add_parsable_certificates(found.certs);
        if good == 0 {
            let why = found
                .errors
                .first()
                .map(ToString::to_string)
                .unwrap_or_default();
            return Err(network(format!(
                "the system has no certificates to trust; install ca-certificates. {why}"
            )));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| network(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::clone(self.tls.insert(Arc::new(config))))
    }
}

async fn tcp(place: &Place) -> Result<TcpStream, ModelError> {
    let stream = TcpStream::connect((place.host.as_str(), place.port)).await;
    let stream = stream
        .map_err(|error| unreachable(&format!("connect to {}", place.authority()), &error))?;
    // A request goes out in pieces, and the last one must not wait for an answer to the first.
    stream
        .set_nodelay(true)
        .map_err(|error| unreachable("set it up", &error))?;
    Ok(stream)
}

/// A proxy that hands everything on: the words of a request for a host, then nothing of its own.
async fn tunnel(proxy: &str, place: &Place) -> Result<TcpStream, ModelError> {
    let with_scheme = if proxy.contains("://") {
        proxy.to_owned()
    } else {
        format!("http://{proxy}")
    };
    let bad = |what: String| ModelError::new(Fault::Network, format!("use the proxy: {what}"));
    let uri: Uri = with_scheme
        .parse()
        .map_err(|_| bad("it is no address".into()))?;
    if uri.scheme_str() != Some("http") {
        return Err(bad("only http:// proxies are known".into()));
    }
    let stream = tcp(&Place::of(&uri)?).await?;
    let (mut sender, connection) = handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|error| unreachable("speak to the proxy", &error))?;
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::CONNECT;
    let authority = place.authority();
    *request.uri_mut() = authority.parse().map_err(|_| bad("no such host".into()))?;
    let host = HeaderValue::from_str(&authority).map_err(|error| bad(error.to_string()))?;
    request.headers_mut().insert(HOST, host);
    let login = uri
        .authority()
        .and_then(|all| all.as_str().rsplit_once('@'));
    if login.is_some() {
        return Err(bad("a name and password for it are not supported".into()));
    }
    let served = connection.without_shutdown();
    let asked = sender.send_request(request);
    tokio::pin!(served, asked);
    // It answers before it hands anything on; and when it is done with HTTP the rest is ours.
    let (parts, answer) = tokio::join!(served, async {
        let answer = asked.await;
        drop(sender);
        answer
    });
    let answer = answer.map_err(|error| unreachable("ask the proxy", &error))?;
    if !answer.status().is_success() {
        let status = answer.status();
        return Err(bad(format!(
            "it would not connect to {authority}: {status}"
        )));
    }
    let parts = parts.map_err(|error| unreachable("ask the proxy", &error))?;
    if !parts.read_buf.is_empty() {
        return Err(bad("it said more than it was asked".into()));
    }
    Ok(parts.io.into_inner())
}

async fn shake_hands(
    stream: Box<dyn Stream>,
) -> Result<(SendRequest<Pieces>, AbortHandle), ModelError> {
    let (sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .handshake(stream)
        .await
        .map_err(|error| unreachable("speak to the provider", &error))?;
    let task = tokio::spawn(async move {
        match connection.await {
            // Whoever waits for the answer hears of it.
            Ok(()) | Err(_) => {}
        }
    });
    Ok((sender, task.abort_handle()))
}

fn path_of(uri: &Uri) -> Result<Uri, ModelError> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    path.parse()
        .map_err(|_| ModelError::new(Fault::BadRequest, format!("{uri}: it has no path")))
}

fn timed_out(what: &str) -> ModelError {
    ModelError::new(Fault::Timeout, what)
}

/// The chain of causes: the outermost says the least.
pub(super) fn unreachable(doing: &str, error: &dyn Error) -> ModelError {
    let mut text = format!("{doing}: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    ModelError::new(Fault::Network, text)
}

/// A key as a header has it, hidden from whoever prints the request.
pub(super) fn secret_header(value: &str) -> Result<HeaderValue, ModelError> {
    let mut header = HeaderValue::from_str(value)
        .map_err(|_| ModelError::new(Fault::Key, "the key holds what no header can carry"))?;
    header.set_sensitive(true);
    Ok(header)
}

pub(super) fn bearer(key: &str) -> Result<(hyper::header::HeaderName, HeaderValue), ModelError> {
    Ok((AUTHORIZATION, secret_header(&format!("Bearer {key}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(pairs: &[(&str, &str)]) -> Proxy {
        Proxy::from(|name| {
            let found = pairs.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_says_which_way() {
        let both = proxy(&[
            ("HTTPS_PROXY", "http://127.0.0.1:9"),
            ("NO_PROXY", "localhost, .corp.example,10.0.0.1"),
        ]);
        assert_eq!(both.of(true, "api.example"), Some("http://127.0.0.1:9"));
        assert_eq!(both.of(false, "api.example"), None);
        for direct in ["localhost", "a.corp.example", "CORP.example", "10.0.0.1"] {
            assert_eq!(both.of(true, direct), None, "{direct}");
        }
        assert!(both.of(true, "notcorp.example").is_some());
        let all = proxy(&[("ALL_PROXY", "p:1"), ("https_proxy", ""), ("NO_PROXY", "*")]);
        assert_eq!(all.of(true, "x"), None);
        let lower = proxy(&[("https_proxy", "a:1"), ("HTTPS_PROXY", "b:1")]);
        assert_eq!(lower.of(true, "x"), Some("a:1"));
    }

    #[test]
    fn places() {
        let place = |text: &str| Place::of(&text.parse().unwrap());
        assert_eq!(
            place("https://a.example/x").unwrap().authority(),
            "a.example:443"
        );
        assert_eq!(place("http://[::1]:8/x").unwrap().authority(), "[::1]:8");
        assert!(place("ftp://a/").is_err());
    }
}
