//! Listeners: sockets and addresses, the connections they take, and how long each may take.
//! Must not look into a request: a connection's door does.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
    pin::{Pin, pin},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, middleware::from_fn_with_state};
use dispatch_engine::jobdir::socket_path;
use hyper::{
    Request, StatusCode,
    body::{Bytes, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{Semaphore, watch},
    task::{AbortHandle, JoinSet},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tower::{Layer as _, ServiceExt as _};

use super::{
    door::{Door, Guard, Keys, Seat, guard},
    guesses::Peer,
    stall::{Patient, STALL_TIME},
    strict::{HEAD_BYTES_MAX, Strict},
};

const HEADERS_MAX: usize = 64;
/// After an accept that failed, for want of descriptors for instance.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How many newcomers are noted before those that have sat down are struck off.
const NEWCOMERS_LOOK: usize = 1024;

/// What a connection may take of time, and a listener of connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// For the whole head of a request, and for the next one on a connection that stays open.
    pub(crate) head: Duration,
    /// For the whole body: the largest that a route takes, over a slow line.
    pub(crate) body: Duration,
    pub(crate) tls: Duration,
    /// While the other side takes nothing of what is ready for it.
    pub(crate) stall: Duration,
    /// Of one listener; more wait in the system's queue, and push out who has not said who they are.
    pub(crate) connections: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(15),
            body: Duration::from_secs(120),
            tls: Duration::from_secs(10),
            stall: STALL_TIME,
            connections: 512,
        }
    }
}

/// Who listens.
pub(crate) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
    Tls(TcpListener, TlsAcceptor),
}

/// A connection before anything was read from it.
enum Raw {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(TcpStream, TlsAcceptor),
}

/// Bytes both ways, whatever carries them.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The socket `name` in `dir`, which is made ours alone. Only the holder of the engine's lock may
/// ask: that is what makes an old socket stale.
pub(crate) fn socket(dir: &Path, name: &str) -> io::Result<Listener> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    match fs::remove_file(dir.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let (path, handle) = socket_path(dir, name)?;
    let listener = UnixListener::bind(path)?;
    drop(handle);
    fs::set_permissions(dir.join(name), Permissions::from_mode(0o600))?;
    Ok(Listener::Unix(listener))
}

impl Listener {
    async fn accept(&self) -> io::Result<(Raw, Peer)> {
        Ok(match self {
            Self::Unix(listener) => {
                let us = rustix::process::geteuid().as_raw();
                loop {
                    let (stream, _) = listener.accept().await?;
                    if stream.peer_cred().is_ok_and(|peer| peer.uid() == us) {
                        break (Raw::Unix(stream), Peer::Socket);
                    }
                }
            }
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                (Raw::Tcp(stream), Peer::Net(address.ip()))
            }
            Self::Tls(listener, acceptor) => {
                let (stream, address) = listener.accept().await?;
                (Raw::Tls(stream, acceptor.clone()), Peer::Net(address.ip()))
            }
        })
    }

    /// Takes connections until the server closes; then ends when the last answers are out.
    pub(crate) async fn serve(
        self,
        door: Door,
        keys: Arc<Keys>,
        routes: Router,
        closing: watch::Receiver<bool>,
    ) {
        let bounds = Bounds::default();
        self.serve_within(door, keys, routes, closing, bounds).await;
    }

    pub(crate) async fn serve_within(
        self,
        door: Door,
        keys: Arc<Keys>,
        routes: Router,
        mut closing: watch::Receiver<bool>,
        bounds: Bounds,
    ) {
        let room = Arc::new(Semaphore::new(bounds.connections));
        let mut connections = JoinSet::new();
        let mut newcomers = Newcomers::default();
        // Whoever has come and waits for a place.
        let mut came = None;
        loop {
            let next = async {
                if came.is_none() {
                    came = Some(self.accept().await);
                    if room.available_permits() == 0 {
                        newcomers.push_one_out();
                    }
                }
                // A semaphore that nobody closes always gives in the end.
                Arc::clone(&room).acquire_owned().await
            };
            let place = tokio::select! {
                place = next => place,
                Some(_) = connections.join_next() => continue,
                _ = closing.changed() => break,
            };
            let Some(Ok((raw, peer))) = came.take() else {
                sleep(ACCEPT_AGAIN).await;
                continue;
            };
            let guard = Guard {
                door: door.clone(),
                keys: Arc::clone(&keys),
                peer,
                seat: Arc::default(),
            };
            let seat = Arc::downgrade(&guard.seat);
            let (routes, closing) = (routes.clone(), closing.clone());
            let spawned = connections.spawn(async move {
                let counted = guard.keys.connected(&guard.door);
                connection(raw, guard, routes, closing, bounds).await;
                drop((place, counted));
            });
            newcomers.came(seat, spawned);
        }
        drop(self);
        while connections.join_next().await.is_some() {}
    }
}

/// Connections of which nobody has said yet whose they are, the oldest first. They are nobody's share,
/// so where a listener is full they go: whoever means something by theirs says so at once.
#[derive(Default)]
struct Newcomers(VecDeque<(Weak<Seat>, AbortHandle)>);

impl Newcomers {
    fn came(&mut self, seat: Weak<Seat>, connection: AbortHandle) {
        let is_new = |seat: &Weak<Seat>| seat.upgrade().is_some_and(|seat| !seat.is_taken());
        if self.0.len() >= NEWCOMERS_LOOK {
            self.0.retain(|(seat, _)| is_new(seat));
        }
        self.0.push_back((seat, connection));
    }

    fn push_one_out(&mut self) {
        while let Some((seat, connection)) = self.0.pop_front() {
            if seat.upgrade().is_some_and(|seat| !seat.is_taken()) {
                return connection.abort();
            }
        }
    }
}

async fn connection(
    raw: Raw,
    guard: Guard,
    routes: Router,
    closing: watch::Receiver<bool>,
    bounds: Bounds,
) {
    let stream: Box<dyn Stream> = match raw {
        Raw::Unix(stream) => Box::new(stream),
        Raw::Tcp(stream) => Box::new(small_packets(stream)),
        Raw::Tls(stream, acceptor) => {
            let shaken = timeout(bounds.tls, acceptor.accept(small_packets(stream))).await;
            // Whoever cannot speak TLS with us cannot be told why either.
            let Ok(Ok(stream)) = shaken else {
                return;
            };
            Box::new(stream)
        }
    };
    http(stream, guard, routes, closing, bounds).await;
}

/// Events are small and wanted at once.
fn small_packets(stream: TcpStream) -> TcpStream {
    // A connection that cannot be told so is slower, and works.
    stream.set_nodelay(true).ok();
    stream
}

async fn http(
    stream: Box<dyn Stream>,
    guarded: Guard,
    routes: Router,
    mut closing: watch::Receiver<bool>,
    bounds: Bounds,
) {
    let upgraded = Arc::new(AtomicBool::new(false));
    let stream = Strict::new(Patient::new(stream, bounds.stall), Arc::clone(&upgraded));
    // Around the whole router: nothing of it is reached before the door.
    let service = from_fn_with_state(guarded, guard).layer(routes);
    let service = service_fn(move |request: Request<Incoming>| {
        let request = request.map(|body| {
            let deadline = Box::pin(sleep(bounds.body));
            Body::new(Timed { body, deadline })
        });
        let (answer, upgraded) = (service.clone().oneshot(request), Arc::clone(&upgraded));
        async move {
            let answer = answer.await.unwrap_or_else(|never| match never {});
            let switches = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
            upgraded.fetch_or(switches, Ordering::SeqCst);
            Ok::<_, Infallible>(answer)
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut serving = pin!(serving);
    tokio::select! {
        // How it ended is between the two sides: a client that went away is nobody's error.
        Ok(()) | Err(_) = serving.as_mut() => {}
        _ = closing.changed() => {
            serving.as_mut().graceful_shutdown();
            match serving.await {
                Ok(()) | Err(_) => {}
            }
        }
    }
}

/// The body of a request did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("its body did not come in time")]
pub(crate) struct TooSlow;

/// A body that has to be there in time, whoever reads it.
struct Timed {
    body: Incoming,
    deadline: Pin<Box<Sleep>>,
}

impl hyper::body::Body for Timed {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(frame.map(|frame| Ok(frame?))),
            Poll::Pending => {
                let over = self.deadline.as_mut().poll(cx);
                over.map(|()| Some(Err(TooSlow.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
