//! The engine's side of a run's sidecar: what it is asked to be, one follower of what it says, and
//! its end. It is one more job of the run, so an engine's restart does not cut what the agent uses.
//! Must not hear of HTTP: a plan goes in, words come out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use dispatch_core::{
    cage::Relay,
    config::{AgentProfile, EnvValue, Source},
    event::{Kind, Subject},
    id::RunId,
    job::{Exit, ExitReport, Invocation, JobId, Offset, Order, Output, Part, Stdin},
    limits::{JobLimits, Limits},
    models::KeySource,
    outcome::Stop,
    redact::Redactor,
    sidecar::{At, BROKER_PORT, BROKER_SOCKET, Broker, PROXY_PORT, PROXY_SOCKET, Plan, Word},
    task::{Network, Placement, Wrap},
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    engine::Command,
    jobdir::JobDir,
    lines::Lines,
    run::Ctx,
    sites::{JobEvent, Site, Start},
};

/// From its start to its first word.
const READY: Duration = Duration::from_secs(20);
const LINE_BYTES_MAX: usize = 16 << 10;
/// Of what a run was refused; the rest is in the sidecar's output.
const NOTES_MAX: usize = 32;
const WHY_BYTES_MAX: usize = 4096;
/// A host's name and why.
const TEXT_CHARS_MAX: usize = 400;
const OUTPUT_BYTES: u64 = 16 << 20;
const GRACE_MS: u64 = 2000;
/// After the agent there are checks, and nobody knows how many: one that nobody ends goes by itself.
const CHECKS_MAX: u64 = 20;
/// For a certificate of a company's own; nothing else of the environment is its business.
const PASSED_ON: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// What an agent gets from its run's sidecar once that has said that it listens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Aid {
    pub(crate) broker_url: Option<String>,
    /// In place of the real keys, by their variables.
    pub(crate) placeholders: BTreeMap<String, String>,
}

/// A sidecar to follow, and who wants to know that it is ready and that it has ended.
pub(crate) struct Watched {
    site: Arc<dyn Site>,
    ready: oneshot::Sender<Result<Aid, String>>,
    ended: oneshot::Sender<()>,
}

/// A sidecar that the watcher follows.
pub(crate) struct Followed {
    site: Arc<dyn Site>,
    ended: oneshot::Receiver<()>,
}

impl Followed {
    /// Resolves when it has ended and the watcher has said what there was to say.
    pub(crate) async fn end(self, run: RunId) {
        stop(&self.site, run).await;
        match self.ended.await {
            // Dropped with the watcher: the engine is going away.
            Ok(()) | Err(_) => {}
        }
    }
}

/// Lets the watcher follow a sidecar that there is, or may be.
pub(crate) async fn follow(
    site: &Arc<dyn Site>,
    watcher: &mpsc::Sender<Watched>,
) -> (Followed, oneshot::Receiver<Result<Aid, String>>) {
    let (ready, answer) = oneshot::channel();
    let (over, ended) = oneshot::channel();
    let watched = Watched {
        site: Arc::clone(site),
        ready,
        ended: over,
    };
    match watcher.send(watched).await {
        // Without a watcher both answers say so by being cut off.
        Ok(()) | Err(_) => {}
    }
    let followed = Followed {
        site: Arc::clone(site),
        ended,
    };
    (followed, answer)
}

pub(crate) fn id(run: RunId) -> JobId {
    JobId {
        run,
        part: Part::Sidecar,
    }
}

/// Where its sockets lie: a directory that nothing else is in, seen read-only by the job.
pub(crate) fn directory(data: &Path, run: RunId) -> PathBuf {
    data.join("inside").join(run.to_string())
}

pub(crate) fn needed(placement: &Placement, profile: &AgentProfile) -> bool {
    matches!(placement.network, Network::Allow(_)) || profile.brokers().next().is_some()
}

/// Whether 127.0.0.1 is another place for the job than for the sidecar: a container has its own
/// whatever it reaches beyond.
fn own_loopback(placement: &Placement) -> bool {
    placement.wrap == Wrap::Container || placement.network.is_own()
}

/// What the fence of a job connects to the sidecar. `agent`: checks have no key, so no broker.
pub(crate) fn relays(
    data: &Path,
    run: RunId,
    placement: &Placement,
    agent: Option<&AgentProfile>,
) -> Vec<Relay> {
    let relay = |listen_port, socket: &str| Relay {
        listen_port,
        directory: directory(data, run),
        socket: socket.to_owned(),
    };
    let mut relays = Vec::new();
    if matches!(placement.network, Network::Allow(_)) {
        relays.push(relay(PROXY_PORT, PROXY_SOCKET));
    }
    if own_loopback(placement) && agent.is_some_and(|agent| agent.brokers().next().is_some()) {
        relays.push(relay(BROKER_PORT, BROKER_SOCKET));
    }
    relays
}

/// Variables that make programs use the proxy; whoever ignores them reaches nothing.
pub(crate) fn proxy_env(network: &Network) -> Vec<(&'static str, String)> {
    if !matches!(network, Network::Allow(_)) {
        return Vec::new();
    }
    let proxy = format!("http://127.0.0.1:{PROXY_PORT}");
    let own = "localhost,127.0.0.1,::1";
    let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let lower = ["http_proxy", "https_proxy", "all_proxy"];
    let mut env: Vec<_> = names
        .iter()
        .chain(&lower)
        .map(|name| (*name, proxy.clone()))
        .collect();
    env.extend(["NO_PROXY", "no_proxy"].map(|name| (name, own.to_owned())));
    // Node's own fetch looks at them only when it is told to.
    env.push(("NODE_USE_ENV_PROXY", "1".into()));
    env
}

/// The job that is a run's sidecar. `keys` finds the real key of a broker's variable.
pub(crate) fn invocation(
    ctx: &Ctx,
    run: RunId,
    placement: &Placement,
    profile: &AgentProfile,
    keys: &dyn Fn(&str) -> Option<String>,
) -> Result<Invocation, String> {
    let settings = &ctx.settings;
    let at = if own_loopback(placement) {
        let dir = directory(&settings.data, run);
        make_directory(&dir).map_err(|error| format!("make {}: {error}", dir.display()))?;
        At::Directory(dir)
    } else {
        At::Loopback
    };
    let mut env = BTreeMap::new();
    for name in PASSED_ON {
        if let Some(value) = settings.job_env.get(name) {
            env.insert(name.to_owned(), value.clone());
        }
    }
    let mut secrets = Vec::new();
    let mut brokers = Vec::new();
    for table in profile.brokers() {
        if !table.keyless {
            let key = keys(&table.key).ok_or_else(|| {
                format!(
                    "the agent's broker has no key to put in: {} was not handed over with the task",
                    table.key
                )
            })?;
            env.insert(table.key.clone(), key);
            secrets.push(table.key.clone());
        }
        brokers.push(Broker {
            key: table.key.clone(),
            upstream: table.upstream.clone(),
            keyless: table.keyless,
            again: again(profile, &table.key),
        });
    }
    if brokers.iter().any(runs_a_program) {
        let wanted = settings.program_env.iter();
        env.extend(wanted.map(|(name, value)| (name.clone(), value.clone())));
    }
    let plan = Plan {
        at,
        proxy: match &placement.network {
            Network::Allow(list) => Some(list.clone()),
            Network::Full | Network::None => None,
        },
        brokers,
    };
    let plan = serde_json::to_string(&plan).map_err(|error| format!("write its plan: {error}"))?;
    let mut argv = settings.sidecar.clone();
    if argv.is_empty() {
        return Err("this engine was given no program for sidecars".into());
    }
    argv.push(plan);
    Ok(Invocation {
        argv,
        env,
        secrets,
        output: Output::Text,
        cwd: "/".into(),
        stdin: Stdin::Null,
        limits: limits(&settings.config.limits),
        ..Invocation::default()
    })
}

/// Where a key can be read again. A variable's value is known, and stays what it was.
fn again(profile: &AgentProfile, variable: &str) -> Option<KeySource> {
    match profile.env.get(variable)? {
        EnvValue::Taken { source, .. } => match source {
            Source::File(_) | Source::Command(_) => Some(source.into()),
            Source::Variable(_) => None,
        },
        EnvValue::Literal(_) => None,
    }
}

fn runs_a_program(broker: &Broker) -> bool {
    matches!(broker.again, Some(KeySource::Command(_)))
}

fn limits(all: &Limits) -> JobLimits {
    let agent = all.agent_job();
    let checks_ms = all.check_job().wall_clock_ms.saturating_mul(CHECKS_MAX);
    JobLimits {
        wall_clock_ms: agent.wall_clock_ms.saturating_add(checks_ms),
        idle_ms: 0,
        output_bytes: OUTPUT_BYTES,
        grace_ms: GRACE_MS,
        ..agent
    }
}

fn make_directory(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

/// Starts it at a site.
pub(crate) async fn start(
    site: &Arc<dyn Site>,
    run: RunId,
    what: &Invocation,
) -> Result<(), String> {
    match site.start(&id(run), what).await {
        // Unknown may be running: its words tell.
        Start::Started | Start::Unknown(_) => Ok(()),
        Start::Declined(reason) => Err(format!("declined: {reason}")),
        Start::NotStarted(reason) => Err(reason),
    }
}

/// Waits until it listens.
pub(crate) async fn ready(answer: oneshot::Receiver<Result<Aid, String>>) -> Result<Aid, String> {
    match tokio::time::timeout(READY, answer).await {
        Ok(Ok(ready)) => ready,
        Ok(Err(_)) => Err("it could not be followed".into()),
        Err(_) => Err(format!("it did not listen within {} s", READY.as_secs())),
    }
}

/// Asks it to end. Whoever follows it sees that it has.
async fn stop(site: &Arc<dyn Site>, run: RunId) {
    let order = Order::Stop {
        why: Stop::Lingered,
        grace_ms: GRACE_MS,
    };
    match site.order(&id(run), &order).await {
        // It is gone already, or its keeper is: the follower sweeps then.
        Ok(()) | Err(_) => {}
    }
}

/// Ends what an engine before us started for an agent that never was. Its key may be gone with that
/// engine, so it is not used again; its job directory goes, so that another can be started.
pub(crate) async fn clear<'a>(
    ctx: &Ctx,
    run: RunId,
    sites: impl Iterator<Item = &'a Arc<dyn Site>>,
) -> Result<(), String> {
    let job = JobDir::of(&ctx.settings.data, &id(run));
    for site in sites {
        let failed = |error: io::Error| format!("end the sidecar of an earlier start: {error}");
        let mut follow = site
            .follow(&id(run), Offset::default())
            .await
            .map_err(failed)?;
        let mut ordered = false;
        loop {
            match follow.next().await.map_err(failed)? {
                JobEvent::Out(_) | JobEvent::Err(_) => {}
                JobEvent::Alive if !ordered => {
                    ordered = true;
                    stop(site, run).await;
                }
                JobEvent::Alive => {}
                JobEvent::Exited(_) | JobEvent::NeverStarted | JobEvent::Gone => break,
            }
        }
    }
    forget(job.path())?;
    forget(&directory(&ctx.settings.data, run))
}

/// Takes a directory away that may not be there.
pub(crate) fn forget(dir: &Path) -> Result<(), String> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("remove {}: {error}", dir.display())),
    }
}

/// Follows each sidecar that it is told of from its first word to its end, one after the other, and
/// records what a person should know. Ends when nobody can tell it of another.
pub(crate) struct Watcher {
    pub(crate) ctx: Ctx,
    pub(crate) run: RunId,
    pub(crate) told: mpsc::Receiver<Watched>,
    pub(crate) redactor: Redactor,
    /// Notes that are in the log already: an engine that begins again hears everything again.
    pub(crate) known: BTreeSet<String>,
}

impl Watcher {
    pub(crate) async fn watch(mut self) {
        while let Some(watched) = self.told.recv().await {
            self.follow(watched).await;
        }
    }

    async fn follow(&mut self, watched: Watched) {
        let mut ready = Some(watched.ready);
        let ended = self.hear(watched.site, &mut ready).await;
        let said = match &ended {
            Ok(End::Asked) => None,
            Ok(End::Unasked(why)) => Some(why.clone()),
            Err(error) => Some(format!("it cannot be followed: {error}")),
        };
        match (ready.take(), said) {
            // It never listened: whoever waits says what follows from that.
            (Some(ready), said) => {
                let why = said.unwrap_or_else(|| "it was ended".into());
                match ready.send(Err(why)) {
                    Ok(()) | Err(_) => {}
                }
            }
            (None, Some(why)) => {
                let text = format!(
                    "the run's sidecar has ended before the run ({why}): what it served, network \
                     or model, is out of reach since then"
                );
                self.note(text).await;
            }
            (None, None) => {}
        }
        match watched.ended.send(()) {
            // The run goes on to its end without asking.
            Ok(()) | Err(()) => {}
        }
    }

    async fn hear(
        &mut self,
        site: Arc<dyn Site>,
        ready: &mut Option<oneshot::Sender<Result<Aid, String>>>,
    ) -> io::Result<End> {
        let mut follow = site.follow(&id(self.run), Offset::default()).await?;
        let mut lines = Lines::new(LINE_BYTES_MAX);
        let mut refused = Vec::new();
        let mut why = Vec::new();
        loop {
            match follow.next().await? {
                JobEvent::Out(bytes) => {
                    for line in lines.push(&bytes) {
                        match serde_json::from_str(&line.text) {
                            Ok(Word::Ready {
                                broker_port,
                                placeholders,
                            }) => {
                                let port = broker_port.unwrap_or(BROKER_PORT);
                                let aid = Aid {
                                    broker_url: Some(format!("http://127.0.0.1:{port}")),
                                    placeholders,
                                };
                                if let Some(ready) = ready.take() {
                                    match ready.send(Ok(aid)) {
                                        // Adopted: the agent has it since long.
                                        Ok(()) | Err(_) => {}
                                    }
                                }
                            }
                            Ok(Word::Refused { what, why, times }) => {
                                self.refused(&mut refused, what, why, times).await;
                            }
                            Err(_) => {}
                        }
                    }
                }
                JobEvent::Err(bytes) => {
                    why.extend(bytes);
                    why.truncate(WHY_BYTES_MAX);
                }
                JobEvent::Alive => {}
                JobEvent::Exited(report) => {
                    self.sum_up(&refused).await;
                    return Ok(end(&report, &String::from_utf8_lossy(&why)));
                }
                JobEvent::NeverStarted => return Ok(End::Unasked("it was never started".into())),
                JobEvent::Gone => return Ok(End::Unasked("its keeper died".into())),
            }
        }
    }

    /// Told when it happens for the first time, so that a person sees why an agent is stuck.
    async fn refused(
        &mut self,
        all: &mut Vec<(String, u64)>,
        what: String,
        why: String,
        times: u64,
    ) {
        let text: String = format!("{what} ({why})")
            .chars()
            .take(TEXT_CHARS_MAX)
            .collect();
        if let Some((_, known)) = all.iter_mut().find(|(known, _)| *known == text) {
            *known = times;
            return;
        }
        if all.len() >= NOTES_MAX {
            let text = format!(
                "network refused: more than {NOTES_MAX} others; `sidecar/out` in the run's \
                 directory has them"
            );
            self.note(text).await;
            return;
        }
        all.push((text.clone(), times));
        self.note(format!("network refused: {text}")).await;
    }

    async fn sum_up(&mut self, all: &[(String, u64)]) {
        for (text, times) in all.iter().filter(|(_, times)| *times > 1) {
            self.note(format!("network refused: {text} ×{times} in all"))
                .await;
        }
    }

    async fn note(&mut self, text: String) {
        // As it will lie in the log, so that the next engine knows it again.
        let text = self.redactor.redact(&text);
        if !self.known.insert(text.clone()) {
            return;
        }
        let (reply, answer) = oneshot::channel();
        let command = Command::Record {
            subject: Subject::Run(self.run),
            kinds: vec![Kind::Noted { text }],
            reply,
        };
        if self.ctx.commands.send(command).await.is_ok() {
            match answer.await {
                // The engine is going away: the next one hears it again.
                Ok(_) | Err(_) => {}
            }
        }
    }
}

enum End {
    Asked,
    Unasked(String),
}

fn end(report: &ExitReport, said: &str) -> End {
    let said = said.trim();
    match (&report.stopped, report.exit) {
        (Some(Stop::Lingered), _) => End::Asked,
        (Some(other), _) => End::Unasked(other.to_string()),
        (None, _) if !said.is_empty() => End::Unasked(said.to_owned()),
        (None, Exit::Code(code)) => End::Unasked(format!("it ended with code {code}")),
        (None, Exit::Signal(signal)) => End::Unasked(format!("it ended by signal {signal}")),
    }
}
