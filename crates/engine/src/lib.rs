//! What Dispatch does: the log, the actor, runs, sites, the keeper. It never prints, never reads the
//! environment or HOME, never hears of HTTP, MCP or a terminal (I7). Read in this order.
//!
//! * [`engine`] commands in, events out; `run` one run, top to bottom; `verbs` what is done to a
//!   finished one
//! * [`store`] the log; [`events`] the log as a stream, of whose end and of what is open `tail` knows;
//!   `speech` what an agent says before it is whole; [`reader`] the log without an engine;
//!   [`lock`] who is the engine; [`view`] what a reader sees; [`reads`] pages and pools
//! * [`clock`] what time it is; [`random`] bytes nobody guesses; [`pressure`] what the machine has left
//! * [`warden`] who locks a fence from inside; `fence` what is where on this host, for `core::cage`;
//!   [`containers`] which engines answer, for `core::container`; [`logins`] what of an account its
//!   tasks share
//! * [`door`] what a run's agent finds of our door
//! * [`doorkeys`] what a run's agent shows at our door
//! * `sidecar` what a run's proxy and broker are asked to be, and what they say
//! * [`jobdir`] the one mechanism that survives us; [`keeper`] who owns a job; [`sites`] where jobs
//!   live
//! * [`git`] how git is called; [`mirror`] what upstream has; [`vault`] what we keep; [`workspace`]
//!   checkouts; [`snapshot`] their content, kept; `trees` all of it for one task; [`prompts`] what
//!   an agent is given, [`attachments`] the files that come with it; [`letters`] what agents leave
//!   for each other

#[cfg(windows)]
compile_error!(
    "Dispatch runs on Linux; Windows has no process groups, flock or unix sockets as it needs them"
);

pub mod attachments;
pub mod clock;
pub mod containers;
mod definitions;
pub mod door;
pub mod doorkeys;
pub mod engine;
pub mod events;
pub mod fence;
mod files;
pub mod folder;
#[doc(hidden)]
pub mod fuzzing;
pub mod git;
pub mod jobdir;
pub mod keeper;
pub mod letters;
mod lines;
pub mod lock;
pub mod logins;
mod memo;
pub mod mirror;
mod native;
pub mod pressure;
pub mod prompts;
pub mod random;
pub mod reader;
pub mod reads;
mod run;
mod sidecar;
pub mod sites;
pub mod snapshot;
mod speech;
pub mod store;
mod tail;
#[cfg(test)]
mod testing;
pub mod trees;
pub mod vault;
mod verbs;
pub mod view;
pub mod warden;
pub mod workspace;
