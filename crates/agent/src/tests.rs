//! The whole agent against a provider of ours: turns, tools, crashes, stops, fail-over. Tests with
//! `row_` in their name hold a row of the list of what must be better than the system before.

mod attach;
mod bed;
mod compact;
mod crash;
mod failover;
mod outside;
mod stop;
mod talk;
mod work;
