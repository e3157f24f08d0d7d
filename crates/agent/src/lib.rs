//! What works: guests of our own, run as jobs like any other, without a privilege (I8).
//! Must not know the engine: what it hears and says are lines of [`dispatch_core::native`].
//!
//! * [`script`] follow a script: the words of the demo's agent
//! * [`model`] ask a model; [`keys`] with which key; [`fallback`] what comes after a failure

mod conversation;
mod fallback;
mod inbox;
mod keys;
mod model;
#[cfg(test)]
mod provider;
#[cfg(test)]
mod random;
mod record;
pub mod script;
mod tools;

use std::{ffi::OsString, io, process::ExitCode};

/// `dispatch agent`: the arguments behind it.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    match args.first().and_then(|arg| arg.to_str()) {
        Some("--scripted") => script::main(&mut io::stdin().lock(), &mut io::stdout().lock()),
        _ => script::usage(&mut io::stderr().lock()),
    }
}
