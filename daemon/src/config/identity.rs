//! `[identity]`: who may connect, and what each may do.

use std::collections::{BTreeMap, HashMap};

use ksi_identity::{Capability, is_tenant};
use ksi_protocol::LOCAL_TENANT;
use nix::unistd::geteuid;

use super::{
    problem::suggest,
    section::{Report, Section},
    value::{capabilities, text_where, texts, whole},
};

/// What whoever runs the daemon is called where the configuration gives that user
/// no name: in tokens, in work that was kept, in the audit trail. Nobody else is.
const OWNER: &str = "owner";

/// Users and roles.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// What each role gives, by its name.
    pub roles: BTreeMap<String, Vec<Capability>>,
    /// Users by their name.
    pub users: BTreeMap<String, User>,
}

/// `[identity.users.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The user of the system.
    pub uid: u32,
    /// Whose data is seen.
    pub tenant: String,
    /// What is held: names of roles.
    pub roles: Vec<String>,
    /// What is held besides.
    pub capabilities: Vec<Capability>,
}

impl Identity {
    /// All that a user holds.
    #[must_use]
    pub fn capabilities(&self, user: &User) -> Vec<Capability> {
        let roles = user.roles.iter().filter_map(|role| self.roles.get(role)).flatten();
        roles.chain(&user.capabilities).cloned().collect()
    }
}

pub(super) fn read(report: &Report, mut section: Section<'_>) -> Identity {
    let mut identity = Identity::default();
    for (name, mut role) in section.section("roles").each() {
        check_name(&role, &name, "role");
        let given = role.get("capabilities", Vec::new(), capabilities);
        role.finish();
        identity.roles.insert(name, given);
    }
    let mut uids = HashMap::new();
    for (name, user) in section.section("users").each() {
        check_name(&user, &name, "user");
        if let Some(user) = read_user(user, &identity.roles) {
            let (at, uid) = user;
            if let Some(other) = uids.insert(uid.uid, name.clone()).filter(|_| report.is_whole()) {
                let message =
                    format!("`identity.users.{name}` and `identity.users.{other}` are both user {}", uid.uid);
                report.problem(&at, message, "one user of the system is one user here");
            }
            if name == OWNER && uid.uid != geteuid().as_raw() && report.is_whole() {
                let message =
                    format!("`identity.users.{name}` is user {}, who does not run the daemon", uid.uid);
                report.problem(&at, message, "that name is kept for whoever does; give this user another");
            }
            identity.users.insert(name, uid);
        }
    }
    section.finish();
    identity
}

fn read_user(
    mut section: Section<'_>,
    roles: &BTreeMap<String, Vec<Capability>>,
) -> Option<(super::Origin, User)> {
    let uid = section.get_required(
        "uid",
        || "`id -u NAME` prints it".to_owned(),
        whole(0..=u64::from(u32::MAX - 1)),
    );
    let tenant = section.get(
        "tenant",
        LOCAL_TENANT.to_owned(),
        text_where(
            is_tenant,
            "the name of a tenant",
            "1 to 64 bytes of letters, digits, `_`, `-`, `.` and `@`, not beginning with a dot",
        ),
    );
    let held = section.get("roles", Vec::new(), texts);
    for role in held.iter().filter(|role| section.report.is_whole() && !roles.contains_key(*role)) {
        let known: Vec<_> = roles.keys().map(String::as_str).collect();
        let message = format!("`{}` names `{role}`, and there is no such role", section.name("roles"));
        section.report.problem(&section.place("roles"), message, suggest(role, &known, "there are"));
    }
    let besides = section.get("capabilities", Vec::new(), capabilities);
    let at = section.at.clone();
    section.finish();
    Some((at, User { uid: uid?, tenant, roles: held, capabilities: besides }))
}

fn check_name(section: &Section<'_>, name: &str, what: &str) {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-' | b'.');
    if !(1..=64).contains(&name.len()) || !name.bytes().all(allowed) {
        let message = format!("`{}` is no name for a {what}", section.own_name());
        section.report.problem(
            &section.at,
            message,
            "lower-case letters, digits, `_`, `-` and `.`, at most 64",
        );
    }
}
