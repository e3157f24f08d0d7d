//! `dispatch login`: the vendor's own login, run in a home of its own so that the person's is neither
//! read nor written; what it leaves is kept for the tasks of that account.
//! Must not read what a login consists of, and must not need an engine.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Command,
};

use dispatch_core::{
    ask::Permissions,
    config::{AgentProfile, Login},
    drivers::Ask,
    id::{AccountName, AgentName},
};
use dispatch_engine::logins::Account;
use serde::Serialize;

use super::{
    Ctx, agents,
    error::{CliError, Result, chain},
    exit::Exit,
    out,
    style::Colour,
};
use crate::{api::request, settings::Settings};

/// What a login needs of the person's environment: a terminal, a browser, a way to the network. No
/// keys, or a CLI would think that it is logged in.
const PASSED: [&str; 17] = [
    "TERM",
    "COLORTERM",
    "LC_ALL",
    "USER",
    "LOGNAME",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "BROWSER",
    "SSH_CONNECTION",
    "SSH_TTY",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// Log an agent in by its own program, for all tasks of its account.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch login codex\n  dispatch login codex -- --device-auth    # on a machine without a browser\n  dispatch login claude --account work     # for a table with login.account = \"work\"\n  dispatch login --status codex\n\nYour own login (~/.claude, ~/.codex) is not used and stays as it is. A browser that the login opens\nis one without your profile; the address it prints works in yours."
)]
pub(crate) struct Args {
    /// One of `dispatch agents`
    #[arg(required_unless_present = "status")]
    agent: Option<String>,
    /// Another account than the one its table names
    #[arg(long, value_name = "NAME", conflicts_with = "status")]
    account: Option<String>,
    /// Only say who is logged in
    #[arg(long)]
    status: bool,
    /// One JSON array, with --status
    #[arg(long, requires = "status")]
    json: bool,
    /// Further arguments for the login itself
    #[arg(last = true, conflicts_with = "status")]
    args: Vec<String>,
}

/// One agent's login.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) agent: String,
    pub(crate) account: String,
    pub(crate) present: bool,
    pub(crate) path: PathBuf,
}

/// What is known of an agent's login without reading it; `None`: its table has none.
pub(crate) fn row(settings: &Settings, name: &AgentName, agent: &AgentProfile) -> Option<Row> {
    let (account, login) = agent.account(name)?;
    let kept = Account::of(&settings.paths.data, account);
    Some(Row {
        agent: name.to_string(),
        account: account.to_owned(),
        present: kept.holds(login),
        path: kept.store(),
    })
}

pub(crate) fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let settings = &ctx.settings;
    if args.status {
        return status(ctx, args);
    }
    let name = request::agent(&settings.config, args.agent.as_deref())?.agent;
    let agent = &settings.config.agents[&name];
    let Some((account, login)) = agent.account(&name) else {
        let what = format!("log agent {name} in: its table has no login");
        let hint = format!(
            "give it a key in [agents.{name}.env], or say in [agents.{name}.login] how its program \
             logs in and which files it keeps"
        );
        return Err(CliError::usage(what).hint(hint));
    };
    let account = match &args.account {
        Some(other) => {
            let parsed: AccountName = other.parse().map_err(request::BadRequest::from)?;
            parsed.to_string()
        }
        None => account.to_owned(),
    };
    let Some(program) = settings.find(&agent.program) else {
        let what = format!("log agent {name} in: {:?} is not on PATH", agent.program);
        return Err(CliError::usage(what).hint(agents::how_to_get(&agent.program)));
    };
    let kept = Account::of(&settings.paths.data, &account);
    let failed = |error: &dyn std::error::Error| {
        CliError::new(
            Exit::Failed,
            format!("log agent {name} in: {}", chain(error)),
        )
    };
    kept.make().map_err(|error| failed(&error))?;
    let home = fresh_home(&settings.paths.data, &account).map_err(|error| failed(&error))?;
    // The program runs without a fence, so it writes where no job ever could. No account's name
    // begins with a dot.
    let made = Account::of(&settings.paths.data, &format!(".new-{account}"));
    cleared(made.dir()).map_err(|error| failed(&error))?;
    made.make().map_err(|error| failed(&error))?;
    let ended = in_home(settings, agent, &made, login, &program, &home, &args.args);
    let left = made.holds(login);
    let moved = match &ended {
        Ok(None) if left => kept.replace_by(login, &made),
        _ => Ok(()),
    };
    for dir in [home.as_path(), made.dir()] {
        fs::remove_dir_all(dir).map_err(|error| failed(&error))?;
    }
    moved.map_err(|error| failed(&error))?;
    if let Some(why) = ended? {
        let what = format!("log agent {name} in: {} {why}", program.display());
        return Err(CliError::new(Exit::Failed, what));
    }
    if !left {
        let files: Vec<&str> = login.files.iter().map(|file| file.name()).collect();
        let what = format!(
            "log agent {name} in: its program ended well, but left no {} in {}",
            files.join(", "),
            kept.store().display()
        );
        return Err(CliError::new(Exit::Failed, what).hint(ELSEWHERE));
    }
    out::line(&format!(
        "logged in: account {account}, kept in {}",
        kept.store().display()
    ))?;
    let used = settings.config.agents.iter().filter(|(name, agent)| {
        let own = agent.account(name);
        own.is_some_and(|(own, _)| own == account)
    });
    let used: Vec<&str> = used.map(|(name, _)| name.as_str()).collect();
    out::line(&if used.is_empty() {
        format!("no agent uses it yet: set `account = \"{account}\"` in an [agents.*.login]")
    } else {
        format!("tasks of {} use it from their next start", used.join(", "))
    })?;
    Ok(Exit::Completed)
}

/// Where a login may be that is in none of its files.
const ELSEWHERE: &str = "it may be in the system's keychain, which a fenced job cannot reach: use a \
                         key or a long-lived token (`claude setup-token`) in the environment";

fn status(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let settings = &ctx.settings;
    let one = match &args.agent {
        Some(name) => Some(request::agent(&settings.config, Some(name))?),
        None => None,
    };
    let asked = settings.config.agents.iter();
    let asked = asked.filter(|(name, _)| one.as_ref().is_none_or(|one| one.agent == **name));
    let rows: Vec<Row> = asked
        .filter_map(|(name, agent)| row(settings, name, agent))
        .collect();
    if args.json {
        out::json(&rows)?;
        return Ok(Exit::Completed);
    }
    for row in rows {
        let (word, colour) = match row.present {
            true => ("logged in", Colour::Green),
            false => ("no login ", Colour::Yellow),
        };
        out::line(&format!(
            "{:<14} {}  account {:<10} {}",
            row.agent,
            ctx.style.paint(colour, word),
            row.account,
            row.path.display()
        ))?;
    }
    Ok(Exit::Completed)
}

/// Empty, and of a fixed name, so that one that a killed login left is found by the next.
fn fresh_home(data: &Path, account: &str) -> std::io::Result<PathBuf> {
    // No account's name begins with a dot.
    let home = data.join("logins").join(format!(".home-{account}"));
    cleared(&home)?;
    fs::DirBuilder::new().mode(0o700).create(&home)?;
    Ok(home)
}

fn cleared(dir: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// How the login failed, if it did.
fn in_home(
    settings: &Settings,
    agent: &AgentProfile,
    kept: &Account,
    login: &Login,
    program: &Path,
    home: &Path,
    args: &[String],
) -> Result<Option<String>> {
    let failed = |error: &dyn std::error::Error| CliError::failed("keep the login", error);
    kept.link(login, home).map_err(|error| failed(&error))?;
    let home_text = home.to_string_lossy();
    // Where this kind of CLI looks, in the words its driver has for it.
    let opening = agent.driver.driver().open(&Ask {
        prompt: "",
        whole: "",
        cwd: "/",
        folders: &[],
        model: None,
        effort: None,
        profile: None,
        review: None,
        program: &agent.program,
        args: &[],
        home: &home_text,
        resume: None,
        unfenced: true,
        permissions: Permissions::Allow,
        tools: None,
        native: None,
    });
    let mut command = Command::new(program);
    command
        .args(&login.args)
        .args(args)
        .current_dir(home)
        .env_clear()
        .envs(settings.job_env())
        .envs(opening.env)
        .env("HOME", home);
    for name in PASSED {
        if let Some(value) = settings.env.text(name) {
            command.env(name, value);
        }
    }
    if let Some(variable) = &login.variable {
        command.env(variable, kept.store());
    }
    for dir in login
        .files
        .iter()
        .filter_map(|file| file.as_path().parent())
    {
        fs::create_dir_all(home.join(dir)).map_err(|error| failed(&error))?;
    }
    let status = command.status().map_err(|error| failed(&error))?;
    kept.take_back(login, home)
        .map_err(|error| failed(&error))?;
    Ok((!status.success()).then(|| format!("ended with {status}")))
}
