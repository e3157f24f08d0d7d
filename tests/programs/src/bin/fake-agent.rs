//! An agent that does what its prompt says, nasty things included: each line that starts with `@` is
//! an order. `fake-agent job DIR` is a keeper, so that tests need no other program.
//! Must not be shipped, and must not need the network.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an agent speaks by printing"
)]

use std::{
    env,
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

#[path = "fake_agent/talk.rs"]
mod talk;

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    match args.first().and_then(|arg| arg.to_str()) {
        Some("job") => return dispatch_engine::keeper::main(&args[1..]),
        Some("warden") => return dispatch_engine::warden::main(&args[1..]),
        Some("--grandchild") => return grandchild(&args[1..]),
        _ => {}
    }
    // Spoken to like Claude Code, it answers like Claude Code.
    let followed = if args.iter().any(|arg| arg == "--input-format") {
        talk::follow()
    } else {
        follow()
    };
    match followed {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fake-agent: {error:#}");
            ExitCode::from(99)
        }
    }
}

/// In a session of its own when told so, it holds whatever it inherited until it is killed.
fn grandchild(args: &[OsString]) -> ExitCode {
    let Some(pid_file) = args.first() else {
        return ExitCode::from(98);
    };
    if args.get(1).is_some_and(|arg| arg == "setsid") && rustix::process::setsid().is_err() {
        return ExitCode::from(97);
    }
    if fs::write(pid_file, std::process::id().to_string()).is_err() {
        return ExitCode::from(96);
    }
    hang()
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

fn follow() -> Result<ExitCode> {
    let mut prompt = String::new();
    io::stdin()
        .read_to_string(&mut prompt)
        .context("read the prompt")?;
    for line in prompt.lines().filter_map(|line| line.strip_prefix('@')) {
        let (order, rest) = line.split_once(' ').unwrap_or((line, ""));
        if let Some(code) = obey(order, rest).with_context(|| format!("obey @{line}"))? {
            return Ok(code);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn obey(order: &str, rest: &str) -> Result<Option<ExitCode>> {
    let (path, text) = rest.split_once(' ').unwrap_or((rest, ""));
    match order {
        "say" => println!("{rest}"),
        "err" => eprintln!("{rest}"),
        "exit" => return Ok(Some(ExitCode::from(rest.parse::<u8>()?))),
        "write" => {
            if let Some(parent) = Path::new(path).parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, format!("{}\n", text.replace("\\n", "\n")))?;
        }
        "append" => append(path, text)?,
        "rm" if Path::new(path).is_dir() => fs::remove_dir_all(path)?,
        "rm" => fs::remove_file(path)?,
        "await" => wait_for(path),
        "hang" | "park" => hang(),
        "now" => {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
            println!("{}", since.as_nanos());
        }
        "ignore-term" => ignore_term()?,
        "suicide" => {
            rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            )?;
            hang();
        }
        "flood" => flood(rest.parse()?)?,
        "lines" => {
            for n in 0..rest.parse::<u64>()? {
                println!("line {n}");
            }
        }
        "garbage" => io::stdout().write_all(&[0xff, 0xfe, b'x', 0, 0xc3, b'\n'])?,
        "long-line" => {
            let n = rest.parse()?;
            io::stdout().write_all(&vec![b'L'; n])?;
            println!();
        }
        "close-output" => {
            let null = OpenOptions::new().write(true).open("/dev/null")?;
            rustix::stdio::dup2_stdout(&null)?;
            rustix::stdio::dup2_stderr(&null)?;
        }
        "grandchild" => {
            let mut child = Command::new(env::current_exe()?);
            child
                .args(["--grandchild", path, text])
                .stdin(Stdio::null())
                .spawn()?;
            wait_for(path);
        }
        "truncate-output" => {
            // From inside, through the name of our own descriptor.
            let opened = OpenOptions::new()
                .write(true)
                .truncate(true)
                .open("/proc/self/fd/1");
            println!("truncated: {}", opened.is_ok());
        }
        "descriptors" => {
            let mut open: Vec<String> = fs::read_dir("/proc/self/fd")?
                .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
                .filter(|fd| {
                    fs::read_link(format!("/proc/self/fd/{fd}"))
                        .is_ok_and(|to| !to.starts_with("/proc"))
                })
                .collect();
            open.sort();
            println!("descriptors: {}", open.join(" "));
        }
        "escape" => dispatch_test_programs::escape::attempt(rest)?,
        "fill" => fs::write(path, vec![1; text.parse()?])?,
        "eat" => {
            let bytes = vec![1_u8; rest.parse()?];
            println!("ate {}", bytes.iter().map(|b| u64::from(*b)).sum::<u64>());
            std::mem::forget(bytes);
        }
        "env" => println!("{rest}={}", env::var(rest).unwrap_or_default()),
        "environment" => {
            let mut names: Vec<String> = env::vars().map(|(name, _)| name).collect();
            names.sort();
            println!("environment: {}", names.join(" "));
        }
        "git" => {
            let status = Command::new("git")
                .args(rest.split(' '))
                .stdin(Stdio::null())
                .status()?;
            if !status.success() {
                bail!("git {rest}: {status}");
            }
        }
        // A script of the test's, for what no order here is nasty enough.
        "sh" => {
            let status = Command::new("/bin/sh")
                .args(rest.split(' '))
                .stdin(Stdio::null())
                .status()?;
            if !status.success() {
                bail!("sh {rest}: {status}");
            }
        }
        other => bail!("unknown order {other}"),
    }
    io::stdout().flush()?;
    Ok(None)
}

fn append(path: &str, text: &str) -> Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    Ok(writeln!(file, "{text}")?)
}

/// A test cannot wake a program it did not start, so this one looks.
fn wait_for(path: &str) {
    while !Path::new(path).exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn flood(bytes: u64) -> Result<()> {
    let block = [b'f'; 1 << 16];
    let mut out = io::stdout().lock();
    let mut left = bytes;
    while left > 0 {
        let n = left.min(block.len() as u64);
        out.write_all(&block[..usize::try_from(n)?])?;
        left -= n;
    }
    Ok(())
}

/// A handler that does nothing, which is how a program ignores it without unsafe code.
fn ignore_term() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let guard = runtime.enter();
    let term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    drop(guard);
    // Both must live as long as the process.
    std::mem::forget((runtime, term));
    Ok(())
}
