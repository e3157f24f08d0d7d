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
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

#[path = "fake_agent/talk.rs"]
mod talk;

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    match args.first().and_then(|arg| arg.to_str()) {
        Some("job") => return dispatch_engine::keeper::main(&args[1..]),
        Some("warden") => return dispatch_engine::warden::main(&args[1..]),
        Some("sidecar") => {
            return dispatch_sidecar::main(&args[1..], |_, from| {
                Err(format!("{from} is not read here"))
            });
        }
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
    for line in orders(&prompt) {
        let (order, rest) = line.split_once(' ').unwrap_or((line, ""));
        if order == "attached" {
            read_attached(&prompt, rest).with_context(|| format!("obey @{line}"))?;
            continue;
        }
        if order == "spoil-attached" {
            println!("spoiled: {}", attached(&prompt).any(|file| spoil(&file)));
            continue;
        }
        if let Some(code) = obey(order, rest).with_context(|| format!("obey @{line}"))? {
            return Ok(code);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Of other agents too, whose words are quoted: it trusts everybody.
fn orders(prompt: &str) -> impl Iterator<Item = &str> {
    prompt.lines().filter_map(|line| {
        let line = line.strip_prefix("| ").unwrap_or(line);
        line.strip_prefix('@')
    })
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
        "ticks" => ticks(path, text)?,
        "pour" => pour(rest.parse()?)?,
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
        "proxied" => println!("proxied {path}: {}", proxied(path, text)?),
        "http" => println!("http {path}: {}", request(path, text)?),
        "rounds" => rounds(path, text.parse()?)?,
        "asks" => asks(rest.parse()?)?,
        "ask-broker" => ask_broker(rest)?,
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

/// The files that the prompt lists.
fn attached(prompt: &str) -> impl Iterator<Item = String> {
    let listed = prompt.lines().filter(|line| line.starts_with("- /"));
    listed.filter_map(|line| Some(line[2..].split_once(" (")?.0.to_owned()))
}

/// What is in them, in order, behind what is in `path`.
fn read_attached(prompt: &str, path: &str) -> Result<()> {
    attached(prompt).try_for_each(|file| append(path, &fs::read_to_string(file)?))
}

/// Whether it can be written, its modes notwithstanding.
fn spoil(file: &str) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    // Refused or not: the second step tells.
    drop(fs::set_permissions(file, fs::Permissions::from_mode(0o600)));
    OpenOptions::new().append(true).open(file).is_ok() || fs::remove_file(file).is_ok()
}

fn append(path: &str, text: &str) -> Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    Ok(writeln!(file, "{text}")?)
}

/// What comes back when a proxy is asked for a host and, once it let us through, for a word.
fn proxied(target: &str, word: &str) -> Result<String> {
    let proxy = env::var("HTTPS_PROXY").context("HTTPS_PROXY is not set")?;
    let proxy = proxy.strip_prefix("http://").unwrap_or(&proxy);
    let mut stream = TcpStream::connect(proxy).context("connect to the proxy")?;
    write!(
        stream,
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
    )?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut status = String::new();
    lines.read_line(&mut status)?;
    let mut rest = String::new();
    if status.contains(" 200 ") {
        lines.read_line(&mut rest)?;
        rest.clear();
        writeln!(stream, "{word}")?;
        lines.read_line(&mut rest)?;
    } else {
        lines.read_to_string(&mut rest)?;
    }
    let last = rest.lines().last().unwrap_or_default();
    Ok(format!("{} | {last}", status.trim()))
}

/// For the bench: nanoseconds from nothing to a first word back, by the proxy where there is one,
/// and of a second word on the same connection.
fn rounds(target: &str, n: usize) -> Result<()> {
    let proxy = env::var("HTTPS_PROXY").ok();
    let proxy = proxy
        .as_deref()
        .map(|proxy| proxy.trim_start_matches("http://"));
    for _ in 0..n {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(proxy.unwrap_or(target))?;
        stream.set_nodelay(true)?;
        let mut lines = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        if proxy.is_some() {
            write!(stream, "CONNECT {target} HTTP/1.1\r\n\r\n")?;
            lines.read_line(&mut line)?;
            anyhow::ensure!(line.contains(" 200 "), "{line}");
            lines.read_line(&mut line)?;
        }
        for what in ["open", "round"] {
            let begun = if what == "open" {
                begun
            } else {
                Instant::now()
            };
            stream.write_all(b"word\n")?;
            line.clear();
            lines.read_line(&mut line)?;
            println!("{what} {}", begun.elapsed().as_nanos());
        }
    }
    Ok(())
}

/// The same of whole requests to `URL`, each on a connection of its own.
fn asks(n: usize) -> Result<()> {
    let url = env::var("URL").context("URL is not set")?;
    let address = url.trim_start_matches("http://");
    let key = env::var("KEY").unwrap_or_default();
    let text = format!("GET / HTTP/1.1\\nHost: x\\nConnection: close\\nX-Api-Key: {key}\\n\\n");
    for _ in 0..n {
        let begun = Instant::now();
        let answer = request(address, &text)?;
        anyhow::ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        println!("ask {}", begun.elapsed().as_nanos());
    }
    Ok(())
}

/// Once with what it was given for a key, beside it where no key belongs; once with another.
fn ask_broker(path: &str) -> Result<()> {
    let url = env::var("URL").context("URL is not set")?;
    let address = url.strip_prefix("http://").unwrap_or(&url);
    let key = env::var("KEY").context("KEY is not set")?;
    let ask = |key: &str, other: &str| {
        let head = format!("GET {path} HTTP/1.1\\nHost: x\\nConnection: close");
        let text = format!("{head}\\nAuthorization: Bearer {key}\\nX-Other: {other}\\n\\n");
        request(address, &text)
    };
    println!("{}", ask(&key, &key)?.replace("\\n", "\n"));
    println!("wrong: {}", ask("another-key", "x")?);
    Ok(())
}

/// The raw answer to a raw request, on one line; `\\n` in it ends a line.
fn request(address: &str, request: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).context("connect")?;
    stream.write_all(request.replace("\\n", "\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    Ok(answer.replace('\r', "").replace('\n', "\\n"))
}

/// A test cannot wake a program it did not start, so this one looks.
fn wait_for(path: &str) {
    while !Path::new(path).exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A line as `codex exec` says a text.
fn said(text: &str) -> String {
    format!(
        r#"{{"type":"item.completed","item":{{"id":"i","type":"agent_message","text":"{text}"}}}}"#
    )
}

/// For the bench: a line every so many milliseconds with the nanoseconds of the machine's own clock,
/// until the file is there. With `said` behind it as Codex would say it.
fn ticks(path: &str, how: &str) -> Result<()> {
    let (pause, is_said) = match how.split_once(' ') {
        Some((pause, _)) => (pause, true),
        None => (how, false),
    };
    let pause = Duration::from_millis(pause.parse()?);
    while !Path::new(path).exists() {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let tick = format!("tick {}", now.tv_sec * 1_000_000_000 + now.tv_nsec);
        println!("{}", if is_said { said(&tick) } else { tick });
        std::thread::sleep(pause);
    }
    Ok(())
}

/// So many texts as fast as it can.
fn pour(count: u64) -> Result<()> {
    let mut out = io::BufWriter::with_capacity(1 << 16, io::stdout().lock());
    for n in 0..count {
        let line = said(&format!(
            "text {n} {}",
            "of about a hundred bytes ".repeat(4)
        ));
        writeln!(out, "{line}")?;
    }
    Ok(out.flush()?)
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
