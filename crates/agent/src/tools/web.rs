//! What is outside of the workspace: how far the tools of the web get, and asking a service there.
//! Must not reach anything without a grant, and must not send a key to anybody but its own service.

use std::{collections::BTreeMap, time::Duration};

use dispatch_core::{
    id::KeyName,
    models::{KeySource, KeyTable},
    web::{Reach, WebTable},
};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use serde_json::Value;

use super::Wrong;
use crate::{
    keys,
    net::{Answered, Bounds, Connector, Guard, NetError, Question, address, ask, bearer},
};

/// Of what a service says when it fails.
const SAID_CHARS: usize = 500;

/// What tools need for the world outside, as the opening gave it.
#[derive(Clone, Debug)]
pub(crate) struct Outside {
    pub(crate) connector: Connector,
    pub(crate) reach: Reach,
    pub(crate) web: WebTable,
    pub(crate) keys: BTreeMap<KeyName, KeyTable>,
}

impl Outside {
    pub(super) fn granted(&self, doing: &str) -> Result<(), Wrong> {
        match self.reach {
            Reach::Nothing => Err(Wrong::new(format!(
                "{doing}: this task has no network; do without it, or say in your answer that it \
                 is needed"
            ))),
            Reach::Listed | Reach::Everything => Ok(()),
        }
    }

    /// For an address that is not from the settings.
    pub(super) fn guard(&self) -> Guard<'_> {
        match self.reach {
            // The proxy of the fence knows the task's list, and looks at addresses itself.
            Reach::Listed => Guard::Open,
            Reach::Nothing | Reach::Everything => Guard::Public(&self.web.private),
        }
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            time: Duration::from_millis(self.web.request_ms),
            bytes: size(self.web.body_bytes_max),
        }
    }

    /// Asks a service of the settings, and reads its answer as JSON.
    pub(super) async fn service(&self, order: Service<'_>) -> Result<Value, Wrong> {
        let doing = order.doing;
        let answered = self.send(&order).await;
        let answered = answered.map_err(|error| Wrong::new(format!("{doing}: {error}")))?;
        json(doing, &answered)
    }

    async fn send(&self, order: &Service<'_>) -> Result<Answered, String> {
        let say = |error: NetError| error.to_string();
        let mut question = Question::get(address::parse(&order.url).map_err(say)?);
        let json = HeaderValue::from_static("application/json");
        question.headers.insert(ACCEPT, json.clone());
        if let Some(body) = &order.body {
            question.method = hyper::Method::POST;
            question.headers.insert(CONTENT_TYPE, json);
            question.body = body.to_string().into();
        }
        if let Some(source) = order.key {
            let name = order.key_name;
            let name: KeyName = name.parse().map_err(|error| format!("{error}"))?;
            let key = keys::read(&name, source).await;
            let key = key.map_err(|error| error.to_string())?;
            let (name, value) = bearer(key.expose()).map_err(say)?;
            question.headers.insert(name, value);
        }
        let asked = ask(&self.connector, Guard::Open, question, self.bounds()).await;
        asked.map_err(say)
    }
}

/// One request to a service.
pub(super) struct Service<'a> {
    /// For the model, when it fails.
    pub(super) doing: &'a str,
    pub(super) url: String,
    pub(super) key_name: &'static str,
    pub(super) key: Option<&'a KeySource>,
    /// None: it is asked with GET.
    pub(super) body: Option<Value>,
}

pub(super) fn json(doing: &str, answered: &Answered) -> Result<Value, Wrong> {
    let status = answered.status;
    if !status.is_success() {
        let said = said(&answered.body);
        return Err(Wrong::new(format!("{doing}: it answered {status}: {said}")));
    }
    if answered.cut {
        let most = answered.body.len();
        return Err(Wrong::new(format!(
            "{doing}: its answer is longer than {most} bytes; ask for less"
        )));
    }
    serde_json::from_slice(&answered.body).map_err(|error| {
        let said = said(&answered.body);
        Wrong::new(format!(
            "{doing}: its answer is not what it should be: {error}: {said}"
        ))
    })
}

/// The beginning of what a service said.
pub(super) fn said(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    match text.char_indices().nth(SAID_CHARS) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

/// As much of it as a model is told, and that there was more.
pub(super) fn cut(text: &mut String, chars_max: u64) {
    if let Some((at, _)) = text.char_indices().nth(size(chars_max)) {
        text.truncate(at);
        text.push_str(&format!("\n\n[cut after {chars_max} characters]"));
    }
}

pub(super) fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
