//! `dispatch agent` as a program of its own, for tests that end it in the middle of everything.
//! Must not differ from it.

use std::{env, ffi::OsString, process::ExitCode};

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    dispatch_agent::main(&args)
}
