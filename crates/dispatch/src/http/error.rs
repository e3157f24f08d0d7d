//! Errors for callers: one table of stable codes, one match from a refusal to one of them, and
//! bodies and queries whose refusals have the same shape. Must not word anything a person reads twice.
use std::error::Error;

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Query, Request},
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
        request::Parts,
    },
    response::{IntoResponse, Response},
};
use dispatch_core::{
    causes::chain, config::SelectError, family::Refusal, id::TaskId, prompt::GuideError,
    redact::Redactor,
};
use dispatch_engine::view::VerbError;
use http_body_util::LengthLimitError;
use hyper::body::Body as HttpBody;
use serde::{Serialize, Serializer, de::DeserializeOwned};

use super::listen::TooSlow;
use crate::{
    api::{self, request::BadRequest},
    plan::PlanError,
};

/// Every code that an answer of ours can carry, with its status and what it means: one table, for
/// programs to rely on and for the documents. A row never changes its word. `after` is in how many
/// seconds to ask again; a row of status 429 does not compile without.
macro_rules! codes {
    ($($name:ident $status:literal $(after $again_s:literal)? $word:literal $means:literal;)*) => {
        $(const _: () = {
            let again_s: &[u64] = &[$($again_s)?];
            assert!($status != 429 || again_s.len() == 1, "with 429 comes Retry-After");
        };)*

        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Code {
            $($name,)*
        }

        impl Code {
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)*];

            pub(crate) fn status(self) -> u16 {
                match self {
                    $(Self::$name => $status,)*
                }
            }

            /// When to ask again, unless whoever refuses knows better.
            fn retry_after_s(self) -> Option<u64> {
                let again_s: &[u64] = match self {
                    $(Self::$name => &[$($again_s)?],)*
                };
                again_s.first().copied()
            }

            pub(crate) fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }

            pub(crate) fn means(self) -> &'static str {
                match self {
                    $(Self::$name => $means,)*
                }
            }
        }
    };
}

codes! {
    BadBody 400 "bad_body" "The body is no JSON, or has a field that is not known or of another type.";
    BadQuery 400 "bad_query" "A query parameter is not known, or its value cannot be read.";
    BadInput 400 "bad_input" "What is asked cannot be; the detail says why.";
    BadAttachment 400 "bad_attachment" "A file that comes along is too large, one too many, or its name is none.";
    BadGuide 400 "bad_guide" "Template, persona, plan, variables or effort do not fit.";
    BadGrant 400 "bad_grant" "No such grant is configured, or the agent cannot use our door.";
    BadImage 400 "bad_image" "An image is named wrongly, is missing, or goes with no container.";
    BadProject 400 "bad_project" "The repository's own dispatch.toml cannot be used.";
    BadRuntime 400 "bad_runtime" "There is no such container engine.";
    BadHead 400 "bad_head" "The head of the request is not one that can be relied on.";
    HostNotAllowed 400 "host_not_allowed" "The placement has no fence, and the configuration does not allow that.";
    LimitTooHigh 400 "limit_too_high" "A limit of the request is higher than the configuration's.";
    UnknownAgent 400 "unknown_agent" "No such agent is configured.";
    UnknownCheck 400 "unknown_check" "No such check is configured.";
    UnknownPlacement 400 "unknown_placement" "No such placement is configured.";
    UnknownRepo 400 "unknown_repo" "No such repository is configured.";
    UnknownText 400 "unknown_text" "There is no such template, persona or plan.";
    NoSuchPosition 400 "no_such_position" "The log ends before that event: it is another log.";
    NoToken 401 "no_token" "The request carries no token, or one of another kind than Bearer.";
    BadToken 401 "bad_token" "Nobody has that token: it was revoked, or never made.";
    TokenExpired 401 "token_expired" "The token's time is over.";
    WrongScope 403 "wrong_scope" "The token is for something else.";
    NotGranted 403 "not_granted" "The agent's grant does not go so far; the detail lists what is outside.";
    NotForAgents 403 "not_for_agents" "The route is for people and their programs.";
    ForeignHost 403 "foreign_host" "The Host of the request is none that this server answers for.";
    ForeignOrigin 403 "foreign_origin" "A page of another origin has sent it.";
    NoRoute 404 "no_route" "There is nothing at that path.";
    NoSuchTask 404 "no_such_task" "There is no task of that id.";
    NoSuchRun 404 "no_such_run" "The task has no run of that number.";
    NoSuchMessage 404 "no_such_message" "That is no number of a message.";
    NoSuchAsk 404 "no_such_ask" "That is no number of an ask.";
    NoMethod 405 "no_method" "There is something at that path, and not for that method.";
    TooSlow 408 "too_slow" "The body did not come in time.";
    WrongState 409 "wrong_state" "The task is in a state where that cannot be done.";
    WorkspaceTaken 409 "workspace_taken" "Another task has the workspace.";
    NothingLeft 409 "nothing_left" "The grant allows it, and its budget, places or time are used up.";
    NothingToDo 409 "nothing_to_do" "There is nothing that this could be done with.";
    KeyInUse 409 after 1 "key_in_use" "The first request with this Idempotency-Key is still being answered.";
    TooLarge 413 "too_large" "The body is longer than that route takes.";
    KeyUsed 422 "key_used" "Another request came with this Idempotency-Key.";
    QueueFull 429 after 30 "queue_full" "So many tasks wait already; try again after Retry-After.";
    TooManyWait 429 after 10 "too_many_wait" "So many callers wait for ends already; try again after Retry-After.";
    TooManyGuesses 429 after 60 "too_many_guesses" "Too many wrong tokens came from there; try again after Retry-After.";
    TooManySessions 429 after 60 "too_many_sessions" "So many sessions of MCP live; end one, or try again after Retry-After.";
    TooManyConnections 429 after 5 "too_many_connections" "So many connections of that caller are open; close some, or try again after Retry-After.";
    TooManyBytes 429 after 5 "too_many_bytes" "So many bytes of requests of that caller are worked on; try again after Retry-After.";
    TooManyStreams 429 after 10 "too_many_streams" "So many streams of events are open; try again after Retry-After.";
    Failed 500 "failed" "It was tried and did not work; the detail says what.";
    DoneUnseen 500 "done_unseen" "It is done and in the log, and how the task stands could not be shown; `task` names it.";
    EngineGone 503 "engine_gone" "The engine has ended; nothing has happened.";
    DiskFull 507 "disk_full" "There is too little room on the disk of the data directory.";
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

#[derive(Debug)]
pub(crate) struct Problem {
    code: Code,
    detail: String,
    retry_after_s: Option<u64>,
    /// What was done to it is durable all the same.
    done_to: Option<TaskId>,
}

impl Problem {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            retry_after_s: code.retry_after_s(),
            done_to: None,
        }
    }

    /// What was asked is done, and cannot be shown: to ask again would be to do it twice.
    pub(crate) fn unseen(task: TaskId, error: &VerbError) -> Self {
        let detail = format!(
            "show task {task}: what was asked is done and must not be asked again; {}",
            chain(error)
        );
        Self {
            done_to: Some(task),
            ..Self::new(Code::DoneUnseen, detail)
        }
    }

    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    pub(crate) fn code(&self) -> Code {
        self.code
    }
}

impl From<VerbError> for Problem {
    fn from(error: VerbError) -> Self {
        let code = match &error {
            VerbError::NoSuchTask { .. } => Code::NoSuchTask,
            VerbError::QueueFull { .. } => Code::QueueFull,
            VerbError::WorkspaceTaken { .. } => Code::WorkspaceTaken,
            VerbError::KeyUsed => Code::KeyUsed,
            VerbError::WrongState { .. } => Code::WrongState,
            VerbError::Nothing { .. } => Code::NothingToDo,
            VerbError::Refused(Refusal::Spent { .. }) => Code::NothingLeft,
            VerbError::Refused(_) => Code::NotGranted,
            VerbError::TooManyWait { .. } => Code::TooManyWait,
            VerbError::Attachment(_) => Code::BadAttachment,
            VerbError::BadInput { .. } => Code::BadInput,
            VerbError::DiskFull { .. } => Code::DiskFull,
            VerbError::Failed { .. } => Code::Failed,
            VerbError::Gone => Code::EngineGone,
        };
        Self::new(code, chain(&error))
    }
}

impl From<PlanError> for Problem {
    fn from(error: PlanError) -> Self {
        let code = match error {
            PlanError::Agent(_) => Code::UnknownAgent,
            PlanError::Base(_) => Code::BadInput,
            PlanError::Git(_) | PlanError::Prompt(_) => Code::Failed,
        };
        Self::new(code, chain(&error))
    }
}

impl From<BadRequest> for Problem {
    fn from(error: BadRequest) -> Self {
        let code = match &error {
            BadRequest::Agent(SelectError::Unknown { .. }) => Code::UnknownAgent,
            BadRequest::UnknownPlacement { .. } => Code::UnknownPlacement,
            BadRequest::HostNotAllowed(_) => Code::HostNotAllowed,
            BadRequest::UnknownCheck { .. } => Code::UnknownCheck,
            BadRequest::Repo { .. } => Code::UnknownRepo,
            BadRequest::Agent(_)
            | BadRequest::TwoModels
            | BadRequest::ModelAndChain
            | BadRequest::DenyAlways
            | BadRequest::Rules { .. }
            | BadRequest::Chain(_)
            | BadRequest::NoReview(_)
            | BadRequest::Text(_)
            | BadRequest::Dir(_)
            | BadRequest::Together { .. }
            | BadRequest::NoPlace
            | BadRequest::Number
            | BadRequest::TwoScopes
            | BadRequest::Page(_)
            | BadRequest::State { .. }
            | BadRequest::Permissions { .. }
            | BadRequest::Servers(_)
            | BadRequest::Name(_) => Code::BadInput,
            BadRequest::Guide(GuideError::Unknown { .. }) => Code::UnknownText,
            BadRequest::Guide(_) | BadRequest::Effort { .. } => Code::BadGuide,
            BadRequest::Attach(_) => Code::BadAttachment,
            BadRequest::Project(_) => Code::BadProject,
            BadRequest::Limit(_) => Code::LimitTooHigh,
            BadRequest::Image(_) | BadRequest::NoImage(_) | BadRequest::NoContainer(_) => {
                Code::BadImage
            }
            BadRequest::Runtime(_) => Code::BadRuntime,
            BadRequest::UnknownGrant { .. } | BadRequest::NoDoor { .. } => Code::BadGrant,
        };
        Self::new(code, error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let body = api::Problem {
            status,
            code: self.code.word().into(),
            // It may quote what was asked, or what git said.
            detail: Redactor::shapes().redact(&self.detail),
            task: self.done_to.map(|task| task.to_string()),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("application/problem+json");
        headers.insert(CONTENT_TYPE, kind);
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer realm=\"dispatch\"");
            headers.insert(WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

pub(crate) async fn no_route() -> Problem {
    Problem::new(Code::NoRoute, "find that path: there is none")
}

pub(crate) async fn no_method() -> Problem {
    Problem::new(
        Code::NoMethod,
        "do that: the path is there, but not for this method",
    )
}

/// A JSON body; an empty one reads as `{}`, for requests that need nothing.
#[derive(Debug)]
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|error| unread(&error))?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text)
            .map(Self)
            .map_err(|error| Problem::new(Code::BadBody, format!("read the request: {error}")))
    }
}

/// A body as it came, up to so many bytes.
pub(crate) async fn whole(body: axum::body::Body, bytes_max: usize) -> Result<Bytes, Problem> {
    // What is said to be too long is not waited for.
    let said = HttpBody::size_hint(&body).lower();
    if usize::try_from(said).unwrap_or(usize::MAX) > bytes_max {
        let detail = format!("read the request: its body has {said} bytes, {bytes_max} are taken");
        return Err(Problem::new(Code::TooLarge, detail));
    }
    let body = axum::body::to_bytes(body, bytes_max).await;
    body.map_err(|error| unread(&error))
}

/// Why a body was not read: too long, too slow, or broken off.
fn unread(error: &(dyn Error + 'static)) -> Problem {
    let mut code = Code::BadBody;
    let mut cause = Some(error);
    while let Some(inner) = cause {
        if inner.is::<LengthLimitError>() {
            code = Code::TooLarge;
        } else if inner.is::<TooSlow>() {
            code = Code::TooSlow;
        }
        cause = inner.source();
    }
    Problem::new(code, format!("read the request: {error}"))
}

/// The query of a request; what is not known in it is refused.
#[derive(Debug)]
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = Query::try_from_uri(&parts.uri);
        query.map(|Query(asked)| Self(asked)).map_err(|error| {
            let mut what = error.to_string();
            if let Some(cause) = error.source() {
                what = cause.to_string();
            }
            Problem::new(Code::BadQuery, format!("read the query: {what}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body as Raw;

    use super::*;
    use crate::api::request;

    async fn ask(body: &'static str) -> Result<request::Force, Problem> {
        let request = Request::post("/").body(Raw::from(body)).unwrap();
        let Body(stop) = Body::<request::Stop>::from_request(request, &()).await?;
        Ok(stop.force)
    }

    #[tokio::test]
    async fn bodies_are_strict() {
        assert_eq!(ask("").await.unwrap(), request::Force::Ask);
        assert_eq!(
            ask(r#"{"force": "kill"}"#).await.unwrap(),
            request::Force::Kill
        );
        for bad in [r#"{"hard": true}"#, "{", "[]x"] {
            let problem = ask(bad).await.unwrap_err();
            assert_eq!(problem.code, Code::BadBody, "{bad}");
        }
    }

    #[test]
    fn who_is_to_come_again_is_told_when() {
        for code in Code::ALL.iter().filter(|code| code.status() == 429) {
            let response = Problem::new(*code, "x").into_response();
            let after = response.headers()[RETRY_AFTER].to_str().unwrap();
            assert!(after.parse::<u64>().unwrap() > 0, "{code:?}");
        }
    }

    #[test]
    fn causes_are_told() {
        let error = VerbError::Failed {
            doing: "make the diff".into(),
            source: Box::new(std::io::Error::other("no git")),
        };
        let problem = Problem::from(error);
        assert_eq!(problem.detail, "make the diff: no git");
        assert_eq!(
            problem.into_response().headers()[CONTENT_TYPE],
            "application/problem+json"
        );
    }
}
