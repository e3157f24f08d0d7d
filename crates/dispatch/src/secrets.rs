//! Secrets from a file or a command, for whoever dispatches. Must not show what it read, not in an
//! error either, and must not run a shell.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use dispatch_core::{causes::chain, config::Source, models::KeySource, secret::Secret};
use rustix::fs::{Mode, OFlags};

/// The longest value, of a file or a command.
const SECRET_BYTES_MAX: u64 = 64 << 10;
/// From a command's start to its end; somebody may have to touch a key.
const COMMAND_MAX: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// For the group and for others.
const FOREIGN_BITS: u32 = 0o077;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error("read {key} from {}", path.display())]
    Read {
        key: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("read {key} from {}: it is no regular file", path.display())]
    NoFile { key: String, path: PathBuf },
    #[error("read {key} from {}: it belongs to user {owner} and not to you", path.display())]
    Foreign {
        key: String,
        path: PathBuf,
        owner: u32,
    },
    #[error("read {key} from {}: others may read or write it (mode {mode:04o})", path.display())]
    Open {
        key: String,
        path: PathBuf,
        mode: u32,
    },
    #[error("run {program} for {key}")]
    Run {
        key: String,
        program: String,
        #[source]
        source: io::Error,
    },
    /// What it printed is not told: it may be half of the secret.
    #[error("run {program} for {key}: it ended with {status}")]
    Ended {
        key: String,
        program: String,
        status: ExitStatus,
    },
    #[error("run {program} for {key}: it took longer than {} s", COMMAND_MAX.as_secs())]
    Slow { key: String, program: String },
    #[error("use {key} from {from}: {what}")]
    Value {
        key: String,
        from: String,
        what: &'static str,
    },
}

impl SecretError {
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Open { path, .. } => Some(format!("`chmod 600 {}`", path.display())),
            Self::Foreign { path, .. } => Some(format!(
                "make a copy of {} that is yours alone, with mode 0600",
                path.display()
            )),
            Self::Ended { program, .. } | Self::Slow { program, .. } => {
                Some(format!("run {program} yourself to see what it says"))
            }
            Self::Read { .. } | Self::NoFile { .. } | Self::Run { .. } | Self::Value { .. } => None,
        }
    }

    /// There is no such thing, as a variable may not be set.
    fn is_absence(&self) -> bool {
        match self {
            Self::Read { source, .. } | Self::Run { source, .. } => {
                source.kind() == io::ErrorKind::NotFound
            }
            Self::Ended { .. } => true,
            Self::Value { what, .. } => *what == EMPTY,
            Self::NoFile { .. } | Self::Foreign { .. } | Self::Open { .. } | Self::Slow { .. } => {
                false
            }
        }
    }
}

const EMPTY: &str = "it is empty";

/// The value, or `None` when it is `optional` and not there.
pub(crate) fn take(
    key: &str,
    source: &Source,
    optional: bool,
    variable: impl FnOnce(&str) -> Option<Secret>,
) -> Result<Option<Secret>, SecretError> {
    let taken = match source {
        // Whoever asks words the names that are missing, all at once.
        Source::Variable(name) => return Ok(variable(name)),
        Source::File(path) => from_file(key, path),
        Source::Command(argv) => from_command(key, argv, COMMAND_MAX),
    };
    match taken {
        Ok(secret) => Ok(Some(secret)),
        Err(error) if optional && error.is_absence() => Ok(None),
        Err(error) => Err(error),
    }
}

/// One that was refused may have been renewed where it comes from. A variable's value has not.
pub(crate) fn again(key: &str, from: &KeySource) -> Result<Secret, String> {
    let taken = take(key, &Source::from(from), false, |_| None);
    let none = || format!("read {key} again: {from} is what it was");
    taken.map_err(|error| chain(&error))?.ok_or_else(none)
}

/// Of a file that is ours and that nobody else can read.
pub(crate) fn from_file(key: &str, path: &Path) -> Result<Secret, SecretError> {
    let (key, path) = (key.to_owned(), path.to_owned());
    let read = |source| SecretError::Read {
        key: key.clone(),
        path: path.clone(),
        source,
    };
    // Without waiting for the other end of what may be a pipe.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| read(error.into()))?;
    let file = File::from(file);
    // Of what is open, so that nothing can be put in its place between the look and the read.
    let meta = file.metadata().map_err(read)?;
    if !meta.is_file() {
        return Err(SecretError::NoFile { key, path });
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        let owner = meta.uid();
        return Err(SecretError::Foreign { key, path, owner });
    }
    if meta.mode() & FOREIGN_BITS != 0 {
        let mode = meta.mode() & 0o7777;
        return Err(SecretError::Open { key, path, mode });
    }
    let mut bytes = Vec::new();
    let mut capped = file.take(SECRET_BYTES_MAX + 1);
    capped.read_to_end(&mut bytes).map_err(read)?;
    value(&key, &path.display().to_string(), bytes)
}

/// The output of a command: no shell, no input, its own time limit.
fn from_command(key: &str, argv: &[String], limit: Duration) -> Result<Secret, SecretError> {
    let program = argv.first().cloned().unwrap_or_default();
    let key = key.to_owned();
    let run = |source| SecretError::Run {
        key: key.clone(),
        program: program.clone(),
        source,
    };
    let mut child = Command::new(&program)
        .args(argv.iter().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(run)?;
    let ended = output_of(&mut child, limit);
    // After its end these do nothing; before it, it must not stay.
    drop(child.kill());
    drop(child.wait());
    let Some((status, bytes)) = ended.map_err(run)? else {
        return Err(SecretError::Slow { key, program });
    };
    if !status.success() {
        return Err(SecretError::Ended {
            key,
            program,
            status,
        });
    }
    value(&key, &program, bytes)
}

/// `None` when the time was over first.
fn output_of(child: &mut Child, limit: Duration) -> io::Result<Option<(ExitStatus, Vec<u8>)>> {
    let until = Instant::now() + limit;
    let Some(out) = child.stdout.take() else {
        return Err(io::Error::other("it has no output"));
    };
    // On a thread, because a read has no time limit. It ends with the pipe.
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = out.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes);
        // Nobody waits any more when the time is over.
        drop(tell.send(read.map(|_| bytes)));
    });
    let Ok(bytes) = told.recv_timeout(limit) else {
        return Ok(None);
    };
    let bytes = bytes?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some((status, bytes)));
        }
        if Instant::now() >= until {
            return Ok(None);
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Without the newline that editors and `echo` leave behind.
fn value(key: &str, from: &str, bytes: Vec<u8>) -> Result<Secret, SecretError> {
    let wrong = |what| SecretError::Value {
        key: key.to_owned(),
        from: from.to_owned(),
        what,
    };
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        return Err(wrong("it has more than 65536 bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong("it is no UTF-8 text"))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(wrong(EMPTY));
    }
    if text.contains('\0') {
        return Err(wrong("it holds a zero byte, which no variable can"));
    }
    Ok(Secret::from(text))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn file(dir: &Path, bytes: &[u8], mode: u32) -> PathBuf {
        let path = dir.join("key");
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn command(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[test]
    fn a_file_of_ours_is_read_without_its_last_newline() {
        let dir = tempfile::tempdir().unwrap();
        for (bytes, expected) in [
            (&b"s3\n"[..], "s3"),
            (b"s3", "s3"),
            (b"s3\r\n", "s3"),
            (b"a\nb\n\n", "a\nb\n"),
        ] {
            let path = file(dir.path(), bytes, 0o600);
            assert_eq!(from_file("K", &path).unwrap().expose(), expected);
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o640, 0o604, 0o660, 0o601] {
            let path = file(dir.path(), b"s3cr3t", mode);
            let error = from_file("K", &path).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(&format!("{mode:04o}")), "{text}");
            assert!(!text.contains("s3cr3t"));
            assert_eq!(
                error.hint(),
                Some(format!("`chmod 600 {}`", path.display()))
            );
            // Wrong is not absent.
            let source = Source::File(path);
            assert!(take("K", &source, true, |_| None).is_err());
        }
    }

    #[test]
    fn what_is_no_good_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |path: &Path| from_file("K", path).unwrap_err().to_string();
        assert!(refused(dir.path()).contains("no regular file"));
        let long = vec![b'x'; usize::try_from(SECRET_BYTES_MAX).unwrap() + 1];
        assert!(refused(&file(dir.path(), &long, 0o600)).contains("65536 bytes"));
        assert!(refused(&file(dir.path(), b"\xff\xfe", 0o600)).contains("UTF-8"));
        assert!(refused(&file(dir.path(), b"\n", 0o600)).contains(EMPTY));
        let absent = Source::File(dir.path().join("absent"));
        assert_eq!(take("K", &absent, true, |_| None).unwrap(), None);
        assert!(take("K", &absent, false, |_| None).is_err());
        assert_eq!(SECRET_BYTES_MAX, 65536, "the text above says so");
    }

    #[test]
    fn a_command_gives_its_output_and_its_failure_is_not_quoted() {
        let limit = Duration::from_secs(20);
        let given = from_command("K", &command("echo s3"), limit).unwrap();
        assert_eq!(given.expose(), "s3");
        let error = from_command("K", &command("echo s3cr3t; exit 3"), limit).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("run sh for K") && text.contains("exit status: 3"),
            "{text}"
        );
        assert!(!text.contains("s3cr3t") && !format!("{error:?}").contains("s3cr3t"));
        let endless = from_command("K", &command("exec cat /dev/zero"), limit).unwrap_err();
        assert!(
            matches!(
                endless,
                SecretError::Ended { .. } | SecretError::Value { .. }
            ),
            "{endless}"
        );
        let absent = Source::Command(vec!["/no/such/program".into()]);
        assert_eq!(take("K", &absent, true, |_| None).unwrap(), None);
        assert!(take("K", &absent, false, |_| None).is_err());
    }

    #[test]
    fn a_command_that_takes_too_long_is_ended() {
        let started = Instant::now();
        let slow = command("exec sleep 600");
        let error = from_command("K", &slow, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, SecretError::Slow { .. }), "{error}");
        assert!(started.elapsed() < Duration::from_secs(300));
    }
}
