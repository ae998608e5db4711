//! Nothing that was accepted is lost, however often the daemon is killed.

use ksi_tests::kills::{Plan, carry_out};

#[test]
fn two_hundred_kills_lose_and_double_nothing() {
    let tally = carry_out(Plan { kills: 200, births: 20, clients: 3, burst: 40, seed: 20_201 });
    assert!(tally.is_clean(), "{tally}");
    assert!(tally.accepted > 5_000 && tally.starting > 20 && tally.checkpointing > 10, "{tally}");
    assert!(tally.restarting > 10 && tally.restoring == 20, "{tally}");
    assert_eq!(tally.ended.keys().collect::<Vec<_>>(), ["dead", "done", "failed", "unknown"], "{tally}");
    assert!(tally.newborn >= 20, "{tally}");
}
