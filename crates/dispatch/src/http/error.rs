//! Errors for callers: one match from a refusal to a status and a stable code, and JSON bodies
//! whose refusals have the same shape. Must not word anything a person reads twice.

use std::error::Error;

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, Request},
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use dispatch_core::{config::SelectError, family::Refusal, prompt::GuideError, redact::Redactor};
use dispatch_engine::view::VerbError;
use serde::de::DeserializeOwned;

use crate::api::{self, request::BadRequest};

#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
        }
    }
}

impl From<VerbError> for Problem {
    fn from(error: VerbError) -> Self {
        let (status, code) = match &error {
            VerbError::NoSuchTask { .. } => (StatusCode::NOT_FOUND, "no_such_task"),
            VerbError::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            VerbError::WorkspaceTaken { .. } => (StatusCode::CONFLICT, "workspace_taken"),
            VerbError::WrongState { .. } => (StatusCode::CONFLICT, "wrong_state"),
            VerbError::Nothing { .. } => (StatusCode::CONFLICT, "nothing_to_do"),
            VerbError::Refused(Refusal::Spent { .. }) => (StatusCode::CONFLICT, "nothing_left"),
            VerbError::Refused(_) => (StatusCode::FORBIDDEN, "not_granted"),
            VerbError::TooManyWait { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_many_wait"),
            VerbError::Attachment(_) => (StatusCode::BAD_REQUEST, "bad_attachment"),
            VerbError::BadInput { .. } => (StatusCode::BAD_REQUEST, "bad_input"),
            VerbError::DiskFull { .. } => (StatusCode::INSUFFICIENT_STORAGE, "disk_full"),
            VerbError::Failed { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
            VerbError::Gone => (StatusCode::SERVICE_UNAVAILABLE, "engine_gone"),
        };
        let mut detail = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            detail = format!("{detail}: {inner}");
            cause = inner.source();
        }
        Self::new(status, code, detail)
    }
}

impl From<BadRequest> for Problem {
    fn from(error: BadRequest) -> Self {
        let code = match &error {
            BadRequest::Agent(SelectError::Unknown { .. }) => "unknown_agent",
            BadRequest::UnknownPlacement { .. } => "unknown_placement",
            BadRequest::HostNotAllowed(_) => "host_not_allowed",
            BadRequest::UnknownCheck { .. } => "unknown_check",
            BadRequest::Repo { .. } => "unknown_repo",
            BadRequest::Agent(_)
            | BadRequest::TwoModels
            | BadRequest::NoReview(_)
            | BadRequest::Text(_)
            | BadRequest::Dir(_)
            | BadRequest::Together { .. }
            | BadRequest::NoPlace
            | BadRequest::Number
            | BadRequest::TwoScopes
            | BadRequest::Permissions { .. }
            | BadRequest::Name(_) => "bad_input",
            BadRequest::Guide(GuideError::Unknown { .. }) => "unknown_text",
            BadRequest::Guide(_) | BadRequest::Effort { .. } => "bad_guide",
            BadRequest::Attach(_) => "bad_attachment",
            BadRequest::Project(_) => "bad_project",
            BadRequest::Limit(_) => "limit_too_high",
            BadRequest::Image(_) | BadRequest::NoImage(_) | BadRequest::NoContainer(_) => {
                "bad_image"
            }
            BadRequest::Runtime(_) => "bad_runtime",
            BadRequest::UnknownGrant { .. } | BadRequest::NoDoor { .. } => "bad_grant",
        };
        Self::new(StatusCode::BAD_REQUEST, code, error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = api::Problem {
            status: self.status.as_u16(),
            code: self.code.into(),
            // It may quote what was asked, or what git said.
            detail: Redactor::shapes().redact(&self.detail),
        };
        let mut response = (self.status, Json(body)).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }
}

pub(crate) async fn no_route() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "no_route",
        "find that path: there is none",
    )
}

/// A JSON body; an empty one reads as `null`, for requests that need nothing.
#[derive(Debug)]
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = Bytes::from_request(request, state).await.map_err(|error| {
            Problem::new(
                error.status(),
                "bad_body",
                format!("read the request: {error}"),
            )
        })?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text).map(Self).map_err(|error| {
            let what = format!("read the request: {error}");
            Problem::new(StatusCode::BAD_REQUEST, "bad_body", what)
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
            assert_eq!(
                (problem.status.as_u16(), problem.code),
                (400, "bad_body"),
                "{bad}"
            );
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
