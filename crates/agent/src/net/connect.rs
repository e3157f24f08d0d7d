//! One connection: TLS with the system's certificates, by way of a proxy where the environment names
//! one. Whoever asks for what a stranger wrote has the addresses looked at first.
//! Must not follow a redirect, and must not connect to another address than the one it looked at.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use dispatch_core::network::{self, AllowList, Refused, Target};
use http_body_util::Empty;
use hyper::{
    Method, Request, Uri,
    body::Body,
    client::conn::http1::{SendRequest, handshake},
    header::{HOST, HeaderValue},
    rt::{Read, Write},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    net::{TcpStream, lookup_host},
    task::AbortHandle,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{Host, NetError, NetFault, Proxy};

/// An answer's head.
const HEAD_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 128;

/// Which addresses may be connected to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Guard<'a> {
    /// The address is written in the settings, or somebody else decides.
    Open,
    /// What is public, and what is listed.
    Public(&'a AllowList),
}

trait Stream: Read + Write + Send + Unpin {}
impl<T: Read + Write + Send + Unpin> Stream for T {}

/// Ends with whoever holds it.
pub(crate) struct Connection<B> {
    pub(crate) host: Host,
    pub(crate) sender: SendRequest<B>,
    task: AbortHandle,
}

impl<B> Drop for Connection<B> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<B> fmt::Debug for Connection<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection to {}", self.host)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Connector {
    proxy: Proxy,
    /// Made at the first request that needs it: reading the certificates takes a while.
    tls: Arc<OnceLock<Arc<ClientConfig>>>,
    limit: Duration,
}

impl Connector {
    pub(crate) fn new(proxy: Proxy, limit: Duration) -> Self {
        let tls = Arc::default();
        Self { proxy, tls, limit }
    }

    pub(crate) async fn connect<B>(
        &self,
        host: Host,
        guard: Guard<'_>,
    ) -> Result<Connection<B>, NetError>
    where
        B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        let made = timeout(self.limit, self.stream(&host, guard)).await;
        let stream = made.map_err(|_| NetError::timed_out("no connection was made"))??;
        let (sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .handshake(stream)
            .await
            .map_err(|error| NetError::unreachable("speak to the server", &error))?;
        let task = tokio::spawn(async move {
            match connection.await {
                // Whoever waits for the answer hears of it.
                Ok(()) | Err(_) => {}
            }
        });
        let task = task.abort_handle();
        Ok(Connection { host, sender, task })
    }

    async fn stream(&self, host: &Host, guard: Guard<'_>) -> Result<Box<dyn Stream>, NetError> {
        let tcp = match self.proxy.of(host.tls, &host.name) {
            Some(proxy) => {
                look_at_name(host, guard)?;
                tunnel(proxy, host).await?
            }
            None => tcp(host, guard).await?,
        };
        if !host.tls {
            return Ok(Box::new(TokioIo::new(tcp)));
        }
        let name = ServerName::try_from(host.name.clone())
            .map_err(|error| NetError::new(NetFault::Request, error.to_string()))?;
        let tls = TlsConnector::from(self.tls()?);
        let stream = tls.connect(name, tcp).await;
        let stream =
            stream.map_err(|error| NetError::unreachable("make it safe with TLS", &error))?;
        Ok(Box::new(TokioIo::new(stream)))
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, NetError> {
        if let Some(tls) = self.tls.get() {
            return Ok(Arc::clone(tls));
        }
        let network = |text: String| NetError::new(NetFault::Network, text);
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
        // Whoever was quicker made the same one.
        Ok(Arc::clone(self.tls.get_or_init(|| Arc::new(config))))
    }
}

fn refused(host: &Host, why: impl fmt::Display) -> NetError {
    NetError::new(
        NetFault::Refused,
        format!("{host} may not be reached: {why}; [web] private lists what may be all the same"),
    )
}

/// What can be seen without asking for an address: somebody else will do that.
pub(crate) fn look_at_name(host: &Host, guard: Guard<'_>) -> Result<(), NetError> {
    let Guard::Public(private) = guard else {
        return Ok(());
    };
    let target: Target = host
        .to_string()
        .parse()
        .map_err(|why: Refused| refused(host, why))?;
    match target.host {
        network::Host::Address(address) => private
            .resolved(address, host.port)
            .map_err(|_| refused(host, "it is not public")),
        network::Host::Name(name) => {
            let name = name.as_str();
            let own = [".localhost", ".local", ".internal"];
            let is_own = name == "localhost" || own.iter().any(|end| name.ends_with(end));
            let listed = private.target(&Target {
                host: network::Host::Name(name.parse().map_err(|why| refused(host, why))?),
                port: host.port,
            });
            if is_own && listed.is_err() {
                return Err(refused(host, "its name is not public"));
            }
            Ok(())
        }
    }
}

async fn tcp(host: &Host, guard: Guard<'_>) -> Result<TcpStream, NetError> {
    let doing = format!("connect to {host}");
    let unreachable = |error: std::io::Error| NetError::unreachable(&doing, &error);
    let stream = match guard {
        Guard::Open => TcpStream::connect((host.name.as_str(), host.port)).await,
        Guard::Public(private) => {
            let found = lookup_host((host.name.as_str(), host.port)).await;
            let found: Vec<SocketAddr> = found.map_err(unreachable)?.collect();
            look_at(host, found.iter().map(SocketAddr::ip), private)?;
            TcpStream::connect(&found[..]).await
        }
    };
    let stream = stream.map_err(unreachable)?;
    // A request goes out in pieces, and the last one must not wait for an answer to the first.
    stream
        .set_nodelay(true)
        .map_err(|error| NetError::unreachable("set it up", &error))?;
    Ok(stream)
}

/// All that a name stands for: with one bad address among them, it is not clear which one is meant.
fn look_at(
    host: &Host,
    addresses: impl Iterator<Item = IpAddr>,
    private: &AllowList,
) -> Result<(), NetError> {
    for address in addresses {
        // An IPv4 address may be written as one of IPv6.
        let address = address.to_canonical();
        let looked = private.resolved(address, host.port);
        looked.map_err(|_| refused(host, format_args!("{address} is not public")))?;
    }
    Ok(())
}

/// A proxy that hands everything on: the words of a request for a host, then nothing of its own.
async fn tunnel(proxy: &str, host: &Host) -> Result<TcpStream, NetError> {
    let with_scheme = if proxy.contains("://") {
        proxy.to_owned()
    } else {
        format!("http://{proxy}")
    };
    let bad = |what: String| NetError::new(NetFault::Network, format!("use the proxy: {what}"));
    let uri: Uri = with_scheme
        .parse()
        .map_err(|_| bad("it is no address".into()))?;
    if uri.scheme_str() != Some("http") {
        return Err(bad("only http:// proxies are known".into()));
    }
    let stream = tcp(&Host::of(&uri)?, Guard::Open).await?;
    let (mut sender, connection) = handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|error| NetError::unreachable("speak to the proxy", &error))?;
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::CONNECT;
    let authority = host.to_string();
    *request.uri_mut() = authority.parse().map_err(|_| bad("no such host".into()))?;
    let named = HeaderValue::from_str(&authority).map_err(|error| bad(error.to_string()))?;
    request.headers_mut().insert(HOST, named);
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
    let answer = answer.map_err(|error| NetError::unreachable("ask the proxy", &error))?;
    if !answer.status().is_success() {
        let status = answer.status();
        return Err(bad(format!(
            "it would not connect to {authority}: {status}"
        )));
    }
    let parts = parts.map_err(|error| NetError::unreachable("ask the proxy", &error))?;
    if !parts.read_buf.is_empty() {
        return Err(bad("it said more than it was asked".into()));
    }
    Ok(parts.io.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(url: &str) -> Host {
        Host::of(&url.parse().unwrap()).unwrap()
    }

    fn list(entries: &[&str]) -> AllowList {
        let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
        entries.try_into().unwrap()
    }

    #[test]
    fn what_a_name_stands_for_is_looked_at_as_a_whole() {
        let none = list(&[]);
        let local = list(&["10.0.0.0/8:80"]);
        let looked = |addresses: &[&str], private: &AllowList| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap());
            look_at(&host("http://a.example"), addresses, private)
        };
        assert!(looked(&["93.184.215.14", "2606:4700::1"], &none).is_ok());
        for bad in [
            "127.0.0.1",
            "10.1.2.3",
            "192.168.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "::1",
            "::ffff:127.0.0.1",
            "fe80::1",
            "fd00::1",
            "64:ff9b::7f00:1",
        ] {
            let error = looked(&["93.184.215.14", bad], &none).unwrap_err();
            assert_eq!(error.fault, NetFault::Refused, "{bad}");
        }
        assert!(looked(&["10.1.2.3"], &local).is_ok());
        assert!(looked(&["::ffff:10.1.2.3"], &local).is_ok());
        assert!(looked(&["10.1.2.3", "127.0.0.1"], &local).is_err());
    }

    #[test]
    fn a_proxy_is_not_asked_for_what_is_written_down_as_private() {
        let none = list(&[]);
        let looked = |url: &str, private| look_at_name(&host(url), Guard::Public(private));
        assert!(looked("https://a.example/x", &none).is_ok());
        for bad in [
            "http://localhost/",
            "http://a.localhost:8/",
            "http://printer.local/",
            "http://metadata.google.internal/",
            "http://127.0.0.1/",
            "http://[::1]/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f.1/",
        ] {
            assert!(looked(bad, &none).is_err(), "{bad}");
        }
        assert!(looked("http://localhost:8080/", &list(&["localhost:8080"])).is_ok());
        assert!(look_at_name(&host("http://127.0.0.1/"), Guard::Open).is_ok());
    }
}
