//! `bench`: that it measures what it says, not how fast that is.

mod llama_server;

use ksi_protocol::system::PluginState;
use ksi_tests::{Daemon, Home, stdout};
use serde_json::{Value, json};

use self::llama_server::LlamaServer;
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
    let report = data(daemon.ksi(&["bench", "frozen", "-n", "50", "--readers", "3", "-o", "json"]));
    let [alone, frozen] = [&report["results"][0], &report["results"][1]];
    assert_eq!((&alone["test"], &frozen["test"]), (&json!("facts-alone"), &json!("frozen")));
    assert_eq!((&alone["n"], &frozen["n"]), (&json!(50), &json!(50)));
    assert!(frozen["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0), "{frozen}");
    assert!(daemon.status().counters.dropped > 0, "nobody was frozen");
    let line = stdout(&fine(daemon.ksi(&["bench", "rr", "-n", "200", "-o", "jsonl"])));
    let result: Value = serde_json::from_str(&line).expect("one line");
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
fn inference_is_measured_turn_by_turn_beside_another_server_and_told_as_ratios() {
    let daemon = Home::new().start();
    daemon.ready();
    let server = LlamaServer::start();
    let report = data(daemon.ksi(&["bench", "infer", "--against", &server.url, "-o", "json"]));
    let rows = report["results"].as_array().expect("rows");
    let names: Vec<_> = rows.iter().map(|row| row["test"].as_str().expect("a name")).collect();
    let streams = ["infer-1", "server-1", "infer-4", "server-4", "infer-16", "server-16"];
    // The context of the toy does not hold what the other two share or stall with.
    assert_eq!(names, [&streams[..], &["infer-shared", "infer-stall"]].concat(), "{report}");
    let positive = |row: &Value, field: &str| row[field].as_f64().is_some_and(|figure| figure > 0.0);
    for (ours, theirs) in rows[..6].chunks(2).map(|pair| (&pair[0], &pair[1])) {
        for row in [ours, theirs] {
            assert!(positive(row, "per_s") && row["n"].as_u64() > Some(0), "{row}");
            let (p50, p99) = (row["p50_us"].as_f64(), row["p99_us"].as_f64());
            assert!(p50.is_some() && p99 >= p50, "{row}");
        }
        let rate = |row: &Value| row["per_s"].as_f64().unwrap();
        let expected = (rate(ours) / rate(theirs) * 100.0).round() / 100.0;
        assert_eq!(
            (&ours["ratio"], &ours["against"]),
            (&expected.into(), &"the other server".into()),
            "{ours}"
        );
        assert!(theirs.get("ratio").is_none(), "{theirs}");
    }
    // Of the last, either is found first: that the long prompt has no room, or that the toy has said all it has.
    for (row, reasons) in [(&rows[6], &["context"][..]), (&rows[7], &["context", "too little"])] {
        let why = row["skipped"].as_str().unwrap_or_default();
        assert!(reasons.iter().any(|reason| why.contains(reason)), "{row}");
    }
    // One question that counts the tokens of words, then four turns of 1, 4 and 16 streams of 64 tokens each.
    let asked = server.asked();
    let streams = asked.get(1..=4 * (1 + 4 + 16)).expect("it was asked as often");
    assert!(streams.iter().all(|body| body["max_tokens"] == 64 && body["stream"] == true), "{streams:?}");
    for (row, count) in [(1, 4), (3, 16), (5, 64)] {
        assert_eq!(rows[row]["n"], count * 64, "{}", rows[row]);
    }
    let table = stdout(&fine(daemon.ksi(&["bench", "infer", "--against", &server.url])));
    assert_eq!(table.matches("× the other server").count(), 3, "{table}");
    assert!(
        table.lines().any(|line| line.starts_with("infer-shared") && line.contains("skipped: ")),
        "{table}"
    );
}

#[test]
fn what_cannot_be_measured_is_named() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let words = failed(daemon.ksi(&["bench", "rr", "-n", "10", "--event", "no:event"]), 4);
    assert!(words.contains("no:event"), "{words}");
    failed(daemon.ksi(&["bench", "rr", "-n", "many"]), 2);
}
