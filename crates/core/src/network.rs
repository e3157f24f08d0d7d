//! What a list of allowed hosts lets through: names, and addresses that are written down as such.
//! Pure: whoever resolves a name asks here for each address that came back.
//! Must not accept what another reader could take for something else: `127.1` is no host name.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// What a name without a port stands for.
pub const PORT_DEFAULT: u16 = 443;
pub const ENTRIES_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

const RULE: &str = "an entry is a host name (\"api.anthropic.com\", \"*.example.com\", \
                    \"host.example.com:8443\"; port 443 unless it is given), or addresses with a \
                    port (\"127.0.0.1:8080\", \"10.0.0.0/8:5432\", \"[::1]:8080\", \
                    \"[fd00::/8]:5432\")";

/// One thing that may be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    /// Itself, and no name below it.
    Name { name: HostName, port: u16 },
    /// Every name below it, and not itself.
    Below { name: HostName, port: u16 },
    Addresses {
        first: IpAddr,
        prefix_bits: u32,
        port: u16,
    },
}

impl Entry {
    /// What both let through. Of two entries one holds the other, or they have nothing in common.
    fn meet(&self, other: &Self) -> Option<Self> {
        if self.is_within(other) {
            return Some(self.clone());
        }
        other.is_within(self).then(|| other.clone())
    }

    fn is_within(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Name { name, port }, Self::Name { name: own, port: p }) => {
                name == own && port == p
            }
            (
                Self::Name { name, port },
                Self::Below {
                    name: above,
                    port: p,
                },
            ) => port == p && name.is_below(above),
            (
                Self::Below { name, port },
                Self::Below {
                    name: above,
                    port: p,
                },
            ) => port == p && (name == above || name.is_below(above)),
            (
                Self::Addresses {
                    first,
                    prefix_bits,
                    port,
                },
                Self::Addresses {
                    first: wide,
                    prefix_bits: fewer,
                    port: p,
                },
            ) => port == p && prefix_bits >= fewer && within(*first, *wide, *fewer),
            (Self::Below { .. } | Self::Addresses { .. }, Self::Name { .. })
            | (Self::Addresses { .. }, Self::Below { .. })
            | (Self::Name { .. } | Self::Below { .. }, Self::Addresses { .. }) => false,
        }
    }
}

/// Lower case, without a dot at the end, and never something that reads as an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(String);

impl HostName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn is_below(&self, above: &Self) -> bool {
        let rest = self.0.strip_suffix(above.as_str());
        rest.is_some_and(|rest| rest.ends_with('.'))
    }
}

impl FromStr for HostName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let no = || Err(format!("{text:?} is no host name"));
        if name.len() > NAME_BYTES_MAX {
            return no();
        }
        let byte = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let label = |label: &str| {
            (1..=LABEL_BYTES_MAX).contains(&label.len())
                && label.bytes().all(byte)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if !name.split('.').all(label) {
            return no();
        }
        // The C library reads `127.1`, `0x7f000001` and `2130706433` as addresses.
        let last = name.rsplit('.').next().unwrap_or_default();
        let hex = last
            .strip_prefix("0x")
            .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
        if hex || last.bytes().all(|b| b.is_ascii_digit()) {
            return no();
        }
        Ok(Self(name))
    }
}

/// The hosts that a fenced job may reach, through a proxy of ours and not otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct AllowList(Vec<Entry>);

impl AllowList {
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What both let through, in an order of its own.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        let pairs = self
            .0
            .iter()
            .flat_map(|one| other.0.iter().filter_map(|two| one.meet(two)));
        let by_name: BTreeMap<String, Entry> =
            pairs.map(|entry| (entry.to_string(), entry)).collect();
        // Fewer is only ever less.
        Self(by_name.into_values().take(ENTRIES_MAX).collect())
    }

    /// Whether the other lets all of it through, too.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        let held = |entry: &Entry| other.0.iter().any(|wide| entry.is_within(wide));
        self.0.iter().all(held)
    }

    /// Whether the target may be tried at all; a name's addresses are asked for one by one after.
    ///
    /// # Errors
    /// Why not.
    pub fn target(&self, target: &Target) -> Result<(), Refused> {
        match &target.host {
            Host::Address(address) if self.lists(*address, target.port) => Ok(()),
            Host::Address(_) => Err(Refused::Literal),
            Host::Name(name) => {
                let fits = |entry: &Entry| match entry {
                    Entry::Name { name: own, port } => own == name && *port == target.port,
                    Entry::Below { name: own, port } => *port == target.port && name.is_below(own),
                    Entry::Addresses { .. } => false,
                };
                self.0
                    .iter()
                    .any(fits)
                    .then_some(())
                    .ok_or(Refused::Unlisted)
            }
        }
    }

    /// Whether an address that an allowed name stands for may be connected to.
    ///
    /// # Errors
    /// Why not.
    pub fn resolved(&self, address: IpAddr, port: u16) -> Result<(), Refused> {
        if is_public(address) || self.lists(address, port) {
            return Ok(());
        }
        Err(Refused::NotPublic(address))
    }

    fn lists(&self, address: IpAddr, port: u16) -> bool {
        self.0.iter().any(|entry| match entry {
            Entry::Addresses {
                first,
                prefix_bits,
                port: own,
            } => *own == port && within(address, *first, *prefix_bits),
            Entry::Name { .. } | Entry::Below { .. } => false,
        })
    }
}

impl TryFrom<Vec<String>> for AllowList {
    type Error = String;

    fn try_from(texts: Vec<String>) -> Result<Self, String> {
        if texts.len() > ENTRIES_MAX {
            return Err(format!("more than {ENTRIES_MAX} entries"));
        }
        texts
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl From<AllowList> for Vec<String> {
    fn from(list: AllowList) -> Self {
        list.0.iter().map(ToString::to_string).collect()
    }
}

impl FromStr for Entry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: {RULE}");
        if let Some((first, prefix_bits, port)) = addresses(text) {
            return Ok(Self::Addresses {
                first,
                prefix_bits,
                port,
            });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port_of(port).ok_or_else(wrong)?),
            None => (text, PORT_DEFAULT),
        };
        if let Some(parent) = host.strip_prefix("*.") {
            let name: HostName = parent.parse().map_err(|_| wrong())?;
            // `*.com` is a slip, or as good as no list.
            if !name.0.contains('.') {
                return Err(wrong());
            }
            return Ok(Self::Below { name, port });
        }
        let name = host.parse().map_err(|_| wrong())?;
        Ok(Self::Name { name, port })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = |f: &mut fmt::Formatter<'_>, port: u16| match port {
            PORT_DEFAULT => Ok(()),
            port => write!(f, ":{port}"),
        };
        match self {
            Self::Name { name, port: p } => {
                f.write_str(name.as_str())?;
                port(f, *p)
            }
            Self::Below { name, port: p } => {
                write!(f, "*.{}", name.as_str())?;
                port(f, *p)
            }
            Self::Addresses {
                first,
                prefix_bits,
                port,
            } => {
                let one = *prefix_bits == bits(*first);
                let prefix = if one {
                    String::new()
                } else {
                    format!("/{prefix_bits}")
                };
                match first {
                    IpAddr::V4(first) => write!(f, "{first}{prefix}:{port}"),
                    IpAddr::V6(first) => write!(f, "[{first}{prefix}]:{port}"),
                }
            }
        }
    }
}

/// `10.0.0.0/8:5432`, `[::1]:80`: addresses are only ever meant with a port.
fn addresses(text: &str) -> Option<(IpAddr, u32, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port_of(port)?;
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let (first, prefix) = match inner.unwrap_or(host).split_once('/') {
        Some((first, prefix)) => (first, Some(digits(prefix)?)),
        None => (inner.unwrap_or(host), None),
    };
    let first: IpAddr = first.parse().ok()?;
    let prefix = prefix.unwrap_or(bits(first));
    let sound = first.is_ipv6() == inner.is_some() && prefix <= bits(first);
    // `10.1.2.3/8` would say less than it lets through.
    let begins = sound && masked(first, prefix) == first_bits(first);
    begins.then_some((first, prefix, port))
}

fn port_of(text: &str) -> Option<u16> {
    let port = digits(text)?;
    u16::try_from(port).ok().filter(|port| *port > 0)
}

/// Without the sign that `parse` takes.
fn digits(text: &str) -> Option<u32> {
    let all = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if all { text.parse().ok() } else { None }
}

fn bits(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// From the left, so that both kinds are cut alike.
fn first_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn masked(address: IpAddr, prefix_bits: u32) -> u128 {
    let mask = u128::MAX.checked_shl(128 - prefix_bits).unwrap_or(0);
    first_bits(address) & mask
}

fn within(address: IpAddr, first: IpAddr, prefix_bits: u32) -> bool {
    address.is_ipv4() == first.is_ipv4()
        && masked(address, prefix_bits) == masked(first, prefix_bits)
}

/// What a client asked to be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub host: Host,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Name(HostName),
    Address(IpAddr),
}

impl FromStr for Target {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let (host, port) = text.rsplit_once(':').ok_or(Refused::Unreadable)?;
        let port = port_of(port).ok_or(Refused::Unreadable)?;
        let host = if let Some(inner) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            let v6: Ipv6Addr = inner.parse().map_err(|_| Refused::Unreadable)?;
            Host::Address(v6.into())
        } else if let Ok(v4) = host.parse::<Ipv4Addr>() {
            Host::Address(v4.into())
        } else {
            Host::Name(host.parse().map_err(|_| Refused::Unreadable)?)
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{}:{}", name.as_str(), self.port),
            Host::Address(IpAddr::V4(v4)) => write!(f, "{v4}:{}", self.port),
            Host::Address(IpAddr::V6(v6)) => write!(f, "[{v6}]:{}", self.port),
        }
    }
}

/// Why something was not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Unreadable,
    Unlisted,
    Literal,
    NotPublic(IpAddr),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => f.write_str("it is no host name with a port"),
            Self::Unlisted => f.write_str("not in the list"),
            Self::Literal => f.write_str("an address, and not in the list as one"),
            Self::NotPublic(address) => {
                write!(f, "its name stands for {address}, which is not public")
            }
        }
    }
}

/// Whether an address is one of the internet's: not this machine, not the network it is in, not a
/// provider's metadata, not one of the ways to write any of these as something else.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4_public(v4),
        IpAddr::V6(v6) => v6_public(v6),
    }
}

fn v4_public(address: Ipv4Addr) -> bool {
    const NOT: [(Ipv4Addr, u32); 16] = [
        (Ipv4Addr::new(0, 0, 0, 0), 8),
        (Ipv4Addr::new(10, 0, 0, 0), 8),
        (Ipv4Addr::new(100, 64, 0, 0), 10),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        (Ipv4Addr::new(172, 16, 0, 0), 12),
        (Ipv4Addr::new(192, 0, 0, 0), 24),
        (Ipv4Addr::new(192, 0, 2, 0), 24),
        (Ipv4Addr::new(192, 88, 99, 0), 24),
        (Ipv4Addr::new(192, 168, 0, 0), 16),
        (Ipv4Addr::new(198, 18, 0, 0), 15),
        (Ipv4Addr::new(198, 51, 100, 0), 24),
        (Ipv4Addr::new(203, 0, 113, 0), 24),
        // Multicast, and what is reserved behind it.
        (Ipv4Addr::new(224, 0, 0, 0), 3),
        // Azure answers its machines' questions here.
        (Ipv4Addr::new(168, 63, 129, 16), 32),
        // And Tencent's and others' relays of metadata.
        (Ipv4Addr::new(100, 100, 100, 200), 32),
    ];
    !NOT.iter()
        .any(|(first, bits)| within(address.into(), (*first).into(), *bits))
}

fn v6_public(address: Ipv6Addr) -> bool {
    let in_net = |first: [u16; 8], bits: u32| {
        let first = Ipv6Addr::from(first);
        within(address.into(), first.into(), bits)
    };
    // What translates to an IPv4 address is as good as that one.
    if in_net([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96) {
        let low = u32::try_from(address.to_bits() & u128::from(u32::MAX)).unwrap_or(0);
        return v4_public(Ipv4Addr::from_bits(low));
    }
    let global = in_net([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);
    // Protocols' own (Teredo among them), 6to4, and what is for documents.
    let special = in_net([0x2001, 0, 0, 0, 0, 0, 0, 0], 23)
        || in_net([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32)
        || in_net([0x2002, 0, 0, 0, 0, 0, 0, 0], 16)
        || in_net([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20);
    global && !special
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str]) -> AllowList {
        let texts: Vec<String> = entries.iter().map(|e| (*e).to_owned()).collect();
        AllowList::try_from(texts).unwrap()
    }

    fn allows(list: &AllowList, target: &str) -> bool {
        let target: Result<Target, _> = target.parse();
        target.is_ok_and(|target| list.target(&target).is_ok())
    }

    #[test]
    fn names_are_let_through_as_they_are_listed() {
        let list = list(&["api.anthropic.com", "*.example.com", "Host.Test:8443"]);
        for good in [
            "api.anthropic.com:443",
            "API.Anthropic.COM.:443",
            "a.example.com:443",
            "a.b.example.com:443",
            "host.test:8443",
        ] {
            assert!(allows(&list, good), "{good}");
        }
        for bad in [
            "api.anthropic.com:80",
            "api.anthropic.com",
            "xapi.anthropic.com:443",
            "api.anthropic.com.evil.test:443",
            "example.com:443",
            "badexample.com:443",
            "host.test:443",
            "host.test:08443x",
            "api.anthropic.com:+443",
            "user@api.anthropic.com:443",
            "api.anthropic.com\0.evil.test:443",
            "api.anthropic.com:0",
            "api.anthropic.com:65979",
            "127.0.0.1:443",
            "[::1]:443",
        ] {
            assert!(!allows(&list, bad), "{bad}");
        }
    }

    #[test]
    fn what_reads_as_an_address_elsewhere_is_no_name() {
        for text in [
            "127.1",
            "2130706433",
            "0x7f.1",
            "0x7f000001",
            "1.2.3.4.5",
            "a.0x1",
            "a.0x",
            "017700000001",
            "",
            ".",
            "a..b",
            "-a.b",
            "a-.b",
            "a b",
            "a/b",
            "a:b",
            "[::1]",
            "::1",
            "é.test",
        ] {
            assert!(text.parse::<HostName>().is_err(), "{text:?}");
        }
        assert!("0x.a".parse::<HostName>().is_ok());
    }

    #[test]
    fn addresses_are_let_through_only_where_they_are_listed_with_a_port() {
        let list = list(&[
            "127.0.0.1:8080",
            "10.0.0.0/8:5432",
            "[::1]:80",
            "[fd00::/8]:5432",
        ]);
        for good in [
            "127.0.0.1:8080",
            "10.9.8.7:5432",
            "[::1]:80",
            "[fd12::1]:5432",
        ] {
            assert!(allows(&list, good), "{good}");
        }
        for bad in [
            "127.0.0.1:80",
            "127.0.0.2:8080",
            "11.0.0.1:5432",
            "[::1]:8080",
            "8.8.8.8:443",
        ] {
            assert!(!allows(&list, bad), "{bad}");
        }
        // An allowed name may stand for a listed address, and for no other that is not public.
        let at = |text: &str, port| list.resolved(text.parse().unwrap(), port);
        assert!(at("10.0.0.1", 5432).is_ok() && at("8.8.8.8", 1).is_ok());
        assert_eq!(
            at("10.0.0.1", 443),
            Err(Refused::NotPublic("10.0.0.1".parse().unwrap()))
        );
    }

    #[test]
    fn a_bad_entry_says_how_a_good_one_looks() {
        for bad in [
            "",
            "*",
            "*.com",
            "*.",
            "a.*.com",
            "https://a.test",
            "a.test/",
            "a.test:",
            "a.test:0",
            "a.test:x",
            "127.0.0.1",
            "10.0.0.0/8",
            "10.1.2.3/8:80",
            "10.0.0.0/33:80",
            "10.0.0.0/+8:80",
            "::1:80",
            "[::1]",
            "[127.0.0.1]:80",
            "[fd00::/129]:80",
            "a b:80",
        ] {
            let error = AllowList::try_from(vec![bad.to_owned()]).unwrap_err();
            assert!(error.contains("\"api.anthropic.com\""), "{bad}: {error}");
        }
        let many = vec!["a.test".to_owned(); ENTRIES_MAX + 1];
        assert!(AllowList::try_from(many).is_err());
    }

    #[test]
    fn a_list_is_written_as_it_was_read() {
        let texts = [
            "a.test",
            "*.b.test:8443",
            "10.0.0.0/8:5432",
            "[::1]:80",
            "[fd00::/8]:1",
            "0.0.0.0/0:7",
        ];
        let list = list(&texts);
        assert_eq!(Vec::<String>::from(list), texts);
    }

    #[test]
    fn what_is_not_public() {
        for address in [
            "0.0.0.0",
            "127.0.0.1",
            "127.255.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "192.0.0.192",
            "198.18.0.1",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::7f00:1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001::1",
            "2002:7f00:1::",
            "2001:db8::1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "fec0::1",
            "4000::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "8.8.8.8",
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "160.79.104.10",
            "2606:4700::1111",
            "2a00:1450::1",
            "64:ff9b::808:808",
            "2001:4860:4860::8888",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }
}
