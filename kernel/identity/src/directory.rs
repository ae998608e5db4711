//! The directory: who there is, and what each holds.
//!
//! It is told who there is as a whole, whenever that changes, and changes the
//! principals that exist in place: connections that are open hold the same ones,
//! so what changes here holds for their next event.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{Capability, PERMISSIONS_MAX, Permission, Principal};

/// Somebody, as the configuration or a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As [`Principal::name`].
    pub name: String,
    /// As [`Principal::tenant`].
    pub tenant: Option<String>,
    /// As [`Principal::expires_ms`]; the giver's where that is earlier.
    pub expires_ms: u64,
    /// What it is to hold.
    pub capabilities: Vec<Capability>,
    /// The name of whoever gave it that, and who must come before it in the list.
    /// `None`: the configuration.
    pub giver: Option<String>,
}

impl Member {
    /// Whether what it gives others has a share of its own: a user sees to it who
    /// answers for every tenant; anybody else would multiply his own.
    fn gives_shares(&self) -> bool {
        let all = |capability: &Capability| capability.gives(Permission::EVERY_TENANT.1);
        self.giver.is_none() && self.capabilities.iter().any(all)
    }
}

/// Who there is.
pub struct Directory(Mutex<State>);

struct State {
    /// Permissions; the place of each is its bit.
    names: Vec<Arc<str>>,
    /// In the order in which they were given.
    members: Vec<(Member, Arc<Principal>)>,
    /// Places among them.
    places: HashMap<String, usize>,
}

impl Default for Directory {
    fn default() -> Self {
        let reserved = [Permission::ADMIN, Permission::EVERY_TENANT, Permission::PLUGINS];
        let mut names = vec![Arc::from(""); reserved.len()];
        for (bit, name) in reserved {
            names[usize::from(bit)] = name.into();
        }
        Self(Mutex::new(State { names, members: Vec::new(), places: HashMap::new() }))
    }
}

impl Directory {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The permission of this name, which is nobody's before the first time it is
    /// asked for. Beyond [`PERMISSIONS_MAX`] of them it is nobody's ever.
    #[must_use]
    pub fn permission(&self, name: &str) -> Permission {
        let mut state = self.lock();
        let known = state.names.iter().position(|known| &**known == name);
        let place = known.unwrap_or_else(|| {
            let place = state.names.len();
            if place < PERMISSIONS_MAX {
                state.names.push(name.into());
                state.settle(place, |_| true);
            }
            place
        });
        let bit = u16::try_from(place).unwrap_or(u16::MAX);
        Permission { bit, name: state.names.get(place).cloned().unwrap_or_else(|| name.into()) }
    }

    /// From now on these are all who there is. Who was there before under the same
    /// name, of the same tenant and with the same end, is the same principal;
    /// whoever is not there any more holds nothing.
    pub fn appoint(&self, members: Vec<Member>) {
        let mut state = self.lock();
        let before = std::mem::take(&mut state.members);
        let places = std::mem::take(&mut state.places);
        // By place, whose bits may be others than before.
        let mut changed = Vec::new();
        for mut member in members {
            // Of two with one name the first is meant.
            if state.places.contains_key(&member.name) {
                continue;
            }
            let giver = member.giver.as_ref().map(|giver| state.places.get(giver).copied());
            let ends = match giver {
                None => u64::MAX,
                Some(giver) => giver.map_or(0, |giver| state.members[giver].1.expires_ms),
            };
            member.expires_ms = member.expires_ms.min(ends);
            let payer = match giver.flatten().map(|giver| &state.members[giver]) {
                Some((giver, principal)) if !giver.gives_shares() => principal.payer.clone(),
                _ => member.name.as_str().into(),
            };
            let known = places.get(&member.name).map(|&place| &before[place]).filter(|(_, known)| {
                known.tenant.as_deref() == member.tenant.as_deref()
                    && known.expires_ms == member.expires_ms
                    && known.payer == payer
            });
            let is_as_before = known.is_some_and(|(known, _)| *known == member);
            changed.push(!is_as_before || giver.flatten().is_some_and(|giver| changed[giver]));
            let tenant = member.tenant.as_deref();
            let principal = known
                .map(|(_, principal)| Arc::clone(principal))
                .unwrap_or_else(|| Principal::charged_to(payer, &member.name, tenant, member.expires_ms));
            let place = state.members.len();
            state.places.insert(member.name.clone(), place);
            state.members.push((member, principal));
        }
        for (_, gone) in before {
            let now = state.places.get(&*gone.name).map(|&place| &state.members[place].1);
            if now.is_none_or(|now| !Arc::ptr_eq(now, &gone)) {
                gone.strip();
            }
        }
        state.settle(0, |place| changed[place]);
    }

    /// The principal of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Arc<Principal>> {
        let state = self.lock();
        state.places.get(name).map(|&place| Arc::clone(&state.members[place].1))
    }

    /// The names of the permissions that a capability would give and a principal
    /// does not hold: it cannot pass them on. What gives no permission that is known
    /// may give one some day, so only they pass it on whose own capabilities, and
    /// those of all who gave them, give whatever that can be; of others it is the
    /// capability itself.
    #[must_use]
    pub fn lacks(&self, principal: &Principal, capability: &Capability) -> Vec<Arc<str>> {
        let state = self.lock();
        let held = |bit: usize| u16::try_from(bit).is_ok_and(|bit| principal.is_given(bit));
        let given = |name: &str| name != Permission::PLUGINS.1 && capability.gives(name);
        let mut known = state.names.iter().enumerate().filter(|(_, name)| given(name)).peekable();
        if known.peek().is_none() && !state.covers(&principal.name, capability) {
            return vec![capability.as_str().into()];
        }
        known.filter(|&(bit, _)| !held(bit)).map(|(_, name)| Arc::clone(name)).collect()
    }
}

impl State {
    /// Whether a member's capabilities, and those of all who gave it any, give all
    /// that a capability can.
    fn covers(&self, name: &str, capability: &Capability) -> bool {
        let mut next = self.places.get(name).copied();
        while let Some(place) = next {
            let (member, _) = &self.members[place];
            if !member.capabilities.iter().any(|own| own.gives(capability.as_str())) {
                return false;
            }
            let Some(giver) = &member.giver else { return true };
            // Givers come first.
            next = self.places.get(giver).copied().filter(|&giver| giver < place);
        }
        false
    }

    /// Sets all bits from this one on, of some members. Givers come first, so what
    /// they hold is known when it is looked at. Whoever does not see a tenant gives
    /// nothing in it: what can be done there is then not the giver's either.
    fn settle(&self, from: usize, of: impl Fn(usize) -> bool) {
        let members = self.members.iter().enumerate().filter(|(place, _)| of(*place));
        for (_, (member, principal)) in members {
            let giver = member.giver.as_ref().map(|giver| {
                let giver = self.places.get(giver).map(|&place| &self.members[place].1);
                giver.filter(|giver| giver.gives_in(principal.tenant.as_deref()))
            });
            for (place, name) in self.names.iter().enumerate().skip(from) {
                let Ok(bit) = u16::try_from(place) else { continue };
                let can_be_given = match giver {
                    None => true,
                    Some(giver) => giver.is_some_and(|giver| giver.is_given(bit)),
                };
                let given = can_be_given
                    && bit != Permission::PLUGINS.0
                    && member.capabilities.iter().any(|capability| capability.gives(name));
                principal.set(bit, given);
            }
        }
    }
}

#[cfg(test)]
mod tests;
