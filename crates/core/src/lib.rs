//! What Dispatch decides, without touching the world: no I/O, no async, no clock (I1).
//! Same input, same output. Read the modules in this order.
//!
//! * [`id`] names; [`task`] what was asked; [`naming`] what its workspace is called; [`outcome`] how a run ends; [`run`] the table of life
//! * [`attach`] files that come with it; [`message`] what is said to a task later; [`ask`] what its agent asks permission for; [`event`] everything that can happen; [`state`] the fold of it;
//!   [`keys`] requests that may come again
//! * [`grant`] what a task's agent may do at our door; [`family`] who asked for whom, and what that leaves;
//!   [`definition`] agents that ours may summon; [`toolset`] which tools it has
//! * [`gate`] limits on starts; [`ledger`] what each pool has had; [`schedule`] who may start;
//!   [`spending`] sums of it
//! * [`verdict`] how a run ended; [`checks`] what must pass
//! * [`job`] what a site can start; [`update`] what an agent says; [`drivers`] how to speak to one
//! * [`notify`] who is told of what
//! * [`secret`] a value that is never printed; [`redact`] what masks it wherever it turns up;
//!   [`causes`] an error as it is read; [`hex`] bytes as digits
//! * [`cage`] a job's argv inside the OS sandbox, [`seatbelt`] on macOS; [`container`] in an image;
//!   [`carried`] what a repository brings for agents; [`cargo_config`] what a job gets of the person's
//! * [`prompt`] what an agent is given; [`review`] what a reviewer answers
//! * [`limits`] every limit; [`config`] the settings
//! * [`models`] keys and models of the native agent; [`native`] the lines it says and hears;
//!   [`rules`] what it may do without asking, [`address`] of the web; [`chain`] whom a task of it asks; [`web`] what it may
//!   look up; [`servers`] whose tools it may use; [`lent`] the secrets of these
//! * [`network`] which hosts a list lets through; [`sidecar`] what a run's sidecar is told and says;
//!   [`server`] where the engine listens

pub mod address;
pub mod ask;
pub mod attach;
pub mod cage;
pub mod cargo_config;
pub mod carried;
pub mod causes;
pub mod chain;
pub mod checks;
pub mod config;
pub mod container;
pub mod definition;
pub mod drivers;
pub mod event;
pub mod family;
pub mod gate;
pub mod grant;
pub mod hex;
pub mod id;
pub mod job;
pub mod keyring;
pub mod keys;
pub mod ledger;
pub mod lent;
pub mod letter;
pub mod limits;
pub mod message;
pub mod models;
pub mod naming;
pub mod native;
pub mod network;
pub mod notify;
pub mod outcome;
pub mod project;
pub mod prompt;
pub mod redact;
pub mod review;
pub mod rules;
pub mod run;
pub mod schedule;
pub mod seatbelt;
pub mod secret;
pub mod server;
pub mod servers;
pub mod sidecar;
pub mod spending;
pub mod state;
pub mod task;
pub mod toolset;
pub mod update;
pub mod verdict;
pub mod web;

/// Unix time in milliseconds. Core never reads a clock; the caller says what time it is.
pub type Millis = u64;
