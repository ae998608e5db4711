//! `discover` and `describe`.

use ksi_tests::{Daemon, stdout};

use super::{data, failed, fine};

#[test]
fn every_event_is_listed_with_its_owner_and_described_with_its_fields() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let table = stdout(&fine(daemon.ksi(&["discover"])));
    let say = table.lines().find(|line| line.starts_with("echo:say")).expect("echo:say");
    assert!(say.contains("request") && say.contains("Say something and get it back"), "{say}");
    let own = stdout(&fine(daemon.ksi(&["discover", "echo", "-o", "name"])));
    assert_eq!(own, "echo:keep\necho:say\n");
    let text = stdout(&fine(daemon.ksi(&["describe", "completion:request"])));
    for part in [
        "completion:request",
        "stream",
        "prompt",
        "max_tokens",
        "integer",
        "ask: ksi send completion:request",
    ] {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
    // Each event that is listed can be described.
    let all = data(daemon.ksi(&["discover", "-o", "json"]));
    for event in all["events"].as_array().expect("events") {
        let name = event["event"].as_str().expect("a name");
        assert!(
            event["about"].as_str().is_some_and(|about| !about.is_empty()),
            "{name} says nothing of itself"
        );
        assert!(stdout(&fine(daemon.ksi(&["describe", name]))).starts_with(name));
    }
}

#[test]
fn an_event_that_is_not_there_is_refused_with_its_like() {
    let daemon = Daemon::without_model();
    daemon.ready();
    assert!(failed(daemon.ksi(&["describe", "echo:sai"]), 4).contains("echo:say"));
    assert!(failed(daemon.ksi(&["discover", "nowhere"]), 4).contains("ksi discover"));
}
