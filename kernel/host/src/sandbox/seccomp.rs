//! L2: system calls that no plugin has any business with are denied, and those
//! that it has only with a grant.
//!
//! A list of what is denied, since a plugin may be any program. Denied calls
//! fail with `EPERM`; `clone3` and `openat2` with `ENOSYS`, because their
//! arguments lie in memory where no filter can look, and whoever calls them then
//! uses `clone` and `openat`.

use std::collections::BTreeMap;

use ksi_protocol::sandbox::{Network, Sandbox};
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Is, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter,
};

use super::Taken;

/// Never granted: tracing, other processes' memory, namespaces and mounts, the
/// kernel's own machinery, keys, clocks, and leaving the process group by which
/// all are ended together.
const DENIED: &[libc::c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    libc::SYS_tkill,
    libc::SYS_setsid,
    libc::SYS_setpgid,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    OPEN_TREE_ATTR,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_bpf,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_fanotify_init,
    libc::SYS_open_by_handle_at,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
];

/// The same, where there is more than on every machine.
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[libc::c_long] =
    &[libc::SYS_kexec_file_load, libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_uselib];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[libc::c_long] = &[libc::SYS_kexec_file_load];

/// The same number on every machine; from `asm-generic/unistd.h`.
const OPEN_TREE_ATTR: libc::c_long = 467;
const SETXATTRAT: libc::c_long = 463;
const REMOVEXATTRAT: libc::c_long = 466;
const FILE_SETATTR: libc::c_long = 469;

/// What changes the mode, owner, attributes or times of a file. Landlock has no
/// rule for these, and a descriptor that was opened to read is enough for them.
const ATTRIBUTES: &[libc::c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    SETXATTRAT,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    REMOVEXATTRAT,
    FILE_SETATTR,
];

/// The same, where there is more than on every machine.
#[cfg(target_arch = "x86_64")]
const ATTRIBUTES_HERE: &[libc::c_long] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
];
#[cfg(not(target_arch = "x86_64"))]
const ATTRIBUTES_HERE: &[libc::c_long] = &[];

/// The same as `ioctl`s: flags, generation, project and seal (verity) of a file;
/// from `linux/fs.h` and `linux/fsverity.h`.
const ATTRIBUTES_BY_IOCTL: [u64; 4] = [0x4008_6602, 0x4008_7602, 0x401c_5820, 0x4080_6685];

/// Calls that give a file its mode, by the number of that argument.
const MODES: &[(u8, libc::c_long)] =
    &[(1, libc::SYS_fchmod), (2, libc::SYS_fchmodat), (2, libc::SYS_fchmodat2), (2, libc::SYS_mknodat)];

/// The same, where there is more than on every machine.
#[cfg(target_arch = "x86_64")]
const MODES_HERE: &[(u8, libc::c_long)] = &[(1, libc::SYS_chmod), (1, libc::SYS_mknod), (1, libc::SYS_creat)];
#[cfg(not(target_arch = "x86_64"))]
const MODES_HERE: &[(u8, libc::c_long)] = &[];

/// Calls that look at their mode only where they make a file, by the number of
/// their flags, which it follows.
#[cfg(target_arch = "x86_64")]
const OPENS: &[(u8, libc::c_long)] = &[(1, libc::SYS_open), (2, libc::SYS_openat)];
#[cfg(not(target_arch = "x86_64"))]
const OPENS: &[(u8, libc::c_long)] = &[(2, libc::SYS_openat)];

/// The bit of `O_TMPFILE` that is not `O_DIRECTORY`; from
/// `asm-generic/fcntl.h`.
const O_TMPFILE: u64 = 0o20_000_000;

/// What starts processes, besides `clone`.
#[cfg(target_arch = "x86_64")]
const FORKS: &[libc::c_long] = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const FORKS: &[libc::c_long] = &[];

/// Namespaces that `clone` would make.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// Ways to say who owns a file and how that one is signalled, of `fcntl` and of
/// `ioctl`; from `asm-generic/fcntl.h` and `asm-generic/sockios.h`.
const F_SETSIG: libc::c_int = 10;
const F_SETOWN_EX: libc::c_int = 15;
const FIOSETOWN: u64 = 0x8901;
const SIOCSPGRP: u64 = 0x8902;

/// The bits that say of what kind a socket is; above them are flags.
const KIND: u64 = 0xf;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;
type Built<T> = Result<T, seccompiler::BackendError>;

/// What other layers have made the process's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Own {
    /// A network that nobody else is on.
    pub(super) network: bool,
    /// A root in which there is nothing but what is granted, and read-only where
    /// that is how it is granted.
    pub(super) root: bool,
}

/// Puts the filter into force.
pub(super) fn enter(sandbox: &Sandbox, own: Own) -> Result<(), String> {
    let denied = rules(sandbox, own).and_then(|rules| program(rules, libc::EPERM));
    let hidden = [libc::SYS_clone3, libc::SYS_openat2].map(|call| (call, Vec::new()));
    let absent = program(Rules::from(hidden), libc::ENOSYS);
    for program in [absent, denied] {
        let program = program.map_err(|error| error.to_string())?;
        apply_filter(&program).map_err(|error| error.to_string())?;
    }
    #[cfg(target_arch = "x86_64")]
    apply_filter(&other_numbers()).map_err(|error| error.to_string())?;
    Ok(())
}

fn program(rules: Rules, errno: libc::c_int) -> Built<BpfProgram> {
    let arch = std::env::consts::ARCH.try_into()?;
    let action = SeccompAction::Errno(errno.cast_unsigned());
    SeccompFilter::new(rules, SeccompAction::Allow, action, arch)?.try_into()
}

/// Denies the second set of numbers under which x86-64 has its system calls,
/// which the other filters do not know.
#[cfg(target_arch = "x86_64")]
fn other_numbers() -> BpfProgram {
    const X32: u32 = 0x4000_0000;
    let step = |code: u32, jt, jf, k| seccompiler::sock_filter {
        code: u16::try_from(code).unwrap_or(u16::MAX),
        jt,
        jf,
        k,
    };
    vec![
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned()),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

fn rules(sandbox: &Sandbox, own: Own) -> Built<Rules> {
    let mut rules = Rules::new();
    for call in DENIED.iter().chain(DENIED_HERE) {
        rules.insert(*call, Vec::new());
    }
    process_rules(&mut rules, sandbox.exec)?;
    socket_rules(&mut rules, sandbox, own.network)?;
    file_rules(&mut rules, own.root)?;
    // What the host has set for good.
    for option in [libc::PR_SET_PDEATHSIG, libc::PR_SET_DUMPABLE, libc::PR_SET_CHILD_SUBREAPER] {
        deny_if(&mut rules, libc::SYS_prctl, &[(0, Is::Eq, number(option))])?;
    }
    // Input that is pushed into somebody's terminal.
    deny_if(&mut rules, libc::SYS_ioctl, &[(1, Is::Eq, libc::TIOCSTI)])?;
    // Whoever owns a file is signalled when something comes for it, and it need
    // not be oneself.
    for command in [libc::F_SETOWN, F_SETSIG, F_SETOWN_EX] {
        deny_if(&mut rules, libc::SYS_fcntl, &[(1, Is::Eq, number(command))])?;
    }
    for request in [FIOSETOWN, SIOCSPGRP] {
        deny_if(&mut rules, libc::SYS_ioctl, &[(1, Is::Eq, request)])?;
    }
    // Old personalities bring old holes; asking for the present one is fine.
    let asking = 0xffff_ffff;
    deny_if(&mut rules, libc::SYS_personality, &[(0, Is::Ne, 0), (0, Is::Ne, asking)])?;
    Ok(rules)
}

/// Threads for all; processes and programs by grant; signals to oneself, and
/// with processes of one's own to those that other layers allow.
fn process_rules(rules: &mut Rules, exec: bool) -> Built<()> {
    for namespace in NAMESPACES {
        let flag = number(namespace);
        deny_if(rules, libc::SYS_clone, &[(0, Is::MaskedEq(flag), flag)])?;
    }
    let us = u64::from(std::process::id());
    // Limits, priorities and processors of others, the daemon among them. Its
    // own threads can be set only by themselves: by their numbers they cannot be
    // told from others'. Programs that it starts have other numbers than this.
    let own = if exec { vec![0] } else { vec![0, us] };
    for (argument, call) in [
        (0, libc::SYS_prlimit64),
        (1, libc::SYS_setpriority),
        (1, libc::SYS_ioprio_set),
        (0, libc::SYS_sched_setscheduler),
        (0, libc::SYS_sched_setparam),
        (0, libc::SYS_sched_setattr),
        (0, libc::SYS_sched_setaffinity),
    ] {
        let others: Vec<_> = own.iter().map(|pid| (argument, Is::Ne, *pid)).collect();
        deny_if(rules, call, &others)?;
    }
    // Nor priorities of all processes of its user: PRIO_USER and
    // IOPRIO_WHO_USER.
    for (call, of_a_user) in [(libc::SYS_setpriority, 2), (libc::SYS_ioprio_set, 3)] {
        deny_if(rules, call, &[(0, Is::Eq, of_a_user)])?;
    }
    if exec {
        return Ok(());
    }
    let thread = number(libc::CLONE_THREAD);
    deny_if(rules, libc::SYS_clone, &[(0, Is::MaskedEq(thread), 0)])?;
    for call in FORKS.iter().chain(&[libc::SYS_execve, libc::SYS_execveat]) {
        rules.insert(*call, Vec::new());
    }
    for call in [libc::SYS_kill, libc::SYS_tgkill, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo] {
        deny_if(rules, call, &[(0, Is::Ne, us)])?;
    }
    Ok(())
}

/// Sockets of the kinds that are granted. A pair that is connected for good leads
/// nowhere, so it is always allowed; what sends datagrams may send one to
/// anybody's path.
fn socket_rules(rules: &mut Rules, sandbox: &Sandbox, own_network: bool) -> Built<()> {
    deny_if(rules, libc::SYS_socketpair, &[(0, Is::Ne, number(libc::AF_UNIX))])?;
    if !sandbox.unix {
        unix_only(rules, libc::SYS_socketpair, &[libc::SOCK_STREAM, libc::SOCK_SEQPACKET])?;
    }
    let (internet, datagrams) = match &sandbox.network {
        // What was promised cannot be had, so there is nothing.
        Network::None | Network::Loopback if !own_network => (!sandbox.listen.is_empty(), false),
        Network::None => (false, false),
        Network::Loopback => (true, true),
        Network::Ports(ports) => (true, ports.contains(&53)),
    };
    // Rules on TCP ports are asked by `connect` and `bind` alone. Neither is
    // called by who sends and connects at once, nor by who listens without a
    // port and is given one.
    let at_once = number(libc::MSG_FASTOPEN);
    for (call, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
        deny_if(rules, call, &[(flags, Is::MaskedEq(at_once), at_once)])?;
    }
    let listens = !sandbox.listen.is_empty() || if internet { own_network } else { sandbox.unix };
    if !listens {
        rules.insert(libc::SYS_listen, Vec::new());
    }
    let mut families = Vec::new();
    if sandbox.unix || sandbox.gpu {
        families.push(libc::AF_UNIX);
    }
    if sandbox.gpu && !sandbox.unix {
        // NVIDIA's driver is of no use without a socket of this kind, with which
        // nobody else's can be reached that is of another.
        unix_only(rules, libc::SYS_socket, &[libc::SOCK_SEQPACKET])?;
    }
    if internet {
        families.extend([libc::AF_INET, libc::AF_INET6]);
    }
    let others: Vec<_> = families.iter().map(|family| (0, Is::Ne, number(*family))).collect();
    if others.is_empty() {
        rules.insert(libc::SYS_socket, Vec::new());
        return Ok(());
    }
    deny_if(rules, libc::SYS_socket, &others)?;
    // TCP, and UDP where it is granted, under their own names only: rules on
    // TCP ports know no other protocol that does the same.
    let mut kinds = vec![libc::SOCK_RAW, libc::SOCK_RDM, libc::SOCK_SEQPACKET, libc::SOCK_DCCP];
    let mut protocols = vec![(2, Is::Ne, 0), (2, Is::Ne, number(libc::IPPROTO_TCP))];
    if datagrams {
        protocols.push((2, Is::Ne, number(libc::IPPROTO_UDP)));
    } else {
        kinds.push(libc::SOCK_DGRAM);
    }
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = (0, Is::Eq, number(family));
        for kind in &kinds {
            let kind = (1, Is::MaskedEq(KIND), number(*kind));
            deny_if(rules, libc::SYS_socket, &[family.clone(), kind])?;
        }
        let other = [vec![family], protocols.clone()].concat();
        deny_if(rules, libc::SYS_socket, &other)?;
    }
    Ok(())
}

/// No file that runs as its owner for everybody who may start it, wherever it
/// lies; and without a root of one's own no change of what is known of a file, as
/// nothing else tells those that are granted from others.
fn file_rules(rules: &mut Rules, own_root: bool) -> Built<()> {
    for bit in [libc::S_ISUID, libc::S_ISGID].map(u64::from) {
        for (mode, call) in MODES.iter().chain(MODES_HERE) {
            deny_if(rules, *call, &[(*mode, Is::MaskedEq(bit), bit)])?;
        }
        for (flags, call) in OPENS {
            for making in [number(libc::O_CREAT), O_TMPFILE] {
                let making = (*flags, Is::MaskedEq(making), making);
                deny_if(rules, *call, &[making, (*flags + 1, Is::MaskedEq(bit), bit)])?;
            }
        }
    }
    if own_root {
        return Ok(());
    }
    for call in ATTRIBUTES.iter().chain(ATTRIBUTES_HERE) {
        rules.insert(*call, Vec::new());
    }
    for request in ATTRIBUTES_BY_IOCTL {
        deny_if(rules, libc::SYS_ioctl, &[(1, Is::Eq, request)])?;
    }
    Ok(())
}

/// Denies a call that would make Unix sockets of other kinds.
fn unix_only(rules: &mut Rules, call: libc::c_long, kinds: &[libc::c_int]) -> Built<()> {
    for other in (0..=KIND).filter(|kind| kinds.iter().all(|allowed| number(*allowed) != *kind)) {
        deny_if(rules, call, &[(0, Is::Eq, number(libc::AF_UNIX)), (1, Is::MaskedEq(KIND), other)])?;
    }
    Ok(())
}

/// Denies a call where all conditions on its arguments hold.
fn deny_if(rules: &mut Rules, call: libc::c_long, conditions: &[(u8, Is, u64)]) -> Built<()> {
    let conditions: Built<Vec<_>> = conditions
        .iter()
        .map(|(argument, is, value)| SeccompCondition::new(*argument, Width::Dword, is.clone(), *value))
        .collect();
    rules.entry(call).or_default().push(SeccompRule::new(conditions?)?);
    Ok(())
}

fn number(constant: libc::c_int) -> u64 {
    u64::from(constant.cast_unsigned())
}

/// Tries a call that changes nothing and that everybody is allowed otherwise.
pub(super) fn holds() -> Taken {
    match nix::sched::unshare(nix::sched::CloneFlags::empty()) {
        Err(nix::errno::Errno::EPERM) => Ok(String::new()),
        _ => Err("system calls pass the filter".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::skipped::skipped;

    const WITHOUT: &str = "this machine lets nobody set a filter of system calls";

    /// Which of these calls, with their first four arguments, are denied in such
    /// a sandbox; nothing where there are no filters. What is let through fails
    /// all the same: there is no such descriptor, and nothing at such an address.
    fn denied<const N: usize>(
        sandbox: Sandbox,
        own: Own,
        calls: [(libc::c_long, [i32; 4]); N],
    ) -> Option<[bool; N]> {
        // A filter is in force for the thread that has entered it.
        let tried = std::thread::spawn(move || {
            enter(&sandbox, own).ok()?;
            Some(calls.map(|(call, arguments)| is_denied(call, arguments)))
        });
        tried.join().unwrap()
    }

    #[expect(unsafe_code, reason = "as a plugin would make the call, past all wrappers")]
    fn is_denied(call: libc::c_long, arguments: [i32; 4]) -> bool {
        let [a, b, c, d] = arguments.map(libc::c_long::from);
        // SAFETY: integers, and no address of anything.
        let done = unsafe { libc::syscall(call, a, b, c, d) };
        nix::errno::Errno::result(done) == Err(nix::errno::Errno::EPERM)
    }

    fn granted(network: Network, listen: &[u16], unix: bool) -> Sandbox {
        Sandbox { network, listen: listen.into(), unix, ..Sandbox::default() }
    }

    fn with_network(network: bool) -> Own {
        Own { network, ..Own::default() }
    }

    #[test]
    fn nobody_connects_by_sending_whatever_is_granted() {
        let calls = |flags| {
            [
                (libc::SYS_sendto, [-1, 0, 0, flags]),
                (libc::SYS_sendmsg, [-1, 0, flags, 0]),
                (libc::SYS_sendmmsg, [-1, 0, 0, flags]),
            ]
        };
        for network in [Network::None, Network::Loopback, Network::Ports(vec![443, 53])] {
            for own in [false, true].map(with_network) {
                let with = |flags| denied(granted(network.clone(), &[80], true), own, calls(flags));
                let Some(at_once) = with(libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL) else {
                    return skipped(WITHOUT);
                };
                assert_eq!(at_once, [true; 3], "{network:?}");
                assert_eq!(with(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL), Some([false; 3]), "{network:?}");
            }
        }
    }

    #[test]
    fn a_pair_of_sockets_leads_nowhere_but_to_itself_without_a_grant_of_unix_sockets() {
        // The system makes sockets of datagrams of what is called raw, too.
        let kinds = [libc::SOCK_STREAM, libc::SOCK_SEQPACKET, libc::SOCK_DGRAM, libc::SOCK_RAW];
        let calls = kinds.map(|kind| {
            let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            (libc::SYS_socketpair, [libc::AF_UNIX, kind, 0, 0])
        });
        let gpu = Sandbox { gpu: true, ..Sandbox::default() };
        for (sandbox, expected) in [
            (Sandbox::default(), [false, false, true, true]),
            (gpu, [false, false, true, true]),
            (granted(Network::Ports(vec![443]), &[80], false), [false, false, true, true]),
            (granted(Network::None, &[], true), [false; 4]),
        ] {
            let Some(pairs) = denied(sandbox.clone(), Own::default(), calls) else { return skipped(WITHOUT) };
            assert_eq!(pairs, expected, "{sandbox:?}");
        }
    }

    #[test]
    fn who_may_listen_on_no_port_cannot_listen_at_all_where_others_could_come() {
        let ports = || Network::Ports(vec![443]);
        for (sandbox, own_network, expected) in [
            (granted(Network::None, &[], false), true, true),
            (granted(Network::None, &[], true), false, false),
            (granted(Network::None, &[8080], false), false, false),
            (granted(Network::Loopback, &[], false), true, false),
            (granted(Network::Loopback, &[], false), false, true),
            (granted(ports(), &[], false), false, true),
            (granted(ports(), &[], true), false, true),
            (granted(ports(), &[8080], false), false, false),
        ] {
            let own = with_network(own_network);
            let listen = denied(sandbox.clone(), own, [(libc::SYS_listen, [-1, 1, 0, 0])]);
            let Some(listen) = listen else { return skipped(WITHOUT) };
            assert_eq!(listen, [expected], "{sandbox:?}, its own network: {own_network}");
        }
    }

    #[test]
    fn what_is_known_of_a_file_is_changed_in_a_root_of_ones_own_only() {
        let calls = [
            (libc::SYS_fchmod, [-1, 0o600, 0, 0]),
            (libc::SYS_fchmodat, [-1, 0, 0o600, 0]),
            (libc::SYS_fchmodat2, [-1, 0, 0o600, 0]),
            (libc::SYS_fchown, [-1, -1, -1, 0]),
            (libc::SYS_fchownat, [-1, 0, -1, -1]),
            (libc::SYS_utimensat, [-1, 0, 0, 0]),
            (libc::SYS_fsetxattr, [-1, 0, 0, 0]),
            (libc::SYS_setxattr, [0, 0, 0, 0]),
            (libc::SYS_fremovexattr, [-1, 0, 0, 0]),
            (libc::SYS_ioctl, [-1, 0x4008_6602, 0, 0]),
        ];
        for root in [false, true] {
            let own = Own { root, ..Own::default() };
            let Some(found) = denied(Sandbox::default(), own, calls) else { return skipped(WITHOUT) };
            assert_eq!(found, [!root; 10], "a root of its own: {root}");
        }
    }

    #[test]
    fn no_file_is_made_that_runs_as_its_owner() {
        let calls = |mode| {
            [
                (libc::SYS_fchmod, [-1, mode, 0, 0]),
                (libc::SYS_fchmodat, [-1, 0, mode, 0]),
                (libc::SYS_fchmodat2, [-1, 0, mode, 0]),
                (libc::SYS_mknodat, [-1, 0, mode, 0]),
                (libc::SYS_openat, [-1, 0, libc::O_CREAT | libc::O_WRONLY, mode]),
                (libc::SYS_openat, [-1, 0, libc::O_TMPFILE | libc::O_WRONLY, mode]),
            ]
        };
        let own = Own { root: true, ..Own::default() };
        for (mode, expected) in [(0o4755, true), (0o2755, true), (0o6000, true), (0o1777, false)] {
            let Some(found) = denied(Sandbox::default(), own, calls(mode)) else { return skipped(WITHOUT) };
            assert_eq!(found, [expected; 6], "{mode:o}");
        }
        // Nobody looks at a mode where nothing is made.
        let opening = [(libc::SYS_openat, [-1, 0, libc::O_RDONLY, 0o4755])];
        assert_eq!(denied(Sandbox::default(), own, opening), Some([false]));
    }

    #[test]
    fn whoever_opens_by_what_lies_in_memory_is_told_that_there_is_no_such_call() {
        let tried = std::thread::spawn(|| {
            enter(&Sandbox::default(), Own { root: true, ..Own::default() }).ok()?;
            Some(rustix::fs::openat2(
                rustix::fs::CWD,
                "/dev/null",
                rustix::fs::OFlags::RDONLY,
                rustix::fs::Mode::empty(),
                rustix::fs::ResolveFlags::empty(),
            ))
        });
        let Some(opened) = tried.join().unwrap() else { return skipped(WITHOUT) };
        assert_eq!(opened.err(), Some(rustix::io::Errno::NOSYS));
    }
}
