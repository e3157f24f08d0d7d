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
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{Busy, Ctx, app};
use crate::settings::{Paths, Settings};

/// How long an idle engine waits for the next request: time for a client that found the socket.
const LINGER: Duration = Duration::from_secs(2);
/// How long the last answers may take to be read.
const DRAIN: Duration = Duration::from_secs(3);
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
    close: Arc<Notify>,
    busy: Busy,
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
        let engine = Engine::open(settings.engine()).await?;
        let socket = settings.paths.socket();
        let listener = bind(&settings.paths).map_err(|source| ServeError::Socket {
            path: socket.clone(),
            source,
        })?;
        let (stop, close, busy) = (Arc::default(), Arc::<Notify>::default(), Busy::default());
        let router = app(Ctx {
            engine: engine.clone(),
            config: Arc::new(settings.config.clone()),
            data: settings.paths.data.clone(),
            stop: Arc::clone(&stop),
            busy: busy.clone(),
        });
        let closing = Arc::clone(&close);
        let serving = tokio::spawn(async move {
            axum::serve(OwnOnly(listener).tap_io(|_| {}), router)
                .with_graceful_shutdown(async move { closing.notified().await })
                .await
        });
        Ok(Self {
            engine,
            socket,
            stop,
            close,
            busy,
            serving,
        })
    }

    /// Resolves when somebody asked for the end over the socket.
    pub(crate) async fn stopped(&self) {
        self.stop.notified().await;
    }

    /// Resolves when nothing is live, queued or paused, and nobody is being served.
    pub(crate) async fn idle(&self) {
        loop {
            self.engine.idle().await;
            let (_, before) = self.busy.count();
            sleep(LINGER).await;
            let (now, after) = self.busy.count();
            if now == 0 && before == after {
                return;
            }
        }
    }

    /// Ends the engine, lets the last answers out and takes the socket away. Jobs live on.
    pub(crate) async fn close(self) -> Result<(), dispatch_engine::view::VerbError> {
        // First, so that whoever comes now starts an engine of its own as soon as the lock is free.
        let gone = fs::remove_file(&self.socket);
        let ended = self.engine.shutdown().await;
        self.close.notify_one();
        // A reader that does not read is cut off; it can come back by its position.
        let drained = timeout(DRAIN, self.serving).await;
        drop((gone, drained));
        ended
    }
}
