//! Principals: in whose name something is sent, and what that may.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Most permissions that can be told apart.
pub const PERMISSIONS_MAX: usize = 1024;

/// Longest name of a tenant in bytes.
const TENANT_BYTES_MAX: usize = 64;

/// What it takes to send or hear an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission {
    /// Its bit, below [`PERMISSIONS_MAX`]; one beyond is held by nobody.
    pub bit: u16,
    /// What people call it.
    pub name: Arc<str>,
}

impl Permission {
    /// The bit and name of what an event takes of which no policy says more.
    pub const ADMIN: (u16, &'static str) = (0, "system.admin");
    /// Those of hearing and seeing what belongs to other tenants.
    pub const EVERY_TENANT: (u16, &'static str) = (1, "tenant.all");
    /// Those of what no principal ever holds: only plugins ask for it.
    pub const PLUGINS: (u16, &'static str) = (2, "plugins.only");

    /// The bit and the name, of [`Permission::ADMIN`] where there is no policy.
    #[must_use]
    pub fn of(policy: Option<&Self>) -> (u16, &str) {
        policy.map_or(Self::ADMIN, |permission| (permission.bit, &permission.name))
    }
}

/// A user, a token, a plugin or the daemon itself. All connections of one share
/// it.
pub struct Principal {
    /// `user:alice`, `token:k3f9`, `plugin:echo`, `daemon`.
    pub name: Box<str>,
    /// Whose data it sees; `None` for plugins and the daemon, who serve all.
    pub tenant: Option<Box<str>>,
    /// From when on it holds nothing, milliseconds since 1970.
    pub expires_ms: u64,
    /// To whose share it is charged what it has open: its own name or, of a token,
    /// that of whoever made it, unless that was a user who sees every tenant. So
    /// whoever makes more tokens has no more.
    pub payer: Arc<str>,
    held: [AtomicU64; PERMISSIONS_MAX / 64],
}

impl Principal {
    /// One that holds nothing; a [`Directory`](crate::Directory) makes those that
    /// do.
    #[must_use]
    pub fn new(name: &str, tenant: Option<&str>, expires_ms: u64) -> Arc<Self> {
        Self::charged_to(name.into(), name, tenant, expires_ms)
    }

    /// The same, of another tenant, and holding nothing: in its name a plugin tells
    /// of what belongs to that one.
    #[must_use]
    pub fn of_tenant(&self, tenant: &str) -> Arc<Self> {
        Self::charged_to(self.payer.clone(), &self.name, Some(tenant), 0)
    }

    /// One that holds nothing, for which `payer` is charged.
    pub(crate) fn charged_to(
        payer: Arc<str>,
        name: &str,
        tenant: Option<&str>,
        expires_ms: u64,
    ) -> Arc<Self> {
        let (name, tenant) = (name.into(), tenant.map(Into::into));
        Arc::new(Self { name, tenant, expires_ms, payer, held: Default::default() })
    }

    /// Whether it holds a permission now.
    #[must_use]
    pub fn holds(&self, bit: u16, now_ms: u64) -> bool {
        now_ms < self.expires_ms && self.is_given(bit)
    }

    /// Whether it may see what belongs to a tenant, or to nobody.
    #[must_use]
    pub fn sees(&self, tenant: Option<&str>, now_ms: u64) -> bool {
        tenant.is_none() || tenant == self.tenant.as_deref() || self.holds(Permission::EVERY_TENANT.0, now_ms)
    }

    /// Whether it sees a tenant until it expires, and so can give anything there.
    pub(crate) fn gives_in(&self, tenant: Option<&str>) -> bool {
        tenant == self.tenant.as_deref() || self.is_given(Permission::EVERY_TENANT.0)
    }

    /// Whether it holds a permission until it expires.
    pub(crate) fn is_given(&self, bit: u16) -> bool {
        let word = self.held.get(usize::from(bit / 64));
        word.is_some_and(|word| word.load(Ordering::Acquire) >> (bit % 64) & 1 == 1)
    }

    /// Gives it a permission, or takes it away. A bit that is none is nothing.
    pub(crate) fn set(&self, bit: u16, given: bool) {
        let Some(word) = self.held.get(usize::from(bit / 64)) else { return };
        if given {
            word.fetch_or(1 << (bit % 64), Ordering::AcqRel);
        } else {
            word.fetch_and(!(1 << (bit % 64)), Ordering::AcqRel);
        }
    }

    pub(crate) fn strip(&self) {
        for word in &self.held {
            word.store(0, Ordering::Release);
        }
    }
}

/// There is one of each.
impl PartialEq for Principal {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Principal {}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Principal")
            .field("name", &self.name)
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}

/// Whether a text can name a tenant: 1 to 64 bytes of letters and digits of any
/// script, `_`, `-`, `.` and `@`, not beginning with a dot. So a name is also
/// harmless where somebody makes a path of it.
#[must_use]
pub fn is_tenant(text: &str) -> bool {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '@');
    (1..=TENANT_BYTES_MAX).contains(&text.len()) && !text.starts_with('.') && text.chars().all(allowed)
}
