//! The tools of the Go dispatcher.
