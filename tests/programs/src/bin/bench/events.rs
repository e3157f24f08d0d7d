//! Events under a real engine and over its real doors: how long from an agent's write to a client, how
//! many a second go in and come out, and what a reader costs that does not read.
//! Must not assert: goals are printed beside what came of them.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use dispatch_core::event::Kind;

use super::{Real, config_text, figure, memory, repository, tempfile_dir};

const RUNS: [usize; 2] = [1, 200];
/// Lines measured of each kind, over all runs.
const TICKS: usize = 2000;
const POURERS: usize = 8;
const POURED_EACH: u64 = 50_000;
const READERS: usize = 50;
const STALLED_EACH: usize = 20;

pub(crate) fn run(dispatch: &Path, agent: &Path) -> Result<()> {
    for runs in RUNS {
        latency(dispatch, agent, runs)?;
    }
    for readers in [0, READERS] {
        throughput(dispatch, agent, readers)?;
    }
    stalled(dispatch, agent)
}

/// A home with agents of all kinds that are needed here.
fn stage(dispatch: &Path, agent: &Path, slots: usize) -> Result<Real> {
    let place = tempfile_dir("events")?;
    let repo = repository(&place, 5)?;
    fs::create_dir_all(place.join("home"))?;
    let config = format!(
        "{}[agents.said]\ndriver = \"codex\"\nprogram = \"{}\"\npool = \"test\"\nplacement = \"host\"\n",
        config_text(agent, slots).replace("runs_max = 1000", "runs_max = 1000\nidle_s = 600"),
        agent.display(),
    );
    fs::write(place.join("home/dispatch.toml"), config)?;
    Ok(Real {
        place,
        dispatch: dispatch.to_owned(),
        repo,
    })
}

impl Real {
    fn connect(&self, request: &str) -> Result<UnixStream> {
        let mut stream = UnixStream::connect(self.place.join("home/run/dispatch.sock"))?;
        stream.write_all(request.as_bytes())?;
        Ok(stream)
    }

    fn follow(&self, after: u64) -> Result<BufReader<UnixStream>> {
        let request = format!("GET /v1/events?after={after} HTTP/1.1\r\nhost: dispatch\r\n\r\n");
        Ok(BufReader::with_capacity(1 << 18, self.connect(&request)?))
    }

    fn last(&self) -> Result<u64> {
        Ok(dispatch_engine::reader::Reader::open(&self.data())?.last())
    }
}

fn now_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Whenever a client has a line with a tick in it: the nanoseconds since its agent wrote it.
fn ticks(lines: BufReader<UnixStream>) -> Receiver<i64> {
    let (send, ticks) = channel();
    thread::spawn(move || {
        for line in lines.lines().map_while(std::result::Result::ok) {
            let now = now_ns();
            // Several in one frame came at once.
            for told in line.split("tick ").skip(1) {
                let digits = told.split(|c: char| !c.is_ascii_digit()).next();
                let Some(then) = digits.and_then(|digits| digits.parse::<i64>().ok()) else {
                    continue;
                };
                if send.send(now - then).is_err() {
                    return;
                }
            }
        }
    });
    ticks
}

/// All agents write one line a second, or one alone fifty.
fn latency(dispatch: &Path, agent: &Path, runs: usize) -> Result<()> {
    let pause_ms = if runs == 1 { 20 } else { 1000 };
    for (agent_name, how, what) in [
        ("fake", "", "a line that is only live"),
        ("said", " said", "a line that is an event, durable first"),
    ] {
        let real = stage(dispatch, agent, runs)?;
        let mut engine = real.serve()?;
        let end = real.place.join("end");
        let task = format!("@ticks {} {pause_ms}{how}\n", end.display());
        real.dispatch_to(agent_name, &task, runs)?;
        real.until(0, runs, |kind| matches!(kind, Kind::Started { .. }))?;
        thread::sleep(Duration::from_secs(2));
        let ticks = ticks(real.follow(real.last()?)?);
        // What was open when we came is old.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(1) {
            ticks.recv_timeout(Duration::from_secs(5))?;
        }
        let mut samples = Vec::new();
        while samples.len() < TICKS {
            let took = ticks.recv_timeout(Duration::from_secs(30))?;
            samples.push(took as f64 / 1e6);
        }
        let name = format!("written by an agent to a client that has it, {runs} live, {what}");
        figure(&name, samples, "ms");
        fs::write(end, "")?;
        real.until(0, runs, |kind| matches!(kind, Kind::Finished { .. }))?;
        engine.kill()?;
        engine.wait()?;
        fs::remove_dir_all(&real.place)?;
    }
    println!("  (goal: p99 below 20 ms)");
    Ok(())
}

/// Agents that wait for the word to pour.
fn pourers(real: &Real) -> Result<()> {
    let go = real.place.join("go");
    let task = format!("@await {}\n@pour {POURED_EACH}\n", go.display());
    real.dispatch_to("said", &task, POURERS)?;
    real.until(0, POURERS, |kind| matches!(kind, Kind::Started { .. }))
}

/// Counts what it reads until it has all of it.
fn counter(lines: BufReader<UnixStream>, read: Arc<AtomicU64>) {
    thread::spawn(move || {
        for line in lines.lines().map_while(std::result::Result::ok) {
            if line.starts_with("event: event") {
                read.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
}

fn poured(real: &Real) -> Result<(f64, u64)> {
    let all = POURED_EACH * POURERS as u64;
    let before = real.last()?;
    let begun = Instant::now();
    fs::write(real.place.join("go"), "")?;
    while real.last()? < before + all {
        ensure!(
            begun.elapsed() < Duration::from_secs(300),
            "it takes too long"
        );
        thread::sleep(Duration::from_millis(5));
    }
    Ok((begun.elapsed().as_secs_f64(), all))
}

fn throughput(dispatch: &Path, agent: &Path, readers: usize) -> Result<()> {
    let real = stage(dispatch, agent, POURERS)?;
    let mut engine = real.serve()?;
    pourers(&real)?;
    let read = Arc::new(AtomicU64::new(0));
    let from = real.last()?;
    for _ in 0..readers {
        counter(real.follow(from)?, Arc::clone(&read));
    }
    let begun = Instant::now();
    let (took, all) = poured(&real)?;
    println!(
        "events into the log, {POURERS} agents, {readers} readers: {:.0} per second (goal 50000)",
        all as f64 / took
    );
    if readers > 0 {
        let wanted = all * readers as u64;
        while read.load(Ordering::Relaxed) < wanted {
            ensure!(
                begun.elapsed() < Duration::from_secs(600),
                "readers get stuck"
            );
            thread::sleep(Duration::from_millis(5));
        }
        let took = begun.elapsed().as_secs_f64();
        println!(
            "events out to {readers} readers: {:.0} per second, {:.0} each",
            wanted as f64 / took,
            all as f64 / took
        );
    }
    engine.kill()?;
    engine.wait()?;
    fs::remove_dir_all(&real.place)?;
    Ok(())
}

/// The same flood without them and with them: what the engine holds more is theirs.
fn stalled(dispatch: &Path, agent: &Path) -> Result<()> {
    let mut held = Vec::new();
    let sse = "GET /v1/events HTTP/1.1\r\nhost: dispatch\r\n\r\n";
    let ws = "GET /v1/events/ws HTTP/1.1\r\nhost: dispatch\r\nconnection: upgrade\r\n\
              upgrade: websocket\r\nsec-websocket-version: 13\r\n\
              sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    for request in [None, Some(sse), Some(ws)] {
        let real = stage(dispatch, agent, POURERS)?;
        let mut engine = real.serve()?;
        pourers(&real)?;
        let mut streams = Vec::new();
        for _ in 0..STALLED_EACH {
            streams.extend(request.map(|request| real.connect(request)).transpose()?);
        }
        // Each is there: it has been answered.
        for stream in &mut streams {
            stream.read_exact(&mut [0; 12])?;
        }
        poured(&real)?;
        let pid = engine.id().try_into()?;
        held.push(memory(pid, "Private_Dirty:")? + memory(pid, "Private_Clean:")?);
        drop(streams);
        engine.kill()?;
        engine.wait()?;
        fs::remove_dir_all(&real.place)?;
    }
    let [none, sse, ws] = held[..] else {
        return Err(anyhow::anyhow!("three figures")).context("measure memory");
    };
    let each = |with: f64| (with - none) / STALLED_EACH as f64;
    println!(
        "engine after {} events: {:.1} MB; each stalled reader more: {:.0} kB by SSE, {:.0} kB by \
         WebSocket ({STALLED_EACH} at a time)",
        POURED_EACH * POURERS as u64,
        none / 1000.0,
        each(sse),
        each(ws)
    );
    Ok(())
}
