//! What the warden locks: Landlock (which paths, whose signals and abstract sockets), then seccomp
//! (which system calls), both with no-new-privileges and inherited by everything it starts.
//! Must name each layer only when the kernel really holds it.
//!
//! To refuse one more system call: a row in `REFUSED`, and an attempt in the escape kit.

use std::{collections::BTreeMap, io};

use dispatch_core::{
    cage::{BWRAP, Policy, Sockets},
    container,
};
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter, sock_filter,
};

/// The newest that we know; the kernel's own may be older, and then less is asked of it.
const ABI_KNOWN: ABI = ABI::V6;

/// What no coding agent needs and every way out of a fence begins with. Debuggers lose ptrace.
#[rustfmt::skip]
const REFUSED: &[i64] = &[
    // Mounts and namespaces.
    libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root, libc::SYS_chroot, libc::SYS_setns,
    libc::SYS_unshare, libc::SYS_fsopen, libc::SYS_fsconfig, libc::SYS_fsmount, libc::SYS_fspick,
    libc::SYS_move_mount, libc::SYS_open_tree, libc::SYS_mount_setattr,
    // Other processes' memory.
    libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_kcmp,
    // Keys of the kernel, which no namespace divides.
    libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_request_key,
    // The kernel itself, and large parts of it that are rarely needed and often broken.
    libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_userfaultfd, libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter, libc::SYS_io_uring_register, libc::SYS_init_module,
    libc::SYS_finit_module, libc::SYS_delete_module, libc::SYS_kexec_load,
    libc::SYS_reboot, libc::SYS_swapon, libc::SYS_swapoff, libc::SYS_acct, libc::SYS_quotactl,
    libc::SYS_syslog, libc::SYS_vhangup, libc::SYS_personality,
    // Files by handle, past every mount.
    libc::SYS_open_by_handle_at, libc::SYS_name_to_handle_at,
    // The machine's name and clock.
    libc::SYS_sethostname, libc::SYS_setdomainname, libc::SYS_settimeofday,
    libc::SYS_clock_settime, libc::SYS_clock_adjtime, libc::SYS_adjtimex,
];

/// The layers that hold now; or why that is not enough.
pub(super) fn lock(policy: &Policy) -> Result<Vec<String>, String> {
    let mut layers = policy.outer.clone();
    let mut missing = Vec::new();
    if !layers.iter().any(|layer| mounts(layer)) {
        missing.push("bubblewrap".to_owned());
    }
    let landlock = restrict_paths(policy).map_err(|e| e.to_string())?;
    match landlock {
        Some((name, whole)) => {
            layers.push(name.clone());
            if !whole {
                missing.push(format!("a newer kernel: {name} holds only a part"));
            }
        }
        None => missing.push("Landlock".into()),
    }
    drop_capabilities().map_err(|e| format!("drop capabilities: {e}"))?;
    restrict_calls(policy.deny).map_err(|e| e.to_string())?;
    layers.push("seccomp".into());
    if landlock_or_mounts(&layers) && (!policy.strict || missing.is_empty()) {
        return Ok(layers);
    }
    let missing = missing.join(", ");
    Err(format!(
        "the fence would be incomplete: {missing} is missing; `dispatch doctor` tells more"
    ))
}

/// Bubblewrap did so already; where there is none, a root engine's jobs would be root indeed. With
/// no-new-privileges no program gets them back.
fn drop_capabilities() -> io::Result<()> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, none)?)
}

/// Seccomp alone keeps no file from anybody: that is not a cage.
fn landlock_or_mounts(layers: &[String]) -> bool {
    layers
        .iter()
        .any(|layer| mounts(layer) || layer.starts_with("landlock"))
}

/// Bubblewrap or a container engine: there only what is bound can be seen at all.
fn mounts(layer: &str) -> bool {
    layer == BWRAP || container::is_layer(layer)
}

/// The layer's name and whether the kernel holds all of it; `None`: it has no Landlock.
fn restrict_paths(policy: &Policy) -> Result<Option<(String, bool)>, landlock::RulesetError> {
    let all = AccessFs::from_all(ABI_KNOWN);
    let look = AccessFs::from_read(ABI_KNOWN);
    // A link that one job leaves would be followed by the next one, or by a program outside.
    let plain = all
        & !(AccessFs::MakeSym
            | AccessFs::MakeFifo
            | AccessFs::MakeSock
            | AccessFs::MakeChar
            | AccessFs::MakeBlock
            | AccessFs::Execute);
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::from_all(ABI_KNOWN))?
        .create()?
        .add_rules(path_beneath_rules(&policy.read, look))?
        .add_rules(path_beneath_rules(&policy.write, all))?
        .add_rules(path_beneath_rules(&policy.shared, plain))?
        .restrict_self()?;
    let abi = match status.landlock {
        LandlockStatus::Available {
            effective_abi,
            kernel_abi,
        } => kernel_abi.unwrap_or(effective_abi as i32),
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => return Ok(None),
    };
    Ok(match status.ruleset {
        RulesetStatus::NotEnforced => None,
        RulesetStatus::PartiallyEnforced => Some((format!("landlock(abi {abi})"), false)),
        RulesetStatus::FullyEnforced => Some((format!("landlock(abi {abi})"), true)),
    })
}

fn restrict_calls(deny: Sockets) -> io::Result<()> {
    let failed = |error: &dyn std::fmt::Display| io::Error::other(format!("seccomp: {error}"));
    for program in filters(deny).map_err(|e| failed(&e))? {
        apply_filter(&program).map_err(|e| failed(&e))?;
    }
    Ok(())
}

/// The kernel asks all of them and takes the strictest answer.
fn filters(deny: Sockets) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let argument = |index, op, value| SeccompCondition::new(index, Len::Dword, op, value);
    let mut refused: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    // New namespaces by clone; its flags are the first argument on both architectures.
    let new_namespaces = [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ];
    for flag in new_namespaces {
        let flag = u64::from(flag.cast_unsigned());
        let rule = SeccompRule::new(vec![argument(0, Op::MaskedEq(flag), flag)?])?;
        refused.entry(libc::SYS_clone).or_default().push(rule);
    }
    // Typing into a terminal that somebody else reads.
    for request in [libc::TIOCSTI, libc::TIOCLINUX] {
        let rule = SeccompRule::new(vec![argument(1, Op::Eq, request)?])?;
        refused.entry(libc::SYS_ioctl).or_default().push(rule);
    }
    // Device nodes: the third argument of mknodat is the mode.
    for kind in [libc::S_IFCHR, libc::S_IFBLK] {
        let (mask, kind) = (u64::from(libc::S_IFMT), u64::from(kind));
        let rule = SeccompRule::new(vec![argument(2, Op::MaskedEq(mask), kind)?])?;
        refused.entry(libc::SYS_mknodat).or_default().push(rule);
        #[cfg(target_arch = "x86_64")]
        {
            let rule = SeccompRule::new(vec![argument(1, Op::MaskedEq(mask), kind)?])?;
            refused.entry(libc::SYS_mknod).or_default().push(rule);
        }
    }
    let families: &[i32] = match deny {
        Sockets::None => &[],
        Sockets::Unix => &[libc::AF_UNIX],
        Sockets::UnixAndInternet => &[
            libc::AF_UNIX,
            libc::AF_INET,
            libc::AF_INET6,
            libc::AF_PACKET,
            libc::AF_VSOCK,
        ],
    };
    // Talking to the kernel's own tables stays possible over netlink; a VM's host is not ours.
    for family in families.iter().chain(&[libc::AF_VSOCK]) {
        let family = u64::from(family.cast_unsigned());
        let rule = SeccompRule::new(vec![argument(0, Op::Eq, family)?])?;
        refused.entry(libc::SYS_socket).or_default().push(rule);
    }
    let arch = std::env::consts::ARCH.try_into()?;
    let program = |rules, answer: i32| -> Result<BpfProgram, seccompiler::BackendError> {
        let answer = SeccompAction::Errno(answer.cast_unsigned());
        SeccompFilter::new(rules, SeccompAction::Allow, answer, arch)?.try_into()
    };
    let mut programs = vec![
        program(refused, libc::EPERM)?,
        // Its flags lie in memory, where no filter can look; libc then uses clone.
        program([(libc::SYS_clone3, Vec::new())].into(), libc::ENOSYS)?,
    ];
    #[cfg(target_arch = "x86_64")]
    programs.push(no_x32());
    Ok(programs)
}

/// The x32 calls are the same calls under other numbers, which no rule above would know.
#[cfg(target_arch = "x86_64")]
fn no_x32() -> BpfProgram {
    const X32: u32 = 0x4000_0000;
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        step(0x20, 0, 0, 0), // load the call's number
        step(0x35, 0, 1, X32),
        step(0x06, 0, 0, 0x0005_0000 | libc::ENOSYS.cast_unsigned()),
        step(0x06, 0, 0, 0x7fff_0000),
    ]
}
