//! MCP: our verbs as tools and our tasks as resources, for agents and editors, in both generations of
//! the protocol and over every transport from one table.
//! Must not decide anything about tasks: a tool is a request to the same routes that every other client
//! uses, with the rights of whoever calls.

pub(crate) mod door;
pub(crate) mod http;
mod needs;
mod own;
mod schema;
pub(crate) mod server;
mod table;
mod tasks;
mod watch;
