//! A scripted model server: speaks the wire formats that coding agents speak and answers each
//! request with the next step of a script. It must never reach the network beyond its own listener
//! on 127.0.0.1, and never write a request's headers anywhere.

mod ask;
mod log;
mod media;
mod reply;
mod script;
mod server;
mod tools;
mod wire;

pub use log::Log;
pub use script::Script;
pub use server::Server;
