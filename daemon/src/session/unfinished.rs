//! What a client has begun to say: a frame or line of which there is more to
//! come. Nobody knows yet what it is, and it may be long, so it is charged to
//! the client's account.

use std::sync::Arc;

use ksi_protocol::Refusal;

use super::{account::Account, socket::READ_BYTES};

/// Bytes that cost nothing: who says little is not looked at.
const FREE_BYTES: usize = READ_BYTES;

/// The charge for one connection, which ends with it.
#[derive(Debug)]
pub(super) struct Unfinished {
    account: Arc<Account>,
    charged: usize,
}

impl Unfinished {
    pub(super) fn new(account: Arc<Account>) -> Self {
        Self { account, charged: 0 }
    }

    /// Whether there is so much that it is charged.
    pub(super) fn is_large(&self) -> bool {
        self.charged > 0
    }

    /// So many bytes are unfinished now. Costs a comparison where they are few.
    ///
    /// # Errors
    ///
    /// `busy` where more has come, and it is more than there is room for beside
    /// what else waits for the user. Where nothing does, it would find no more room
    /// later, so it goes on; how long a frame or line may be bounds it.
    pub(super) fn recharge(&mut self, bytes: usize) -> Result<(), Refusal> {
        let bytes = if bytes > FREE_BYTES { bytes } else { 0 };
        if bytes == self.charged {
            return Ok(());
        }
        let is_over = bytes > self.charged
            && !self.account.is_all(self.charged)
            && self.account.is_over(self.charged, bytes);
        self.account.recharge(self.charged, bytes);
        self.charged = bytes;
        if is_over { Err(self.account.full()) } else { Ok(()) }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.account.recharge(self.charged, 0);
    }
}

#[cfg(test)]
mod tests {
    use ksi_protocol::Code;

    use super::*;
    use crate::{config::Share, session::account::Accounts};

    #[test]
    fn what_is_begun_is_not_refused_for_ever_where_it_is_longer_than_the_share() {
        let accounts = Accounts::new(Share { bytes: 1 << 20, ..Share::default() }, 2);
        let account = accounts.of("uid:1");
        let _connections = [account.connect(0).unwrap(), account.connect(0).unwrap()];
        let mut first = Unfinished::new(account.clone());
        let mut second = Unfinished::new(account.clone());
        for n in 1..=16 {
            first.recharge(n << 20).expect("nothing else waits");
        }
        assert_eq!(second.recharge(600_000).unwrap_err().code, Code::Busy);
        assert_eq!(first.recharge(17 << 20).unwrap_err().code, Code::Busy);
    }

    #[test]
    fn what_is_begun_is_charged_beyond_a_little_and_refused_beyond_the_share() {
        let accounts = Accounts::new(Share { bytes: 1 << 20, ..Share::default() }, 2);
        let account = accounts.of("uid:1");
        let _connections = [account.connect(0).unwrap(), account.connect(0).unwrap()];
        let mut first = Unfinished::new(account.clone());
        let mut second = Unfinished::new(account.clone());
        first.recharge(FREE_BYTES).unwrap();
        assert!(!first.is_large());
        first.recharge(700_000).unwrap();
        assert!(first.is_large());
        second.recharge(300_000).unwrap();
        let refusal = first.recharge(800_000).unwrap_err();
        assert_eq!(refusal.code, Code::Busy);
        assert!(refusal.retryable && refusal.message.contains("uid:1"), "{refusal}");
        second.recharge(310_000).expect("the one that has least goes on");
        drop(first);
        second.recharge(1 << 20).expect("what is gone costs nothing");
        second.recharge(10).unwrap();
        assert!(!account.is_over(0, 1 << 20), "nothing is left charged");
    }
}
