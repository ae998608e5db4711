//! Causal chains: plugins that answer each other without end are stopped, and
//! told by name.

use ksi_tests::{Daemon, Home, WITHOUT_MODEL, library, wait_until};
use serde_json::json;

/// Two instances of one library that say what the other says.
fn pair(placement: &str, more: &str) -> Daemon {
    let one = |name: &str, namespace: &str| {
        let library = library("fixture_faulty");
        format!(
            "[plugins.{name}]\nlibrary = \"{}\"\nplacement = \"{placement}\"\n{namespace}\
             emits = [\"test:*\"]\nlistens = [\"test:*\"]\nmay_call = [\"faulty:*\", \"other:*\"]\n",
            library.display()
        )
    };
    let plugins = one("faulty", "") + &one("other", "namespace = \"other\"\n");
    let daemon = Home::with_config(&format!("{more}{WITHOUT_MODEL}{plugins}")).start();
    daemon.ready();
    daemon
}

#[test]
fn facts_that_go_in_a_circle_end_after_so_many_rounds_and_the_log_names_the_circle() {
    for placement in ["child", "in-process"] {
        let daemon = pair(placement, "");
        let mut listener = daemon.lines();
        listener.send(&json!({"subscribe": "test:ping"}));
        listener.receive();
        daemon.lines().send(&json!({"emit": "test:ping"}));
        wait_until("both directions have ended", || {
            daemon.log().matches("comes back more than 16").count() >= 2
        });
        // Each of the two begins a chain, in which each may speak sixteen times.
        for n in 0..1 + 2 * 32 {
            assert_eq!(listener.receive()["seq"], n + 1);
        }
        let log = daemon.log();
        assert!(log.contains("test:ping@plugin:faulty > test:ping@plugin:other"), "{log}");
        daemon.ask("faulty:ok", json!({})).expect("it goes on");
        assert!(!listener.has_come(), "nothing more was said");
    }
}

#[test]
fn requests_that_go_in_a_circle_are_refused_to_whoever_began_them() {
    let daemon = pair("child", "");
    let refusal = daemon
        .ask("faulty:bounce", json!({"to": "other:bounce", "back": "faulty:bounce"}))
        .expect_err("it has no end");
    assert_eq!((&refusal["code"], &refusal["retryable"]), (&json!("too_large"), &json!(false)), "{refusal}");
    let message = refusal["message"].as_str().expect("a text");
    // Under its other name the plugin means itself by what its library calls `faulty`.
    assert!(message.contains("other:bounce@plugin:other > other:bounce@plugin:other"), "{message}");
    daemon.ask("other:ok", json!({})).expect("both go on");
    wait_until("nothing is left", || daemon.status().in_flight == 1);
}

#[test]
fn how_far_a_chain_may_go_is_for_the_configuration_to_say() {
    let daemon = pair("in-process", "[daemon]\nchain_steps_max = 5\n");
    let refusal = daemon
        .ask("faulty:bounce", json!({"to": "other:bounce", "back": "faulty:bounce"}))
        .expect_err("it has no end");
    assert!(refusal["message"].as_str().expect("a text").contains("beyond 5 steps"), "{refusal}");
}
