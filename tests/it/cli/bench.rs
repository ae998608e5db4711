//! `bench`: that it measures what it says, not how fast that is.

use ksi_protocol::system::PluginState;
use ksi_tests::{Daemon, stdout};

use super::{data, failed, fine};

#[test]
fn each_test_reports_its_figures() {
    let daemon = Daemon::without_model();
    daemon.ready();
    for test in ["rr", "client-to-client", "pipelined", "fanout"] {
        let report = data(daemon.ksi(&["bench", test, "-n", "200", "-o", "json"]));
        let result = &report["results"][0];
        assert_eq!(result["test"], test);
        assert!(result["per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{result}");
        if matches!(test, "rr" | "client-to-client") {
            let (p50, p99) = (result["p50_us"].as_f64(), result["p99_us"].as_f64());
            assert!(p50.is_some_and(|p50| p50 > 0.0) && p99 >= p50, "{result}");
        }
    }
    let line = stdout(&fine(daemon.ksi(&["bench", "rr", "-n", "200", "-o", "jsonl"])));
    let result: serde_json::Value = serde_json::from_str(&line).expect("one line");
    for key in ["test", "p50_us", "p99_us", "per_s"] {
        assert!(!result[key].is_null(), "{result}");
    }
    assert!(stdout(&fine(daemon.ksi(&["bench", "rr", "-n", "200"]))).contains("rr"));
}

#[test]
fn a_plugin_that_is_off_is_lent_for_the_measurement() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let report = data(daemon.ksi(&["bench", "rr-child", "-n", "200", "-o", "json"]));
    assert_eq!(report["results"][0]["placement"], "child");
    assert_eq!(daemon.plugin("echo_child").state, PluginState::Stopped);
}

#[test]
fn what_cannot_be_measured_is_named() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let words = failed(daemon.ksi(&["bench", "rr", "-n", "10", "--event", "no:event"]), 4);
    assert!(words.contains("no:event"), "{words}");
    failed(daemon.ksi(&["bench", "rr", "-n", "many"]), 2);
}
