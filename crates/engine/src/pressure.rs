//! What this machine has left: the facts that hold starts up, and nothing about whether they do.
//! Must not wait or fail: what cannot be asked is not known, and holds nothing up.

use std::{fs, path::Path};

use dispatch_core::schedule::Host;

/// What is free for the engine whose data lies there.
#[must_use]
pub fn host(data: &Path) -> Host {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    Host {
        disk_free_bytes: disk_free_bytes(data),
        memory_free_bytes: fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| memory_free_bytes(&text)),
        load_percent: fs::read_to_string("/proc/loadavg")
            .ok()
            .and_then(|text| load_percent(&text)),
        cores,
    }
}

fn disk_free_bytes(data: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(data).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn memory_free_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// `1.25 0.80 ...` is 125: the first number, always with two decimals.
fn load_percent(loadavg: &str) -> Option<u64> {
    let (whole, cents) = loadavg.split_whitespace().next()?.split_once('.')?;
    let cents: u64 = cents.parse().ok().filter(|_| cents.len() == 2)?;
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(100)?
        .checked_add(cents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read_and_nothing_is_guessed() {
        let meminfo = "MemTotal:       8000 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(memory_free_bytes(meminfo), Some(2048 * 1024));
        assert_eq!(memory_free_bytes("MemFree: 1 kB"), None);
        assert_eq!(load_percent("1.25 0.80 0.70 1/2 3"), Some(125));
        for odd in ["", "1", "1.2", "x.yz"] {
            assert_eq!(load_percent(odd), None, "{odd}");
        }
        assert!(host(Path::new("/")).disk_free_bytes.is_some());
    }
}
