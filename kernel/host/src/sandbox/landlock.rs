//! L3: files by grant, TCP by port, and no signal to anybody else.

use ::landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, NetPort, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, Scope, make_bitflags,
};
use ksi_protocol::sandbox::{Network, Sandbox};

use super::{Taken, view::View};

/// The rules that this file knows; a kernel that knows less does what it can.
const FILES: ABI = ABI::V9;
const PORTS: ABI = ABI::V4;
const SCOPES: ABI = ABI::V6;

/// The rules, on the very files and directories that are granted. `own_network`:
/// TCP needs none, since nobody else is there.
pub(super) fn rules(sandbox: &Sandbox, view: &View, own_network: bool) -> Result<RulesetCreated, String> {
    made(sandbox, view, own_network).map_err(|error| error.to_string())
}

/// Puts the rules into force.
pub(super) fn enter(rules: RulesetCreated) -> Taken {
    match rules.restrict_self().map_err(|error| error.to_string())?.landlock {
        LandlockStatus::NotImplemented => Err("this kernel has none".into()),
        LandlockStatus::NotEnabled => Err("it is switched off on this machine".into()),
        LandlockStatus::Available { effective_abi, .. } => Ok(lacks(effective_abi).join(", ")),
    }
}

fn made(sandbox: &Sandbox, view: &View, own_network: bool) -> Result<RulesetCreated, RulesetError> {
    let mut read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let unusual = make_bitflags!(AccessFs::{Execute | MakeChar | MakeBlock | ResolveUnix});
    let mut write = AccessFs::from_all(FILES) & !unusual;
    if sandbox.exec {
        read |= AccessFs::Execute;
        write |= AccessFs::Execute;
    }
    if sandbox.unix {
        read |= AccessFs::ResolveUnix;
        write |= AccessFs::ResolveUnix;
    }
    let mut rules =
        Ruleset::default().handle_access(AccessFs::from_all(FILES))?.scope(Scope::from_all(SCOPES))?;
    if !own_network {
        rules = rules.handle_access(AccessNet::from_all(PORTS))?;
    }
    let mut rules = rules.create()?.add_rules(view.places().map(|granted| {
        let access = if granted.write { write } else { read };
        let possible = if granted.is_directory() { access } else { access & AccessFs::from_file(FILES) };
        Ok::<_, RulesetError>(PathBeneath::new(&granted.place.it, possible))
    }))?;
    if !own_network {
        if let Network::Ports(ports) = &sandbox.network {
            rules = rules.add_rules(rules_for(ports, AccessNet::ConnectTcp))?;
        }
        rules = rules.add_rules(rules_for(&sandbox.listen, AccessNet::BindTcp))?;
    }
    Ok(rules)
}

fn rules_for(
    ports: &[u16],
    access: AccessNet,
) -> impl Iterator<Item = Result<NetPort, RulesetError>> + use<'_> {
    ports.iter().map(move |port| Ok(NetPort::new(*port, access)))
}

/// What kernels of this age cannot hold back.
fn lacks(abi: ABI) -> Vec<&'static str> {
    let gaps = [
        (ABI::V3, "truncating files (Linux 6.2)"),
        (ABI::V4, "TCP ports (Linux 6.7)"),
        (ABI::V6, "signals (Linux 6.12)"),
    ];
    let lacking: Vec<_> = gaps.into_iter().filter(|(since, _)| abi < *since).map(|(_, what)| what).collect();
    if lacking.is_empty() { lacking } else { [vec!["without rules for"], lacking].concat() }
}

/// Tries to look at the root of the file system, which is never granted.
pub(super) fn holds() -> Taken {
    match std::fs::read_dir("/") {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(String::new()),
        _ => Err("files that are not granted can be read".into()),
    }
}
