//! What works: guests of our own, run as jobs like any other, without a privilege (I8).
//! For now the scripted one, which does the demo's work; the one with a model comes beside it.
//!
//! * [`script`] follow a script: the words of the demo's agent

pub mod script;

use std::{ffi::OsString, io, process::ExitCode};

/// `dispatch agent`: the arguments behind it.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    match args.first().and_then(|arg| arg.to_str()) {
        Some("--scripted") => script::main(&mut io::stdin().lock(), &mut io::stdout().lock()),
        _ => script::usage(&mut io::stderr().lock()),
    }
}
