//! Scripts of routing: requests, streams, emissions, quotas, grants, ends.

use crate::script::check;

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
