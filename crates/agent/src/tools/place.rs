//! Where tools work: the workspace, what the model knows of its files, and the ways in and out.
//! Must not be taken for a fence: paths are checked so that a model does not stray, and the cage is
//! what holds whoever wants to.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use dispatch_core::{
    native::{Live, Todo},
    rules::Subject,
};
use tokio::sync::{mpsc, watch};

use super::{Outside, Spill, Wrong, jobs::Jobs, kin::Way, known::Known};

/// What a tool says while it works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    Plan(Vec<Todo>),
    /// Lossy, for the eye.
    Live(Live),
}

/// A path with its links followed: what a rule is asked about is what is opened.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Real {
    path: PathBuf,
    /// As the model writes it.
    shown: String,
    /// As rules name it.
    ruled: String,
}

impl Real {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    pub(super) fn subject(&self) -> Subject {
        Subject::Path(self.ruled.clone())
    }

    /// Before something is written there: a link that came in between leads elsewhere.
    pub(super) fn check(&self) -> io::Result<()> {
        if real(&self.path)? == self.path {
            return Ok(());
        }
        Err(io::Error::other("a part of the path is a link now"))
    }
}

/// Where the agent works, and the whole checkout that this is in: the rules were made for the checkout,
/// and a directory in it must not be a way out from under them.
#[derive(Debug)]
pub(crate) struct Roots {
    own: PathBuf,
    checkout: PathBuf,
}

impl Roots {
    /// Without a checkout it works in all of it.
    pub(crate) fn new(own: &Path, checkout: Option<&Path>) -> io::Result<Self> {
        let own = own.canonicalize()?;
        let checkout = match checkout {
            Some(checkout) => checkout.canonicalize()?,
            None => own.clone(),
        };
        if !own.starts_with(&checkout) {
            let checkout = checkout.display();
            // Rules would name none of its files.
            return Err(io::Error::other(format!("it is not in {checkout}")));
        }
        Ok(Self { own, checkout })
    }
}

#[derive(Debug)]
pub(crate) struct Place {
    roots: Roots,
    pub(super) spill: Spill,
    pub(super) jobs: Jobs,
    pub(super) outside: Outside,
    /// Variables that commands are not given: the keys of models.
    pub(super) hidden: BTreeSet<String>,
    /// How many messages wait: what can be left to itself makes room for them.
    messages: watch::Receiver<usize>,
    signs: mpsc::Sender<Sign>,
    known: Mutex<Known>,
    /// To our own door, if there is one.
    way: OnceLock<Way>,
}

impl Place {
    pub(crate) fn new(
        roots: Roots,
        spill: Spill,
        outside: Outside,
        hidden: BTreeSet<String>,
        messages: watch::Receiver<usize>,
        signs: mpsc::Sender<Sign>,
    ) -> Self {
        Self {
            roots,
            spill,
            jobs: Jobs::default(),
            outside,
            hidden,
            messages,
            signs,
            known: Mutex::default(),
            way: OnceLock::new(),
        }
    }

    /// Where it works.
    pub(crate) fn root(&self) -> &Path {
        &self.roots.own
    }

    /// All that it is a part of, whose files say what is ignored.
    pub(super) fn checkout(&self) -> &Path {
        &self.roots.checkout
    }

    /// What the model is told of a result.
    pub(crate) async fn fit(self: &Arc<Self>, tool: &str, text: String) -> String {
        let (place, tool) = (Arc::clone(self), tool.to_owned());
        match tokio::task::spawn_blocking(move || place.spill.fit(&tool, text)).await {
            Ok(text) => text,
            Err(error) => format!("error: this is a bug: the result is lost: {error}"),
        }
    }

    /// All that commands left running ends.
    pub(crate) async fn end(&self) {
        self.jobs.end_all().await;
        if let Some(way) = self.way.get() {
            way.end().await;
        }
    }

    /// It stays as it is from here on.
    pub(crate) fn at_door(&self, way: Way) {
        match self.way.set(way) {
            Ok(()) | Err(_) => {}
        }
    }

    pub(super) fn way(&self) -> Result<&Way, Wrong> {
        let way = self.way.get();
        way.ok_or_else(|| Wrong::new("reach Dispatch: this task has no grant"))
    }

    /// Whether something waits to be told to the model.
    pub(super) fn is_spoken_to(&self) -> bool {
        *self.messages.borrow() > 0
    }

    /// Somebody has said something that waits to be told to the model.
    pub(super) async fn spoken_to(&self) {
        let mut messages = self.messages.clone();
        if messages.wait_for(|count| *count > 0).await.is_err() {
            // Nobody can speak any more.
            std::future::pending::<()>().await;
        }
    }

    /// Somebody's word has waited for so long.
    pub(super) async fn spoken_to_for(&self, limit: Duration) {
        self.spoken_to().await;
        tokio::time::sleep(limit).await;
    }

    pub(super) async fn say(&self, sign: Sign) {
        match self.signs.send(sign).await {
            // Nobody listens any more: the turn is over.
            Ok(()) | Err(_) => {}
        }
    }

    /// Only if somebody is there to look.
    pub(super) fn show(&self, live: Live) {
        match self.signs.try_send(Sign::Live(live)) {
            Ok(()) | Err(_) => {}
        }
    }

    /// A path of the workspace; what is missing must be below something there.
    pub(super) fn inside(&self, path: &str) -> Result<Real, Wrong> {
        let real = self.find(path)?;
        self.ours(real, path)
    }

    /// The same, or one of the files that hold what was too long.
    pub(super) fn readable(&self, path: &str) -> Result<Real, Wrong> {
        let real = self.find(path)?;
        if self.spill.holds(&real.path) {
            return Ok(real);
        }
        self.ours(real, path)
    }

    fn find(&self, path: &str) -> Result<Real, Wrong> {
        let path = real(&self.root().join(path)).map_err(|error| failed("find", path, &error))?;
        Ok(Real {
            shown: self.shown(&path),
            ruled: self.ruled(&path),
            path,
        })
    }

    fn ours(&self, real: Real, path: &str) -> Result<Real, Wrong> {
        if real.path.starts_with(self.root()) {
            return Ok(real);
        }
        Err(Wrong::new(format!(
            "{path} is outside the workspace {}",
            self.root().display()
        )))
    }

    /// As the model writes it, for headers and messages.
    pub(super) fn shown(&self, path: &Path) -> String {
        below(self.root(), path)
    }

    /// What rules are asked about.
    pub(super) fn subject(&self, path: &Path) -> Subject {
        Subject::Path(self.ruled(path))
    }

    fn ruled(&self, path: &Path) -> String {
        below(&self.roots.checkout, path)
    }

    /// What the model knows of files.
    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is outside stays as it is.
fn below(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    match below.display().to_string() {
        empty if empty.is_empty() => ".".into(),
        below => below,
    }
}

/// The path with all links followed, as far as it is there. Behind what is not there nothing goes up
/// again: where that leads is for the kernel to say, and it can say it only of what is there.
fn real(path: &Path) -> io::Result<PathBuf> {
    let mut missing = Vec::new();
    let mut there = path;
    loop {
        match there.canonicalize() {
            Ok(mut real) => {
                real.extend(missing.iter().rev());
                return Ok(real);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A link that leads nowhere would be written through to where it leads.
                if fs::symlink_metadata(there).is_ok_and(|found| found.is_symlink()) {
                    return Err(io::Error::other("it is a link that leads nowhere"));
                }
                let (Some(above), Some(last)) = (there.parent(), there.components().next_back())
                else {
                    return Err(error);
                };
                match last {
                    Component::Normal(name) => missing.push(name),
                    Component::CurDir => {}
                    Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                        return Err(error);
                    }
                }
                there = above;
            }
            Err(error) => return Err(error),
        }
    }
}

pub(super) fn failed(doing: &str, path: &str, error: &io::Error) -> Wrong {
    let why = match error.kind() {
        io::ErrorKind::NotFound => "it is not there".to_owned(),
        io::ErrorKind::PermissionDenied => "this is not permitted".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        io::ErrorKind::NotADirectory => "a part of the path is a file".to_owned(),
        _ => error.to_string(),
    };
    Wrong::new(format!("{doing} {path}: {why}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::tools::testing::Bench;

    #[test]
    fn paths_stay_in_the_workspace_whatever_leads_out() {
        let bench = Bench::new();
        bench.write("src/a.rs", "x");
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), bench.path("out")).unwrap();
        symlink("/no/such/place", bench.path("nowhere")).unwrap();
        symlink("src", bench.path("in")).unwrap();
        let place = &bench.place;
        for good in [
            "src/a.rs",
            "./src/../src/a.rs",
            "in/a.rs",
            "new/deep/file",
            ".",
        ] {
            let found = place.inside(good).unwrap();
            assert!(found.path().starts_with(place.root()), "{good}");
        }
        assert_eq!(place.inside("in/a.rs").unwrap().shown(), "src/a.rs");
        let absolute = bench.path("src/a.rs");
        assert!(place.inside(&absolute.display().to_string()).is_ok());
        for bad in [
            "..",
            "../x",
            "/etc/passwd",
            "out/x",
            "new/../../x",
            "nope/../out",
            "nope/../out/x",
            "nowhere",
            "nowhere/x",
        ] {
            let error = place.inside(bad).unwrap_err().to_string();
            assert!(error.contains(bad), "{bad}: {error}");
        }
        assert!(place.inside("src/a.rs/x").is_err());
    }

    #[test]
    fn a_rule_is_asked_about_where_a_path_leads() {
        let bench = Bench::new();
        bench.write("src/a.rs", "x");
        symlink("src", bench.path("in")).unwrap();
        for (path, shown) in [
            ("in/a.rs", "src/a.rs"),
            ("./src/../.git/config", ".git/config"),
            ("", "."),
        ] {
            let real = bench.place.inside(path).unwrap();
            assert_eq!(real.subject(), Subject::Path(shown.into()), "{path}");
        }
    }

    #[test]
    fn in_a_directory_of_the_checkout_a_rule_is_asked_about_the_whole_path() {
        let bench = Bench::below("secrets/deep");
        bench.write("prod.key", "x");
        let place = &bench.place;
        let absolute = bench.path("prod.key").display().to_string();
        for (path, shown, ruled) in [
            ("prod.key", "prod.key", "secrets/deep/prod.key"),
            (&absolute, "prod.key", "secrets/deep/prod.key"),
            ("new/file", "new/file", "secrets/deep/new/file"),
            (".", ".", "secrets/deep"),
        ] {
            let real = place.inside(path).unwrap();
            assert_eq!(real.shown(), shown);
            assert_eq!(real.subject(), Subject::Path(ruled.into()), "{path}");
        }
        // All that it works with is there.
        assert!(place.inside("../x").is_err());
        // What is in no checkout has no other name.
        let far = place.subject(Path::new("/etc/passwd"));
        assert_eq!(far, Subject::Path("/etc/passwd".into()));
    }

    #[test]
    fn a_directory_outside_of_its_checkout_is_refused() {
        let (own, checkout) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let error = Roots::new(own.path(), Some(checkout.path())).unwrap_err();
        assert!(error.to_string().contains("it is not in "), "{error}");
    }

    #[test]
    fn a_link_that_comes_later_is_not_followed() {
        let bench = Bench::new();
        bench.write("src/a.rs", "x");
        bench.write("other/a.rs", "x");
        let real = bench.place.inside("src/a.rs").unwrap();
        assert!(real.check().is_ok());
        std::fs::rename(bench.path("src"), bench.path("moved")).unwrap();
        symlink("other", bench.path("src")).unwrap();
        assert!(real.check().is_err());
    }
}
