//! Who connects: users of the system as principals.
//!
//! What a connection may do is decided when it attaches: by the user that the
//! system says is at its other end. `[identity]` maps users to tenants, roles
//! and capabilities; whoever runs the daemon holds everything unless it says
//! otherwise. Nothing that a client sends is looked at.
//!
//! # Invariants
//!
//! - All connections of one user have the same [`Principal`], and a reload
//!   changes it in place: what is taken away is gone with the next event.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ksi_identity::{Caller, Capability, Directory, Member, Permission, Principal};
use ksi_kernel::Declared;
use ksi_protocol::{Code, EventName, Pattern, Refusal, frame::Request};

use crate::config::{Audit, Config, TENANT};

/// The owner, where the configuration gives that user no name.
const OWNER: &str = "user:owner";

/// Everybody whom the daemon knows.
pub struct Identity {
    directory: Directory,
    /// Who runs the daemon.
    owner: u32,
    /// Names of principals by the users of the system.
    users: Mutex<HashMap<u32, String>>,
    /// What plugins may ask for.
    plugins: Mutex<HashMap<String, Vec<Pattern>>>,
}

impl Identity {
    /// Those of a configuration, of a daemon that this user runs.
    #[must_use]
    pub fn new(config: &Config, owner: u32) -> Self {
        let identity = Self {
            directory: Directory::default(),
            owner,
            users: Mutex::default(),
            plugins: Mutex::default(),
        };
        identity.configure(config);
        identity
    }

    /// From now on these are the users.
    pub fn configure(&self, config: &Config) {
        let mut users = HashMap::new();
        let mut members = Vec::new();
        let mut add = |uid: u32, name: String, tenant: &str, capabilities: Vec<Capability>| {
            users.insert(uid, name.clone());
            let tenant = Some(tenant.to_owned());
            members.push(Member { name, tenant, expires_ms: u64::MAX, capabilities, giver: None });
        };
        for (name, user) in &config.identity.users {
            add(user.uid, format!("user:{name}"), &user.tenant, config.identity.capabilities(user));
        }
        let named = |uid: u32| config.identity.users.values().any(|user| user.uid == uid);
        if !named(self.owner) {
            add(self.owner, OWNER.to_owned(), TENANT, vec![Capability::everything()]);
        }
        for &uid in config.daemon.allow_uids.iter().filter(|&&uid| uid != self.owner && !named(uid)) {
            add(uid, format!("uid:{uid}"), TENANT, Vec::new());
        }
        let plugins = config.plugins.values().map(|plugin| (plugin.name.clone(), plugin.may_call.clone()));
        *self.plugins.lock().unwrap_or_else(PoisonError::into_inner) = plugins.collect();
        let mut known = self.users();
        self.directory.appoint(members);
        *known = users;
    }

    /// Whoever is at the other end of a connection.
    ///
    /// # Errors
    ///
    /// `denied` for a user whom nobody has allowed.
    pub fn of_user(&self, uid: u32) -> Result<Arc<Principal>, Refusal> {
        let name = self.users().get(&uid).cloned();
        name.and_then(|name| self.directory.find(&name)).ok_or_else(|| {
            let message = format!("user {uid} may not use the daemon of user {}", self.owner);
            Refusal::new(Code::Denied, message)
                .hint("its owner can allow you: [identity.users] or daemon.allow_uids in ksi.toml")
        })
    }

    /// The principal of this name, `user:alice`. The owner is also found under
    /// the name that it has without a configuration.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<Principal>> {
        let owners = || self.users().get(&self.owner).cloned().filter(|_| name == OWNER);
        self.directory.find(name).or_else(|| self.directory.find(&owners()?))
    }

    /// The permission of this name.
    #[must_use]
    pub fn permission(&self, name: &str) -> Permission {
        self.directory.permission(name)
    }

    /// What the configuration says of an event, by the name that others use and
    /// the one that its owner declares.
    #[must_use]
    pub fn declared(&self, config: &Config, name: EventName, inner: &str) -> Declared {
        let Some(policy) = config.policy(name.as_str(), inner) else { return Declared::new(name) };
        Declared {
            name,
            timeout: policy.timeout,
            work: policy.work.clone(),
            permission: Some(self.permission(&policy.permission)),
            emit: policy.emit.as_ref().map(|emit| self.permission(emit)),
            audited: policy.audit == Audit::All,
        }
    }

    /// Who asked in the first place for what the plugin that keeps work hands
    /// over, and whether that was a plugin which may still ask for it. What that
    /// plugin kept is not believed further than to whom it points: the rights are
    /// those of now, and whoever is not there any more has none. Heeded from that
    /// plugin alone.
    #[must_use]
    pub fn kept(&self, request: &Request) -> (Option<Arc<Caller>>, bool) {
        let Some(origin) = request.origin.as_deref() else { return (None, false) };
        // Work that was kept before there were principals is the owner's.
        let (name, tenant) = match request.caller.as_deref() {
            Some(caller) => (&*caller.principal, caller.tenant.as_deref()),
            None => (OWNER, Some(TENANT)),
        };
        let known = self.find(name).filter(|known| known.tenant.as_deref() == tenant);
        let principal = known.unwrap_or_else(|| Principal::new(name, tenant, 0));
        let may_call = |plugin: &str| {
            let plugins = self.plugins.lock().unwrap_or_else(PoisonError::into_inner);
            plugins.get(plugin).is_some_and(|may| may.iter().any(|may| may.matches(request.event.as_str())))
        };
        let vouched = origin.strip_prefix("plugin:").is_some_and(may_call);
        (Some(Arc::new(Caller { origin: origin.into(), principal })), vouched)
    }

    fn users(&self) -> MutexGuard<'_, HashMap<u32, String>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
