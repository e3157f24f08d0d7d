//! Table of contents.

pub mod files;
pub mod git;
