//! Permissions: every path on which something is asked, told or heard, with and
//! without the right to it.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use ksi_identity::{Authority, Caller, Capability, Decision, Directory, Member, Principal, Rights, Witness};
use ksi_protocol::{Code, EventName, Refusal};

use super::script::check;
use crate::{Ask, Declared, Effects, Emission, Kernel, Port, Quota, Role};

#[test]
fn a_client_asks_what_its_principal_holds_and_nothing_else() {
    check(
        "> P attach plugin
         > P declare a:use unavailable permission=a.use
         > P own a:use,a:bare
         > S attach holds=a.*
         > S request 1 a:use x
         < P request 1 a:use x from S
         # An event without a policy takes system.admin.
         > S request 2 a:bare x
         < S refused 2 denied sender
         > N attach holds=
         > N request 1 a:use x
         < N refused 1 denied sender
         > R attach holds=system.admin
         > R request 1 a:bare x
         < P request 4 a:bare x from R
         > R request 2 a:use x
         < R refused 2 denied sender
         > O attach holds=*
         > O request 1 a:bare x
         < P request 6 a:bare x from O",
    );
}

#[test]
fn what_is_for_plugins_only_is_refused_whoever_asks() {
    check(
        "> P attach plugin
         > P declare space:get unavailable permission=plugins.only
         > P own space:get
         > O attach holds=*
         > O request 1 space:get x
         < O refused 1 denied sender
         > Q attach plugin may_call=space:*
         > Q request 1 space:get x
         < P request 2 space:get x from Q",
    );
}

#[test]
fn what_is_taken_away_is_gone_with_the_next_event() {
    check(
        "> P attach plugin
         > P declare a:use,a:said unavailable permission=a.use emit=a.say
         > P own a:use
         > S attach holds=a.*
         > S sub 1 a:*
         > S request 1 a:use x
         < P request 1 a:use x from S
         > P emit a:said one
         = 1
         < S event 1 a:said one from P
         > S emit a:said x
         = 0
         > S hold holds=b.*
         > S request 2 a:use x
         < S refused 2 denied sender
         > S emit a:said x
         ! denied sender
         > P emit a:said two
         = 0
         # A stream ends, and its owner hears of it.
         > P chunk 1 x
         < P cancel 1
         < S refused 1 denied sender
         > S hold holds=a.*
         > P emit a:said three
         = 1
         < S event 1 a:said three from P",
    );
}

#[test]
fn who_may_not_ask_any_more_hears_no_answer() {
    check(
        "> P attach plugin
         > P declare a:use unavailable permission=a.use
         > P own a:use
         > S attach holds=a.*
         > S request 1 a:use x
         < P request 1 a:use x from S
         > S request 2 a:use x
         < P request 2 a:use x from S
         > S request 3 a:use x
         < P request 3 a:use x from S
         > S request 4 a:use x
         < P request 4 a:use x from S
         > S hold holds=b.*
         > P reply 1 secret
         < S refused 1 denied sender
         > P end 2 secret
         < S refused 2 denied sender
         > P refuse 3 not_found
         < S refused 3 not_found
         > P accept 4 w
         < S accepted 4 w
         # Nor does it where the right goes while an interceptor looks at the answer.
         > I attach plugin
         > I intercept a:use after closed
         > S hold holds=a.*
         > S request 5 a:use x
         < P request 5 a:use x from S
         > P reply 5 secret
         < I intercept 6 after a:use secret from P
         > S hold holds=
         > I pass 6
         < S refused 5 denied sender",
    );
}

#[test]
fn what_is_waited_for_ends_when_the_right_to_it_is_taken_away() {
    check(
        "> P attach plugin
         > P declare a:use unavailable permission=a.use
         > P own a:use
         > D attach daemon
         > D declare d:take unavailable permission=a.use
         > D own d:take
         > S attach holds=a.*
         > O attach holds=a.*
         > S request 1 a:use x
         < P request 1 a:use x from S
         > O request 1 a:use x
         < P request 2 a:use x from O
         > S request 2 d:take x
         < D request 3 d:take x from S
         > revoke
         > S hold holds=
         > revoke
         < P cancel 1
         < S refused 1 denied sender
         > P reply 1 late
         > P reply 2 x
         < O reply 1 x
         # What the daemon does may be what took it away.
         > D reply 3 done
         < S reply 2 done
         # Also where somebody has a word on that.
         > I attach plugin
         > I intercept d:take after closed
         > S hold holds=a.*
         > S request 3 d:take x
         < D request 4 d:take x from S
         > D reply 4 done
         < I intercept 5 after d:take done from D
         > S hold holds=
         > revoke
         > I pass 5
         < S reply 3 done",
    );
}

#[test]
fn what_has_expired_holds_nothing() {
    check(
        "> P attach plugin
         > P declare a:use unavailable permission=a.use
         > P own a:use
         > S attach holds=* expires=100
         > S sub 1 **
         > at 99
         = never
         > S request 1 a:use x
         < P request 1 a:use x from S until 60099
         > at 100
         = never
         < P cancel 1
         < S refused 1 denied sender
         > P reply 1 late
         > S request 2 a:use x
         < S refused 2 denied sender
         > P emit a:said x
         = 0"
        .replace(" until 60099", "")
        .as_str(),
    );
}

#[test]
fn what_is_waited_for_ends_when_the_right_to_it_expires_and_what_comes_of_it_too() {
    check(
        "> P attach plugin
         > P declare a:use unavailable permission=a.use
         > P own a:use
         > Q attach plugin
         > Q declare q:use unavailable permission=q.use
         > Q own q:use
         > D attach daemon
         > D declare d:take unavailable permission=a.use
         > D own d:take
         > S attach holds=* expires=100
         > S request 1 a:use x
         < P request 1 a:use x from S
         > S request 2 a:use x timeout=50
         < P request 2 a:use x from S until 50
         > S request 3 d:take x
         < D request 3 d:take x from S
         > O attach holds=*
         > O request 1 a:use x
         < P request 4 a:use x from O
         > P request 9 q:use x parent=1
         < Q request 5 q:use x from P
         # Somebody has a word before it is the daemon's.
         > I attach plugin
         > I intercept d:take before closed
         > S request 4 d:take x
         < I intercept 7 before d:take x from S
         > at 50
         = 100
         < P cancel 2
         < S refused 2 timeout receiver
         > at 99
         = 100
         > at 100
         = 60000
         < P cancel 1
         < Q cancel 5
         < P refused 9 cancelled sender
         < S refused 1 denied sender
         < I cancel 7
         < S refused 4 denied sender
         # What the daemon does it has decided.
         > D reply 3 done
         < S reply 3 done
         > P reply 4 x
         < O reply 1 x",
    );
}

#[test]
fn what_is_asked_for_somebody_takes_what_another_event_does_for_as_long_as_it_goes_on() {
    check(
        "> P attach plugin
         > P declare a:use unavailable permission=a.use
         > P own a:use
         > K attach plugin
         > K declare a:follow unavailable permission=a.admin
         > K own a:follow
         > S attach holds=a.use
         > S request 1 a:follow x
         < S refused 1 denied sender
         > S request 2 a:follow x like=a:use
         < K request 2 a:follow x from S
         > S request 3 a:follow x like=a:nobodys
         < S refused 3 denied sender
         > K chunk 2 x
         < S chunk 2 x
         > S hold holds=a.admin
         > K chunk 2 y
         < K cancel 2
         < S refused 2 denied sender
         > S request 4 a:follow x like=a:use
         < S refused 4 denied sender",
    );
}

#[test]
fn a_client_emits_what_the_policy_of_emitting_says() {
    check(
        "> S attach holds=a.read,a.say
         > D attach daemon
         > D declare a:heard unavailable permission=a.read
         > O attach holds=*
         # That it may hear of something does not mean that it may say so.
         > S emit a:heard x
         ! denied sender
         > O emit a:heard x
         = 0
         > S emit a:unknown x
         ! denied sender
         > D declare a:both unavailable permission=a.read emit=a.say
         > S emit a:both x
         = 0",
    );
}

#[test]
fn a_pattern_hears_only_what_is_permitted() {
    check(
        "> P attach plugin
         > P declare a:open,a:all unavailable permission=a.read
         > S attach holds=a.read
         > S sub 1 **
         > S sub 2 a:open
         # One event of which it may not hear is refused at once.
         > S sub 3 b:secret
         ! denied sender
         > P emit a:open x
         = 2
         < S event 2 a:open x from P
         < S event 1 a:open x from P
         > P emit b:secret x
         = 0",
    );
}

#[test]
fn what_belongs_to_a_tenant_is_heard_by_that_tenant() {
    check(
        "> P attach plugin
         > P declare a:do,a:said unavailable permission=a.use
         > P own a:do
         > A attach holds=a.* tenant=a-b
         > B attach holds=a.* tenant=a_b
         > O attach holds=* tenant=local
         > A sub 1 a:*
         > B sub 1 a:*
         > O sub 1 a:*
         > A request 1 a:do x
         < P request 1 a:do x from A of A in a-b
         > P emit a:said x parent=1
         = 2
         < A event 1 a:said x from P of A in a-b
         < O event 1 a:said x from P of A in a-b
         # What belongs to nobody is for all who may.
         > P emit a:said x
         = 3
         < A event 1 a:said x from P
         < B event 1 a:said x from P
         < O event 1 a:said x from P
         # A parent that is not its own says nothing of whose it is.
         > Q attach plugin
         > Q emit a:said x parent=1
         = 3
         < A event 1 a:said x from Q
         < B event 1 a:said x from Q
         < O event 1 a:said x from Q",
    );
}

#[test]
fn a_plugin_tells_of_a_stranger_only_on_behalf_of_a_request() {
    check(
        "> P attach plugin
         > P declare a:do,a:said unavailable permission=a.use
         > P own a:do
         > A attach holds=a.* tenant=t
         > A sub 1 a:*
         > A request 1 a:do x
         < P request 1 a:do x from A of A in t
         > P emit a:said one of=t stranger=1
         ! denied sender
         # Of whom it knows, it tells when their requests have ended, too.
         > P emit a:said two of=t
         = 1
         < A event 1 a:said two from P of P in t
         # What a request says of whose it is goes before what the plugin says.
         > P emit a:said three of=other stranger=1 parent=1
         = 1
         < A event 1 a:said three from P of A in t
         > P reply 1 x
         < A reply 1 x
         > P emit a:said four of=t stranger=1 parent=1
         ! denied sender",
    );
}

#[test]
fn what_a_plugin_does_for_somebody_is_done_in_that_ones_name() {
    check(
        "> P attach plugin
         > Q attach plugin may_call=q:* emits=p:*
         > P own q:do
         > Q own p:do
         > Q declare p:do unavailable permission=p.use
         > P declare q:do unavailable permission=q.use
         > S attach holds=p.* tenant=t
         > S request 1 p:do x
         < Q request 1 p:do x from S of S in t
         # With its own right, not with that of whoever asked it.
         > Q request 1 q:do x parent=1
         < P request 2 q:do x from Q of S in t
         # One that asks whatever it is told to asks for both.
         > Q request 2 q:do x parent=1 on_behalf=1
         < Q refused 2 denied sender
         > S hold holds=p.*,q.* tenant=t
         > Q request 2 q:do x parent=1 on_behalf=1
         < P request 4 q:do x from Q of S in t
         > Q request 3 p:do x parent=1 on_behalf=1
         < Q refused 3 denied sender",
    );
}

#[test]
fn a_plugin_does_what_it_is_granted_and_has_asked_for() {
    check(
        "> B attach plugin
         > B own a:do,b:do
         > A attach plugin may_call=*:do emits=a:* listens=b:* asks=a:**
         > A request 1 a:do x
         < B request 1 a:do x from A
         > A request 2 b:do x
         < A refused 2 denied sender
         > A sub 1 **
         > B emit b:x x
         = 0
         > A emit a:x x
         = 0
         # Until it has said what it asks for it may do nothing.
         > C attach plugin may_call=* emits=* listens=* asks=later
         > C request 1 a:do x
         < C refused 1 denied sender
         > C emit a:x x
         ! denied sender
         > C sub 1 **
         > B emit b:x x
         = 0",
    );
}

#[test]
fn an_interceptor_is_heard_on_what_it_is_granted() {
    check(
        "> B attach plugin
         > B own a:do,b:do
         > I attach plugin intercepts=a:*
         > I intercept ** before
         > S attach
         > S request 1 b:do x
         < B request 1 b:do x from S
         > S request 2 a:do x
         < I intercept 3 before a:do x from S
         # Nor is anybody heard on what is refused anyway.
         > N attach holds=
         > N request 1 a:do x
         < N refused 1 denied sender",
    );
}

#[test]
fn work_that_was_kept_is_done_with_the_rights_of_whoever_asked_at_that_time() {
    check(
        "> K attach plugin may_call=x:y
         > K keep
         > P attach plugin
         > P declare a:do unavailable attempts=1 permission=a.use
         > P own a:do
         > S attach holds=a.* tenant=t
         > S request 1 a:do x
         < K request 1 a:do x from S attempts 1 of S in t
         > K accept 1 w
         < S accepted 1 w
         > K request 1 a:do x origin=session:9 principal=S
         < P request 2 a:do x from session:9 of S in t
         > S hold holds=b.* tenant=t
         > K request 2 a:do x origin=session:9 principal=S
         < K refused 2 denied sender
         # Who is not there any more holds nothing.
         > K request 3 a:do x origin=session:9 principal=Z
         < K refused 3 denied sender
         # The daemon may have seen to it: a plugin has other rights.
         > K request 4 a:do x origin=plugin:q
         < P request 5 a:do x from plugin:q
         # Nobody but the keeper speaks for others.
         > Q attach plugin may_call=a:do
         > Q request 1 a:do x origin=session:9 principal=S
         < K request 6 a:do x from Q attempts 1",
    );
}

#[test]
fn nothing_is_kept_or_counted_for_whoever_may_not_tell_it() {
    check(
        "> K attach plugin
         > K keep
         > D attach daemon
         > D declare a:kept unavailable attempts=1 permission=a.read
         > S attach holds=a.read
         > S emit a:kept x
         ! denied sender
         > K emit a:kept x
         = 0
         < K fact 1 a:kept x from K attempts 1",
    );
}

/// Writes down what it is shown.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Witness for Notes {
    fn decided(&self, decision: &Decision<'_>) {
        let Decision { caller, event, right, allowed, correlation_id, data, .. } = decision;
        let (name, verb) = (&caller.principal.name, if decision.is_emission { "emit" } else { "ask" });
        let cause = correlation_id.unwrap_or("-");
        self.0
            .lock()
            .unwrap()
            .push(format!("{name} {verb} {event} {right} {allowed} {cause} {}", data.len()));
    }
}

struct World {
    kernel: Kernel<()>,
    directory: Directory,
    effects: Effects<()>,
}

impl World {
    fn new() -> Self {
        let (kernel, directory) = (Kernel::new(), Directory::default());
        let permission = Some(directory.permission("a.use"));
        let declared = Declared { permission, ..Declared::new(event("a:do")) };
        kernel.declare("plugin:p", &[declared], Refusal::new(Code::Unavailable, "absent"));
        Self { kernel, directory, effects: Effects::new() }
    }

    fn client(&self, capability: &str) -> Arc<Port<()>> {
        let capabilities = vec![Capability::parse(capability).unwrap()];
        let name = String::from("user:a");
        let member = Member { name, tenant: None, expires_ms: u64::MAX, capabilities, giver: None };
        self.directory.appoint(vec![member]);
        let principal = self.directory.find("user:a").unwrap();
        self.kernel.attach(Role::Client, (), Quota::default(), Authority::of("session:1", principal))
    }

    fn plugin(&self, rights: Rights) -> Arc<Port<()>> {
        let authority = Authority::granted("plugin:q", rights.clone());
        authority.ask_for(rights);
        self.kernel.attach(Role::Plugin, (), Quota::default(), authority)
    }

    fn refusal(&mut self, port: &Arc<Port<()>>, ask: Ask) -> Refusal {
        self.kernel.request(port, ask, 0, &mut self.effects);
        let delivery = self.effects.deliveries.pop().unwrap().1;
        let crate::Delivery::Answer { answer: crate::Answer::Refusal(refusal), .. } = delivery else {
            panic!("{delivery:?}")
        };
        *refusal
    }
}

fn event(text: &str) -> EventName {
    EventName::parse(text).unwrap()
}

#[test]
fn a_witness_sees_every_decision() {
    let mut world = World::new();
    let notes = Arc::new(Notes::default());
    world.kernel.show(notes.clone());
    let client = world.client("a.use");
    let ask = |name| Ask {
        correlation_id: Some("c".into()),
        ..Ask::new(1, event(name), Bytes::from_static(b"123"))
    };
    world.kernel.request(&client, ask("a:do"), 0, &mut world.effects);
    let _ = world.kernel.emit(&client, Emission::new(event("a:do"), Bytes::new()), 0, &mut world.effects);
    let plugin = world.plugin(Rights::default());
    world.kernel.request(&plugin, ask("a:do"), 0, &mut world.effects);
    assert_eq!(
        *notes.0.lock().unwrap(),
        [
            "user:a ask a:do a.use true c 3",
            "user:a emit a:do system.admin false - 0",
            "plugin:q ask a:do may_call false c 3"
        ]
    );
}

#[test]
fn what_is_not_to_be_remembered_is_shown_only_where_it_is_denied() {
    let mut world = World::new();
    let permission = Some(world.directory.permission("a.use"));
    let quiet = Declared { permission, audited: false, ..Declared::new(event("b:quiet")) };
    world.kernel.declare("plugin:b", &[quiet], Refusal::new(Code::Unavailable, "absent"));
    let notes = Arc::new(Notes::default());
    world.kernel.show(notes.clone());
    let client = world.client("a.use");
    let ask = |id| Ask::new(id, event("b:quiet"), Bytes::new());
    world.kernel.request(&client, ask(1), 0, &mut world.effects);
    // Nor is it told of what nobody has declared.
    let daemon = Authority::full("daemon");
    let daemon = world.kernel.attach(Role::Daemon, (), Quota::default(), daemon);
    world.kernel.emit(&daemon, Emission::new(event("c:fact"), Bytes::new()), 0, &mut world.effects).unwrap();
    let client = world.client("b.use");
    world.kernel.request(&client, ask(2), 0, &mut world.effects);
    assert_eq!(*notes.0.lock().unwrap(), ["user:a ask b:quiet a.use false - 0"]);
}

#[test]
fn what_has_ended_says_whether_that_was_taken_away_or_has_expired() {
    let ended = |now_ms, expires_ms| {
        let principal = Principal::new("token:a", None, expires_ms);
        let client = Caller { origin: "session:1".into(), principal };
        crate::refusals::revoked(&client, &event("a:do"), now_ms)
    };
    let (revoked, expired) = (ended(99, 100), ended(100, 100));
    assert_eq!((revoked.code, expired.code), (Code::Denied, Code::Denied));
    assert_eq!(revoked.message, "`token:a` may not ask `a:do` any more");
    assert_eq!(expired.message, "`token:a` may not ask `a:do` any more: it has expired");
    assert!(revoked.hint.contains("revoked") && expired.hint.contains("ksi token create"));
}

#[test]
fn a_refusal_names_who_lacks_what_and_how_it_is_granted() {
    let mut world = World::new();
    let client = world.client("b.use");
    let refusal = world.refusal(&client, Ask::new(1, event("a:do"), Bytes::new()));
    assert_eq!(refusal.message, "`user:a` may not ask `a:do`: it does not hold `a.use`");
    assert!(refusal.hint.contains("[identity]") && refusal.hint.contains("`a.use`"), "{}", refusal.hint);
    let details = refusal.details.unwrap();
    assert_eq!((&details["permission"], &details["principal"]), (&"a.use".into(), &"user:a".into()));
    let plugin = world.plugin(Rights::default());
    let refusal = world.refusal(&plugin, Ask::new(1, event("a:do"), Bytes::new()));
    assert_eq!(refusal.message, "`plugin:q` may not send `a:do`: no `may_call` covers it");
    assert!(refusal.hint.contains("descriptor"), "{}", refusal.hint);
}
