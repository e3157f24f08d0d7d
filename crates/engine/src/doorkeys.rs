//! What a live run's agent shows at our door: a token that is made of its run's name and one key of
//! this data directory. Nothing of it is stored, so a restart changes nothing.
//! Must not say what its holder may do: the grant of its task does.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use dispatch_core::{
    hex::{from_hex, hex},
    id::RunId,
};
use ring::hmac;

use crate::random;

const NAME: &str = "door.key";
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 32;
/// How a run's token begins, so that whoever reads one knows whom to ask.
pub const PREFIX: &str = "dr_";
/// What else is ever signed with this key begins differently.
const PURPOSE: &str = "dispatch run token 1:";

/// The key of a data directory. Whoever has it can be any run's agent.
pub(crate) struct DoorKey(hmac::Key);

impl fmt::Debug for DoorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DoorKey")
    }
}

impl DoorKey {
    /// The key that is there, or a new one. Only the holder of the engine's lock may ask.
    pub(crate) fn of(data: &Path) -> io::Result<Self> {
        let path = data.join(NAME);
        let bytes = match File::open(&path) {
            Ok(file) => read(file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(data, &path)?,
            Err(error) => return Err(error),
        };
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    pub(crate) fn token(&self, run: RunId) -> String {
        let tag = hmac::sign(&self.0, signed(run).as_bytes());
        format!("{PREFIX}{run}_{}", hex(tag.as_ref()))
    }

    /// Whose token this is; whether that run lives is not asked. The comparison takes the same time
    /// wherever the two differ.
    pub(crate) fn whose(&self, token: &str) -> Option<RunId> {
        let (run, tag) = token.strip_prefix(PREFIX)?.split_once('_')?;
        let (run, tag) = (run.parse().ok()?, from_hex::<TAG_BYTES>(tag)?);
        hmac::verify(&self.0, signed(run).as_bytes(), &tag).ok()?;
        Some(run)
    }
}

fn signed(run: RunId) -> String {
    format!("{PURPOSE}{run}")
}

fn read(mut file: File) -> io::Result<[u8; KEY_BYTES]> {
    let meta = file.metadata()?;
    let own = meta.uid() == rustix::process::geteuid().as_raw();
    if !own || meta.mode() & 0o077 != 0 || meta.len() != KEY_BYTES as u64 {
        let what = "it is not 32 bytes that this user alone can read; remove it, and a new one is \
                    made (agents that run now are then strangers)";
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let mut bytes = [0; KEY_BYTES];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Durable before a token of it is given to anybody.
fn make(data: &Path, path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let bytes = random::bytes()?;
    let temporary = data.join(crate::files::unique("door.key.new-"));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(data)?.sync_all()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use dispatch_core::id::TaskId;

    use super::*;

    fn run(bits: u64, n: u32) -> RunId {
        let task = TaskId::from_bits(bits);
        RunId { task, n }
    }

    #[test]
    fn a_token_is_its_runs_alone_and_outlives_the_engine() {
        let data = tempfile::tempdir().unwrap();
        let key = DoorKey::of(data.path()).unwrap();
        let token = key.token(run(0x3f, 2));
        assert!(token.starts_with("dr_000000000000003f-2_"), "{token}");
        assert_eq!(key.whose(&token), Some(run(0x3f, 2)));
        let next = DoorKey::of(data.path()).unwrap();
        assert_eq!(next.whose(&token), Some(run(0x3f, 2)));
        let mode = fs::metadata(data.path().join(NAME)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        let elsewhere = tempfile::tempdir().unwrap();
        let other = DoorKey::of(elsewhere.path()).unwrap();
        assert_eq!(other.whose(&token), None);
    }

    /// Every byte counts, and no other spelling of a name or number passes.
    #[test]
    fn anything_else_is_nobodys() {
        let data = tempfile::tempdir().unwrap();
        let key = DoorKey::of(data.path()).unwrap();
        let token = key.token(run(0x3f, 2));
        for index in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[index] = if bytes[index] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(bytes).unwrap();
            assert_eq!(key.whose(&changed), None, "{changed}");
        }
        let tag = token.rsplit_once('_').unwrap().1;
        for other in [
            String::new(),
            "dr_".into(),
            tag.to_owned(),
            format!("dr_000000000000003f-02_{tag}"),
            format!("dr_000000000000003f-3_{tag}"),
            format!("{token}00"),
            token[..token.len() - 2].to_owned(),
            token.to_uppercase(),
            format!(" {token}"),
        ] {
            assert_eq!(key.whose(&other), None, "{other}");
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let data = tempfile::tempdir().unwrap();
        DoorKey::of(data.path()).unwrap();
        let path = data.path().join(NAME);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(DoorKey::of(data.path()).is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"short").unwrap();
        assert!(DoorKey::of(data.path()).is_err());
    }
}
