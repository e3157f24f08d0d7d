//! Numbers for Prometheus, as text: what the doors have counted and how the whole does.
//! Must not have a label whose values somebody outside chooses: rows of the table, codes, states and
//! pools of the configuration are all there are.

use std::{
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::State,
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use dispatch_engine::reads::Overview;

use super::{
    Ctx,
    error::{Code, Problem},
    reads::At,
};

/// `2xx` and so on; anything else is counted with the last.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// What one route has answered.
#[derive(Debug, Default)]
pub(crate) struct RowMeter {
    answers: [AtomicU64; CLASSES.len()],
    micros: AtomicU64,
}

impl RowMeter {
    pub(crate) fn count(&self, status: StatusCode, took: Duration) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(2);
        let class = class.min(CLASSES.len() - 1);
        self.answers[class].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

/// Where connections come in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entrance {
    Own,
    Agents,
    Net,
}

impl Entrance {
    const ALL: [Self; 3] = [Self::Own, Self::Agents, Self::Net];

    fn word(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Agents => "agents",
            Self::Net => "net",
        }
    }
}

/// All that is counted at the doors.
#[derive(Debug)]
pub(crate) struct Meter {
    /// By method and path of the table, in its order.
    rows: Mutex<Vec<(String, Arc<RowMeter>)>>,
    /// What doors refused, in the order of the codes.
    refused: Vec<AtomicU64>,
    connections: [AtomicI64; Entrance::ALL.len()],
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            rows: Mutex::default(),
            refused: Code::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
            connections: Default::default(),
        }
    }
}

/// A connection that is open for as long as this lives.
#[derive(Debug)]
pub(crate) struct Connected(Arc<Meter>, Entrance);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections[self.1 as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

impl Meter {
    /// Where a row of the table counts. Asked once a row, when the table is made.
    pub(crate) fn row(&self, method: &str, path: &str) -> Arc<RowMeter> {
        let label = format!("method=\"{method}\",path=\"{}\"", escaped(path));
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, row)) = rows.iter().find(|(known, _)| *known == label) {
            return Arc::clone(row);
        }
        let row = Arc::default();
        rows.push((label, Arc::clone(&row)));
        row
    }

    pub(crate) fn refused(&self, code: Code) {
        if let Some(count) = self.refused.get(code as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn connected(self: &Arc<Self>, entrance: Entrance) -> Connected {
        self.connections[entrance as usize].fetch_add(1, Ordering::Relaxed);
        Connected(Arc::clone(self), entrance)
    }

    fn write(&self, out: &mut Page) {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        out.head(
            "dispatch_http_requests_total",
            "counter",
            "Requests a route has answered.",
        );
        for (label, row) in rows.iter() {
            for (class, count) in CLASSES.iter().zip(&row.answers) {
                let count = count.load(Ordering::Relaxed);
                // A row that nobody calls has nothing to say.
                if count > 0 {
                    out.line(&format!("{label},status=\"{class}\""), count);
                }
            }
        }
        out.head(
            "dispatch_http_request_seconds_total",
            "counter",
            "Time until a route's answer began.",
        );
        for (label, row) in rows.iter() {
            let micros = row.micros.load(Ordering::Relaxed);
            if micros > 0 {
                out.line(label, micros as f64 / 1e6);
            }
        }
        drop(rows);
        out.head(
            "dispatch_http_refused_total",
            "counter",
            "Requests that came through no door.",
        );
        for (code, count) in Code::ALL.iter().zip(&self.refused) {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                out.line(&format!("code=\"{}\"", code.word()), count);
            }
        }
        out.head(
            "dispatch_http_connections",
            "gauge",
            "Connections that are open.",
        );
        for entrance in Entrance::ALL {
            let open = self.connections[entrance as usize].load(Ordering::Relaxed);
            out.line(&format!("door=\"{}\"", entrance.word()), open);
        }
    }
}

/// The text, made line by line.
#[derive(Debug, Default)]
struct Page {
    text: String,
    name: &'static str,
}

impl Page {
    fn head(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        self.text
            .push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn line(&mut self, labels: &str, value: impl std::fmt::Display) {
        let name = self.name;
        let written = if labels.is_empty() {
            writeln!(self.text, "{name} {value}")
        } else {
            writeln!(self.text, "{name}{{{labels}}} {value}")
        };
        // A string takes everything.
        written.unwrap_or_default();
    }

    fn overview(&mut self, overview: &Overview) {
        self.head("dispatch_log_seq", "counter", "Position of the last event.");
        self.line("", overview.seq);
        self.head("dispatch_frozen", "gauge", "1: nothing starts.");
        self.line("", u8::from(overview.frozen));
        self.head("dispatch_tasks", "gauge", "Tasks by state.");
        for (state, count) in &overview.states {
            self.line(&format!("state=\"{state}\""), count);
        }
        type Number = fn(&dispatch_engine::reads::PoolView) -> f64;
        let rows: [(&'static str, &str, Number); 7] = [
            ("dispatch_pool_slots", "Runs that may run at once.", |p| {
                p.slots as f64
            }),
            ("dispatch_pool_held", "Runs that do.", |p| p.held as f64),
            ("dispatch_pool_waiting", "Runs that are queued.", |p| {
                p.waiting as f64
            }),
            (
                "dispatch_pool_paused",
                "1: its provider or its runs' ends pause it.",
                |p| f64::from(u8::from(p.pause.is_some())),
            ),
            (
                "dispatch_pool_starts",
                "Starts since its last reset.",
                |p| p.starts as f64,
            ),
            (
                "dispatch_pool_spent_tokens",
                "Tokens since its last reset.",
                |p| p.spent.tokens as f64,
            ),
            (
                "dispatch_pool_spent_usd",
                "Dollars since its last reset.",
                |p| p.spent.usd.into(),
            ),
        ];
        for (name, help, number) in rows {
            self.head(name, "gauge", help);
            for pool in &overview.pools {
                let label = format!("pool=\"{}\"", escaped(pool.name.as_str()));
                self.line(&label, number(pool));
            }
        }
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// The page as an answer.
#[derive(Debug)]
pub(crate) struct Metrics(String);

impl IntoResponse for Metrics {
    fn into_response(self) -> Response {
        let mut response = self.0.into_response();
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }
}

pub(crate) async fn metrics(State(ctx): State<Ctx>) -> Result<At<Metrics>, Problem> {
    let overview = ctx.engine.overview().await?;
    let mut page = Page::default();
    page.head("dispatch_build_info", "gauge", "Which version serves.");
    page.line(&format!("version=\"{}\"", env!("CARGO_PKG_VERSION")), 1);
    page.overview(&overview);
    ctx.meter.write(&mut page);
    Ok(At(overview.seq, Metrics(page.text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_written_and_nothing_else() {
        let meter = Arc::new(Meter::default());
        let row = meter.row("GET", "/v1/tasks/{id}");
        meter.row("GET", "/v1/health");
        for status in [200, 204, 404, 500, 999] {
            let status = StatusCode::from_u16(status).unwrap();
            meter
                .row("GET", "/v1/tasks/{id}")
                .count(status, Duration::from_millis(100));
        }
        row.count(StatusCode::OK, Duration::ZERO);
        meter.refused(Code::ForeignHost);
        let here = meter.connected(Entrance::Net);
        let gone = meter.connected(Entrance::Net);
        drop(gone);
        let mut page = Page::default();
        meter.write(&mut page);
        for line in [
            "dispatch_http_requests_total{method=\"GET\",path=\"/v1/tasks/{id}\",status=\"2xx\"} 3",
            "dispatch_http_requests_total{method=\"GET\",path=\"/v1/tasks/{id}\",status=\"5xx\"} 2",
            "dispatch_http_request_seconds_total{method=\"GET\",path=\"/v1/tasks/{id}\"} 0.5",
            "dispatch_http_refused_total{code=\"foreign_host\"} 1",
            "dispatch_http_connections{door=\"net\"} 1",
            "dispatch_http_connections{door=\"own\"} 0",
        ] {
            assert!(
                page.text.lines().any(|have| have == line),
                "{line}\n{}",
                page.text
            );
        }
        assert!(!page.text.contains("/v1/health"));
        drop(here);
        assert_eq!(escaped("a\"b\\c\n"), "a\\\"b\\\\c\\n");
    }
}
