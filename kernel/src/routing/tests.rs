//! Scripts of routing: requests, streams, emissions, quotas, grants, ends.

use crate::tests::script::check;

#[test]
fn a_request_goes_to_the_owner_and_its_answer_to_the_asker() {
    check(
        "> A attach
         > B attach plugin
         > B own echo:say,echo:count
         > A request 7 echo:say hi corr=c
         < B request 1 echo:say hi from A corr c
         > B reply 1 hi
         < A reply 7 hi
         # A stream is chunks and an end, with credit on the way.
         > A request 7 echo:count 2 credit=1
         < B request 2 echo:count 2 from A credit 1
         > B chunk 2 one
         < A chunk 7 one
         > A credit 7 3
         < B credit 2 3
         > B chunk 2 two
         < A chunk 7 two
         > B end 2 done
         < A end 7 done
         > A request 8 echo:say no
         < B request 3 echo:say no from A
         > B refuse 3 not_found
         < A refused 8 not_found
         > A request 9 echo:say later
         < B request 4 echo:say later from A
         > B accept 4 work-1
         < A accepted 9 work-1
         # What was accepted belongs to nobody here any more.
         > A detach cancelled
         # An owner may ask itself, since it names what it asks for.
         > B request 1 echo:say me
         < B request 5 echo:say me from B
         > B reply 5 me
         < B reply 1 me",
    );
}

#[test]
fn texts_that_are_longer_than_they_may_be_are_refused_whoever_sends_them() {
    let (fits, long) = ("c".repeat(256), "c".repeat(257));
    check(&format!(
        "> A attach
         > B attach plugin
         > B own echo:say
         > A request 1 echo:say hi corr={fits}
         < B request 1 echo:say hi from A corr {fits}
         > B reply 1 hi
         < A reply 1 hi
         > A request 2 echo:say hi corr={long}
         < A refused 2 invalid_frame sender
         > A request 2 echo:say hi key={long}
         < A refused 2 invalid_frame sender
         > A request 2 echo:say hi key=
         < A refused 2 invalid_frame sender
         > B request 1 echo:say hi corr={long}
         < B refused 1 invalid_frame sender
         > A emit a:b hi corr={long}
         ! invalid_frame sender",
    ));
}

#[test]
fn what_cannot_be_asked_is_refused_to_the_asker() {
    check(
        "> A attach in_flight=1
         > B attach plugin holding=1
         > C attach
         > B declare echo:say,echo:count no_owner
         > A request 1 echo:sya hi
         < A refused 1 unknown_event sender
         > A request 1 echo:say hi
         < A refused 1 no_owner
         > B own echo:say
         > C own echo:say
         ! conflict sender
         > A request 1 echo:say hi
         < B request 3 echo:say hi from A
         > A request 1 echo:say again
         < A refused 1 conflict sender
         > A request 2 echo:say more
         < A refused 2 busy sender
         > C request 1 echo:say hi
         < C refused 1 busy receiver
         > B reply 3 hi
         < A reply 1 hi
         > C request 1 echo:say hi
         < B request 7 echo:say hi from C",
    );
}

#[test]
fn an_answer_that_comes_too_late_is_dropped_and_one_that_was_never_due_is_a_fault() {
    check(
        "> A attach
         > B attach plugin
         > C attach plugin
         > B own echo:say
         > A request 1 echo:say hi
         < B request 1 echo:say hi from A
         > C reply 1 mine
         ! answers 1, which somebody else was asked
         > B pass 1
         ! answers 1 with an answer of the wrong kind
         > B reply 2 hi
         ! answers 2, which nobody ever asked
         > B chunk 0 hi
         ! answers 0, which nobody ever asked
         > A cancel 1
         < B cancel 1
         < A refused 1 cancelled sender
         > A cancel 1
         > A credit 1 5
         > B chunk 1 late
         > B reply 1 late",
    );
}

#[test]
fn a_request_ends_at_its_deadline() {
    check(
        "> A attach
         > B attach plugin
         > B declare echo:slow unavailable timeout=300
         > B own echo:slow,echo:say
         > at 0
         = never
         > A request 1 echo:say a timeout=500
         < B request 1 echo:say a from A until 500
         > A request 2 echo:slow b
         < B request 2 echo:slow b from A until 300
         > A request 3 echo:slow c timeout=400
         < B request 3 echo:slow c from A until 400
         > A request 4 echo:say d timeout=999999999
         < B request 4 echo:say d from A until 86400000
         > at 299
         = 300
         > at 400
         = 500
         < B cancel 2
         < A refused 2 timeout receiver
         < B cancel 3
         < A refused 3 timeout receiver
         > B reply 3 late
         > B reply 1 fast
         < A reply 1 fast
         > at 501
         = 86400000",
    );
}

#[test]
fn a_nested_request_ends_with_what_it_was_asked_for() {
    check(
        "> A attach
         > B attach plugin
         > C attach plugin
         > B own b:do
         > C own c:do
         > A request 1 b:do x timeout=100 corr=why
         < B request 1 b:do x from A until 100 corr why
         > B request 5 c:do y parent=1
         < C request 2 c:do y from B until 100 corr why
         > C request 6 b:do z parent=2 timeout=10
         < B request 3 b:do z from C until 10 corr why
         > B emit b:done parent=1
         = 0
         > A cancel 1
         < B cancel 1
         < C cancel 2
         < B refused 5 cancelled sender
         < B cancel 3
         < C refused 6 cancelled sender
         < A refused 1 cancelled sender
         > B request 5 c:do y parent=1
         < B refused 5 cancelled sender
         # One that has been answered ends what it left behind.
         > A request 1 b:do x
         < B request 5 b:do x from A
         > C request 6 c:do y parent=5
         < C refused 6 denied sender
         > B request 6 c:do y parent=5
         < C request 7 c:do y from B
         > B request 7 c:do z parent=5
         < C request 8 c:do z from B
         > C reply 7 y
         < B reply 6 y
         > B reply 5 x
         < C cancel 8
         < B refused 7 cancelled sender
         < A reply 1 x
         > at 1000000
         = never",
    );
}

#[test]
fn what_is_emitted_reaches_all_who_listen_but_its_origin() {
    check(
        "> A attach
         > B attach
         > C attach subs=3
         > A sub 1 agent:born
         > B sub 1 agent:born
         > B sub 2 agent:*
         > C sub 1 **
         > C sub 1 x:y
         ! conflict sender
         > C sub 2 agent:born latest
         > C sub 3 x:y durable
         ! unavailable kernel
         > A emit agent:born x corr=c
         = 4
         < B event 1 agent:born x from A corr c
         < C event 2 agent:born x from A corr c
         < B event 2 agent:born x from A corr c
         < C event 1 agent:born x from A corr c
         > B unsub 2
         > B unsub 2
         ! not_found sender
         > C emit agent:born x
         = 2
         < A event 1 agent:born x from C
         < B event 1 agent:born x from C
         > C sub 3 x:y
         > C sub 4 x:z
         ! busy sender
         > C detach cancelled
         > C emit agent:born x
         ! cancelled sender
         > C sub 5 x:z
         ! cancelled sender
         > B emit x:y x
         = 0",
    );
}

#[test]
fn a_grant_limits_what_is_called_and_emitted() {
    check(
        "> A attach plugin may_call=echo:* emits=a:**
         > B attach plugin
         > B own echo:say,b:do
         > B sub 1 *
         > A request 1 echo:say hi
         < B request 1 echo:say hi from A
         > A request 2 b:do hi
         < A refused 2 denied sender
         > A emit a:b:c x
         = 1
         < B event 1 a:b:c x from A
         > A emit b:c x
         ! denied sender",
    );
}

#[test]
fn an_instance_answers_its_manager_and_nobody_else_whatever_they_are_granted() {
    check(
        "> plugin:a attach plugin
         > plugin:b attach plugin may_call=**,*:do
         > C attach
         > I attach plugin intercepts=*:do
         > I intercept *:do before closed
         > plugin:a@k attach plugin
         > plugin:a@k own a@k:do
         > plugin:a request 1 a@k:do hi
         < plugin:a@k request 1 a@k:do hi from plugin:a
         > plugin:b request 1 a@k:do hi
         < plugin:b refused 1 denied sender
         > plugin:a@k request 1 a@k:do hi
         < plugin:a@k refused 1 denied sender
         > C request 1 a@k:do hi
         < C refused 1 denied sender
         # Nor does anybody hear which there are.
         > C request 2 a@x:do hi
         < C refused 2 denied sender
         > plugin:a request 2 a@x:do hi
         < plugin:a refused 2 unknown_event sender",
    );
}

#[test]
fn detaching_ends_all_that_hung_on_the_port() {
    check(
        "> A attach
         > B attach plugin
         > C attach plugin
         > B declare b:do unavailable
         > B own b:do
         > C own c:do
         > B sub 1 *
         > A request 1 b:do x
         < B request 1 b:do x from A
         > B request 1 c:do y parent=1
         < C request 2 c:do y from B
         > B request 2 c:do z
         < C request 3 c:do z from B
         > A request 2 b:do y
         < B request 4 b:do y from A
         > B detach plugin_restarted
         < C cancel 2
         < C cancel 3
         < A refused 1 plugin_restarted
         < A refused 2 plugin_restarted
         > B detach plugin_restarted
         > A emit x:y x
         = 0
         > A request 3 b:do x
         < A refused 3 unavailable
         > C reply 2 late
         # The same plugin again, in its next life.
         > D attach plugin origin=B
         > B own b:do
         ! cancelled sender
         > D own b:do
         > A request 3 b:do x
         < D request 6 b:do x from A
         > B reply 6 mine
         ! answers 6, which somebody else was asked
         > B request 9 c:do x
         > D reply 6 x
         < A reply 3 x
         # An asker that goes cancels what it waited for, and is told nothing.
         > A request 4 b:do x
         < D request 8 b:do x from A
         > A detach cancelled
         < D cancel 8
         > D reply 8 late
         > at 1000000
         = never",
    );
}

#[test]
fn a_closing_kernel_takes_no_requests_of_clients_and_finishes_the_rest() {
    check(
        "> A attach
         > B attach plugin
         > C attach daemon
         > B own b:do
         > A request 1 b:do x
         < B request 1 b:do x from A
         > close
         > A request 2 b:do x
         < A refused 2 shutting_down kernel
         > B request 1 b:do y parent=1
         < B request 3 b:do y from B
         > C request 1 b:do z
         < B request 4 b:do z from C
         > B reply 3 y
         < B reply 1 y
         > B reply 1 x
         < A reply 1 x
         > A emit a:b x
         = 0",
    );
}

#[test]
fn a_durable_request_goes_to_whoever_keeps_work_and_from_there_to_its_owner() {
    check(
        "> A attach
         > B attach plugin
         > K attach plugin may_call=x:y
         > B declare b:do,b:other no_owner timeout=300 attempts=3
         > B own b:do
         > K own work:get
         > K keep
         # However long an attempt may take, the asker waits for the journal alone.
         > A request 1 b:do x corr=c
         < K request 1 b:do x from A attempts 3 corr c
         > K accept 1 work-1
         < A accepted 1 work-1
         > K request 9 b:do x corr=c origin=A
         < B request 2 b:do x from A until 300 corr c
         > B reply 2 done
         < K reply 9 done
         # Whether its owner is there does not matter to the asker.
         > A request 1 b:other y
         < K request 3 b:other y from A attempts 3
         > A cancel 1
         < K cancel 3
         < A refused 1 cancelled sender
         > K request 9 b:other y origin=A
         < K refused 9 no_owner
         # The owner that asks for its own event has it kept, too.
         > B request 5 b:do z origin=A
         < K request 5 b:do z from B attempts 3
         > K refuse 5 conflict
         < B refused 5 conflict
         # What is not durable is the business of nobody else.
         > A request 2 work:get x
         < K request 6 work:get x from A
         > K request 10 work:get x origin=A
         < K refused 10 denied sender
         # For what is of use for a while only, that is its time; more than is declared it
         # is not.
         > A request 3 b:do x expires=1000
         < K request 8 b:do x from A attempts 3 expires 1000
         > A request 4 b:do x expires=999999999999
         < K request 9 b:do x from A attempts 3
         # What is not kept cannot expire, and is not taken for something that can.
         > A request 5 work:get x expires=1000
         < A refused 5 invalid_frame sender",
    );
}

#[test]
fn a_durable_request_is_refused_while_nobody_keeps_work_and_never_live() {
    check(
        "> A attach
         > B attach plugin
         > B declare b:do no_owner attempts=1
         > B own b:do
         > A request 1 b:do x
         < A refused 1 unavailable receiver
         > K attach plugin holding=1
         > L attach plugin
         > K keep
         > K keep
         > L keep
         ! conflict sender
         > A request 1 b:do x
         < K request 2 b:do x from A attempts 1
         > A request 2 b:do x
         < A refused 2 busy receiver
         > K detach plugin_restarted
         < A refused 1 plugin_restarted
         > A request 1 b:do x
         < A refused 1 unavailable receiver
         > K keep
         ! cancelled sender
         > L keep
         > A request 1 b:do x
         < L request 5 b:do x from A attempts 1
         # What the one before had in hand is not the next one's to answer.
         > K accept 5 work-1
         ! answers 5, which somebody else was asked",
    );
}

#[test]
fn interceptors_are_heard_once_when_work_is_asked_and_once_when_it_is_answered() {
    check(
        "> A attach
         > B attach plugin
         > I attach plugin
         > K attach plugin
         > B declare b:do no_owner attempts=1
         > B own b:do
         > K keep
         > I intercept b:* before closed
         > I intercept b:* after closed
         > A request 1 b:do x
         < I intercept 2 before b:do x from A
         > I edit 2 xx
         < K request 1 b:do xx from A attempts 1
         > K accept 1 work-1
         < A accepted 1 work-1
         > K request 1 b:do xx origin=A
         < B request 3 b:do xx from A
         > B reply 3 y
         < I intercept 4 after b:do y from B
         > I edit 4 yy
         < K reply 1 yy
         > A request 1 b:do x
         < I intercept 6 before b:do x from A
         > K detach plugin_restarted
         > I pass 6
         < A refused 1 unavailable receiver",
    );
}

#[test]
fn a_durable_fact_is_told_at_once_and_given_to_whoever_keeps_work() {
    check(
        "> A attach
         > B attach
         > K attach plugin holding=2
         > K declare a:born unavailable attempts=1
         > B sub 1 a:*
         > A emit a:born x
         ! unavailable receiver
         > K keep
         > A emit a:born x corr=c
         = 1
         < B event 1 a:born x from A corr c
         < K fact 1 a:born x from A attempts 1 corr c
         # Its own are kept like all others.
         > K emit a:born y
         = 1
         < B event 1 a:born y from K
         < K fact 2 a:born y from K attempts 1
         > A emit a:born z
         ! busy receiver
         > K reply 1 ok
         > A emit a:born z
         = 1
         < B event 1 a:born z from A
         < K fact 3 a:born z from A attempts 1
         > K pass 2
         ! answers 2 with an answer of the wrong kind
         > K refuse 2 internal
         > K reply 2 late
         > A emit a:other x
         = 1
         < B event 1 a:other x from A
         > at 1000000
         = never
         > K detach plugin_restarted
         > A emit a:born x
         ! unavailable receiver",
    );
}

#[test]
fn a_durable_fact_that_interceptors_hold_up_has_its_place_all_the_same() {
    check(
        "> A attach
         > I attach plugin
         > K attach plugin holding=1
         > K declare a:born unavailable attempts=1
         > K keep
         > I intercept a:* before closed
         > A emit a:born x
         = 0
         < I intercept 2 before a:born x from A
         > A emit a:born y
         ! busy receiver
         > I edit 2 xx
         < K fact 1 a:born xx from A attempts 1
         > K reply 1 ok
         > A emit a:born y
         = 0
         < I intercept 4 before a:born y from A
         > I veto 4 denied
         < K cancel 3
         > A emit a:born z
         = 0
         < I intercept 6 before a:born z from A
         > K detach plugin_restarted
         > I pass 6",
    );
}

#[test]
fn what_plugins_send_on_account_of_plugins_makes_a_chain_and_clients_have_none() {
    check(
        "
        > A attach client
        > B attach plugin
        > C attach plugin
        > B own b:do
        > C own c:do
        > C sub 1 b:* live
        > A request 1 b:do x chain=forged@plugin
        < B request 1 b:do x from A
        > B request 1 c:do y
        < C request 2 c:do y from B
        > C request 1 b:do z chain=c:do@B
        < B request 3 b:do z from C chain c:do@B>b:do@C
        > B emit b:told n chain=c:do@B>b:do@C
        = 1
        < C event 1 b:told n from B chain c:do@B>b:do@C>b:told@B
        ",
    );
}

#[test]
fn a_chain_that_goes_in_a_circle_or_too_far_is_refused_and_names_its_steps() {
    let kernel: crate::Kernel<()> = crate::Kernel::with(crate::Chains { steps_max: 8, repeats_max: 2 });
    let quota = crate::Quota::default();
    let port = kernel.attach(crate::Role::Plugin, (), quota, ksi_identity::Authority::full("plugin:a"));
    let mut effects = crate::Effects::new();
    let mut emit = |chain: &str| {
        let event = ksi_protocol::EventName::parse("a:ping").unwrap();
        let chain = Some(chain.into());
        let emission = crate::Emission { chain, ..crate::Emission::new(event, bytes::Bytes::new()) };
        kernel.emit(&port, emission, 0, &mut effects)
    };
    emit("a:ping@plugin:a b:pong@plugin:b").unwrap();
    emit("a:ping@plugin:b b:pong@plugin:b a:ping@plugin:b").unwrap();
    let circle = emit("a:ping@plugin:a b:pong@plugin:b a:ping@plugin:a b:pong@plugin:b").unwrap_err();
    assert_eq!((circle.code, circle.retryable), (ksi_protocol::Code::TooLarge, false));
    let named = "a:ping@plugin:a > b:pong@plugin:b > a:ping@plugin:a > b:pong@plugin:b";
    assert!(circle.message.contains(named), "{circle}");
    let steps = |n: usize| (0..n).map(|n| format!("x:s{n}@plugin:b")).collect::<Vec<_>>().join(" ");
    emit(&steps(7)).unwrap();
    assert!(emit(&steps(8)).unwrap_err().message.contains("x:s7@plugin:b"));
    assert!(emit(&"y".repeat(100_000)).is_err(), "no step is as long as that");
}

#[test]
fn under_a_freeze_only_what_is_declared_so_can_be_asked_and_what_is_in_flight_goes_on() {
    check(
        "
        > A attach client
        > B attach plugin
        > B declare b:do,b:more no_owner
        > B own b:do,b:more
        > D attach daemon
        > D declare d:read no_owner unfrozen=1
        > D own d:read
        > A request 1 b:do x
        < B request 1 b:do x from A
        > D freeze unavailable
        > A request 2 b:more x
        < A refused 2 unavailable
        > B request 1 d:read x
        < D request 3 d:read x from B
        > B request 2 b:do x
        < B refused 2 unavailable
        > A emit a:told x
        ! unavailable
        > B emit b:told x
        = 0
        > A request 3 nobody:knows x
        < A refused 3 unknown_event sender
        > B reply 1 done
        < A reply 1 done
        > D thaw
        > A request 4 b:more x
        < B request 6 b:more x from A
        ",
    );
}

#[test]
fn one_has_no_more_of_a_receiver_than_half_of_what_others_leave() {
    check(
        "> A attach holds=* tenant=a
         > C attach holds=* tenant=c
         > B attach plugin holding=4
         > B own b:do
         > A request 1 b:do x
         < B request 1 b:do x from A of A in a
         > A request 2 b:do x
         < B request 2 b:do x from A of A in a
         > A request 3 b:do x
         < A refused 3 busy sender
         # Another has room, and so has whoever comes after that one.
         > C request 1 b:do x
         < B request 4 b:do x from C of C in c
         > C request 2 b:do x
         < C refused 2 busy sender
         > B request 1 b:do x
         < B request 6 b:do x from B
         > B request 2 b:do x
         < B refused 2 busy receiver
         # Whoever has an answer may ask again.
         > B reply 6 y
         < B reply 1 y
         > B reply 1 y
         < A reply 1 y
         > B reply 2 y
         < A reply 2 y
         > A request 3 b:do x
         < B request 8 b:do x from A of A in a",
    );
}

#[test]
fn what_is_asked_in_somebodys_name_is_on_that_ones_account() {
    check(
        "> A attach holds=* tenant=a
         > B attach plugin
         > D attach plugin holding=4
         > B own b:do
         > D own d:do
         > A request 1 b:do x
         < B request 1 b:do x from A of A in a
         > B request 1 d:do x parent=1
         < D request 2 d:do x from B of A in a
         > A request 2 d:do x
         < D request 3 d:do x from A of A in a
         > B request 2 d:do x parent=1
         < B refused 2 busy sender
         > B request 3 d:do x
         < D request 5 d:do x from B",
    );
}

#[test]
fn what_is_sent_faster_than_the_quota_says_is_refused_with_the_time_to_wait() {
    check(
        "> A attach
         > B attach plugin per_second=1
         > A own a:do
         > B request 1 a:do x
         < A request 1 a:do x from B
         > B emit b:told x
         = 0
         > B emit b:told x
         ! busy sender
         > B request 2 a:do x
         < B refused 2 busy sender
         # What it answers is not counted, nor what others ask.
         > A reply 1 y
         < B reply 1 y
         > at 1000
         = 60000
         > B request 2 a:do x
         < A request 3 a:do x from B",
    );
}
