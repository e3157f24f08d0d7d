//! The program `fake-model`: reads its arguments, prints where it listens, serves until its standard
//! input ends. Everything else is in the library; it must not answer requests itself.

use anyhow::{Context as _, Result, bail};
use dispatch_test_programs::fake_model::{Log, Server};
use std::{path::PathBuf, process::ExitCode, sync::Arc};
use tokio::net::TcpListener;

const USAGE: &str = "usage: fake-model [--script FILE] [--scripts DIR] [--log FILE|-]";

#[derive(Debug, Default)]
struct Options {
    script: Option<PathBuf>,
    scripts: Option<PathBuf>,
    log: Option<PathBuf>,
}

fn options(args: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Options> {
    let mut options = Options::default();
    let mut args = args.into_iter();
    while let Some(flag) = args.next() {
        let place = match flag.to_str() {
            Some("--script") => &mut options.script,
            Some("--scripts") => &mut options.scripts,
            Some("--log") => &mut options.log,
            _ => bail!("unknown argument {flag:?}; {USAGE}"),
        };
        let value = args
            .next()
            .with_context(|| format!("{flag:?} needs a value; {USAGE}"))?;
        *place = Some(value.into());
    }
    Ok(options)
}

#[expect(
    clippy::print_stdout,
    reason = "the line on stdout is how a test learns the port"
)]
async fn serve() -> Result<()> {
    let options = options(std::env::args_os().skip(1))?;
    let log = Log::open(options.log.as_deref())?;
    let server = Server::new(options.script.as_deref(), options.scripts, log).context(USAGE)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!(r#"{{"url":"http://{}"}}"#, listener.local_addr()?);
    tokio::select! {
        served = Arc::new(server).serve(listener) => served,
        ended = parent_gone() => ended,
    }
}

/// Ends when the standard input does: a test that dies takes its server along. A thread of its own
/// reads, since the runtime would wait for one of its own on every other way out.
async fn parent_gone() -> Result<()> {
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let read = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        drop(ended.send(read));
    });
    end.await??;
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
#[expect(
    clippy::print_stderr,
    reason = "a program says on stderr why it failed"
)]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fake-model: {error:#}");
            ExitCode::from(2)
        }
    }
}
