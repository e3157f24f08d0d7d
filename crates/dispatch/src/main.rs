//! The hinge: which of the five programs in this one file is meant, and its exit code.
//! Must not decide anything else.
// The task object, as one `json!` in its test, has more members than the default allows.
#![cfg_attr(test, recursion_limit = "256")]

use std::{env, ffi::OsString, panic, process::ExitCode};

mod api;
mod cli;
mod client;
mod forge;
mod http;
mod import;
mod mcp;
mod notify;
mod own_git;
mod plan;
mod project;
mod secrets;
mod settings;

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().collect();
    // A keeper lives as long as its job, a thousand at a time: no argument parser, no runtime.
    match args.get(1).and_then(|word| word.to_str()) {
        Some("job") => dispatch_engine::keeper::main(&args[2..]),
        Some("warden") => dispatch_engine::warden::main(&args[2..]),
        Some("sidecar") => dispatch_sidecar::main(&args[2..], secrets::again),
        Some("agent") => dispatch_agent::main(&args[2..]),
        _ => panic::catch_unwind(|| cli::main(args)).unwrap_or(ExitCode::from(cli::exit::BUG)),
    }
}
