//! What works: guests of our own, run as jobs like any other, without a privilege (I8).
//! Must not know the engine: what it hears and says are lines of [`dispatch_core::native`].
//!
//! * `agent` from its opening to its last word; `turn` one answer; `step` one question
//!   to a model; `setback` when that fails, `compact` when it is too long; `calls` what the answer
//!   asks for
//! * `record` what it says, durable; `inbox` what it hears; `conversation` the fold of the
//!   record; `log` both together
//! * `model` ask a model; `keys` with which key; `fallback` what comes after a failure
//! * `net` the ways out; `tools` what a model may do; `system` what it is told of itself, `around`
//!   of where it works; `files` what it is handed
//! * `script` follow a script: the words of the demo's agent

mod agent;
mod around;
mod calls;
mod clock;
mod compact;
mod conversation;
mod fallback;
mod files;
mod inbox;
mod keys;
mod log;
mod model;
mod net;
#[cfg(test)]
mod provider;
#[cfg(test)]
mod random;
mod record;
pub mod script;
mod setback;
mod step;
mod system;
#[cfg(test)]
mod tests;
mod tools;
mod turn;

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use clock::Clock;

/// Threads that run tasks; work on files has others. A model's stream goes on while a tool computes.
const WORKERS: usize = 2;

/// `dispatch agent`: the arguments behind it.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    match args.first().and_then(|arg| arg.to_str()) {
        Some("--scripted") => script::main(&mut io::stdin().lock(), &mut io::stdout().lock()),
        None => native(),
        Some(_) => script::usage(&mut io::stderr().lock()),
    }
}

/// Commands of a model run as the same user. Without this they could open our own input and output by
/// `/proc`: answer what a person is asked, and write into the record.
#[cfg(target_os = "linux")]
fn shut_proc() -> io::Result<()> {
    let behavior = rustix::process::DumpableBehavior::NotDumpable;
    Ok(rustix::process::set_dumpable_behavior(behavior)?)
}

#[cfg(not(target_os = "linux"))]
fn shut_proc() -> io::Result<()> {
    Ok(())
}

fn native() -> ExitCode {
    if let Err(error) = shut_proc() {
        return match writeln!(io::stderr().lock(), "agent: close /proc: {error}") {
            Ok(()) | Err(_) => ExitCode::from(2),
        };
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(agent::run(Clock::default(), io::stdin(), io::stdout()));
            // The thread that reads standard input may wait there for ever.
            runtime.shutdown_background();
            ended.map_err(|error| error.to_string())
        }
        Err(error) => Err(format!("start: {error}")),
    };
    match ended {
        Ok(code) => code,
        Err(why) => match writeln!(io::stderr().lock(), "agent: {why}") {
            Ok(()) | Err(_) => ExitCode::from(2),
        },
    }
}
