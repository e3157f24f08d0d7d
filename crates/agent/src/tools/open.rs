//! Opening a file to read it: at the path that was decided about, and only if it is a file.
//! Must not wait: a pipe keeps whoever opens it waiting, and a device may have no end.

use std::{fs::File, io, path::Path};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

const FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NOCTTY);

/// The path has no links: one that is in it now came after it was looked at.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let opened = match without_links(path) {
        Err(Errno::LOOP) => return Err(io::Error::other("a part of the path is a link now")),
        // Some of what is no file cannot even be opened.
        Err(Errno::NXIO) => return Err(no_file()),
        opened => File::from(opened?),
    };
    let found = opened.metadata()?;
    if found.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !found.is_file() {
        return Err(no_file());
    }
    Ok(opened)
}

fn no_file() -> io::Error {
    io::Error::other("it is no file")
}

#[cfg(target_os = "linux")]
fn without_links(path: &Path) -> Result<rustix::fd::OwnedFd, Errno> {
    use rustix::fs::{CWD, ResolveFlags};
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(CWD, path, FLAGS, Mode::empty(), resolve) {
        // An older kernel, or a filter around us that does not know the call.
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::open(path, FLAGS, Mode::empty()),
        opened => opened,
    }
}

#[cfg(not(target_os = "linux"))]
fn without_links(path: &Path) -> Result<rustix::fd::OwnedFd, Errno> {
    rustix::fs::open(path, FLAGS, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;
    use crate::tools::testing::Bench;

    #[test]
    fn a_file_is_opened_and_nothing_else() {
        let bench = Bench::new();
        bench.write("dir/a", "x");
        bench.pipe("pipe");
        symlink("dir", bench.path("link")).unwrap();
        let socket = UnixListener::bind(bench.path("socket")).unwrap();
        assert!(open(&bench.path("dir/a")).is_ok());
        for (path, why) in [
            ("pipe", "it is no file"),
            ("socket", "it is no file"),
            ("dir", "is a directory"),
            ("link/a", "a part of the path is a link now"),
            ("none", "No such file"),
        ] {
            let error = open(&bench.path(path)).unwrap_err().to_string();
            assert!(error.contains(why), "{path}: {error}");
        }
        drop(socket);
    }
}
