//! The project's chores: `cargo xtask test | demo | crash | fuzz | bench`.
//! Must not be needed by a user of Dispatch, and must not install anything outside the target
//! folder but podman, from the system's own packages, where it may.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "chores talk to the terminal"
)]

mod bench;
mod build;
mod crash;
mod demo;
mod fuzz;
mod test;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo xtask demo              the main job on a small project, offline, with recorded model answers
cargo xtask test              everything CI checks
cargo xtask crash [--count N] [--seed S]
                              kill the engine N times at random instants, check that nothing is lost
cargo xtask fuzz [--seconds N] [--target T] [--seed S] [--replay FILE]
                              odd inputs for every parser of what agents, git and people write
cargo xtask bench             print the figures of the README";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["demo"] => demo::run(),
        ["test"] => test::run(),
        ["bench"] => bench::run(),
        ["crash", rest @ ..] => crash::run(rest),
        ["fuzz", rest @ ..] => fuzz::run(rest),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        other => bail!("unknown chore {}\n{USAGE}", other.join(" ")),
    }
}
