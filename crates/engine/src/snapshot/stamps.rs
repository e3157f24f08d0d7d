//! What our index says of the files it was written with, so that a file nobody has touched is not
//! read again. Must not open anything of an agent's: it is told what the file system says.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{FileType, Stat};

/// What git calls the first bytes of an index.
const SIGNATURE: &[u8] = b"DIRC";
/// The versions that spell out each path, and the only ones our git writes.
const VERSIONS: [u32; 2] = [2, 3];
const HEADER_BYTES: usize = 12;
/// An entry up to its path: ten numbers, the object's name, the flags.
const ENTRY_BYTES: usize = 62;
const FLAGS_AT: usize = 60;
/// A flag of version 3: two more bytes of flags follow.
const EXTENDED: u16 = 0x4000;

/// Seconds and nanoseconds, as an index keeps them.
type Time = (u32, u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    changed: Time,
    written: Time,
    inode: u32,
    mode: u32,
    size: u32,
}

/// How a file compares with the one that was written there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    Untouched,
    /// Written in the same moment as the index, so only its bytes can tell.
    Unsure,
    Touched,
}

#[derive(Debug, Default)]
pub(super) struct Stamps {
    by_path: HashMap<Vec<u8>, Stamp>,
    /// When the index was written: a file of an earlier moment cannot have been changed unseen.
    index: Time,
}

impl Stamps {
    /// An index that is not understood has no stamps: that costs time and loses nothing.
    pub(super) fn read(index: &Path) -> io::Result<Self> {
        let meta = File::open(index)?.metadata()?;
        let bytes = fs::read(index)?;
        Ok(Self {
            by_path: parse(&bytes).unwrap_or_default(),
            index: time(meta.mtime(), meta.mtime_nsec()),
        })
    }

    pub(super) fn compare(&self, path: &[u8], stat: &Stat) -> Since {
        let Some(stamp) = self.by_path.get(path) else {
            return Since::Touched;
        };
        let now = Stamp {
            changed: time(stat.st_ctime, stat.st_ctime_nsec as i64),
            written: time(stat.st_mtime, stat.st_mtime_nsec as i64),
            inode: low(stat.st_ino),
            mode: mode(stat),
            size: low(stat.st_size as u64),
        };
        if now != *stamp {
            Since::Touched
        } else if stamp.changed.max(stamp.written) >= self.index {
            Since::Unsure
        } else {
            Since::Untouched
        }
    }
}

/// The mode that git gives to such a file; 0 for what it does not hold.
fn mode(stat: &Stat) -> u32 {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if stat.st_mode & 0o100 != 0 => 0o100_755,
        FileType::RegularFile => 0o100_644,
        FileType::Symlink => 0o120_000,
        _ => 0,
    }
}

/// The index keeps the low 32 bits of every number.
fn low(number: u64) -> u32 {
    (number & u64::from(u32::MAX)) as u32
}

fn time(seconds: i64, nanoseconds: i64) -> Time {
    (low(seconds as u64), low(nanoseconds as u64))
}

fn parse(bytes: &[u8]) -> Option<HashMap<Vec<u8>, Stamp>> {
    let number = |at: usize| {
        let four = bytes.get(at..at + 4)?;
        Some(u32::from_be_bytes(four.try_into().ok()?))
    };
    if !bytes.starts_with(SIGNATURE) || !VERSIONS.contains(&number(4)?) {
        return None;
    }
    let mut stamps = HashMap::new();
    let mut at = HEADER_BYTES;
    for _ in 0..number(8)? {
        let flags = bytes.get(at + FLAGS_AT..at + ENTRY_BYTES)?;
        let extended = u16::from_be_bytes(flags.try_into().ok()?) & EXTENDED != 0;
        let head = ENTRY_BYTES + if extended { 2 } else { 0 };
        let rest = bytes.get(at + head..)?;
        let path = &rest[..rest.iter().position(|b| *b == 0)?];
        let stamp = Stamp {
            changed: (number(at)?, number(at + 4)?),
            written: (number(at + 8)?, number(at + 12)?),
            inode: number(at + 20)?,
            mode: number(at + 24)?,
            size: number(at + 36)?,
        };
        stamps.insert(path.to_vec(), stamp);
        // One to eight zeros, so that the next entry begins at a multiple of eight.
        at += (head + path.len() + 8) & !7;
    }
    Some(stamps)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use rustix::fs::AtFlags;

    use super::*;
    use crate::testing::World;
    use crate::workspace::META_INDEX;

    #[test]
    fn gits_own_index_is_understood_and_cut_ones_are_not_trusted() {
        let world = World::new(&[("a.txt", b"one"), ("dir/longer name.txt", b"two")]);
        let repo = world.prepare("w");
        let index = world.meta("w").join(META_INDEX);
        let later =
            fs::metadata(&index).unwrap().modified().unwrap() + std::time::Duration::new(2, 0);
        File::options()
            .write(true)
            .open(&index)
            .unwrap()
            .set_modified(later)
            .unwrap();
        let stamps = Stamps::read(&index).unwrap();
        let root = crate::files::open_dir(&repo.0).unwrap();
        let since = |path: &str| {
            let stat = rustix::fs::statat(root.as_fd(), path, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            stamps.compare(path.as_bytes(), &stat)
        };
        assert_eq!(since("a.txt"), Since::Untouched);
        assert_eq!(since("dir/longer name.txt"), Since::Untouched);
        // The same size: the times tell.
        repo.write("a.txt", b"two");
        assert_eq!(since("a.txt"), Since::Touched);
        assert_eq!(since("dir"), Since::Touched);

        let whole = fs::read(&index).unwrap();
        for end in 0..whole.len() {
            // What is there is right, or nothing is.
            if let Some(found) = parse(&whole[..end]) {
                assert_eq!(found, stamps.by_path, "{end}");
            }
        }
        let mut other = whole;
        other[7] = 4;
        assert_eq!(parse(&other), None);
    }

    #[test]
    fn a_file_of_the_indexs_own_moment_is_read() {
        let world = World::new(&[("a.txt", b"one")]);
        let repo = world.prepare("w");
        let stat = rustix::fs::lstat(repo.0.join("a.txt")).unwrap();
        let mut stamps = Stamps::read(&world.meta("w").join(META_INDEX)).unwrap();
        stamps.index = time(stat.st_ctime, stat.st_ctime_nsec as i64);
        assert_eq!(stamps.compare(b"a.txt", &stat), Since::Unsure);
        stamps.index.1 = stamps.index.1.saturating_add(1);
        assert_eq!(stamps.compare(b"a.txt", &stat), Since::Untouched);
    }
}
