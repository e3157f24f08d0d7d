//! `dispatch completions`: for the shells that clap knows. Must not need any settings.

use clap::CommandFactory;

use super::{error::Result, exit::Exit, out};

/// Print completions for a shell.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  dispatch completions bash > ~/.local/share/bash-completion/completions/dispatch"
)]
pub(crate) struct Args {
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: &Args) -> Result<Exit> {
    let mut text = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut super::Args::command(),
        "dispatch",
        &mut text,
    );
    out::bytes(&text)?;
    Ok(Exit::Completed)
}
