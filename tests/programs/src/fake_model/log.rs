//! The log that tests read: one JSON object a line, written before the answer leaves. It must never
//! be given headers or a query string, since those carry keys.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Instant,
};

const MAX_BYTES: usize = 64 << 20;

struct Sink {
    to: Box<dyn Write + Send>,
    written: usize,
}

/// Where the records go.
pub struct Log {
    sink: Option<Mutex<Sink>>,
    start: Instant,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Log")
            .field("on", &self.sink.is_some())
            .finish_non_exhaustive()
    }
}

impl Log {
    /// Appends to a file; `-` is the standard output; none keeps no log.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let to: Option<Box<dyn Write + Send>> = match path {
            None => None,
            Some(path) if path == Path::new("-") => Some(Box::new(std::io::stdout())),
            Some(path) => Some(Box::new(append(path)?)),
        };
        let sink = to.map(|to| Mutex::new(Sink { to, written: 0 }));
        Ok(Self {
            sink,
            start: Instant::now(),
        })
    }

    /// Writes one record, with the milliseconds since the start in front. Past its size limit the
    /// log stays as it is.
    pub(super) fn write(&self, record: Value) -> std::io::Result<()> {
        let Some(sink) = &self.sink else {
            return Ok(());
        };
        let mut line = json!({"ms": u64::try_from(self.start.elapsed().as_millis()).ok()});
        if let (Value::Object(line), Value::Object(record)) = (&mut line, record) {
            line.extend(record);
        }
        let line = format!("{line}\n");
        let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
        if sink.written + line.len() > MAX_BYTES {
            return Ok(());
        }
        sink.written += line.len();
        sink.to.write_all(line.as_bytes())?;
        sink.to.flush()
    }
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("log {}", path.display()))
}
