//! What is declared, and what a hint offers.

use std::sync::Arc;

use ksi_protocol::{Code, EventName, Refusal};

use super::Declared;
use ksi_identity::Authority;

use crate::{Kernel, Quota, Role, tests::script::check};

#[test]
fn a_declaration_outlives_its_owner_and_ends_when_forgotten() {
    check(
        "> A attach
         > B attach plugin
         > C attach plugin
         > B declare b:one,b:two unavailable
         > C declare b:one,c:one no_owner
         = taken [\"b:one\"]
         > B own b:one,b:two
         # What is declared again keeps its owner, what is not is gone.
         > B declare b:two,b:three plugin_restarted
         > A request 1 b:two x
         < B request 1 b:two x from A
         > A request 2 b:one x
         < A refused 2 unknown_event sender
         > A request 2 b:three x
         < A refused 2 plugin_restarted
         > B detach unavailable
         < A refused 1 unavailable
         > A request 2 b:two x
         < A refused 2 plugin_restarted
         > B forget
         > A request 2 b:two x
         < A refused 2 unknown_event sender
         > A request 2 c:one x
         < A refused 2 no_owner
         # All or nothing.
         > C own c:one
         > D attach plugin
         > D own d:one,c:one
         ! conflict sender
         > A request 2 d:one x
         < A refused 2 unknown_event sender",
    );
}

#[test]
fn an_unknown_event_is_refused_with_the_nearest_names() {
    let kernel = Kernel::new();
    let port = kernel.attach(Role::Plugin, (), Quota::default(), Authority::full("plugin:echo"));
    let name = |text| EventName::parse(text).unwrap();
    let declared = |text| Declared { work: Some(Arc::default()), ..Declared::new(name(text)) };
    let events = ["echo:say", "echo:count", "echo:stay", "echo:sad", "llama:generate"].map(declared);
    kernel.declare("plugin:echo", &events, Refusal::new(Code::NoOwner, "nobody"));
    kernel.own(&port, &[name("echo:say")]).unwrap();
    let hint = |text| kernel.registry.load().find(&name(text)).err().unwrap().hint;
    assert_eq!(
        hint("echo:sya"),
        "did you mean `echo:say`, `echo:stay`, `echo:sad`? `ksi discover` lists all events"
    );
    assert_eq!(hint("zzz:qqqqqqqqqqqq"), "`ksi discover` lists all events");
    assert!(kernel.owner("echo:say").is_some_and(|owner| owner.id == port.id));
    assert!(kernel.owner("echo:count").is_none());
    assert!(kernel.declared("echo:count").is_some_and(|declared| declared.work.is_some()));
}
