//! Who connects: users of the system, and whoever shows a token, as principals.
//!
//! What a connection may do is decided when it attaches: by a token that it
//! shows, or else by the user that the system says is at its other end.
//! `[identity]` maps users to tenants, roles and capabilities; whoever runs the
//! daemon holds everything unless it says otherwise. Nothing else that a client
//! sends is looked at.
//!
//! # Invariants
//!
//! - All connections of one user, or of one token, have the same [`Principal`],
//!   and a reload or a revocation changes it in place: what is taken away is gone
//!   with the next event.
//! - A token holds no more than whoever made it does, nothing in a tenant that
//!   one does not see any more, and ends with that one.
//! - No token is in memory, in a file or in a log; only its hash is kept.

mod tokens;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ksi_identity::{Caller, Capability, Directory, Member, Permission, Principal, is_tenant};
use ksi_kernel::Declared;
use ksi_protocol::{
    Code, EventName, LOCAL_TENANT, Pattern, Refusal,
    frame::Request,
    limits::fair_share,
    token::{CreateToken, CreatedToken, RevokedTokens, Token, TokenInfo},
};

use self::tokens::{Record, TOKENS_MAX, Tokens};
use crate::config::{Audit, Config, Frozen};

/// The owner, where the configuration gives that user no name; it calls nobody else
/// `owner`.
const OWNER: &str = "user:owner";

/// Longest name that a token is given, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Everybody whom the daemon knows.
pub struct Identity {
    directory: Directory,
    /// Who runs the daemon.
    owner: u32,
    /// Where tokens are kept.
    file: PathBuf,
    /// Held by whoever changes who there is, over the reading and writing of that
    /// file. Whoever only looks takes `state` alone, and waits for no disk.
    changing: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Names of principals by the users of the system.
    users: HashMap<u32, String>,
    /// Those of the configuration.
    members: Vec<Member>,
    tokens: Tokens,
    /// What plugins may ask for.
    plugins: HashMap<String, Vec<Pattern>>,
}

impl Identity {
    /// Those of a configuration and a file of tokens, of a daemon that this user
    /// runs.
    #[must_use]
    pub fn new(config: &Config, owner: u32, file: PathBuf) -> Self {
        let (directory, changing, state) = (Directory::default(), Mutex::default(), Mutex::default());
        let identity = Self { directory, owner, file, changing, state };
        identity.configure(config);
        identity
    }

    /// From now on these are the users; tokens are read again.
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
            add(self.owner, OWNER.to_owned(), LOCAL_TENANT, vec![Capability::everything()]);
        }
        for &uid in config.daemon.allow_uids.iter().filter(|&&uid| uid != self.owner && !named(uid)) {
            add(uid, format!("uid:{uid}"), LOCAL_TENANT, Vec::new());
        }
        let plugins = config.plugins.values().map(|plugin| (plugin.name.clone(), plugin.may_call.clone()));
        let plugins = plugins.collect();
        let _changing = self.changing();
        let tokens = Tokens::load(&self.file, self.owner);
        if let Some(why) = tokens.trouble() {
            tracing::error!("no token is taken: {why}");
        }
        let all = self.all(&users, &members, &tokens);
        let mut state = self.lock();
        *state = State { users, members, tokens, plugins };
        self.directory.appoint(all);
    }

    /// Changes which tokens there are, once that is safe on the disk; one change
    /// at a time.
    fn change<T>(&self, change: impl FnOnce(&mut Vec<Record>) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let _changing = self.changing();
        let (users, members, mut records) = {
            let state = self.lock();
            (state.users.clone(), state.members.clone(), state.tokens.believed()?.to_vec())
        };
        let done = change(&mut records)?;
        let tokens = Tokens::save(&self.file, records)?;
        let all = self.all(&users, &members, &tokens);
        let mut state = self.lock();
        state.tokens = tokens;
        self.directory.appoint(all);
        Ok(done)
    }

    /// Users, and whoever holds a token.
    fn all(&self, users: &HashMap<u32, String>, members: &[Member], tokens: &Tokens) -> Vec<Member> {
        let owner = users.get(&self.owner);
        let given = tokens.list().iter().map(|Record { info, .. }| Member {
            name: name_of(&info.id),
            tenant: Some(info.tenant.clone()),
            expires_ms: info.expires_ms.unwrap_or(u64::MAX),
            capabilities: info.can.iter().filter_map(|text| Capability::parse(text).ok()).collect(),
            // What the owner gave before it had a name is still the owner's.
            giver: owner.filter(|_| info.giver == OWNER).or(Some(&info.giver)).cloned(),
        });
        members.iter().cloned().chain(given).collect()
    }

    /// Whoever shows a token.
    ///
    /// # Errors
    ///
    /// `denied` where it is none, was revoked or has expired; `unavailable` while
    /// tokens cannot be read.
    pub fn of_token(&self, token: &Token, now_ms: u64) -> Result<Arc<Principal>, Refusal> {
        let name = {
            let state = self.lock();
            let records = state.tokens.believed()?;
            let found = token.id().and_then(|id| records.iter().find(|record| record.info.id == id));
            found.filter(|record| record.is(token)).map(|record| name_of(&record.info.id))
        };
        let principal = name.and_then(|name| self.directory.find(&name));
        principal.filter(|principal| now_ms < principal.expires_ms).ok_or_else(|| {
            Refusal::new(Code::Denied, "this token is none, was revoked or has expired")
                .hint("`ksi token list` shows which there are, `ksi token create` makes another")
        })
    }

    /// Makes a token in somebody's name.
    ///
    /// # Errors
    ///
    /// `invalid_payload` for a name, a capability or a time that is none, `denied` where it
    /// would give more than whoever asks holds; `busy` where as many have come of
    /// that one as its share is, unless it sees every tenant; `busy` and
    /// `unavailable` as the file of tokens says.
    pub fn create(&self, asker: &Principal, ask: CreateToken, now_ms: u64) -> Result<CreatedToken, Refusal> {
        let CreateToken { name, can, tenant, expires_in_ms } = ask;
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            let rule = format!("`name` must have 1 to {NAME_BYTES_MAX} bytes, and no control characters");
            return Err(Refusal::invalid_payload(rule));
        }
        if expires_in_ms == Some(0) {
            let refusal = Refusal::invalid_payload("a token that has expired at once is of no use");
            return Err(refusal
                .at("expires_in_ms")
                .hint("leave it out for one that lasts until it is revoked"));
        }
        if can.is_empty() {
            return Err(Refusal::invalid_payload("a token that can do nothing is of no use").at("can"));
        }
        let own = asker.tenant.as_deref().filter(|_| self.find(&asker.name).is_some());
        let Some(own) = own else {
            return Err(Refusal::new(Code::Denied, "only users and tokens make tokens"));
        };
        let tenant = tenant.unwrap_or_else(|| own.to_owned());
        if !is_tenant(&tenant) {
            let rule = "1 to 64 bytes of letters, digits, `_`, `-`, `.` and `@`, not beginning with a dot";
            return Err(Refusal::invalid_payload(format!("a tenant has {rule}")).at("tenant"));
        }
        if !asker.sees(Some(&tenant), now_ms) {
            return Err(beyond(asker, Permission::EVERY_TENANT.1));
        }
        for text in &can {
            let capability = Capability::parse(text)
                .map_err(|error| Refusal::invalid_payload(error.to_string()).at("can"))?;
            if let Some(missing) = self.directory.lacks(asker, &capability).first() {
                return Err(beyond(asker, missing));
            }
        }
        let expires =
            expires_in_ms.map_or(u64::MAX, |time| now_ms.saturating_add(time)).min(asker.expires_ms);
        let expires_ms = Some(expires).filter(|&expires| expires != u64::MAX);
        let giver = String::from(&*asker.name);
        let info = TokenInfo { id: String::new(), name, can, tenant, giver, created_ms: now_ms, expires_ms };
        self.change(|records| {
            // What has expired is of no use to anybody.
            records.retain(|record| record.info.expires_ms.is_none_or(|expires| now_ms < expires));
            let own = descendants(records, &asker.payer).len();
            let share = fair_share(TOKENS_MAX, records.len() - own);
            if own >= share && !asker.holds(Permission::EVERY_TENANT.0, now_ms) {
                let message = format!("{own} tokens come of `{}`; the rest is for others", asker.payer);
                return Err(Refusal::new(Code::Busy, message).hint("`ksi token revoke ID` takes one back"));
            }
            let (record, token) = loop {
                let (record, token) = Record::fresh(info.clone())?;
                if !records.iter().any(|other| other.info.id == record.info.id) {
                    break (record, token);
                }
            };
            let info = record.info.clone();
            records.push(record);
            Ok(CreatedToken { token, info })
        })
    }

    /// Tokens that somebody has made, and those made with them; all of them for
    /// whoever sees every tenant.
    ///
    /// # Errors
    ///
    /// `unavailable` while they cannot be read.
    pub fn list(&self, asker: &Principal, now_ms: u64) -> Result<Vec<TokenInfo>, Refusal> {
        let state = self.lock();
        let seen = seen(state.tokens.believed()?, asker, now_ms);
        Ok(seen.map(|record| record.info.clone()).collect())
    }

    /// Takes back a token that somebody sees, and all that were made with it; also
    /// on connections that are open.
    ///
    /// # Errors
    ///
    /// `not_found`; otherwise as the file of tokens says.
    pub fn revoke(&self, asker: &Principal, id: &str, now_ms: u64) -> Result<RevokedTokens, Refusal> {
        self.change(|records| {
            if !seen(records, asker, now_ms).any(|record| record.info.id == id) {
                return Err(Refusal::not_found("token", id).hint("`ksi token list` shows yours"));
            }
            let made = descendants(records, &name_of(id));
            let revoked: Vec<String> =
                std::iter::once(id).chain(made.iter().copied()).map(str::to_owned).collect();
            let gone: HashSet<&str> = revoked.iter().map(String::as_str).collect();
            records.retain(|record| !gone.contains(&*record.info.id));
            Ok(RevokedTokens { revoked })
        })
    }

    /// Why no token is taken, where that is so.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.lock().tokens.trouble().map(|why| format!("no token is taken: {why}"))
    }

    /// Whoever is at the other end of a connection.
    ///
    /// # Errors
    ///
    /// `denied` for a user whom nobody has allowed.
    pub fn of_user(&self, uid: u32) -> Result<Arc<Principal>, Refusal> {
        let name = self.lock().users.get(&uid).cloned();
        name.and_then(|name| self.directory.find(&name)).ok_or_else(|| {
            let message = format!("user {uid} may not use the daemon of user {}", self.owner);
            Refusal::new(Code::Denied, message)
                .hint("its owner can allow you: [identity.users] or daemon.allow_uids in ksi.toml")
        })
    }

    /// Whether the daemon's owner is charged for what somebody has.
    #[must_use]
    pub fn is_owners(&self, principal: &Principal) -> bool {
        self.lock().users.get(&self.owner).is_some_and(|owner| *owner == *principal.payer)
    }

    /// The principal of this name, `user:alice`. The owner is also found under
    /// the name that it has without a configuration.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<Principal>> {
        let owners = || self.lock().users.get(&self.owner).cloned().filter(|_| name == OWNER);
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
            unfrozen: policy.frozen == Frozen::GoesOn,
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
            None => (OWNER, Some(LOCAL_TENANT)),
        };
        let known = self.find(name).filter(|known| known.tenant.as_deref() == tenant);
        let principal = known.unwrap_or_else(|| Principal::new(name, tenant, 0));
        let may_call = |plugin: &str| {
            self.lock()
                .plugins
                .get(plugin)
                .is_some_and(|may| may.iter().any(|may| may.matches(request.event.as_str())))
        };
        let vouched = origin.strip_prefix("plugin:").is_some_and(may_call);
        (Some(Arc::new(Caller { origin: origin.into(), principal })), vouched)
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The principal of a token.
fn name_of(id: &str) -> String {
    format!("token:{id}")
}

/// Ids of the tokens that somebody has made, and of those made with them. They
/// stand in the order in which they were made, so one look is enough.
fn descendants<'a>(records: &'a [Record], giver: &str) -> Vec<&'a str> {
    let (mut made, mut known) = (Vec::new(), HashSet::new());
    for Record { info, .. } in records {
        let of_one = || info.giver.strip_prefix("token:").is_some_and(|id| known.contains(id));
        if info.giver == giver || of_one() {
            made.push(&*info.id);
            known.insert(&*info.id);
        }
    }
    made
}

/// Tokens that somebody sees: those that come of it, and all of them where it sees
/// every tenant.
fn seen<'a>(records: &'a [Record], asker: &Principal, now_ms: u64) -> impl Iterator<Item = &'a Record> {
    let all = asker.holds(Permission::EVERY_TENANT.0, now_ms);
    let made: HashSet<&str> =
        if all { HashSet::new() } else { descendants(records, &asker.name).into_iter().collect() };
    records.iter().filter(move |record| all || made.contains(&*record.info.id))
}

fn beyond(asker: &Principal, permission: &str) -> Refusal {
    let message =
        format!("`{}` does not hold `{permission}`, and no token can give what its maker lacks", asker.name);
    Refusal::new(Code::Denied, message)
        .hint("ask for less")
        .details(serde_json::json!({ "permission": permission, "principal": &*asker.name }))
}

#[cfg(test)]
mod tests;
