//! Decisions: whether somebody may send something, and who is shown that.

use bytes::Bytes;
use ksi_protocol::EventName;

/// Whether somebody may send something. What is heard, and answers, are no
/// decisions of their own.
#[derive(Debug)]
pub struct Decision<'a> {
    /// Who sends it: `session:7`, `plugin:echo`.
    pub origin: &'a str,
    /// What is asked or told.
    pub event: &'a EventName,
    /// Whether it is told.
    pub is_emission: bool,
    /// The payload.
    pub data: &'a Bytes,
    /// What it belongs to.
    pub correlation_id: Option<&'a str>,
    /// What a plugin would have had to be granted, where it was not: `may_call`
    /// or `emits`.
    pub right: &'a str,
    /// Whether it may.
    pub allowed: bool,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
}

/// Somebody who is shown each [`Decision`] that is to be remembered: all that
/// deny, and those that allow what is declared so.
pub trait Witness: Send + Sync {
    /// Called on the way of the event: it must not wait, and not call the
    /// kernel.
    fn decided(&self, decision: &Decision<'_>);
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use ksi_protocol::{Pattern, Refusal};

    use super::*;
    use crate::{Ask, Declared, Effects, Emission, Grant, Kernel, Quota, Role};

    #[derive(Default)]
    struct Seen(Mutex<Vec<(String, bool)>>);

    impl Witness for Seen {
        fn decided(&self, decision: &Decision<'_>) {
            let seen = format!("{} {} {}", decision.origin, decision.event, decision.right);
            self.0.lock().unwrap().push((seen, decision.allowed));
        }
    }

    fn event(text: &str) -> EventName {
        EventName::parse(text).unwrap()
    }

    #[test]
    fn all_denials_are_shown_and_of_what_is_allowed_that_which_is_declared_so() {
        let kernel = Kernel::<()>::new();
        let seen = Arc::new(Seen::default());
        kernel.show(seen.clone());
        let owner = kernel.attach("plugin:a", Role::Plugin, (), Quota::default(), Grant::All);
        let loud = Declared::new(event("a:loud"));
        let quiet = Declared { audited: false, ..Declared::new(event("a:quiet")) };
        kernel.declare("a", &[loud, quiet], Refusal::not_found("plugin", "a"));
        kernel.own(&owner, &[event("a:loud"), event("a:quiet")]).unwrap();
        let grant = Grant::AllBut { may_not_call: Pattern::parse("b:*").into_iter().collect() };
        let client = kernel.attach("session:1", Role::Client, (), Quota::default(), grant);
        let grant = Grant::Only { may_call: Vec::new(), emits: Vec::new() };
        let other = kernel.attach("plugin:b", Role::Plugin, (), Quota::default(), grant);
        let mut effects = Effects::new();
        for (id, (port, name)) in
            [(&client, "a:loud"), (&client, "a:quiet"), (&client, "b:x"), (&other, "a:quiet")]
                .into_iter()
                .enumerate()
        {
            kernel.request(port, Ask::new(id as u64, event(name), Bytes::new()), 0, &mut effects);
        }
        kernel.emit(&client, Emission::new(event("c:fact"), Bytes::new()), 0, &mut effects).unwrap();
        kernel.emit(&other, Emission::new(event("c:fact"), Bytes::new()), 0, &mut effects).unwrap_err();
        let seen = seen.0.lock().unwrap();
        assert_eq!(
            *seen,
            [
                ("session:1 a:loud ".to_owned(), true),
                ("session:1 b:x may_call".to_owned(), false),
                ("plugin:b a:quiet may_call".to_owned(), false),
                ("plugin:b c:fact emits".to_owned(), false),
            ]
        );
    }
}
