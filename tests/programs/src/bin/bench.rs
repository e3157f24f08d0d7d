//! Measures what the README states: `bench DISPATCH AGENT`. Each figure is a median with its least
//! and its most, beside the disk's own time for a sync.
//! Must not assert, and must not be run beside other work: it measures.
#![expect(clippy::print_stdout, reason = "figures are printed")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use dispatch_core::{
    config::{self, Layer},
    container::{Container, RuntimeAsked, Wanted},
    event::{Kind, Scope, Subject, Verified},
    id::{RunId, TaskId},
    job::{Exit, Offset},
    network::AllowList,
    outcome::Outcome,
    run::RunCause,
    schedule::{Held, Host, View},
    state::State,
    task::{
        Base, ChecksAsked, Expects, Labels, Network, Placement, Priority, TaskSpec, Terms, Turn,
        Wrap,
    },
};
use dispatch_engine::{
    clock::Clock,
    containers::Runtimes,
    engine::{Engine, Observer, Secrets, Settings},
    fence::{Fences, Needs},
    git::Git,
    mirror::Mirror,
    reader::Reader,
    sites::{
        JobEvent, Site, Start, conformance,
        local::{Keeper, Local},
    },
    store::Store,
    view::Told,
    workspace::Workspaces,
};

use dispatch_test_programs::podman::{IMAGE, Podman};

const FILES: usize = 3000;
const LIVE: usize = 1000;
const ADOPTED: usize = 200;
const FOLDED: u64 = 100_000;
const WAITING: u64 = 100_000;
const DECISIONS: usize = 20_000;
const ENQUEUED: usize = 2000;
const ROUNDS_PAIRED: usize = 5;

#[path = "bench/events.rs"]
mod events;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (dispatch, agent, part) = match args.as_slice() {
        [dispatch, agent] => (dispatch, agent, None),
        [dispatch, agent, part] => (dispatch, agent, Some(part.as_str())),
        _ => bail!("bench DISPATCH AGENT [events]"),
    };
    let (dispatch, agent) = (PathBuf::from(dispatch), PathBuf::from(agent));
    machine()?;
    match part {
        None => {}
        Some("events") => {
            disk()?;
            return events::run(&dispatch, &agent);
        }
        Some(part) => bail!("measure {part}: there is events, or all of it"),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    disk()?;
    binary(&dispatch)?;
    runtime.block_on(cage(&dispatch))?;
    runtime.block_on(container(&dispatch))?;
    runtime.block_on(network(&dispatch, &agent))?;
    prepare()?;
    fold()?;
    gate()?;
    runtime.block_on(start(&dispatch, &agent))?;
    runtime.block_on(enqueue(&dispatch, &agent))?;
    live(&dispatch, &agent)?;
    events::run(&dispatch, &agent)
}

fn machine() -> Result<()> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism()?;
    println!(
        "machine: {cores} cores, {}, Linux {}",
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim()
    );
    Ok(())
}

/// Milliseconds: median, least, most.
fn figure(name: &str, mut samples: Vec<f64>, unit: &str) -> f64 {
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = (samples.len() as f64 - 1.0) * share;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index"
        )]
        samples
            .get(index.round() as usize)
            .copied()
            .unwrap_or(f64::NAN)
    };
    let (p50, p99) = (at(0.5), at(0.99));
    println!(
        "{name}: {p50:.2} {unit} (p99 {p99:.2}, {:.2} to {:.2}, n = {})",
        at(0.0),
        at(1.0),
        samples.len()
    );
    p50
}

fn ms(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1000.0
}

fn disk() -> Result<()> {
    let place = tempfile_dir("disk")?;
    let mut file = fs::File::create(place.join("x"))?;
    let mut samples = Vec::new();
    for _ in 0..50 {
        file.write_all(&[1; 512])?;
        let begun = Instant::now();
        file.sync_data()?;
        samples.push(ms(begun));
    }
    figure("the disk's own fdatasync", samples, "ms");
    fs::remove_dir_all(place)?;
    Ok(())
}

/// What the sidecar adds: the same agent speaks to the same server on this machine, once without a
/// fence and once in a cage with a list of hosts, by relay and proxy or by relay and broker.
async fn network(dispatch: &Path, agent: &Path) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs = std::env::split_paths(&path).map(|dir| dir.join("bwrap"));
    let Some(bwrap) = dirs.find(|file| file.is_file()) else {
        println!("network: SKIPPED, bubblewrap is not installed");
        return Ok(());
    };
    let place = tempfile_dir("network")?;
    let repo = repository(&place, 5)?;
    let (echo, http) = (server(echo)?, server(answers)?);
    let text = format!(
        "{}env = {{ URL = \"http://127.0.0.1:{http}\", KEY = {{ from = \"KEY\" }} }}\n\
         [agents.brokered]\ndriver = \"plain\"\nprogram = \"{}\"\npool = \"test\"\n\
         env = {{ KEY = {{ from = \"KEY\" }} }}\n[agents.brokered.broker]\nkey = \"KEY\"\n\
         base_url = \"URL\"\nupstream = \"http://127.0.0.1:{http}\"\n",
        config_text(agent, 4),
        agent.display(),
    );
    let layer = Layer {
        source: "bench",
        text: &text,
    };
    let (config, _) = config::load(&[layer]).map_err(|p| anyhow::anyhow!("{p:?}"))?;
    let engine = Engine::open(Settings {
        config,
        bwrap: Some(bwrap),
        sidecar: vec![dispatch.to_string_lossy().into_owned(), "sidecar".into()],
        door: None,
        ..settings(&place, dispatch, agent, 4)?
    })
    .await?;
    let list = AllowList::try_from(vec![format!("127.0.0.1:{echo}")]);
    let listed = Placement {
        network: Network::Allow(list.map_err(anyhow::Error::msg)?),
        ..Placement::of(Wrap::Cage)
    };
    let mut samples: BTreeMap<(String, &str), Vec<f64>> = BTreeMap::new();
    // In turns, so that a busy moment of the machine meets both.
    for _ in 0..ROUNDS_PAIRED {
        for (by, agent, placement) in [
            ("direct", "fake", Placement::of(Wrap::Host)),
            ("by the sidecar", "brokered", listed.clone()),
        ] {
            let text = format!("@rounds 127.0.0.1:{echo} 100\n@asks 100\n@write made x\n");
            let task = TaskSpec {
                agent: agent.parse()?,
                placement,
                ..spec(&repo, text)?
            };
            let secrets = Secrets::from([("KEY".to_owned(), "not-a-real-key".into())]);
            let mut events = engine.events(0);
            let run = engine.dispatch(task, secrets).await?;
            loop {
                match events.next().await.context("the engine has ended")? {
                    Told::Event(event)
                        if event.subject.run() == Some(run)
                            && matches!(event.kind, Kind::Finished { .. }) =>
                    {
                        break;
                    }
                    _ => {}
                }
            }
            let out = place.join(format!("data/runs/{run}/agent/out"));
            for line in fs::read_to_string(out)?.lines() {
                let (what, nanos) = line.split_once(' ').context("a figure")?;
                let us = nanos.parse::<f64>()? / 1000.0;
                samples.entry((what.to_owned(), by)).or_default().push(us);
            }
        }
    }
    for (what, name) in [
        ("open", "connect, and a first word there and back"),
        ("round", "a word there and back on it"),
        ("ask", "a whole request, by the broker instead of direct"),
    ] {
        let mut figure_of = |by| {
            let taken = samples.remove(&(what.to_owned(), by)).unwrap_or_default();
            figure(&format!("{name}, {by}"), taken, "us")
        };
        let (direct, other) = (figure_of("direct"), figure_of("by the sidecar"));
        println!("what the sidecar adds to it: {:.0} us", other - direct);
    }
    engine.shutdown().await?;
    fs::remove_dir_all(place)?;
    Ok(())
}

fn server(serve: fn(TcpStream) -> std::io::Result<()>) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that hung up has its figures already.
            std::thread::spawn(move || drop(serve(stream)));
        }
    });
    Ok(port)
}

fn echo(stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut into = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        into.write_all(format!("{}\n", line?).as_bytes())?;
    }
    Ok(())
}

/// Each request with the same few bytes, and closes when it is asked to.
fn answers(stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut into = stream.try_clone()?;
    let mut close = false;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        close |= line == "Connection: close";
        if line.is_empty() {
            into.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")?;
            if close {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// What the fence costs a start: the same keeper starts the same program bare and caged, in turns.
async fn cage(dispatch: &Path) -> Result<()> {
    let place = tempfile_dir("cage")?;
    let keeper = Keeper::program(dispatch.to_owned());
    let bwrap = dispatch_test_programs::bubblewrap();
    if bwrap.is_none() {
        println!("cage: SKIPPED, bubblewrap is not installed");
        return Ok(());
    }
    let fences = Fences::new(place.clone(), keeper.clone(), bwrap);
    let layers = fences.layers().map_err(anyhow::Error::msg)?.0;
    let site = Local::new(place.clone(), keeper);
    let workspace = place.join("workspace");
    fs::create_dir_all(&workspace)?;
    let (mut bare, mut caged) = (Vec::new(), Vec::new());
    for n in 0..60_u64 {
        let mut inner = conformance::invocation(&["/bin/true"]);
        inner.cwd.clone_from(&workspace);
        for fenced in [false, true] {
            let begun = Instant::now();
            let what = if fenced {
                let needs = Needs {
                    programs: Vec::new(),
                    read: Vec::new(),
                    write: vec![workspace.clone()],
                    shared: Vec::new(),
                    toolchains: &[],
                    gpu: false,
                    relays: Vec::new(),
                    doors: Vec::new(),
                };
                let made = fences.cage(inner.clone(), needs, &Network::Full, true);
                made.map_err(anyhow::Error::msg)?
            } else {
                inner.clone()
            };
            let job = conformance::job(0xca6e_0000 + n * 2 + u64::from(fenced));
            let started = site.start(&job, &what).await;
            anyhow::ensure!(started == Start::Started, "{started:?}");
            let took = ms(begun);
            let from = Offset::default();
            let (_, report) = conformance::read_all(&site, &job, from).await?;
            anyhow::ensure!(report.exit == Exit::Code(0), "{report:?}");
            if n >= 10 {
                if fenced { &mut caged } else { &mut bare }.push(took);
            }
        }
    }
    let bare = figure("start of a job through its keeper, bare", bare, "ms");
    let caged = figure(
        &format!("the same in a cage ({})", layers.join("+")),
        caged,
        "ms",
    );
    println!("cage over bare: {:.2} ms more (goal 10)", caged - bare);
    fs::remove_dir_all(place)?;
    Ok(())
}

/// What Dispatch costs over a bare `podman run`: to the first byte of output, and to the end with
/// the container removed; in turns, the same image, neither with a network.
async fn container(dispatch: &Path) -> Result<()> {
    let place = tempfile_dir("container")?;
    let podman = match Podman::find(&place.join("podman")) {
        Ok(podman) => podman,
        Err(why) => {
            println!("container: SKIPPED, {why}");
            return Ok(());
        }
    };
    let keeper = Keeper::program(dispatch.to_owned());
    let fences = Fences::new(place.clone(), keeper.clone(), None).with(podman.runtimes());
    let wanted = Container {
        image: IMAGE.parse()?,
        runtime: RuntimeAsked::Podman,
    };
    fences.prepare(&wanted).map_err(anyhow::Error::msg)?;
    let site = Local::new(place.clone(), keeper);
    let workspace = place.join("workspace");
    fs::create_dir_all(&workspace)?;
    let program = ["sh", "-c", "echo up"];
    let (mut bare, mut ours) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for n in 0..40_u64 {
        let begun = Instant::now();
        let mut words = vec!["run", "--rm", "--log-driver=none", "--network=none"];
        let limits = Podman::ulimits();
        words.extend(limits.iter().map(String::as_str));
        words.push(IMAGE);
        words.extend(program);
        let mut child = podman.command(&words).stdout(Stdio::piped()).spawn()?;
        let mut out = child.stdout.take().context("its output")?;
        out.read_exact(&mut [0; 1])?;
        let first = ms(begun);
        anyhow::ensure!(child.wait()?.success(), "bare podman failed");
        if n >= 10 {
            bare.0.push(first);
            bare.1.push(ms(begun));
        }

        let begun = Instant::now();
        let mut inner = conformance::invocation(&program);
        inner.cwd.clone_from(&workspace);
        let needs = Needs {
            programs: Vec::new(),
            read: Vec::new(),
            write: vec![workspace.clone()],
            shared: Vec::new(),
            relays: Vec::new(),
            doors: Vec::new(),
            toolchains: &[],
            gpu: false,
        };
        let asked = Wanted {
            network: Network::None,
            strict: true,
            ..Wanted::default()
        };
        let job = conformance::job(0xc0_0000 + n);
        let made = fences.contain(inner, &job, needs, &wanted, &asked);
        let what = made.map_err(anyhow::Error::msg)?;
        let started = site.start(&job, &what).await;
        anyhow::ensure!(started == Start::Started, "{started:?}");
        let mut follow = site.follow(&job, Offset::default()).await?;
        while !matches!(follow.next().await?, JobEvent::Out(_)) {}
        let first = ms(begun);
        let (_, report) = conformance::read_all(&site, &job, Offset::default()).await?;
        anyhow::ensure!(report.exit == Exit::Code(0), "{report:?}");
        if n >= 10 {
            ours.0.push(first);
            ours.1.push(ms(begun));
        }
    }
    for (what, bare, ours) in [
        ("to the first byte", bare.0, ours.0),
        ("to the end, removed", bare.1, ours.1),
    ] {
        let paired: Vec<f64> = bare
            .iter()
            .zip(&ours)
            .map(|(bare, ours)| ours / bare)
            .collect();
        figure(&format!("bare podman run, {what}"), bare, "ms");
        figure(&format!("the same through Dispatch, {what}"), ours, "ms");
        figure(
            &format!("container over bare, {what}, paired (goal 1.1)"),
            paired,
            "x",
        );
    }
    // Layers of images are not ours to unlink one by one.
    podman
        .call(&["system", "reset", "--force"])
        .map_err(anyhow::Error::msg)?;
    fs::remove_dir_all(place)?;
    Ok(())
}

fn binary(dispatch: &Path) -> Result<()> {
    let mut samples = Vec::new();
    for _ in 0..30 {
        let begun = Instant::now();
        Command::new(dispatch)
            .arg("--version")
            .stdout(Stdio::null())
            .status()?;
        samples.push(ms(begun));
    }
    figure("dispatch --version", samples, "ms");
    let bytes = fs::metadata(dispatch)?.len();
    println!("binary: {:.1} MB", bytes as f64 / 1e6);
    Ok(())
}

fn tempfile_dir(name: &str) -> Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("dispatch-bench-{}-{name}", std::process::id()));
    fs::create_dir_all(&path)?;
    Ok(path)
}

fn git(dir: &Path, args: &[&str]) -> Result<()> {
    let identity = ["-c", "user.name=b", "-c", "user.email=b@example.invalid"];
    let output = Command::new("git")
        .args(identity)
        .args(args)
        .current_dir(dir)
        .output()?;
    if !output.status.success() {
        bail!("git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn repository(place: &Path, files: usize) -> Result<PathBuf> {
    let repo = place.join("repo");
    fs::create_dir_all(&repo)?;
    git(&repo, &["init", "-q", "-b", "main"])?;
    for n in 0..files {
        let dir = repo.join(format!("d{}", n % 60));
        fs::create_dir_all(&dir)?;
        fs::write(
            dir.join(format!("f{n}.txt")),
            format!("file {n}\n").repeat(40),
        )?;
    }
    git(&repo, &["add", "-A"])?;
    git(&repo, &["commit", "-qm", "all"])?;
    Ok(repo)
}

/// Paired in one run: each round makes one of each.
fn prepare() -> Result<()> {
    let place = tempfile_dir("prepare")?;
    let repo = repository(&place, FILES)?;
    let data = place.join("data");
    let home = place.join("git-home");
    fs::create_dir_all(&home)?;
    fs::create_dir_all(&data)?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = Git::new(Path::new("git"), &path, &home)?;
    let mirror = Mirror::open_or_create(&own, &data, &repo.to_string_lossy())?;
    mirror.refresh()?;
    let base = mirror.base(None)?.commit;
    let workspaces = Workspaces::new(&own, &data);
    let (mut ours, mut with_fetch, mut theirs, mut cold) = (vec![], vec![], vec![], vec![]);
    for n in 0..15 {
        workspaces.refill(&mirror, &base)?;
        let branch = dispatch_engine::git::RefName::branch(&format!("t{n}"))?;
        let place_of = |kind: &str| data.join("workspaces").join(format!("{kind}{n}"));
        let meta = |kind: &str| data.join("meta").join(format!("{kind}{n}"));
        let begun = Instant::now();
        mirror.refresh()?;
        let fetched = ms(begun);
        let begun = Instant::now();
        workspaces.prepare(&mirror, &base, &branch, &place_of("p"), &meta("p"))?;
        ours.push(ms(begun));
        with_fetch.push(fetched + ms(begun));
        let begun = Instant::now();
        git(
            &repo,
            &[
                "worktree",
                "add",
                "-q",
                "--detach",
                &place.join(format!("w{n}")).to_string_lossy(),
            ],
        )?;
        theirs.push(ms(begun));
        let plain = Workspaces::new(&own, &place.join("unpooled")).pool_trees_max(0);
        let begun = Instant::now();
        plain.prepare(&mirror, &base, &branch, &place_of("c"), &meta("c"))?;
        cold.push(ms(begun));
    }
    let name = format!("git worktree add, {FILES} files (baseline)");
    let theirs = figure(&name, theirs, "ms");
    let ours = figure("workspace prepare, from the pool", ours, "ms");
    let with_fetch = figure(
        "workspace prepare with the fetch from upstream",
        with_fetch,
        "ms",
    );
    let cold = figure("workspace prepare, no tree in the pool", cold, "ms");
    println!(
        "ratio to git worktree add: {:.3} from the pool, {:.2} with the fetch, {:.2} without a pool",
        ours / theirs,
        with_fetch / theirs,
        cold / theirs
    );
    fs::remove_dir_all(place)?;
    Ok(())
}

fn spec(repo: &Path, text: String) -> Result<TaskSpec> {
    Ok(TaskSpec {
        title: "bench".into(),
        text,
        repo: repo.to_string_lossy().into_owned(),
        base: Base::Head,
        agent: "fake".parse()?,
        pool: "test".parse()?,
        placement: Placement::of(Wrap::Host),
        expects: Expects::Either,
        checks: ChecksAsked::None,
        review_base: None,
        workspace: None,
        turn: Turn::default(),
        parent: None,
        labels: Labels::default(),
        terms: Terms::default(),
        limits: dispatch_core::limits::Lowered::default(),
        guide: Default::default(),
    })
}

fn fold() -> Result<()> {
    let place = tempfile_dir("fold")?;
    let mut store = Store::open(&place)?;
    let mut events = Vec::new();
    let mut seq = 0;
    let mut push = |subject, kind| {
        seq += 1;
        events.push(dispatch_core::event::Event {
            seq,
            at: seq,
            subject,
            kind,
        });
    };
    let per_task = 5;
    for n in 0..FOLDED / per_task {
        let task = TaskId::from_bits(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let run = RunId { task, n: 1 };
        let made = spec(Path::new("/r"), "Fix the failing test in parser.rs".into())?;
        push(
            Subject::Task(task),
            Kind::TaskCreated {
                spec: Box::new(made),
                short: "3f".into(),
            },
        );
        push(
            Subject::Run(run),
            Kind::RunQueued {
                cause: RunCause::Dispatched,
            },
        );
        push(Subject::Run(run), Kind::Admitted);
        push(
            Subject::Run(run),
            Kind::SessionSeen {
                session: "s".into(),
            },
        );
        let outcome = dispatch_core::outcome::Outcome::Completed {
            summary: "done".into(),
        };
        let verified = dispatch_core::event::Verified::NotVerified;
        push(Subject::Run(run), Kind::Finished { outcome, verified });
    }
    store.append(&events)?;
    drop(store);
    let mut samples = Vec::new();
    for _ in 0..7 {
        let begun = Instant::now();
        let state = Reader::open(&place)?.state()?;
        samples.push(ms(begun));
        drop(state);
    }
    figure(&format!("fold of {FOLDED} events"), samples, "ms");
    fs::remove_dir_all(place)?;
    Ok(())
}

/// One decision after the other with a long queue: a start, its end, and what they change.
fn gate() -> Result<()> {
    let mut state = State::default();
    let put = |state: &mut State, subject, kind| {
        let (seq, at) = (state.seq() + 1, 1_700_000_000_000 + state.seq());
        let event = dispatch_core::event::Event {
            seq,
            at,
            subject,
            kind,
        };
        state.apply(&event)
    };
    let priorities = [
        Priority::Low,
        Priority::Normal,
        Priority::Normal,
        Priority::High,
    ];
    for n in 0..WAITING {
        let task = TaskId::from_bits(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut made = spec(Path::new(&format!("/r{}", n % 100)), "Fix it".into())?;
        made.terms.priority = priorities[usize::try_from(n % 4)?];
        made.terms.model = Some(format!("m{}", n % 3).parse()?);
        let created = Kind::TaskCreated {
            spec: Box::new(made),
            short: "3f".into(),
        };
        put(&mut state, Subject::Task(task), created)?;
        let cause = RunCause::Dispatched;
        put(
            &mut state,
            Subject::Run(RunId { task, n: 1 }),
            Kind::RunQueued { cause },
        )?;
    }
    let text = "[pools.test]\nslots = { total = 3, m0 = 1 }\ndaily_limit_starts = 1000000\nday_usd = 1e6\n";
    let layer = Layer {
        source: "bench",
        text,
    };
    let (config, _) = config::load(&[layer]).map_err(|p| anyhow::anyhow!("{p:?}"))?;
    let (mut samples, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..DECISIONS {
        let begun = Instant::now();
        let view = View {
            state: &state,
            gate: &config.gate,
            pools: &config.pools,
            disk_free_min_bytes: 0,
            held: &Held::new(),
            host: Host::default(),
            now: 1_700_000_000_000 + state.seq(),
        };
        let decision = view.decide();
        samples.push(ms(begun) * 1000.0);
        let live = state.live().next();
        if let [run] = decision.admit[..] {
            put(&mut state, Subject::Run(run), Kind::Admitted)?;
        } else if let Some(run) = live {
            let outcome = Outcome::Completed {
                summary: String::new(),
            };
            let verified = Verified::NotVerified;
            put(
                &mut state,
                Subject::Run(run),
                Kind::Finished { outcome, verified },
            )?;
        } else {
            bail!("the gate stands still: {decision:?}");
        }
        whole.push(ms(begun) * 1000.0);
    }
    let name = format!("a decision with {WAITING} runs queued");
    figure(&name, samples, "us");
    let per_s = 1e6 * whole.len() as f64 / whole.iter().sum::<f64>();
    println!("decisions with {WAITING} queued, each applied: {per_s:.0} per second");
    Ok(())
}

fn config_text(agent: &Path, slots: usize) -> String {
    format!(
        "[task]\nagent = \"fake\"\n[limits]\nruns_max = 1000\n[gate]\nload_per_core_max = 0\n[pools.test]\nslots = {slots}\n[agents.fake]\n\
         driver = \"plain\"\nprogram = \"{}\"\npool = \"test\"\nplacement = \"host\"\n",
        agent.display()
    )
}

fn settings(place: &Path, dispatch: &Path, agent: &Path, slots: usize) -> Result<Settings> {
    let text = config_text(agent, slots);
    let layer = Layer {
        source: "bench",
        text: &text,
    };
    let (config, _) = config::load(&[layer]).map_err(|p| anyhow::anyhow!("{p:?}"))?;
    Ok(Settings {
        data: place.join("data"),
        config,
        version: "bench".into(),
        git: "git".into(),
        job_env: BTreeMap::from([("PATH".into(), std::env::var("PATH")?)]),
        program_env: BTreeMap::new(),
        keeper: Keeper::program(dispatch.to_owned()),
        bwrap: None,
        runtimes: Runtimes::default(),
        sidecar: Vec::new(),
        door: None,
        definitions: None,
        observer: Observer::default(),
        clock: Clock::default(),
    })
}

/// From the call of the verb to the first instruction of the agent that looks at a clock: log, keeper
/// and exec included. The workspace is there, because a run before worked in it.
async fn start(dispatch: &Path, agent: &Path) -> Result<()> {
    let place = tempfile_dir("start")?;
    let repo = repository(&place, 20)?;
    let engine = Engine::open(settings(&place, dispatch, agent, 4)?).await?;
    let run = engine
        .dispatch(
            spec(&repo, "@now\n@write BLOCKED.md ?\n".into())?,
            Secrets::new(),
        )
        .await?;
    let mut samples = Vec::new();
    let mut events = engine.events(0);
    let mut current = run;
    let mut begun: Option<SystemTime> = None;
    while samples.len() < 300 {
        match events.next().await.context("the engine has ended")? {
            Told::Event(event)
                if event.subject.run() == Some(current)
                    && matches!(event.kind, Kind::Finished { .. }) => {}
            _ => continue,
        }
        if let Some(begun) = begun {
            let out = place.join(format!("data/runs/{current}/agent/out"));
            let nanos: u128 = fs::read_to_string(out)?.trim().parse()?;
            let begun = begun.duration_since(UNIX_EPOCH)?.as_nanos();
            samples.push(nanos.saturating_sub(begun) as f64 / 1e6);
        }
        begun = Some(SystemTime::now());
        current = engine
            .answer(run.task, "go on".into(), Secrets::new())
            .await?;
    }
    figure(
        "accept to the agent's first instruction, workspace ready",
        samples,
        "ms",
    );
    engine.idle().await;
    engine.shutdown().await?;
    fs::remove_dir_all(place)?;
    Ok(())
}

async fn enqueue(dispatch: &Path, agent: &Path) -> Result<()> {
    let place = tempfile_dir("enqueue")?;
    let repo = repository(&place, 5)?;
    let engine = Engine::open(settings(&place, dispatch, agent, 1)?).await?;
    engine.set_frozen(true, Scope::All).await?;
    let begun = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (engine, repo) = (engine.clone(), repo.clone());
        clients.spawn(async move {
            for _ in 0..ENQUEUED / 50 {
                engine
                    .dispatch(spec(&repo, "x".into())?, Secrets::new())
                    .await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    let rate = ENQUEUED as f64 / begun.elapsed().as_secs_f64();
    println!("durable enqueues, 50 clients at once: {rate:.0} per second");
    engine.shutdown().await?;
    fs::remove_dir_all(place)?;
    Ok(())
}

struct Real {
    place: PathBuf,
    dispatch: PathBuf,
    repo: PathBuf,
}

impl Real {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.dispatch);
        command
            .args(args)
            .current_dir(&self.repo)
            .env("DISPATCH_HOME", self.place.join("home"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn serve(&self) -> Result<Child> {
        let mut child = self.command(&["serve"]).stderr(Stdio::piped()).spawn()?;
        let mut said = String::new();
        let stderr = child.stderr.take().context("a pipe")?;
        BufReader::new(stderr).read_line(&mut said)?;
        if !said.contains(" serves ") {
            bail!("dispatch serve: {said}");
        }
        Ok(child)
    }

    fn dispatch(&self, count: usize) -> Result<()> {
        let go = self.place.join("go");
        let task = format!("@say up\n@park {}\n", go.display());
        self.dispatch_to("fake", &task, count)
    }

    fn dispatch_to(&self, agent: &str, task: &str, count: usize) -> Result<()> {
        for _ in 0..count {
            let args = [
                "run",
                "--detach",
                "--expects",
                "either",
                "--no-checks",
                "--agent",
                agent,
                task,
            ];
            if !self
                .command(&args)
                .stderr(Stdio::null())
                .status()?
                .success()
            {
                bail!("dispatch run failed");
            }
        }
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.place.join("home/data")
    }

    fn count(&self, after: u64, fits: impl Fn(&Kind) -> bool) -> Result<usize> {
        let events = Reader::open(&self.data())?.events(after, usize::MAX >> 1)?;
        Ok(events.iter().filter(|event| fits(&event.kind)).count())
    }

    fn until(&self, after: u64, count: usize, fits: impl Fn(&Kind) -> bool) -> Result<()> {
        let begun = Instant::now();
        while self.count(after, &fits)? < count {
            if begun.elapsed() > Duration::from_secs(300) {
                bail!("it takes too long");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

/// Real keepers under a real engine.
fn live(dispatch: &Path, agent: &Path) -> Result<()> {
    let place = tempfile_dir("live")?;
    let repo = repository(&place, 5)?;
    fs::create_dir_all(place.join("home"))?;
    fs::write(place.join("home/dispatch.toml"), config_text(agent, LIVE))?;
    let real = Real {
        place,
        dispatch: dispatch.to_owned(),
        repo,
    };
    let mut engine = real.serve()?;
    real.dispatch(ADOPTED)?;
    real.until(0, ADOPTED, |kind| matches!(kind, Kind::Started { .. }))?;
    let mut samples = Vec::new();
    for _ in 0..5 {
        engine.kill()?;
        engine.wait()?;
        let after = Reader::open(&real.data())?.last();
        let begun = Instant::now();
        engine = real.serve()?;
        real.until(after, ADOPTED, |kind| matches!(kind, Kind::Adopted))?;
        samples.push(ms(begun));
    }
    let name = format!("SIGKILL of the engine to all of {ADOPTED} live jobs followed again");
    figure(&name, samples, "ms");

    real.dispatch(LIVE - ADOPTED)?;
    real.until(0, LIVE, |kind| matches!(kind, Kind::Started { .. }))?;
    std::thread::sleep(Duration::from_secs(3));
    let pids: Vec<i32> = keepers(&real.data())?;
    let resident = memory(engine.id().try_into()?, "Pss:")?;
    let private: Vec<f64> = pids
        .iter()
        .filter_map(|pid| {
            Some(memory(*pid, "Private_Dirty:").ok()? + memory(*pid, "Private_Clean:").ok()?)
        })
        .collect();
    let each = figure(
        &format!("private memory of a keeper, {} alive", private.len()),
        private,
        "kB",
    );
    println!("engine with {LIVE} live jobs: {:.1} MB", resident / 1000.0);
    println!(
        "together per run: {:.2} MB",
        (resident / LIVE as f64 + each) / 1000.0
    );
    let before = (ticks(engine.id().try_into()?)?, total(&pids)?);
    std::thread::sleep(Duration::from_secs(10));
    let after = (ticks(engine.id().try_into()?)?, total(&pids)?);
    println!(
        "CPU in 10 s at idle: engine {} ms, all {} keepers together {} ms",
        (after.0 - before.0) * 10,
        pids.len(),
        (after.1 - before.1) * 10
    );
    fs::write(real.place.join("go"), "")?;
    for pid in parked(&real.data())? {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            rustix::process::kill_process_group(pid, rustix::process::Signal::KILL)?;
        }
    }
    real.until(0, LIVE, |kind| matches!(kind, Kind::Finished { .. }))?;
    engine.kill()?;
    engine.wait()?;
    fs::remove_dir_all(&real.place)?;
    Ok(())
}

fn groups(data: &Path) -> Result<Vec<dispatch_engine::jobdir::Group>> {
    let mut found = Vec::new();
    for run in fs::read_dir(data.join("runs"))? {
        let dir = dispatch_engine::jobdir::JobDir::at(run?.path().join("agent"));
        found.extend(dir.group()?);
    }
    Ok(found)
}

fn keepers(data: &Path) -> Result<Vec<i32>> {
    Ok(groups(data)?.iter().map(|group| group.keeper).collect())
}

fn parked(data: &Path) -> Result<Vec<i32>> {
    Ok(groups(data)?.iter().map(|group| group.pgid).collect())
}

/// Kilobytes of one line of a process's memory account.
fn memory(pid: i32, line: &str) -> Result<f64> {
    let mut text = String::new();
    fs::File::open(format!("/proc/{pid}/smaps_rollup"))?.read_to_string(&mut text)?;
    let value = text
        .lines()
        .find_map(|l| l.strip_prefix(line))
        .context("no such line")?;
    Ok(value.trim().trim_end_matches(" kB").trim().parse()?)
}

/// CPU ticks of a process, a hundredth of a second each.
fn ticks(pid: i32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = text.rsplit_once(')').context("stat")?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

fn total(pids: &[i32]) -> Result<u64> {
    pids.iter().map(|pid| ticks(*pid)).sum()
}
