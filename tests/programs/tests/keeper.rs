//! The keeper against a real program that does every nasty thing, through the local site.
//! Must not sleep: each test waits for an event or a file.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; a failure is a failed test"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use dispatch_core::{
    job::{Around, Exit, ExitReport, Inside, Invocation, JobId, Offset, Order, Output, Stdin},
    outcome::Stop,
};
use dispatch_engine::{
    jobdir::{JobDir, Probe},
    sites::{
        JobEvent, Site, Start, conformance,
        local::{Keeper, Local},
    },
};

const AGENT: &str = env!("CARGO_BIN_EXE_fake-agent");

/// Processes are found by their job's mark, so tests that run beside each other must not share it.
fn fresh() -> JobId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    conformance::job((u64::from(std::process::id()) << 32) | NEXT.fetch_add(1, Ordering::Relaxed))
}

struct World {
    home: tempfile::TempDir,
    site: Local,
    job: JobId,
}

impl World {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let site = Local::new(home.path().to_owned(), Keeper::program(AGENT.into()));
        Self {
            home,
            site,
            job: fresh(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn dir(&self) -> JobDir {
        JobDir::of(self.home.path(), &self.job)
    }

    fn agent(&self, orders: &[&str]) -> Invocation {
        let prompt = orders
            .iter()
            .map(|order| format!("@{order}\n"))
            .collect::<String>();
        Invocation {
            cwd: self.home.path().to_owned(),
            stdin: Stdin::Bytes(prompt.into_bytes()),
            env: BTreeMap::from([("PATH".into(), "/usr/bin:/bin".into())]),
            ..conformance::invocation(&[AGENT])
        }
    }

    async fn run(&self, what: &Invocation) -> (Vec<u8>, ExitReport) {
        assert_eq!(self.site.start(&self.job, what).await, Start::Started);
        self.end().await
    }

    async fn end(&self) -> (Vec<u8>, ExitReport) {
        let read = conformance::read_all(&self.site, &self.job, Offset::default());
        tokio::time::timeout(Duration::from_secs(60), read)
            .await
            .unwrap()
            .unwrap()
    }

    async fn until(&self, name: &str) -> String {
        let path = self.path(name);
        loop {
            match fs::read_to_string(&path) {
                Ok(text) if !text.is_empty() => return text,
                _ => tokio::task::yield_now().await,
            }
        }
    }

    /// Everything that still carries this job's mark.
    fn alive(&self) -> Vec<String> {
        let mark = format!("DISPATCH_JOB={}", self.job);
        let carries = |pid: &String| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ
                .split(|b| *b == 0)
                .any(|entry| entry == mark.as_bytes())
        };
        let listed = fs::read_dir("/proc").unwrap();
        listed
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .filter(carries)
            .collect()
    }
}

async fn next(follow: &mut Box<dyn dispatch_engine::sites::Follow>) -> JobEvent {
    loop {
        match follow.next().await.unwrap() {
            JobEvent::Alive => {}
            other => return other,
        }
    }
}

fn exists(pid: &str) -> bool {
    // A zombie is dead: it only waits for init.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn the_local_site_conforms() {
    let world = World::new();
    let subject = conformance::Subject {
        site: &world.site,
        ends: world.agent(&["say done"]),
        stays: world.agent(&["hang"]),
    };
    conformance::all(&subject).await;
}

#[tokio::test]
async fn the_fake_site_conforms() {
    use dispatch_engine::sites::fake::{Fake, Plan};
    let ends = conformance::invocation(&["x"]);
    let site = Fake::new(Plan::default());
    // The fake decides by its plan, so the two kinds of job are two plans over one world.
    let subject = conformance::Subject {
        site: &site,
        ends: ends.clone(),
        stays: ends,
    };
    conformance::ends(&subject).await;
    let site = Fake::new(Plan {
        exit: None,
        ..Plan::default()
    });
    conformance::stays(&conformance::Subject {
        site: &site,
        ..subject
    })
    .await;
}

#[tokio::test]
async fn output_and_exit_pass_through_unchanged() {
    let world = World::new();
    let (out, report) = world
        .run(&world.agent(&["say hello", "garbage", "err oops", "exit 3"]))
        .await;
    assert_eq!(out, b"hello\n\xff\xfex\0\xc3\n");
    assert_eq!(
        (report.exit, report.stopped, report.out_bytes),
        (Exit::Code(3), None, 12)
    );
    assert_eq!(fs::read(world.dir().file("err")).unwrap(), b"oops\n");
    assert_eq!(world.alive(), [""; 0]);
}

#[tokio::test]
async fn a_signal_is_told_as_one() {
    let world = World::new();
    let (_, report) = world.run(&world.agent(&["suicide"])).await;
    assert_eq!(report.exit, Exit::Signal(9));
}

#[tokio::test]
async fn a_program_that_is_not_there_promises_that_nothing_ran() {
    let world = World::new();
    let what = conformance::invocation(&["/nowhere/agent"]);
    let Start::NotStarted(reason) = world.site.start(&world.job, &what).await else {
        panic!()
    };
    assert!(reason.contains("/nowhere/agent"), "{reason}");
    assert_eq!(world.dir().probe().unwrap(), Probe::NeverStarted);
    // And so it may be started after all.
    let (out, _) = world.run(&world.agent(&["say now"])).await;
    assert_eq!(out, b"now\n");
}

#[tokio::test]
async fn a_cut_invocation_means_no_start() {
    use std::{io::Write, process::Command};
    let world = World::new();
    let dir = world.dir();
    dir.create().unwrap();
    let lock = dir.lock().unwrap().unwrap();
    let mut keeper = Command::new(AGENT)
        .arg("job")
        .arg(dir.path())
        .stdin(std::process::Stdio::piped())
        .stdout(lock)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let bytes = dispatch_engine::keeper::invocation_bytes(&world.agent(&["write ran x"])).unwrap();
    keeper
        .stdin
        .take()
        .unwrap()
        .write_all(&bytes[..bytes.len() - 1])
        .unwrap();
    let output = keeper.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("cut short"));
    assert_eq!(dir.probe().unwrap(), Probe::NeverStarted);
    assert!(!world.path("ran").exists());
}

#[tokio::test]
async fn one_that_ignores_the_request_is_killed_after_the_grace() {
    let world = World::new();
    let what = world.agent(&["ignore-term", "write ready x", "hang"]);
    assert_eq!(world.site.start(&world.job, &what).await, Start::Started);
    world.until("ready").await;
    let stop = Order::Stop {
        why: Stop::ByPerson,
        grace_ms: 50,
    };
    world.site.order(&world.job, &stop).await.unwrap();
    let (_, report) = world.end().await;
    assert_eq!(
        (report.exit, report.stopped),
        (Exit::Signal(9), Some(Stop::ByPerson))
    );
}

#[tokio::test]
async fn grandchildren_end_with_the_job_in_whatever_session_they_are() {
    for session in ["setsid", "same"] {
        let world = World::new();
        let order = format!("grandchild {} {session}", world.path("pid").display());
        let (out, report) = world.run(&world.agent(&[&order, "say bye"])).await;
        assert_eq!(
            (out.as_slice(), report.exit),
            (&b"bye\n"[..], Exit::Code(0))
        );
        assert_eq!(report.leftovers, 1, "{session}");
        let pid = fs::read_to_string(world.path("pid")).unwrap();
        assert!(!exists(&pid), "{session}: {pid} is alive");
        assert_eq!(world.alive(), [""; 0]);
    }
}

#[tokio::test]
async fn a_stop_reaches_the_last_grandchild() {
    let world = World::new();
    let order = format!("grandchild {} setsid", world.path("pid").display());
    let what = world.agent(&[&order, "write ready x", "hang"]);
    assert_eq!(world.site.start(&world.job, &what).await, Start::Started);
    world.until("ready").await;
    world
        .site
        .order(
            &world.job,
            &Order::Kill {
                why: Stop::Shutdown,
            },
        )
        .await
        .unwrap();
    let (_, report) = world.end().await;
    assert_eq!(report.stopped, Some(Stop::Shutdown));
    assert_eq!(world.alive(), [""; 0]);
}

#[tokio::test]
async fn a_dead_keepers_job_is_gone_and_swept() {
    let world = World::new();
    let order = format!("grandchild {} setsid", world.path("pid").display());
    let what = world.agent(&["say before", &order, "write ready x", "hang"]);
    assert_eq!(world.site.start(&world.job, &what).await, Start::Started);
    world.until("ready").await;
    let group = loop {
        if let Some(group) = world.dir().group().unwrap() {
            break group;
        }
    };
    let mut follow = world
        .site
        .follow(&world.job, Offset::default())
        .await
        .unwrap();
    // What is still in the pipe dies with the keeper.
    assert_eq!(next(&mut follow).await, JobEvent::Out(b"before\n".to_vec()));
    let keeper = rustix::process::Pid::from_raw(group.keeper).unwrap();
    rustix::process::kill_process(keeper, rustix::process::Signal::KILL).unwrap();
    let end = loop {
        match next(&mut follow).await {
            JobEvent::Alive => {}
            end => break end,
        }
    };
    assert_eq!(end, JobEvent::Gone);
    while !world.alive().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn limits_hold_without_an_engine() {
    let world = World::new();
    let mut what = world.agent(&["say a", "hang"]);
    what.limits.idle_ms = 30;
    assert_eq!(
        world.run(&what).await.1.stopped,
        Some(Stop::Idle { limit_ms: 30 })
    );

    let world = World::new();
    let mut what = world.agent(&["hang"]);
    what.limits.wall_clock_ms = 30;
    assert_eq!(
        world.run(&what).await.1.stopped,
        Some(Stop::WallClock { limit_ms: 30 })
    );
}

#[tokio::test]
async fn a_flood_is_capped_and_says_so() {
    let world = World::new();
    let mut what = world.agent(&["flood 1073741824"]);
    what.limits.output_bytes = 1_000_000;
    assert_eq!(world.site.start(&world.job, &what).await, Start::Started);
    let (out, report) = world.end().await;
    assert_eq!(
        report.stopped,
        Some(Stop::OutputBytes {
            limit_bytes: 1_000_000
        })
    );
    assert_eq!((out.len(), report.out_bytes), (1_000_000, 1_000_000));
}

#[tokio::test]
async fn what_it_wrote_cannot_be_taken_back() {
    let world = World::new();
    let (out, _) = world
        .run(&world.agent(&["say first", "truncate-output", "say last"]))
        .await;
    let text = String::from_utf8(out).unwrap();
    assert!(
        text.starts_with("first\n") && text.ends_with("last\n"),
        "{text}"
    );
}

#[tokio::test]
async fn it_gets_three_descriptors_and_its_own_environment() {
    let world = World::new();
    // One that does not close on exec, as a careless parent leaves them behind.
    let careless = rustix::io::dup(std::io::stdin()).unwrap();
    let (out, _) = world
        .run(&world.agent(&["descriptors", "environment"]))
        .await;
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "descriptors: 0 1 2\nenvironment: DISPATCH_JOB PATH\n"
    );
    drop(careless);
}

#[tokio::test]
async fn a_closed_output_is_not_an_end() {
    let world = World::new();
    let what = world.agent(&["say a", "close-output", "await go", "exit 4"]);
    assert_eq!(world.site.start(&world.job, &what).await, Start::Started);
    let mut follow = world
        .site
        .follow(&world.job, Offset::default())
        .await
        .unwrap();
    assert_eq!(next(&mut follow).await, JobEvent::Out(b"a\n".to_vec()));
    assert_eq!(world.dir().probe().unwrap(), Probe::Alive);
    fs::write(world.path("go"), "").unwrap();
    assert_eq!(world.end().await.1.exit, Exit::Code(4));
}

#[tokio::test]
async fn secrets_are_masked_in_the_output() {
    let world = World::new();
    let mut what = world.agent(&["env KEY", "say done"]);
    what.env.insert("KEY".into(), "sk-very-secret".into());
    what.secrets = vec!["KEY".into()];
    assert_eq!(world.run(&what).await.0, b"KEY=***\ndone\n");
}

/// A bundle that holds a token must arrive as it is.
#[tokio::test]
async fn bytes_are_not_masked() {
    let world = World::new();
    let mut what = world.agent(&["env KEY"]);
    what.env.insert("KEY".into(), "sk-very-secret".into());
    what.secrets = vec!["KEY".into()];
    what.output = Output::Bytes;
    assert_eq!(world.run(&what).await.0, b"KEY=sk-very-secret\n");
}

/// A job may print what another one was given.
#[tokio::test]
async fn values_of_others_and_tokens_are_masked() {
    let world = World::new();
    let token = format!("ghp_{}", "a1".repeat(18));
    let mut what = world.agent(&["say one sesame-4b1e7c", &format!("say two {token}")]);
    what.masked = vec!["sesame-4b1e7c".into()];
    assert_eq!(world.run(&what).await.0, b"one ***\ntwo ***\n");
}

#[tokio::test]
async fn what_is_said_twice_is_heard_once() {
    let world = World::new();
    let what = Invocation {
        stdin: Stdin::Open,
        ..world.agent(&[])
    };
    assert_eq!(world.site.start(&world.job, &what).await, Start::Started);
    let say = |id, text: &str| Order::Say {
        id,
        bytes: text.as_bytes().to_vec(),
    };
    for order in [
        say(0, "@say one\n"),
        say(1, "@say two\n"),
        say(0, "@say one\n"),
        Order::CloseInput,
    ] {
        world.site.order(&world.job, &order).await.unwrap();
    }
    assert_eq!(world.end().await.0, b"one\ntwo\n");
    let input = fs::read_to_string(world.dir().file("in")).unwrap();
    assert_eq!(input, "say 0 9\n@say one\n\nsay 1 9\n@say two\n\nclose\n");
    assert_eq!(world.dir().given().unwrap(), BTreeSet::from([0, 1]));
    // A keeper that died in the middle of its last frame did not give it.
    for cut in 1..input.len() {
        fs::write(world.dir().file("in"), &input[..cut]).unwrap();
        let frame = "say 0 9\n@say one\n\n".len();
        let whole = (cut / frame).min(2) as u64;
        assert_eq!(world.dir().given().unwrap(), (0..whole).collect(), "{cut}");
    }
}

/// Who is turned away can try again; who comes too late cannot.
#[tokio::test]
async fn an_order_that_is_refused_says_whether_it_may_be_tried_again() {
    let world = World::new();
    let what = Invocation {
        stdin: Stdin::Open,
        ..world.agent(&[])
    };
    assert_eq!(world.site.start(&world.job, &what).await, Start::Started);
    let say = Order::Say {
        id: 0,
        bytes: b"@say one\n".to_vec(),
    };
    let socket = world.dir().file("ctl");
    let crowd: Vec<UnixStream> = (0..64)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    let refused = world.site.order(&world.job, &say).await.unwrap_err();
    assert!(refused.to_string().contains("too many"), "{refused:?}");
    drop(crowd);
    while let Err(still) = world.site.order(&world.job, &say).await {
        assert!(still.to_string().contains("too many"), "{still:?}");
    }
    world
        .site
        .order(&world.job, &Order::CloseInput)
        .await
        .unwrap();
    let more = Order::Say {
        id: 1,
        bytes: b"@say two\n".to_vec(),
    };
    // It may have read the end and be gone by now.
    let late = world
        .site
        .order(&world.job, &more)
        .await
        .unwrap_err()
        .kind();
    assert!(matches!(
        late,
        io::ErrorKind::BrokenPipe | io::ErrorKind::NotFound
    ));
    assert_eq!(world.end().await.0, b"one\n");
}

#[tokio::test]
async fn names_of_our_files_in_its_own_directory_mean_nothing() {
    let world = World::new();
    let orders = [
        "write exit x",
        "write lock x",
        "write ctl x",
        "write started x",
        "exit 5",
    ];
    assert_eq!(world.run(&world.agent(&orders)).await.1.exit, Exit::Code(5));
}

#[tokio::test]
async fn a_long_way_to_the_job_directory_is_no_problem() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("d".repeat(120)).join("e".repeat(60));
    let site = Local::new(data, Keeper::program(AGENT.into()));
    let world = World {
        home,
        site,
        job: fresh(),
    };
    let what = world.agent(&["await go", "say x"]);
    assert_eq!(world.site.start(&world.job, &what).await, Start::Started);
    let mut follow = world
        .site
        .follow(&world.job, Offset::default())
        .await
        .unwrap();
    fs::write(world.path("go"), "").unwrap();
    assert_eq!(next(&mut follow).await, JobEvent::Out(b"x\n".to_vec()));
}

#[tokio::test]
async fn many_at_once() {
    let world = World::new();
    let jobs: Vec<JobId> = (0..40).map(|n| conformance::job(0x100 + n)).collect();
    for job in &jobs {
        assert_eq!(
            world.site.start(job, &world.agent(&["say done"])).await,
            Start::Started
        );
    }
    for job in &jobs {
        let (out, _) = conformance::read_all(&world.site, job, Offset::default())
            .await
            .unwrap();
        assert_eq!(out, b"done\n");
    }
    assert!(Path::new(AGENT).exists());
}

#[tokio::test]
async fn a_full_disk_makes_the_job_wait_and_is_told() {
    let world = World::new();
    let dir = world.dir();
    dir.create().unwrap();
    // Every write to it is refused, as on a disk without room.
    std::os::unix::fs::symlink("/dev/full", dir.file("out")).unwrap();
    let what = world.agent(&["write ready x", "say lost", "hang"]);
    assert_eq!(world.site.start(&world.job, &what).await, Start::Started);
    world.until("ready").await;
    assert_eq!(dir.probe().unwrap(), Probe::Alive);
    let kill = Order::Kill {
        why: Stop::ByPerson,
    };
    world.site.order(&world.job, &kill).await.unwrap();
    let report = loop {
        if let Some(report) = dir.exit().unwrap() {
            break report;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(report.stopped, Some(Stop::ByPerson));
}

/// A client of a container engine, and what it is called with to remove.
fn client(world: &World, script: &str) -> Invocation {
    let env = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
    let remove = format!("echo removed >> {}", world.path("removed").display());
    Invocation {
        cwd: world.home.path().to_owned(),
        around: Some(Around {
            word: "engine".into(),
            env,
            remove: ["sh", "-c", &remove].map(str::to_owned).to_vec(),
            ..Around::default()
        }),
        ..conformance::invocation(&["sh", "-c", script])
    }
}

#[tokio::test]
async fn a_container_is_removed_at_every_end_and_one_that_an_earlier_start_left_before() {
    let world = World::new();
    let (_, report) = world.run(&client(&world, "exit 137")).await;
    assert_eq!(report.exit, Exit::Signal(9), "as its client tells");
    assert_eq!(world.until("removed").await, "removed\n");

    let world = World::new();
    world.dir().create().unwrap();
    let left = r#"{"boot_id":"x","keeper":1,"pgid":0,"start_ticks":0,"cgroup":null}"#;
    fs::write(world.dir().file("group"), left).unwrap();
    let (_, report) = world.run(&client(&world, "cat removed; exit 3")).await;
    assert_eq!(report.exit, Exit::Code(3));
    let out = fs::read_to_string(world.dir().file("out")).unwrap();
    assert_eq!(out, "removed\n", "before anything was started");
    assert_eq!(world.until("removed").await, "removed\nremoved\n");
}

#[tokio::test]
async fn a_container_that_ends_before_its_warden_came_was_never_started() {
    let world = World::new();
    let mut what = client(&world, "echo 'no such image' >&2; exit 125");
    let dir = world.path("inside");
    what.inside = Inside::Socket {
        dir: dir.clone(),
        own: Vec::new(),
    };
    if let Some(around) = &mut what.around {
        around.dir = Some(dir.clone());
    }
    let Start::NotStarted(reason) = world.site.start(&world.job, &what).await else {
        panic!("it was started");
    };
    assert!(reason.contains("no such image"), "{reason}");
    assert!(!world.dir().file("started").exists() && !dir.exists());
    assert_eq!(world.until("removed").await, "removed\n");
    assert_eq!(world.dir().probe().unwrap(), Probe::NeverStarted);
}
