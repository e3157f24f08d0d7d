//! The tar blob with what git cannot hold: written from an agent's tree without following a
//! symlink, and unpacked so that no entry can lead out of the directory.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode};
use tar::{Builder, EntryType, Header};

use super::walk::Found;
use super::{LeftOuts, SnapshotError, Why, as_path, git_error, io_error};
use crate::files;
use crate::git::CommitId;
use crate::vault::{Scratch, Vault};

/// A tar header holds a link's target up to this length as it is.
const LINK_MAX_BYTES: usize = 100;

/// Packs what was found in the tree `root` into a blob; what cannot be read is named.
pub(super) fn store(
    vault: &Vault,
    scratch: &Scratch,
    root: BorrowedFd<'_>,
    found: Vec<Found>,
    left_out: &mut LeftOuts,
) -> Result<Option<CommitId>, SnapshotError> {
    if found.is_empty() {
        return Ok(None);
    }
    let file = scratch.path("rest.tar");
    let error = io_error("write", &file);
    let mut tar = Builder::new(BufWriter::new(File::create(&file).map_err(&error)?));
    for found in found {
        match open(root, &found) {
            Ok(item) => append(&mut tar, as_path(&found.path), item).map_err(&error)?,
            Err(_) => left_out.push(&found.path, Why::Unreadable),
        }
    }
    tar.into_inner()
        .and_then(|mut out| out.flush())
        .map_err(&error)?;
    let id = vault
        .cmd("hash-object")
        .args(["-w", "--stdin"])
        .stdin_file(File::open(&file).map_err(&error)?)
        .slow()
        .id()
        .map_err(git_error("keep what git cannot hold"))?;
    Ok(Some(id))
}

/// What lies at a path of an agent's tree, held open.
pub(super) enum Item {
    Directory { mode: u32 },
    File { mode: u32, size: u64, file: File },
    Link { target: Vec<u8> },
}

/// Opens what a walk has found, without following a link on any part of the way, whatever lies
/// there by now. Of a file no more is given than was found.
pub(super) fn open(root: BorrowedFd<'_>, found: &Found) -> io::Result<Item> {
    let (parent, name) = files::parent_beneath(root, as_path(&found.path), false)?;
    let stat = rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let dir = File::from(files::open_dir_at(parent.as_fd(), &name)?);
            Item::Directory {
                mode: dir.metadata()?.mode() & 0o777,
            }
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&parent, &name, Vec::new())?;
            Item::Link {
                target: target.into_bytes(),
            }
        }
        _ => {
            let file = files::open_beneath(parent.as_fd(), name.as_ref())?;
            let meta = file.metadata()?;
            Item::File {
                mode: meta.mode() & 0o777,
                size: meta.len().min(found.bytes),
                file,
            }
        }
    })
}

fn append(tar: &mut Builder<impl io::Write>, path: &Path, item: Item) -> io::Result<()> {
    let mut header = Header::new_gnu();
    match item {
        Item::Directory { mode } => {
            header.set_entry_type(EntryType::Directory);
            header.set_mode(mode);
            header.set_size(0);
            tar.append_data(&mut header, path, io::empty())
        }
        Item::File { mode, size, file } => {
            header.set_entry_type(EntryType::Regular);
            header.set_mode(mode);
            header.set_size(size);
            // The header is written first: a file that shrinks is filled up, or the archive
            // would be broken from here on.
            tar.append_data(&mut header, path, file.chain(io::repeat(0)).take(size))
        }
        Item::Link { target } => {
            header.set_entry_type(EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            if target.len() > LINK_MAX_BYTES {
                return tar.append_link(&mut header, path, as_path(&target));
            }
            header.set_link_name_literal(&target)?;
            tar.append_data(&mut header, path, io::empty())
        }
    }
}

/// Unpacks an archive of ours below `root`, replacing files but never following a link.
pub(super) fn unpack(root: BorrowedFd<'_>, archive: File) -> io::Result<()> {
    let mut modes = Vec::new();
    for entry in tar::Archive::new(io::BufReader::new(archive)).entries()? {
        let mut entry = entry?;
        let path = std::ffi::OsString::from_vec(entry.path_bytes().into_owned());
        let path = Path::new(&path);
        let mode = entry.header().mode()?;
        match entry.header().entry_type() {
            EntryType::Directory => {
                // Making something in it makes the directory.
                files::parent_beneath(root, &path.join("x"), true)?;
                modes.push((path.to_owned(), mode));
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let (parent, name) = files::parent_beneath(root, path, true)?;
                make_room(parent.as_fd(), &name)?;
                rustix::fs::symlinkat(std::ffi::OsStr::from_bytes(&target), &parent, &name)?;
            }
            EntryType::Regular => {
                let (parent, name) = files::parent_beneath(root, path, true)?;
                make_room(parent.as_fd(), &name)?;
                let mut file = files::create_beneath(parent.as_fd(), name.as_ref(), mode)?;
                io::copy(&mut entry, &mut file)?;
            }
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "odd entry in archive",
                ));
            }
        }
    }
    // Last and from the inside out: a read-only directory takes no more files.
    for (path, mode) in modes.iter().rev() {
        let (parent, name) = files::parent_beneath(root, path, false)?;
        let dir = files::open_dir_at(parent.as_fd(), &name)?;
        let mode = Mode::from_raw_mode((mode & 0o777) as rustix::fs::RawMode);
        rustix::fs::fchmod(&dir, mode)?;
    }
    Ok(())
}

fn make_room(parent: BorrowedFd<'_>, name: &std::ffi::OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header whose path the builder itself would refuse.
    fn entry(tar: &mut Builder<Vec<u8>>, kind: EntryType, path: &[u8], link: &[u8]) {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(0);
        if !link.is_empty() {
            header.set_link_name_literal(link).unwrap();
        }
        header.set_cksum();
        tar.append(&header, io::empty()).unwrap();
    }

    #[test]
    fn nothing_unpacks_outside() {
        for (path, through_link) in [
            (&b"../evil"[..], false),
            (b"/tmp/dispatch-evil", false),
            (b"a/../../evil", false),
            (b"l/evil", true),
        ] {
            let temp = tempfile::tempdir().unwrap();
            let inside = temp.path().join("inside");
            std::fs::create_dir(&inside).unwrap();
            let mut tar = Builder::new(Vec::new());
            if through_link {
                entry(&mut tar, EntryType::Symlink, b"l", b"..");
            }
            entry(&mut tar, EntryType::Regular, path, b"");
            let file = temp.path().join("t.tar");
            std::fs::write(&file, tar.into_inner().unwrap()).unwrap();
            let root = files::open_dir(&inside).unwrap();
            assert!(
                unpack(root.as_fd(), File::open(&file).unwrap()).is_err(),
                "{path:?}"
            );
            assert!(!temp.path().join("evil").exists());
            assert!(!Path::new("/tmp/dispatch-evil").exists());
        }
    }

    #[test]
    fn a_fifo_or_hard_link_entry_is_refused() {
        for kind in [EntryType::Fifo, EntryType::Link, EntryType::Char] {
            let temp = tempfile::tempdir().unwrap();
            let mut tar = Builder::new(Vec::new());
            entry(&mut tar, kind, b"x", b"/etc/passwd");
            let file = temp.path().join("t.tar");
            std::fs::write(&file, tar.into_inner().unwrap()).unwrap();
            let root = files::open_dir(temp.path()).unwrap();
            assert!(unpack(root.as_fd(), File::open(&file).unwrap()).is_err());
            assert!(!temp.path().join("x").exists());
        }
    }
}
