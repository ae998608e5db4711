//! The table of plugins: order, filter, selection and description.
//!
//! The figures themselves are those of the last `system:status`; only what a
//! person chose is kept here. The selection is a name, so it stays on its
//! plugin when the order changes.

mod description;

use std::cmp::Reverse;

use ksi_protocol::system::{PluginInspection, PluginState, PluginStatus};

use super::filter::Filter;

/// In which order plugins are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Sort {
    /// What is not ready first, the worst on top.
    #[default]
    Warnings,
    /// By name.
    Name,
    /// Most requests held first.
    InFlight,
    /// Most requests answered first.
    Handled,
    /// Most restarts first.
    Restarts,
    /// Most memory first.
    Memory,
}

impl Sort {
    /// The one after this.
    pub(crate) fn next(self) -> Self {
        match self {
            Self::Warnings => Self::Name,
            Self::Name => Self::InFlight,
            Self::InFlight => Self::Handled,
            Self::Handled => Self::Restarts,
            Self::Restarts => Self::Memory,
            Self::Memory => Self::Warnings,
        }
    }

    /// As it is shown.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Warnings => "warnings",
            Self::Name => "name",
            Self::InFlight => "in flight",
            Self::Handled => "handled",
            Self::Restarts => "restarts",
            Self::Memory => "memory",
        }
    }
}

/// A plugin that is looked at closely.
#[derive(Debug)]
pub(crate) struct Described {
    /// Its name.
    pub(crate) name: String,
    /// What the daemon said of it, once it did.
    pub(crate) answer: Option<Result<Box<PluginInspection>, String>>,
    /// Lines that are scrolled away above.
    pub(crate) scroll: usize,
}

/// What a person chose in the table.
#[derive(Debug, Default)]
pub(crate) struct Plugins {
    /// The order.
    pub(crate) sort: Sort,
    /// Which are shown.
    pub(crate) filter: Filter,
    /// The plugin that lies over the table.
    pub(crate) described: Option<Described>,
    /// Name of the selected plugin; none means the first row.
    selected: Option<String>,
}

/// How much a plugin needs a look: 0 is worst, and from [`CALM`] on it needs
/// none.
pub(crate) fn severity(plugin: &PluginStatus) -> u8 {
    match plugin.state {
        PluginState::Held | PluginState::Quarantined => 0,
        PluginState::Backoff => 1,
        PluginState::Starting => 2,
        PluginState::Draining => 3,
        PluginState::Stopped if !plugin.wanted => OFF,
        PluginState::Stopped => 4,
        PluginState::Ready if plugin.degraded.is_some() => 4,
        PluginState::Ready if plugin.last_error.is_some() || plugin.restarts > 0 => 5,
        PluginState::Ready => CALM,
    }
}

/// The severity of a plugin that is ready and never died.
pub(crate) const CALM: u8 = 6;

/// The severity of a plugin that nobody wants to run.
pub(crate) const OFF: u8 = 7;

/// All plugins in this order.
pub(crate) fn sorted(plugins: &[PluginStatus], sort: Sort) -> Vec<&PluginStatus> {
    let mut rows: Vec<&PluginStatus> = plugins.iter().collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    match sort {
        Sort::Warnings => rows.sort_by_key(|p| severity(p)),
        Sort::Name => {}
        Sort::InFlight => rows.sort_by_key(|p| Reverse(p.in_flight)),
        Sort::Handled => rows.sort_by_key(|p| Reverse(p.handled)),
        Sort::Restarts => rows.sort_by_key(|p| Reverse(p.restarts)),
        Sort::Memory => rows.sort_by_key(|p| Reverse(p.rss_bytes.unwrap_or(0))),
    }
    rows
}

impl Plugins {
    /// The plugins that are shown, in order.
    pub(crate) fn rows<'a>(&self, plugins: &'a [PluginStatus]) -> Vec<&'a PluginStatus> {
        let mut rows = sorted(plugins, self.sort);
        rows.retain(|p| self.filter.shows_any(&[&p.name, p.state.as_str(), p.placement.as_str()]));
        rows
    }

    /// Which of the rows is selected.
    pub(crate) fn selected(&self, rows: &[&PluginStatus]) -> usize {
        let name = self.selected.as_deref();
        rows.iter().position(|row| Some(row.name.as_str()) == name).unwrap_or(0)
    }

    /// Moves the selection.
    pub(super) fn step(&mut self, plugins: &[PluginStatus], by: isize) {
        let rows = self.rows(plugins);
        let last = rows.len().saturating_sub(1);
        let row = self.selected(&rows).saturating_add_signed(by).min(last);
        self.selected = rows.get(row).map(|row| row.name.clone());
    }

    /// Opens the selected plugin; says which one to ask for.
    pub(super) fn describe(&mut self, plugins: &[PluginStatus]) -> Option<String> {
        let name = match &self.described {
            Some(described) => described.name.clone(),
            None => {
                let rows = self.rows(plugins);
                rows.get(self.selected(&rows))?.name.clone()
            }
        };
        if self.described.is_none() {
            self.described = Some(Described { name: name.clone(), answer: None, scroll: 0 });
        }
        Some(name)
    }

    /// Takes the daemon's word on a plugin, where it is still wanted.
    pub(super) fn inspected(&mut self, name: &str, answer: Result<Box<PluginInspection>, String>) {
        if let Some(described) = self.described.as_mut().filter(|described| described.name == name) {
            described.answer = Some(answer);
        }
    }

    /// Scrolls the description, which stops at its last line.
    pub(super) fn scroll(&mut self, plugins: &[PluginStatus], by: isize) {
        if let Some(described) = &mut self.described {
            let last = described.lines(plugins).len().saturating_sub(1);
            described.scroll = described.scroll.saturating_add_signed(by).min(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::plugin;

    fn names(rows: &[&PluginStatus]) -> Vec<String> {
        rows.iter().map(|row| row.name.clone()).collect()
    }

    fn plugins() -> Vec<PluginStatus> {
        let mut restarted = plugin("memory", PluginState::Ready);
        restarted.restarts = 3;
        restarted.rss_bytes = Some(u64::MAX);
        let mut busy = plugin("echo", PluginState::Ready);
        busy.in_flight = 9;
        let mut held = plugin("zeta", PluginState::Held);
        held.handled = 50;
        vec![
            plugin("agent", PluginState::Ready),
            busy,
            restarted,
            plugin("llama", PluginState::Starting),
            held,
        ]
    }

    #[test]
    fn what_is_not_ready_is_on_top_and_every_order_starts_with_the_most() {
        let plugins = plugins();
        let order = |sort| names(&sorted(&plugins, sort));
        assert_eq!(order(Sort::Warnings), ["zeta", "llama", "memory", "agent", "echo"]);
        assert_eq!(order(Sort::Name), ["agent", "echo", "llama", "memory", "zeta"]);
        assert_eq!(order(Sort::InFlight)[0], "echo");
        assert_eq!(order(Sort::Handled)[0], "zeta");
        assert_eq!(order(Sort::Restarts)[0], "memory");
        assert_eq!(order(Sort::Memory)[0], "memory");
        let mut sort = Sort::default();
        for _ in 0..6 {
            sort = sort.next();
        }
        assert_eq!(sort, Sort::default(), "the orders are a circle");
    }

    #[test]
    fn the_selection_stays_on_its_plugin_when_the_order_changes() {
        let plugins = plugins();
        let mut chosen = Plugins::default();
        chosen.step(&plugins, 1);
        assert_eq!(chosen.selected.as_deref(), Some("llama"));
        chosen.sort = Sort::Name;
        assert_eq!(chosen.selected(&chosen.rows(&plugins)), 2);
        chosen.step(&plugins, isize::MAX);
        assert_eq!(chosen.selected.as_deref(), Some("zeta"));
        chosen.step(&plugins, isize::MIN);
        assert_eq!(chosen.selected.as_deref(), Some("agent"));
        chosen.step(&[], 1);
        assert_eq!(chosen.selected, None);
    }

    #[test]
    fn a_filter_looks_at_name_state_and_placement() {
        let plugins = plugins();
        let shown = |text| {
            let chosen = Plugins { filter: Filter::text(text), ..Plugins::default() };
            names(&chosen.rows(&plugins))
        };
        assert_eq!(shown("held"), ["zeta"]);
        assert_eq!(shown("!ready"), ["zeta", "llama"]);
        assert_eq!(shown("lla"), ["llama"]);
        assert!(shown("nothing").is_empty());
    }

    #[test]
    fn an_answer_for_another_plugin_is_dropped() {
        let plugins = plugins();
        let mut chosen = Plugins::default();
        assert_eq!(chosen.describe(&plugins).as_deref(), Some("zeta"));
        chosen.inspected("echo", Err("late".into()));
        assert!(chosen.described.as_ref().unwrap().answer.is_none());
        chosen.inspected("zeta", Err("no plugin named `zeta`".into()));
        assert!(chosen.described.as_ref().unwrap().answer.is_some());
    }
}
