//! A walk over every row of the table with everything that must not come through, over real sockets: a
//! counter in front of each handler stays where it is. Must not leave a row out: it takes the table.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use axum::body::Body as AnyBody;
use dispatch_core::id::{RunId, TaskId};
use dispatch_engine::engine::Engine;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tower::ServiceExt as _;

use super::*;
use crate::{
    http::{
        caller::Scopes,
        door::{Door, Keys, Names},
        listen::{Bounds, Listener},
        tokens::Tokens,
    },
    mcp::server::PRODUCT,
    settings::{Env, Settings},
};

/// Nothing here takes that long; what does has hung.
const PATIENCE: Duration = Duration::from_secs(20);
const EVIL: &str = "evil.example";

/// A table whose handlers count, behind a door on the network.
struct Stage {
    _home: tempfile::TempDir,
    address: SocketAddr,
    reached: Arc<AtomicUsize>,
    rows: Vec<Row>,
    routes: Router,
    tokens: Tokens,
    engine: Engine,
    close: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

/// What of a row can be asked for.
#[derive(Clone, Debug)]
struct Row {
    method: &'static str,
    path: String,
    access: Access,
    bytes_max: usize,
}

impl Row {
    fn of(route: &Route, files: usize) -> Self {
        let path = route
            .path
            .replace("{id}", "00000000000000aa")
            .replace("{n}", "1")
            .replace("{message}", "1")
            .replace("{ask}", "1");
        assert!(!path.contains('{'), "{path}");
        Self {
            method: match route.verb {
                Verb::Any => "POST",
                verb => verb.word(),
            },
            path,
            access: route.access,
            bytes_max: if route.with_files {
                files
            } else {
                BODY_BYTES_MAX
            },
        }
    }
}

impl Stage {
    async fn new() -> Self {
        Self::within(Bounds::default()).await
    }

    async fn within(bounds: Bounds) -> Self {
        let home = tempfile::tempdir().unwrap();
        let path = Env::read().text("PATH").unwrap().to_owned();
        let env = Env::of(&[
            ("DISPATCH_HOME", home.path().to_str().unwrap()),
            ("PATH", &path),
        ]);
        let settings = Settings::from_env(env, home.path()).unwrap();
        let engine = Engine::open(settings.engine()).await.unwrap();
        let (close, closing) = watch::channel(false);
        let ctx = Ctx::new(engine.clone(), &settings, closing.clone());
        let keys = Keys::new(Tokens::of(&settings.paths.data), &ctx);
        let reached = Arc::new(AtomicUsize::new(0));
        let files = body_bytes_max(ctx.config.limits.attach_bytes);
        let mut table = everything(&ctx, PRODUCT);
        let rows = table.iter().map(|route| Row::of(route, files)).collect();
        for route in &mut table {
            let reached = Arc::clone(&reached);
            // Innermost: between it and the handler is nothing.
            let count = from_fn(move |request: Request, next: Next| {
                reached.fetch_add(1, Ordering::SeqCst);
                next.run(request)
            });
            route.serve = match route.verb {
                Verb::Any => route.serve.clone().layer(count),
                _ => route.serve.clone().route_layer(count),
            };
        }
        let routes = serve(ctx, table);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let door = Door::Net(Arc::new(Names::new(address, &[], &[], false)));
        let tokens = Tokens::of(&settings.paths.data);
        let listener = Listener::Tcp(listener);
        let serving = listener.serve_within(door, Arc::new(keys), routes.clone(), closing, bounds);
        Self {
            _home: home,
            address,
            reached,
            rows,
            routes,
            tokens,
            engine,
            close,
            serving: tokio::spawn(serving),
        }
    }

    fn token(&self, scopes: &[Scope]) -> String {
        let scopes: Scopes = scopes.iter().copied().collect();
        self.tokens.make(None, scopes, None, 0).unwrap().0
    }

    /// The status that comes back, 0 for none, and how many handlers were reached for it.
    fn ask(&self, request: &[u8]) -> (u16, usize) {
        let before = self.reached.load(Ordering::SeqCst);
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // A server that will not read on may close before all is written.
        let written = stream.write_all(request);
        let mut head = [0; 12];
        let read = stream.read_exact(&mut head);
        drop((written, stream));
        let status = read
            .ok()
            .map_or(0, |()| String::from_utf8_lossy(&head[9..]).parse().unwrap());
        (status, self.reached.load(Ordering::SeqCst) - before)
    }

    #[track_caller]
    fn refuses(&self, what: &str, request: &[u8]) {
        let (status, reached) = self.ask(request);
        let shown = String::from_utf8_lossy(&request[..request.len().min(300)]);
        assert_eq!(reached, 0, "{what}: {shown:?}");
        let refused = (400..500).contains(&status) || status == 0;
        assert!(refused, "{what}: {status} {shown:?}");
    }

    async fn end(self) {
        self.engine.shutdown().await.unwrap();
        self.close.send_replace(true);
        let ended = tokio::time::timeout(PATIENCE, self.serving).await;
        ended.unwrap().unwrap();
    }
}

/// A request for a row with these headers, and a body where its method has one.
fn request(row: &Row, headers: &[String]) -> Vec<u8> {
    with_body(row, headers, if row.method == "POST" { "{}" } else { "" })
}

fn with_body(row: &Row, headers: &[String], body: &str) -> Vec<u8> {
    let mut text = format!(
        "{} {} HTTP/1.1\r\nconnection: close\r\n",
        row.method, row.path
    );
    for header in headers {
        text.push_str(&format!("{header}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    format!("{text}\r\n{body}").into_bytes()
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}")
}

#[tokio::test(flavor = "multi_thread")]
async fn row_11_nothing_comes_to_a_handler_that_should_not() {
    let stage = Stage::new().await;
    let all = stage.token(&Scope::ALL);
    let revoked = stage.token(&Scope::ALL);
    let id = crate::http::tokens::id_of(&revoked).unwrap();
    stage.tokens.revoke(id).unwrap();
    let scopes = Scope::ALL.iter().copied().collect();
    let (expired, _) = stage.tokens.make(None, scopes, Some(1), 0).unwrap();
    let host = format!("host: {}", stage.address);
    let good = [host.clone(), bearer(&all)];
    for row in stage.rows.clone() {
        let refuses = |what: &str, headers: &[&str]| {
            let headers: Vec<String> = headers.iter().map(|h| (*h).to_owned()).collect();
            stage.refuses(what, &request(&row, &headers));
        };
        let token = bearer(&all);
        refuses("no host", &[&token]);
        refuses("a foreign host", &[&format!("host: {EVIL}"), &token]);
        refuses(
            "ours as a part of it",
            &[&format!("host: localhost.{EVIL}"), &token],
        );
        refuses(
            "ours as a user",
            &[&format!("host: localhost@{EVIL}"), &token],
        );
        refuses("two hosts", &[&host, &format!("host: {EVIL}"), &token]);
        refuses("two that agree", &[&host, &host, &token]);
        let evil = format!("https://{EVIL}");
        for origin in [evil.as_str(), "null", "", "http://127.0.0.1:1", "file://"] {
            let origin = format!("origin: {origin}");
            refuses("a foreign origin", &[&host, &token, &origin]);
        }
        let own = format!("origin: http://{}", stage.address);
        refuses("two origins", &[&host, &token, &own, &own]);
        refuses("no token", &[&host]);
        refuses("another scheme", &[&host, "authorization: Basic eDp5"]);
        refuses("an empty one", &[&host, "authorization: Bearer "]);
        refuses("a cookie", &[&host, &format!("cookie: token={all}")]);
        refuses("in the query", &[&host, &format!("x-token: {all}")]);
        refuses("two tokens", &[&host, &token, &token]);
        refuses("a revoked one", &[&host, &bearer(&revoked)]);
        refuses("an expired one", &[&host, &bearer(&expired)]);
        refuses(
            "a run's that never was",
            &[
                &host,
                &bearer(&format!("dr_00000000000000aa-1_{}", "0".repeat(64))),
            ],
        );
        if let Some(needed) = row.access.scope() {
            let others: Vec<Scope> = Scope::ALL.into_iter().filter(|s| *s != needed).collect();
            let wrong = stage.token(&others);
            refuses("the wrong scope", &[&host, &bearer(&wrong)]);
            stage
                .tokens
                .revoke(crate::http::tokens::id_of(&wrong).unwrap())
                .unwrap();
        }
        smuggled(&stage, &row, &good);
        oversize(&stage, &row, &good);
    }
    // And the same request with nothing wrong in it reaches its handler, once.
    for row in &stage.rows {
        let (status, reached) = stage.ask(&request(row, &good));
        assert_eq!(reached, 1, "{row:?}: {status}");
    }
    stage.end().await;
}

/// Heads of which two servers could make different requests.
fn smuggled(stage: &Stage, row: &Row, good: &[String]) {
    let (method, path) = (row.method, &row.path);
    let head = |more: &str, body: &str| {
        let good = good.join("\r\n");
        format!("{method} {path} HTTP/1.1\r\n{good}\r\n{more}\r\n{body}").into_bytes()
    };
    let hidden = "GET /v1/health HTTP/1.1\r\n\r\n";
    let length = hidden.len();
    for (what, more) in [
        (
            "two lengths",
            format!("content-length: {length}\r\ncontent-length: 0\r\n"),
        ),
        (
            "the same twice",
            format!("content-length: {length}\r\ncontent-length: {length}\r\n"),
        ),
        (
            "both",
            format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n"),
        ),
        (
            "both, turned",
            format!("transfer-encoding: chunked\r\ncontent-length: {length}\r\n"),
        ),
        (
            "a coding that is none",
            "transfer-encoding: xchunked\r\n".into(),
        ),
        ("two codings", "transfer-encoding: gzip, chunked\r\n".into()),
        (
            "a space before the colon",
            format!("content-length : {length}\r\n"),
        ),
        (
            "a line that goes on",
            format!("x: y\r\n content-length: {length}\r\n"),
        ),
        ("a bare line feed", "x: y\nz: w\r\n".into()),
        ("a bare carriage return", "x: y\rz: w\r\n".into()),
        ("a nul", "x: y\0z\r\n".into()),
        ("a sign", format!("content-length: +{length}\r\n")),
    ] {
        stage.refuses(what, &head(&more, hidden));
    }
    let good = good.join("\r\n");
    let chunked = format!(
        "{method} {path} HTTP/1.1\r\n{good}\r\ntransfer-encoding: chunked\r\n\r\n0\n\r\n{hidden}"
    );
    stage.refuses("a bare line feed in a chunk", chunked.as_bytes());
    for target in [
        format!("http://{EVIL}{path}"),
        format!("http://localhost{path}"),
        format!("//{EVIL}{path}"),
        format!("/{path}"),
        format!("{path}/"),
        path.replacen("/v1/", "/v1/../v1/", 1)
            .replacen("/mcp", "/x/../mcp", 1),
        path.replacen('/', "/%2e/", 1),
        "*".to_owned(),
    ] {
        let text = format!("{method} {target} HTTP/1.1\r\n{good}\r\n\r\n");
        stage.refuses("another target", text.as_bytes());
    }
    for line in [
        format!("{method} {path} HTTP/0.9"),
        format!("{method} {path}"),
        format!("{method}  {path} HTTP/1.1"),
        format!("\r\n{method} {path} HTTP/1.1"),
        format!("{method} {path} HTTP/2.0"),
        format!("CONNECT {path} HTTP/1.1"),
    ] {
        stage.refuses(
            "another first line",
            format!("{line}\r\n{good}\r\n\r\n").as_bytes(),
        );
    }
}

fn oversize(stage: &Stage, row: &Row, good: &[String]) {
    let mut long = good.to_vec();
    long.push(format!("x: {}", "y".repeat(70 << 10)));
    stage.refuses("a long header", &request(row, &long));
    let mut many = good.to_vec();
    many.extend((0..100).map(|n| format!("x-{n}: y")));
    stage.refuses("many headers", &request(row, &many));
    if row.method == "POST" {
        // Said, and not sent: what is said is believed.
        let mut said = good.to_vec();
        said.push(format!("content-length: {}", row.bytes_max + 1));
        stage.refuses("a body that is too long", &with_body(row, &said, ""));
    } else if row.method != "POST" {
        stage.refuses("a body where none goes", &with_body(row, good, "{}"));
    }
}

/// Whatever one byte is changed in a request for another host, or in a token, it opens nothing.
#[tokio::test(flavor = "multi_thread")]
async fn no_slip_of_a_byte_opens_a_door() {
    let stage = Stage::new().await;
    let all = stage.token(&Scope::ALL);
    let foreign = [format!("host: {EVIL}"), bearer(&all)];
    let unknown = [
        format!("host: {}", stage.address),
        bearer(&format!("dt_00000000_{}", "0".repeat(40))),
    ];
    // xorshift: any sequence will do, as long as it is the same one each time.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % u64::try_from(below).unwrap()).unwrap()
    };
    for _ in 0..600 {
        let row = &stage.rows[random(stage.rows.len())];
        let headers = [&foreign, &unknown][random(2)];
        let mut bytes = request(row, headers);
        let at = random(bytes.len());
        match random(4) {
            0 => bytes[at] = b"\r\n\t :/0a\0\xff"[random(10)],
            1 => bytes.insert(at, b"\r\n\t :/0a\0\xff"[random(10)]),
            2 => drop(bytes.remove(at)),
            _ => bytes.truncate(at),
        }
        // Where nothing ends the head, the end of the stream does.
        let (_, reached) = stage.closed(&bytes);
        assert_eq!(reached, 0, "{:?}", String::from_utf8_lossy(&bytes));
    }
    stage.end().await;
}

impl Stage {
    /// The same, with our side closed behind the request.
    fn closed(&self, request: &[u8]) -> (u16, usize) {
        let before = self.reached.load(Ordering::SeqCst);
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request).ok();
        stream.shutdown(std::net::Shutdown::Write).ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        (0, self.reached.load(Ordering::SeqCst) - before)
    }
}

/// Past every door, as only a bug could be: the table lets nobody in who is not named.
#[tokio::test(flavor = "multi_thread")]
async fn the_table_itself_lets_nobody_in_without_a_caller() {
    let stage = Stage::new().await;
    let run = RunId {
        task: TaskId::from_bits(7),
        n: 1,
    };
    for row in &stage.rows {
        let ask = |caller: Option<Caller>| {
            let body = if row.method == "POST" { "{}" } else { "" };
            let request = Request::builder().method(row.method).uri(&row.path);
            let mut request = request.body(AnyBody::from(body)).unwrap();
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            stage.routes.clone().oneshot(request)
        };
        let nobody = ask(None).await.unwrap();
        assert_eq!(nobody.status(), StatusCode::UNAUTHORIZED, "{row:?}");
        if !row.access.for_agents() {
            let agent = ask(Some(Caller::Run(run))).await.unwrap();
            assert_eq!(agent.status(), StatusCode::FORBIDDEN, "{row:?}");
        }
    }
    assert_eq!(stage.reached.load(Ordering::SeqCst), 0);
    let nowhere = Request::builder().uri("/nowhere").body(AnyBody::empty());
    let nowhere = stage.routes.clone().oneshot(nowhere.unwrap()).await;
    assert_eq!(nowhere.unwrap().status(), StatusCode::UNAUTHORIZED);
    stage.end().await;
}

/// Whoever takes time that is not theirs is cut off, and others come in.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_slow_makes_room() {
    let soon = Duration::from_millis(60);
    let bounds = Bounds {
        head: soon,
        body: soon,
        connections: 2,
        ..Bounds::default()
    };
    let stage = Stage::within(bounds).await;
    let all = stage.token(&Scope::ALL);
    let open = |text: &str| {
        let mut stream = TcpStream::connect(stage.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let rest = |mut stream: TcpStream| {
        let mut text = Vec::new();
        stream.read_to_end(&mut text).ok();
        String::from_utf8_lossy(&text).into_owned()
    };
    // Both places are taken, by one that says nothing and one that does not go on.
    let (silent, slow) = (open(""), open("GET /v1/health HTT"));
    let good = [format!("host: {}", stage.address), bearer(&all)];
    let health = Row {
        method: "GET",
        path: "/v1/health".into(),
        access: Access::Needs(Scope::Read),
        bytes_max: 0,
    };
    assert_eq!(stage.ask(&request(&health, &good)), (200, 1));
    assert!(!rest(silent).contains(" 200 ") && !rest(slow).contains(" 200 "));
    // An answered connection that stays open is closed when no other request comes.
    let kept = good.join("\r\n");
    let kept = rest(open(&format!("GET /v1/health HTTP/1.1\r\n{kept}\r\n\r\n")));
    assert!(kept.starts_with("HTTP/1.1 200 "), "{kept}");
    let body = good.join("\r\n");
    let head = format!("POST /v1/freeze HTTP/1.1\r\n{body}\r\ncontent-length: 20\r\n\r\n{{");
    let late = rest(open(&head));
    assert!(
        late.starts_with("HTTP/1.1 408 ") && late.contains("too_slow"),
        "{late}"
    );
    assert_eq!(stage.reached.load(Ordering::SeqCst), 2);
    stage.end().await;
}
