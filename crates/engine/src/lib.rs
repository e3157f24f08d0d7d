//! What Dispatch does: the log, the actor, runs, sites, the keeper. It never prints, never reads the
//! environment or HOME, never hears of HTTP, MCP or a terminal (I7). Read in this order.
//!
//! * [`jobdir`] the one mechanism that survives us; [`keeper`] who owns a job; [`sites`] where jobs live

pub mod jobdir;
pub mod keeper;
pub mod sites;
pub mod view;
