//! Machines where a job directory can live: four verbs, and the reader they hand out.
//! A site starts, follows and orders jobs; it must not know agents, git or tasks (I5).
//!
//! To add one: a file with a `Site`, and `conformance::all` over it in a test.

pub mod conformance;
pub mod fake;
pub mod local;

use std::{collections::BTreeSet, fmt, future::Future, io, path::Path, pin::Pin};

use dispatch_core::{
    Millis,
    job::{ExitReport, Invocation, JobId, Offset, Order},
};

pub use crate::jobdir::Enforced;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What came of a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    Started,
    /// The site does not want it. Nothing ran and nothing will.
    Declined(String),
    /// It could not. Nothing ran and nothing will.
    NotStarted(String),
    /// It may be running. Only `follow` can tell; no other site may be tried.
    Unknown(String),
}

/// What a follower hears, in order for each stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobEvent {
    Out(Vec<u8>),
    Err(Vec<u8>),
    /// It has a body and lives; told once, before the first silence. Nothing new is said to an agent
    /// before it: all that was there has been heard by then.
    Alive,
    /// After the last byte.
    Exited(ExitReport),
    NeverStarted,
    /// Its keeper died without leaving an exit; what it left running has been ended.
    Gone,
}

/// A stream of what a job did, from an offset: first contact and re-attachment are the same call.
pub trait Follow: Send {
    /// After `Exited`, `NeverStarted` or `Gone` the same is answered again. Safe to cancel.
    fn next(&mut self) -> BoxFuture<'_, io::Result<JobEvent>>;
}

/// A machine where a job directory can live. Nothing more. Public: an embedder may register its own.
pub trait Site: Send + Sync + fmt::Debug {
    /// Writes a file that a job will find.
    fn put<'a>(&'a self, path: &'a Path, bytes: &'a [u8]) -> BoxFuture<'a, io::Result<()>>;
    /// Create-once: a job that has a body never gets a second one.
    fn start<'a>(&'a self, job: &'a JobId, what: &'a Invocation) -> BoxFuture<'a, Start>;
    fn follow<'a>(
        &'a self,
        job: &'a JobId,
        from: Offset,
    ) -> BoxFuture<'a, io::Result<Box<dyn Follow>>>;
    /// What was really put around a job that has started; a site that fences nothing says nothing.
    fn enforced<'a>(&'a self, job: &'a JobId) -> BoxFuture<'a, io::Result<Option<Enforced>>> {
        let _unfenced = job;
        Box::pin(async { Ok(None) })
    }
    /// Ids of the [`Order::Say`]s that reached its input, as its keeper wrote them down before they
    /// did; asked when it has ended. A site without such a record answers none, and what it did not
    /// confirm is said again.
    fn given<'a>(&'a self, job: &'a JobId) -> BoxFuture<'a, io::Result<BTreeSet<u64>>> {
        let _unrecorded = job;
        Box::pin(async { Ok(BTreeSet::new()) })
    }
    /// When its output last grew: the silence that its keeper measures began then. A site that cannot
    /// tell answers none.
    fn grew_at<'a>(&'a self, job: &'a JobId) -> BoxFuture<'a, io::Result<Option<Millis>>> {
        let _untold = job;
        Box::pin(async { Ok(None) })
    }
    /// An error of kind `NotFound` means that the job has ended, one of kind `BrokenPipe` that nothing
    /// can be said to it any more. Any other may pass: what was to be said is tried again, under the same
    /// id.
    fn order<'a>(&'a self, job: &'a JobId, order: &'a Order) -> BoxFuture<'a, io::Result<()>>;
}
