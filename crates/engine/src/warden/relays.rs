//! The warden's relays: a port on the loopback of the job's own network for each socket of ours
//! that lies in a directory it sees. Bytes only: what they mean is the listener's business.
//! Must hold nothing that the job may not have; it could connect to the sockets itself.

use std::{
    io,
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use dispatch_core::cage::Relay;

use crate::jobdir::socket_path;

/// At once, of all relays; each costs two threads.
const CONNECTIONS_MAX: usize = 128;
const STACK_BYTES: usize = 64 << 10;
/// After a failed accept, which usually means that there are no descriptors left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Bound before anything is locked, so that the program never finds a port without its relay.
pub(super) struct Listening {
    listener: TcpListener,
    relay: Relay,
}

pub(super) fn listen(relays: &[Relay]) -> io::Result<Vec<Listening>> {
    let bind = |relay: &Relay| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, relay.listen_port))?;
        let relay = relay.clone();
        Ok(Listening { listener, relay })
    };
    relays.iter().map(bind).collect()
}

/// From a thread that is locked in already: threads inherit what holds for the one that starts them.
pub(super) fn start(relays: Vec<Listening>) -> io::Result<()> {
    let open = Arc::new(AtomicUsize::new(0));
    for relay in relays {
        let open = Arc::clone(&open);
        spawn("relay", move || accept(&relay, &open))?;
    }
    Ok(())
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let builder = thread::Builder::new().name(name.into());
    builder.stack_size(STACK_BYTES).spawn(work).map(drop)
}

/// Taken while a connection lives.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Self(Arc::clone(open));
        // When there is none, dropping `place` counts back.
        (open.fetch_add(1, Ordering::Relaxed) < CONNECTIONS_MAX).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn accept(relay: &Listening, open: &Arc<AtomicUsize>) {
    loop {
        let Ok((stream, _)) = relay.listener.accept() else {
            thread::sleep(ACCEPT_AGAIN);
            continue;
        };
        let Some(place) = Place::take(open) else {
            // Closed at once: the client sees a connection that ended, and can try again.
            continue;
        };
        let to = relay.relay.clone();
        match spawn("relayed", move || carry(&stream, &to, place)) {
            // No thread to be had: the connection was moved into the closure, and is closed.
            Ok(()) | Err(_) => {}
        }
    }
}

fn carry(client: &TcpStream, to: &Relay, place: Place) {
    // Nobody listens any more: then the client sees the end of its connection.
    let Ok(server) = connect(to) else { return };
    let (Ok(from), Ok(into)) = (client.try_clone(), server.try_clone()) else {
        return;
    };
    // Small messages go at once; a relay must not wait for more.
    match client.set_nodelay(true) {
        Ok(()) | Err(_) => {}
    }
    let place = Arc::new(place);
    let held = Arc::clone(&place);
    let up = move || {
        pump(&mut &from, &mut &into);
        // The other side may still answer what it has got.
        shut(&into.shutdown(Shutdown::Write));
        drop(held);
    };
    if spawn("relayed", up).is_err() {
        return;
    }
    pump(&mut &server, &mut &*client);
    // The answer is complete, or cannot be delivered: nothing more is asked of the server.
    shut(&client.shutdown(Shutdown::Write));
    shut(&server.shutdown(Shutdown::Read));
    drop(place);
}

/// Until one side has ended.
fn pump(from: &mut impl io::Read, to: &mut impl io::Write) {
    match io::copy(from, to) {
        // Both ways of ending are told by shutting down.
        Ok(_) | Err(_) => {}
    }
}

/// A side that is gone already cannot be shut.
fn shut(shut: &io::Result<()>) {
    match shut {
        Ok(()) | Err(_) => {}
    }
}

fn connect(to: &Relay) -> io::Result<UnixStream> {
    let (path, _open) = socket_path(&to.directory, &to.socket)?;
    UnixStream::connect(path)
}
