//! The log: one append-only SQLite table, two verbs. A batch is one transaction and one fsync.
//! Must not interpret events, and must not repair: what it cannot read is an error.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use dispatch_core::{
    event::{Class, Event, FORMAT_VERSION, Kind, Subject},
    id::{RunId, Seq, TaskId},
};
use rusqlite::{Connection, OpenFlags, params};

const BUSY_WAIT: Duration = Duration::from_secs(5);
const FILE: &str = "log.sqlite";

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{doing} the log at {}: {source}", path.display())]
    Sqlite {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error(
        "open the log at {}: it has format {found}, and this Dispatch knows up to {FORMAT_VERSION}; \
         use a newer Dispatch", path.display()
    )]
    Newer { path: PathBuf, found: u32 },
    #[error("read event {seq} of the log at {}: {source}", path.display())]
    Event {
        path: PathBuf,
        seq: Seq,
        #[source]
        source: serde_json::Error,
    },
    #[error("read event {seq} of the log at {}: {what}", path.display())]
    Row {
        path: PathBuf,
        seq: Seq,
        what: String,
    },
    #[error("write event {seq} to the log: {source}")]
    Encode {
        seq: Seq,
        #[source]
        source: serde_json::Error,
    },
    #[error("append to the log: event {found} does not follow {last}")]
    Gap { last: Seq, found: Seq },
    #[error("open the log at {}: it fails its integrity check: {what}; move it away and keep it", path.display())]
    Corrupt { path: PathBuf, what: String },
}

impl StoreError {
    /// Whether there was no room for it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Sqlite {
                source: rusqlite::Error::SqliteFailure(failure, _),
                ..
            } => failure.code == rusqlite::ErrorCode::DiskFull,
            _ => false,
        }
    }
}

/// Some events, each with its kind as it is in the log.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) events: Vec<(Event, String)>,
    /// All up to here have been read, of those that were asked for.
    pub(crate) upto: Seq,
}

impl Page {
    pub(crate) fn nothing(after: Seq) -> Self {
        Self {
            events: Vec::new(),
            upto: after,
        }
    }
}

/// One connection; the engine's actor has the only one that writes.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
    last: Seq,
}

impl Store {
    /// Opens the log for writing, and makes it when there is none.
    ///
    /// # Errors
    /// When it cannot be opened, is damaged or of a newer format.
    pub fn open(data: &Path) -> Result<Self, StoreError> {
        Self::with(
            data,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE,
        )
    }

    /// Opens the log for reading only.
    ///
    /// # Errors
    /// As [`Store::open`]; also when there is none.
    pub fn read_only(data: &Path) -> Result<Self, StoreError> {
        Self::with(data, OpenFlags::SQLITE_OPEN_READ_ONLY)
    }

    #[must_use]
    pub fn exists(data: &Path) -> bool {
        data.join(FILE).exists()
    }

    fn with(data: &Path, flags: OpenFlags) -> Result<Self, StoreError> {
        let path = data.join(FILE);
        let failed = |doing| {
            let path = path.clone();
            move |source| StoreError::Sqlite {
                doing,
                path,
                source,
            }
        };
        let connection =
            Connection::open_with_flags(&path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)
                .map_err(failed("open"))?;
        connection.busy_timeout(BUSY_WAIT).map_err(failed("open"))?;
        let found: u32 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(failed("read the version of"))?;
        if found > FORMAT_VERSION {
            return Err(StoreError::Newer { path, found });
        }
        if flags.contains(OpenFlags::SQLITE_OPEN_READ_WRITE) {
            let what: String = connection
                .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
                .map_err(failed("check"))?;
            if what != "ok" {
                return Err(StoreError::Corrupt { path, what });
            }
            connection
                .execute_batch(&format!(
                    "PRAGMA journal_mode = WAL;
                     PRAGMA synchronous = FULL;
                     BEGIN IMMEDIATE;
                     CREATE TABLE IF NOT EXISTS events (
                         seq INTEGER PRIMARY KEY,
                         at INTEGER NOT NULL,
                         life INTEGER NOT NULL,
                         task TEXT,
                         run INTEGER,
                         kind TEXT NOT NULL
                     ) STRICT;
                     CREATE INDEX IF NOT EXISTS life ON events (seq) WHERE life = 1;
                     CREATE INDEX IF NOT EXISTS by_task ON events (task, seq);
                     PRAGMA user_version = {FORMAT_VERSION};
                     COMMIT;"
                ))
                .map_err(failed("set up"))?;
        }
        let last: i64 = connection
            .query_row("SELECT coalesce(max(seq), 0) FROM events", [], |row| {
                row.get(0)
            })
            .map_err(failed("read the end of"))?;
        Ok(Self {
            connection,
            path,
            last: from_sql(last),
        })
    }

    #[must_use]
    pub fn last(&self) -> Seq {
        self.last
    }

    /// All of them or none, durable when it returns. Answers their kinds as they were written.
    ///
    /// # Errors
    /// When they do not follow the last one, or cannot be written.
    pub fn append(&mut self, events: &[Event]) -> Result<Vec<String>, StoreError> {
        let path = &self.path;
        let failed = |source| StoreError::Sqlite {
            doing: "append to",
            path: path.clone(),
            source,
        };
        let (mut last, mut kinds) = (self.last, Vec::with_capacity(events.len()));
        let transaction = self.connection.transaction().map_err(failed)?;
        {
            let mut insert = transaction
                .prepare_cached(
                    "INSERT INTO events (seq, at, life, task, run, kind) VALUES (?, ?, ?, ?, ?, ?)",
                )
                .map_err(failed)?;
            for event in events {
                if event.seq != last + 1 {
                    return Err(StoreError::Gap {
                        last,
                        found: event.seq,
                    });
                }
                let kind =
                    serde_json::to_string(&event.kind).map_err(|source| StoreError::Encode {
                        seq: event.seq,
                        source,
                    })?;
                insert
                    .execute(params![
                        to_sql(event.seq),
                        to_sql(event.at),
                        event.kind.class() == Class::Life,
                        event.subject.task().map(|task| task.to_string()),
                        event.subject.run().map(|run| run.n),
                        kind
                    ])
                    .map_err(failed)?;
                kinds.push(kind);
                last = event.seq;
            }
        }
        transaction.commit().map_err(failed)?;
        self.last = last;
        Ok(kinds)
    }

    /// Events after `after`, oldest first, up to `limit`.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn read(&self, after: Seq, limit: usize) -> Result<Vec<Event>, StoreError> {
        self.select("seq > ?1", after, limit)
    }

    /// The same of what makes the state.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn read_life(&self, after: Seq, limit: usize) -> Result<Vec<Event>, StoreError> {
        self.select("life = 1 AND seq > ?1", after, limit)
    }

    /// How far into its output what a run said has been recorded.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn recorded_offset(&self, run: RunId) -> Result<u64, StoreError> {
        let failed = |source| StoreError::Sqlite {
            doing: "read",
            path: self.path.clone(),
            source,
        };
        let mut query = self
            .connection
            .prepare_cached(
                "SELECT seq, kind FROM events WHERE task = ? AND run = ? AND life = 0
                 ORDER BY seq DESC LIMIT 1",
            )
            .map_err(failed)?;
        let mut rows = query
            .query(params![run.task.to_string(), run.n])
            .map_err(failed)?;
        let Some(row) = rows.next().map_err(failed)? else {
            return Ok(0);
        };
        let (seq, kind): (i64, String) = (row.get(0).map_err(failed)?, row.get(1).map_err(failed)?);
        match serde_json::from_str(&kind) {
            Ok(Kind::Said { out_offset, .. }) => Ok(out_offset),
            Ok(_) => Ok(0),
            Err(source) => Err(StoreError::Event {
                path: self.path.clone(),
                seq: from_sql(seq),
                source,
            }),
        }
    }

    /// Events after `after`, oldest first, of some tasks or of everything: up to `limit`, and no more
    /// when they have `bytes_max` bytes together.
    pub(crate) fn read_page(
        &self,
        after: Seq,
        tasks: Option<&BTreeSet<TaskId>>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Page, StoreError> {
        // Before the events: what comes between is one of them, or left for the next page.
        let end: i64 = self
            .connection
            .query_row("SELECT coalesce(max(seq), 0) FROM events", [], |row| {
                row.get(0)
            })
            .map_err(|source| self.unread(source))?;
        let mut page = Page::nothing(after);
        let mut bytes = 0;
        // Ids are hexadecimal digits.
        let tasks = tasks.map(|tasks| {
            let all = tasks.iter().map(|task| format!("'{task}'"));
            let all = all.collect::<Vec<_>>().join(",");
            format!("seq > ?1 AND task IN ({all})")
        });
        let which = tasks.as_deref().unwrap_or("seq > ?1");
        self.each(which, after, limit, |event, json| {
            bytes += json.len();
            page.upto = event.seq;
            page.events.push((event, json.to_owned()));
            bytes < bytes_max
        })?;
        if page.events.len() < limit && bytes < bytes_max {
            page.upto = page.upto.max(from_sql(end));
        }
        Ok(page)
    }

    fn select(&self, which: &str, after: Seq, limit: usize) -> Result<Vec<Event>, StoreError> {
        let mut events = Vec::new();
        self.each(which, after, limit, |event, _| {
            events.push(event);
            true
        })?;
        Ok(events)
    }

    /// `take` says whether it wants more.
    fn each(
        &self,
        which: &str,
        after: Seq,
        limit: usize,
        mut take: impl FnMut(Event, &str) -> bool,
    ) -> Result<(), StoreError> {
        let failed = |source| self.unread(source);
        let text = format!(
            "SELECT seq, at, task, run, kind FROM events WHERE {which} ORDER BY seq LIMIT ?2"
        );
        let mut query = self.connection.prepare_cached(&text).map_err(failed)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = query.query(params![to_sql(after), limit]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let seq = from_sql(row.get(0).map_err(failed)?);
            let task: Option<String> = row.get(2).map_err(failed)?;
            let run: Option<u32> = row.get(3).map_err(failed)?;
            let kind = row.get_ref(4).map_err(failed)?;
            let kind = kind
                .as_str()
                .map_err(|error| self.row(seq, error.to_string()))?;
            let subject = match task {
                None => Subject::Engine,
                Some(text) => {
                    let task: TaskId = text.parse().map_err(|e| self.row(seq, format!("{e}")))?;
                    run.map_or(Subject::Task(task), |n| Subject::Run(RunId { task, n }))
                }
            };
            let event = Event {
                seq,
                at: from_sql(row.get(1).map_err(failed)?),
                subject,
                kind: serde_json::from_str(kind).map_err(|source| StoreError::Event {
                    path: self.path.clone(),
                    seq,
                    source,
                })?,
            };
            if !take(event, kind) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn unread(&self, source: rusqlite::Error) -> StoreError {
        StoreError::Sqlite {
            doing: "read",
            path: self.path.clone(),
            source,
        }
    }

    fn row(&self, seq: Seq, what: String) -> StoreError {
        StoreError::Row {
            path: self.path.clone(),
            seq,
            what,
        }
    }
}

fn to_sql(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn from_sql(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: Seq) -> Event {
        let kind = Kind::Noted {
            text: format!("n{seq}"),
        };
        Event {
            seq,
            at: 1,
            subject: Subject::Engine,
            kind,
        }
    }

    #[test]
    fn what_is_appended_is_read_and_gaps_are_refused() {
        let data = tempfile::tempdir().unwrap();
        let mut store = Store::open(data.path()).unwrap();
        store.append(&[event(1), event(2)]).unwrap();
        assert!(matches!(
            store.append(&[event(4)]),
            Err(StoreError::Gap { last: 2, found: 4 })
        ));
        assert!(store.append(&[event(3), event(5)]).is_err());
        assert_eq!(store.last(), 2);
        drop(store);
        let store = Store::read_only(data.path()).unwrap();
        assert_eq!(store.read(1, 10).unwrap(), [event(2)]);
        assert_eq!(store.read(0, 1).unwrap(), [event(1)]);
    }

    #[test]
    fn a_newer_format_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let store = Store::open(data.path()).unwrap();
        store
            .connection
            .execute_batch("PRAGMA user_version = 99")
            .unwrap();
        drop(store);
        assert!(matches!(
            Store::open(data.path()),
            Err(StoreError::Newer { found: 99, .. })
        ));
    }

    #[test]
    fn a_damaged_log_is_a_clear_error() {
        let data = tempfile::tempdir().unwrap();
        std::fs::write(data.path().join(FILE), vec![b'x'; 8192]).unwrap();
        let error = Store::open(data.path()).unwrap_err().to_string();
        assert!(
            error.contains("log.sqlite") && error.contains("not a database"),
            "{error}"
        );
    }
}
