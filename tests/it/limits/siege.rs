//! A normal workload beside a crowd that does its worst, for a moment; how long it
//! waits is measured by `scripts/soak`, which takes its time.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use ksi_tests::siege::{Neighbour, attack, workload};

use super::with;
use crate::identity::create;

const FLOOD: &str = "[events.\"flood:told\"]\npermission = \"flood.read\"\nemit = \"flood.say\"\n";

#[test]
fn a_crowd_with_every_right_of_a_user_costs_its_neighbour_nothing_that_was_promised() {
    let daemon = with(FLOOD);
    let token = create(&daemon, &["*.use", "*.read", "state.*", "work.*", "flood.*"], None).token;
    let socket = daemon.home.paths().socket;
    let neighbour = Neighbour::connect(&socket);
    let stop = AtomicBool::new(false);
    let (sent, seen) = thread::scope(|scope| {
        let attacking = scope.spawn(|| attack(&socket, Some(&token), 64, &stop));
        let seen = workload(neighbour, Duration::from_secs(3), None);
        stop.store(true, Ordering::Relaxed);
        (attacking.join().unwrap(), seen)
    });
    assert!(sent > 1000 && seen.answered.len() > 10, "{sent} sent, {} answered", seen.answered.len());
    assert_eq!(seen.lost, 0);
}
