//! Tests of the reducer, and the fixtures that other tests share.

use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ksi_protocol::{
    EventName,
    system::{Counters, Death, Health, HealthStatus, Placement, PluginState},
};
use serde_json::json;

use super::{events::Entry, *};
use ksi_protocol::system::PluginStatus;

/// A daemon in good health without plugins.
pub(crate) fn status() -> Status {
    Status {
        health: Health {
            status: HealthStatus::Ok,
            ready: true,
            reasons: vec![],
            components: vec![],
            frozen: None,
            version: "0.1.0".into(),
            pid: 42,
            uptime_ms: 3_600_000,
            plugins_ready: 0,
            plugins_total: 0,
        },
        socket: "/run/ksid.sock".into(),
        state_dir: "/state".into(),
        boot: "boot-1".into(),
        rss_bytes: 9 * 1024 * 1024,
        sessions: 2,
        subscriptions: 5,
        in_flight: 1,
        counters: Counters { requests: 1234, ..Counters::default() },
        plugins: vec![],
    }
}

/// A plugin in this state.
pub(crate) fn plugin(name: &str, state: PluginState) -> PluginStatus {
    PluginStatus {
        wanted: true,
        name: name.into(),
        version: "0.1.0".into(),
        about: format!("About {name}"),
        state,
        placement: Placement::Child,
        sandbox: "L3".into(),
        sandbox_lacks: vec!["cgroup: not delegated".into()],
        pid: Some(4711),
        generation: 1,
        restarts: 0,
        ready_ms: Some(60_000),
        rss_bytes: Some(5 * 1024 * 1024),
        in_flight: 0,
        handled: 12,
        library: format!("/lib/libplugin_{name}.so"),
        last_error: None,
        degraded: None,
        quarantined: None,
        not_granted: Vec::new(),
    }
}

/// An inspection with one death.
pub(crate) fn inspection(name: &str) -> PluginInspection {
    PluginInspection {
        status: plugin(name, PluginState::Ready),
        requests: vec![],
        emits: vec![],
        listens: vec!["agent:*".into()],
        may_call: vec!["llama:generate".into()],
        deaths: vec![Death {
            at_ms: 1_700_000_000_000,
            reason: "signal 11".into(),
            last_words: vec!["segmentation fault in kernel 7".into()],
            ..Death::default()
        }],
    }
}

/// An event with a small payload.
pub(crate) fn event(name: &str, seq: u64) -> Event {
    Event {
        sub: 1,
        seq,
        event: EventName::parse(name).unwrap(),
        data: ksi_protocol::json::from_json(&json!({"n": seq})).unwrap(),
        origin: "plugin:agent".into(),
        at_ms: 1_700_000_000_000 + seq,
        correlation_id: Some(format!("c-{seq}")),
        tenant: None,
        chain: None,
    }
}

/// A monitor that is connected and has figures of these plugins.
pub(crate) fn connected(plugins: Vec<PluginStatus>) -> State {
    let mut state = State::new("/run/ksid.sock".into(), true);
    for link in [Link::Requests, Link::Feed] {
        up(&mut state, link, "boot-1");
    }
    let status = Box::new(Status { plugins, ..status() });
    state.apply(Input::Status { status, at_ms: 1000 });
    state
}

fn up(state: &mut State, link: Link, boot: &str) {
    state.apply(Input::Up { link, server: "ksid 0.1.0".into(), boot: boot.into(), at_ms: 0 });
}

fn down(state: &mut State, link: Link) {
    state.apply(Input::Down { link, reason: "connection closed".into(), at_ms: 0 });
}

/// Presses the keys of a text.
pub(crate) fn press(state: &mut State, keys: &str) -> Option<Ask> {
    keys.chars().map(|key| code(state, KeyCode::Char(key))).last().flatten()
}

/// Presses one key.
pub(crate) fn code(state: &mut State, code: KeyCode) -> Option<Ask> {
    state.apply(Input::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

fn hear(state: &mut State, names: &[&str]) {
    let arrivals = (1..).zip(names).map(|(seq, name)| Arrival::Event(event(name, seq))).collect();
    state.apply(Input::Heard(arrivals));
}

fn marks(state: &State) -> Vec<String> {
    (0..state.events.len())
        .filter_map(|position| match state.events.at(position)? {
            Entry::Mark { text, .. } => Some(text.clone()),
            Entry::Event(_) => None,
        })
        .collect()
}

#[test]
fn keys_go_to_views_and_leave() {
    let mut state = connected(vec![]);
    for (key, view) in [("2", View::Events), ("3", View::Plugins), ("1", View::Overview)] {
        press(&mut state, key);
        assert_eq!(state.view, view);
    }
    press(&mut state, "q");
    assert!(state.quit);
    let mut state = connected(vec![]);
    press(&mut state, ":");
    state.apply(Input::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
    assert!(state.quit, "ctrl-c leaves even while a line is typed");
}

#[test]
fn commands_go_to_views_by_name_or_its_beginning() {
    for (command, view) in
        [("events", View::Events), ("ev", View::Events), ("Plug", View::Plugins), ("o", View::Overview)]
    {
        let mut state = connected(vec![]);
        press(&mut state, &format!(":{command}"));
        code(&mut state, KeyCode::Enter);
        assert_eq!(state.view, view, "{command}");
        assert!(state.prompt.is_none());
    }
    for command in ["q", "quit", "exit"] {
        let mut state = connected(vec![]);
        press(&mut state, &format!(":{command}"));
        code(&mut state, KeyCode::Enter);
        assert!(state.quit, "{command}");
    }
    let mut state = connected(vec![]);
    press(&mut state, ":nope");
    code(&mut state, KeyCode::Enter);
    assert!(state.notice.as_ref().unwrap().contains("no command `nope`"));
    press(&mut state, ":help");
    code(&mut state, KeyCode::Enter);
    assert!(state.help);
    code(&mut state, KeyCode::Esc);
    assert!(!state.help);
}

#[test]
fn a_filter_holds_while_it_is_typed_and_esc_brings_the_former_back() {
    let mut state = connected(vec![]);
    hear(&mut state, &["agent:spawned", "llama:loaded"]);
    press(&mut state, "2/spawn");
    assert_eq!(state.events.len(), 1);
    code(&mut state, KeyCode::Enter);
    assert!(state.prompt.is_none());
    press(&mut state, "/!agent:*");
    assert_eq!(state.events.filter().to_string(), "!agent:*");
    code(&mut state, KeyCode::Esc);
    assert_eq!(state.events.filter().to_string(), "spawn");
    code(&mut state, KeyCode::Esc);
    assert!(state.events.filter().is_all(), "esc in the view clears the filter");
}

#[test]
fn a_filter_that_is_no_pattern_says_why_and_changes_nothing() {
    let mut state = connected(vec![]);
    press(&mut state, "2/agent:x*");
    assert!(state.prompt.as_ref().unwrap().error.is_some());
    assert_eq!(state.events.filter().to_string(), "agent:x");
    code(&mut state, KeyCode::Backspace);
    assert!(state.prompt.as_ref().unwrap().error.is_none());
    press(&mut state, "*");
    code(&mut state, KeyCode::Enter);
    assert!(state.notice.is_some());
}

#[test]
fn a_typed_line_is_bounded() {
    let mut state = connected(vec![]);
    press(&mut state, &format!(":{}", "é".repeat(500)));
    assert_eq!(state.prompt.as_ref().unwrap().text.len(), PROMPT_BYTES_MAX);
}

#[test]
fn space_pauses_the_stream_and_arrivals_are_counted() {
    let mut state = connected(vec![]);
    press(&mut state, "2 ");
    hear(&mut state, &["a:b", "a:c"]);
    assert_eq!((state.events.arrived_in_pause(), state.events.len()), (Some(2), 0));
    press(&mut state, " ");
    assert_eq!((state.events.arrived_in_pause(), state.events.len()), (None, 2));
}

#[test]
fn events_make_nothing_dirty_where_they_are_not_shown() {
    let mut state = connected(vec![]);
    state.dirty = false;
    hear(&mut state, &["a:b"]);
    assert!(!state.dirty, "the overview shows no event");
    state.apply(Input::Heard(vec![Arrival::Gap(Gap { sub: 1, missed: 3, from_seq: 2, to_seq: 4 })]));
    assert!(state.dirty, "but it shows gaps");
    press(&mut state, "2");
    state.dirty = false;
    hear(&mut state, &["a:b"]);
    assert!(state.dirty);
}

#[test]
fn a_lost_connection_keeps_what_is_known_and_a_restart_is_noted_in_the_stream() {
    let mut state = connected(vec![plugin("echo", PluginState::Ready)]);
    hear(&mut state, &["a:b"]);
    assert_eq!(state.banner(), None);
    down(&mut state, Link::Feed);
    down(&mut state, Link::Requests);
    assert!(state.banner().unwrap().contains("connection lost, reconnecting"));
    assert!(state.status.is_some());
    down(&mut state, Link::Feed);
    up(&mut state, Link::Requests, "boot-2");
    assert!(state.banner().is_some(), "one of two connections is not enough");
    up(&mut state, Link::Feed, "boot-2");
    assert_eq!(state.banner(), None);
    let marks = marks(&state);
    assert_eq!(marks.len(), 2, "a failed attempt is not noted: {marks:?}");
    assert!(marks[0].contains("connection lost"));
    assert!(marks[1].contains("restarted") && marks[1].contains("boot-2") && marks[1].contains("boot-1"));
    down(&mut state, Link::Feed);
    up(&mut state, Link::Feed, "boot-2");
    assert!(self::marks(&state).last().unwrap().contains("same daemon"));
}

#[test]
fn without_a_daemon_the_banner_says_how_to_start_one() {
    let mut state = State::new("/run/ksid.sock".into(), true);
    assert_eq!(state.banner(), None, "the first attempt is still under way");
    down(&mut state, Link::Requests);
    let banner = state.banner().unwrap();
    assert!(banner.contains("no daemon") && banner.contains("ksi up"), "{banner}");
}

#[test]
fn describe_asks_for_the_selected_plugin_and_shows_the_answer() {
    let mut state = connected(vec![plugin("agent", PluginState::Ready), plugin("echo", PluginState::Ready)]);
    press(&mut state, "3");
    code(&mut state, KeyCode::Down);
    assert_eq!(press(&mut state, "d"), Some(Ask::Inspect("echo".into())));
    state.apply(Input::Inspected { name: "echo".into(), answer: Ok(Box::new(inspection("echo"))) });
    let lines = state.plugins.described.as_ref().unwrap().lines(&state.status.as_ref().unwrap().plugins);
    assert!(lines.iter().any(|line| line.contains("signal 11")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("segmentation fault")), "{lines:?}");
    for _ in 0..500 {
        code(&mut state, KeyCode::Down);
    }
    assert_eq!(state.plugins.described.as_ref().unwrap().scroll, lines.len() - 1);
    assert_eq!(press(&mut state, "d"), Some(Ask::Inspect("echo".into())), "d asks again");
    code(&mut state, KeyCode::Esc);
    assert!(state.plugins.described.is_none());
}

#[test]
fn an_open_event_takes_the_pages_and_the_arrows_open_its_neighbours() {
    let mut state = connected(vec![]);
    press(&mut state, "2");
    hear(&mut state, &["a:one", "a:two"]);
    code(&mut state, KeyCode::Enter);
    assert!(state.events.detail.as_ref().unwrap().lines[0].contains("a:two"));
    code(&mut state, KeyCode::Up);
    assert!(state.events.detail.as_ref().unwrap().lines[0].contains("a:one"));
    code(&mut state, KeyCode::PageDown);
    assert!(state.events.detail.as_ref().unwrap().scroll > 0);
    code(&mut state, KeyCode::Esc);
    assert!(state.events.detail.is_none());
}

#[test]
fn every_key_in_every_mode_is_harmless_without_data() {
    let codes = [
        KeyCode::Up,
        KeyCode::Down,
        KeyCode::PageUp,
        KeyCode::PageDown,
        KeyCode::Home,
        KeyCode::End,
        KeyCode::Enter,
        KeyCode::Esc,
        KeyCode::Tab,
        KeyCode::F(1),
    ];
    for view in ["1", "2", "3", "?"] {
        let mut state = State::new("/s".into(), false);
        press(&mut state, view);
        for key in codes.into_iter().chain("dswgGjk".chars().map(KeyCode::Char)) {
            code(&mut state, key);
        }
        assert!(!state.quit);
    }
}

#[test]
fn a_failed_round_trip_is_absent_and_a_notice_goes_with_the_next_key() {
    let mut state = connected(vec![]);
    state.apply(Input::Latency(Some(Duration::from_micros(200))));
    assert_eq!(state.rates.latency_us.last(), Some(200));
    state.apply(Input::Latency(None));
    assert_eq!(state.rates.latency_us.last(), None);
    state.apply(Input::Notice("no figures".into()));
    press(&mut state, "2");
    assert_eq!(state.notice, None);
}
