//! Scripts of interception: order, edits, refusals, and interceptors that are
//! gone, silent or busy.

use crate::tests::script::check;

#[test]
fn interceptors_are_heard_in_order_before_and_after() {
    check(
        "> A attach
         > B attach plugin
         > I attach plugin
         > J attach plugin
         > B own b:do,b:count
         > J intercept b:* before order=2 open
         > I intercept b:do before order=1 closed
         > I intercept b:* after closed
         > A request 1 b:do x
         < I intercept 2 before b:do x from A
         > I edit 2 y
         < J intercept 3 before b:do y from A
         > J pass 3
         < B request 1 b:do y from A
         > B reply 1 z
         < I intercept 4 after b:do z from B
         > B reply 1 again
         > I edit 4 end
         < A reply 1 end
         # Chunks are not heard, ends are.
         > A request 1 b:count x credit=1
         < J intercept 6 before b:count x from A
         > A credit 1 2
         > J pass 6
         < B request 5 b:count x from A credit 3
         > B chunk 5 one
         < A chunk 1 one
         > B end 5 two
         < I intercept 7 after b:count two from B
         > I pass 7
         < A end 1 two
         # Refusals are not heard.
         > A request 1 b:count x
         < J intercept 9 before b:count x from A
         > J pass 9
         < B request 8 b:count x from A
         > B refuse 8 not_found
         < A refused 1 not_found
         # Nobody is heard on what it asks itself.
         > I request 1 b:do x
         < J intercept 11 before b:do x from I
         > J pass 11
         < B request 10 b:do x from I
         > B reply 10 x
         < I reply 1 x",
    );
}

#[test]
fn what_an_expected_interceptor_is_to_hear_is_refused_until_it_is_there() {
    check(
        "> A attach
         > B attach plugin
         > B own b:do,c:do
         > D attach daemon
         > D own b:admin
         > B sub 1 b:said
         > expect I b:*
         > A request 1 b:do x
         < A refused 1 unavailable receiver
         > A request 1 c:do x
         < B request 2 c:do x from A
         > A emit b:said x
         = 1
         # What the daemon says, is asked or answers goes on.
         > A request 2 b:admin x
         < D request 3 b:admin x from A
         > D request 1 b:do x
         < B request 4 b:do x from D
         > D emit b:said x
         = 1
         < B event 1 b:said x from D
         # It asks itself what it needs to come.
         > I attach plugin
         > I request 1 b:do x
         < B request 5 b:do x from I
         # Once it is there, its own words count and nothing else.
         > I intercept b:admin,b:none before closed
         > A request 3 b:do x
         < B request 6 b:do x from A
         > A request 4 b:admin x
         < I intercept 8 before b:admin x from A",
    );
}

#[test]
fn an_expected_interceptor_that_is_forgotten_guards_nothing() {
    check(
        "> A attach
         > B attach plugin
         > B own b:do
         > I attach plugin
         > expect I b:*
         > I forget
         > A request 1 b:do x
         < B request 1 b:do x from A",
    );
}

#[test]
fn what_an_expected_interceptor_is_granted_is_what_is_refused() {
    check(
        "> A attach
         > B attach plugin
         > B own b:do,c:do
         > expect I b:*
         > grant I c:*
         > A request 1 b:do x
         < B request 1 b:do x from A
         > A request 2 c:do x
         < A refused 2 unavailable receiver
         # The same goes for what one that was there has left.
         > I attach plugin intercepts=b:*,c:*
         > I intercept b:*,c:* before closed
         > I detach plugin_restarted
         > A request 2 c:do x
         < A refused 2 unavailable receiver
         > grant I b:*
         > A request 2 c:do x
         < B request 4 c:do x from A",
    );
}

#[test]
fn an_interceptor_may_refuse() {
    check(
        "> A attach
         > B attach plugin
         > I attach plugin
         > B own b:do
         > B sub 1 a:*
         > I intercept * before closed
         > I intercept * after closed
         > A request 1 b:do x
         < I intercept 2 before b:do x from A
         > I reply 2 x
         ! answers 2 with an answer of the wrong kind
         > B veto 2 denied
         ! answers 2, which somebody else was asked
         > I veto 2 denied
         < A refused 1 denied
         > I pass 2
         > A request 1 b:do x
         < I intercept 4 before b:do x from A
         > I pass 4
         < B request 3 b:do x from A
         > B reply 3 x
         < I intercept 5 after b:do x from B
         > I veto 5 denied
         < A refused 1 denied
         > A emit a:b x
         = 1
         < I intercept 6 before a:b x from A
         > I veto 6 denied
         > A emit a:b y
         = 1
         < I intercept 7 before a:b y from A
         > I edit 7 z
         < B event 1 a:b z from A",
    );
}

#[test]
fn what_ends_takes_the_question_with_it() {
    check(
        "> A attach
         > B attach plugin
         > I attach plugin
         > B own b:do
         > I intercept * before closed
         > I intercept * after closed
         > A request 1 b:do x
         < I intercept 2 before b:do x from A
         > A cancel 1
         < I cancel 2
         < A refused 1 cancelled sender
         > I pass 2
         > A request 1 b:do x timeout=10
         < I intercept 4 before b:do x from A
         > at 10
         = never
         < I cancel 4
         < A refused 1 timeout receiver
         > A request 1 b:do x
         < I intercept 6 before b:do x from A
         > I request 1 b:do y parent=6
         < B request 7 b:do y from I
         > I pass 6
         < B cancel 7
         < I refused 1 cancelled sender
         < B request 5 b:do x from A
         > B reply 5 x
         < I intercept 8 after b:do x from B
         > A detach cancelled
         < I cancel 8
         > I pass 8
         # An interceptor that ends takes what it asked with it, in order.
         > A attach
         > A request 1 b:do x
         < I intercept 10 before b:do x from A
         > I request 1 b:do y parent=10
         < B request 11 b:do y from I
         > I request 2 b:do z parent=10
         < B request 12 b:do z from I
         > A cancel 1
         < I cancel 10
         < B cancel 11
         < I refused 1 cancelled sender
         < B cancel 12
         < I refused 2 cancelled sender
         < A refused 1 cancelled sender",
    );
}

#[test]
fn one_that_fails_open_is_skipped_when_gone_silent_or_busy() {
    check(
        "> A attach
         > B attach plugin
         > I attach plugin holding=1
         > B own b:do
         > B sub 1 a:*
         > I intercept * before open
         > A request 1 b:do x timeout=100
         < I intercept 2 before b:do x from A
         > A request 2 b:do y timeout=100
         < B request 3 b:do y from A until 100
         > at 50
         = 100
         < I cancel 2
         < B request 1 b:do x from A until 100
         > I veto 2 denied
         > A emit a:b x
         = 1
         < I intercept 4 before a:b x from A
         > I detach cancelled
         < B event 1 a:b x from A
         > A request 3 b:do z
         < B request 5 b:do z from A",
    );
}

#[test]
fn one_that_fails_closed_refuses_when_gone_silent_or_busy() {
    check(
        "> A attach
         > B attach plugin
         > I attach plugin holding=1
         > B own b:do
         > B sub 1 a:*
         > I intercept * before closed
         > A request 1 b:do x timeout=2000
         < I intercept 2 before b:do x from A
         > A request 2 b:do y
         < A refused 2 busy receiver
         > I detach cancelled
         < A refused 1 unavailable receiver
         # A guard that has died does not open the gate.
         > A request 3 b:do z
         < A refused 3 unavailable receiver
         > J attach plugin origin=I
         > J request 1 b:do z
         < B request 5 b:do z from I
         > J intercept b:do before closed
         > A request 3 b:do z timeout=2000
         < J intercept 7 before b:do z from A
         > at 2000
         = 60000
         < J cancel 7
         < A refused 3 timeout receiver
         > A emit a:b x
         = 1
         < B event 1 a:b x from A
         > J detach cancelled
         < B cancel 5
         > I forget
         > A request 4 b:do z
         < B request 8 b:do z from A",
    );
}

#[test]
fn what_is_emitted_waits_a_second_and_no_longer() {
    check(
        "> A attach
         > B attach
         > I attach plugin
         > J attach plugin
         > B sub 1 a:*
         > I intercept a:* before order=1 open
         > J intercept a:* before order=2 closed
         > A emit a:b x
         = 1
         < I intercept 1 before a:b x from A
         > at 500
         = 1000
         < I cancel 1
         < J intercept 2 before a:b x from A
         > at 1000
         = never
         < J cancel 2
         > J pass 2",
    );
}
