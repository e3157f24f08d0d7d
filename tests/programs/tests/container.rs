//! The container, with a real podman and an image made of this system's own files: what passes
//! through it passes unchanged, every way out is refused by name, nothing outlives it, and no
//! record of the engine holds a secret. Where podman starts nothing, that is skipped loudly.
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
            fs::MetadataExt,
            net::{SocketAddr, UnixListener},
        },
    },
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use dispatch_core::{
    container::{Container, RuntimeAsked},
    event::Kind,
    id::{RunId, TaskId},
    job::Exit,
    network::AllowList,
    outcome::{Failure, Outcome, Stop},
    task::{ChecksAsked, Expects, Network, Placement, TaskSpec, Wrap},
};
use dispatch_engine::{
    attachments::NewFile,
    engine::{Engine, Secrets},
    jobdir::{JobDir, Probe},
    view::{Force, Given, TaskView, VerbError},
};
use dispatch_test_programs::{
    escape,
    fake_model::{Log, Server},
    podman::{BARE_IMAGE, IMAGE, Podman},
};
use world::{
    World, finished,
    net::{echo, mirror},
    outcome, patient, reason, run, until,
};

/// One for all tests here; `None`: said aloud, and nothing is tested.
fn podman() -> Option<&'static Podman> {
    static FOUND: OnceLock<Option<Podman>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("podman");
        match Podman::find(&place) {
            Ok(podman) => Some(podman),
            Err(why) => {
                use std::io::Write as _;
                // Past the test harness, which would keep it to itself.
                let mut out = std::io::stderr().lock();
                writeln!(out, "SKIPPED: tests of containers: {why}").unwrap();
                None
            }
        }
    });
    found.as_ref()
}

async fn engine(world: &World) -> Option<Engine> {
    let mut settings = world.settings();
    settings.runtimes = podman()?.runtimes();
    Some(Engine::open(settings).await.unwrap())
}

fn contained(world: &World, orders: &[&str]) -> TaskSpec {
    TaskSpec {
        placement: Placement {
            network: Network::None,
            container: Some(Container {
                image: IMAGE.parse().unwrap(),
                runtime: RuntimeAsked::Podman,
            }),
            ..Placement::of(Wrap::Container)
        },
        expects: Expects::Either,
        checks: ChecksAsked::None,
        ..world.spec(orders)
    }
}

fn job(world: &World, run: RunId) -> JobDir {
    let runs = world.data().join("runs");
    JobDir::at(runs.join(run.to_string()).join("agent"))
}

fn last(view: &TaskView) -> RunId {
    RunId {
        task: view.task.id,
        n: u32::try_from(view.task.runs.len()).unwrap(),
    }
}

fn output(world: &World, view: &TaskView) -> String {
    let out = job(world, last(view)).file("out");
    String::from_utf8_lossy(&fs::read(out).unwrap()).into_owned()
}

fn enforced(view: &TaskView) -> String {
    view.task
        .last_run()
        .unwrap()
        .enforced
        .clone()
        .unwrap_or_default()
}

/// Nothing of a task is left: no process, no container, no socket.
fn nothing_left(world: &World, task: TaskId) {
    assert_eq!(world.alive(task), [""; 0]);
    let names = podman()
        .unwrap()
        .call(&["ps", "--all", "--format", "{{.Names}}"]);
    let names = names.unwrap();
    assert!(!names.contains(&task.to_string()), "{names}");
    let inside = fs::read_dir(world.data().join("inside"));
    assert_eq!(inside.map_or(0, Iterator::count), 0);
}

async fn is_up(engine: &Engine, task: TaskId) -> PathBuf {
    until(engine, task, |kind| matches!(kind, Kind::Started { .. })).await;
    let view = engine.task(task).await.unwrap();
    let workspace = view.task.workspace.unwrap().path;
    let look = async {
        while !workspace.join("up").exists() {
            tokio::task::yield_now().await;
        }
    };
    patient(look).await;
    workspace
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_output_and_input_pass_through_unchanged() {
    let world = World::new();
    let Some(engine) = engine(&world).await else {
        return;
    };
    for (order, exit) in [
        ("exit 0", Exit::Code(0)),
        ("exit 3", Exit::Code(3)),
        ("exit 137", Exit::Code(137)),
        ("suicide", Exit::Signal(9)),
    ] {
        let orders = ["say hello", "garbage", "lines 20000", order];
        let view = run(&engine, contained(&world, &orders)).await;
        let report = view.task.runs[0].report.clone();
        let report = report.unwrap_or_else(|| panic!("{order}: {}", reason(&view)));
        assert_eq!(report.exit, exit, "{order}");
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        let bytes = fs::read(job(&world, last(&view)).file("out")).unwrap();
        assert!(
            bytes.starts_with(b"hello\n\xff\xfex\0\xc3\nline 0\n"),
            "{order}"
        );
        assert!(bytes.ends_with(b"\nline 19999\n"), "{order}");
        nothing_left(&world, view.task.id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_holds_is_recorded_and_the_unpinned_image_warned_of() {
    let world = World::with("[limits]\ncpus_max = 1\n");
    let Some(engine) = engine(&world).await else {
        return;
    };
    let mut spec = contained(&world, &["write made.txt x", "env HOME", "environment"]);
    spec.placement.strict = true;
    let view = run(&engine, spec).await;
    let said = enforced(&view);
    assert!(said.starts_with("podman"), "{said} {}", reason(&view));
    for part in [
        "+landlock(abi ",
        "+seccomp",
        "memory (podman)",
        "processes (podman)",
        "processors (podman)",
        "open files (rlimit)",
        "network: none",
    ] {
        assert!(said.contains(part), "{part} not in {said}");
    }
    let notes = view.task.notes.join("\n");
    assert!(notes.contains("not pinned by digest"), "{notes}");
    let out = output(&world, &view);
    assert!(
        out.contains(&format!("HOME={}", world.data().display())),
        "{out}"
    );
    assert!(
        out.contains("DISPATCH_JOB") && !out.contains("DISPATCH_WARDEN"),
        "{out}"
    );
    let made = view.task.workspace.unwrap().path.join("made.txt");
    let meta = fs::metadata(made).unwrap();
    assert_eq!(meta.uid(), rustix::process::getuid().as_raw());
    assert_eq!(meta.mode() & 0o022, 0, "it is not for everybody to write");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_in_the_engines_records_or_in_an_argv() {
    let secret = "tell-nobody-7c1f";
    let world = World::with(
        "[agents.keyed]\ndriver = \"plain\"\nprogram = \"AGENT\"\npool = \"test\"\n\
         env = { KEY = { from = \"KEY\" } }\n"
            .replace("AGENT", world::AGENT)
            .as_str(),
    );
    let Some(engine) = engine(&world).await else {
        return;
    };
    let mut spec = contained(&world, &["env KEY", "write up x", "hang"]);
    spec.agent = "keyed".parse().unwrap();
    let secrets = Secrets::from([("KEY".to_owned(), secret.into())]);
    let run = engine.dispatch(spec, secrets).await.unwrap();
    is_up(&engine, run.task).await;
    let podman = podman().unwrap();
    let name = format!("dispatch-{run}-agent");
    let told = podman.call(&["inspect", &name]).unwrap();
    assert!(
        told.contains("dispatch.run") && !told.contains(secret),
        "{told}"
    );
    let argvs: String = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect();
    assert!(argvs.contains(&name) && !argvs.contains(secret));
    let store = Path::new(&podman.env["CONTAINERS_STORAGE_CONF"])
        .parent()
        .unwrap();
    for place in [store.to_owned(), world.data()] {
        let found = std::process::Command::new("grep")
            .args(["-rlF", "--devices=skip", secret])
            .arg(&place)
            .output()
            .unwrap();
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        assert_eq!(found, "", "below {}", place.display());
    }
    engine.stop(run.task, Force::Kill).await.unwrap();
    let view = finished(&engine, run).await;
    assert!(output(&world, &view).contains("KEY=***"));
    nothing_left(&world, run.task);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stop_ladder_reaches_the_last_grandchild() {
    let world = World::new();
    let Some(engine) = engine(&world).await else {
        return;
    };
    // Asked: the program's own handler has its say, which an engine's kill would not give it.
    let run = engine
        .dispatch(contained(&world, &["write up x", "hang"]), Secrets::new())
        .await
        .unwrap();
    is_up(&engine, run.task).await;
    engine.stop(run.task, Force::Ask).await.unwrap();
    let view = finished(&engine, run).await;
    let report = view.task.runs[0].report.clone().unwrap();
    assert_eq!(report.exit, Exit::Signal(15), "{:?}", report.problems);
    nothing_left(&world, run.task);
    // Killed.
    let orders = ["ignore-term", "grandchild pid setsid", "write up x", "hang"];
    let spec = contained(&world, &orders);
    let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
    is_up(&engine, run.task).await;
    assert!(world.alive(run.task).len() >= 2);
    engine.stop(run.task, Force::Kill).await.unwrap();
    let view = finished(&engine, run).await;
    assert_eq!(*outcome(&view), Outcome::Stopped(Stop::ByPerson));
    let report = view.task.runs[0].report.clone().unwrap();
    assert_eq!(
        (report.exit, report.problems),
        (Exit::Signal(9), Vec::new())
    );
    nothing_left(&world, run.task);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_program_leaves_behind_is_ended_and_counted() {
    let world = World::new();
    let Some(engine) = engine(&world).await else {
        return;
    };
    let view = run(
        &engine,
        contained(&world, &["grandchild pid setsid", "exit 0"]),
    )
    .await;
    let report = view.task.runs[0].report.clone().unwrap();
    assert_eq!((report.exit, report.leftovers), (Exit::Code(0), 1));
    nothing_left(&world, view.task.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keeper_killed_leaves_nothing_alive_and_the_lock_free() {
    let world = World::new();
    let Some(engine) = engine(&world).await else {
        return;
    };
    let spec = contained(&world, &["grandchild pid setsid", "write up x", "hang"]);
    let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
    is_up(&engine, run.task).await;
    let dir = job(&world, run);
    let keeper = dir.group().unwrap().unwrap().keeper;
    let keeper = rustix::process::Pid::from_raw(keeper).unwrap();
    rustix::process::kill_process(keeper, rustix::process::Signal::KILL).unwrap();
    let view = finished(&engine, run).await;
    assert_eq!(*outcome(&view), Outcome::Lost);
    nothing_left(&world, run.task);
    assert!(matches!(dir.probe().unwrap(), Probe::Gone));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_engine_goes_on_with_a_living_container() {
    let world = World::new();
    let Some(engine) = self::engine(&world).await else {
        return;
    };
    let spec = contained(
        &world,
        &["say before", "write up x", "await go", "say after"],
    );
    let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
    let workspace = is_up(&engine, run.task).await;
    engine.shutdown().await.unwrap();
    let engine = self::engine(&world).await.unwrap();
    until(&engine, run.task, |kind| matches!(kind, Kind::Adopted)).await;
    fs::write(workspace.join("go"), "").unwrap();
    let view = finished(&engine, run).await;
    assert!(
        matches!(outcome(&view), Outcome::Completed { .. }),
        "{}",
        reason(&view)
    );
    assert_eq!(output(&world, &view), "before\nafter\n");
    nothing_left(&world, run.task);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_out_is_refused_by_name() {
    let world = World::below(Path::new(env!("CARGO_TARGET_TMPDIR")), "");
    let Some(engine) = engine(&world).await else {
        return;
    };
    // What a person and another task have on this machine.
    let person = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for name in ["id_ed25519", "credentials.json", "hosts.yml"] {
        fs::write(person.path().join(name), "secret\n").unwrap();
    }
    let other = run(&engine, contained(&world, &["write theirs.txt x"])).await;
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
    let name = format!("dispatch-container-escape-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _hidden = UnixListener::bind_addr(&address).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = port.local_addr().unwrap();
    let vault = fs::read_dir(world.data().join("vaults")).unwrap().next();
    let vault = vault.unwrap().unwrap().path();
    let below = |path: &str| person.path().join(path).display().to_string();
    let data = |path: &str| world.data().join(path).display().to_string();
    let own_tmp = world.data().starts_with("/tmp");
    let store = &podman().unwrap().env["CONTAINERS_STORAGE_CONF"];
    let mut attempts = vec![
        format!("ssh-key read {}", below("id_ed25519")),
        format!("cloud-credentials read {}", below("credentials.json")),
        format!("forge-credentials read {}", below("hosts.yml")),
        format!("other-workspace read {}", theirs.display()),
        format!("log read {}", data("log.sqlite")),
        format!(
            "other-job read {}/out",
            data(&format!("runs/{}/agent", last(&other)))
        ),
        format!("vault read {}/HEAD", vault.display()),
        format!("engine-store read {store}"),
        "environ read /proc/1/environ".into(),
        format!("engine-environ read /proc/{}/environ", std::process::id()),
        format!("host-home write {}", below("planted")),
        format!("data write {}", data("planted")),
        format!("objects write {}", data("mirrors/planted")),
        "etc write /etc/dispatch-escape".into(),
        "programs write /usr/bin/dispatch-escape".into(),
        "warden-directory write /run/dispatch/planted".into(),
        "warden-socket unix /run/dispatch/warden".into(),
        "device-directory write /dev/planted".into(),
        "core-pattern write /proc/sys/kernel/core_pattern".into(),
        "cgroup write /sys/fs/cgroup/planted".into(),
        format!("signal-engine signal {}", std::process::id()),
        "signal-init signal 1".into(),
        format!("engine-socket unix {}", socket.display()),
        "docker-socket unix /var/run/docker.sock".into(),
        "podman-socket unix /run/podman/podman.sock".into(),
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
    let view = run(&engine, contained(&world, &orders)).await;
    let said = output(&world, &view);
    let out: Vec<&str> = attempts
        .iter()
        .filter_map(|attempt| attempt.split(' ').next())
        .filter(|name| !said.contains(&format!("{name}: refused")))
        // Where all this lies below /tmp, the container's own /tmp takes such a file, and this
        // host never sees it: that is looked at below.
        .filter(|name| !(own_tmp && ["host-home", "data", "objects"].contains(name)))
        .collect();
    for path in [below("planted"), data("planted"), data("mirrors/planted")] {
        assert!(!Path::new(&path).exists(), "{path} is on the host");
    }
    assert_eq!(
        out,
        [""; 0],
        "{}:\n{said}\n{}",
        enforced(&view),
        reason(&view)
    );
    assert!(said.contains("descriptors: 0 1 2\n"), "{said}");
    assert!(!person.path().join("planted").exists() && !world.data().join("planted").exists());
    nothing_left(&world, view.task.id);
}

/// By the same relays as in the cage: a container's loopback is its own, whatever its network is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_hosts_and_a_broker_hold_in_a_container() {
    let (port, other, upstream) = (echo(), echo(), mirror());
    let world = World::with(&format!(
        "args = [\"--url={{broker_url}}\"]\n[agents.fake.env]\nKEY = {{ from = \"KEY\" }}\n\
         [agents.fake.broker]\nkey = \"KEY\"\nbase_url = \"URL\"\n\
         upstream = \"http://127.0.0.1:{upstream}/base\"\n"
    ));
    let Some(engine) = engine(&world).await else {
        return;
    };
    let list = vec![format!("127.0.0.1:{port}")];
    let list = Network::Allow(AllowList::try_from(list).unwrap());
    for network in [Network::Full, Network::None, list] {
        let word = network.word();
        let orders = [
            format!("proxied 127.0.0.1:{port} hello"),
            format!("proxied 127.0.0.1:{other} x"),
            format!("escape direct tcp 127.0.0.1:{port}"),
            "env KEY".into(),
            "ask-broker /v1/x".into(),
            "write made x".into(),
        ];
        let listed = matches!(network, Network::Allow(_));
        let orders = orders.iter().map(String::as_str);
        let orders: Vec<&str> = orders.skip(if listed { 0 } else { 2 }).collect();
        let mut spec = contained(&world, &orders);
        spec.placement.network = network;
        let secrets = Secrets::from([("KEY".to_owned(), "not-a-real-key-but-long".into())]);
        let run = engine.dispatch(spec, secrets).await.unwrap();
        let view = finished(&engine, run).await;
        let said = output(&world, &view);
        let why = format!("{word}: {} {:?}\n{said}", reason(&view), view.task.notes);
        assert!(said.contains("KEY=dispatch-placeholder-"), "{why}");
        assert!(said.contains("GET /base/v1/x HTTP/1.1"), "{why}");
        assert!(said.contains("direct: refused"), "{why}");
        if listed {
            assert!(
                said.contains("200 Connection established | echo hello"),
                "{why}"
            );
            let refused = format!("127.0.0.1:{other} is not let through");
            assert!(said.contains(&refused), "{why}");
        }
        assert!(
            enforced(&view).contains(&format!("network: {word}")),
            "{why}"
        );
        nothing_left(&world, run.task);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_processes_and_disk_have_limits() {
    let world = World::with(
        "[limits]\nworkspace_bytes = 1000000\ngrace_s = 1\nmemory_bytes = 60000000\nprocesses_max = 20\n",
    );
    let Some(engine) = engine(&world).await else {
        return;
    };
    let view = run(&engine, contained(&world, &["eat 200000000", "hang"])).await;
    let limit_bytes = 60_000_000;
    assert_eq!(
        *outcome(&view),
        Outcome::Stopped(Stop::Memory { limit_bytes })
    );
    nothing_left(&world, view.task.id);

    let script = "i=0\nwhile [ $i -lt 60 ]; do sleep 1000 & i=$((i+1)); done\necho all up\n";
    world.commit("storm.sh", script);
    let view = run(&engine, contained(&world, &["sh storm.sh"])).await;
    let said = output(&world, &view);
    assert!(!said.contains("all up"), "{said}");
    let report = view.task.runs[0].report.clone().unwrap();
    assert!(report.leftovers > 5 && report.leftovers <= 20, "{report:?}");
    nothing_left(&world, view.task.id);

    let view = run(&engine, contained(&world, &["fill big 4000000", "hang"])).await;
    let limit_bytes = 1_000_000;
    assert_eq!(
        *outcome(&view),
        Outcome::Stopped(Stop::DiskBytes { limit_bytes })
    );
    nothing_left(&world, view.task.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_checks_and_results_come_out_of_the_container() {
    let world = World::with(
        "[checks.own]\nrank = 1\nmarkers = []\nfiles = []\n\
         steps = [{ name = \"there\", argv = [\"test\", \"-f\", \"made.txt\"] }]\n",
    );
    let Some(engine) = engine(&world).await else {
        return;
    };
    let orders = [
        "write made.txt x",
        "git add .",
        "git commit -qm mine",
        "write rest.txt y",
    ];
    let mut spec = contained(&world, &orders);
    spec.checks = ChecksAsked::Named(vec!["own".parse().unwrap()]);
    let view = run(&engine, spec).await;
    let text = format!("{:?}", view.task.runs[0]);
    assert!(
        matches!(outcome(&view), Outcome::Completed { .. }),
        "{text}"
    );
    let sealed = view.task.runs[0].sealed.clone().unwrap();
    assert_eq!(sealed.notes, [""; 0], "{text}");
    assert_eq!(view.task.runs[0].checks.len(), 1, "{text}");
    nothing_left(&world, view.task.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_attached_is_read_in_a_container_and_not_changed() {
    let world = World::new();
    let Some(engine) = engine(&world).await else {
        return;
    };
    let given = Given {
        files: vec![NewFile {
            name: "a b.txt".into(),
            bytes: b"attached".to_vec(),
        }],
        ..Given::default()
    };
    let spec = contained(&world, &["attached got.txt", "spoil-attached"]);
    let begun = engine.dispatch(spec, given).await.unwrap();
    let view = finished(&engine, begun).await;
    assert_eq!(outcome(&view).word(), "completed", "{}", reason(&view));
    let workspace = view.task.workspace.clone().unwrap().path;
    let got = fs::read_to_string(workspace.join("got.txt")).unwrap();
    assert_eq!(got, "attached\n");
    assert!(output(&world, &view).contains("spoiled: false"));
    nothing_left(&world, view.task.id);
}

/// The image has a shell and none of the libraries that our programs need.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_cannot_run_our_warden_says_so_and_strict_refuses_it() {
    let world = World::with(
        "[limits]\ngrace_s = 1\n[agents.shell]\ndriver = \"plain\"\nprogram = \"sh\"\npool = \"test\"\n\
         args = [\"-c\", \"cat > heard; echo key $KEY; exit 3\"]\n\
         env = { KEY = { from = \"KEY\" } }\n[agents.hangs]\ndriver = \"plain\"\nprogram = \"sh\"\n\
         pool = \"test\"\nargs = [\"-c\", \"cat > /dev/null; kill -9 $$\"]\n[agents.stays]\n\
         driver = \"plain\"\nprogram = \"sh\"\npool = \"test\"\n\
         args = [\"-c\", \"cat > /dev/null; trap 'exit 7' TERM; echo x > up; sleep 1000 & wait\"]\n",
    );
    let Some(engine) = engine(&world).await else {
        return;
    };
    let bare = |agent: &str, strict| {
        let mut spec = contained(&world, &["hello"]);
        spec.agent = agent.parse().unwrap();
        spec.placement.strict = strict;
        if let Some(container) = &mut spec.placement.container {
            container.image = BARE_IMAGE.parse().unwrap();
        }
        spec
    };
    let secrets = Secrets::from([("KEY".to_owned(), "tell-nobody-91ab".into())]);
    let first = engine.dispatch(bare("shell", false), secrets.clone()).await;
    let view = finished(&engine, first.unwrap()).await;
    let said = enforced(&view);
    assert!(
        said.contains("no warden, the environment is in its records"),
        "{said} {}",
        reason(&view)
    );
    let report = view.task.runs[0].report.clone().unwrap();
    assert_eq!((report.exit, report.problems), (Exit::Code(3), Vec::new()));
    assert!(
        output(&world, &view).contains("key ***\n"),
        "{}",
        output(&world, &view)
    );
    let heard = view.task.workspace.as_ref().unwrap().path.join("heard");
    assert!(fs::read_to_string(heard).unwrap().contains("@hello"));
    nothing_left(&world, view.task.id);

    let view = run(&engine, bare("hangs", false)).await;
    let report = view.task.runs[0].report.clone().unwrap();
    assert_eq!(
        report.exit,
        Exit::Signal(9),
        "by the number its engine tells"
    );
    nothing_left(&world, view.task.id);

    let asked = engine
        .dispatch(bare("stays", false), Secrets::new())
        .await
        .unwrap();
    is_up(&engine, asked.task).await;
    engine.stop(asked.task, Force::Ask).await.unwrap();
    let view = finished(&engine, asked).await;
    let report = view.task.runs[0].report.clone().unwrap();
    assert_eq!(report.exit, Exit::Code(7), "{:?}", report.problems);
    nothing_left(&world, asked.task);

    // Nobody of ours is inside to see that its keeper is dead: the sweep asks its engine.
    let left = engine
        .dispatch(bare("stays", false), Secrets::new())
        .await
        .unwrap();
    is_up(&engine, left.task).await;
    let keeper = job(&world, left).group().unwrap().unwrap().keeper;
    let keeper = rustix::process::Pid::from_raw(keeper).unwrap();
    rustix::process::kill_process(keeper, rustix::process::Signal::KILL).unwrap();
    let view = finished(&engine, left).await;
    assert_eq!(*outcome(&view), Outcome::Lost);
    nothing_left(&world, left.task);

    let strict = engine.dispatch(bare("shell", true), secrets).await.unwrap();
    let view = finished(&engine, strict).await;
    let Outcome::Failed(Failure::Start { reason }) = outcome(&view) else {
        panic!("{:?}", outcome(&view))
    };
    assert!(reason.contains("cannot run our warden"), "{reason}");
    nothing_left(&world, view.task.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_start_says_why_and_leaves_nothing() {
    let world = World::with(
        "[agents.gone]\ndriver = \"plain\"\nprogram = \"no-such-agent\"\npool = \"test\"\n",
    );
    let Some(engine) = engine(&world).await else {
        return;
    };
    let mut spec = contained(&world, &["say x"]);
    spec.agent = "gone".parse().unwrap();
    let view = run(&engine, spec).await;
    assert!(
        reason(&view).contains("on the image's PATH"),
        "{}",
        reason(&view)
    );
    assert!(!job(&world, last(&view)).file("started").exists());
    nothing_left(&world, view.task.id);

    let mut spec = contained(&world, &["say x"]);
    spec.placement.container.as_mut().unwrap().image = "localhost/nowhere:1".parse().unwrap();
    let view = run(&engine, spec).await;
    assert!(
        reason(&view).contains("get the image localhost/nowhere:1"),
        "{}",
        reason(&view)
    );
    nothing_left(&world, view.task.id);

    let mut spec = contained(&world, &["say x"]);
    spec.placement.container.as_mut().unwrap().runtime = RuntimeAsked::Docker;
    let refused = engine.dispatch(spec, Secrets::new()).await.unwrap_err();
    let VerbError::BadInput { what } = refused else {
        panic!("{refused}")
    };
    assert!(what.contains("docker: `docker` is not on PATH"), "{what}");
}

/// The real Claude Code, brought along into an image that has never heard of it. A container has a
/// loopback of its own, so the scripted model listens on the bridge, which no other machine reaches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claude_code_edits_a_file_in_a_container() {
    let Some(podman) = podman() else { return };
    let skip = |why: &str| {
        use std::io::Write as _;
        let mut out = std::io::stderr().lock();
        writeln!(out, "SKIPPED: Claude Code in a container: {why}").unwrap();
    };
    let Some(folder) = std::env::var_os("DISPATCH_TEST_AGENTS") else {
        return skip("DISPATCH_TEST_AGENTS is not set; `cargo xtask test` installs it");
    };
    let cpu = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "x64"
    };
    let below = format!("node_modules/@anthropic-ai/claude-code-linux-{cpu}/claude");
    let program = Path::new(&folder).join(below);
    let program = program.canonicalize().unwrap();
    let address = match podman.bridge() {
        Ok(address) => address,
        Err(why) => return skip(&why),
    };
    let model = tempfile::tempdir().unwrap();
    let script = model.path().join("script.json");
    let steps = r#"[{"text": "I edit it.", "tool": "shell", "command": "echo edited >> README.md"},
                    {"text": "Finished."}]"#;
    fs::write(&script, steps).unwrap();
    let log = model.path().join("log");
    let server = Server::new(Some(&script), None, Log::open(Some(&log)).unwrap()).unwrap();
    let listener = tokio::net::TcpListener::bind((address, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(Arc::new(server).serve(listener));

    let table = format!(
        "[agents.claude]\nprogram = {program:?}\npool = \"test\"\nhost_alias = true\n\
         [agents.claude.env]\nANTHROPIC_BASE_URL = \"http://host.containers.internal:{port}\"\n\
         ANTHROPIC_API_KEY = \"sk-not-a-real-key-0123456789\"\nCLAUDE_CODE_MAX_RETRIES = \"1\"\n"
    );
    let world = World::below(Path::new(env!("CARGO_TARGET_TMPDIR")), &table);
    let engine = engine(&world).await.unwrap();
    let mut spec = contained(&world, &[]);
    spec.agent = "claude".parse().unwrap();
    spec.text = "Put the marmalade in order.".into();
    spec.placement.network = Network::Full;
    spec.placement.strict = true;
    let view = run(&engine, spec).await;
    let summary = "Finished.".into();
    assert_eq!(
        *outcome(&view),
        Outcome::Completed { summary },
        "{}",
        reason(&view)
    );
    let diff = engine.diff(view.task.id).await.unwrap();
    assert!(diff.contains("\n+edited"), "{diff}");
    assert!(
        enforced(&view).contains("+landlock(abi "),
        "{}",
        enforced(&view)
    );
    nothing_left(&world, view.task.id);
    serving.abort();
}
