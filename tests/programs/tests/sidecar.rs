//! A run's sidecar, tried from inside the fence: the list of hosts holds, what is refused is told,
//! the key stays outside, and the sidecar lives exactly as long as its run, whoever is killed.
//! What needs bubblewrap is skipped loudly without it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test, and what it skips it says loudly"
)]

mod world;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
};

use dispatch_core::{
    event::Kind,
    id::RunId,
    network::AllowList,
    outcome::{Failure, Outcome, Stop},
    task::{ChecksAsked, Expects, Network, Placement, TaskSpec, Wrap},
};
use dispatch_engine::{
    engine::{Engine, Secrets, Settings},
    jobdir::JobDir,
    view::{Force, TaskView},
};
use dispatch_test_programs::escape;
use rustix::process::{Pid, Signal, kill_process};
use world::{World, finished, outcome, patient, reason, run, until};

const KEY: &str = "not-a-real-key-but-long-enough";

fn bwrap() -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap();
    let mut found = std::env::split_paths(&path).map(|dir| dir.join("bwrap"));
    let found = found.find(|file| file.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: bubblewrap is not installed (apt-get install bubblewrap)");
    }
    found
}

fn settings(world: &World, bwrap: PathBuf) -> Settings {
    Settings {
        bwrap: Some(bwrap),
        ..world.settings()
    }
}

/// Answers each line with `echo LINE`.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut into = stream.try_clone().unwrap();
                for line in BufReader::new(stream).lines() {
                    let Ok(line) = line else { return };
                    if writeln!(into, "echo {line}").is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// Answers every request with its own head: what came in of a key would be seen there.
fn mirror() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                head.push(byte[0]);
            }
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                head.len()
            )
            .unwrap();
            stream.write_all(&head).unwrap();
        }
    });
    port
}

fn allow(entries: &[String]) -> Network {
    Network::Allow(AllowList::try_from(entries.to_vec()).unwrap())
}

/// The machine itself at this port, under its name and as what that stands for.
fn here(port: u16) -> Vec<String> {
    let hosts = ["localhost", "127.0.0.1", "[::1]"];
    hosts.iter().map(|host| format!("{host}:{port}")).collect()
}

fn caged(world: &World, network: Network, orders: &[&str]) -> TaskSpec {
    TaskSpec {
        placement: Placement {
            network,
            ..Placement::of(Wrap::Cage)
        },
        expects: Expects::Either,
        checks: ChecksAsked::None,
        ..world.spec(orders)
    }
}

fn job(world: &World, run: RunId, part: &str) -> JobDir {
    let runs = world.data().join("runs");
    JobDir::at(runs.join(run.to_string()).join(part))
}

fn first(view: &TaskView) -> RunId {
    RunId {
        task: view.task.id,
        n: 1,
    }
}

fn output(world: &World, view: &TaskView) -> String {
    fs::read_to_string(job(world, first(view), "agent").file("out")).unwrap()
}

fn nothing_is_left(world: &World, run: RunId) {
    assert_eq!(world.alive(run.task), [""; 0]);
    let inside = world.data().join("inside").join(run.to_string());
    assert!(!inside.exists(), "{}", inside.display());
}

/// Waits until the agent has written `up`.
async fn is_up(engine: &Engine, run: RunId) {
    until(engine, run.task, |kind| {
        matches!(kind, Kind::Started { .. })
    })
    .await;
    let view = engine.task(run.task).await.unwrap();
    let up = view.task.workspace.unwrap().path.join("up");
    let look = async {
        while !up.exists() {
            tokio::task::yield_now().await;
        }
    };
    patient(look).await;
}

/// Lets an agent go on that waits for `go`.
async fn go(engine: &Engine, run: RunId) {
    let view = engine.task(run.task).await.unwrap();
    fs::write(view.task.workspace.unwrap().path.join("go"), "").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listed_hosts_are_reached_and_nothing_else_is() {
    let Some(bwrap) = bwrap() else { return };
    let world = World::new();
    let engine = Engine::open(settings(&world, bwrap)).await.unwrap();
    let (port, other) = (echo(), echo());
    let mut list = here(port);
    // A name that is listed and stands for an address that is not.
    list.push(format!("localhost:{other}"));
    let orders = [
        format!("proxied localhost:{port} hello"),
        format!("proxied 127.0.0.1:{port} again"),
        "proxied evil.example:443 x".into(),
        "proxied evil.example:443 x".into(),
        "proxied evil.example:443 x".into(),
        format!("proxied 127.0.0.1:{other} x"),
        format!("proxied localhost:{other} x"),
        "proxied 169.254.169.254:80 x".into(),
        "http 127.0.0.1:18128 GET http://localhost/ HTTP/1.1\\nHost: localhost\\n\\n".into(),
        "env https_proxy".into(),
        "env NO_PROXY".into(),
        "env NODE_USE_ENV_PROXY".into(),
        "descriptors".into(),
    ];
    let orders: Vec<&str> = orders.iter().map(String::as_str).collect();
    let view = run(&engine, caged(&world, allow(&list), &orders)).await;
    let said = output(&world, &view);
    for line in [
        &format!("proxied localhost:{port}: HTTP/1.1 200 Connection established | echo hello\n"),
        &format!("proxied 127.0.0.1:{port}: HTTP/1.1 200 Connection established | echo again\n"),
        "proxied evil.example:443: HTTP/1.1 403 Forbidden | dispatch: evil.example:443 is not let \
         through: not in the list;",
        &format!("127.0.0.1:{other} is not let through: an address, and not in the list as one"),
        &format!("localhost:{other} is not let through: its name stands for "),
        "169.254.169.254:80 is not let through",
        "by CONNECT only",
        "https_proxy=http://127.0.0.1:18128\n",
        "NO_PROXY=localhost,127.0.0.1,::1\n",
        "NODE_USE_ENV_PROXY=1\n",
        "descriptors: 0 1 2\n",
    ] {
        assert!(said.contains(line), "{line} not in\n{said}");
    }
    let notes = view.task.notes.join("\n");
    for note in [
        "network refused: evil.example:443 (not in the list)\n",
        "network refused: evil.example:443 (not in the list) ×3 in all",
        "network refused: http://localhost/ (plain HTTP",
    ] {
        assert!(notes.contains(note), "{note} not in\n{notes}");
    }
    assert!(!notes.contains("has ended before"), "{notes}");
    let enforced = view.task.runs[0].enforced.clone().unwrap();
    assert!(enforced.ends_with("network: allow(4 hosts)"), "{enforced}");
    nothing_is_left(&world, first(&view));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_escape_kit_finds_no_way_past_the_proxy() {
    let Some(bwrap) = bwrap() else { return };
    let world = World::below(Path::new(env!("CARGO_TARGET_TMPDIR")), "");
    let engine = Engine::open(settings(&world, bwrap)).await.unwrap();
    let (listed, port) = (echo(), echo());
    let mut attempts = vec![
        format!("host-port tcp 127.0.0.1:{port}"),
        format!("listed-port-without-the-proxy tcp 127.0.0.1:{listed}"),
        "internet tcp 1.1.1.1:443".into(),
        "internet-six tcp [2606:4700:4700::1111]:443".into(),
        "metadata tcp 169.254.169.254:80".into(),
        "resolve-a-name resolve example.com".into(),
        "proxy-other-name proxy evil.example:443".into(),
        format!("proxy-loopback proxy 127.0.0.1:{port}"),
        format!("proxy-loopback-short proxy 127.1:{port}"),
        format!("proxy-loopback-number proxy 2130706433:{port}"),
        format!("proxy-loopback-hex proxy 0x7f000001:{port}"),
        format!("proxy-mapped proxy [::ffff:127.0.0.1]:{listed}"),
        format!("proxy-any proxy 0.0.0.0:{listed}"),
        "proxy-metadata proxy 169.254.169.254:80".into(),
        "proxy-metadata-six proxy [fd00:ec2::254]:80".into(),
        "proxy-user proxy localhost@evil.example:443".into(),
        format!(
            "sidecar-output read {}",
            world.data().join("runs").display()
        ),
    ];
    attempts.extend(escape::calls().map(|call| format!("{call} call {call}")));
    let orders: Vec<String> = attempts.iter().map(|a| format!("escape {a}")).collect();
    let orders: Vec<&str> = orders.iter().map(String::as_str).collect();
    let view = run(&engine, caged(&world, allow(&here(listed)), &orders)).await;
    let said = output(&world, &view);
    let out: Vec<&String> = attempts
        .iter()
        .filter(|attempt| {
            let name = attempt.split(' ').next().unwrap();
            !said.contains(&format!("{name}: refused"))
        })
        .collect();
    assert_eq!(out, Vec::<&String>::new(), "{said} {}", reason(&view));
    nothing_is_left(&world, first(&view));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_have_the_network_of_their_agent() {
    let Some(bwrap) = bwrap() else { return };
    let port = echo();
    // The proxy lets the listed host through, and there is no other way.
    let script = format!(
        "my $s = IO::Socket::INET->new(PeerAddr => '127.0.0.1:18128') or exit 2; \
         print $s \\\"CONNECT localhost:{port} HTTP/1.1\\\\r\\\\n\\\\r\\\\n\\\"; \
         exit 3 unless <$s> =~ / 200 /; \
         exit 4 if IO::Socket::INET->new(PeerAddr => '127.0.0.1:{port}'); \
         exit $ENV{{HTTPS_PROXY}} ne 'http://127.0.0.1:18128';"
    );
    let world = World::with(&format!(
        "[checks.own]\nrank = 1\nmarkers = []\nfiles = []\n\
         steps = [{{ name = \"net\", argv = [\"perl\", \"-MIO::Socket::INET\", \"-e\", \"{script}\"] }}]\n",
    ));
    let engine = Engine::open(settings(&world, bwrap)).await.unwrap();
    let mut spec = caged(&world, allow(&here(port)), &["write a b"]);
    spec.checks = ChecksAsked::Named(vec!["own".parse().unwrap()]);
    let view = run(&engine, spec).await;
    assert!(
        matches!(outcome(&view), Outcome::Completed { .. }),
        "{} {:?}",
        reason(&view),
        view.task.runs[0].checks
    );
    nothing_is_left(&world, first(&view));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_serves_on_while_there_is_no_engine() {
    let Some(bwrap) = bwrap() else { return };
    let world = World::new();
    let port = echo();
    let before = Engine::open(settings(&world, bwrap.clone())).await.unwrap();
    let orders = [
        "proxied evil.example:443 x".into(),
        "write up x".into(),
        "await go".into(),
        format!("proxied localhost:{port} later"),
        "proxied evil.example:443 x".into(),
        "write done x".into(),
        "await over".into(),
    ];
    let orders: Vec<&str> = orders.iter().map(String::as_str).collect();
    let spec = caged(&world, allow(&here(port)), &orders);
    let run = before.dispatch(spec, Secrets::new()).await.unwrap();
    is_up(&before, run).await;
    let pgid = || job(&world, run, "sidecar").group().unwrap().unwrap().pgid;
    let served_by = pgid();
    let workspace = before.task(run.task).await.unwrap().task.workspace.unwrap();
    before.shutdown().await.unwrap();
    fs::write(workspace.path.join("go"), "").unwrap();
    let look = async {
        while !workspace.path.join("done").exists() {
            tokio::task::yield_now().await;
        }
    };
    patient(look).await;
    let after = Engine::open(settings(&world, bwrap)).await.unwrap();
    fs::write(workspace.path.join("over"), "").unwrap();
    let view = finished(&after, run).await;
    assert!(output(&world, &view).contains("| echo later\n"));
    assert_eq!(pgid(), served_by);
    let told = |note: &&String| note.ends_with("evil.example:443 (not in the list)");
    assert_eq!(view.task.notes.iter().filter(told).count(), 1);
    assert!(view.task.notes.iter().any(|n| n.ends_with("×2 in all")));
    nothing_is_left(&world, run);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_with_its_run_however_that_ends() {
    let Some(bwrap) = bwrap() else { return };
    let world = World::new();
    let engine = Engine::open(settings(&world, bwrap)).await.unwrap();
    let list = here(echo());
    for force in [Force::Ask, Force::Kill] {
        let spec = caged(&world, allow(&list), &["write up x", "hang"]);
        let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
        is_up(&engine, run).await;
        engine.stop(run.task, force).await.unwrap();
        let view = finished(&engine, run).await;
        assert_eq!(*outcome(&view), Outcome::Stopped(Stop::ByPerson));
        nothing_is_left(&world, run);
    }
    // The agent's keeper is killed: the run is lost, and the sidecar goes with it.
    let spec = caged(&world, allow(&list), &["write up x", "hang"]);
    let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
    is_up(&engine, run).await;
    kill_keeper(&job(&world, run, "agent"));
    assert_eq!(*outcome(&finished(&engine, run).await), Outcome::Lost);
    nothing_is_left(&world, run);
}

fn kill_keeper(job: &JobDir) {
    let keeper = job.group().unwrap().unwrap().keeper;
    kill_process(Pid::from_raw(keeper).unwrap(), Signal::KILL).unwrap();
}

/// Nothing is reached any more and nothing is opened instead; the agent's own end decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_it_the_agent_reaches_nothing_and_a_person_is_told() {
    let Some(bwrap) = bwrap() else { return };
    let world = World::new();
    let engine = Engine::open(settings(&world, bwrap)).await.unwrap();
    let port = echo();
    for whose in ["its own end", "its keeper's"] {
        let orders = [
            "write up x".into(),
            "await go".into(),
            format!("escape direct tcp 127.0.0.1:{port}"),
            "write made x".into(),
        ];
        let orders: Vec<&str> = orders.iter().map(String::as_str).collect();
        let spec = caged(&world, allow(&here(port)), &orders);
        let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
        is_up(&engine, run).await;
        let sidecar = job(&world, run, "sidecar");
        match whose {
            "its keeper's" => kill_keeper(&sidecar),
            _ => {
                let pid = sidecar.group().unwrap().unwrap().pgid;
                kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
            }
        }
        let text = |kind: &Kind| match kind {
            Kind::Noted { text } => text.contains("sidecar has ended before the run"),
            _ => false,
        };
        until(&engine, run.task, text).await;
        go(&engine, run).await;
        let view = finished(&engine, run).await;
        assert!(
            matches!(outcome(&view), Outcome::Completed { .. }),
            "{whose}: {}",
            reason(&view)
        );
        assert!(output(&world, &view).contains("direct: refused"), "{whose}");
        nothing_is_left(&world, run);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_held_is_a_failed_start_and_nothing_ran() {
    let Some(bwrap) = bwrap() else { return };
    let world = World::new();
    let list = here(echo());
    let without = world.settings();
    let broken = Settings {
        sidecar: vec!["/bin/false".into()],
        ..settings(&world, bwrap)
    };
    for (settings, why) in [(without, "needs bubblewrap"), (broken, "the run's sidecar")] {
        let engine = Engine::open(settings).await.unwrap();
        let view = run(&engine, caged(&world, allow(&list), &["write ran x"])).await;
        let Outcome::Failed(Failure::Start { reason }) = outcome(&view) else {
            panic!("{:?}", outcome(&view))
        };
        assert!(reason.contains(why), "{reason}");
        assert!(!job(&world, first(&view), "agent").file("started").exists());
        nothing_is_left(&world, first(&view));
        engine.shutdown().await.unwrap();
    }
}

/// In every mode: the agent has a placeholder, upstream gets the key, and an echo of it is masked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_reaches_upstream_and_nothing_of_the_agents() {
    let mut fences = vec![Placement::of(Wrap::Host)];
    let bwrap = bwrap();
    if bwrap.is_some() {
        for network in [Network::Full, Network::None, allow(&["a.test".to_owned()])] {
            fences.push(Placement {
                network,
                ..Placement::of(Wrap::Cage)
            });
        }
    }
    let upstream = mirror();
    let world = World::with(&format!(
        "args = [\"--url={{broker_url}}\"]\n[agents.fake.env]\n\
         KEY = {{ from = \"KEY\", optional = true }}\n[agents.fake.broker]\nkey = \"KEY\"\n\
         base_url = \"URL\"\nupstream = \"http://127.0.0.1:{upstream}/base\"\n"
    ));
    let secrets = || Secrets::from([("KEY".to_owned(), KEY.into())]);
    let engine = Engine::open(Settings {
        bwrap,
        ..world.settings()
    })
    .await
    .unwrap();
    for placement in fences {
        let mode = format!("{:?} {}", placement.wrap, placement.network.word());
        let orders = ["env KEY", "env URL", "ask-broker /v1/x", "write made x"];
        let spec = TaskSpec {
            placement,
            ..caged(&world, Network::Full, &orders)
        };
        let run = engine.dispatch(spec, secrets()).await.unwrap();
        let view = finished(&engine, run).await;
        let said = output(&world, &view);
        assert!(
            said.contains("KEY=dispatch-placeholder-"),
            "{mode}: {said} {}",
            reason(&view)
        );
        assert!(said.contains("GET /base/v1/x HTTP/1.1"), "{mode}: {said}");
        // As long as the key, and not the key: only upstream saw that.
        let masked = "*".repeat(KEY.len());
        assert!(
            said.contains(&format!("authorization: Bearer {masked}")),
            "{mode}: {said}"
        );
        assert!(
            said.contains("x-other: dispatch-placeholder-"),
            "{mode}: {said}"
        );
        assert!(said.contains("wrong: HTTP/1.1 401"), "{mode}: {said}");
        let enforced = view.task.runs[0].enforced.clone().unwrap();
        assert!(enforced.ends_with("; KEY by the broker"), "{enforced}");
        nothing_is_left(&world, run);
    }
    assert_eq!(files_with(&world.data(), KEY), Vec::<PathBuf>::new());
}

/// Every file below that holds the text.
fn files_with(dir: &Path, text: &str) -> Vec<PathBuf> {
    let (mut open, mut found) = (vec![dir.to_owned()], Vec::new());
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                let bytes = fs::read(entry.path()).unwrap();
                if bytes
                    .windows(text.len())
                    .any(|part| part == text.as_bytes())
                {
                    found.push(entry.path());
                }
            }
        }
    }
    found
}

/// A server's certificate for `localhost`, by the system's own program; `None`: skipped.
fn certificate(dir: &Path) -> Option<(PathBuf, PathBuf)> {
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ])
        .args(["-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output();
    match made {
        Ok(made) if made.status.success() => Some((cert, key)),
        other => {
            eprintln!("SKIPPED: the broker over TLS: openssl is needed ({other:?})");
            None
        }
    }
}

/// As [`mirror`], over TLS.
async fn tls_mirror(cert: &Path, key: &Path) -> u16 {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let cert = CertificateDer::from_pem_file(cert).unwrap();
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not trust us hangs up.
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", head.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.write_all(&head).await.unwrap();
            stream.flush().await.unwrap();
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_sends_the_key_to_whom_it_can_trust_only() {
    let dir = tempfile::tempdir().unwrap();
    let Some((cert, key)) = certificate(dir.path()) else {
        return;
    };
    let port = tls_mirror(&cert, &key).await;
    // The certificate is for `localhost`.
    for (host, known, answer) in [
        ("localhost", true, "authorization: Bearer ***"),
        ("localhost", false, "HTTP/1.1 502"),
        ("127.0.0.1", true, "HTTP/1.1 502"),
    ] {
        let world = World::with(&format!(
            "[agents.fake.env]\nKEY = {{ from = \"KEY\" }}\n[agents.fake.broker]\nkey = \"KEY\"\n\
             base_url = \"URL\"\nupstream = \"https://{host}:{port}\"\n"
        ));
        let mut settings = world.settings();
        if known {
            let cert = cert.to_str().unwrap().to_owned();
            settings.job_env.insert("SSL_CERT_FILE".into(), cert);
        }
        let engine = Engine::open(settings).await.unwrap();
        let spec = TaskSpec {
            placement: Placement::of(Wrap::Host),
            ..caged(&world, Network::Full, &["ask-broker /v1/x", "write made x"])
        };
        let secrets = Secrets::from([("KEY".to_owned(), KEY.into())]);
        let run = engine.dispatch(spec, secrets).await.unwrap();
        let view = finished(&engine, run).await;
        let said = output(&world, &view);
        assert!(
            said.contains(answer),
            "{host} {known}: {said} {}",
            reason(&view)
        );
        nothing_is_left(&world, run);
    }
}
