//! Keys: where each comes from, and which are of no use for a while.
//! Must not put another key, account or provider in the place of the one that was asked for: what
//! cannot be had is an error that says how to mend it.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use dispatch_core::{
    Millis,
    id::KeyName,
    models::{Endpoint, KeySource},
    native::{Chunk, KnownKeys, Window},
    secret::Secret,
};
use tokio::{io::AsyncReadExt, process::Command, time::timeout};

/// No key is longer.
const KEY_BYTES_MAX: usize = 16 << 10;
/// For a program that asks somebody's password store.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("read key {key}: the variable {name} is not set; set it, or change the table of {key}")]
    Unset { key: KeyName, name: String },
    #[error("read key {key} from {}: {source}", path.display())]
    File {
        key: KeyName,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("read key {key} from the program {program}: {source}")]
    Start {
        key: KeyName,
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("read key {key} from the program {program}: {why}")]
    Command {
        key: KeyName,
        program: String,
        why: String,
    },
    #[error("read key {key} from {from}: there is nothing in it, or more than a key")]
    Shape { key: KeyName, from: KeySource },
}

/// Reads each key once, and again after it was refused.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    read: BTreeMap<KeyName, Secret>,
}

impl Keys {
    /// `None`: this endpoint wants none.
    pub(crate) async fn get(&mut self, endpoint: &Endpoint) -> Result<Option<Secret>, KeyError> {
        let Some(source) = &endpoint.source else {
            return Ok(None);
        };
        if let Some(known) = self.read.get(&endpoint.key) {
            return Ok(Some(known.clone()));
        }
        let secret = read(&endpoint.key, source).await?;
        self.read.insert(endpoint.key.clone(), secret.clone());
        Ok(Some(secret))
    }

    /// It was refused: it may have been changed where it comes from.
    pub(crate) fn forget(&mut self, key: &KeyName) {
        self.read.remove(key);
    }
}

/// Of a key, or of something else that a table of that name takes from elsewhere.
pub(crate) async fn read(key: &KeyName, source: &KeySource) -> Result<Secret, KeyError> {
    let text = match source {
        KeySource::From(name) => std::env::var(name).map_err(|_| KeyError::Unset {
            key: key.clone(),
            name: name.clone(),
        })?,
        KeySource::File(path) => file(path).await.map_err(|source| KeyError::File {
            key: key.clone(),
            path: path.clone(),
            source,
        })?,
        KeySource::Command(argv) => command(key, argv).await?,
    };
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(KeyError::Shape {
            key: key.clone(),
            from: source.clone(),
        });
    }
    Ok(Secret::from(text))
}

async fn file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let limit = KEY_BYTES_MAX as u64;
    let file = tokio::fs::File::open(path).await?;
    file.take(limit).read_to_string(&mut text).await?;
    Ok(text)
}

async fn command(key: &KeyName, argv: &[String]) -> Result<String, KeyError> {
    let program = argv.first().cloned().unwrap_or_default();
    let failed = |why: String| KeyError::Command {
        key: key.clone(),
        program: program.clone(),
        why,
    };
    let start = |source| KeyError::Start {
        key: key.clone(),
        program: program.clone(),
        source,
    };
    let mut child = Command::new(&program)
        .args(argv.iter().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let out = child.stdout.take();
    let run = async {
        let mut text = String::new();
        if let Some(out) = out {
            out.take(KEY_BYTES_MAX as u64)
                .read_to_string(&mut text)
                .await?;
        }
        Ok((text, child.wait().await?))
    };
    let ended = timeout(COMMAND_LIMIT, run).await;
    let ended: io::Result<_> =
        ended.map_err(|_| failed(format!("it took longer than {COMMAND_LIMIT:?}")))?;
    let (text, status) = ended.map_err(start)?;
    if !status.success() {
        return Err(failed(format!("it ended with {status}")));
    }
    Ok(text)
}

/// What an answer told of the limits of its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) windows: Vec<Window>,
    /// None: by a release that did not write it down.
    pub(crate) at: Option<Millis>,
}

/// What other tasks have heard of the keys stands in place of what this conversation knows: theirs is
/// newer, and has its own in it.
pub(crate) fn know(known: &KnownKeys, outs: &mut Outs, told: &mut BTreeMap<KeyName, Told>) {
    *outs = Outs::default();
    for (key, known) in known {
        if let Some(until) = known.out_until {
            outs.0.insert(key.clone(), Some(until));
        }
        let at = known.told_at;
        let newer = told.get(key).is_none_or(|mine| mine.at < at);
        if newer && at.is_some() {
            let windows = known.windows.clone();
            told.insert(key.clone(), Told { windows, at });
        }
    }
}

/// Which keys are of no use now, as far as the lines said so far tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outs(BTreeMap<KeyName, Option<Millis>>);

impl Outs {
    pub(crate) fn apply(&mut self, chunk: &Chunk) {
        match chunk {
            Chunk::KeyOut { key, until, .. } => {
                self.0.insert(key.clone(), *until);
            }
            Chunk::KeyBack { key } => {
                self.0.remove(key);
            }
            _ => {}
        }
    }

    /// A new process may read another key at the same place.
    pub(crate) fn begin_anew(&mut self) {
        self.0.retain(|_, until| until.is_some());
    }

    pub(crate) fn is_out(&self, key: &KeyName) -> bool {
        self.0.contains_key(key)
    }

    /// From when on it is worth a try; `None`: not as long as this process lives.
    pub(crate) fn usable_at(&self, key: &KeyName) -> Option<Millis> {
        self.0.get(key).copied().unwrap_or(Some(0))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use dispatch_core::{models::KeyTable, native::Known};
    use serde_json::{Value, json};

    use super::*;

    async fn get(source: Value) -> Result<String, String> {
        let table: KeyTable =
            serde_json::from_value(json!({"provider": "anthropic", "key": source})).unwrap();
        let endpoint = table.endpoint(&"main".parse().unwrap(), &"m".parse().unwrap());
        match Keys::default().get(&endpoint.unwrap()).await {
            Ok(key) => Ok(key.unwrap().expose().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[tokio::test]
    async fn a_key_comes_from_a_variable_a_file_or_a_program() {
        let path = std::env::var("PATH").unwrap();
        assert_eq!(get(json!({"from": "PATH"})).await, Ok(path));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, "sk-file\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(get(json!({"file": file})).await, Ok("sk-file".into()));
        let printed = get(json!({"command": ["printf", "sk-%s", "made"]})).await;
        assert_eq!(printed, Ok("sk-made".into()));
    }

    #[tokio::test]
    async fn what_cannot_be_had_is_an_error_that_says_how_to_mend_it() {
        for (source, part) in [
            (
                json!({"from": "DISPATCH_NO_SUCH"}),
                "DISPATCH_NO_SUCH is not set; set it",
            ),
            (
                json!({"file": "/no/such/file"}),
                "main from /no/such/file: No such file",
            ),
            (json!({"command": ["/no/such/program"]}), "No such file"),
            (
                json!({"command": ["false"]}),
                "program false: it ended with exit status: 1",
            ),
            (
                json!({"command": ["true"]}),
                "the program true: there is nothing in it",
            ),
            (json!({"command": ["printf", "a b"]}), "more than a key"),
        ] {
            let error = get(source).await.unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[tokio::test]
    async fn a_key_is_read_once_and_again_after_it_was_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, "sk-old").unwrap();
        let table = json!({"provider": "anthropic", "key": {"file": file}});
        let table: KeyTable = serde_json::from_value(table).unwrap();
        let endpoint = table
            .endpoint(&"main".parse().unwrap(), &"m".parse().unwrap())
            .unwrap();
        let mut keys = Keys::default();
        for (now, expected) in [("sk-old", "sk-old"), ("sk-new", "sk-old")] {
            std::fs::write(&file, now).unwrap();
            assert_eq!(
                keys.get(&endpoint).await.unwrap().unwrap().expose(),
                expected
            );
        }
        keys.forget(&endpoint.key);
        assert_eq!(
            keys.get(&endpoint).await.unwrap().unwrap().expose(),
            "sk-new"
        );
    }

    #[test]
    fn what_others_know_stands_in_place_of_what_the_conversation_knew() {
        let (a, b): (KeyName, KeyName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let mut outs = Outs(BTreeMap::from([(a.clone(), Some(90))]));
        let told = |at| Told {
            windows: Vec::new(),
            at: Some(at),
        };
        let mut all = BTreeMap::from([(a.clone(), told(5)), (b.clone(), told(5))]);
        let known = |out_until, told_at| Known {
            out_until,
            told_at: Some(told_at),
            windows: Vec::new(),
        };
        let from_others = [(a.clone(), known(None, 4)), (b.clone(), known(Some(70), 6))];
        know(&from_others.into(), &mut outs, &mut all);
        assert_eq!(outs, Outs([(b.clone(), Some(70))].into()));
        assert_eq!(all, [(a, told(5)), (b, told(6))].into());
    }

    #[test]
    fn a_key_is_out_until_its_time_or_its_success() {
        let key: KeyName = "a".parse().unwrap();
        let out = |until| Chunk::KeyOut {
            key: key.clone(),
            until,
            why: String::new(),
        };
        let mut outs = Outs::default();
        assert_eq!(outs.usable_at(&key), Some(0));
        outs.apply(&out(Some(50)));
        assert_eq!(outs.usable_at(&key), Some(50));
        outs.apply(&Chunk::KeyBack { key: key.clone() });
        assert!(!outs.is_out(&key));
        outs.apply(&out(None));
        assert_eq!(outs.usable_at(&key), None);
        outs.begin_anew();
        assert_eq!(outs.usable_at(&key), Some(0));
    }
}
