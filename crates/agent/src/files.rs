//! Files that were handed over with a prompt: looked at once, to decide which of them a model is shown
//! as they are. What is decided goes into the record; the bytes never do.
//! Must not trust a name: a file is what its first bytes say.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use dispatch_core::{
    attach::{self, MAGIC_BYTES, Media},
    native::Handed,
};

#[derive(Debug, Default)]
pub(crate) struct Sorted {
    pub(crate) files: Vec<Handed>,
    /// Those that no model is shown, each with the reason.
    pub(crate) unshown: Vec<String>,
}

/// Looks, on a thread that may wait for a disk.
pub(crate) async fn sort(files: Vec<Handed>) -> Sorted {
    if files.is_empty() {
        return Sorted::default();
    }
    let sorted = tokio::task::spawn_blocking(move || sorted(files)).await;
    sorted.unwrap_or_else(|error| Sorted {
        files: Vec::new(),
        unshown: vec![format!("all of them (this is a bug: {error})")],
    })
}

fn sorted(mut files: Vec<Handed>) -> Sorted {
    let looked: Vec<io::Result<Option<Media>>> =
        files.iter().map(|file| look(&file.path)).collect();
    let sizes: Vec<(u64, Option<Media>)> = files
        .iter()
        .zip(&looked)
        .map(|(file, media)| (file.bytes, media.as_ref().ok().copied().flatten()))
        .collect();
    let verdicts = attach::shown(&sizes);
    let mut unshown = Vec::new();
    for ((file, looked), verdict) in files.iter_mut().zip(looked).zip(verdicts) {
        let why = match (looked, verdict) {
            (Err(error), _) => error.to_string(),
            (Ok(_), Err(why)) => why.to_string(),
            (Ok(_), Ok(media)) => {
                file.shown = Some(media);
                continue;
            }
        };
        unshown.push(format!("{} ({why})", file.path.display()));
    }
    Sorted { files, unshown }
}

fn look(path: &Path) -> io::Result<Option<Media>> {
    let mut first = Vec::with_capacity(MAGIC_BYTES);
    let file = File::open(path)?;
    file.take(MAGIC_BYTES as u64).read_to_end(&mut first)?;
    Ok(Media::of(&first))
}
