//! Files that a person hands over with a task or a message: what they are called, how many there may
//! be, which agents can read them, and which of them a model of our own agent is shown as they are.
//! Must not read or write one, and must not hold a content: the engine keeps it, the log its hash.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{drivers::DriverKind, id::AgentName, limits::Limits, message::MessageId};

/// Of a name; file systems take a little more, and a prompt names many of them.
pub const NAME_BYTES_MAX: usize = 100;
/// A longer end of a name is no extension.
const EXTENSION_BYTES_MAX: usize = 16;
/// For one of which nothing is left.
const NAMELESS: &str = "file";

/// A plain name in one directory. Whatever it was called, it holds only letters, digits and `.`, `_`,
/// `-`, `+`, `@`, so that it means nothing to a path, a prompt, a shell or a screen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileName(String);

impl FileName {
    /// The nearest name to what somebody calls a file.
    #[must_use]
    pub fn of(given: &str) -> Self {
        let last = given.rsplit(['/', '\\']).next().unwrap_or_default();
        let plain = |c: char| match c {
            '.' | '_' | '-' | '+' | '@' => c,
            c if c.is_alphanumeric() => c,
            _ => '_',
        };
        let name: String = last.chars().map(plain).collect();
        if name.chars().all(|c| c == '.') {
            return Self(NAMELESS.to_owned());
        }
        Self(named(&name, ""))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for FileName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let name = Self::of(&text);
        if name.0 == text {
            Ok(name)
        } else {
            Err(format!("{text:?} is no plain name of a file"))
        }
    }
}

impl From<FileName> for String {
    fn from(name: FileName) -> Self {
        name.0
    }
}

/// `name` with `more` before its extension, cut to its length.
fn named(name: &str, more: &str) -> String {
    let (stem, extension) = match name.rfind('.') {
        Some(at) if at > 0 && name.len() - at <= EXTENSION_BYTES_MAX => name.split_at(at),
        Some(_) | None => (name, ""),
    };
    let room = NAME_BYTES_MAX - more.len() - extension.len();
    let mut end = stem.len().min(room);
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{more}{extension}", &stem[..end])
}

/// Names for files that are handed over together, none twice: where letters have no case, neither.
#[must_use]
pub fn names<'a>(given: impl IntoIterator<Item = &'a str>) -> Vec<FileName> {
    let mut names: Vec<FileName> = Vec::new();
    for given in given {
        let first = FileName::of(given);
        let mut name = first.clone();
        let mut n = 1;
        while names.iter().any(|other| same(other, &name)) {
            n += 1;
            name = FileName(named(&first.0, &format!("-{n}")));
        }
        names.push(name);
    }
    names
}

fn same(one: &FileName, other: &FileName) -> bool {
    one.0.to_lowercase() == other.0.to_lowercase()
}

/// A file as it was handed over, without its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub name: FileName,
    pub bytes: u64,
    /// In hexadecimal.
    pub sha256: String,
}

/// What was handed over together, in a folder of its own below the task's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    pub folder: u32,
    pub files: Vec<Attachment>,
    /// What it came with; `None`: the task itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageId>,
}

/// Whether an agent of this kind reads what it is told, and so the files that are named there.
#[must_use]
pub fn takes(driver: DriverKind) -> bool {
    match driver {
        DriverKind::Plain
        | DriverKind::Claude
        | DriverKind::Codex
        | DriverKind::Acp
        | DriverKind::CodexApp
        | DriverKind::Native => true,
        DriverKind::Coderabbit => false,
    }
}

/// Kinds of files that models can be shown as they are, and not only as something to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Media {
    #[serde(rename = "image/png")]
    Png,
    #[serde(rename = "image/jpeg")]
    Jpeg,
    #[serde(rename = "image/webp")]
    Webp,
    #[serde(rename = "image/gif")]
    Gif,
    #[serde(rename = "application/pdf")]
    Pdf,
}

/// What models differ in taking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MediaKind {
    Image,
    Pdf,
}

/// So much of a file tells what it is.
pub const MAGIC_BYTES: usize = 12;
/// What is shown with one message, as providers take it.
pub const SHOWN_MAX: usize = 20;
pub const SHOWN_BYTES_MAX: u64 = 32 << 20;
const IMAGE_BYTES_MAX: u64 = 5 << 20;
const PDF_BYTES_MAX: u64 = 32 << 20;

impl Media {
    /// By its first bytes; what it is called is only what somebody calls it.
    #[must_use]
    pub fn of(first: &[u8]) -> Option<Self> {
        match first {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Self::Png),
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [
                b'R',
                b'I',
                b'F',
                b'F',
                _,
                _,
                _,
                _,
                b'W',
                b'E',
                b'B',
                b'P',
                ..,
            ] => Some(Self::Webp),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Gif),
            [b'%', b'P', b'D', b'F', b'-', ..] => Some(Self::Pdf),
            _ => None,
        }
    }

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
            Self::Gif => "image/gif",
            Self::Pdf => "application/pdf",
        }
    }

    #[must_use]
    pub fn kind(self) -> MediaKind {
        match self {
            Self::Png | Self::Jpeg | Self::Webp | Self::Gif => MediaKind::Image,
            Self::Pdf => MediaKind::Pdf,
        }
    }
}

/// Why a model is not shown a file as it is. It can still read it where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unshown {
    #[error("unsupported-type")]
    Type,
    #[error("empty")]
    Empty,
    #[error("image-too-large: {bytes} bytes of {IMAGE_BYTES_MAX} at most")]
    Image { bytes: u64 },
    #[error("pdf-too-large: {bytes} bytes of {PDF_BYTES_MAX} at most")]
    Pdf { bytes: u64 },
    #[error("too-many: {SHOWN_MAX} at most with one message")]
    Count,
    #[error("total-too-large: {SHOWN_BYTES_MAX} bytes at most with one message")]
    Total,
}

/// Which of the files of one message are shown: sizes and first bytes in, one verdict each out.
#[must_use]
pub fn shown(files: &[(u64, Option<Media>)]) -> Vec<Result<Media, Unshown>> {
    let (mut count, mut sum) = (0, 0);
    let judge = |&(bytes, media): &(u64, Option<Media>)| {
        let media = alone(bytes, media)?;
        if count >= SHOWN_MAX {
            return Err(Unshown::Count);
        }
        if bytes > SHOWN_BYTES_MAX - sum {
            return Err(Unshown::Total);
        }
        count += 1;
        sum += bytes;
        Ok(media)
    };
    files.iter().map(judge).collect()
}

fn alone(bytes: u64, media: Option<Media>) -> Result<Media, Unshown> {
    if bytes == 0 {
        return Err(Unshown::Empty);
    }
    let media = media.ok_or(Unshown::Type)?;
    match media.kind() {
        MediaKind::Image if bytes > IMAGE_BYTES_MAX => Err(Unshown::Image { bytes }),
        MediaKind::Pdf if bytes > PDF_BYTES_MAX => Err(Unshown::Pdf { bytes }),
        MediaKind::Image | MediaKind::Pdf => Ok(media),
    }
}

/// Why files cannot be handed over. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAttachment {
    #[error(
        "attach files: {0} takes no attachments, for it does not read what it is told; leave them \
         out, or use another agent"
    )]
    Agent(AgentName),
    #[error(
        "attach {count} files: a task has {max} at most (limits.attach_files_max); pack some of \
         them together"
    )]
    TooMany { count: usize, max: usize },
    #[error(
        "attach {bytes} bytes: the files of a task have {max} together at most \
         (limits.attach_bytes)"
    )]
    TooLarge { bytes: u64, max: u64 },
}

/// Whether that agent may be given files of these sizes beside what the task has.
///
/// # Errors
/// See [`BadAttachment`].
pub fn allowed(
    limits: &Limits,
    (agent, driver): (&AgentName, DriverKind),
    there: &[Attached],
    sizes: impl IntoIterator<Item = u64>,
) -> Result<(), BadAttachment> {
    if !takes(driver) {
        return Err(BadAttachment::Agent(agent.clone()));
    }
    let there = there.iter().flat_map(|attached| &attached.files);
    let sizes = there.map(|file| file.bytes).chain(sizes);
    let sum = |(count, bytes): (usize, u64), size: u64| (count + 1, bytes.saturating_add(size));
    let (count, bytes) = sizes.fold((0, 0), sum);
    if count > limits.attach_files_max {
        let max = limits.attach_files_max;
        return Err(BadAttachment::TooMany { count, max });
    }
    if bytes > limits.attach_bytes {
        let max = limits.attach_bytes;
        return Err(BadAttachment::TooLarge { bytes, max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_file_is_what_its_first_bytes_say() {
        for (first, media) in [
            (&b"\x89PNG\r\n\x1a\n...."[..], Some(Media::Png)),
            (b"\xff\xd8\xff\xe0", Some(Media::Jpeg)),
            (b"RIFF1234WEBP", Some(Media::Webp)),
            (b"RIFF1234WAVE", None),
            (b"GIF89a", Some(Media::Gif)),
            (b"GIF87a", Some(Media::Gif)),
            (b"%PDF-1.7", Some(Media::Pdf)),
            (b"<svg", None),
            (b"\x89PN", None),
            (b"", None),
        ] {
            assert_eq!(Media::of(first), media, "{first:?}");
            assert!(first.len() <= MAGIC_BYTES);
            if let Some(media) = media {
                assert_eq!(serde_json::to_value(media).unwrap(), media.word());
            }
        }
    }

    #[test]
    fn what_is_shown_is_bounded_and_each_reason_has_its_name() {
        let png = Some(Media::Png);
        let pdf = Some(Media::Pdf);
        const MIB: u64 = 1 << 20;
        let told = |files: &[(u64, Option<Media>)]| {
            let told = |verdict: Result<Media, Unshown>| match verdict {
                Ok(media) => media.word().to_owned(),
                Err(why) => why.to_string().split(':').next().unwrap_or("").to_owned(),
            };
            let told: Vec<String> = shown(files).into_iter().map(told).collect();
            told.join(" ")
        };
        let many = [
            (5 * MIB, png),
            (5 * MIB + 1, png),
            (0, png),
            (1, None),
            (32 * MIB + 1, pdf),
        ];
        assert_eq!(
            told(&many),
            "image/png image-too-large empty unsupported-type pdf-too-large"
        );
        // One that does not fit leaves room for a smaller one.
        assert_eq!(
            told(&[(30 * MIB, pdf), (3 * MIB, png), (2 * MIB, png), (1, png)]),
            "application/pdf total-too-large image/png total-too-large"
        );
        let verdicts = shown(&[(1, png); SHOWN_MAX + 1]);
        assert!(verdicts[..SHOWN_MAX].iter().all(Result::is_ok));
        assert_eq!(verdicts[SHOWN_MAX], Err(Unshown::Count));
    }

    #[test]
    fn a_name_is_plain_whatever_a_file_is_called() {
        for (given, name) in [
            ("spec.pdf", "spec.pdf"),
            (".env", ".env"),
            ("../../x", "x"),
            ("/etc/passwd", "passwd"),
            ("C:\\temp\\a.txt", "a.txt"),
            ("", "file"),
            (".", "file"),
            ("..", "file"),
            ("a/..", "file"),
            ("x/", "file"),
            ("a\nb\u{1b}[31m\u{202e}.txt", "a_b__31m_.txt"),
            ("Screenshot 1 (2).png", "Screenshot_1__2_.png"),
            ("`rm -rf`; $(x).md", "_rm_-rf_____x_.md"),
            ("größe.txt", "größe.txt"),
            ("\0", "_"),
        ] {
            assert_eq!(FileName::of(given).as_str(), name, "{given:?}");
        }
        let long = FileName::of(&format!("{}.tar", "ä".repeat(300)));
        assert!(long.0.len() <= NAME_BYTES_MAX && long.0.ends_with("ä.tar"));
        let no_end = FileName::of(&format!("x.{}", "y".repeat(300)));
        assert_eq!(no_end.0.len(), NAME_BYTES_MAX);
        for name in [&long, &no_end] {
            assert_eq!(FileName::of(&name.0), *name, "once more is the same");
        }
        for bad in ["../x", "a/b", "..", "", "a b"] {
            assert!(serde_json::from_value::<FileName>(bad.into()).is_err());
        }
    }

    #[test]
    fn no_two_names_are_the_same() {
        let long = "x".repeat(200);
        let given = [
            "a.txt", "b/a.txt", "A.TXT", "a-2.txt", "", ".", &long, &long,
        ];
        let names = names(given);
        let text: Vec<&str> = names.iter().map(FileName::as_str).collect();
        assert_eq!(
            text[..6],
            ["a.txt", "a-2.txt", "A-3.TXT", "a-2-2.txt", "file", "file-2"]
        );
        assert_ne!(text[6], text[7]);
        for name in &names {
            assert!(name.0.len() <= NAME_BYTES_MAX);
            assert_eq!(FileName::of(&name.0), *name);
        }
    }

    #[test]
    fn who_takes_none_is_named_and_limits_are_of_the_whole_task() {
        let mut limits = Config::defaults().limits;
        (limits.attach_bytes, limits.attach_files_max) = (10, 2);
        let there = [Attached {
            folder: 1,
            files: vec![Attachment {
                name: FileName::of("a"),
                bytes: 6,
                sha256: String::new(),
            }],
            message: None,
        }];
        let agent: AgentName = "claude".parse().unwrap();
        let claude = (&agent, DriverKind::Claude);
        assert_eq!(allowed(&limits, claude, &there, [4]), Ok(()));
        let told = |there: &[Attached], sizes: &[u64]| {
            let refused = allowed(&limits, claude, there, sizes.iter().copied());
            refused.unwrap_err().to_string()
        };
        assert!(told(&there, &[5]).contains("attach 11 bytes"));
        assert!(told(&there, &[0, 0]).contains("attach 3 files"));
        assert!(told(&[], &[u64::MAX, 1]).contains("limits.attach_bytes"));
        let agent = "coderabbit".parse().unwrap();
        let refused = allowed(&limits, (&agent, DriverKind::Coderabbit), &[], [1]);
        let told = refused.unwrap_err().to_string();
        assert!(told.contains("coderabbit takes no attachments"), "{told}");
    }
}
