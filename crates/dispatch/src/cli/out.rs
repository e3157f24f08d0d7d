//! Standard output and error, written so that a closed pipe is an ordinary end and not a panic.
//! Must not format anything but JSON.

use std::io::{self, Write};

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

/// For the person beside whoever reads standard output.
pub(crate) fn aside(text: &str) {
    // With standard error closed there is nobody to tell.
    drop(writeln!(io::stderr().lock(), "{text}"));
}
