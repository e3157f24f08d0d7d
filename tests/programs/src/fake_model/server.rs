//! The HTTP side: routes, one counter for each run, and the ways in which an answer can go wrong.
//! It must listen on the loopback only, and answer a mistake of the test with an error that says
//! what is wrong and that clients do not retry.

use super::{
    ask::{Ask, Protocol, Side},
    log::Log,
    media,
    reply::Reply,
    script::{Action, Answer, Break, Failure, Script},
    tools, wire,
};
use anyhow::{Context as _, Result, bail, ensure};
use futures_util::stream;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Frame, Incoming},
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{
    collections::{HashMap, VecDeque},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, sync::Semaphore};

const MAX_BODY_BYTES: usize = 32 << 20;
const MAX_RUNS: usize = 10_000;
const MAX_SCRIPTS: usize = 1000;
const MAX_CONNECTIONS: usize = 512;
const MAX_NAME_CHARS: usize = 100;
const MAX_LOGGED_TOOLS: usize = 256;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The state of a running server.
#[derive(Debug)]
pub struct Server {
    default: Option<Arc<Script>>,
    directory: Option<PathBuf>,
    runs: Mutex<HashMap<Place, Run>>,
    replies: AtomicU64,
    log: Log,
}

/// What the path's prefix picks: a script and a conversation of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    script: Option<String>,
    run: String,
}

#[derive(Debug)]
struct Run {
    script: Arc<Script>,
    served: u64,
}

/// The connection is to be dropped without an answer.
#[derive(Debug)]
struct Dropped;

impl std::fmt::Display for Dropped {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("the script drops this connection")
    }
}

impl std::error::Error for Dropped {}

/// Logs that the client left an answer which would never have ended.
struct Gone {
    server: Arc<Server>,
    record: Value,
}

impl Drop for Gone {
    fn drop(&mut self) {
        if !self.record.is_null() {
            self.server.record(std::mem::take(&mut self.record));
        }
    }
}

impl Server {
    /// Checks the script and each `*.json` of the directory, so that a mistake in one is loud.
    pub fn new(script: Option<&Path>, directory: Option<PathBuf>, log: Log) -> Result<Self> {
        ensure!(
            script.is_some() || directory.is_some(),
            "give --script FILE or --scripts DIR"
        );
        let default = script.map(Script::read).transpose()?.map(Arc::new);
        if let Some(directory) = &directory {
            let entries = std::fs::read_dir(directory)
                .with_context(|| format!("scripts {}", directory.display()))?;
            let mut count = 0;
            for entry in entries {
                let path = entry?.path();
                if path
                    .extension()
                    .is_some_and(|extension| extension == "json")
                {
                    count += 1;
                    ensure!(
                        count <= MAX_SCRIPTS,
                        "at most {MAX_SCRIPTS} scripts in a directory"
                    );
                    Script::read(&path)?;
                }
            }
        }
        let (runs, replies) = (Mutex::default(), AtomicU64::new(0));
        Ok(Self {
            default,
            directory,
            runs,
            replies,
            log,
        })
    }

    /// Serves until the surrounding task is dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) -> Result<()> {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let permit = Arc::clone(&room).acquire_owned().await?;
            let (connection, _) = listener.accept().await?;
            connection.set_nodelay(true)?;
            let server = Arc::clone(&self);
            tokio::spawn(async move {
                let service = service_fn(move |request| Arc::clone(&server).answer(request));
                let ended = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(connection), service)
                    .await;
                // Clients may leave at any time and scripts drop connections on purpose.
                drop((ended, permit));
            });
        }
    }

    fn record(&self, record: Value) {
        // A log that cannot be written makes its test fail; the answers do not depend on it.
        drop(self.log.write(record));
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Dropped> {
        let method = request.method().clone();
        let whole_path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let encoding = request.headers().get(CONTENT_ENCODING).cloned();
        let mut record = json!({"kind": "info", "method": method.as_str(), "path": whole_path});
        let refuse = |mut record: Value, protocol: Protocol, status: u16, said: String| {
            record["kind"] = json!("error");
            record["error"] = json!(said);
            self.record(record);
            refusal(protocol, status, &said)
        };
        let (place, path) = match place(&whole_path) {
            Ok(found) => found,
            Err(error) => {
                return Ok(refuse(
                    record,
                    Protocol::Anthropic,
                    404,
                    format!("{error:#}"),
                ));
            }
        };
        record["script"] = json!(place.script);
        record["run"] = json!(place.run);
        let Ok(body) = Limited::new(request.into_body(), MAX_BODY_BYTES)
            .collect()
            .await
        else {
            let said = format!("the body is broken or has more than {MAX_BODY_BYTES} bytes");
            return Ok(refuse(record, Protocol::Anthropic, 413, said));
        };
        let body = body.to_bytes();
        if let Some(answer) = plumbing(&method, path, body.len()) {
            self.record(record);
            return Ok(answer);
        }
        let Some(protocol) = Protocol::of(path).filter(|_| method == Method::POST) else {
            let said = format!("nothing is served at {method} {path}");
            return Ok(refuse(record, Protocol::Anthropic, 404, said));
        };
        record["protocol"] = json!(protocol.name());
        if encoding.is_some_and(|encoding| encoding != "identity") {
            let said = "compressed requests are not understood".to_owned();
            return Ok(refuse(record, protocol, 415, said));
        }
        let body: Value = match serde_json::from_slice(&body) {
            Ok(body @ Value::Object(_)) => body,
            Ok(_) => {
                let said = "the request is no JSON object".to_owned();
                return Ok(refuse(record, protocol, 400, said));
            }
            Err(error) => {
                return Ok(refuse(
                    record,
                    protocol,
                    400,
                    format!("the request is no JSON: {error}"),
                ));
            }
        };
        let ask = Ask::read(protocol, path, &query, &body);
        let names: Vec<_> = ask
            .tools
            .iter()
            .take(MAX_LOGGED_TOOLS)
            .map(tools::full_name)
            .collect();
        record["model"] = json!(ask.model);
        record["stream"] = json!(ask.stream);
        record["tools"] = json!(names);
        record["prompt"] = json!(ask.prompt);
        record["earlier"] = json!(ask.earlier);
        record["system"] = json!(ask.system);
        record["media"] = json!(media::of(&body));
        // As the two protocols say it whose agents are asked to think harder or less.
        let effort = [
            &body["reasoning"]["effort"],
            &body["output_config"]["effort"],
        ];
        record["effort"] = json!(effort.into_iter().find(|effort| effort.is_string()));

        let number = self.replies.fetch_add(1, Ordering::Relaxed);
        if let Some(side) = &ask.side {
            let (name, text) = match side {
                Side::Title => ("title", "Scripted title".to_owned()),
                Side::Notes => ("notes", "## Goal\nScripted notes.".to_owned()),
                Side::Probe => ("probe", "ok".to_owned()),
                Side::Structured(schema) => ("structured", tools::sample(schema).to_string()),
            };
            record["kind"] = json!("side");
            record["served"] = json!(name);
            self.record(record);
            let reply = Reply::plain(text, &ask, number);
            return Ok(sent(&ask, path, &reply, None, None));
        }
        let (step, action) = match self.step(&place) {
            Ok(found) => found,
            Err(error) => return Ok(refuse(record, protocol, 400, format!("{error:#}"))),
        };
        record["kind"] = json!("step");
        record["step"] = json!(step);
        let gone = json!({
            "kind": "client_gone",
            "script": place.script,
            "run": place.run,
            "step": step,
        });
        let gone = Gone {
            server: Arc::clone(&self),
            record: gone,
        };
        match action {
            Action::Hang => {
                record["served"] = json!("hang");
                self.record(record);
                // hyper drops this future, and with it `gone`, when the client leaves.
                std::future::pending::<()>().await;
                drop(gone);
                Err(Dropped)
            }
            Action::Fail(failure) => {
                gone.forget();
                record["served"] = json!(format!("status {}", failure.status));
                self.record(record);
                tokio::time::sleep(Duration::from_millis(failure.slow_ms)).await;
                Ok(failed(protocol, &failure))
            }
            Action::Answer(answer) => {
                let reply = match Reply::make(&answer, &ask, number) {
                    Ok(reply) => reply,
                    Err(said) => {
                        gone.forget();
                        return Ok(refuse(
                            record,
                            protocol,
                            400,
                            format!("step {step}: {said}"),
                        ));
                    }
                };
                record["served"] = json!(reply.summary());
                self.record(record);
                if answer.breaks == Break::BeforeAnswer {
                    gone.forget();
                    return Err(Dropped);
                }
                let gone = if answer.stall {
                    Some(gone)
                } else {
                    gone.forget();
                    None
                };
                Ok(sent(&ask, path, &reply, Some(&answer), gone))
            }
        }
    }

    /// Takes the next step of a conversation.
    fn step(&self, place: &Place) -> Result<(usize, Action)> {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if !runs.contains_key(place) {
            ensure!(
                runs.len() < MAX_RUNS,
                "at most {MAX_RUNS} runs in one server"
            );
            let script = match (&place.script, &self.default, &self.directory) {
                (None, Some(script), _) => Arc::clone(script),
                (None, None, _) => bail!("no --script FILE was given; use /s/<name>/..."),
                (Some(_), _, None) => bail!("no --scripts DIR was given for /s/<name>/..."),
                (Some(name), _, Some(directory)) => {
                    Arc::new(Script::read(&directory.join(format!("{name}.json")))?)
                }
            };
            runs.insert(place.clone(), Run { script, served: 0 });
        }
        let run = runs.get_mut(place).context("the run was just put there")?;
        let Some((number, action)) = run.script.step(run.served) else {
            bail!(
                "the script is over: its {} steps are all served",
                run.script.len()
            );
        };
        run.served += 1;
        Ok((number, action.clone()))
    }
}

impl Gone {
    /// For an answer that does end: nothing is logged.
    fn forget(mut self) {
        self.record = Value::Null;
    }
}

/// Splits `/s/<name>[/<run>]` off a path.
fn place(path: &str) -> Result<(Place, &str)> {
    let Some(rest) = path.strip_prefix("/s/") else {
        return Ok((
            Place {
                script: None,
                run: String::new(),
            },
            path,
        ));
    };
    let (name, rest) = rest
        .split_once('/')
        .context("a path goes on after /s/<name>")?;
    let (run, path) = match rest.split_once('/') {
        Some((first, _)) if is_root(first) => ("", rest),
        Some((run, path)) => (run, path),
        None => bail!("a path goes on after /s/<name>/<run>"),
    };
    for part in [name, run] {
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        ensure!(
            part.len() <= MAX_NAME_CHARS && !part.starts_with('.') && part.bytes().all(sound),
            "the names of scripts and runs have letters, digits, '-', '_' and '.' only"
        );
    }
    ensure!(!name.is_empty(), "the name of the script is empty");
    Ok((
        Place {
            script: Some(name.to_owned()),
            run: run.to_owned(),
        },
        path,
    ))
}

/// Whether a path segment is where one of the protocols begins, and so no run's name.
fn is_root(segment: &str) -> bool {
    matches!(
        segment,
        "v1" | "v1beta" | "v1alpha" | "api" | "models" | "messages" | "responses"
    )
}

/// The requests that no script has to do with.
fn plumbing(method: &Method, path: &str, body_bytes: usize) -> Option<Response<Body>> {
    let path = path.trim_start_matches('/');
    if path == "api/hello" {
        return Some(json_answer(StatusCode::OK, &json!({"message": "hello"})));
    }
    if path.ends_with("/count_tokens") {
        return Some(json_answer(
            StatusCode::OK,
            &json!({"input_tokens": body_bytes / 4}),
        ));
    }
    if path.ends_with(":countTokens") {
        return Some(json_answer(
            StatusCode::OK,
            &json!({"totalTokens": body_bytes / 4}),
        ));
    }
    if method == Method::GET && (path == "models" || path.ends_with("/models")) {
        // The three families of clients each read their own fields of this one document.
        let entry = json!({
            "id": "fake-model",
            "object": "model",
            "type": "model",
            "display_name": "Fake model",
            "created_at": "2026-01-01T00:00:00Z",
        });
        let gemini = json!({
            "name": "models/fake-model",
            "displayName": "Fake model",
            "supportedGenerationMethods": ["generateContent"],
        });
        let models = if path.starts_with("v1beta") {
            json!([gemini])
        } else {
            json!([])
        };
        let list = json!({"object": "list", "data": [entry], "has_more": false, "models": models});
        return Some(json_answer(StatusCode::OK, &list));
    }
    None
}

fn json_answer(status: StatusCode, body: &Value) -> Response<Body> {
    let full = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {});
    with_type(status, "application/json", full.boxed_unsync())
}

fn with_type(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// The answer to a mistake of the test: agents give up on it at once.
fn refusal(protocol: Protocol, status: u16, said: &str) -> Response<Body> {
    failed(
        protocol,
        &Failure {
            status,
            message: format!("fake-model: {said}"),
            error_type: None,
            headers: vec![(
                HeaderName::from_static("x-should-retry"),
                HeaderValue::from_static("false"),
            )],
            slow_ms: 0,
        },
    )
}

fn failed(protocol: Protocol, failure: &Failure) -> Response<Body> {
    let status = StatusCode::from_u16(failure.status).unwrap_or(StatusCode::BAD_REQUEST);
    let mut answer = json_answer(status, &wire::failure(protocol, failure));
    answer.headers_mut().extend(failure.headers.iter().cloned());
    answer
}

fn sent(
    ask: &Ask,
    path: &str,
    reply: &Reply,
    answer: Option<&Answer>,
    gone: Option<Gone>,
) -> Response<Body> {
    let (kind, mut chunks) = chunks(ask, path, reply);
    let Some(answer) = answer else {
        return with_type(StatusCode::OK, kind, flow(chunks, End::Whole, 0, None));
    };
    if answer.malformed {
        break_json(&mut chunks, ask.stream);
    }
    let total: usize = chunks.iter().map(Bytes::len).sum();
    let end = match answer.breaks {
        Break::AfterBytes(bytes) => {
            keep(&mut chunks, bytes);
            End::Cut
        }
        Break::HalfWay => {
            keep(&mut chunks, total / 2);
            End::Cut
        }
        Break::BeforeAnswer => End::Cut,
        Break::Nowhere if answer.stall => {
            keep(&mut chunks, total / 2);
            End::Stall
        }
        Break::Nowhere => End::Whole,
    };
    let mut built = with_type(
        StatusCode::OK,
        kind,
        flow(chunks, end, answer.slow_ms, gone),
    );
    built.headers_mut().extend(answer.headers.iter().cloned());
    built
}

fn chunks(ask: &Ask, path: &str, reply: &Reply) -> (&'static str, VecDeque<Bytes>) {
    if ask.stream {
        let events = wire::events(ask.protocol, reply).into_iter();
        (
            "text/event-stream",
            events.map(|event| Bytes::from(event.into_text())).collect(),
        )
    } else if path.ends_with(":streamGenerateContent") {
        // Without `alt=sse`, Gemini streams one JSON array.
        let documents: Vec<_> = wire::events(ask.protocol, reply)
            .into_iter()
            .map(|event| event.data)
            .collect();
        let array = format!("[{}]", documents.join(",\n"));
        ("application/json", VecDeque::from([Bytes::from(array)]))
    } else {
        let whole = wire::whole(ask.protocol, reply).to_string();
        ("application/json", VecDeque::from([Bytes::from(whole)]))
    }
}

/// Breaks the JSON of the chunk in the middle; it is still delivered as it should be.
fn break_json(chunks: &mut VecDeque<Bytes>, events: bool) {
    let middle = chunks.len() / 2;
    if let Some(chunk) = chunks.get_mut(middle) {
        let mut broken = chunk[..chunk.len() / 2].to_vec();
        if events {
            broken.extend(b"\n\n");
        }
        *chunk = Bytes::from(broken);
    }
}

/// Keeps the first `bytes` bytes.
fn keep(chunks: &mut VecDeque<Bytes>, bytes: usize) {
    let mut left = bytes;
    for chunk in chunks.iter_mut() {
        chunk.truncate(left);
        left -= chunk.len();
    }
    chunks.retain(|chunk| !chunk.is_empty());
}

#[derive(Debug, Clone, Copy)]
enum End {
    Whole,
    Cut,
    Stall,
}

/// A body that sends its chunks one by one and then ends as it is told to.
fn flow(chunks: VecDeque<Bytes>, end: End, slow_ms: u64, gone: Option<Gone>) -> Body {
    if chunks.len() == 1 && slow_ms == 0 && matches!(end, End::Whole) {
        let whole = chunks.into_iter().next().unwrap_or_default();
        return Full::new(whole)
            .map_err(|never| match never {})
            .boxed_unsync();
    }
    let state = (chunks, gone, false);
    let stream = stream::unfold(state, move |(mut chunks, gone, ended)| async move {
        if ended {
            return None;
        }
        // Being pending once lets hyper flush what it has, so that a cut falls where it should.
        tokio::task::yield_now().await;
        if let Some(chunk) = chunks.pop_front() {
            tokio::time::sleep(Duration::from_millis(slow_ms)).await;
            return Some((Ok(Frame::data(chunk)), (chunks, gone, false)));
        }
        match end {
            End::Whole => None,
            End::Cut => Some((Err(io::Error::other(Dropped)), (chunks, gone, true))),
            End::Stall => {
                std::future::pending::<()>().await;
                None
            }
        }
    });
    StreamBody::new(stream).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_picks_script_and_run() {
        let found = |path| place(path).map(|(place, rest)| (place.script, place.run, rest));
        assert_eq!(
            found("/v1/messages").unwrap(),
            (None, String::new(), "/v1/messages")
        );
        let (script, run, rest) = found("/s/fix/r1/v1/messages").unwrap();
        assert_eq!(
            (script.as_deref(), run.as_str(), rest),
            (Some("fix"), "r1", "v1/messages")
        );
        let (script, run, rest) = found("/s/fix/v1/messages").unwrap();
        assert_eq!(
            (script.as_deref(), run.as_str(), rest),
            (Some("fix"), "", "v1/messages")
        );
        for bad in [
            "/s/",
            "/s/fix",
            "/s/fix/r1",
            "/s/../r/v1/messages",
            "/s/a%2f/r/v1/messages",
        ] {
            assert!(place(bad).is_err(), "{bad}");
        }
    }
}
