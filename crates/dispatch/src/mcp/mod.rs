//! MCP: our verbs as tools and our tasks as resources, for agents and editors, in both generations of
//! the protocol and over every transport from one table.
//! Must not decide anything about tasks: a tool is a request to the same routes that every other client
//! uses, with the rights of whoever calls.

mod agentic;
mod complete;
#[cfg(test)]
mod conformance;
pub(crate) mod door;
mod family;
mod find;
#[cfg(test)]
mod fixtures;
pub(crate) mod http;
mod letters;
mod logs;
#[cfg(test)]
mod manual;
mod needs;
mod notify;
mod own;
mod prompts;
mod resources;
mod schema;
pub(crate) mod server;
mod table;
mod tasks;
mod watch;
