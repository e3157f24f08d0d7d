//! What a request passes before any route: its head, its Host, its Origin, and whose it is.
//! Must not know a route: a door says who calls, the table says who may.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method,
        header::{AUTHORIZATION, CONNECTION, HOST, ORIGIN},
        uri::Authority,
    },
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use dispatch_engine::{clock::Clock, doorkeys, engine::Engine};

use super::{
    Ctx,
    caller::Caller,
    error::{Code, Problem},
    guesses::{Guesses, Peer, Place},
    metrics::{Connected, Entrance, Meter},
    room::{Portion, Room},
    tokens::{self, Found, Tokens},
};

/// Names that always mean this machine, whatever a foreign name server says.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// Where a request comes in.
#[derive(Clone, Debug)]
pub(crate) enum Door {
    /// The person's own socket. Who is at the other end was looked at when it connected.
    Own,
    /// The socket that agents get: being our own user says nothing there.
    Agents,
    Net(Arc<Names>),
}

/// What a server on the network answers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// `name` or `name:port`, in lower case.
    hosts: Vec<String>,
    /// `scheme://host[:port]` of pages that may speak to us besides our own.
    origins: Vec<String>,
    tls: bool,
}

impl Names {
    pub(crate) fn new(bound: SocketAddr, hosts: &[String], origins: &[String], tls: bool) -> Self {
        let mut all: Vec<String> = OWN_NAMES.map(str::to_owned).into();
        let address = match bound.ip() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        // All addresses at once are no name to be called by.
        if !bound.ip().is_unspecified() {
            all.push(address);
        }
        all.extend(hosts.iter().map(|host| host.to_ascii_lowercase()));
        let lower = |origin: &String| origin.to_ascii_lowercase();
        Self {
            hosts: all,
            origins: origins.iter().map(lower).collect(),
            tls,
        }
    }

    fn knows_host(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let Ok(authority) = host.parse::<Authority>() else {
            return false;
        };
        // A name with a user in front is no Host.
        !host.contains('@')
            && self
                .hosts
                .iter()
                .any(|known| *known == host || known == authority.host())
    }

    /// Our own pages, and those that were named.
    fn knows_origin(&self, origin: &str, host: &str) -> bool {
        let origin = origin.to_ascii_lowercase();
        let scheme = if self.tls { "https" } else { "http" };
        let own = format!("{scheme}://{}", host.to_ascii_lowercase());
        origin == own || self.origins.contains(&origin)
    }
}

/// Who is whom, for every door of one engine.
#[derive(Debug)]
pub(crate) struct Keys {
    tokens: Tokens,
    guesses: Guesses,
    engine: Engine,
    meter: Arc<Meter>,
    /// Of connections, by whose they are.
    connections: Arc<Room>,
}

impl Keys {
    pub(crate) fn new(tokens: Tokens, ctx: &Ctx) -> Self {
        Self {
            tokens,
            guesses: Guesses::default(),
            engine: ctx.engine.clone(),
            meter: Arc::clone(&ctx.meter),
            connections: Arc::clone(&ctx.rooms.connections),
        }
    }

    /// A connection that has come in at this door.
    pub(crate) fn connected(&self, door: &Door) -> Connected {
        self.meter.connected(match door {
            Door::Own => Entrance::Own,
            Door::Agents => Entrance::Agents,
            Door::Net(_) => Entrance::Net,
        })
    }

    fn whose(&self, text: &str, peer: Peer) -> Result<Caller, Problem> {
        if text.starts_with(doorkeys::PREFIX)
            && let Some(run) = self.engine.whose(text)
        {
            return Ok(Caller::Run(run));
        }
        let (place, now) = (Place::new(peer, tokens::id_of(text)), Instant::now());
        if let Some(left) = self.guesses.locked(&place, now) {
            let seconds = left.as_secs() + 1;
            let detail = format!("look at the token: too many wrong ones came; wait {seconds} s");
            return Err(Problem::new(Code::TooManyGuesses, detail).retry_after(seconds));
        }
        let found = self.tokens.find(text, Clock::System.now());
        match found.map_err(|error| Problem::new(Code::Failed, error.to_string()))? {
            Found::Good(row) => {
                self.guesses.right(&place);
                let (name, scopes) = (row.name, row.scopes);
                Ok(Caller::Token { name, scopes })
            }
            Found::Expired(row) => {
                let name = row.name;
                let detail = format!("use token {name}: its time is over; make a new one");
                Err(Problem::new(Code::TokenExpired, detail))
            }
            Found::Unknown => {
                self.guesses.wrong(place, now);
                let detail = "use that token: nobody has it, or its run is over; \
                              `dispatch token list` shows which there are";
                Err(Problem::new(Code::BadToken, detail))
            }
        }
    }
}

/// A door with its keys, for one connection.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    pub(crate) door: Door,
    pub(crate) keys: Arc<Keys>,
    pub(crate) peer: Peer,
    pub(crate) seat: Arc<Seat>,
}

/// Whose connection it is, once that has been said, and the room that it takes of theirs.
#[derive(Debug, Default)]
pub(crate) struct Seat(Mutex<Option<(Caller, Option<Portion>)>>);

impl Seat {
    fn lock(&self) -> MutexGuard<'_, Option<(Caller, Option<Portion>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_taken(&self) -> bool {
        self.lock().is_some()
    }

    /// For the caller of a request that has come by it. A connection may carry those of several, one
    /// after the other; the last one is who it is counted for.
    fn sit(&self, caller: &Caller, connections: &Arc<Room>) -> Result<(), Problem> {
        let mut taken = self.lock();
        if taken.as_ref().is_some_and(|(known, _)| known == caller) {
            return Ok(());
        }
        let place = match caller {
            Caller::Own => None,
            Caller::Token { .. } | Caller::Run(_) => Some(connections.take(caller, 1)?),
        };
        *taken = Some((caller.clone(), place));
        Ok(())
    }
}

/// Lets in a request whose caller is known, and says so in it.
pub(crate) async fn guard(
    State(guard): State<Guard>,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = guard.caller(&request).and_then(|caller| {
        guard.seat.sit(&caller, &guard.keys.connections)?;
        Ok(caller)
    });
    match caller {
        Ok(caller) => {
            // Nothing further in has a use for it, so nothing can tell it on.
            request.headers_mut().remove(AUTHORIZATION);
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(problem) => {
            guard.keys.meter.refused(problem.code());
            let full = problem.code() == Code::TooManyConnections;
            let mut response = problem.into_response();
            if full {
                // It would wait for its next request in a place that somebody else could use.
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            response
        }
    }
}

impl Guard {
    fn caller(&self, request: &Request) -> Result<Caller, Problem> {
        let (uri, headers) = (request.uri(), request.headers());
        let bad_head =
            |what: &str| Problem::new(Code::BadHead, format!("take the request: {what}"));
        // `GET http://elsewhere/` names two hosts, and proxies disagree about which one counts.
        if uri.scheme().is_some() || uri.authority().is_some() || !uri.path().starts_with('/') {
            return Err(bad_head(
                "its first line has to name a path and nothing else",
            ));
        }
        // Of proxies; some make a tunnel of one without asking.
        if [Method::CONNECT, Method::TRACE].contains(request.method()) {
            return Err(bad_head("CONNECT and TRACE are for proxies"));
        }
        let host = one(headers, &HOST)
            .map_err(bad_head)?
            .ok_or_else(|| bad_head("it has no Host"))?;
        let origin = one(headers, &ORIGIN).map_err(bad_head)?;
        self.is_ours(host, origin)?;
        match (one(headers, &AUTHORIZATION).map_err(bad_head)?, &self.door) {
            (Some(header), _) => self.keys.whose(bearer(header)?, self.peer),
            (None, Door::Own) => Ok(Caller::Own),
            (None, Door::Agents | Door::Net(_)) => Err(Problem::new(
                Code::NoToken,
                "say who you are: send `Authorization: Bearer TOKEN`; `dispatch token new` makes one",
            )),
        }
    }

    /// A page that a person's browser shows must reach nothing here, by whatever name it calls us.
    fn is_ours(&self, host: &str, origin: Option<&str>) -> Result<(), Problem> {
        let foreign_origin = |origin: &str| {
            let detail = format!(
                "take the request: it comes from a page of {origin:?}; server.origins lists whose \
                 pages may"
            );
            Err(Problem::new(Code::ForeignOrigin, detail))
        };
        let Door::Net(names) = &self.door else {
            // No browser can speak to a socket.
            return origin.map_or(Ok(()), foreign_origin);
        };
        if !names.knows_host(host) {
            let detail = format!(
                "take the request: it is for {host:?}, and this is not its name; server.hosts lists \
                 others"
            );
            return Err(Problem::new(Code::ForeignHost, detail));
        }
        match origin {
            Some(origin) if !names.knows_origin(origin, host) => foreign_origin(origin),
            Some(_) | None => Ok(()),
        }
    }
}

/// A header that may come once.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, &'static str> {
    let mut all = headers.get_all(name).iter();
    let Some(first) = all.next() else {
        return Ok(None);
    };
    if all.next().is_some() {
        return Err("Host, Origin and Authorization may come once");
    }
    let text = first.to_str();
    text.map(Some)
        .map_err(|_| "Host, Origin and Authorization are plain text")
}

fn bearer(header: &str) -> Result<&str, Problem> {
    let token = header.split_once(' ').filter(|(scheme, token)| {
        scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && !token.contains(' ')
    });
    let none = || {
        Problem::new(
            Code::NoToken,
            "read the Authorization: it is no `Bearer TOKEN`",
        )
    };
    token.map(|(_, token)| token).ok_or_else(none)
}
