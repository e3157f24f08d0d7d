//! What a fenced agent needs from outside while it runs: a proxy that lets listed hosts through, and
//! a broker that puts the model's key in. `dispatch sidecar PLAN` is a job of the run, kept by a
//! keeper; its words go to its standard output, where the engine follows them.
//! Must not know runs, tasks or agents, and must not write the real key anywhere but upstream.

mod broker;
mod held;
mod masking;
mod proxy;
mod refusals;
mod tunnel;

#[doc(hidden)]
pub mod fuzzing;

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    io::{self, Write},
    net::Ipv4Addr,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use dispatch_core::{
    hex::hex,
    secret::Secret,
    sidecar::{At, BROKER_SOCKET, PROXY_SOCKET, Plan, Word},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

use crate::{
    broker::{Broker, Row},
    held::{Held, Origin},
    proxy::Proxy,
    refusals::Refusals,
};

pub use crate::held::Take;

/// At once, of each door.
const CONNECTIONS_MAX: usize = 256;
/// After a failed accept, which usually means that there are no descriptors left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
const PLACEHOLDER_BYTES: usize = 24;

/// The sidecar's `main`: the arguments behind `dispatch sidecar`. `take` reads a key where it comes
/// from, when upstream has refused the one that we were given.
#[must_use]
pub fn main(args: &[OsString], take: Take) -> ExitCode {
    match run(args, take) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The engine reads it from here.
            match writeln!(io::stderr(), "dispatch sidecar: failed to {error}") {
                Ok(()) | Err(_) => ExitCode::from(1),
            }
        }
    }
}

fn run(args: &[OsString], take: Take) -> Result<(), String> {
    let [plan] = args else {
        return Err("start: its one argument is a plan; it is started by the engine".into());
    };
    let plan: Plan = serde_json::from_slice(plan.as_encoded_bytes())
        .map_err(|error| format!("read the plan: {error}"))?;
    let keyed = plan.brokers.iter().filter(|broker| !broker.keyless);
    let keys = keyed.map(|broker| {
        let key = env::var(&broker.key).map(Secret::new);
        let key = key.map_err(|_| format!("read the key: the variable {} is not set", broker.key));
        Ok((broker.key.clone(), key?))
    });
    let keys = keys.collect::<Result<_, String>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("start the runtime: {error}"))?;
    let served = runtime.block_on(serve(plan, keys, take));
    // A name that is being looked up must not hold the end back.
    runtime.shutdown_background();
    served
}

async fn serve(plan: Plan, mut keys: BTreeMap<String, Secret>, take: Take) -> Result<(), String> {
    // Before the first word, so that whoever hears it can end us.
    let mut term =
        signal(SignalKind::terminate()).map_err(|error| format!("listen for signals: {error}"))?;
    let refusals = Arc::new(Refusals::new(io::stdout()));
    let mut doors = JoinSet::new();
    let mut ready = (None, BTreeMap::new());
    if let Some(list) = plan.proxy {
        let At::Directory(dir) = &plan.at else {
            return Err("start the proxy: it serves a network of the job's own only".into());
        };
        let listener = unix(dir, PROXY_SOCKET)?;
        let proxy = Arc::new(Proxy::new(list, Arc::clone(&refusals)));
        doors.spawn(door(Listener::Unix(listener), move |stream| {
            let proxy = Arc::clone(&proxy);
            async move { proxy.serve(stream).await }
        }));
    }
    if !plan.brokers.is_empty() {
        let mut rows = Vec::new();
        let mut placeholders = BTreeMap::new();
        for table in plan.brokers {
            let placeholder = placeholder()?;
            let name = table.key.clone();
            let origin = table.again.map(|from| Origin { name, from, take });
            let key = keys.remove(&table.key);
            rows.push(Row {
                upstream: table.upstream,
                key: key.map(|key| Held::new(key, origin)).transpose()?,
                placeholder: placeholder.clone(),
                name: table.key.clone(),
            });
            placeholders.insert(table.key, placeholder);
        }
        let broker = Broker::new(rows, Arc::clone(&refusals))?;
        let broker = Arc::new(broker);
        let (listener, port) = match &plan.at {
            At::Directory(dir) => (Listener::Unix(unix(dir, BROKER_SOCKET)?), None),
            At::Loopback => {
                let failed = |error: io::Error| format!("listen on the loopback: {error}");
                let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
                let bound = bound.map_err(failed)?;
                let port = bound.local_addr().map_err(failed)?.port();
                (Listener::Tcp(bound), Some(port))
            }
        };
        doors.spawn(door(listener, move |stream| {
            let broker = Arc::clone(&broker);
            async move { broker.serve(stream).await }
        }));
        ready = (port, placeholders);
    }
    refusals
        .say(&Word::Ready {
            broker_port: ready.0,
            placeholders: ready.1,
        })
        .map_err(|error| format!("say that it listens: {error}"))?;
    if term.recv().await.is_none() {
        return Err("wait for its end: no signal can come".into());
    }
    doors.shutdown().await;
    refusals
        .sum_up()
        .map_err(|error| format!("say what was refused: {error}"))
}

/// Random, and of no shape that a redactor masks: it is no secret outside its own run.
fn placeholder() -> Result<String, String> {
    let mut bytes = [0; PLACEHOLDER_BYTES];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| format!("make a placeholder: {error}"))?;
    if got < bytes.len() {
        return Err("make a placeholder: too few random bytes".into());
    }
    Ok(format!("dispatch-placeholder-{}", hex(&bytes)))
}

/// By way of the open directory: a socket's address has room for 107 bytes.
fn unix(dir: &Path, name: &str) -> Result<UnixListener, String> {
    let failed = |error: io::Error| format!("listen on {name} in {}: {error}", dir.display());
    let handle = std::fs::File::open(dir).map_err(failed)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&handle);
    let bound = UnixListener::bind(format!("/proc/self/fd/{fd}/{name}")).map_err(failed);
    drop(handle);
    bound
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
type Connection = Box<dyn Stream>;

impl Listener {
    async fn accept(&self) -> io::Result<Connection> {
        Ok(match self {
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // An answer that comes in small pieces is shown in small pieces.
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }
}

/// Serves each connection until it is dropped.
async fn door<F, S>(listener: Listener, serve: F)
where
    F: Fn(Connection) -> S + Send + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                // One too many is closed at once; whoever it was can try again.
                Ok(_) if open.len() >= CONNECTIONS_MAX => {}
                Ok(stream) => {
                    open.spawn(serve(stream));
                }
                Err(_) => tokio::time::sleep(ACCEPT_AGAIN).await,
            },
            Some(_) = open.join_next(), if !open.is_empty() => {}
        }
    }
}
