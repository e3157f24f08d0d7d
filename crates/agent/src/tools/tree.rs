//! What is below a directory, for the tools that look through many files. What the repository names
//! to be ignored is left out, if that is wanted.
//! Must not follow a link, and must not read a list of what is ignored that has no end.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use ignore::{DirEntry, WalkBuilder};

use super::{Place, Wrong};

/// Files that name what is ignored below them.
const LISTS: [&str; 2] = [".gitignore", ".ignore"];
/// Of one of them.
const LIST_BYTES_MAX: u64 = 1 << 20;

/// What a walk did not go into.
#[derive(Clone, Debug, Default)]
pub(super) struct LeftOut {
    /// Directories whose lists cannot be read.
    odd: Arc<AtomicUsize>,
}

impl LeftOut {
    /// What the model is told of it, in lines.
    pub(super) fn told(&self) -> String {
        match self.odd.load(Ordering::Relaxed) {
            0 => String::new(),
            odd => format!(
                "[{odd} directories are left out: what they name to be ignored cannot be read]\n"
            ),
        }
    }
}

/// With `all`, what is ignored, too.
pub(super) fn walk(place: &Place, dir: &Path, all: bool) -> Result<(WalkBuilder, LeftOut), Wrong> {
    let above = dir
        .ancestors()
        .take_while(|above| above.starts_with(place.root()));
    let odd = above
        .into_iter()
        .find(|above| !all && !has_good_lists(above));
    if let Some(odd) = odd {
        let odd = place.shown(odd);
        return Err(Wrong::new(format!(
            "what {odd} names to be ignored cannot be read: .gitignore or .ignore is no file, or \
             has more than {LIST_BYTES_MAX} bytes"
        )));
    }
    let left_out = LeftOut::default();
    let mut walk = WalkBuilder::new(dir);
    walk.hidden(false)
        .follow_links(false)
        .require_git(false)
        .git_global(false)
        // Its path is what a file of the repository says.
        .git_exclude(false)
        .ignore(!all)
        .git_ignore(!all)
        .parents(!all);
    let odd = Arc::clone(&left_out.odd);
    walk.filter_entry(move |entry| all || (entry.file_name() != ".git" && goes_on(entry, &odd)));
    Ok((walk, left_out))
}

fn goes_on(entry: &DirEntry, odd: &AtomicUsize) -> bool {
    if !entry.file_type().is_some_and(|kind| kind.is_dir()) || has_good_lists(entry.path()) {
        return true;
    }
    odd.fetch_add(1, Ordering::Relaxed);
    false
}

/// The walk opens them as they are, and reads them to their end.
fn has_good_lists(dir: &Path) -> bool {
    LISTS.iter().all(|name| match fs::metadata(dir.join(name)) {
        Ok(found) => found.is_dir() || (found.is_file() && found.len() <= LIST_BYTES_MAX),
        // What is not there, or cannot be looked at, is not read either.
        Err(_) => true,
    })
}
