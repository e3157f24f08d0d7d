//! What every site must hold, as functions an embedder's tests can call too.
//! Must not know which site it looks at.

use std::io;

use dispatch_core::{
    id::{RunId, TaskId},
    job::{Exit, ExitReport, Invocation, JobId, Offset, Order, Part, Stdin},
    limits::JobLimits,
    outcome::Stop,
};

use super::{JobEvent, Site, Start};

/// A site under test, and how to make it do things.
#[derive(Debug)]
pub struct Subject<'a> {
    pub site: &'a dyn Site,
    /// A job that prints `done\n` and ends with 0.
    pub ends: Invocation,
    /// A job that runs until it is stopped.
    pub stays: Invocation,
}

/// A job's id that no other test has.
#[must_use]
pub fn job(bits: u64) -> JobId {
    JobId {
        run: RunId {
            task: TaskId::from_bits(bits),
            n: 1,
        },
        part: Part::Agent,
    }
}

/// An invocation with nothing around it.
#[must_use]
pub fn invocation(argv: &[&str]) -> Invocation {
    Invocation {
        argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
        cwd: "/".into(),
        stdin: Stdin::Null,
        limits: JobLimits {
            wall_clock_ms: 60_000,
            idle_ms: 60_000,
            output_bytes: 1 << 20,
            grace_ms: 5000,
            ..JobLimits::default()
        },
        ..Invocation::default()
    }
}

/// Output and end of a job, read to the end.
///
/// # Errors
/// What the follower says, or a job that is not there.
pub async fn read_all(
    site: &dyn Site,
    job: &JobId,
    from: Offset,
) -> io::Result<(Vec<u8>, ExitReport)> {
    let mut follow = site.follow(job, from).await?;
    let mut out = Vec::new();
    loop {
        match follow.next().await? {
            JobEvent::Out(bytes) => out.extend(bytes),
            JobEvent::Err(_) | JobEvent::Alive => {}
            JobEvent::Exited(report) => return Ok((out, report)),
            JobEvent::NeverStarted => return Err(io::Error::other("it never started")),
            JobEvent::Gone => return Err(io::Error::other("its keeper is gone")),
        }
    }
}

/// The whole suite.
///
/// # Panics
/// When the site does not hold what a site must hold: this is a test.
pub async fn all(subject: &Subject<'_>) {
    ends(subject).await;
    stays(subject).await;
}

/// The part of the suite about jobs that end by themselves.
///
/// # Panics
/// As [`all`].
#[expect(
    clippy::expect_used,
    reason = "a conformance suite is a test; failing loudly is its job"
)]
pub async fn ends(subject: &Subject<'_>) {
    let site = subject.site;

    let never = job(0xc0);
    let mut follow = site
        .follow(&never, Offset::default())
        .await
        .expect("follow");
    assert_eq!(follow.next().await.expect("next"), JobEvent::NeverStarted);
    let said = site.order(&never, &Order::CloseInput).await;
    assert_eq!(said.expect_err("no job").kind(), io::ErrorKind::NotFound);

    let ends = job(0xc1);
    assert_eq!(site.start(&ends, &subject.ends).await, Start::Started);
    let (out, report) = read_all(site, &ends, Offset::default())
        .await
        .expect("read");
    assert_eq!(
        (out.as_slice(), report.exit),
        (&b"done\n"[..], Exit::Code(0))
    );
    // The same question later has the same answer, and from an offset there is only the rest.
    let rest = read_all(
        site,
        &ends,
        Offset {
            out: 2,
            ..Offset::default()
        },
    )
    .await
    .expect("read");
    assert_eq!(rest, (b"ne\n".to_vec(), report));
    // Create-once.
    assert!(matches!(
        site.start(&ends, &subject.ends).await,
        Start::Unknown(_)
    ));
}

/// The part of the suite about jobs that have to be stopped.
///
/// # Panics
/// As [`all`].
#[expect(
    clippy::expect_used,
    reason = "a conformance suite is a test; failing loudly is its job"
)]
pub async fn stays(subject: &Subject<'_>) {
    let site = subject.site;
    let stays = job(0xc2);
    assert_eq!(site.start(&stays, &subject.stays).await, Start::Started);
    assert!(matches!(
        site.start(&stays, &subject.stays).await,
        Start::Unknown(_)
    ));
    let stop = Order::Stop {
        why: Stop::ByPerson,
        grace_ms: 5000,
    };
    site.order(&stays, &stop).await.expect("stop");
    let (_, report) = read_all(site, &stays, Offset::default())
        .await
        .expect("read");
    assert_eq!(report.stopped, Some(Stop::ByPerson));
    let late = site.order(&stays, &stop).await;
    assert_eq!(
        late.expect_err("it has ended").kind(),
        io::ErrorKind::NotFound
    );
}
