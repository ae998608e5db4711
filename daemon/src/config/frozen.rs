//! Which events go on while KSI is frozen.

/// What becomes of requests for an event while KSI is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frozen {
    /// They are refused.
    Refused,
    /// They go on.
    GoesOn,
}

impl Frozen {
    /// What holds where nothing else is said: reading and administration go on, and
    /// what plugins read and keep of their own, without which they could not even
    /// end what they hold.
    #[must_use]
    pub fn of_permission(permission: &str) -> Self {
        let right = permission.rsplit('.').next().unwrap_or_default();
        if matches!(right, "read" | "admin" | "only") { Self::GoesOn } else { Self::Refused }
    }

    /// As it is written in the manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::GoesOn => "goes_on",
        }
    }
}
