//! Tests of the screen: what each view shows at 40×12, 80×24 and 120×40, that
//! no size panics, and that `NO_COLOR` leaves no colour.

use std::time::Duration;

use crossterm::event::KeyCode;
use ksi_protocol::{
    frame::Gap,
    system::{HealthStatus, PluginState},
};
use ratatui::{Terminal, backend::TestBackend, buffer::Buffer, style::Color};

use crate::state::{
    Arrival, Input, Link, State,
    tests::{code, connected, event, inspection, plugin, press},
};

const SIZES: [(u16, u16); 3] = [(40, 12), (80, 24), (120, 40)];

fn buffer(state: &State, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| super::draw(state, frame)).unwrap();
    terminal.backend().buffer().clone()
}

fn screen(state: &State, (width, height): (u16, u16)) -> String {
    let buffer = buffer(state, width, height);
    let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(|y| row(y).trim_end().to_owned() + "\n").collect()
}

fn shows(state: &State, size: (u16, u16), parts: &[&str]) {
    let screen = screen(state, size);
    for part in parts {
        assert!(screen.contains(part), "{size:?} lacks `{part}`:\n{screen}");
    }
}

/// A busy monitor: figures, events, a gap, a plugin in every state.
fn busy() -> State {
    let mut held = plugin("zeta", PluginState::Held);
    held.last_error = Some("exit code 1, five times in a minute".into());
    held.restarts = 5;
    let plugins = vec![
        plugin("agent", PluginState::Ready),
        plugin("llama", PluginState::Starting),
        plugin("memory", PluginState::Backoff),
        held,
    ];
    let mut state = connected(plugins);
    let mut status = state.status.clone().unwrap();
    for second in 2..100 {
        status.counters.requests += 1500;
        status.counters.emits += second;
        status.counters.refusals += second % 2;
        status.health.status = HealthStatus::Degraded;
        status.health.reasons = vec!["plugin zeta is held: exit code 1".into()];
        state.apply(Input::Status { status: status.clone(), at_ms: second * 1000 });
        state.apply(Input::Latency(Some(Duration::from_micros(200 + second))));
    }
    let mut arrivals: Vec<Arrival> =
        (1..=60).map(|seq| Arrival::Event(event("agent:spawned", seq))).collect();
    arrivals.push(Arrival::Gap(Gap { sub: 1, missed: 1234, from_seq: 61, to_seq: 1294 }));
    arrivals.push(Arrival::Event(event("llama:loaded", 1295)));
    state.apply(Input::Heard(arrivals));
    state
}

#[test]
fn the_overview_shows_health_rates_and_what_is_not_ready_on_top() {
    let state = busy();
    for size in SIZES {
        shows(
            &state,
            size,
            &[
                "1 Overview",
                "● d",
                "events/s",
                "requests/s",
                "1,500",
                "refusals/s",
                "p50",
                "zeta",
                "held",
                "gaps 1 (1,234 lost)",
            ],
        );
        let screen = screen(&state, size);
        assert!(screen.contains('█'), "there is a sparkline:\n{screen}");
        assert!(screen.find("zeta") < screen.find("agent").or(Some(usize::MAX)), "{screen}");
    }
    let all = ["dropped/s", "sessions", "in flight", "HANDLED", "exit code 1, five", "plugin zeta is held"];
    shows(&state, (80, 24), &all);
    shows(&state, (120, 40), &all);
}

#[test]
fn the_event_view_shows_the_newest_events_and_the_gap() {
    let mut state = busy();
    press(&mut state, "2");
    for size in SIZES {
        shows(&state, size, &["live 62 of 62", "TIME UTC", "agent:spawned", "llama:loaded", "1,234 events"]);
    }
    shows(&state, (80, 24), &["ORIGIN", "plugin:agent", r#"{"n":60}"#, "22:13:20.060"]);
    press(&mut state, "w");
    shows(&state, (120, 40), &["CORRELATION", "c-60", "BYTES"]);
    press(&mut state, "/loaded");
    code(&mut state, KeyCode::Enter);
    let screen = screen(&state, (80, 24));
    assert!(screen.contains("/loaded 2 of 62") && !screen.contains("agent:spawned"), "{screen}");
}

#[test]
fn a_pause_and_what_arrives_in_it_are_shown() {
    let mut state = busy();
    press(&mut state, "2 ");
    state.apply(Input::Heard(vec![Arrival::Event(event("late:event", 1296))]));
    for size in SIZES {
        shows(&state, size, &["PAUSED +1"]);
        assert!(!screen(&state, size).contains("late:event"));
    }
}

#[test]
fn an_opened_event_shows_its_payload() {
    let mut state = busy();
    press(&mut state, "2");
    code(&mut state, KeyCode::Enter);
    shows(&state, (40, 12), &["event, line 1", "llama:loaded", "esc back"]);
    shows(
        &state,
        (80, 24),
        &["event, line 1", "llama:loaded", r#""n": 1295"#, "origin", "c-1295", "esc back"],
    );
}

#[test]
fn the_plugin_view_shows_the_figures_that_fit() {
    let mut state = busy();
    press(&mut state, "3");
    for size in SIZES {
        shows(
            &state,
            size,
            &["4 of 4 plugins by warnings", "NAME", "STATE", "zeta", "held", "backoff", "agent"],
        );
    }
    shows(&state, (80, 24), &["HANDLED", "PLACE", "SBX", "GEN", "RSS", "child", "L3", "5.0 MiB"]);
    let all = ["PID", "4711", "VERSION", "READY", "LAST ERROR", "exit code 1, fi"];
    shows(&state, (160, 40), &all);
    press(&mut state, "w");
    shows(&state, (120, 40), &["LAST ERROR", "exit code 1"]);
    press(&mut state, "s");
    let screen = screen(&state, (80, 24));
    assert!(screen.contains("by name") && screen.find("agent") < screen.find("zeta"), "{screen}");
}

#[test]
fn a_described_plugin_shows_its_deaths() {
    let mut state = busy();
    press(&mut state, "3d");
    shows(&state, (80, 24), &["asking plugin:inspect", "sandbox", "exit code 1, five times"]);
    state.apply(Input::Inspected { name: "zeta".into(), answer: Ok(Box::new(inspection("zeta"))) });
    shows(&state, (80, 24), &["deaths, newest first (1):", "signal 11", "segmentation fault", "esc back"]);
    shows(&state, (120, 40), &["may call (1):", "llama:generate", "listens to (1):", "agent:*"]);
    shows(&state, (40, 12), &["zeta 0.1.0", "state"]);
}

#[test]
fn the_footer_always_shows_the_keys_of_the_current_view() {
    for size in SIZES {
        let mut state = busy();
        shows(&state, size, &["1-3 view", ": command", "? help", "q quit"]);
        press(&mut state, "2");
        shows(&state, size, &["/ filter", "space pause", "d describe", "w wide", "? help", "q quit"]);
        press(&mut state, "/");
        shows(&state, size, &["enter keep", "esc undo"]);
        code(&mut state, KeyCode::Esc);
        press(&mut state, "3");
        shows(&state, size, &["d describe", "s sort", "/ filter", "w wide", "? help", "q quit"]);
        press(&mut state, "d");
        shows(&state, size, &["esc back", "d refresh", "? help", "q quit"]);
        press(&mut state, "?");
        shows(&state, size, &["esc back", "q quit"]);
    }
}

#[test]
fn the_help_shows_the_keys_of_the_view() {
    let mut state = busy();
    press(&mut state, "2?");
    shows(&state, (80, 24), &["Events", "space", "stop the stream", "An opened event"]);
    shows(&state, (120, 40), &["Everywhere", "ctrl-c", "Signs"]);
}

#[test]
fn a_typed_line_its_error_and_a_notice_are_shown() {
    let mut state = busy();
    press(&mut state, "2/a:x*");
    shows(&state, (80, 24), &["/a:x*", "must be"]);
    code(&mut state, KeyCode::Esc);
    press(&mut state, ":nope");
    shows(&state, (40, 12), &[":nope"]);
    code(&mut state, KeyCode::Enter);
    shows(&state, (80, 24), &["no command `nope`"]);
}

#[test]
fn without_a_daemon_there_is_a_banner_and_with_a_lost_one_the_last_data() {
    let mut state = State::new("/run/ksid.sock".into(), true);
    shows(&state, (80, 24), &["connecting", "/run/ksid.sock"]);
    let down = || Input::Down { link: Link::Requests, reason: "nobody listens".into(), at_ms: 0 };
    state.apply(down());
    shows(&state, (80, 24), &["no daemon", "`ksi up`", "nobody listens"]);
    let mut state = busy();
    state.apply(down());
    for size in SIZES {
        shows(&state, size, &["connection lost, reconnecting", "zeta", "requests/s"]);
    }
    shows(&state, (80, 24), &["○ unknown", "was up"]);
    assert!(!screen(&state, (80, 24)).contains("● "), "nobody knows how it is");
    state.apply(Input::Up { link: Link::Requests, server: "ksid 1".into(), boot: "b".into(), at_ms: 1 });
    shows(&state, (80, 24), &["● "]);
}

/// Monitors in every mode, with and without data.
fn everywhere() -> Vec<State> {
    let mut states = Vec::new();
    for keys in ["1", "2", "2w", "2d", "2 ", "2/x*", "3", "3w", "3d", "?", "2?", "3?", ":ev"] {
        let mut state = busy();
        press(&mut state, keys);
        states.push(state);
        let mut empty = State::new("/s".into(), false);
        press(&mut empty, keys);
        empty.apply(Input::Down { link: Link::Feed, reason: "x".into(), at_ms: 0 });
        states.push(empty);
    }
    states
}

#[test]
fn no_size_panics() {
    for state in everywhere() {
        for width in [1, 2, 3, 5, 9, 17, 24, 25, 40, 79, 300] {
            for height in [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 30, 100] {
                buffer(&state, width, height);
            }
        }
    }
}

#[test]
fn no_color_leaves_no_colour_and_loses_no_text() {
    for mut state in everywhere() {
        let coloured = screen(&state, (120, 40));
        state.colour = false;
        let buffer = buffer(&state, 120, 40);
        for cell in buffer.content() {
            assert_eq!((cell.fg, cell.bg), (Color::Reset, Color::Reset), "{cell:?}");
        }
        assert_eq!(screen(&state, (120, 40)), coloured);
    }
}

#[test]
fn control_characters_of_a_payload_or_origin_reach_no_terminal() {
    let mut state = connected(vec![]);
    press(&mut state, "2");
    let mut evil = event("a:b", 1);
    evil.origin = "x\u{1b}[2Jy".into();
    evil.data = ksi_protocol::json::from_json(&serde_json::json!({"t": "\u{1b}[31m"})).unwrap();
    state.apply(Input::Heard(vec![Arrival::Event(evil)]));
    code(&mut state, KeyCode::Enter);
    for size in SIZES {
        assert!(!screen(&state, size).contains('\u{1b}'));
    }
}
