//! The cage: an invocation rewritten to run inside the OS sandbox, and what our warden in there is
//! told to lock. Pure: what lies where on the host comes in as a [`View`].
//! Must not mount anything below a directory that a job can write: it could have put a symlink there
//! for the next run's mounts to follow.
//!
//! The list is of what is visible, never of what is hidden: a place nobody thought of is not there.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    container,
    job::{Inside, Invocation},
    seatbelt::{self, SEATBELT},
    task::Network,
};

/// In memory, each with its limit in bytes; programs that honour TMPDIR use the disk instead.
const TMP_DIRS: [(&str, u64); 4] = [
    ("/tmp", 1 << 30),
    ("/var/tmp", 256 << 20),
    ("/run", 16 << 20),
    ("/dev/shm", 256 << 20),
];
/// What may be written below `/dev`; the rest of it is memory without a limit.
const DEVICES: [&str; 9] = [
    "null", "zero", "full", "random", "urandom", "tty", "pts", "ptmx", "shm",
];

/// Something in a visible directory that other users of the machine may not read, so neither may a
/// job: a private key below `/etc` when the engine is root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hidden {
    File(PathBuf),
    Directory(PathBuf),
}

/// What is where on the host, for one job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// `None`: missing or refused; then Landlock and seccomp are all there is.
    pub bwrap: Option<PathBuf>,
    /// macOS' `sandbox-exec`, which is asked only where there is no bubblewrap.
    pub seatbelt: Option<PathBuf>,
    /// Argv of the warden, without its policy.
    pub warden: Vec<String>,
    /// `/bin -> usr/bin` and the like: link, target.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// System directories, read-only at the same path.
    pub system: Vec<PathBuf>,
    pub hidden: Vec<Hidden>,
    /// The same as `system` without `hidden`, for where nothing can be mounted over it.
    pub parts: Vec<PathBuf>,
    /// The program, its install tree, toolchains, the mirror's objects: read-only at the same path.
    pub read: Vec<PathBuf>,
    /// The workspace, the private home, the temporary directory.
    pub write: Vec<PathBuf>,
    /// Written by several jobs, and by programs outside of any fence: plain files only.
    pub shared: Vec<PathBuf>,
    /// Device nodes of a GPU, when it was asked for.
    pub devices: Vec<PathBuf>,
    /// Ports of the job's own loopback behind which a socket of ours lies.
    pub relays: Vec<Relay>,
    /// Directories with sockets that it connects to itself, read-only at the same path.
    pub doors: Vec<PathBuf>,
}

/// A port on the loopback of a job's own network, and the socket in a directory that it sees whose
/// listener gets each connection. The directory is bound and not the socket: a bound socket goes
/// stale when it is made anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    pub listen_port: u16,
    pub directory: PathBuf,
    pub socket: String,
}

/// What the warden is told, as JSON in its argv: nothing in it is secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// The layers that the argv around the warden gives, by name.
    pub outer: Vec<String>,
    /// Refuse to start with less than every layer.
    pub strict: bool,
    pub read: Vec<PathBuf>,
    pub write: Vec<PathBuf>,
    /// Written, but nothing is made there that leads or stands elsewhere: no links, no devices.
    #[serde(default)]
    pub shared: Vec<PathBuf>,
    /// Sockets that the warden has to refuse because nothing around it does.
    pub deny: Sockets,
    #[serde(default)]
    pub relays: Vec<Relay>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sockets {
    /// Namespaces and mounts see to it.
    #[default]
    None,
    /// Without a mount namespace every unix socket of the user is in reach, the engine's among them.
    Unix,
    UnixAndInternet,
}

/// The layer bubblewrap is told as, in the record of what was enforced.
pub const BWRAP: &str = "bwrap";

/// `inner` inside the cage. Environment, input, directory and limits stay as they are.
#[must_use]
pub fn wrap(inner: Invocation, view: &View, network: &Network, strict: bool) -> Invocation {
    let (mut argv, policy) = match (&view.bwrap, &view.seatbelt) {
        (Some(bwrap), _) => (outer(bwrap, &inner, view, network), inside(view, strict)),
        (None, Some(program)) => {
            let policy = Policy {
                outer: vec![SEATBELT.into()],
                // The kernel there has nothing like it, and the profile has said all of it.
                deny: Sockets::None,
                ..alone(view, network, strict)
            };
            (seatbelt::outer(program, view, network), policy)
        }
        (None, None) => (Vec::new(), alone(view, network, strict)),
    };
    argv.extend(view.warden.iter().cloned());
    argv.push(policy_text(&policy));
    argv.push("--".into());
    argv.extend(inner.argv);
    Invocation {
        argv,
        inside: Inside::Warden,
        writes: view.write.clone(),
        ..inner
    }
}

/// A policy is paths and words, which always are JSON; a path that is no UTF-8 never gets here.
fn policy_text(policy: &Policy) -> String {
    serde_json::to_string(policy).unwrap_or_default()
}

/// Under bubblewrap the mounts say what is visible; Landlock says again what of it is writable.
fn inside(view: &View, strict: bool) -> Policy {
    let mut write = view.write.clone();
    write.extend(TMP_DIRS.iter().map(|(dir, _)| PathBuf::from(dir)));
    write.extend(devices(view));
    Policy {
        outer: vec![BWRAP.into()],
        strict,
        read: vec!["/".into()],
        write,
        shared: view.shared.clone(),
        deny: Sockets::None,
        relays: view.relays.clone(),
    }
}

fn alone(view: &View, network: &Network, strict: bool) -> Policy {
    let mut read = view.parts.clone();
    read.extend(view.read.iter().cloned());
    read.push("/proc".into());
    let mut write = view.write.clone();
    write.extend(devices(view));
    Policy {
        outer: Vec::new(),
        strict,
        read,
        write,
        shared: view.shared.clone(),
        deny: match network {
            Network::Full => Sockets::Unix,
            // A list cannot be held from here, so whoever comes this far gets nothing.
            Network::None | Network::Allow(_) => Sockets::UnixAndInternet,
        },
        relays: Vec::new(),
    }
}

fn devices(view: &View) -> impl Iterator<Item = PathBuf> + '_ {
    let usual = DEVICES.iter().map(|name| Path::new("/dev").join(name));
    usual.chain(view.devices.iter().cloned())
}

fn outer(bwrap: &Path, inner: &Invocation, view: &View, network: &Network) -> Vec<String> {
    let mut argv = Argv(vec![text(bwrap)]);
    argv.words(&[
        "--unshare-user-try",
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-uts",
        "--unshare-cgroup-try",
    ]);
    if network.is_own() {
        argv.words(&["--unshare-net"]);
    }
    // Without --cap-drop a root engine's jobs would keep nearly all capabilities, mount among them.
    argv.words(&["--hostname", "cage", "--die-with-parent", "--new-session"]);
    argv.words(&["--cap-drop", "ALL"]);
    for (link, target) in &view.links {
        argv.paths("--symlink", target, link);
    }
    for path in &view.system {
        argv.paths("--ro-bind", path, path);
    }
    for hidden in &view.hidden {
        match hidden {
            Hidden::File(path) => argv.paths("--ro-bind", Path::new("/dev/null"), path),
            Hidden::Directory(path) => {
                argv.words(&["--perms", "0555", "--tmpfs"]);
                argv.0.push(text(path));
                argv.words(&["--remount-ro"]);
                argv.0.push(text(path));
            }
        }
    }
    argv.words(&["--proc", "/proc", "--dev", "/dev"]);
    for device in &view.devices {
        argv.paths("--dev-bind-try", device, device);
    }
    for (dir, bytes) in TMP_DIRS {
        argv.words(&[
            "--perms",
            "1777",
            "--size",
            &bytes.to_string(),
            "--tmpfs",
            dir,
        ]);
    }
    // Outer directories first, so that one mount never hides another.
    let mut binds: Vec<(&PathBuf, &str)> = Vec::new();
    binds.extend(view.read.iter().map(|path| (path, "--ro-bind")));
    let written = view.write.iter().chain(&view.shared);
    binds.extend(written.map(|path| (path, "--bind")));
    let mut relayed: Vec<&PathBuf> = view.relays.iter().map(|relay| &relay.directory).collect();
    relayed.dedup();
    binds.extend(relayed.into_iter().map(|path| (path, "--ro-bind")));
    binds.extend(view.doors.iter().map(|path| (path, "--ro-bind")));
    binds.sort_by_key(|(path, _)| path.components().count());
    for (path, how) in binds {
        argv.paths(how, path, path);
    }
    argv.words(&["--remount-ro", "/", "--chdir"]);
    argv.0.push(text(&inner.cwd));
    argv.words(&["--"]);
    argv.0
}

struct Argv(Vec<String>);

impl Argv {
    fn words(&mut self, words: &[&str]) {
        self.0.extend(words.iter().map(|word| (*word).to_owned()));
    }

    fn paths(&mut self, option: &str, from: &Path, to: &Path) {
        self.0.extend([option.to_owned(), text(from), text(to)]);
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// What was enforced around a job, as its record and every surface show it.
#[must_use]
pub fn enforced(layers: &[String], limits: &[String], network: &Network) -> String {
    let fence = match layers {
        [] => "nothing".to_owned(),
        [only] => format!("{only} only"),
        [first, ..] if first != BWRAP && !container::is_layer(first) => {
            format!("{} only", layers.join("+"))
        }
        _ => layers.join("+"),
    };
    let mut out = fence;
    if !limits.is_empty() {
        out.push_str("; limits: ");
        out.push_str(&limits.join(", "));
    }
    out.push_str("; network: ");
    out.push_str(&network.word());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::AllowList;

    fn inner() -> Invocation {
        Invocation {
            argv: vec!["/opt/agent".into(), "it's \"$HOME\"; rm -rf *".into()],
            env: [("KEY".to_owned(), "hunter2".to_owned())].into(),
            secrets: vec!["KEY".into()],
            cwd: "/data/ws".into(),
            ..Invocation::default()
        }
    }

    fn view() -> View {
        View {
            bwrap: Some("/usr/bin/bwrap".into()),
            seatbelt: None,
            warden: vec!["/data/bin/dispatch".into(), "warden".into()],
            links: vec![("/bin".into(), "usr/bin".into())],
            system: vec!["/usr".into(), "/etc".into()],
            hidden: vec![
                Hidden::File("/etc/shadow".into()),
                Hidden::Directory("/etc/ssl/private".into()),
            ],
            parts: vec!["/usr".into(), "/etc/hosts".into()],
            read: vec!["/data/mirror/objects".into(), "/opt/agent".into()],
            write: vec!["/data/ws".into(), "/data/home".into()],
            shared: vec!["/data/logins/work".into()],
            devices: vec!["/dev/dri".into()],
            relays: Vec::new(),
            doors: Vec::new(),
        }
    }

    fn policy(argv: &[String]) -> Policy {
        let at = argv.iter().rposition(|word| word == "--").unwrap();
        serde_json::from_str(&argv[at - 1]).unwrap()
    }

    #[test]
    fn the_program_comes_through_unquoted_and_no_secret_is_in_the_argv() {
        for bwrap in [None, Some(PathBuf::from("/usr/bin/bwrap"))] {
            let wrapped = wrap(inner(), &View { bwrap, ..view() }, &Network::Full, false);
            assert!(wrapped.argv.ends_with(&inner().argv));
            assert!(!wrapped.argv.join(" ").contains("hunter2"));
            assert_eq!((wrapped.env, wrapped.cwd), (inner().env, inner().cwd));
            assert_eq!(wrapped.inside, Inside::Warden);
        }
    }

    #[test]
    fn capabilities_go_in_every_case_and_the_network_when_asked() {
        let full = wrap(inner(), &view(), &Network::Full, false).argv;
        let none = wrap(inner(), &view(), &Network::None, false).argv;
        for argv in [&full, &none] {
            let at = argv.iter().position(|word| word == "--cap-drop").unwrap();
            assert_eq!(argv[at + 1], "ALL");
            assert!(argv.iter().any(|word| word == "--die-with-parent"));
        }
        assert!(!full.iter().any(|word| word == "--unshare-net"));
        assert!(none.iter().any(|word| word == "--unshare-net"));
    }

    #[test]
    fn only_what_is_written_is_bound_writable_and_the_root_is_closed_last() {
        let argv = wrap(inner(), &view(), &Network::Full, false).argv;
        let after = |option: &str| -> Vec<&str> {
            let hits = argv.iter().enumerate().filter(|(_, word)| *word == option);
            hits.map(|(at, _)| argv[at + 1].as_str()).collect()
        };
        assert_eq!(
            after("--bind"),
            ["/data/ws", "/data/home", "/data/logins/work"]
        );
        assert_eq!(
            after("--ro-bind"),
            [
                "/usr",
                "/etc",
                "/dev/null",
                "/opt/agent",
                "/data/mirror/objects"
            ]
        );
        assert_eq!(after("--remount-ro"), ["/etc/ssl/private", "/"]);
    }

    #[test]
    fn a_list_of_hosts_is_a_network_of_its_own_and_a_directory_to_the_sidecar() {
        let list = AllowList::try_from(vec!["a.test".to_owned()]).unwrap();
        let relay = |listen_port, socket: &str| Relay {
            listen_port,
            directory: "/data/inside/1".into(),
            socket: socket.into(),
        };
        let relays = vec![relay(1, "a.sock"), relay(2, "b.sock")];
        let view = View {
            relays: relays.clone(),
            ..view()
        };
        let argv = wrap(inner(), &view, &Network::Allow(list.clone()), false).argv;
        assert!(argv.iter().any(|word| word == "--unshare-net"));
        let bound = argv.windows(2).filter(|pair| pair[1] == "/data/inside/1");
        let how: Vec<&str> = bound.map(|pair| pair[0].as_str()).collect();
        assert_eq!(how, ["--ro-bind", "/data/inside/1"]);
        assert_eq!(policy(&argv).relays, relays);
        // Nothing else can hold a list: whoever is alone lets nothing through.
        let bare = View {
            bwrap: None,
            ..view
        };
        let alone = policy(&wrap(inner(), &bare, &Network::Allow(list), false).argv);
        assert_eq!(
            (alone.deny, alone.relays),
            (Sockets::UnixAndInternet, vec![])
        );
    }

    /// Connecting to a socket is no writing, so the directory is as closed as the rest.
    #[test]
    fn a_door_is_a_directory_that_is_seen_and_not_written() {
        let view = View {
            doors: vec!["/run/user/1/dispatch/agents".into()],
            ..view()
        };
        let argv = wrap(inner(), &view, &Network::None, false).argv;
        let at = argv
            .iter()
            .position(|word| word == "/run/user/1/dispatch/agents");
        let at = at.unwrap();
        assert_eq!(argv[at - 1], "--ro-bind");
        // Behind the memory that lies on /run, else it would be hidden by it.
        assert!(argv.iter().position(|word| word == "/run").unwrap() < at);
        assert!(!policy(&argv).write.contains(&view.doors[0]));
    }

    #[test]
    fn without_bubblewrap_the_warden_gets_the_whole_list() {
        let bare = View {
            bwrap: None,
            ..view()
        };
        let got = policy(&wrap(inner(), &bare, &Network::None, true).argv);
        assert!(got.strict && got.outer.is_empty());
        assert_eq!(got.deny, Sockets::UnixAndInternet);
        assert!(got.read.contains(&"/etc/hosts".into()) && !got.read.contains(&"/etc".into()));
        assert!(!got.read.contains(&"/".into()) && !got.write.contains(&"/tmp".into()));
        let caged = policy(&wrap(inner(), &view(), &Network::Full, false).argv);
        assert_eq!(
            (caged.outer, caged.read),
            (vec![BWRAP.to_owned()], vec!["/".into()])
        );
        for policy in [&got.shared, &caged.shared] {
            assert_eq!(*policy, view().shared);
        }
        assert!(!caged.write.contains(&view().shared[0]));
    }

    #[test]
    fn on_macos_the_profile_stands_where_bubblewrap_does_and_is_named() {
        let mac = View {
            bwrap: None,
            seatbelt: Some("/usr/bin/sandbox-exec".into()),
            ..view()
        };
        let argv = wrap(inner(), &mac, &Network::None, true).argv;
        assert_eq!(argv[0], "/usr/bin/sandbox-exec");
        assert!(argv.ends_with(&inner().argv));
        let got = policy(&argv);
        assert_eq!((got.outer, got.strict), (vec![SEATBELT.to_owned()], true));
        assert_eq!(
            enforced(&[SEATBELT.to_owned()], &[], &Network::None),
            "sandbox-exec only; network: none"
        );
    }

    #[test]
    fn the_record_reads_like_a_sentence() {
        let layers =
            |words: &[&str]| -> Vec<String> { words.iter().map(|w| (*w).into()).collect() };
        let limits = layers(&["memory (watched)"]);
        assert_eq!(
            enforced(
                &layers(&["bwrap", "landlock(abi 7)", "seccomp"]),
                &limits,
                &Network::None
            ),
            "bwrap+landlock(abi 7)+seccomp; limits: memory (watched); network: none"
        );
        assert_eq!(
            enforced(
                &layers(&["landlock(abi 1)", "seccomp"]),
                &[],
                &Network::Full
            ),
            "landlock(abi 1)+seccomp only; network: full"
        );
        assert_eq!(enforced(&[], &[], &Network::Full), "nothing; network: full");
    }
}
