//! The table of routes: method, path, who may, what it is, and the types that go in and come out.
//! Nothing is served that is not a row here, and a row does not compile without saying who may.
//! Must not decide anything about tasks: handlers do, through the engine.
use std::{convert::Infallible, future::Future, sync::Arc, time::Instant};

use axum::{
    Json, Router,
    body::{Body as AnyBody, Bytes},
    extract::{DefaultBodyLimit, Path, Request, State, ws::WebSocketUpgrade},
    handler::Handler,
    http::{HeaderMap, HeaderValue, Method, StatusCode, request::Parts},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{MethodRouter, on},
};
use hyper::body::Body as HttpBody;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use tower::Service;

use super::{
    Ctx,
    caller::{Access, Caller, Scope},
    error::{self, Body, Code, Params, Problem},
    events,
    family::{self, Acting},
    letters,
    metrics::{self, RowMeter},
    openapi, own, reads,
    repeats::{self, Key},
    room::Portion,
    tasks,
};
use crate::{
    api::task::Task,
    mcp::{self, server::Tables},
};

/// Texts are limited by `limits.task_bytes`; secrets and JSON quoting come on top.
const BODY_BYTES_MAX: usize = 4 << 20;

/// What a route answers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Post,
    Delete,
    /// A protocol of its own, which looks at the method itself.
    Any,
}

impl Verb {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Delete => "DELETE",
            Self::Any => "ANY",
        }
    }
}

/// What kind of body an answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Json,
    Text,
    Bytes,
    /// Server-sent events.
    Events,
    /// What its own protocol says.
    Own,
}

type MakeSchema = fn(&mut SchemaGenerator) -> Schema;

/// What a handler takes and gives, as its own signature says it: documents cannot drift from it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sheet {
    pub(crate) query: Option<MakeSchema>,
    pub(crate) body: Option<MakeSchema>,
    pub(crate) answer: Option<(Answer, u16, Option<MakeSchema>)>,
}

/// A part of a request that a handler takes.
pub(crate) trait Takes {
    fn describe(sheet: &mut Sheet);
}

/// What a handler gives back.
pub(crate) trait Gives {
    fn describe(sheet: &mut Sheet);
}

impl Takes for State<Ctx> {
    fn describe(_: &mut Sheet) {}
}

impl Takes for Acting {
    fn describe(_: &mut Sheet) {}
}

impl Takes for Caller {
    fn describe(_: &mut Sheet) {}
}

impl Takes for Key {
    fn describe(_: &mut Sheet) {}
}

impl<T> Takes for Path<T> {
    fn describe(_: &mut Sheet) {}
}

impl<T: JsonSchema> Takes for Params<T> {
    fn describe(sheet: &mut Sheet) {
        sheet.query = Some(|made| made.subschema_for::<T>());
    }
}

impl<T: JsonSchema> Takes for Body<T> {
    fn describe(sheet: &mut Sheet) {
        sheet.body = Some(|made| made.subschema_for::<T>());
    }
}

impl<T: JsonSchema> Gives for Json<T> {
    fn describe(sheet: &mut Sheet) {
        let schema: MakeSchema = |made| made.subschema_for::<T>();
        sheet.answer = Some((Answer::Json, 200, Some(schema)));
    }
}

/// A new task: it is queued, and the rest comes later.
impl<T: Gives> Gives for (StatusCode, T) {
    fn describe(sheet: &mut Sheet) {
        T::describe(sheet);
        if let Some((_, status, _)) = &mut sheet.answer {
            *status = StatusCode::ACCEPTED.as_u16();
        }
    }
}

impl Gives for tasks::Page {
    fn describe(sheet: &mut Sheet) {
        Json::<Vec<Task>>::describe(sheet);
    }
}

impl Gives for metrics::Metrics {
    fn describe(sheet: &mut Sheet) {
        String::describe(sheet);
    }
}

impl Gives for reads::Piece {
    fn describe(sheet: &mut Sheet) {
        sheet.answer = Some((Answer::Bytes, 200, None));
    }
}

impl<T: Gives> Gives for reads::At<T> {
    fn describe(sheet: &mut Sheet) {
        T::describe(sheet);
    }
}

impl Gives for String {
    fn describe(sheet: &mut Sheet) {
        sheet.answer = Some((Answer::Text, 200, None));
    }
}

impl Gives for events::Blocks {
    fn describe(sheet: &mut Sheet) {
        sheet.answer = Some((Answer::Events, 200, None));
    }
}

impl Gives for events::Upgraded {
    fn describe(sheet: &mut Sheet) {
        sheet.answer = Some((Answer::Own, 101, None));
    }
}

impl Takes for HeaderMap {
    fn describe(_: &mut Sheet) {}
}

impl Takes for WebSocketUpgrade {
    fn describe(_: &mut Sheet) {}
}

impl<T: Gives> Gives for Result<T, Problem> {
    fn describe(sheet: &mut Sheet) {
        T::describe(sheet);
    }
}

/// A handler whose every part is known. `T` is what axum calls the handler's type.
pub(crate) trait Described<T> {
    fn sheet() -> Sheet;
}

macro_rules! described {
    ($($part:ident)*) => {
        impl<F, Fut, M, $($part),*> Described<(M, $($part,)*)> for F
        where
            F: FnOnce($($part),*) -> Fut,
            Fut: Future,
            Fut::Output: Gives,
            $($part: Takes,)*
        {
            fn sheet() -> Sheet {
                let mut sheet = Sheet::default();
                $($part::describe(&mut sheet);)*
                <Fut::Output as Gives>::describe(&mut sheet);
                sheet
            }
        }
    };
}
described!(A);

/// One that takes nothing.
impl<F, Fut> Described<((),)> for F
where
    F: FnOnce() -> Fut,
    Fut: Future,
    Fut::Output: Gives,
{
    fn sheet() -> Sheet {
        let mut sheet = Sheet::default();
        <Fut::Output as Gives>::describe(&mut sheet);
        sheet
    }
}
described!(A B);
described!(A B C);
described!(A B C D);
described!(A B C D E);

/// One row. Made by [`Route::new`] or [`Route::service`], which both ask who may.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) verb: Verb,
    pub(crate) path: &'static str,
    pub(crate) access: Access,
    pub(crate) summary: &'static str,
    pub(crate) sheet: Sheet,
    serve: MethodRouter<Ctx>,
    /// Bytes come along with the text.
    with_files: bool,
    /// A caller that asks again is asking anew: no answer is kept for its key.
    anew: bool,
}

impl Route {
    fn new<H, T>(
        verb: Verb,
        path: &'static str,
        access: Access,
        summary: &'static str,
        handler: H,
    ) -> Self
    where
        H: Handler<T, Ctx> + Described<T>,
        T: 'static,
    {
        use axum::routing::MethodFilter;
        let serve = match verb {
            Verb::Get => on(MethodFilter::GET, handler),
            Verb::Post => on(MethodFilter::POST, handler),
            Verb::Delete => on(MethodFilter::DELETE, handler),
            Verb::Any => axum::routing::any(handler),
        };
        Self {
            verb,
            path,
            access,
            summary,
            sheet: H::sheet(),
            serve,
            with_files: false,
            anew: false,
        }
    }

    /// A protocol of its own at one path, all methods.
    pub(crate) fn service<S>(
        path: &'static str,
        access: Access,
        summary: &'static str,
        service: S,
    ) -> Self
    where
        S: Service<Request, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Response: IntoResponse,
        S::Future: Send + 'static,
    {
        Self {
            verb: Verb::Any,
            path,
            access,
            summary,
            sheet: Sheet {
                answer: Some((Answer::Own, 200, None)),
                ..Sheet::default()
            },
            serve: axum::routing::any_service(service),
            with_files: false,
            anew: false,
        }
    }

    fn with_files(mut self) -> Self {
        self.with_files = true;
        self
    }

    fn anew(mut self) -> Self {
        self.anew = true;
        self
    }
}

/// Every route there is.
pub(crate) fn table() -> Vec<Route> {
    use Access::{AgentsToo, Needs};
    use Scope::{Admin, Answer, Dispatch, Read};
    use Verb::{Delete, Get, Post};
    #[rustfmt::skip]
    let table = vec![
        Route::new(Post, "/v1/tasks", AgentsToo(Dispatch), "Queue a task", tasks::dispatch).with_files(),
        Route::new(Get, "/v1/tasks", AgentsToo(Read), "List tasks", tasks::all),
        Route::new(Get, "/v1/tasks/{id}", AgentsToo(Read), "Look at a task", tasks::one),
        Route::new(Delete, "/v1/tasks/{id}", Needs(Admin), "Put a task away", tasks::remove),
        Route::new(Post, "/v1/tasks/{id}/answer", AgentsToo(Answer), "Answer its question", tasks::answer),
        Route::new(Post, "/v1/tasks/{id}/retry", Needs(Dispatch), "Try it again", tasks::retry),
        Route::new(Post, "/v1/tasks/{id}/resume", Needs(Dispatch), "Go on with it", tasks::resume),
        Route::new(Post, "/v1/tasks/{id}/say", AgentsToo(Dispatch), "Say something to it", tasks::say).with_files(),
        Route::new(Delete, "/v1/tasks/{id}/messages/{message}", Needs(Dispatch), "Withdraw a message", tasks::unsay),
        Route::new(Post, "/v1/tasks/{id}/compact", Needs(Dispatch), "Make its agent's conversation shorter", tasks::compact),
        Route::new(Post, "/v1/tasks/{id}/asks/{ask}", AgentsToo(Answer), "Allow or deny what its agent asks", tasks::permit),
        Route::new(Post, "/v1/tasks/{id}/stop", AgentsToo(Dispatch), "Stop it", tasks::stop),
        Route::new(Post, "/v1/tasks/{id}/detach", AgentsToo(Dispatch), "Its asker waits for it no more", family::detach),
        Route::new(Post, "/v1/wait", AgentsToo(Read), "Wait for the end of tasks", family::wait).anew(),
        Route::new(Get, "/v1/door", Access::Known, "What the caller may do here", family::door),
        Route::new(Post, "/v1/stop", Needs(Dispatch), "Stop every open task", tasks::stop_all),
        Route::new(Post, "/v1/tasks/{id}/undo", Needs(Admin), "Bring back what was put away", tasks::undo),
        Route::new(Post, "/v1/tasks/{id}/apply", Needs(Admin), "Bring its result into a repository", tasks::apply),
        Route::new(Get, "/v1/tasks/{id}/diff", AgentsToo(Read), "Its result as a patch", tasks::diff),
        Route::new(Get, "/v1/tasks/{id}/prompt", AgentsToo(Read), "What its agent was given to read", reads::prompt),
        Route::new(Get, "/v1/tasks/{id}/runs/{n}/log", AgentsToo(Read), "A piece of what a job wrote", reads::log),
        Route::new(Get, "/v1/pools", Needs(Read), "How the pools do", reads::pools),
        Route::new(Get, "/v1/usage", Needs(Read), "What runs have spent", reads::usage),
        Route::new(Get, "/v1/metrics", Needs(Read), "Numbers for Prometheus", metrics::metrics),
        Route::new(Get, "/v1/agents", Needs(Read), "Which agents are configured", reads::agents),
        Route::new(Get, "/v1/config", Needs(Admin), "What is in force, and where it comes from", reads::config),
        Route::new(Post, "/v1/plan", Needs(Dispatch), "What a task would be, without one", letters::planned),
        Route::new(Post, "/v1/letters", Needs(Dispatch), "Leave a letter for an agent", letters::send),
        Route::new(Post, "/v1/letters/fetch", Needs(Dispatch), "Hand out letters, which then count as read", letters::fetch),
        Route::new(Post, "/v1/letters/between", Needs(Read), "Look up letters", letters::between),
        Route::new(Post, "/v1/clean", Needs(Admin), "Put old tasks away", tasks::clean),
        Route::new(Get, "/v1/events", AgentsToo(Read), "The log from a position on, then live", events::follow),
        Route::new(Get, "/v1/events/ws", AgentsToo(Read), "The same over a WebSocket", events::socket),
        Route::new(Post, "/v1/secrets", Needs(Admin), "Hand over what queued runs lack", own::secrets),
        Route::new(Get, "/v1/needs", Needs(Read), "Names of secrets that queued runs lack", own::needs),
        Route::new(Post, "/v1/freeze", Needs(Admin), "Start nothing new, or do again", own::freeze),
        Route::new(Get, "/v1/openapi.json", Needs(Read), "This document", openapi::openapi),
        Route::new(Get, "/v1/health", Needs(Read), "Whether it serves, and what", own::health),
        Route::new(Post, "/v1/shutdown", Needs(Admin), "End the engine; jobs live on", own::shutdown),
    ];
    table
}

/// The table as a service. Whoever calls it says who calls: without a [`Caller`] everything is
/// refused, what is not there too. The tools of MCP are requests to the rows of the table, so their
/// row comes on top of it.
pub(crate) fn with_mcp(ctx: Ctx, tables: &'static Tables) -> Router {
    let all = everything(&ctx, tables);
    serve(ctx, all)
}

fn everything(ctx: &Ctx, tables: &'static Tables) -> Vec<Route> {
    let inside = serve(ctx.clone(), table());
    let mcp = mcp::http::service(inside, ctx, tables);
    let mut all = table();
    let summary = "The tools of MCP, as streamable HTTP";
    all.push(Route::service("/mcp", Access::Known, summary, mcp));
    all
}

fn serve(ctx: Ctx, table: Vec<Route>) -> Router {
    let files = body_bytes_max(ctx.config.limits.attach_bytes);
    let mut router = Router::new();
    for route in table {
        let bytes = if route.with_files {
            files
        } else {
            BODY_BYTES_MAX
        };
        let access = route.access;
        let meter = ctx.meter.row(route.verb.word(), route.path);
        // The limit is kept where a body is read, which is before its handler.
        let serve = route.serve.layer(DefaultBodyLimit::disable());
        let bounded = (ctx.clone(), bytes);
        let queried = route.sheet.query.is_some() || route.verb == Verb::Any;
        let serve = match route.verb {
            Verb::Post if route.anew => serve.layer(from_fn_with_state(bounded, whole_body)),
            Verb::Post => serve.layer(from_fn_with_state(bounded, take_body)),
            Verb::Get | Verb::Delete => serve.layer(from_fn(no_body)),
            Verb::Any => serve.layer(from_fn_with_state(bounded, whole_body)),
        };
        // Around all that reads a body, so that nothing of one is looked at for a stranger.
        let serve = serve
            .layer(from_fn(move |request, next| {
                no_query(queried, request, next)
            }))
            .layer(from_fn(move |request, next| admit(access, request, next)))
            .layer(from_fn(move |request, next| {
                measure(Arc::clone(&meter), request, next)
            }));
        router = router.route(route.path, serve);
    }
    let seq = from_fn_with_state(ctx.clone(), at_least);
    router
        .layer(seq)
        .method_not_allowed_fallback(error::no_method)
        .fallback(error::no_route)
        .layer(from_fn(known))
        .layer(from_fn_with_state(ctx.clone(), count))
        .with_state(ctx)
}

/// Base64 has four characters for three bytes. One file too many is told by its own error, so there is
/// room for more than is allowed.
pub(super) fn body_bytes_max(attach_bytes: u64) -> usize {
    let files = usize::try_from(attach_bytes).unwrap_or(usize::MAX);
    BODY_BYTES_MAX.saturating_add(files.saturating_mul(2))
}

/// The one place where it is decided whether a caller may go on to a handler.
async fn admit(access: Access, request: Request, next: Next) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    access.admits(&super::caller::of(&parts)?)?;
    Ok(next.run(Request::from_parts(parts, body)).await)
}

/// Reads a body whole: what is too long, too slow or broken off comes to no handler.
async fn take_body(
    State((ctx, bytes_max)): State<(Ctx, usize)>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let (body, place) = read(&ctx, bytes_max, &parts, body).await?;
    repeats::once(&ctx, parts, (body, place), next).await
}

/// The same where asking again is asking anew, or has ways of its own.
async fn whole_body(
    State((ctx, bytes_max)): State<(Ctx, usize)>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let (body, place) = read(&ctx, bytes_max, &parts, body).await?;
    let response = next.run(Request::from_parts(parts, body.into())).await;
    drop(place);
    Ok(response)
}

/// A whole body, and the room that it takes as long as it is worked on.
async fn read(
    ctx: &Ctx,
    bytes_max: usize,
    parts: &Parts,
    body: AnyBody,
) -> Result<(Bytes, Portion), Problem> {
    let said = HttpBody::size_hint(&body).exact();
    let said = said.map_or(bytes_max, |said| {
        usize::try_from(said).unwrap_or(usize::MAX)
    });
    let caller = super::caller::of(parts)?;
    // What is too long is refused as that.
    let mut place = ctx.rooms.bytes.take(&caller, said.min(bytes_max))?;
    let body = error::whole(body, bytes_max).await?;
    place.shrink(body.len());
    Ok((body, place))
}

/// Where nothing is asked in a query, whatever stands there was meant for another route.
async fn no_query(queried: bool, request: Request, next: Next) -> Result<Response, Problem> {
    if !queried && request.uri().query().is_some_and(|query| !query.is_empty()) {
        let detail = "read the query: this route takes none";
        return Err(Problem::new(Code::BadQuery, detail));
    }
    Ok(next.run(request).await)
}

/// What a handler would not read, two servers in a row could read as another request.
async fn no_body(request: Request, next: Next) -> Result<Response, Problem> {
    if !HttpBody::is_end_stream(request.body()) {
        let detail = "take the request: this method comes without a body";
        return Err(Problem::new(Code::BadBody, detail));
    }
    Ok(next.run(request).await)
}

/// What is read has a position that it is true at: exactly, where its handler says so, else everything
/// up to this is in it.
async fn at_least(State(ctx): State<Ctx>, request: Request, next: Next) -> Response {
    let (seq, read) = (ctx.engine.seq(), request.method() == Method::GET);
    let mut response = next.run(request).await;
    if read && response.status().is_success() {
        let headers = response.headers_mut();
        headers.entry(reads::SEQ).or_insert(HeaderValue::from(seq));
    }
    response
}

/// Also where there is no route: which paths there are is nobody's business who is not known.
async fn known(request: Request, next: Next) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    super::caller::of(&parts)?;
    Ok(next.run(Request::from_parts(parts, body)).await)
}

async fn measure(meter: Arc<RowMeter>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let response = next.run(request).await;
    meter.count(response.status(), begun.elapsed());
    response
}

async fn count(State(ctx): State<Ctx>, request: Request, next: Next) -> Response {
    let guard = ctx.busy.enter();
    let response = next.run(request).await;
    drop(guard);
    response
}

#[cfg(test)]
mod walk;
