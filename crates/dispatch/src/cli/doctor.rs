//! `dispatch doctor`: what is there, what is missing and how to get it.
//! Must not start an engine, and must not change anything: the copy of itself that it lays down in
//! the data directory, to try the cage out, is the one an engine would make.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use dispatch_core::{
    cage,
    config::{AgentProfile, EnvValue, Source},
    container::{Image, Runtime},
    id::{AgentName, HookName},
    notify::{Hook, Way},
    task::Network,
};
use dispatch_engine::{
    containers::Containers, fence::Fences, git::VERSION_MIN, sites::local::Keeper,
};
use serde::Serialize;

use super::{Ctx, agents::how_to_get, error::Result, exit::Exit, login, out, style::Colour};
use crate::{
    api::{Health, time},
    client::start,
    notify::cursor,
    secrets,
    settings::Settings,
};

/// Look for what is missing, and say how to get it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch doctor\n  dispatch doctor --json\n\nExit code 1 when something that is needed is missing."
)]
pub(crate) struct Args {
    /// One JSON array of what, state, found, how
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Condition {
    Ok,
    /// Good to know.
    Info,
    /// Needed.
    Missing,
}

#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    state: Condition,
    found: String,
    how: String,
}

fn finding(
    what: impl Into<String>,
    state: Condition,
    found: impl Into<String>,
    how: &str,
) -> Finding {
    Finding {
        what: what.into(),
        state,
        found: found.into(),
        how: how.into(),
    }
}

pub(crate) async fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let settings = &ctx.settings;
    let mut findings = vec![git(settings)];
    findings.extend(agents(settings));
    findings.push(disk(settings));
    findings.extend(sandbox(settings));
    findings.extend(hooks(settings));
    findings.extend(containers(settings));
    findings.push(engine(settings).await);
    if args.json {
        out::json(&findings)?;
    } else {
        for one in &findings {
            let (mark, colour) = match one.state {
                Condition::Ok => ("ok     ", Colour::Green),
                Condition::Info => ("info   ", Colour::Yellow),
                Condition::Missing => ("missing", Colour::Red),
            };
            out::line(&format!(
                "{} {:<16} {}",
                ctx.style.paint(colour, mark),
                one.what,
                one.found
            ))?;
            if one.state != Condition::Ok && !one.how.is_empty() {
                out::line(&format!("        {:<16} {}", "", one.how))?;
            }
        }
    }
    let missing = findings.iter().any(|one| one.state == Condition::Missing);
    Ok(if missing {
        Exit::Failed
    } else {
        Exit::Completed
    })
}

/// The first two numbers of `git version 2.47.3 (..)`.
fn git_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().nth(2)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn git(settings: &Settings) -> Finding {
    let (major, minor) = VERSION_MIN;
    let how = format!(
        "install git {major}.{minor} or newer (apt install git, dnf install git, brew install git)"
    );
    let Some(git) = settings.find("git") else {
        return finding("git", Condition::Missing, "not found", &how);
    };
    let output = Command::new(git)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let text = text.unwrap_or_default();
    match git_version(&text) {
        Some(version) if version >= VERSION_MIN => finding("git", Condition::Ok, text, ""),
        _ => finding("git", Condition::Missing, text, &how),
    }
}

fn agents(settings: &Settings) -> Vec<Finding> {
    let mut out = Vec::new();
    let mut any = false;
    for (name, agent) in settings.config.agents_with_keys() {
        let what = format!("agent {name}");
        let Some(path) = settings.find(&agent.program) else {
            let found = format!("{} not found", agent.program);
            out.push(finding(
                what,
                Condition::Info,
                found,
                how_to_get(&agent.program),
            ));
            continue;
        };
        any = true;
        let (row, own) = login_row(settings, name, &agent);
        let logged_in = row.as_ref().is_some_and(|row| row.state == Condition::Ok);
        let (mut have, mut missing, mut takes) = (logged_in, Vec::new(), Vec::new());
        for (variable, value) in &agent.env {
            let EnvValue::Taken { source, optional } = value else {
                continue;
            };
            // A command is not run: it may ask somebody to touch a key.
            let (there, from) = match source {
                Source::Variable(name) => (settings.env.text(name).is_some(), name.clone()),
                Source::File(path) => (
                    secrets::from_file(variable, path).is_ok(),
                    path.display().to_string(),
                ),
                Source::Command(argv) => {
                    let program = argv.first().cloned().unwrap_or_default();
                    (settings.find(&program).is_some(), program)
                }
            };
            have |= there;
            if !there && !optional {
                missing.push(from.clone());
            }
            takes.push(from);
        }
        let found = path.display().to_string();
        out.push(if !missing.is_empty() {
            let how = format!("set {}", missing.join(", "));
            finding(
                what,
                Condition::Info,
                format!("{found}, without a login"),
                &how,
            )
        } else if !have && !takes.is_empty() {
            let or = match &row {
                Some(_) => format!("`dispatch login {name}`, or set one of "),
                None => "set one of ".into(),
            };
            let how = format!(
                "{own}tasks have a home of their own; {or}{}",
                takes.join(", ")
            );
            finding(
                what,
                Condition::Info,
                format!("{found}, neither a login nor a key"),
                &how,
            )
        } else {
            finding(what, Condition::Ok, found, "")
        });
        out.extend(row);
    }
    if !any {
        let how = "install one of the above, or configure an agent of your own";
        out.push(finding(
            "agents",
            Condition::Missing,
            "no agent's program is there",
            how,
        ));
    }
    out
}

/// The login that Dispatch keeps for this agent, and what to say of one that the person has
/// themselves: it is never used, because a token that is renewed in two places ends in both.
fn login_row(
    settings: &Settings,
    name: &AgentName,
    agent: &AgentProfile,
) -> (Option<Finding>, String) {
    let Some((_, login)) = agent.account(name) else {
        return (None, String::new());
    };
    let home = settings.home();
    let theirs = login.files.iter().find(|file| {
        let path = home.as_ref().map(|home| home.join(file.as_path()));
        path.is_some_and(|path| path.is_file())
    });
    let own = match theirs {
        Some(file) => format!(
            "your own login (~/{}) is not used; ",
            file.as_path().display()
        ),
        // What Claude Code does there is the same with every home.
        None if cfg!(target_os = "macos") && login.variable.is_some() => {
            "a login in the system's keychain cannot be used: `claude setup-token` makes one for \
             CLAUDE_CODE_OAUTH_TOKEN; "
                .to_owned()
        }
        None => String::new(),
    };
    let found = login::row(settings, name, agent).filter(|row| row.present);
    let found = found.map(|row| {
        let text = format!("account {}, {}", row.account, row.path.display());
        finding(format!("login {name}"), Condition::Ok, text, "")
    });
    let none = || {
        let how = format!("`dispatch login {name}`, unless its key is in the environment");
        finding(format!("login {name}"), Condition::Info, "none", &how)
    };
    (Some(found.unwrap_or_else(none)), own)
}

fn disk(settings: &Settings) -> Finding {
    let needed = settings.config.limits.disk_free_min_bytes;
    // It may not exist yet; what counts is the disk it will be on.
    let place = settings.paths.data.ancestors().find(|path| path.exists());
    match rustix::fs::statvfs(place.unwrap_or(Path::new("/"))) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let found = format!(
                "{} MiB free for {}",
                free >> 20,
                settings.paths.data.display()
            );
            let state = if free < needed {
                Condition::Missing
            } else {
                Condition::Ok
            };
            finding(
                "disk",
                state,
                found,
                "nothing new starts below limits.disk_free_min_bytes",
            )
        }
        Err(error) => finding(
            "disk",
            Condition::Missing,
            error.to_string(),
            "make it readable",
        ),
    }
}

fn sandbox(settings: &Settings) -> Vec<Finding> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let spaces = number("/proc/sys/user/max_user_namespaces").is_some_and(|max| max > 0)
        && number("/proc/sys/kernel/unprivileged_userns_clone") != Some(0);
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let asked = settings.find("bwrap");
    let fences = Fences::new(settings.paths.data.clone(), Keeper::own(), asked);
    let mut found = vec![match fences.layers() {
        Ok((layers, None)) => finding(
            "cage",
            Condition::Ok,
            cage::enforced(&layers, &[], &Network::Full),
            "",
        ),
        Ok((layers, Some(why))) => finding(
            "cage",
            Condition::Info,
            format!(
                "{}; without bubblewrap: {why}",
                cage::enforced(&layers, &[], &Network::Full)
            ),
            "install it (Debian, Ubuntu: `apt install bubblewrap`); where it is there and refused, \
             user namespaces are switched off (see the next line)",
        ),
        Err(why) => finding(
            "cage",
            Condition::Missing,
            format!("there would be no fence, so nothing caged can start: {why}"),
            "install bubblewrap, or use a kernel with Landlock (5.13 or newer)",
        ),
    }];
    found.push(if spaces {
        finding("user namespaces", Condition::Ok, "allowed", "")
    } else {
        finding(
            "user namespaces",
            Condition::Info,
            "not allowed",
            "bubblewrap needs them unless the engine is root: \
             `sysctl kernel.unprivileged_userns_clone=1`, on Ubuntu 24.04 and later \
             an AppArmor profile for bwrap",
        )
    });
    found.push(if v2 {
        finding("cgroups", Condition::Ok, "version 2", "")
    } else {
        finding(
            "cgroups",
            Condition::Info,
            "not version 2",
            "memory and processes are watched instead of held by the kernel",
        )
    });
    found
}

/// Only needed for tasks that ask for a container, so nothing of it is ever missing.
fn containers(settings: &Settings) -> Vec<Finding> {
    let data = &settings.paths.data;
    let containers = Containers::new(data, settings.runtimes());
    let mut found = Vec::new();
    for runtime in Runtime::ALL {
        if runtime == Runtime::Apple && !cfg!(target_os = "macos") {
            continue;
        }
        let what = format!("container {}", runtime.word());
        found.push(match containers.ask(runtime) {
            Ok(client) => {
                let at = format!(
                    "{} answers, as {}",
                    client.program.display(),
                    client.layer()
                );
                finding(what, Condition::Ok, at, "")
            }
            Err(why) => finding(what, Condition::Info, why, runtime.how_to_get()),
        });
    }
    let config = &settings.config;
    let agents = config.agents.values().map(|agent| &agent.image);
    let placements = config.containers.values().map(|said| &said.image);
    let named = agents.chain(placements).chain([&config.container.image]);
    let warnings: BTreeSet<String> = named.flatten().filter_map(Image::warning).collect();
    for warning in warnings {
        found.push(finding("image", Condition::Info, warning, ""));
    }
    found
}

/// How the last deliveries of each hook went, and whether it could make one at all.
fn hooks(settings: &Settings) -> Vec<Finding> {
    let one = |(name, hook): (&HookName, &Hook)| {
        let what = format!("notify {name}");
        let kind = hook.way.word();
        let test = format!("`dispatch notify test {name}` tries it");
        if hook.way == Way::Desktop && settings.find("notify-send").is_none() {
            let how = "install it (Debian, Ubuntu: `apt install libnotify-bin`)";
            return finding(what, Condition::Info, "notify-send not found", how);
        }
        match cursor::read(&settings.paths.data, name) {
            Err(error) => {
                let found = format!("{kind}, its position cannot be read: {error}");
                finding(what, Condition::Info, found, "the next engine begins anew")
            }
            Ok(None) => finding(what, Condition::Ok, format!("{kind}, not used yet"), ""),
            Ok(Some(cursor)) => {
                let dropped = match cursor.dropped {
                    0 => String::new(),
                    n => format!(", {n} dropped so far"),
                };
                match cursor.failure {
                    None => {
                        let found = format!("{kind}, told up to event {}{dropped}", cursor.seq);
                        finding(what, Condition::Ok, found, "")
                    }
                    Some(failure) => {
                        let at = time(failure.at);
                        let found = format!("{kind}, failed at {at}{dropped}: {}", failure.what);
                        finding(what, Condition::Info, found, &test)
                    }
                }
            }
        }
    };
    settings.config.notify.iter().map(one).collect()
}

async fn engine(settings: &Settings) -> Finding {
    let log = settings.paths.engine_log();
    match start::living(settings) {
        Ok(None) => finding(
            "engine",
            Condition::Ok,
            "none lives; verbs start one when they need it",
            "",
        ),
        Ok(Some(client)) => match client.get::<Health>("/v1/health").await {
            Ok(health) => {
                let found = format!("version {}, process {}", health.version, health.pid);
                finding("engine", Condition::Ok, found, "")
            }
            Err(error) => {
                let how = format!("its log is {}", log.display());
                finding("engine", Condition::Missing, error.to_string(), &how)
            }
        },
        Err(error) => finding("engine", Condition::Missing, error.to_string(), ""),
    }
}

#[cfg(test)]
mod tests {
    use super::git_version;

    #[test]
    fn versions_of_git() {
        assert_eq!(git_version("git version 2.47.3"), Some((2, 47)));
        assert_eq!(
            git_version("git version 2.39.5 (Apple Git-154)"),
            Some((2, 39))
        );
        assert_eq!(git_version("gti"), None);
    }
}
