//! The engine with its doors: the person's socket, the agents' socket and, where one was asked for, an
//! address; served until told otherwise.
//! Must not be started without the engine's lock: that is what makes an old socket file stale.

use std::{fs, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use dispatch_core::{causes::chain, server::Tls};
use dispatch_engine::engine::{Engine, OpenError};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    Busy, Ctx,
    door::{Door, Keys, Names},
    listen::{self, Listener},
    routes::with_mcp,
    tokens::Tokens,
};
use crate::{
    cli::out::aside,
    mcp::server::{PRODUCT, Tables},
    notify::{self, Hooks},
    settings::{Paths, Settings},
};

/// How long an idle engine waits for the next request: time for a client that found the socket.
const LINGER: Duration = Duration::from_secs(2);
/// How long the last answers may take to be read.
const DRAIN: Duration = Duration::from_secs(3);
/// How long a person at their prompt waits for hooks; the rest is the next engine's.
const LAST_NOTICES: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("make the socket {path}")]
    Socket { path: PathBuf, source: io::Error },
    #[error("listen at {at}")]
    Listen { at: SocketAddr, source: io::Error },
    #[error(
        "listen at {at}: other machines reach it, and tokens would cross the network in the clear; \
         set server.tls_cert and server.tls_key, or say --insecure-plain-http \
         (server.insecure_plain_http)"
    )]
    Exposed { at: SocketAddr },
    #[error("use the certificate {path}: {what}")]
    Certificate { path: PathBuf, what: String },
}

/// Where else to listen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Net {
    /// Instead of what the configuration says.
    pub(crate) listen: Option<SocketAddr>,
    /// The explicit word, beside the configuration's.
    pub(crate) insecure_plain_http: bool,
    /// Serve the sockets alone, and say so, when the configured address cannot be had.
    pub(crate) or_without: bool,
    /// Whoever says `serve` later takes its place.
    pub(crate) on_demand: bool,
}

#[derive(Debug)]
pub(crate) struct Server {
    engine: Engine,
    sockets: [PathBuf; 2],
    url: Option<String>,
    stop: Arc<Notify>,
    close: watch::Sender<bool>,
    busy: Busy,
    hooks: Hooks,
    serving: JoinSet<()>,
}

/// A listener on the network, what it answers to, and its address for a client.
async fn network(
    settings: &Settings,
    net: Net,
) -> Result<Option<(Listener, Door, String)>, ServeError> {
    let config = &settings.config.server;
    let Some(at) = net.listen.or(config.listen) else {
        return Ok(None);
    };
    if config.is_exposed(at) && !net.insecure_plain_http {
        return Err(ServeError::Exposed { at });
    }
    let acceptor = config.tls.as_ref().map(acceptor).transpose()?;
    let failed = |source| ServeError::Listen { at, source };
    let listener = TcpListener::bind(at).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let names = Names::new(bound, &config.hosts, &config.origins, acceptor.is_some());
    let url = url(bound, acceptor.is_some(), &config.hosts);
    let door = Door::Net(Arc::new(names));
    Ok(Some(match acceptor {
        Some(acceptor) => (Listener::Tls(listener, acceptor), door, url),
        None => (Listener::Tcp(listener), door, url),
    }))
}

/// For a client: by the name that a certificate is for, if there is one.
fn url(bound: SocketAddr, tls: bool, hosts: &[String]) -> String {
    let scheme = if tls { "https" } else { "http" };
    let port = bound.port();
    match hosts.first().filter(|_| tls) {
        Some(host) if host.contains(':') => format!("{scheme}://{host}"),
        Some(host) => format!("{scheme}://{host}:{port}"),
        None if bound.ip().is_unspecified() => format!("{scheme}://localhost:{port}"),
        None => format!("{scheme}://{bound}"),
    }
}

/// Our own certificate and nothing else: no client certificates, no old TLS, one protocol.
fn acceptor(tls: &Tls) -> Result<TlsAcceptor, ServeError> {
    let failed = |path: &PathBuf| {
        let path = path.clone();
        move |what: String| ServeError::Certificate { path, what }
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&tls.cert)
        .and_then(Iterator::collect)
        .map_err(|error| failed(&tls.cert)(error.to_string()))?;
    if chain.is_empty() {
        return Err(failed(&tls.cert)("there is none in it".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .map_err(|error| failed(&tls.key)(error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    let mut config = config.map_err(|error| failed(&tls.cert)(error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The person's socket and the agents', which has a directory of its own: that can be mounted alone.
fn sockets(paths: &Paths) -> Result<[(Listener, Door, PathBuf); 2], ServeError> {
    let make = |dir: PathBuf, name: &str, door: Door| {
        let path = dir.join(name);
        match listen::socket(&dir, name) {
            Ok(listener) => Ok((listener, door, path)),
            Err(source) => Err(ServeError::Socket { path, source }),
        }
    };
    Ok([
        make(paths.run.clone(), Paths::SOCKET, Door::Own)?,
        make(paths.agents(), Paths::AGENTS_SOCKET, Door::Agents)?,
    ])
}

impl Server {
    /// Takes the data directory and serves it.
    pub(crate) async fn open(settings: &Settings, net: Net) -> Result<Self, ServeError> {
        Self::open_with(settings, net, PRODUCT).await
    }

    /// The same with other tables of MCP.
    pub(crate) async fn open_with(
        settings: &Settings,
        net: Net,
        tables: &'static Tables,
    ) -> Result<Self, ServeError> {
        let before = notify::before(settings);
        let engine = Engine::open(settings.engine()).await?;
        let hooks = Hooks::start(settings, &engine, before);
        let network = match network(settings, net).await {
            Err(error) if net.or_without => {
                aside(&format!("warning: {}", chain(&error)));
                None
            }
            other => other?,
        };
        let [own, agents] = sockets(&settings.paths)?;
        let (close, closing) = watch::channel(false);
        let mut ctx = Ctx::new(engine.clone(), settings, closing.clone());
        ctx.on_demand = net.on_demand;
        let (stop, busy) = (Arc::clone(&ctx.stop), ctx.busy.clone());
        let keys = Arc::new(Keys::new(Tokens::of(&settings.paths.data), &ctx));
        let routes = with_mcp(ctx, tables);
        let mut serving = JoinSet::new();
        let mut serve = |listener: Listener, door: Door| {
            let (keys, routes, closing) = (Arc::clone(&keys), routes.clone(), closing.clone());
            serving.spawn(listener.serve(door, keys, routes, closing));
        };
        let sockets = [own.2, agents.2];
        serve(own.0, own.1);
        serve(agents.0, agents.1);
        let mut url = None;
        if let Some((listener, door, at)) = network {
            serve(listener, door);
            url = Some(at);
        }
        Ok(Self {
            engine,
            sockets,
            url,
            stop,
            close,
            busy,
            hooks,
            serving,
        })
    }

    /// Where it is reached on the network.
    pub(crate) fn url(&self) -> Option<&str> {
        self.url.as_deref()
    }

    /// Resolves when somebody asked for the end over the socket.
    pub(crate) async fn failed(&self) -> String {
        self.engine.failed().await
    }

    pub(crate) async fn stopped(&self) {
        self.stop.notified().await;
    }

    /// Resolves when nothing is live, queued or paused, everybody has been told of it, and nobody is
    /// being served.
    pub(crate) async fn idle(&self) {
        loop {
            self.engine.idle().await;
            self.hooks.told_all().await;
            let (_, before) = self.busy.count();
            sleep(LINGER).await;
            let (now, after) = self.busy.count();
            if now == 0 && before == after {
                return;
            }
        }
    }

    /// Time for notices of what has just happened, where nobody waits for idleness.
    pub(crate) async fn tell_hooks(&self) {
        match timeout(LAST_NOTICES, self.hooks.told_all()).await {
            Ok(()) | Err(_) => {}
        }
    }

    /// Ends the engine, lets the last answers out and takes the sockets away. Jobs live on.
    pub(crate) async fn close(mut self) -> Result<(), dispatch_engine::view::VerbError> {
        // First, so that whoever comes now starts an engine of its own as soon as the lock is free.
        let gone = self.sockets.map(fs::remove_file);
        self.hooks.close().await;
        let ended = self.engine.shutdown().await;
        self.close.send_replace(true);
        // A reader that does not read is cut off; it can come back by its position.
        let drained = timeout(DRAIN, async {
            while self.serving.join_next().await.is_some() {}
        });
        let drained = drained.await;
        drop((gone, drained));
        ended
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt as _};

    use super::*;
    use crate::{
        api::{Health, request, task::Task},
        client::{Client, ClientError, Heard},
        settings::Env,
    };

    fn settings(home: &std::path::Path) -> Settings {
        // The machine's own PATH: the engine refuses an old git, and the newer one may lie anywhere.
        let path = Env::read().text("PATH").unwrap().to_owned();
        let env = Env::of(&[("DISPATCH_HOME", home.to_str().unwrap()), ("PATH", &path)]);
        Settings::from_env(env, home).unwrap()
    }

    fn code<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> (u16, String) {
        match answer {
            Err(ClientError::Refused(problem)) => (problem.status, problem.code),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_whole_door_without_a_job() {
        let home = tempfile::tempdir().unwrap();
        let settings = settings(home.path());
        let server = Server::open(&settings, Net::default()).await.unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(settings.paths.run.clone()), 0o700);
        assert_eq!(mode(settings.paths.socket()), 0o600);
        assert_eq!(mode(settings.paths.agents()), 0o700);
        let agents = settings.paths.agents().join(Paths::AGENTS_SOCKET);
        assert_eq!(mode(agents), 0o600);
        assert!(
            fs::metadata(settings.paths.socket())
                .unwrap()
                .file_type()
                .is_socket()
        );

        let client = Client::new(settings.paths.clone());
        let health: Health = client.get("/v1/health").await.unwrap();
        assert_eq!(
            (health.pid, health.data),
            (std::process::id(), settings.paths.data.clone())
        );
        assert_eq!(client.get::<Vec<Task>>("/v1/tasks").await.unwrap(), []);
        assert_eq!(
            client.get::<Vec<String>>("/v1/needs").await.unwrap(),
            [""; 0]
        );

        assert_eq!(
            code(client.get::<Task>("/v1/nope").await),
            (404, "no_route".into())
        );
        let none = client.get::<Task>("/v1/tasks/00000000000000aa").await;
        assert_eq!(code(none), (404, "no_such_task".into()));
        let prefix = client.get::<Task>("/v1/tasks/3f").await;
        assert_eq!(code(prefix), (404, "no_such_task".into()));
        let unknown = serde_json::json!({"task": "x", "repo": "/r", "agent": "nope"});
        let refused = client.post::<_, Task>("/v1/tasks", &unknown).await;
        assert_eq!(code(refused), (400, "unknown_agent".into()));
        // Where files can come along there is room for them, and no more.
        for (path, bytes) in [
            ("/v1/tasks", 40 << 20),
            ("/v1/tasks/00000000000000aa/answer", 5 << 20),
        ] {
            let long = serde_json::json!({"task": "x".repeat(bytes), "repo": "/r"});
            let refused = client.post::<_, Task>(path, &long).await;
            // A body that is refused half-way may also be seen as a cut connection.
            assert!(
                matches!(&refused, Err(ClientError::Refused(p)) if p.status == 413)
                    || matches!(&refused, Err(ClientError::Lost(_))),
                "{refused:?}"
            );
        }

        let freeze = request::Freeze {
            frozen: true,
            ..Default::default()
        };
        client.post::<_, ()>("/v1/freeze", &freeze).await.unwrap();
        let mut events = client.events(0, None).await.unwrap();
        loop {
            match timeout(DRAIN, events.next())
                .await
                .unwrap()
                .unwrap()
                .unwrap()
            {
                Heard::Event(event) if event.kind == "frozen_set" => break,
                _ => {}
            }
        }
        client
            .post::<_, ()>("/v1/shutdown", &serde_json::json!({}))
            .await
            .unwrap();
        server.stopped().await;
        server.close().await.unwrap();
        // Followers see the end.
        while timeout(DRAIN, events.next())
            .await
            .unwrap()
            .unwrap()
            .is_some()
        {}
        assert!(!settings.paths.socket().exists());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_data_directory_has_one_engine() {
        let home = tempfile::tempdir().unwrap();
        let settings = settings(home.path());
        let server = Server::open(&settings, Net::default()).await.unwrap();
        let second = Server::open(&settings, Net::default()).await;
        assert!(matches!(
            second,
            Err(ServeError::Open(OpenError::Busy { .. }))
        ));
        assert!(
            settings.paths.socket().exists(),
            "the first one's socket is left alone"
        );
        server.close().await.unwrap();
    }
}
