//! The state of the monitor: a pure reducer of inputs.
//!
//! [`State::apply`] takes one input (a key, an answer, a batch of events) and
//! says what to ask the daemon next, if anything; [`crate::view::draw`] shows
//! the result. Nothing here does I/O or reads a clock: times are arguments.
//!
//! # Invariants
//!
//! - Memory is bounded: events by [`events`], samples by [`rates`], typed text
//!   by [`PROMPT_BYTES_MAX`].
//! - `dirty` is set only when something that is on the screen may have changed,
//!   so a flood of events costs no drawing in the views that do not show it.
//! - What was known stays on the screen when the daemon goes away.

pub(crate) mod events;
pub(crate) mod filter;
pub(crate) mod plugins;
pub(crate) mod prompt;
pub(crate) mod rates;
#[cfg(test)]
pub(crate) mod tests;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ksi_protocol::{
    frame::{Event, Gap},
    system::{PluginInspection, Status},
};

use crate::input::{self, Action, Mode};
use events::Events;
use plugins::Plugins;
use prompt::{Prompt, Purpose};
use rates::Rates;

/// Longest text of the filter and the command line. An event name has at most
/// 128 bytes, so nothing longer can be meant.
pub(crate) const PROMPT_BYTES_MAX: usize = 128;

/// The views, in the order of their keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    /// Health, rates and the plugins that need a look.
    Overview,
    /// The live stream.
    Events,
    /// All plugins.
    Plugins,
}

impl View {
    /// All of them, in the order of their keys.
    pub(crate) const ALL: [Self; 3] = [Self::Overview, Self::Events, Self::Plugins];

    /// As it is written in the header and on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Events => "Events",
            Self::Plugins => "Plugins",
        }
    }
}

/// The two connections of the monitor. The feed reads at its own pace, so the
/// latency that is shown must be measured on another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// Asks for status and inspections.
    Requests,
    /// Hears events.
    Feed,
}

/// How one connection is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Connection {
    /// The first attempt is under way.
    Connecting,
    /// It stands, with this boot of the daemon.
    Up,
    /// There was no daemon so far.
    Absent(String),
    /// It stood, and is being made again.
    Lost(String),
}

/// What came over the feed, in order.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// An event.
    Event(Event),
    /// Events that were lost because the monitor was slow.
    Gap(Gap),
}

/// All that can happen to the monitor.
#[derive(Debug)]
pub(crate) enum Input {
    /// A key was pressed.
    Key(KeyEvent),
    /// The terminal has this many rows now.
    Resized(u16),
    /// A connection stands.
    Up {
        /// Which one.
        link: Link,
        /// Name and version of the daemon.
        server: String,
        /// The daemon's boot.
        boot: String,
        /// When, milliseconds since 1970.
        at_ms: u64,
    },
    /// A connection could not be made, or broke.
    Down {
        /// Which one.
        link: Link,
        /// Why.
        reason: String,
        /// When, milliseconds since 1970.
        at_ms: u64,
    },
    /// The daemon's figures.
    Status {
        /// The figures.
        status: Box<Status>,
        /// When they came, milliseconds since the monitor started.
        at_ms: u64,
    },
    /// Round trip of the monitor's own `system:health`, or none came.
    Latency(Option<std::time::Duration>),
    /// The answer to [`Ask::Inspect`].
    Inspected {
        /// The plugin.
        name: String,
        /// What the daemon said.
        answer: Result<Box<PluginInspection>, String>,
    },
    /// Something went wrong that a person should know.
    Notice(String),
    /// Events, gaps.
    Heard(Vec<Arrival>),
}

/// What the reducer wants from the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    /// `plugin:inspect` of this plugin.
    Inspect(String),
}

/// All that the monitor knows.
#[derive(Debug)]
pub(crate) struct State {
    /// Path of the socket, for the banner.
    pub(crate) socket: String,
    /// Whether colours may be used.
    pub(crate) colour: bool,
    /// What is on the screen.
    pub(crate) view: View,
    /// More columns.
    pub(crate) wide: bool,
    /// The help lies over the view.
    pub(crate) help: bool,
    /// A line is being typed.
    pub(crate) prompt: Option<Prompt>,
    /// A line for the person, until the next key.
    pub(crate) notice: Option<String>,
    /// The connection that asks.
    pub(crate) requests: Connection,
    /// The connection that hears.
    pub(crate) feed: Connection,
    /// Name and version of the daemon, once known.
    pub(crate) server: Option<String>,
    /// The last figures.
    pub(crate) status: Option<Box<Status>>,
    /// The figures over time.
    pub(crate) rates: Rates,
    /// The live stream.
    pub(crate) events: Events,
    /// The table of plugins.
    pub(crate) plugins: Plugins,
    /// The screen no longer shows what is known.
    pub(crate) dirty: bool,
    /// The person wants to leave.
    pub(crate) quit: bool,
    /// Boot that the feed heard last; tells a restart from a reconnect.
    heard_boot: Option<String>,
    /// Rows of the terminal: how far a page goes.
    rows: u16,
}

impl State {
    /// Nothing is known yet.
    pub(crate) fn new(socket: String, colour: bool) -> Self {
        Self {
            socket,
            colour,
            view: View::Overview,
            wide: false,
            help: false,
            prompt: None,
            notice: None,
            requests: Connection::Connecting,
            feed: Connection::Connecting,
            server: None,
            status: None,
            rates: Rates::default(),
            events: Events::default(),
            plugins: Plugins::default(),
            dirty: true,
            quit: false,
            heard_boot: None,
            rows: 24,
        }
    }

    /// Takes one input; says what to ask next.
    pub(crate) fn apply(&mut self, input: Input) -> Option<Ask> {
        match input {
            Input::Heard(arrivals) => {
                self.heard(arrivals);
                return None;
            }
            Input::Key(key) => {
                self.dirty = true;
                return self.key(key);
            }
            Input::Resized(rows) => self.rows = rows,
            Input::Up { link, server, boot, at_ms } => self.up(link, server, boot, at_ms),
            Input::Down { link, reason, at_ms } => self.down(link, reason, at_ms),
            Input::Status { status, at_ms } => {
                self.rates.sample(&status, at_ms);
                self.status = Some(status);
            }
            Input::Latency(latency) => self.rates.latency(latency),
            Input::Inspected { name, answer } => self.plugins.inspected(&name, answer),
            Input::Notice(text) => self.notice = Some(text),
        }
        self.dirty = true;
        None
    }

    /// Which keys hold now.
    pub(crate) fn mode(&self) -> Mode {
        match self.view {
            _ if self.help => Mode::Help,
            View::Overview => Mode::Overview,
            View::Events if self.events.detail.is_some() => Mode::Detail,
            View::Events => Mode::Events,
            View::Plugins if self.plugins.described.is_some() => Mode::Described,
            View::Plugins => Mode::Plugins,
        }
    }

    /// What to say above the view while a connection does not stand.
    pub(crate) fn banner(&self) -> Option<String> {
        for connection in [&self.requests, &self.feed] {
            match connection {
                Connection::Lost(reason) => {
                    return Some(format!("connection lost, reconnecting… ({reason})"));
                }
                Connection::Absent(reason) => {
                    return Some(format!("no daemon, waiting for it… `ksi up` starts one ({reason})"));
                }
                Connection::Up | Connection::Connecting => {}
            }
        }
        None
    }

    /// Whether what is shown of the daemon is the last that was heard of it, and no
    /// longer how it is.
    pub(crate) fn is_stale(&self) -> bool {
        matches!(self.requests, Connection::Lost(_))
    }

    /// Puts a batch of the feed away. Only the view that shows events, and
    /// the counter of gaps, make it worth drawing.
    fn heard(&mut self, arrivals: Vec<Arrival>) {
        for arrival in arrivals {
            match arrival {
                Arrival::Event(event) => self.events.push(event),
                Arrival::Gap(gap) => {
                    self.events.gap(&gap);
                    self.dirty = true;
                }
            }
        }
        self.dirty |= self.view == View::Events;
    }

    fn up(&mut self, link: Link, server: String, boot: String, at_ms: u64) {
        self.server = Some(server);
        match link {
            Link::Requests => self.requests = Connection::Up,
            Link::Feed => {
                self.feed = Connection::Up;
                match self.heard_boot.replace(boot.clone()) {
                    Some(before) if before != boot => {
                        self.events
                            .mark(format!("the daemon was restarted: boot {boot}, before {before}"), at_ms);
                    }
                    Some(_) => self.events.mark("reconnected to the same daemon".into(), at_ms),
                    None => {}
                }
            }
        }
    }

    fn down(&mut self, link: Link, reason: String, at_ms: u64) {
        let connection = match link {
            Link::Requests => &mut self.requests,
            Link::Feed => &mut self.feed,
        };
        let stood = *connection == Connection::Up;
        *connection = match connection {
            Connection::Up | Connection::Lost(_) => Connection::Lost(reason),
            Connection::Connecting | Connection::Absent(_) => Connection::Absent(reason),
        };
        match link {
            Link::Requests if stood => self.rates.interrupted(),
            Link::Feed if stood => {
                self.events.mark("connection lost: what follows was not heard".into(), at_ms);
            }
            Link::Requests | Link::Feed => {}
        }
    }

    fn key(&mut self, key: KeyEvent) -> Option<Ask> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        self.notice = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            self.quit |= key.code == KeyCode::Char('c');
            return None;
        }
        if self.prompt.is_some() {
            self.typed(key.code);
            return None;
        }
        let action = input::action(self.mode(), key.code)?;
        self.act(action)
    }

    fn act(&mut self, action: Action) -> Option<Ask> {
        match action {
            Action::Show(view) => {
                self.view = view;
                self.help = false;
            }
            Action::Up => self.step(-1),
            Action::Down => self.step(1),
            Action::PageUp => self.page(-1),
            Action::PageDown => self.page(1),
            Action::Top => self.step(isize::MIN),
            Action::Bottom => self.step(isize::MAX),
            Action::Describe => return self.describe(),
            Action::Back => self.back(),
            Action::Pause => self.events.toggle_pause(),
            Action::Sort => self.plugins.sort = self.plugins.sort.next(),
            Action::Wide => self.wide = !self.wide,
            Action::Filter => self.prompt = Some(Prompt::new(Purpose::Filter, self.filter_text())),
            Action::Command => self.prompt = Some(Prompt::new(Purpose::Command, String::new())),
            Action::Help => self.help = !self.help,
            Action::Quit => self.quit = true,
        }
        None
    }

    /// Moves what the arrows move: a selection, or the text of a description.
    fn step(&mut self, by: isize) {
        match self.mode() {
            Mode::Events | Mode::Detail => self.events.step(by),
            Mode::Plugins | Mode::Described => {
                let plugins = self.status.as_ref().map_or(&[][..], |status| &status.plugins);
                match self.plugins.described {
                    Some(_) => self.plugins.scroll(plugins, by),
                    None => self.plugins.step(plugins, by),
                }
            }
            Mode::Overview | Mode::Help => {}
        }
    }

    /// As [`Self::step`], a screenful at once; beside an open event the pages
    /// turn the event's text.
    fn page(&mut self, direction: isize) {
        let page = isize::try_from(self.rows.saturating_sub(6).max(1)).unwrap_or(1) * direction;
        match self.mode() {
            Mode::Detail => self.events.scroll(page / 2 + direction),
            _ => self.step(page),
        }
    }

    fn describe(&mut self) -> Option<Ask> {
        match self.view {
            View::Overview => None,
            View::Events => {
                self.events.open();
                None
            }
            View::Plugins => {
                let status = self.status.as_ref()?;
                self.plugins.describe(&status.plugins).map(Ask::Inspect)
            }
        }
    }

    /// Esc: closes what lies on top, else clears the filter.
    fn back(&mut self) {
        match self.mode() {
            Mode::Help => self.help = false,
            Mode::Detail => self.events.detail = None,
            Mode::Described => self.plugins.described = None,
            Mode::Overview | Mode::Events | Mode::Plugins => self.set_filter(""),
        }
    }
}
