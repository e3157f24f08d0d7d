//! What a command prints: the beginning and the end in memory, all of it in a file up to a limit,
//! and the rest only counted. Must not grow with what is printed.

use std::{collections::VecDeque, fs::File, io::Write, path::PathBuf};

use super::{Spill, spill::ends};

/// What a model gets whole.
const WHOLE_BYTES: usize = 4_500;
/// What it gets of more, at each end.
const END_CHARS: usize = 1_500;
/// Of the end, for whoever looks at a running command.
const TAIL_BYTES: usize = 16 << 10;
const FILE_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, Default)]
pub(super) struct Capture {
    head: Vec<u8>,
    /// What follows the head, or the last of it.
    tail: VecDeque<u8>,
    bytes: u64,
    file: Option<(PathBuf, File)>,
    kept: u64,
    /// Why the file does not hold all of it.
    lost: Option<String>,
}

impl Capture {
    pub(super) fn push(&mut self, bytes: &[u8], spill: &Spill) {
        self.bytes += bytes.len() as u64;
        let room = WHOLE_BYTES.saturating_sub(self.head.len()).min(bytes.len());
        let (begin, rest) = bytes.split_at(room);
        self.head.extend_from_slice(begin);
        if rest.is_empty() {
            return;
        }
        self.keep(rest, spill);
        let last = &rest[rest.len().saturating_sub(TAIL_BYTES)..];
        let over = (self.tail.len() + last.len()).saturating_sub(TAIL_BYTES);
        self.tail.drain(..over.min(self.tail.len()));
        self.tail.extend(last);
    }

    fn keep(&mut self, rest: &[u8], spill: &Spill) {
        if self.lost.is_some() {
            return;
        }
        if let Err(error) = self.write(rest, spill) {
            self.lost = Some(error.to_string());
        }
    }

    fn write(&mut self, rest: &[u8], spill: &Spill) -> std::io::Result<()> {
        let (_, file) = match &mut self.file {
            Some(file) => file,
            none => {
                let mut made = spill.file("output")?;
                made.1.write_all(&self.head)?;
                self.kept = self.head.len() as u64;
                none.insert(made)
            }
        };
        let room = FILE_BYTES_MAX.saturating_sub(self.kept);
        let room = usize::try_from(room).unwrap_or(usize::MAX).min(rest.len());
        file.write_all(&rest[..room])?;
        self.kept += room as u64;
        if room < rest.len() {
            self.lost = Some(format!("only its first {FILE_BYTES_MAX} bytes are kept"));
        }
        Ok(())
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The last characters, at most as many as are in memory.
    pub(super) fn last(&self, chars: usize) -> String {
        let mut bytes = self.head.clone();
        if !self.tail.is_empty() {
            let (a, b) = self.tail.as_slices();
            let follows = self.bytes <= (self.head.len() + self.tail.len()) as u64;
            if !follows {
                bytes.clear();
            }
            bytes.extend_from_slice(a);
            bytes.extend_from_slice(b);
        }
        let text = String::from_utf8_lossy(&bytes);
        let from = text.char_indices().rev().nth(chars.saturating_sub(1));
        text[from.map_or(0, |(at, _)| at)..].to_owned()
    }

    /// What the model is told.
    pub(super) fn told(&self) -> String {
        let head = String::from_utf8_lossy(&self.head);
        if self.bytes <= WHOLE_BYTES as u64 {
            return head.into_owned();
        }
        let (begin, _) = ends(&head, END_CHARS);
        let end = self.last(END_CHARS);
        let left = self.bytes.saturating_sub((begin.len() + end.len()) as u64);
        let mut note = format!("{} bytes, {left} of them are left out here.", self.bytes);
        if let Some((path, _)) = &self.file {
            note.push_str(&format!(
                " The output is in {}; read parts of it with read_file.",
                path.display()
            ));
        }
        if let Some(lost) = &self.lost {
            note.push_str(&format!(" Some of it is lost: {lost}."));
        }
        format!("{begin}\n[{note}]\n{end}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_both_ends_and_the_file_holds_all() {
        let dir = tempfile::tempdir().unwrap();
        let spill = Spill::new(dir.path()).unwrap();
        for count in [0, 1, 4_500, 4_501, 20_000, 20_501, 500_000] {
            let text: String = (0..count)
                .map(|n| char::from(b'a' + (n % 23) as u8))
                .collect();
            for piece in [1, 7, 4_096, 65_536] {
                let mut capture = Capture::default();
                for bytes in text
                    .as_bytes()
                    .chunks(if count > 50_000 { 65_536 } else { piece })
                {
                    capture.push(bytes, &spill);
                }
                assert_eq!(capture.bytes(), count as u64);
                let told = capture.told();
                let last = text.len().saturating_sub(100);
                assert!(told.ends_with(&text[last..]), "{count}");
                assert_eq!(capture.last(100), text[last..]);
                if count <= 4_500 {
                    assert_eq!(told, text);
                    continue;
                }
                assert!(told.starts_with(&text[..1_500]) && told.len() < 3_400);
                let path = told
                    .split("is in ")
                    .nth(1)
                    .unwrap()
                    .split(';')
                    .next()
                    .unwrap();
                assert_eq!(std::fs::read_to_string(path).unwrap(), text);
            }
        }
    }

    #[test]
    fn what_is_over_the_limit_is_counted_and_said_to_be_lost() {
        let dir = tempfile::tempdir().unwrap();
        let spill = Spill::new(dir.path()).unwrap();
        let mut capture = Capture::default();
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..80 {
            capture.push(&piece, &spill);
        }
        let told = capture.told();
        assert!(
            told.contains("83886080 bytes") && told.contains("Some of it is lost"),
            "{told}"
        );
        let kept = std::fs::read_dir(dir.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        assert_eq!(kept.metadata().unwrap().len(), FILE_BYTES_MAX);
        assert!(capture.head.capacity() + capture.tail.capacity() < 64 << 10);
    }
}
