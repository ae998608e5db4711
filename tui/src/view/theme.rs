//! Styles, in one place: with colours, or under `NO_COLOR` with none. What a
//! colour says is always said by a word or a sign too.

use ksi_protocol::system::{HealthStatus, PluginState, PluginStatus};
use ratatui::style::{Color, Modifier, Style};

use crate::state::plugins::{CALM, OFF, severity};

/// Which styles are in use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Theme {
    colour: bool,
}

impl Theme {
    /// With or without colours.
    pub(super) fn new(colour: bool) -> Self {
        Self { colour }
    }

    fn style(self, colour: Color, modifier: Modifier) -> Style {
        let style = Style::new().add_modifier(modifier);
        if self.colour { style.fg(colour) } else { style }
    }

    /// Ordinary text.
    pub(super) fn plain(self) -> Style {
        Style::new()
    }

    /// What may be overlooked.
    pub(super) fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    /// Headings of tables.
    pub(super) fn heading(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// The row or view that is chosen.
    pub(super) fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// Keys and names.
    pub(super) fn accent(self) -> Style {
        self.style(Color::Cyan, Modifier::empty())
    }

    /// All is well.
    pub(super) fn good(self) -> Style {
        self.style(Color::Green, Modifier::empty())
    }

    /// Worth a look.
    pub(super) fn warn(self) -> Style {
        self.style(Color::Yellow, Modifier::BOLD)
    }

    /// Wrong.
    pub(super) fn bad(self) -> Style {
        self.style(Color::Red, Modifier::BOLD)
    }

    /// The style of a health.
    pub(super) fn of_health(self, health: HealthStatus) -> Style {
        match health {
            HealthStatus::Ok => self.good(),
            HealthStatus::Starting | HealthStatus::Stopping => self.warn(),
            HealthStatus::Degraded | HealthStatus::Unhealthy => self.bad(),
        }
    }

    /// The style of a plugin's row.
    pub(super) fn of_plugin(self, plugin: &PluginStatus) -> Style {
        match plugin.state {
            PluginState::Held | PluginState::Quarantined | PluginState::Backoff => self.bad(),
            PluginState::Ready if plugin.degraded.is_some() => self.warn(),
            PluginState::Ready => self.plain(),
            PluginState::Stopped if !plugin.wanted => self.dim(),
            PluginState::Stopped | PluginState::Draining | PluginState::Starting => self.warn(),
        }
    }
}

/// The sign in the first column: `!` not ready or degraded, `~` was restarted,
/// blank calm.
pub(super) fn sign(plugin: &PluginStatus) -> &'static str {
    match severity(plugin) {
        CALM | OFF => " ",
        _ if plugin.state == PluginState::Ready && plugin.degraded.is_none() => "~",
        _ => "!",
    }
}
