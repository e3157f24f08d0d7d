//! `opencode serve` beside `dispatch serve`, in turns on the same machine: from the start to the first
//! answered request, and the memory of what then waits. Both have nothing to do and nothing to remember.
//! Must not count what one of them only does once: each has served before it is measured.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{Client, Serving, figure, token};

const TURNS: usize = 7;
/// From the answer to the look at its memory, so that what only the start needs is given back.
const SETTLED: Duration = Duration::from_secs(3);

/// Milliseconds to the first answer and megabytes after it, for each turn.
#[derive(Default)]
struct Samples {
    start_ms: Vec<f64>,
    idle_mb: Vec<f64>,
}

impl Samples {
    fn told(self, name: &str) -> (f64, f64) {
        (
            figure(
                &format!("{name}: start to the first answered request"),
                self.start_ms,
                "ms",
            ),
            figure(&format!("{name}: memory at idle (PSS)"), self.idle_mb, "MB"),
        )
    }
}

pub(super) fn beside(dispatch: &Path, opencode: &Path, place: &Path) -> Result<()> {
    let (home, theirs) = (place.join("beside"), place.join("opencode"));
    for dir in [&home.join("data"), &theirs] {
        fs::create_dir_all(dir)?;
    }
    fs::write(home.join("dispatch.toml"), "")?;
    let token = token(dispatch, &home)?;
    let (mut ours, mut rival) = (Samples::default(), Samples::default());
    ask_ours(dispatch, &home, &token, &mut Samples::default())?;
    ask_theirs(opencode, &theirs, &mut Samples::default())?;
    for _ in 0..TURNS {
        ask_ours(dispatch, &home, &token, &mut ours)?;
        ask_theirs(opencode, &theirs, &mut rival)?;
    }
    let version = Command::new(opencode).arg("--version").output()?.stdout;
    let version = String::from_utf8(version)?;
    let (our_ms, our_mb) = ours.told("dispatch serve");
    let (their_ms, their_mb) = rival.told(&format!("opencode {} serve", version.trim()));
    println!(
        "ratios: start {:.3}, memory {:.3}",
        our_ms / their_ms,
        our_mb / their_mb
    );
    Ok(())
}

fn ask_ours(program: &Path, home: &Path, token: &str, samples: &mut Samples) -> Result<()> {
    let begun = Instant::now();
    let serving = Serving::begin(program, home, token)?;
    Client::new(serving.address, token, "/v1/tasks?limit=1")?.ask()?;
    samples
        .start_ms
        .push(begun.elapsed().as_secs_f64() * 1000.0);
    thread::sleep(SETTLED);
    samples.idle_mb.push(megabytes(serving.child.id())?);
    serving.end()
}

fn ask_theirs(program: &Path, home: &Path, samples: &mut Samples) -> Result<()> {
    // It takes no port 0.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let begun = Instant::now();
    let mut child = Command::new(program)
        .args(["serve", "--hostname", "127.0.0.1", "--port"])
        .arg(address.port().to_string())
        .current_dir(home)
        .env("HOME", home)
        .env("XDG_DATA_HOME", home.join("data"))
        .env("XDG_CONFIG_HOME", home.join("config"))
        .env("XDG_CACHE_HOME", home.join("cache"))
        .env("XDG_STATE_HOME", home.join("state"))
        .env("OPENCODE_DISABLE_AUTOUPDATE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let answered = first_answer(&mut child, address);
    let elapsed = begun.elapsed();
    let measured = answered.and_then(|()| {
        thread::sleep(SETTLED);
        megabytes(child.id())
    });
    child.kill()?;
    child.wait()?;
    samples.start_ms.push(elapsed.as_secs_f64() * 1000.0);
    samples.idle_mb.push(measured?);
    Ok(())
}

fn first_answer(child: &mut Child, address: SocketAddr) -> Result<()> {
    let out = child.stdout.take().context("a pipe")?;
    let mut lines = BufReader::new(out).lines();
    lines
        .find(|line| line.as_ref().is_ok_and(|line| line.contains("listening")))
        .context("opencode does not listen")??;
    Client::new(address, "none", "/session")?.ask()?;
    Ok(())
}

fn megabytes(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kilobytes = line.context("no such line")?.trim();
    Ok(kilobytes.trim_end_matches(" kB").trim().parse::<f64>()? / 1000.0)
}
