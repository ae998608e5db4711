//! Keys: what each one does in each view.
//!
//! One table per mode serves the dispatch, the footer and the help, so a key
//! that is shown works and a key that works is shown in the help. The letters
//! are those of k9s where it has them.

use crossterm::event::KeyCode;

use crate::state::View;

/// What a key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Go to a view.
    Show(View),
    /// One row up.
    Up,
    /// One row down.
    Down,
    /// One screenful up.
    PageUp,
    /// One screenful down.
    PageDown,
    /// To the first row.
    Top,
    /// To the last row; the event view follows again.
    Bottom,
    /// Open what is selected.
    Describe,
    /// Close what lies on top, or clear the filter.
    Back,
    /// Stop the stream, or let it flow.
    Pause,
    /// The next order.
    Sort,
    /// More columns, or fewer.
    Wide,
    /// Type a filter.
    Filter,
    /// Type a command.
    Command,
    /// Show or hide the help.
    Help,
    /// Leave.
    Quit,
}

/// Which keys hold: the view, or what lies over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The overview.
    Overview,
    /// The stream.
    Events,
    /// The stream with an opened event.
    Detail,
    /// The table of plugins.
    Plugins,
    /// An opened plugin.
    Described,
    /// The help.
    Help,
}

/// Keys that do one thing.
#[derive(Debug)]
pub(crate) struct Binding {
    codes: &'static [KeyCode],
    action: Action,
    /// The keys as they are shown.
    pub(crate) shown: &'static str,
    /// One word for the footer; empty for keys that only the help shows.
    pub(crate) label: &'static str,
    /// What they do, for the help; empty where the entry before says it.
    pub(crate) about: &'static str,
}

const fn key(
    codes: &'static [KeyCode],
    action: Action,
    shown: &'static str,
    label: &'static str,
    about: &'static str,
) -> Binding {
    Binding { codes, action, shown, label, about }
}

const UP: Binding = key(&[KeyCode::Up, KeyCode::Char('k')], Action::Up, "↑↓", "move", "one row (also k, j)");
const DOWN: Binding = key(&[KeyCode::Down, KeyCode::Char('j')], Action::Down, "", "", "");
const PAGE_UP: Binding = key(&[KeyCode::PageUp], Action::PageUp, "pgup pgdn", "", "one screenful");
const PAGE_DOWN: Binding = key(&[KeyCode::PageDown], Action::PageDown, "", "", "");
const TOP: Binding =
    key(&[KeyCode::Home, KeyCode::Char('g')], Action::Top, "home end", "", "ends (also g, G)");
const BOTTOM: Binding = key(&[KeyCode::End, KeyCode::Char('G')], Action::Bottom, "", "", "");
const FILTER: Binding =
    key(&[KeyCode::Char('/')], Action::Filter, "/", "filter", "show what matches; /! what does not");
const WIDE: Binding = key(&[KeyCode::Char('w')], Action::Wide, "w", "wide", "more columns");
const PAUSE: Binding =
    key(&[KeyCode::Char(' ')], Action::Pause, "space", "pause", "stop the stream; arrivals are counted");
const DESCRIBE: Binding =
    key(&[KeyCode::Char('d'), KeyCode::Enter], Action::Describe, "d", "describe", "open (also enter)");
const CLEAR: Binding = key(&[KeyCode::Esc], Action::Back, "esc", "", "clear the filter");
const BACK: Binding = key(&[KeyCode::Esc], Action::Back, "esc", "back", "back");

static OVERVIEW: [Binding; 0] = [];

static EVENTS: [Binding; 11] =
    [FILTER, PAUSE, DESCRIBE, UP, DOWN, WIDE, PAGE_UP, PAGE_DOWN, TOP, BOTTOM, CLEAR];

static DETAIL: [Binding; 9] = [
    BACK,
    key(&[KeyCode::Up, KeyCode::Char('k')], Action::Up, "↑↓", "other event", "the event before or after"),
    DOWN,
    key(&[KeyCode::PageUp], Action::PageUp, "pgup pgdn", "scroll", "scroll the event"),
    PAGE_DOWN,
    PAUSE,
    WIDE,
    TOP,
    BOTTOM,
];

static PLUGINS: [Binding; 11] = [
    DESCRIBE,
    key(&[KeyCode::Char('s')], Action::Sort, "s", "sort", "the next order"),
    FILTER,
    WIDE,
    UP,
    DOWN,
    PAGE_UP,
    PAGE_DOWN,
    TOP,
    BOTTOM,
    CLEAR,
];

static DESCRIBED: [Binding; 8] = [
    BACK,
    key(&[KeyCode::Up, KeyCode::Char('k')], Action::Up, "↑↓", "scroll", "one line"),
    DOWN,
    key(&[KeyCode::Char('d'), KeyCode::Enter], Action::Describe, "d", "refresh", "ask again"),
    PAGE_UP,
    PAGE_DOWN,
    TOP,
    BOTTOM,
];

static HELP: [Binding; 1] = [BACK];

/// Keys that hold everywhere.
static GLOBAL: [Binding; 6] = [
    key(&[KeyCode::Char('1')], Action::Show(View::Overview), "1-3", "view", "go to a view"),
    key(&[KeyCode::Char('2')], Action::Show(View::Events), "", "", ""),
    key(&[KeyCode::Char('3')], Action::Show(View::Plugins), "", "", ""),
    key(&[KeyCode::Char(':')], Action::Command, ":", "command", "overview, events, plugins, help, q"),
    key(&[KeyCode::Char('?')], Action::Help, "?", "help", "this help"),
    key(&[KeyCode::Char('q')], Action::Quit, "q", "quit", "leave (also ctrl-c)"),
];

/// The keys of a mode alone.
pub(crate) fn own(mode: Mode) -> &'static [Binding] {
    match mode {
        Mode::Overview => &OVERVIEW,
        Mode::Events => &EVENTS,
        Mode::Detail => &DETAIL,
        Mode::Plugins => &PLUGINS,
        Mode::Described => &DESCRIBED,
        Mode::Help => &HELP,
    }
}

/// The keys that hold everywhere.
pub(crate) fn global() -> &'static [Binding] {
    &GLOBAL
}

/// What a key does in this mode.
pub(crate) fn action(mode: Mode, code: KeyCode) -> Option<Action> {
    own(mode)
        .iter()
        .chain(global())
        .find(|binding| binding.codes.contains(&code))
        .map(|binding| binding.action)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODES: [Mode; 6] =
        [Mode::Overview, Mode::Events, Mode::Detail, Mode::Plugins, Mode::Described, Mode::Help];

    #[test]
    fn a_key_means_one_thing_in_each_mode() {
        for mode in MODES {
            let codes: Vec<KeyCode> =
                own(mode).iter().chain(global()).flat_map(|binding| binding.codes).copied().collect();
            for (index, code) in codes.iter().enumerate() {
                assert!(!codes[..index].contains(code), "{mode:?}: {code:?} is bound twice");
            }
        }
    }

    #[test]
    fn every_key_is_in_the_help_and_the_important_ones_in_the_footer() {
        for mode in MODES {
            for binding in own(mode).iter().chain(global()) {
                assert_eq!(binding.shown.is_empty(), binding.about.is_empty(), "{mode:?}: {binding:?}");
                assert!(binding.label.is_empty() || !binding.shown.is_empty(), "{mode:?}: {binding:?}");
            }
        }
    }

    #[test]
    fn the_letters_are_those_of_k9s() {
        assert_eq!(action(Mode::Plugins, KeyCode::Char('d')), Some(Action::Describe));
        assert_eq!(action(Mode::Plugins, KeyCode::Char('s')), Some(Action::Sort));
        assert_eq!(action(Mode::Events, KeyCode::Char('/')), Some(Action::Filter));
        assert_eq!(action(Mode::Events, KeyCode::Char(' ')), Some(Action::Pause));
        assert_eq!(action(Mode::Described, KeyCode::Esc), Some(Action::Back));
        for mode in MODES {
            assert_eq!(action(mode, KeyCode::Char('q')), Some(Action::Quit));
            assert_eq!(action(mode, KeyCode::Char('2')), Some(Action::Show(View::Events)));
        }
        assert_eq!(action(Mode::Overview, KeyCode::Char('x')), None);
    }
}
