//! The private parsers, for `tests/programs` to fuzz: text in, plain data out.
//! Must not be used by the product, and must not hold logic of its own.

use std::{io, path::PathBuf};

use dispatch_core::job::ExitReport;

use crate::{
    git::RefName, jobdir, jobdir::Group, keeper, lines::Lines, mirror, snapshot, vault,
    vault::DiffStat,
};

/// Text, offset behind it and whether it was cut, of each line.
#[must_use]
pub fn lines(bytes_max: usize, pieces: &[&[u8]]) -> Vec<(String, u64, bool)> {
    let mut lines = Lines::new(bytes_max);
    let mut all = Vec::new();
    for piece in pieces {
        all.extend(lines.push(piece));
    }
    all.extend(lines.finish());
    all.into_iter().map(|l| (l.text, l.end, l.cut)).collect()
}

/// Upstream's HEAD commit, its branch, and whether there is any commit.
#[must_use]
pub fn ls_remote(text: &str) -> (Option<String>, Option<String>, bool) {
    let (head, any) = mirror::parse_ls_remote(text);
    let text = |name: &dyn std::fmt::Display| name.to_string();
    (
        head.commit.as_ref().map(|c| text(c)),
        head.branch.as_ref().map(|b| text(b)),
        any,
    )
}

/// The folder a mirror of this upstream has.
#[must_use]
pub fn mirror_key(upstream: &str) -> String {
    mirror::key_of(upstream)
}

#[must_use]
pub fn numstat(stdout: &[u8]) -> DiffStat {
    vault::parse_numstat(stdout)
}

#[must_use]
pub fn worktree_on(stdout: &[u8], branch: &RefName) -> Option<PathBuf> {
    vault::worktree_on(stdout, branch)
}

/// Whether the rules of a root `.gitignore` ignore a file.
#[must_use]
pub fn ignores(rules: &[u8], file: &[u8]) -> bool {
    snapshot::root_rules_ignore(rules, file)
}

/// # Errors
/// When it is no exit of ours.
pub fn exit_file(bytes: &[u8]) -> io::Result<ExitReport> {
    jobdir::small_json(bytes)
}

/// # Errors
/// When it is no group of ours.
pub fn group_file(bytes: &[u8]) -> io::Result<Group> {
    jobdir::small_json(bytes)
}

/// What is left to see of an output that comes in these pieces.
#[must_use]
pub fn masked(secrets: &[&str], pieces: &[&[u8]]) -> Vec<u8> {
    keeper::masked(secrets, pieces)
}

/// What a keeper would obey, in words, and whether it would cut the sender off.
#[must_use]
pub fn orders(pieces: &[&[u8]]) -> (Vec<String>, bool) {
    keeper::orders(pieces)
}
