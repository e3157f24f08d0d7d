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
    tokens::{self, Found, TokenError, Tokens},
};
use crate::cli::out::aside;

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
    /// What was said last of tokens that cannot be used.
    told: Mutex<String>,
}

impl Keys {
    pub(crate) fn new(tokens: Tokens, ctx: &Ctx) -> Self {
        Self {
            tokens,
            guesses: Guesses::default(),
            engine: ctx.engine.clone(),
            meter: Arc::clone(&ctx.meter),
            connections: Arc::clone(&ctx.rooms.connections),
            told: Mutex::default(),
        }
    }

    /// Why the tokens cannot be looked at is for whoever this machine belongs to, and is told there once;
    /// whoever knocks may be a stranger.
    fn closed(&self, error: &TokenError) -> Problem {
        let why = error.to_string();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if *told != why {
            aside(&format!("warning: no token is taken: failed to {why}"));
            *told = why;
        }
        let detail = "look at the tokens: they cannot be used now; the engine's log says why";
        Problem::new(Code::Failed, detail)
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
        let rows = self.tokens.list().map_err(|error| self.closed(&error))?;
        let (place, now) = (Place::new(peer, tokens::named(text, &rows)), Instant::now());
        if let Some(left) = self.guesses.locked(&place, now) {
            let seconds = left.as_secs() + 1;
            let detail = format!("look at the token: too many wrong ones came; wait {seconds} s");
            return Err(Problem::new(Code::TooManyGuesses, detail).retry_after(seconds));
        }
        let found = self.tokens.find(text, Clock::System.now());
        match found.map_err(|error| self.closed(&error))? {
            Found::Good(row) => {
                self.guesses.right(&place);
                Ok(Caller::Token {
                    id: row.id,
                    name: row.name,
                    scopes: row.scopes,
                })
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

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt as _,
    };

    use super::*;
    use crate::{
        http::caller::Scope,
        settings::{Env, Settings},
    };

    /// Keys of a home of its own.
    struct Stage {
        home: tempfile::TempDir,
        file: std::path::PathBuf,
        keys: Keys,
        tokens: Tokens,
    }

    impl Stage {
        async fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            let path = Env::read().text("PATH").unwrap().to_owned();
            let env = Env::of(&[
                ("DISPATCH_HOME", home.path().to_str().unwrap()),
                ("PATH", &path),
            ]);
            let settings = Settings::from_env(env, home.path()).unwrap();
            let engine = Engine::open(settings.engine()).await.unwrap();
            let (_, closing) = tokio::sync::watch::channel(false);
            let ctx = Ctx::new(engine, &settings, closing);
            let data = &settings.paths.data;
            Self {
                home,
                file: data.join("tokens.json"),
                keys: Keys::new(Tokens::of(data), &ctx),
                tokens: Tokens::of(data),
            }
        }

        fn token(&self) -> (String, tokens::Row) {
            let scopes = [Scope::Read].into_iter().collect();
            self.tokens.make(None, scopes, None, 0).unwrap()
        }

        fn ask(&self, token: &str) -> Result<Caller, Code> {
            let peer = Peer::Net(IpAddr::from([10, 0, 0, 1]));
            let whose = self.keys.whose(token, peer);
            whose.map_err(|problem| problem.code())
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_sprays_tokens_is_locked_out_and_no_right_one_is() {
        let stage = Stage::new().await;
        let (right, row) = stage.token();
        let spray = |n: u32| stage.ask(&format!("dt_{:08x}_{n:040x}", n.wrapping_mul(0x9e37_79b9)));
        for n in 0..11 {
            assert_eq!(spray(n), Err(Code::BadToken), "{n}");
        }
        assert_eq!(spray(11), Err(Code::TooManyGuesses));
        assert_eq!(stage.ask("x"), Err(Code::TooManyGuesses));
        // Whoever is known comes in; at a token that there is one guesses by itself.
        assert!(stage.ask(&right).is_ok());
        let wrong = format!("dt_{}_{:040x}", row.id, 7);
        assert_eq!(stage.ask(&wrong), Err(Code::BadToken));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stranger_is_not_told_what_is_wrong_with_the_tokens() {
        let stage = Stage::new().await;
        stage.token();
        fs::set_permissions(&stage.file, Permissions::from_mode(0o644)).unwrap();
        let refused = stage.keys.whose("x", Peer::Socket).unwrap_err();
        assert_eq!(refused.code(), Code::Failed);
        let (told, home) = (format!("{refused:?}"), stage.home.path().to_str().unwrap());
        assert!(!told.contains(home) && !told.contains("chmod"), "{told}");
    }
}
