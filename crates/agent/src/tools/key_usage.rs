//! `key_usage`: what is left at the providers of the conversation's keys, from the documented place
//! in a key's table, or from what the last answer said in its headers.
//! Must not guess: what nobody has told is unknown. Must not tell a key itself.

use std::{collections::BTreeMap, time::Duration};

use dispatch_core::{
    Millis,
    id::KeyName,
    models::{Auth, KeyTable, UsageTable, UsageWindow},
    native::Window,
    rules::{Action, Group, Subject},
};
use hyper::header::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Given, Outside, Planned, Run, Tool, Wrong, schema, web};
use crate::{
    keys::{self, Outs, Told},
    model::{now, resets_at},
    net::{Bounds, Guard, Question, address, ask, bearer, secret_header},
};

const LIMIT: Bounds = Bounds {
    time: Duration::from_secs(10),
    bytes: 256 << 10,
};

pub(super) const TOOL: Tool = Tool {
    name: "key_usage",
    line: "see what is left at the providers of models",
    help: "Tells for each key, or for one, whether it can be used, and for each of its limits how \
           much is left and when it is more: live where its provider can be asked, otherwise as the \
           last answer told it.",
    group: Group::KeyUsage,
    safe: true,
    schema: schema::<Input>,
    plan,
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Only this key.
    #[serde(default)]
    key_id: Option<String>,
}

/// What the conversation knows of its keys when a call begins.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) told: BTreeMap<KeyName, Told>,
    pub(crate) outs: Outs,
}

/// One limit. Whole numbers are counts, others are money.
#[derive(Clone, Debug, PartialEq)]
struct Left {
    name: String,
    remaining: Option<f64>,
    limit: Option<f64>,
    resets_at: Option<Millis>,
}

/// Each key is decided about by itself. Of all keys, those that a rule denies are left out, as long
/// as there are others.
fn plan(given: &Given) -> Result<Planned, Wrong> {
    let input: Input = given.parse()?;
    let all = given
        .place
        .outside
        .keys
        .keys()
        .map(|name| name.as_str().to_owned());
    let all: Vec<String> = input.key_id.map_or_else(|| all.collect(), |id| vec![id]);
    let is_denied = |name: &String| given.judge.decide(&Subject::name(name)) == Action::Deny;
    let (denied, left): (Vec<String>, Vec<String>) = all.into_iter().partition(is_denied);
    let (names, denied) = if left.is_empty() {
        (denied, Vec::new())
    } else {
        (left, denied)
    };
    let subjects = names.iter().map(Subject::name).collect();
    Ok(Planned::new(subjects, |run| usage(run, names, denied)))
}

async fn usage(run: Run, names: Vec<String>, denied: Vec<String>) -> Result<String, Wrong> {
    let outside = &run.place.outside;
    if outside.keys.is_empty() {
        return Err(Wrong::new("there are no keys"));
    }
    let mut parts = Vec::new();
    for asked in names {
        let known = outside.keys.iter().find(|(name, _)| name.as_str() == asked);
        let Some((name, table)) = known else {
            let there: Vec<&str> = outside.keys.keys().map(KeyName::as_str).collect();
            let there = there.join(", ");
            return Err(Wrong::new(format!(
                "there is no key {asked}; there are {there}"
            )));
        };
        parts.push(of_key(outside, &run.seen, name, table).await);
    }
    let denied = denied
        .iter()
        .map(|name| format!("{name}: a rule for key_usage denies it"));
    parts.extend(denied);
    Ok(parts.join("\n\n"))
}

async fn of_key(outside: &Outside, seen: &Seen, name: &KeyName, table: &KeyTable) -> String {
    let now = now();
    let state = match (seen.outs.is_out(name), seen.outs.usable_at(name)) {
        (false, _) => "in use".to_owned(),
        (true, Some(at)) if at <= now => "exhausted, and worth another try".to_owned(),
        (true, Some(at)) => format!("exhausted until {}", time(at, now)),
        (true, None) => "exhausted, and nobody knows until when".to_owned(),
    };
    let mut lines = vec![format!("{name}: {state}")];
    let live = match &table.usage {
        Some(usage) => Some(live(outside, name, table, usage, now).await),
        None => None,
    };
    let why = match live {
        Some(Ok(left)) => {
            lines.push("live:".to_owned());
            lines.extend(left.iter().map(|left| left.line(now)));
            return lines.join("\n");
        }
        Some(Err(why)) => Some(why),
        None => None,
    };
    lines.extend(why.map(|why| format!("its provider did not tell: {why}")));
    match seen.told.get(name) {
        Some(told) if !told.windows.is_empty() => {
            lines.push(match told.at {
                Some(at) => format!("cached ({} ago):", span(now.saturating_sub(at))),
                None => "cached (from an earlier run):".to_owned(),
            });
            let windows = told.windows.iter().map(Left::of);
            lines.extend(windows.map(|left| left.line(now)));
        }
        _ => lines.push("what is left is unknown: no answer has told of it".to_owned()),
    }
    lines.join("\n")
}

const VERSION: HeaderName = HeaderName::from_static("anthropic-version");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

async fn live(
    outside: &Outside,
    name: &KeyName,
    table: &KeyTable,
    usage: &UsageTable,
    now: Millis,
) -> Result<Vec<Left>, String> {
    // Where the models are: no other place gets the key.
    let base = table.base_url.as_deref().or(table.provider.base_url());
    let url = format!(
        "{}{}",
        base.unwrap_or_default().trim_end_matches('/'),
        usage.path
    );
    let mut question = Question::get(address::parse(&url).map_err(|e| e.to_string())?);
    for (name, value) in &table.headers {
        let bad = || format!("{name} is no header");
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
        let value = HeaderValue::from_str(value).map_err(|_| bad())?;
        question.headers.insert(name, value);
    }
    if let Some(source) = &table.key {
        let key = keys::read(name, source).await.map_err(|e| e.to_string())?;
        let header = match table.auth.unwrap_or_else(|| table.provider.wire().auth()) {
            Auth::XApiKey => {
                let version = HeaderValue::from_static("2023-06-01");
                question.headers.entry(VERSION).or_insert(version);
                Some((API_KEY, secret_header(key.expose())))
            }
            Auth::Bearer => bearer(key.expose()).map(|(n, v)| (n, Ok(v))).ok(),
            Auth::None => None,
        };
        if let Some((name, value)) = header {
            question
                .headers
                .insert(name, value.map_err(|e| e.to_string())?);
        }
    }
    let answered = ask(&outside.connector, Guard::Open, question, LIMIT).await;
    let answered = answered.map_err(|error| error.to_string())?;
    let answer = web::json("ask it", &answered).map_err(|wrong| wrong.to_string())?;
    let found = usage.windows.iter().map(|w| Left::found(w, &answer, now));
    Ok(found.collect())
}

impl Left {
    fn of(window: &Window) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "no limit has 2^52 of anything")]
        let count = |count: u64| count as f64;
        Self {
            name: window.name.clone(),
            remaining: window.remaining.map(count),
            limit: window.limit.map(count),
            resets_at: window.resets_at,
        }
    }

    /// What stands at the places that the table names.
    fn found(window: &UsageWindow, answer: &Value, now: Millis) -> Self {
        let value = |pointer: &Option<String>| answer.pointer(pointer.as_deref()?);
        let number = |pointer: &Option<String>| match value(pointer)? {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok().filter(|n: &f64| n.is_finite()),
            _ => None,
        };
        let (limit, remaining) = match number(&window.used_percent) {
            Some(used) => (Some(100.0), Some(100.0 - used)),
            None => {
                let limit = number(&window.limit);
                let rest = || Some(limit? - number(&window.used)?);
                (limit, number(&window.remaining).or_else(rest))
            }
        };
        let resets_at = match value(&window.resets_at) {
            Some(Value::String(text)) => resets_at(text, now),
            Some(Value::Number(number)) => resets_at(&number.to_string(), now),
            _ => None,
        };
        Self {
            name: window.name.clone(),
            remaining,
            limit,
            resets_at,
        }
    }

    fn line(&self, now: Millis) -> String {
        let left = match (self.remaining, self.limit) {
            (Some(left), Some(limit)) if limit > 0.0 => {
                let percent = (left / limit * 100.0).clamp(0.0, 100.0);
                format!(
                    "{} of {} left ({percent:.0} %)",
                    written(left),
                    written(limit)
                )
            }
            (Some(left), _) => format!("{} left", written(left)),
            (None, Some(limit)) => format!("what is left of {} is unknown", written(limit)),
            (None, None) => "unknown".to_owned(),
        };
        match self.resets_at {
            Some(at) => format!("- {}: {left}, resets {}", self.name, time(at, now)),
            None => format!("- {}: {left}", self.name),
        }
    }
}

fn written(number: f64) -> String {
    if number.fract() == 0.0 {
        format!("{number:.0}")
    } else {
        format!("{number:.2}")
    }
}

fn time(at: Millis, now: Millis) -> String {
    let ms = i64::try_from(at).unwrap_or(i64::MAX);
    let stamp = jiff::Timestamp::from_second(ms / 1000);
    let stamp = stamp.map_or_else(|_| "at some time".to_owned(), |stamp| stamp.to_string());
    if at > now {
        format!("{stamp} (in {})", span(at - now))
    } else {
        format!("{stamp} (now)")
    }
}

fn span(ms: Millis) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}
