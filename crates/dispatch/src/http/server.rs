//! The socket: ours alone (0700 directory, 0600 file), peers checked, served until told otherwise.
//! Must not be started without the engine's lock: that is what makes an old socket file stale.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use axum::serve::{Listener, ListenerExt};
use dispatch_engine::{
    engine::{Engine, OpenError},
    jobdir::socket_path,
};
use tokio::{
    net::{UnixListener, UnixStream, unix::SocketAddr},
    sync::{Notify, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{Busy, Ctx, app};
use crate::{
    notify::{self, Hooks},
    settings::{Paths, Settings},
};

/// How long an idle engine waits for the next request: time for a client that found the socket.
const LINGER: Duration = Duration::from_secs(2);
/// How long the last answers may take to be read.
const DRAIN: Duration = Duration::from_secs(3);
/// How long a person at their prompt waits for hooks; the rest is the next engine's.
const LAST_NOTICES: Duration = Duration::from_secs(10);
/// After an accept that failed, for want of descriptors for instance.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("make the socket {path}")]
    Socket { path: PathBuf, source: io::Error },
}

#[derive(Debug)]
pub(crate) struct Server {
    engine: Engine,
    socket: PathBuf,
    stop: Arc<Notify>,
    close: watch::Sender<bool>,
    busy: Busy,
    hooks: Hooks,
    serving: JoinHandle<io::Result<()>>,
}

/// Lets in only who we are ourselves.
struct OwnOnly(UnixListener);

impl Listener for OwnOnly {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        let us = rustix::process::geteuid().as_raw();
        loop {
            match self.0.accept().await {
                Ok((stream, addr)) => {
                    if stream.peer_cred().is_ok_and(|peer| peer.uid() == us) {
                        return (stream, addr);
                    }
                }
                Err(_) => sleep(ACCEPT_AGAIN).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

fn bind(paths: &Paths) -> io::Result<UnixListener> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&paths.run)?;
    fs::set_permissions(&paths.run, Permissions::from_mode(0o700))?;
    // We have the engine's lock, so whoever made it is dead.
    match fs::remove_file(paths.socket()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let (path, handle) = socket_path(&paths.run, Paths::SOCKET)?;
    let listener = UnixListener::bind(path)?;
    drop(handle);
    fs::set_permissions(paths.socket(), Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Server {
    /// Takes the data directory and serves it.
    pub(crate) async fn open(settings: &Settings) -> Result<Self, ServeError> {
        let before = notify::before(settings);
        let engine = Engine::open(settings.engine()).await?;
        let hooks = Hooks::start(settings, &engine, before);
        let socket = settings.paths.socket();
        let listener = bind(&settings.paths).map_err(|source| ServeError::Socket {
            path: socket.clone(),
            source,
        })?;
        let (stop, busy) = (Arc::default(), Busy::default());
        let (close, mut closing) = watch::channel(false);
        let router = app(Ctx {
            engine: engine.clone(),
            config: Arc::new(settings.config.clone()),
            config_file: settings.paths.config.clone(),
            data: settings.paths.data.clone(),
            stop: Arc::clone(&stop),
            closing: closing.clone(),
            busy: busy.clone(),
        });
        let serving = tokio::spawn(async move {
            axum::serve(OwnOnly(listener).tap_io(|_| {}), router)
                .with_graceful_shutdown(async move { drop(closing.changed().await) })
                .await
        });
        Ok(Self {
            engine,
            socket,
            stop,
            close,
            busy,
            hooks,
            serving,
        })
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

    /// Ends the engine, lets the last answers out and takes the socket away. Jobs live on.
    pub(crate) async fn close(self) -> Result<(), dispatch_engine::view::VerbError> {
        // First, so that whoever comes now starts an engine of its own as soon as the lock is free.
        let gone = fs::remove_file(&self.socket);
        self.hooks.close().await;
        let ended = self.engine.shutdown().await;
        self.close.send_replace(true);
        // A reader that does not read is cut off; it can come back by its position.
        let drained = timeout(DRAIN, self.serving).await;
        drop((gone, drained));
        ended
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileTypeExt;

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
        let server = Server::open(&settings).await.unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(settings.paths.run.clone()), 0o700);
        assert_eq!(mode(settings.paths.socket()), 0o600);
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
                Heard::Event(_) | Heard::Live(_) => {}
            }
        }
        client
            .post::<_, ()>("/v1/shutdown", &serde_json::json!({}))
            .await
            .unwrap();
        server.stopped().await;
        server.close().await.unwrap();
        let end = timeout(DRAIN, events.next()).await.unwrap().unwrap();
        assert_eq!(end, None, "followers see the end");
        assert!(!settings.paths.socket().exists());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_data_directory_has_one_engine() {
        let home = tempfile::tempdir().unwrap();
        let settings = settings(home.path());
        let server = Server::open(&settings).await.unwrap();
        let second = Server::open(&settings).await;
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
