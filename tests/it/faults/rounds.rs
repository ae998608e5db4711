//! A hundred faults of every kind, one after the other.

use ksi_tests::faults::{BACK, carry_out};

#[test]
fn a_hundred_faults_cost_the_daemon_nothing_and_the_plugin_is_back_at_once() {
    let tally = carry_out(100);
    assert_eq!(tally.faults, 100, "{tally}");
    assert!(tally.broken.is_empty(), "{tally}");
    // A machine that runs all tests at once may be late now and then.
    assert!(tally.quantile(0.9) < BACK, "{tally}");
    assert!(tally.late().is_empty(), "late after {:?}: {tally}", tally.late());
}
