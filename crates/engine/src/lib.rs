//! Table of contents.

pub mod files;
pub mod git;
pub mod mirror;
pub mod snapshot;
pub mod vault;
pub mod workspace;

#[cfg(test)]
mod testing;
