//! Shares: how many consumers there are, and how many of them are whose.

use std::collections::HashMap;

use ksi_sdk::{
    prelude::{Code, Refusal},
    protocol::limits::fair_share,
};

/// Consumers that are known at a time.
pub(super) const CONSUMERS_MAX: usize = 10_000;

/// All of them, and by the principal that made each; nobody with none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Shares {
    all: usize,
    of: HashMap<Box<str>, usize>,
}

impl Shares {
    /// Whether one may have one more.
    ///
    /// # Errors
    ///
    /// `busy` where there are too many, of all or of one's own.
    pub(super) fn admit(&self, principal: &str) -> Result<(), Refusal> {
        let own = self.of.get(principal).copied().unwrap_or(0);
        let message = if self.all >= CONSUMERS_MAX {
            format!("{} consumers are known, and that is the limit", self.all)
        } else if own >= fair_share(CONSUMERS_MAX, self.all - own) {
            format!("{own} consumers are yours; the rest is for others")
        } else {
            return Ok(());
        };
        let hint = "use a name again, or forget one: `ksi checkpoint consumers` shows them";
        Err(Refusal::new(Code::Busy, message).hint(hint))
    }

    /// One has one more. Consumers of earlier releases are nobody's.
    pub(super) fn add(&mut self, principal: Option<&str>) {
        self.all += 1;
        if let Some(principal) = principal {
            *self.of.entry(principal.into()).or_default() += 1;
        }
    }

    /// One has one less.
    pub(super) fn remove(&mut self, principal: Option<&str>) {
        self.all -= 1;
        let Some(principal) = principal else { return };
        if let Some(own) = self.of.get_mut(principal) {
            *own -= 1;
            if *own == 0 {
                self.of.remove(principal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes as many as one may have.
    fn fill(shares: &mut Shares, principal: &str) -> usize {
        (0..2 * CONSUMERS_MAX)
            .take_while(|_| shares.admit(principal).inspect(|()| shares.add(Some(principal))).is_ok())
            .count()
    }

    #[test]
    fn whoever_comes_later_finds_room_and_nobody_has_all() {
        let mut shares = Shares::default();
        assert_eq!(["a", "b", "c"].map(|name| fill(&mut shares, name)), [5_000, 2_500, 1_250]);
        shares.admit("d").unwrap();
        let refusal = shares.admit("a").unwrap_err();
        assert!(
            refusal.code == Code::Busy && refusal.message.contains("5000 consumers are yours"),
            "{refusal}"
        );
        (0..5_000).for_each(|_| shares.remove(Some("a")));
        assert!(!shares.of.contains_key("a"));
        shares.admit("b").unwrap();
    }

    #[test]
    fn those_of_nobody_count_for_all() {
        let mut shares = Shares::default();
        (0..CONSUMERS_MAX).for_each(|_| shares.add(None));
        assert!(shares.admit("a").unwrap_err().message.contains("10000 consumers are known"));
        shares.remove(None);
        shares.admit("a").unwrap();
    }
}
