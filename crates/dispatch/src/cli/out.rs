//! Standard output and error, written so that a closed pipe is an ordinary end and not a panic.
//! Must not format anything but JSON.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, Write},
};

use dispatch_core::redact::Redactor;
use serde::Serialize;

use super::error::Result;

pub(crate) fn line(text: &str) -> Result<()> {
    Ok(writeln!(io::stdout().lock(), "{text}")?)
}

pub(crate) fn bytes(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// One object or array on a line of its own.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string(value)?)
}

/// For the person beside whoever reads standard output; an engine's log is made of these. What looks
/// like a token is masked, because an error may quote anything.
pub(crate) fn aside(text: &str) {
    let text = Redactor::shapes().redact(text);
    // With standard error closed there is nobody to tell.
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// A bug of ours is told like any error, and as masked.
pub(crate) fn tell_panics() {
    std::panic::set_hook(Box::new(|bug| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed").to_owned();
        aside(&format!("thread '{name}' {bug}"));
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            aside(&trace.to_string());
        }
    }));
}
