//! The cage, tried from inside by an agent that wants out, with bubblewrap and without: every
//! attempt is refused, by name; what passes through a fence passes unchanged; nothing outlives it.
//! A fence that this machine cannot have is skipped loudly.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test, and what it skips it says loudly"
)]

mod world;

use std::{
    fs,
    net::TcpListener,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::PermissionsExt,
            net::{SocketAddr, UnixListener},
        },
    },
    path::Path,
};

use dispatch_core::{
    event::Kind,
    id::TaskId,
    job::Exit,
    outcome::{Failure, Outcome, Stop},
    task::{ChecksAsked, Expects, Network, Placement, TaskSpec, Wrap},
};
use dispatch_engine::{
    engine::{Engine, Secrets, Settings},
    fence::Fences,
    sites::local::Keeper,
};
use dispatch_test_programs::{bubblewrap, escape};
use world::{World, finished, outcome, patient, run, until};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fence {
    Bubblewrap,
    LandlockOnly,
}

const FENCES: [Fence; 2] = [Fence::Bubblewrap, Fence::LandlockOnly];

async fn engine(world: &World, fence: Fence) -> Option<Engine> {
    Some(Engine::open(fenced(world, fence)?).await.unwrap())
}

fn fenced(world: &World, fence: Fence) -> Option<Settings> {
    let mut settings = world.settings();
    settings.bwrap = bubblewrap();
    if fence == Fence::LandlockOnly {
        settings.bwrap = None;
    } else if settings.bwrap.is_none() {
        eprintln!("SKIPPED: bubblewrap is not installed (apt-get install bubblewrap)");
        return None;
    }
    Some(settings)
}

fn caged(world: &World, orders: &[&str]) -> TaskSpec {
    TaskSpec {
        placement: Placement::of(Wrap::Cage),
        expects: Expects::Either,
        checks: ChecksAsked::None,
        review_base: None,
        ..world.spec(orders)
    }
}

/// Waits until the agent has written `up`.
async fn is_up(engine: &Engine, task: TaskId) {
    until(engine, task, |kind| matches!(kind, Kind::Started { .. })).await;
    let view = engine.task(task).await.unwrap();
    let workspace = view.task.workspace.unwrap().path;
    let look = async {
        while !workspace.join("up").exists() {
            tokio::task::yield_now().await;
        }
    };
    patient(look).await;
}

fn output(world: &World, view: &dispatch_engine::view::TaskView) -> String {
    let run = &view.task.runs[0];
    let dir = world
        .data()
        .join("runs")
        .join(run_id(view, run.n))
        .join("agent");
    fs::read_to_string(dir.join("out")).unwrap()
}

fn run_id(view: &dispatch_engine::view::TaskView, n: u32) -> String {
    format!("{}-{n}", view.task.id)
}

fn enforced(view: &dispatch_engine::view::TaskView) -> String {
    view.task.runs[0].enforced.clone().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_out_is_refused_by_name() {
    for fence in FENCES {
        // Not below /tmp, which is writable in a cage, and is not this one.
        let world = World::below(Path::new(env!("CARGO_TARGET_TMPDIR")), "");
        let Some(engine) = engine(&world, fence).await else {
            continue;
        };
        // What a person and another task have on this machine.
        let person = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        for name in ["id_ed25519", "credentials.json", "hosts.yml"] {
            fs::write(person.path().join(name), "secret\n").unwrap();
        }
        let other = run(&engine, caged(&world, &["write theirs.txt x"])).await;
        let theirs = other
            .task
            .workspace
            .as_ref()
            .unwrap()
            .path
            .join("theirs.txt");
        assert!(theirs.exists());
        let socket = person.path().join("engine.sock");
        let _listens = UnixListener::bind(&socket).unwrap();
        let name = format!("dispatch-escape-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let _hidden = UnixListener::bind_addr(&address).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = port.local_addr().unwrap();

        let below = |path: &str| person.path().join(path).display().to_string();
        let data = |path: &str| world.data().join(path).display().to_string();
        let vault = fs::read_dir(world.data().join("vaults")).unwrap().next();
        let vault = vault.unwrap().unwrap().path();
        let mut attempts = vec![
            format!("ssh-key read {}", below("id_ed25519")),
            format!("cloud-credentials read {}", below("credentials.json")),
            format!("forge-credentials read {}", below("hosts.yml")),
            format!("other-workspace read {}", theirs.display()),
            format!("store read {}", data("events.db")),
            format!(
                "other-job read {}/out",
                data(&format!("runs/{}/agent", run_id(&other, 1)))
            ),
            format!("vault read {}/HEAD", vault.display()),
            "shadow read /etc/shadow".into(),
            "environ read /proc/1/environ".into(),
            format!("engine-environ read /proc/{}/environ", std::process::id()),
            format!("host-home write {}", below("planted")),
            format!("data write {}", data("planted")),
            "etc write /etc/dispatch-escape".into(),
            "device-directory write /dev/planted".into(),
            "core-pattern write /proc/sys/kernel/core_pattern".into(),
            format!("signal-engine signal {}", std::process::id()),
            format!("engine-socket unix {}", socket.display()),
            format!("abstract-socket abstract {name}"),
            format!("host-port tcp {port}"),
            "raise-limits limit".into(),
            "setuid setuid".into(),
        ];
        attempts.extend(escape::calls().map(|call| format!("{call} call {call}")));
        if cfg!(target_arch = "x86_64") {
            attempts.push("x32 x32".into());
        }
        let orders: Vec<String> = attempts.iter().map(|a| format!("escape {a}")).collect();
        let mut orders: Vec<&str> = orders.iter().map(String::as_str).collect();
        orders.push("descriptors");
        let mut spec = caged(&world, &orders);
        spec.placement.network = Network::None;
        let view = run(&engine, spec).await;
        let said = output(&world, &view);
        let mut out = Vec::new();
        for attempt in &attempts {
            let name = attempt.split(' ').next().unwrap();
            // A cage has a /tmp of its own, which takes the file and forgets it: where the tests'
            // folder lies below /tmp, the host's file is the judge.
            let path = attempt.split(" write ").nth(1).map(Path::new);
            let own = path.filter(|path| path.starts_with("/tmp"));
            if own.is_some_and(|path| !path.exists()) {
                continue;
            }
            if !said.contains(&format!("{name}: refused")) {
                out.push(name.to_owned());
            }
        }
        assert_eq!(out, [""; 0], "{fence:?} ({}):\n{said}", enforced(&view));
        assert!(said.contains("descriptors: 0 1 2\n"), "{fence:?}: {said}");
        assert!(!person.path().join("planted").exists() && !world.data().join("planted").exists());
        assert_eq!(world.alive(view.task.id), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_holds_is_recorded_and_strict_takes_no_less() {
    for fence in FENCES {
        let world = World::new();
        let Some(engine) = engine(&world, fence).await else {
            continue;
        };
        let view = run(&engine, caged(&world, &["write a b"])).await;
        let said = enforced(&view);
        assert!(
            said.contains("landlock(abi ") && said.contains("+seccomp"),
            "{said}"
        );
        assert!(said.contains("open files (rlimit)"), "{said}");
        assert_eq!(
            said.starts_with("bwrap+"),
            fence == Fence::Bubblewrap,
            "{said}"
        );
        assert_eq!(
            said.contains("seccomp only"),
            fence == Fence::LandlockOnly,
            "{said}"
        );
        let mut spec = caged(&world, &["write a c"]);
        spec.placement.strict = true;
        let view = run(&engine, spec).await;
        match (fence, outcome(&view)) {
            (Fence::Bubblewrap, Outcome::Completed { .. }) => {}
            (Fence::LandlockOnly, Outcome::Failed(Failure::Start { reason })) => {
                assert!(reason.contains("bubblewrap is missing"), "{reason}");
            }
            (_, other) => panic!("{fence:?}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_output_and_input_pass_through_unchanged() {
    for fence in FENCES {
        let world = World::new();
        let Some(engine) = engine(&world, fence).await else {
            continue;
        };
        for (order, exit) in [
            ("exit 0", Exit::Code(0)),
            ("exit 3", Exit::Code(3)),
            ("exit 137", Exit::Code(137)),
            ("suicide", Exit::Signal(9)),
        ] {
            let view = run(&engine, caged(&world, &["say hello", "garbage", order])).await;
            let report = view.task.runs[0].report.clone().unwrap();
            assert_eq!(report.exit, exit, "{fence:?} {order}");
            assert!(report.problems.is_empty(), "{:?}", report.problems);
            let run = world.data().join("runs").join(run_id(&view, 1));
            let bytes = fs::read(run.join("agent/out")).unwrap();
            assert_eq!(bytes, b"hello\n\xff\xfex\0\xc3\n", "{fence:?} {order}");
        }
        let view = run(&engine, caged(&world, &["env HOME", "environment"])).await;
        let said = output(&world, &view);
        assert!(
            said.contains(&format!("HOME={}", world.data().display())),
            "{said}"
        );
        assert!(!said.contains("DISPATCH_WARDEN"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stop_ladder_reaches_the_last_grandchild() {
    for fence in FENCES {
        let world = World::new();
        let Some(engine) = engine(&world, fence).await else {
            continue;
        };
        let orders = ["ignore-term", "grandchild pid setsid", "write up x", "hang"];
        let mut spec = caged(&world, &orders);
        spec.title = "stubborn".into();
        let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
        is_up(&engine, run.task).await;
        assert!(!world.alive(run.task).is_empty());
        engine
            .stop(run.task, dispatch_engine::view::Force::Kill)
            .await
            .unwrap();
        let view = finished(&engine, run).await;
        assert_eq!(*outcome(&view), Outcome::Stopped(Stop::ByPerson));
        assert_eq!(world.alive(run.task), [""; 0], "{fence:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_program_leaves_behind_is_ended_and_counted() {
    for fence in FENCES {
        let world = World::new();
        let Some(engine) = engine(&world, fence).await else {
            continue;
        };
        let view = run(&engine, caged(&world, &["grandchild pid setsid", "exit 0"])).await;
        let report = view.task.runs[0].report.clone().unwrap();
        assert_eq!(
            (report.exit, report.leftovers),
            (Exit::Code(0), 1),
            "{fence:?}"
        );
        assert_eq!(world.alive(view.task.id), [""; 0], "{fence:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_not_there_is_a_failed_start_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let script = home.path().join("agent");
    fs::write(&script, "#!/nowhere/interpreter\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let world = World::with(&format!(
        "[agents.gone]\ndriver = \"plain\"\nprogram = \"{}\"\nargs = []\npool = \"test\"\n",
        script.display()
    ));
    for fence in FENCES {
        let Some(engine) = engine(&world, fence).await else {
            continue;
        };
        let mut spec = caged(&world, &["say x"]);
        spec.agent = "gone".parse().unwrap();
        let view = run(&engine, spec).await;
        let Outcome::Failed(Failure::Start { reason }) = outcome(&view) else {
            panic!("{fence:?}: {:?}", outcome(&view))
        };
        assert!(reason.contains("No such file"), "{reason}");
        let job = world
            .data()
            .join("runs")
            .join(run_id(&view, 1))
            .join("agent");
        assert!(!job.join("started").exists());
        assert_eq!(world.alive(view.task.id), [""; 0]);
        engine.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_processes_and_disk_have_limits() {
    let world = World::with("[limits]\nworkspace_bytes = 1000000\ngrace_s = 1\n");
    let Some(engine) = engine(&world, Fence::Bubblewrap).await else {
        return;
    };
    let view = run(&engine, caged(&world, &["fill big 4000000", "hang"])).await;
    let limit_bytes = 1_000_000;
    assert_eq!(
        *outcome(&view),
        Outcome::Stopped(Stop::DiskBytes { limit_bytes })
    );
    let world = World::with("[limits]\nmemory_bytes = 50000000\ngrace_s = 1\n");
    let engine = self::engine(&world, Fence::Bubblewrap).await.unwrap();
    let view = run(&engine, caged(&world, &["eat 200000000", "hang"])).await;
    let limit_bytes = 50_000_000;
    assert_eq!(
        *outcome(&view),
        Outcome::Stopped(Stop::Memory { limit_bytes })
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_checks_and_results_come_out_of_the_cage() {
    for fence in FENCES {
        let world = World::with(
            "[checks.own]\nrank = 1\nmarkers = []\nfiles = []\n\
             steps = [{ name = \"there\", argv = [\"test\", \"-f\", \"made.txt\"] }]\n",
        );
        let Some(engine) = engine(&world, fence).await else {
            continue;
        };
        let orders = [
            "write made.txt x",
            "git add .",
            "git commit -qm mine",
            "write rest.txt y",
        ];
        let mut spec = caged(&world, &orders);
        spec.checks = ChecksAsked::Named(vec!["own".parse().unwrap()]);
        let view = run(&engine, spec).await;
        let text = format!("{fence:?} {:?}", view.task.runs[0]);
        assert!(
            matches!(outcome(&view), Outcome::Completed { .. }),
            "{text}"
        );
        let sealed = view.task.runs[0].sealed.clone().unwrap();
        assert_eq!(sealed.notes, [""; 0], "{text}");
        assert_eq!(view.task.runs[0].checks.len(), 1, "{text}");
    }
}

/// Nobody of ours is left to end it: the kernel does, with the process that made the fence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keeper_killed_leaves_nothing_alive_and_the_lock_free() {
    for fence in FENCES {
        let world = World::new();
        let Some(engine) = engine(&world, fence).await else {
            continue;
        };
        let spec = caged(&world, &["grandchild pid setsid", "write up x", "hang"]);
        let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
        is_up(&engine, run.task).await;
        let dir = world
            .data()
            .join("runs")
            .join(run.to_string())
            .join("agent");
        let dir = dispatch_engine::jobdir::JobDir::at(dir);
        let keeper = dir.group().unwrap().unwrap().keeper;
        let keeper = rustix::process::Pid::from_raw(keeper).unwrap();
        rustix::process::kill_process(keeper, rustix::process::Signal::KILL).unwrap();
        let view = finished(&engine, run).await;
        assert_eq!(*outcome(&view), Outcome::Lost, "{fence:?}");
        assert_eq!(world.alive(run.task), [""; 0], "{fence:?}");
        assert!(matches!(
            dir.probe().unwrap(),
            dispatch_engine::jobdir::Probe::Gone
        ));
    }
}

/// Behind a mirror nothing builds without it; the tokens beside it stay where they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_finds_the_persons_mirrors_and_not_their_tokens() {
    for fence in FENCES {
        let world = World::below(Path::new(env!("CARGO_TARGET_TMPDIR")), "");
        let theirs = world.home.path().join("cargo");
        fs::create_dir(&theirs).unwrap();
        let config = "[source.crates-io]\nreplace-with = \"near\"\n[registry]\ntoken = \"t0ken\"\n";
        fs::write(theirs.join("config.toml"), config).unwrap();
        fs::write(theirs.join("credentials.toml"), config).unwrap();
        let script = format!("cat $CARGO_HOME/* {}/*.toml\n", theirs.display());
        world.commit("look.sh", &format!("{script}true\n"));
        let mut settings = fenced(&world, fence);
        let Some(settings) = settings.as_mut() else {
            continue;
        };
        let theirs = theirs.display().to_string();
        settings.job_env.insert("CARGO_HOME".into(), theirs);
        let engine = Engine::open(settings.clone()).await.unwrap();
        let view = run(&engine, caged(&world, &["sh look.sh"])).await;
        let said = output(&world, &view);
        assert!(
            said.contains("near") && !said.contains("t0ken"),
            "{fence:?}: {said}"
        );
    }
}

/// The warden is a copy that the engine has just written. A program that is started elsewhere at that
/// moment still holds the open file for an instant, and the kernel does not run such a file.
#[test]
fn a_fence_is_whole_although_programs_are_started_at_the_same_time() {
    let Some(bwrap) = bubblewrap() else {
        eprintln!("SKIPPED: bubblewrap is not installed (apt-get install bubblewrap)");
        return;
    };
    let found = || {
        let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let keeper = Keeper::program(world::AGENT.into());
        let fences = Fences::new(place.path().to_owned(), keeper, Some(bwrap.clone()));
        fences.layers().unwrap()
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..24).map(|_| scope.spawn(found)).collect();
        for one in all {
            let (layers, refused) = one.join().unwrap();
            assert_eq!((refused, layers[0].as_str()), (None, "bwrap"));
        }
    });
}
