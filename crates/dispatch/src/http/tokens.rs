//! Tokens for programs: made, listed and revoked by a person, known to the engine by their hashes.
//! Must not hold a token's text anywhere, and must not need an engine: the file is the truth, written
//! whole under a lock, and a running engine sees a change at the next request.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use dispatch_core::{
    Millis,
    hex::{from_hex, hex},
};
use dispatch_engine::random;
use ring::digest::{SHA256, digest};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use super::caller::Scopes;

const FILE: &str = "tokens.json";
const LOCK: &str = "tokens.lock";
/// How a token begins: what it is, for a person who finds one and for what masks secrets
/// (`core::redact`).
pub(crate) const PREFIX: &str = "dt_";
/// Of a token's name in our file, which is part of its text.
const ID_BYTES: usize = 4;
/// Of what nobody can guess.
const SECRET_BYTES: usize = 20;
const TOKENS_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 64;
/// Of the file: a token takes some 300.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// How long a token is listed after its time.
const EXPIRED_KEPT_MS: Millis = 30 * 24 * 3600 * 1000;

/// One token, without its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) scopes: Scopes,
    /// Of the whole text, in hexadecimal.
    sha256: String,
    pub(crate) made_at: Millis,
    pub(crate) expires_at: Option<Millis>,
}

impl Row {
    pub(crate) fn is_expired(&self, now: Millis) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rows {
    tokens: Vec<Row>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("{doing} the tokens at {}: {source}", path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "read the tokens at {}: others than this user may read or write it; `chmod 600` it, and \
         make new tokens if somebody could",
        path.display()
    )]
    Open { path: PathBuf },
    #[error(
        "name a token {name:?}: a name has 1 to {NAME_BYTES_MAX} letters, digits, '.', '_', '-'"
    )]
    Name { name: String },
    #[error("name a token {name:?}: there is one; revoke it first or take another name")]
    Taken { name: String },
    #[error("make a token: there are {TOKENS_MAX}; revoke some first")]
    TooMany,
    #[error("make a token: the system gives no random bytes")]
    Random(#[source] io::Error),
    #[error("revoke token {0:?}: there is none of that name or id; `dispatch token list`")]
    NoSuch(String),
}

/// What a text turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Good(Row),
    Expired(Row),
    /// Of that id, if it names a token that there is.
    Unknown,
}

/// The tokens of a data directory.
#[derive(Debug)]
pub(crate) struct Tokens {
    data: PathBuf,
    read: Mutex<Option<Known>>,
}

/// What was read last, and from which state of which file.
#[derive(Debug)]
struct Known {
    stamp: Stamp,
    /// Held open, so that no other file gets its number.
    _file: File,
    rows: Arc<Vec<Row>>,
}

/// A file that is replaced is another one; one that was written to has other times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            inode: meta.ino(),
            bytes: meta.len(),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl Tokens {
    pub(crate) fn of(data: &Path) -> Self {
        Self {
            data: data.to_owned(),
            read: Mutex::default(),
        }
    }

    fn path(&self) -> PathBuf {
        self.data.join(FILE)
    }

    fn failed(&self, doing: &'static str) -> impl Fn(io::Error) -> TokenError + use<> {
        let path = self.path();
        move |source| TokenError::File {
            doing,
            path: path.clone(),
            source,
        }
    }

    /// All of them, oldest first.
    pub(crate) fn list(&self) -> Result<Arc<Vec<Row>>, TokenError> {
        let failed = self.failed("read");
        let file = match File::open(self.path()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Arc::default()),
            Err(error) => return Err(failed(error)),
        };
        let meta = file.metadata().map_err(&failed)?;
        if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
            return Err(TokenError::Open { path: self.path() });
        }
        let stamp = Stamp::of(&meta);
        let mut known = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_ref().filter(|known| known.stamp == stamp) {
            return Ok(Arc::clone(&known.rows));
        }
        let mut text = String::new();
        let read = (&file).take(FILE_BYTES_MAX).read_to_string(&mut text);
        read.map_err(&failed)?;
        let rows: Rows = serde_json::from_str(&text).map_err(|error| failed(error.into()))?;
        let rows = Arc::new(rows.tokens);
        *known = Some(Known {
            stamp,
            _file: file,
            rows: Arc::clone(&rows),
        });
        Ok(rows)
    }

    /// What a text is, in the same time whichever of its characters is wrong.
    pub(crate) fn find(&self, text: &str, now: Millis) -> Result<Found, TokenError> {
        let rows = self.list()?;
        let row = id_of(text).and_then(|id| rows.iter().find(|row| row.id == id));
        let nobody = String::new();
        let wanted = row.map_or(&nobody, |row| &row.sha256);
        let same = bool::from(hash(text).as_bytes().ct_eq(wanted.as_bytes()));
        Ok(match row.filter(|_| same) {
            None => Found::Unknown,
            Some(row) if row.is_expired(now) => Found::Expired(row.clone()),
            Some(row) => Found::Good(row.clone()),
        })
    }

    /// Makes one. Its text is in the answer and nowhere else.
    pub(crate) fn make(
        &self,
        name: Option<&str>,
        scopes: Scopes,
        lives_ms: Option<Millis>,
        now: Millis,
    ) -> Result<(String, Row), TokenError> {
        let _lock = self.lock()?;
        let mut rows = self.list()?.to_vec();
        rows.retain(|row| !row.is_expired(now.saturating_sub(EXPIRED_KEPT_MS)));
        if rows.len() >= TOKENS_MAX {
            return Err(TokenError::TooMany);
        }
        let id = loop {
            let id = random::hex::<ID_BYTES>().map_err(TokenError::Random)?;
            if rows.iter().all(|row| row.id != id) {
                break id;
            }
        };
        let name = name.unwrap_or(&id).to_owned();
        check_name(&name)?;
        // Either names a token where one is revoked.
        if rows.iter().any(|row| row.name == name || row.id == name) {
            return Err(TokenError::Taken { name });
        }
        let secret = random::hex::<SECRET_BYTES>().map_err(TokenError::Random)?;
        let text = format!("{PREFIX}{id}_{secret}");
        let row = Row {
            id,
            name,
            scopes,
            sha256: hash(&text),
            made_at: now,
            expires_at: lives_ms.map(|lives| now.saturating_add(lives)),
        };
        rows.push(row.clone());
        self.write(rows)?;
        Ok((text, row))
    }

    /// Takes one away, by its name or id: the next request with it is refused.
    pub(crate) fn revoke(&self, which: &str) -> Result<Row, TokenError> {
        let _lock = self.lock()?;
        let mut rows = self.list()?.to_vec();
        let found = rows
            .iter()
            .position(|row| row.name == which || row.id == which);
        let Some(found) = found else {
            return Err(TokenError::NoSuch(which.to_owned()));
        };
        let row = rows.remove(found);
        self.write(rows)?;
        Ok(row)
    }

    /// Whoever changes the file holds this; it goes with the process.
    fn lock(&self) -> Result<File, TokenError> {
        let failed = self.failed("lock");
        let mut dir = DirBuilder::new();
        dir.recursive(true).mode(0o700);
        dir.create(&self.data).map_err(&failed)?;
        let mut open = OpenOptions::new();
        open.create(true).truncate(false).write(true).mode(0o600);
        let file = open.open(self.data.join(LOCK)).map_err(&failed)?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        Ok(file)
    }

    /// Whole or not at all, and durable: what was revoked does not come back.
    fn write(&self, tokens: Vec<Row>) -> Result<(), TokenError> {
        let failed = self.failed("write");
        let text = serde_json::to_vec_pretty(&Rows { tokens }).map_err(|e| failed(e.into()))?;
        let new = self.data.join(format!("{FILE}.new"));
        // Left by whoever was killed here; we have the lock.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        let write = || -> io::Result<()> {
            let mut open = OpenOptions::new();
            let mut file = open.write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, self.path())?;
            File::open(&self.data)?.sync_all()
        };
        write().map_err(failed)
    }
}

/// The id of the row that a token's text names.
pub(crate) fn named<'a>(text: &'a str, rows: &[Row]) -> Option<&'a str> {
    id_of(text).filter(|id| rows.iter().any(|row| row.id == *id))
}

/// The id that a token's text names. Whether there is such a token is not asked.
pub(crate) fn id_of(text: &str) -> Option<&str> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    from_hex::<ID_BYTES>(id)?;
    from_hex::<SECRET_BYTES>(secret)?;
    Some(id)
}

fn check_name(name: &str) -> Result<(), TokenError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
        let name = name.to_owned();
        return Err(TokenError::Name { name });
    }
    Ok(())
}

fn hash(text: &str) -> String {
    hex(digest(&SHA256, text.as_bytes()).as_ref())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::http::caller::Scope;

    fn read_only() -> Scopes {
        [Scope::Read].into_iter().collect()
    }

    #[test]
    fn a_token_is_known_by_its_hash_until_it_is_revoked_or_old() {
        let data = tempfile::tempdir().unwrap();
        // Two processes: one that makes them and the engine.
        let (person, engine) = (Tokens::of(data.path()), Tokens::of(data.path()));
        assert_eq!(engine.find("dt_", 0).unwrap(), Found::Unknown);
        let (text, row) = person.make(Some("ci"), read_only(), None, 5).unwrap();
        let (old, _) = person.make(None, read_only(), Some(10), 5).unwrap();
        assert_eq!(engine.find(&text, 6).unwrap(), Found::Good(row.clone()));
        assert!(matches!(engine.find(&old, 14).unwrap(), Found::Good(_)));
        assert!(matches!(engine.find(&old, 15).unwrap(), Found::Expired(_)));
        let stored = fs::read_to_string(data.path().join(FILE)).unwrap();
        assert!(!stored.contains(&text) && !stored.contains(&text[12..]));
        let mode = |name| fs::metadata(data.path().join(name)).unwrap().mode() & 0o777;
        assert_eq!((mode(FILE), mode(LOCK)), (0o600, 0o600));
        for index in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[index] = if bytes[index] == b'0' { b'1' } else { b'0' };
            let wrong = String::from_utf8(bytes).unwrap();
            assert_eq!(engine.find(&wrong, 6).unwrap(), Found::Unknown, "{wrong}");
        }
        assert_eq!(person.revoke("ci").unwrap(), row);
        assert_eq!(engine.find(&text, 6).unwrap(), Found::Unknown);
        assert!(matches!(person.revoke("ci"), Err(TokenError::NoSuch(_))));
    }

    #[test]
    fn names_are_plain_and_one_tokens_alone() {
        let data = tempfile::tempdir().unwrap();
        let tokens = Tokens::of(data.path());
        for bad in ["", "a b", "a/b", "\u{fc}", &"x".repeat(65)] {
            let made = tokens.make(Some(bad), read_only(), None, 0);
            assert!(matches!(made, Err(TokenError::Name { .. })), "{bad}");
        }
        let (_, first) = tokens.make(None, read_only(), None, 0).unwrap();
        let taken = tokens.make(Some(&first.id), read_only(), None, 0);
        assert!(matches!(taken, Err(TokenError::Taken { .. })));
        for n in 1..TOKENS_MAX {
            tokens
                .make(Some(&format!("t{n}")), read_only(), Some(1), 0)
                .unwrap();
        }
        let more = || tokens.make(None, read_only(), None, EXPIRED_KEPT_MS + 1);
        assert!(matches!(
            tokens.make(None, read_only(), None, 0),
            Err(TokenError::TooMany)
        ));
        // Those that expired long ago have made room.
        more().unwrap();
        assert_eq!(tokens.list().unwrap().len(), 2);
    }

    #[test]
    fn a_file_that_others_can_read_is_not_believed() {
        let data = tempfile::tempdir().unwrap();
        let tokens = Tokens::of(data.path());
        let (text, _) = tokens.make(None, read_only(), None, 0).unwrap();
        let path = data.path().join(FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            tokens.find(&text, 0),
            Err(TokenError::Open { .. })
        ));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "{").unwrap();
        assert!(matches!(
            tokens.find(&text, 0),
            Err(TokenError::File { .. })
        ));
    }
}
