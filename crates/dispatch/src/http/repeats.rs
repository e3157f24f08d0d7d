//! Requests that may come again: `Idempotency-Key` makes the second one the first one's answer.
//! Must not be what keeps a task from being made twice after a crash: for what makes something the
//! key goes on to the engine, which writes it down in the same commit (`core::keys`).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{FromRequestParts, Request},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, request::Parts},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use dispatch_core::{
    hex::hex,
    keys::{KEPT_MS, RequestKey},
};
use hyper::body::Body as HttpBody;
use ring::hmac;

use super::{
    Ctx,
    caller::{self, Caller},
    error::{Code, Problem},
    room::Portion,
};

pub(crate) const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// `true`: this is what was answered before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const KEY_BYTES_MAX: usize = 255;
/// Answers that are kept. Where there are more, whoever has most forgets its oldest, so that nobody's
/// flood washes another's away; a request that made something is still known to the engine then.
const ANSWERS_MAX: usize = 1000;
/// Of all of them together.
const ANSWERS_BYTES_MAX: usize = 32 << 20;
/// What else the hashes of these are made of is another's.
const PURPOSE: &[u8] = b"dispatch request key 1";

/// An answer as it went out.
#[derive(Clone, Debug)]
struct Kept {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

#[derive(Debug)]
enum Entry {
    /// It is being answered.
    Open { request: String },
    Done {
        request: String,
        whose: String,
        kept: Kept,
        at: Instant,
    },
}

/// What is kept of one caller.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    answers: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Table {
    entries: BTreeMap<String, Entry>,
    /// Of answers, the oldest first.
    order: VecDeque<String>,
    bytes: usize,
    shares: BTreeMap<String, Share>,
}

/// What was asked with a key, and what was answered, as long as this engine lives.
#[derive(Debug, Default)]
pub(crate) struct Repeats(Mutex<Table>);

/// What a key says of a request that has just come.
enum Known {
    New,
    Before(Kept),
}

impl Table {
    fn forget(&mut self, place: usize) {
        let Some(key) = self.order.remove(place) else {
            return;
        };
        let Some(Entry::Done { whose, kept, .. }) = self.entries.remove(&key) else {
            return;
        };
        self.bytes = self.bytes.saturating_sub(kept.body.len());
        if let Some(share) = self.shares.get_mut(&whose) {
            share.answers = share.answers.saturating_sub(1);
            share.bytes = share.bytes.saturating_sub(kept.body.len());
            if share.answers == 0 {
                self.shares.remove(&whose);
            }
        }
    }

    fn keep(&mut self, key: &RequestKey, whose: &str, kept: Kept, at: Instant) {
        let share = self.shares.entry(whose.to_owned()).or_default();
        share.answers += 1;
        share.bytes = share.bytes.saturating_add(kept.body.len());
        self.bytes = self.bytes.saturating_add(kept.body.len());
        let done = Entry::Done {
            request: key.request.clone(),
            whose: whose.to_owned(),
            kept,
            at,
        };
        self.entries.insert(key.key.clone(), done);
        self.order.push_back(key.key.clone());
    }

    /// The place of the oldest answer of whoever has most.
    fn oldest_of_most(&self, most: impl Fn(&Share) -> usize) -> usize {
        let greediest = self.shares.iter().max_by_key(|(_, share)| most(share));
        let greediest = greediest.map(|(whose, _)| whose);
        let its = |key: &String| {
            let entry = self.entries.get(key);
            matches!(entry, Some(Entry::Done { whose, .. }) if Some(whose) == greediest)
        };
        self.order.iter().position(its).unwrap_or(0)
    }

    fn is_old(&self, now: Instant) -> bool {
        let oldest = self.order.front().and_then(|key| self.entries.get(key));
        match oldest {
            Some(Entry::Done { at, .. }) => {
                now.saturating_duration_since(*at) >= Duration::from_millis(KEPT_MS)
            }
            Some(Entry::Open { .. }) | None => false,
        }
    }

    fn forget_old(&mut self, now: Instant) {
        while self.is_old(now) {
            self.forget(0);
        }
        while self.order.len() > ANSWERS_MAX {
            self.forget(self.oldest_of_most(|share| share.answers));
        }
        while self.bytes > ANSWERS_BYTES_MAX {
            self.forget(self.oldest_of_most(|share| share.bytes));
        }
    }
}

impl Repeats {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, key: &RequestKey, now: Instant) -> Result<Known, Problem> {
        let mut table = self.table();
        table.forget_old(now);
        let other = |request: &String| *request != key.request;
        match table.entries.get(&key.key) {
            Some(Entry::Open { request } | Entry::Done { request, .. }) if other(request) => {
                let detail = "take the request: its Idempotency-Key came with another one before; \
                              make a new key for each request";
                Err(Problem::new(Code::KeyUsed, detail))
            }
            Some(Entry::Open { .. }) => {
                let detail = "take the request: the first one with its Idempotency-Key is still \
                              being answered; ask again";
                Err(Problem::new(Code::KeyInUse, detail))
            }
            Some(Entry::Done { kept, .. }) => Ok(Known::Before(kept.clone())),
            None => {
                let request = key.request.clone();
                table
                    .entries
                    .insert(key.key.clone(), Entry::Open { request });
                Ok(Known::New)
            }
        }
    }

    /// `None`: nothing came of it, and it may be tried again.
    fn end(&self, key: &RequestKey, whose: &str, kept: Option<Kept>, now: Instant) {
        let mut table = self.table();
        let Some(kept) = kept else {
            table.entries.remove(&key.key);
            return;
        };
        table.keep(key, whose, kept, now);
        table.forget_old(now);
    }
}

/// Open until it is said how it ended: a handler that panics leaves no key behind.
struct Opened {
    repeats: Arc<Repeats>,
    key: RequestKey,
    whose: String,
    kept: Option<Kept>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        let kept = self.kept.take();
        self.repeats
            .end(&self.key, &self.whose, kept, Instant::now());
    }
}

/// For handlers that make something: the key that their request came with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Key(pub(crate) Option<RequestKey>);

impl<S: Send + Sync> FromRequestParts<S> for Key {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

/// Goes on to the handler of a POST, unless it has been there with this request before.
pub(crate) async fn once(
    ctx: &Ctx,
    mut parts: Parts,
    (body, place): (Bytes, Portion),
    next: Next,
) -> Result<Response, Problem> {
    let Some(text) = key_of(&parts.headers)? else {
        let request = Request::from_parts(parts, Body::from(body));
        let response = next.run(request).await;
        drop(place);
        return Ok(response);
    };
    let caller = caller::of(&parts)?;
    let key = named(&text, &caller, &parts, &body);
    match ctx.repeats.begin(&key, Instant::now())? {
        Known::Before(kept) => return Ok(again(kept)),
        Known::New => {}
    }
    let mut opened = Opened {
        repeats: Arc::clone(&ctx.repeats),
        key: key.clone(),
        whose: caller.to_string(),
        kept: None,
    };
    parts.extensions.insert(Key(Some(key)));
    let request = Request::from_parts(parts, Body::from(body));
    let busy = ctx.busy.enter();
    // On its own, so that a client that hangs up leaves nothing half done and half remembered.
    let answered = tokio::spawn(async move {
        let response = next.run(request).await;
        let (response, kept) = remember(response).await;
        opened.kept = kept;
        drop((opened, busy, place));
        response
    });
    answered
        .await
        .map_err(|_| Problem::new(Code::Failed, "answer the request: a bug of ours ended it"))
}

fn key_of(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut all = headers.get_all(KEY).iter();
    let Some(first) = all.next() else {
        return Ok(None);
    };
    let text = first.to_str().ok().filter(|text| {
        (1..=KEY_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
    });
    match (text, all.next()) {
        (Some(text), None) => Ok(Some(text.to_owned())),
        _ => {
            let detail = format!(
                "read the Idempotency-Key: it comes once, with 1 to {KEY_BYTES_MAX} visible \
                 characters of ASCII"
            );
            Err(Problem::new(Code::BadHead, detail))
        }
    }
}

/// By hashes: the key's own text signs the request, and is nowhere kept, so that what the log has of a
/// request tells nothing of its content.
fn named(text: &str, caller: &Caller, parts: &Parts, body: &Bytes) -> RequestKey {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes());
    let path = parts.uri.path_and_query();
    let path = path.map_or("/", |path| path.as_str());
    let whose = caller.to_string();
    let method = parts.method.as_str().as_bytes();
    RequestKey {
        key: signed(&secret, &[b"whose", whose.as_bytes()]),
        request: signed(&secret, &[b"what", method, path.as_bytes(), body]),
    }
}

/// Part by part: a body is not copied for it.
fn signed(secret: &hmac::Key, parts: &[&[u8]]) -> String {
    let mut sign = hmac::Context::with_key(secret);
    sign.update(PURPOSE);
    for part in parts {
        sign.update(&[0]);
        sign.update(part);
    }
    hex(sign.sign().as_ref())
}

/// Only what was done is remembered: a refusal has changed nothing, and may end otherwise next time.
async fn remember(response: Response) -> (Response, Option<Kept>) {
    if !response.status().is_success() {
        return (response, None);
    }
    let said = HttpBody::size_hint(response.body()).lower();
    if usize::try_from(said).unwrap_or(usize::MAX) > ANSWERS_BYTES_MAX {
        // It was done, so it is answered; asked again, it is done again.
        return (response, None);
    }
    let (parts, body) = response.into_parts();
    let Ok(body) = to_bytes(body, ANSWERS_BYTES_MAX).await else {
        let problem = Problem::new(Code::Failed, "answer the request: the answer is too long");
        return (problem.into_response(), None);
    };
    let kept = Kept {
        status: parts.status,
        headers: parts.headers.clone(),
        body: body.clone(),
    };
    (Response::from_parts(parts, Body::from(body)), Some(kept))
}

fn again(kept: Kept) -> Response {
    let mut response = Response::new(Body::from(kept.body));
    *response.status_mut() = kept.status;
    *response.headers_mut() = kept.headers;
    let yes = HeaderValue::from_static("true");
    response.headers_mut().insert(REPLAYED, yes);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: &str = "person";

    fn key(key: &str, request: &str) -> RequestKey {
        RequestKey {
            key: key.into(),
            request: request.into(),
        }
    }

    fn kept(bytes: usize) -> Option<Kept> {
        Some(Kept {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: vec![b'x'; bytes].into(),
        })
    }

    fn code(known: Result<Known, Problem>) -> Code {
        match known {
            Err(problem) => problem.code(),
            Ok(_) => panic!("it is taken"),
        }
    }

    #[test]
    fn a_key_is_one_request() {
        let (repeats, now) = (Repeats::default(), Instant::now());
        let (a, b) = (key("k", "a"), key("k", "b"));
        assert!(matches!(repeats.begin(&a, now), Ok(Known::New)));
        assert_eq!(code(repeats.begin(&a, now)), Code::KeyInUse);
        assert_eq!(code(repeats.begin(&b, now)), Code::KeyUsed);
        repeats.end(&a, ME, None, now);
        assert!(matches!(repeats.begin(&b, now), Ok(Known::New)));
        repeats.end(&b, ME, kept(3), now);
        assert!(matches!(repeats.begin(&b, now), Ok(Known::Before(k)) if k.body.len() == 3));
        assert_eq!(code(repeats.begin(&a, now)), Code::KeyUsed);
        let later = now + Duration::from_millis(KEPT_MS);
        assert!(matches!(repeats.begin(&a, later), Ok(Known::New)));
    }

    #[test]
    fn answers_are_bounded_by_number_and_by_bytes() {
        let (repeats, now) = (Repeats::default(), Instant::now());
        for n in 0..ANSWERS_MAX + 10 {
            repeats.end(&key(&format!("{n}"), "r"), ME, kept(1), now);
        }
        assert_eq!(repeats.table().entries.len(), ANSWERS_MAX);
        for n in 0..3 {
            repeats.end(
                &key(&format!("big{n}"), "r"),
                ME,
                kept(ANSWERS_BYTES_MAX / 2),
                now,
            );
        }
        let table = repeats.table();
        assert!(table.bytes <= ANSWERS_BYTES_MAX);
        assert_eq!(table.entries.len(), table.order.len());
        assert!(table.entries.contains_key("big2") && !table.entries.contains_key("big0"));
    }

    #[test]
    fn a_flood_of_one_caller_leaves_the_others_theirs() {
        let (repeats, now) = (Repeats::default(), Instant::now());
        let (few, long) = (key("few", "r"), key("long", "r"));
        repeats.end(&few, ME, kept(1), now);
        repeats.end(&long, "token ci", kept(ANSWERS_BYTES_MAX / 4), now);
        for n in 0..2 * ANSWERS_MAX {
            let bytes = ANSWERS_BYTES_MAX / 100;
            repeats.end(&key(&format!("{n}"), "r"), "run x", kept(bytes), now);
        }
        for kept in [&few, &long] {
            assert!(matches!(repeats.begin(kept, now), Ok(Known::Before(_))));
        }
        let later = now + Duration::from_millis(KEPT_MS);
        repeats.table().forget_old(later);
        let table = repeats.table();
        assert_eq!(
            (table.bytes, table.shares.len(), table.order.len()),
            (0, 0, 0)
        );
    }

    #[tokio::test]
    async fn an_answer_that_is_too_long_to_keep_is_an_answer() {
        let body = Body::from(vec![b'x'; ANSWERS_BYTES_MAX + 1]);
        let (response, kept) = remember(Response::new(body)).await;
        assert!(response.status().is_success() && kept.is_none());
    }

    #[test]
    fn names_are_made_of_all_that_matters() {
        let name = |text: &str, caller: &Caller, method: &str, uri: &str, body: &'static str| {
            let request = Request::builder().method(method).uri(uri).body(()).unwrap();
            named(text, caller, &request.into_parts().0, &Bytes::from(body))
        };
        let token = Caller::Token {
            id: "1a2b3c4d".into(),
            name: "ci".into(),
            scopes: Default::default(),
        };
        let first = name("k", &Caller::Own, "POST", "/a", "{}");
        assert_eq!(first, name("k", &Caller::Own, "POST", "/a", "{}"));
        for other in [
            name("l", &Caller::Own, "POST", "/a", "{}"),
            name("k", &token, "POST", "/a", "{}"),
        ] {
            assert_ne!(first.key, other.key);
        }
        for other in [
            name("k", &Caller::Own, "POST", "/b", "{}"),
            name("k", &Caller::Own, "POST", "/a?x=1", "{}"),
            name("k", &Caller::Own, "POST", "/a", "{ }"),
        ] {
            assert_eq!(first.key, other.key);
            assert_ne!(first.request, other.request);
        }
        assert!(!format!("{first:?}").contains("\"k\""));
    }
}
