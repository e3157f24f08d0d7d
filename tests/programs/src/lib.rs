//! What the test programs share, so that their binaries stay thin: the parts of `fake-model`, what
//! the fake agent tries to get out of a fence, and the fuzzer with its targets, and a podman to test with.
//! Nothing of the product may depend on this crate.

pub mod escape;
pub mod fake_model;
pub mod fuzz;
pub mod podman;

/// Where bubblewrap lies on PATH. Whoever skips something without it says so aloud.
#[must_use]
pub fn bubblewrap() -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut found = std::env::split_paths(&path).map(|dir| dir.join("bwrap"));
    found.find(|file| file.is_file())
}
