//! Runs the fuzz targets for a time, or one input again. Failing inputs are written to a folder, and
//! their paths printed. `cargo xtask fuzz` is the door to it.
//! Must not go on with a target after a find: the second is most often the first again.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it talks to the terminal"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use dispatch_test_programs::fuzz::{Find, Fuzzer, Target, run, shrunk, targets};

/// An input that takes longer than this hangs its parser; debug builds on a busy machine included.
const INPUT_TIME_MAX: Duration = Duration::from_secs(20);
const FOUND: u8 = 1;
const HUNG: i32 = 3;

struct Args {
    seconds: u64,
    seed: u64,
    target: Option<String>,
    replay: Option<PathBuf>,
    /// Where finds are written.
    out: PathBuf,
    /// Every input is written here before it runs: for what kills the process.
    trail: Option<PathBuf>,
}

/// What runs now, for the watch.
type Running = Arc<Mutex<Option<(Instant, &'static str, Vec<u8>)>>>;

fn main() -> ExitCode {
    match start() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(FOUND),
        Err(error) => {
            eprintln!("fuzz: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn start() -> Result<usize> {
    let args = args()?;
    let mut chosen = targets();
    if let Some(name) = &args.target {
        let names: Vec<&str> = chosen.iter().map(|target| target.name).collect();
        let names = names.join(", ");
        chosen.retain(|target| target.name == name);
        ensure!(
            !chosen.is_empty(),
            "unknown target {name}; there are {names}"
        );
    }
    if let Some(file) = &args.replay {
        return replay(&chosen, file);
    }
    let running: Running = Arc::default();
    let watched = Arc::clone(&running);
    let out = args.out.clone();
    std::thread::spawn(move || watch(&watched, &out));
    println!("seed {}", args.seed);
    let span = Duration::from_secs(args.seconds) / u32::try_from(chosen.len()).unwrap_or(1);
    let (mut finds, mut executions) = (0, 0);
    for target in chosen {
        let begun = Instant::now();
        let mut fuzzer = Fuzzer::new(target, args.seed);
        let mut found = None;
        while found.is_none() && begun.elapsed() < span {
            let input = fuzzer.next_input();
            if let Some(trail) = &args.trail {
                fs::write(trail, &input).context("write the trail")?;
            }
            set(&running, Some((Instant::now(), target.name, input.clone())));
            found = fuzzer.run(input).err();
        }
        set(&running, None);
        executions += fuzzer.executions;
        println!(
            "{:<12} {:>8} executions  {:>5} shapes  {}",
            target.name,
            fuzzer.executions,
            fuzzer.shapes(),
            if found.is_some() { "FOUND" } else { "no find" }
        );
        if let Some(find) = found {
            finds += 1;
            tell(&target, find, &args.out)?;
        }
    }
    println!(
        "{executions} executions, {finds} finds (seed {})",
        args.seed
    );
    Ok(finds)
}

fn args() -> Result<Args> {
    let mut args = Args {
        seconds: 60,
        seed: u64::from(std::process::id()),
        target: None,
        replay: None,
        out: std::env::temp_dir().join("dispatch-fuzz"),
        trail: None,
    };
    let mut given = std::env::args().skip(1);
    while let Some(flag) = given.next() {
        let value = given
            .next()
            .with_context(|| format!("{flag} wants a value"))?;
        match flag.as_str() {
            "--seconds" => args.seconds = value.parse().context("--seconds wants a number")?,
            "--seed" => args.seed = value.parse().context("--seed wants a number")?,
            "--target" => args.target = Some(value),
            "--replay" => args.replay = Some(value.into()),
            "--out" => args.out = value.into(),
            "--trail" => args.trail = Some(value.into()),
            other => bail!(
                "unknown flag {other}; there are --seconds, --seed, --target, --replay, --out"
            ),
        }
    }
    Ok(args)
}

fn set(running: &Running, now: Option<(Instant, &'static str, Vec<u8>)>) {
    *running.lock().unwrap_or_else(PoisonError::into_inner) = now;
}

/// Ends the process when one input takes for ever; the input is kept first.
fn watch(running: &Running, out: &Path) {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let held = running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((begun, target, input)) = held.as_ref() else {
            continue;
        };
        if begun.elapsed() > INPUT_TIME_MAX {
            match keep(target, input, out) {
                Ok(path) => eprintln!("{target}: an input hangs: {}", path.display()),
                Err(error) => eprintln!("{target}: an input hangs, and is lost: {error:#}"),
            }
            std::process::exit(HUNG);
        }
    }
}

fn tell(target: &Target, find: Find, out: &Path) -> Result<()> {
    // The first panic has said where it was; the many tries that follow are noise.
    std::panic::set_hook(Box::new(|_| {}));
    let small = shrunk(target, find);
    drop(std::panic::take_hook());
    let path = keep(target.name, &small.input, out)?;
    println!("  property: {}", target.property);
    println!("  {}", small.what.chars().take(2000).collect::<String>());
    println!(
        "  {} bytes; again with: cargo xtask fuzz --target {} --replay {}",
        small.input.len(),
        target.name,
        path.display()
    );
    Ok(())
}

/// Writes an input to a file whose name tells its target.
fn keep(target: &str, input: &[u8], out: &Path) -> Result<PathBuf> {
    fs::create_dir_all(out).context("make the folder for finds")?;
    let sum = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let path = out.join(format!("{target}.{sum:016x}"));
    fs::write(&path, input).context("write the failing input")?;
    Ok(path)
}

fn replay(chosen: &[Target], file: &Path) -> Result<usize> {
    let input = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let name = file.file_name().map(|name| name.to_string_lossy());
    let of_file = |target: &&Target| {
        let name = name.as_deref().and_then(|name| name.split_once('.'));
        name.is_some_and(|(name, _)| name == target.name)
    };
    let target = match chosen {
        [one] => one,
        all => all
            .iter()
            .find(of_file)
            .context("name the target of this input: --target T")?,
    };
    match run(target, &input) {
        Ok(_) => {
            println!("{}: holds", target.name);
            Ok(0)
        }
        Err(what) => {
            println!("{}: {}\n  property: {}", target.name, what, target.property);
            Ok(1)
        }
    }
}
