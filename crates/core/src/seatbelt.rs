//! macOS' `sandbox-exec`: its profile as text, and the argv that starts it. Pure, and the same list of
//! what is visible as everywhere (`cage.rs`).
//! Must not put a path into the profile: each goes in by a parameter, so none has to be quoted.
//!
//! Written from the language's published profiles and tested as text. It was never run: no machine
//! of ours has macOS.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use crate::{cage::View, task::Network};

/// The layer's name in the record of what was enforced.
pub const SEATBELT: &str = "sandbox-exec";

/// Name services, certificates and the log; not the keychain, not the pasteboard, not Apple events.
const SERVICES: [&str; 7] = [
    "com.apple.SystemConfiguration.DNSConfiguration",
    "com.apple.SystemConfiguration.configd",
    "com.apple.logd",
    "com.apple.system.notification_center",
    "com.apple.system.opendirectoryd.libinfo",
    "com.apple.trustd",
    "com.apple.trustd.agent",
];
const DEVICES: [&str; 7] = [
    "/dev/null",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/fd",
];
/// How programs ask for names; the only socket of the system's that a job may speak to.
const RESOLVER: &str = "/private/var/run/mDNSResponder";

/// What comes before the warden's argv.
#[must_use]
pub fn outer(program: &Path, view: &View, network: &Network) -> Vec<String> {
    let read: Vec<&PathBuf> = view.parts.iter().chain(&view.read).collect();
    let write: Vec<&PathBuf> = view.write.iter().chain(&view.shared).collect();
    let doors: Vec<&PathBuf> = view.doors.iter().collect();
    let all = read.iter().chain(&write).chain(&doors).copied();
    let above = above(all, view);
    let mut argv = vec![
        program.to_string_lossy().into_owned(),
        "-p".into(),
        profile(read.len(), write.len(), doors.len(), above.len(), network),
    ];
    let mut name = |prefix: char, n: usize, path: &Path| {
        argv.extend([
            "-D".into(),
            format!("{prefix}{n}={}", path.to_string_lossy()),
        ]);
    };
    for (n, path) in read.iter().enumerate() {
        name('R', n, path);
    }
    for (n, path) in write.iter().enumerate() {
        name('W', n, path);
    }
    for (n, path) in doors.iter().enumerate() {
        name('D', n, path);
    }
    for (n, path) in above.iter().enumerate() {
        name('A', n, path);
    }
    argv
}

/// Directories and links on the way to what is visible: to be looked up, not listed.
fn above<'a>(paths: impl Iterator<Item = &'a PathBuf>, view: &View) -> BTreeSet<PathBuf> {
    let parents = paths.flat_map(|path| path.ancestors().skip(1));
    let links = view.links.iter().flat_map(|(link, _)| link.ancestors());
    parents.chain(links).map(Path::to_owned).collect()
}

fn profile(read: usize, write: usize, doors: usize, above: usize, network: &Network) -> String {
    let mut text = String::from(
        "(version 1)\n(deny default)\n(allow process-fork)\n(allow sysctl-read)\n\
         (allow signal (target same-sandbox))\n(allow process-info* (target same-sandbox))\n\
         (allow pseudo-tty)\n",
    );
    let all = |kind: &str, prefix: char, count: usize| -> String {
        (0..count)
            .map(|n| format!(" ({kind} (param \"{prefix}{n}\"))"))
            .collect()
    };
    let mut rule = |what: &str, about: &str| {
        // Without an operand a rule is about everything.
        if !about.is_empty() {
            text.push_str(&format!(
                "(allow {what}{about})
"
            ));
        }
    };
    let (seen, own) = (all("subpath", 'R', read), all("subpath", 'W', write));
    rule("file-read-metadata", &all("literal", 'A', above));
    rule("file-read* process-exec", &seen);
    rule("file-read* file-write* process-exec", &own);
    let literal = |path: &&str| format!(" (literal \"{path}\")");
    let devices: String = DEVICES.iter().map(literal).collect();
    rule("file-read* file-write-data file-ioctl", &devices);
    rule(
        "file-read* file-write-data file-ioctl",
        " (regex #\"^/dev/ttys[0-9]+$\")",
    );
    let service = |name: &&str| format!(" (global-name \"{name}\")");
    let services: String = SERVICES.iter().map(service).collect();
    rule("mach-lookup", &services);
    // Sockets in files of its own, and those it is to find: what stands elsewhere is somebody else's,
    // a person's door to us among them.
    rule("network-bind network-outbound", &all("subpath", 'W', write));
    let doors = all("subpath", 'D', doors);
    rule("file-read* network-outbound", &doors);
    if *network == Network::Full {
        rule("network-outbound", " (remote ip)");
        rule("network-bind network-inbound", " (local ip)");
        rule("network-outbound", &format!(" (literal \"{RESOLVER}\")"));
        rule(
            "system-socket",
            " (socket-domain AF_INET) (socket-domain AF_INET6)",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        View {
            parts: vec!["/usr".into(), "/private/etc/hosts".into()],
            read: vec!["/Users/me/.cargo/bin".into()],
            write: vec![
                "/Users/me/ws \"(allow default)\"".into(),
                "/Users/me/home".into(),
            ],
            links: vec![("/etc".into(), "private/etc".into())],
            ..View::default()
        }
    }

    fn profile_of(argv: &[String]) -> &str {
        assert_eq!(argv[..2], ["/usr/bin/sandbox-exec", "-p"]);
        &argv[2]
    }

    fn made(view: &View, network: &Network) -> Vec<String> {
        outer(Path::new("/usr/bin/sandbox-exec"), view, network)
    }

    #[test]
    fn it_denies_first_and_every_rule_after_is_about_something() {
        for network in [Network::Full, Network::None] {
            for view in [view(), View::default()] {
                let argv = made(&view, &network);
                let lines: Vec<&str> = profile_of(&argv).lines().collect();
                assert_eq!(lines[..2], ["(version 1)", "(deny default)"]);
                let bare = ["process-fork", "sysctl-read", "pseudo-tty"];
                for line in &lines[2..] {
                    let depth = line.matches('(').count();
                    assert_eq!(depth, line.matches(')').count(), "{line}");
                    let named = bare.iter().any(|word| *line == format!("(allow {word})"));
                    assert!(
                        line.starts_with("(allow ") && (named || depth > 1),
                        "{line}"
                    );
                }
            }
        }
    }

    #[test]
    fn paths_come_by_parameter_and_a_nasty_one_is_only_a_value() {
        let argv = made(&view(), &Network::Full);
        let text = profile_of(&argv);
        assert!(!text.contains("/Users") && !text.contains("allow default"));
        let parameters: Vec<&str> = argv[3..].iter().map(String::as_str).collect();
        assert!(parameters.contains(&"W0=/Users/me/ws \"(allow default)\""));
        for pair in parameters.chunks(2) {
            let name = pair[1].split('=').next().unwrap();
            assert_eq!(pair[0], "-D");
            assert!(text.contains(&format!("(param \"{name}\")")), "{name}");
        }
        assert_eq!(text.matches("(param ").count(), parameters.len() / 2 + 2);
    }

    #[test]
    fn only_what_is_its_own_is_written_and_the_way_there_is_not_listed() {
        let argv = made(&view(), &Network::None);
        let text = profile_of(&argv);
        let writing: Vec<&str> = text.lines().filter(|l| l.contains("file-write*")).collect();
        assert_eq!(writing.len(), 1);
        assert!(!writing[0].contains("\"R") && !writing[0].contains("\"A"));
        let ways: Vec<&str> = text.lines().filter(|l| l.contains("\"A0\"")).collect();
        assert_eq!(ways.len(), 1);
        assert!(ways[0].starts_with("(allow file-read-metadata "));
        let ancestors: Vec<&String> = argv.iter().filter(|word| word.starts_with('A')).collect();
        assert!(ancestors.iter().any(|word| word.ends_with("=/etc")));
        assert!(ancestors.iter().any(|word| word.ends_with("=/Users/me")));
    }

    #[test]
    fn the_network_and_the_keychain_are_not_there_unless_they_are_listed() {
        let (full, none) = (made(&view(), &Network::Full), made(&view(), &Network::None));
        assert!(profile_of(&full).contains("(allow network-outbound (remote ip))"));
        for word in [
            "(remote ip)",
            "(local ip)",
            "mDNSResponder",
            "system-socket",
        ] {
            assert!(!profile_of(&none).contains(word), "{word}");
        }
        for argv in [&full, &none] {
            let text = profile_of(argv);
            assert!(!text.contains("SecurityServer") && !text.contains("securityd"));
            assert!(!text.contains("(allow network*") && !text.contains("(allow mach-lookup)"));
        }
    }
}
