//! The agent alone, without the rest of `dispatch` around it: for measuring, and for speaking to it by
//! hand (its first line opens it; see `dispatch_core::native::Opening`).
//! Must not do anything of its own.

use std::{env, ffi::OsString, process::ExitCode};

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    dispatch_agent::main(&args)
}
