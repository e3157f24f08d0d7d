//! Results that are too long: all of it goes into a file, the model gets the beginning, the end and
//! the path. Must not put anything a provider or a command said into a path.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// What a model gets whole.
pub(super) const CHARS_MAX: usize = 10_000;
pub(super) const LINES_MAX: usize = 500;
/// What it gets of the rest, at each end.
const END_CHARS: usize = 1_500;

#[derive(Debug)]
pub(crate) struct Spill {
    dir: PathBuf,
    next: AtomicU64,
}

impl Spill {
    /// Nobody but us may look into it.
    pub(crate) fn new(dir: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        Ok(Self {
            dir: dir.canonicalize()?,
            next: AtomicU64::new(0),
        })
    }

    pub(super) fn holds(&self, path: &Path) -> bool {
        path.starts_with(&self.dir)
    }

    /// A new file of a name that no earlier process took.
    pub(super) fn file(&self, what: &str) -> io::Result<(PathBuf, File)> {
        loop {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let path = self.dir.join(format!("{what}-{n}.txt"));
            let made = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path);
            match made {
                Ok(file) => return Ok((path, file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// What the model is told instead of this.
    pub(crate) fn fit(&self, tool: &str, text: String) -> String {
        let chars = text.chars().count();
        let lines = text.lines().count();
        if chars <= CHARS_MAX && lines <= LINES_MAX {
            return text;
        }
        let kept = self.file("result").and_then(|(path, mut file)| {
            let written = file.write_all(text.as_bytes());
            match written {
                Ok(()) => Ok(path),
                Err(error) => {
                    // Half of it would be taken for all.
                    fs::remove_file(&path)?;
                    Err(error)
                }
            }
        });
        let wher = match kept {
            Ok(path) => format!(
                "All of it is in {}; read parts of it with read_file or read_file_slice.",
                path.display()
            ),
            Err(error) => format!("The rest is lost: it could not be kept: {error}."),
        };
        let (head, tail) = ends(&text, END_CHARS);
        let omitted = chars - head.chars().count() - tail.chars().count();
        format!(
            "{head}\n\n[{tool} gave {chars} characters in {lines} lines; {omitted} of them are \
             left out here. {wher}]\n\n{tail}"
        )
    }
}

/// The first and the last characters, which do not overlap.
pub(super) fn ends(text: &str, chars: usize) -> (&str, &str) {
    let head = text
        .char_indices()
        .nth(chars)
        .map_or(text.len(), |(at, _)| at);
    let rest = &text[head..];
    let tail = rest
        .char_indices()
        .rev()
        .nth(chars - 1)
        .map_or(0, |(at, _)| at);
    (&text[..head], &rest[tail..])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_too_long_is_kept_and_its_ends_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let spill = Spill::new(&dir.path().join("spill")).unwrap();
        let short = "é".repeat(CHARS_MAX);
        assert_eq!(spill.fit("x", short.clone()), short);
        let long = format!("begin{}end", "é".repeat(CHARS_MAX));
        let lines = "line\n".repeat(LINES_MAX + 1);
        for text in [long, lines] {
            let told = spill.fit("run_shell", text.clone());
            assert!(told.chars().count() < 2 * END_CHARS + 400, "{told}");
            assert!(told.starts_with(&text[..5]) && told.ends_with(&text[text.len() - 3..]));
            let path = told
                .split("is in ")
                .nth(1)
                .unwrap()
                .split(';')
                .next()
                .unwrap();
            assert_eq!(fs::read_to_string(path).unwrap(), text);
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(Path::new(path)), 0o600);
            assert_eq!(mode(Path::new(path).parent().unwrap()), 0o700);
        }
    }

    #[test]
    fn a_new_process_takes_no_file_of_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let text = "x".repeat(CHARS_MAX + 1);
        for _ in 0..3 {
            Spill::new(dir.path()).unwrap().fit("t", text.clone());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn what_cannot_be_kept_is_said_to_be_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spill");
        let spill = Spill::new(&path).unwrap();
        fs::remove_dir(&path).unwrap();
        let told = spill.fit("t", "x".repeat(CHARS_MAX + 1));
        assert!(told.contains("The rest is lost"), "{told}");
    }

    #[test]
    fn ends_do_not_overlap() {
        for (text, expected) in [
            ("abcdef", ("ab", "ef")),
            ("abc", ("ab", "c")),
            ("a", ("a", "")),
            ("ééééé", ("éé", "éé")),
        ] {
            assert_eq!(ends(text, 2), expected);
        }
    }
}
