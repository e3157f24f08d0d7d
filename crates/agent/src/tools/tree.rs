//! What is below a directory, for the tools that look through many files. What the repository names
//! to be ignored is left out, if that is wanted.
//! Must not follow a link, must not read a list of what is ignored that has no end, and must not show
//! what a rule guards more than the directory that was asked for.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use dispatch_core::rules::{Action, Group, Subject};
use ignore::{DirEntry, WalkBuilder};

use super::{Given, Judge, Place, Wrong, place::Real};

/// Files that name what is ignored below them.
const LISTS: [&str; 2] = [".gitignore", ".ignore"];
/// Of one of them.
const LIST_BYTES_MAX: u64 = 1 << 20;

/// Which files below a directory may be looked at.
#[derive(Clone, Debug)]
pub(super) struct Sight {
    own: Judge,
    /// Whatever shows a file's content reads it.
    read: Judge,
    /// What was said of the directory: a file may be no more guarded.
    at_most: Action,
    /// No rule guards anything more.
    all: bool,
}

impl Sight {
    pub(super) fn new(given: &Given, dir: &Real) -> Self {
        let own = given.judge.clone();
        let read = own.of(Group::Read);
        let at_most = own.decide(&dir.subject());
        let all = !own.may_be_stricter(at_most) && !read.may_be_stricter(Action::Ask);
        Self {
            own,
            read,
            at_most,
            all,
        }
    }

    fn sees(&self, subject: &Subject) -> bool {
        if self.all {
            return true;
        }
        self.own.decide(subject) <= self.at_most && self.read.decide(subject) != Action::Deny
    }
}

/// What a walk did not go into.
#[derive(Clone, Debug, Default)]
pub(super) struct LeftOut {
    /// Directories whose lists cannot be read.
    odd: Arc<AtomicUsize>,
    /// Files that are not for this tool.
    guarded: Arc<AtomicUsize>,
}

impl LeftOut {
    /// What the model is told of it, in lines.
    pub(super) fn told(&self) -> Vec<String> {
        let odd = "what they name to be ignored cannot be read";
        let guarded = "rules guard them more than where they are";
        let left_out = [
            (&self.odd, "directories", odd),
            (&self.guarded, "files", guarded),
        ];
        let told = left_out.map(|(count, what, why)| {
            let count = count.load(Ordering::Relaxed);
            (count > 0).then(|| format!("[{count} {what} are left out: {why}]"))
        });
        told.into_iter().flatten().collect()
    }
}

/// With `all`, what is ignored, too.
pub(super) fn walk(
    place: &Arc<Place>,
    dir: &Real,
    sight: Sight,
    all: bool,
) -> Result<(WalkBuilder, LeftOut), Wrong> {
    check(place, dir, &sight, all)?;
    let left_out = LeftOut::default();
    let mut walk = WalkBuilder::new(dir.path());
    walk.hidden(false)
        .follow_links(false)
        .require_git(false)
        .git_global(false)
        // Its path is what a file of the repository says.
        .git_exclude(false)
        .ignore(!all)
        .git_ignore(!all)
        .parents(!all);
    let filter = Filter {
        place: Arc::clone(place),
        sight,
        all,
        left_out: left_out.clone(),
    };
    walk.filter_entry(move |entry| filter.takes(entry));
    Ok((walk, left_out))
}

/// Where a walk begins, the walk asks nobody.
fn check(place: &Place, dir: &Real, sight: &Sight, all: bool) -> Result<(), Wrong> {
    let shown = dir.shown();
    if !dir.path().is_dir() && !sight.sees(&dir.subject()) {
        return Err(Wrong::new(format!("a rule for read denies {shown}")));
    }
    let mut above = dir.path().ancestors();
    let inside = |above: &&Path| !all && above.starts_with(place.checkout());
    match above.find(|above| inside(above) && !has_good_lists(above)) {
        None => Ok(()),
        Some(odd) => Err(Wrong::new(format!(
            "what {} names to be ignored cannot be read: .gitignore or .ignore is no file, or has \
             more than {LIST_BYTES_MAX} bytes",
            place.shown(odd)
        ))),
    }
}

struct Filter {
    place: Arc<Place>,
    sight: Sight,
    all: bool,
    left_out: LeftOut,
}

impl Filter {
    fn takes(&self, entry: &DirEntry) -> bool {
        if !self.all && entry.file_name() == ".git" {
            return false;
        }
        let (good, left_out) = if entry.file_type().is_some_and(|kind| kind.is_dir()) {
            // What is in it is decided about one by one.
            let good = self.all || has_good_lists(entry.path());
            (good, &self.left_out.odd)
        } else {
            let good = self.sight.sees(&self.place.subject(entry.path()));
            (good, &self.left_out.guarded)
        };
        if !good {
            left_out.fetch_add(1, Ordering::Relaxed);
        }
        good
    }
}

/// The walk opens them as they are, and reads them to their end.
fn has_good_lists(dir: &Path) -> bool {
    LISTS.iter().all(|name| match fs::metadata(dir.join(name)) {
        Ok(found) => found.is_dir() || (found.is_file() && found.len() <= LIST_BYTES_MAX),
        // What is not there, or cannot be looked at, is not read either.
        Err(_) => true,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use crate::tools::testing::{Bench, rules};

    fn bench(guarded: &[(&str, &str, &str)]) -> Bench {
        let mut bench = Bench::new();
        for name in ["src/a.rs", "secrets/key.rs", "secrets/deep/b.rs"] {
            bench.write(name, "word\n");
        }
        bench.rules = Arc::new(rules(guarded));
        bench
    }

    #[tokio::test]
    async fn what_is_guarded_more_than_its_directory_is_left_out() {
        let left_out = "[2 files are left out: rules guard them more than where they are]";
        for (guarded, searches, lists) in [
            (&[("search_code", "secrets/*", "deny")][..], false, true),
            (&[("search_code", "secrets/*", "ask")], false, true),
            (&[("read", "secrets/*", "deny")], false, false),
            (&[("read", "secrets/*", "ask")], true, false),
            // Whoever was asked about all of it has said yes to all of it.
            (&[("search_code", "*", "ask")], true, true),
            (&[], true, true),
        ] {
            let bench = bench(guarded);
            for (tool, input, sees) in [
                ("search_code", json!({"query": "word"}), searches),
                (
                    "search_code",
                    json!({"query": "word", "path": "secrets/.."}),
                    searches,
                ),
                ("list_files", json!({"glob": "*.rs"}), lists),
            ] {
                let told = bench.told(tool, input).await;
                assert!(told.contains("src/a.rs"), "{told}");
                assert_eq!(told.contains("secrets"), sees, "{guarded:?} {tool}: {told}");
                assert_eq!(told.contains(left_out), !sees, "{guarded:?} {tool}: {told}");
            }
        }
    }

    #[tokio::test]
    async fn a_list_above_the_directory_of_work_is_looked_at_before_it_is_read() {
        let bench = Bench::below("lib");
        bench.write("a.rs", "word\n");
        // Nobody ever writes to it: a walk that opens it waits.
        bench.pipe("../.gitignore");
        for (tool, input) in [
            ("search_code", json!({"query": "word"})),
            ("list_files", json!({"glob": "*.rs"})),
        ] {
            let wrong = bench.wrong(tool, input).await;
            assert!(wrong.contains("to be ignored cannot be read"), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_rule_for_the_checkout_guards_in_a_directory_of_it() {
        for (pattern, sees) in [("lib/secrets/*", false), ("secrets/*", true)] {
            let mut bench = Bench::below("lib");
            bench.write("src/a.rs", "word\n");
            bench.write("secrets/key.rs", "word\n");
            bench.rules = Arc::new(rules(&[("read", pattern, "deny")]));
            for (tool, input) in [
                ("search_code", json!({"query": "word"})),
                ("list_files", json!({"glob": "*.rs"})),
            ] {
                let told = bench.told(tool, input).await;
                // What it is shown it can ask for again.
                assert!(
                    told.contains("src/a.rs") && !told.contains("lib/"),
                    "{told}"
                );
                assert_eq!(told.contains("secrets/key.rs"), sees, "{tool}: {told}");
            }
            let one = json!({"query": "word", "path": "secrets/key.rs"});
            assert_eq!(bench.run("search_code", one).await.is_ok(), sees);
        }
    }

    #[tokio::test]
    async fn a_file_that_may_not_be_read_is_not_searched_by_its_name_either() {
        let bench = bench(&[("read", "secrets/*", "deny")]);
        let input = json!({"query": "word", "path": "secrets/key.rs"});
        let wrong = bench.wrong("search_code", input).await;
        assert_eq!(wrong, "error: a rule for read denies secrets/key.rs");
        let one = bench.told("search_code", json!({"query": "word", "path": "src/a.rs"}));
        assert!(one.await.contains("src/a.rs"));
    }
}
