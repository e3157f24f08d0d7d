//! A key that is held for upstream, and read again where it comes from when upstream has refused it.
//! Must not read it more often than now and then, whoever asks, and must not show it.

use std::time::Duration;

use dispatch_core::{models::KeySource, secret::Secret};
use tokio::{sync::Mutex, time::Instant};

/// Whoever started us knows how a key is read.
pub type Take = fn(name: &str, from: &KeySource) -> Result<Secret, String>;

/// A key that is refused again and again is read this often at most: a program that is asked for it
/// may want somebody's finger.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Where it comes from.
pub(crate) struct Origin {
    pub(crate) name: String,
    pub(crate) from: KeySource,
    pub(crate) take: Take,
}

pub(crate) struct Held {
    now: Mutex<Now>,
    /// `None`: it stays what it is.
    origin: Option<Origin>,
}

struct Now {
    key: Secret,
    looked: Option<Instant>,
}

/// What came of a look at a key that was refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// There is another one now.
    Renewed,
    Same,
    /// It cannot be read any more, and why.
    Lost(String),
}

impl Held {
    pub(crate) fn new(key: Secret, origin: Option<Origin>) -> Result<Self, String> {
        good(&key)?;
        let now = Mutex::new(Now { key, looked: None });
        Ok(Self { now, origin })
    }

    pub(crate) async fn key(&self) -> Secret {
        self.now.lock().await.key.clone()
    }

    /// After `refused` was. Requests that were refused at once are one look.
    pub(crate) async fn look(&self, refused: &Secret) -> Look {
        let Some(Origin { name, from, take }) = &self.origin else {
            return Look::Same;
        };
        let mut now = self.now.lock().await;
        if now.key != *refused {
            return Look::Renewed;
        }
        if now.looked.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
            return Look::Same;
        }
        now.looked = Some(Instant::now());
        let (take, name, from) = (*take, name.clone(), from.clone());
        let read = tokio::task::spawn_blocking(move || take(&name, &from)).await;
        let read = read.unwrap_or_else(|error| Err(error.to_string()));
        match read.and_then(|key| good(&key).map(|()| key)) {
            Ok(key) if key == *refused => Look::Same,
            Ok(key) => {
                now.key = key;
                Look::Renewed
            }
            Err(why) => Look::Lost(why),
        }
    }
}

fn good(key: &Secret) -> Result<(), String> {
    let mut value = key.expose().bytes();
    match !key.expose().is_empty() && value.all(|byte| byte.is_ascii_graphic()) {
        true => Ok(()),
        false => Err("use the key: it holds what no header can carry, or nothing".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn from_file(name: &str, from: &KeySource) -> Result<Secret, String> {
        let KeySource::File(path) = from else {
            return Err(format!("read {name}: {from} is no file"));
        };
        let text =
            std::fs::read_to_string(path).map_err(|error| format!("read {name}: {error}"))?;
        Ok(Secret::new(text))
    }

    fn held(path: &Path) -> Held {
        let origin = Origin {
            name: "KEY".into(),
            from: KeySource::File(path.into()),
            take: from_file,
        };
        Held::new("old".into(), Some(origin)).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_key_is_read_again_now_and_then_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let held = held(&path);
        let old = Secret::from("old");
        std::fs::write(&path, "old").unwrap();
        assert_eq!(held.look(&old).await, Look::Same);
        // It is renewed right after the look: the next look is not at once.
        std::fs::write(&path, "new").unwrap();
        assert_eq!(held.look(&old).await, Look::Same);
        tokio::time::advance(LOOK_AGAIN).await;
        assert_eq!(held.look(&old).await, Look::Renewed);
        assert_eq!(held.key().await.expose(), "new");
        // Whoever was refused with the old one meanwhile has the new one without a look.
        std::fs::remove_file(&path).unwrap();
        assert_eq!(held.look(&old).await, Look::Renewed);
        tokio::time::advance(LOOK_AGAIN).await;
        let lost = held.look(&"new".into()).await;
        assert!(
            matches!(&lost, Look::Lost(why) if why.contains("No such file")),
            "{lost:?}"
        );
        assert_eq!(held.key().await.expose(), "new");
    }

    #[tokio::test]
    async fn a_key_without_a_place_stays_what_it_is() {
        let held = Held::new("old".into(), None).unwrap();
        assert_eq!(held.look(&"old".into()).await, Look::Same);
    }
}
