//! The supervisor of one plugin: a pure table from state and input to state
//! and action.
//!
//! Knows no process and no clock: time comes in, actions go out, and its runner
//! carries them out. Up is not ready: a plugin that runs is
//! `Starting` until it says so itself.
//!
//! # Invariants
//!
//! - At most one instance runs: `Launch` comes only out of states in which
//!   nothing runs.
//! - Five failures within the window hold the plugin; only an operator lets it
//!   go on. The daemon never ends because of a plugin.
//! - What is quarantined does not run; nothing but a release ends that.

use std::{collections::VecDeque, time::Duration};

pub use ksi_protocol::system::PluginState as State;

use crate::config::RestartPolicy;

/// What happens to a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// An operator or the start of the daemon wants it to run.
    Start,
    /// An operator or the stop of the daemon wants it gone.
    Stop,
    /// An operator wants it anew.
    Restart,
    /// An operator wants it gone at once, and kept from running.
    Quarantine,
    /// An operator takes that back.
    Release,
    /// It says that it can answer.
    Ready,
    /// It could not be launched, or its process or instance is gone.
    Died,
    /// It has finished what it had.
    Drained,
    /// Time is up: the backoff is over, or the drain took too long.
    Elapsed,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Launch a new generation.
    Launch,
    /// Let it finish; send `Elapsed` after the grace.
    Drain,
    /// End it now. `Died` follows.
    Kill,
    /// Send `Elapsed` after this time.
    Wait(Duration),
    /// It failed too often: tell the operator.
    Hold,
}

/// What shall be once the present instance is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Stopped,
    Started,
    Quarantined,
}

/// The state of one plugin's supervision.
#[derive(Debug)]
pub struct Supervisor {
    state: State,
    policy: RestartPolicy,
    /// Of a plugin that is draining.
    next: Next,
    failures: VecDeque<u64>,
    streak: u32,
    ready_at_ms: Option<u64>,
}

impl Supervisor {
    /// A plugin that does not run.
    #[must_use]
    pub fn new(policy: RestartPolicy) -> Self {
        Self {
            state: State::Stopped,
            policy,
            next: Next::Stopped,
            failures: VecDeque::new(),
            streak: 0,
            ready_at_ms: None,
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether it drains to be started again.
    #[must_use]
    pub fn is_restarting(&self) -> bool {
        self.state == State::Draining && self.next == Next::Started
    }

    /// Since when it is ready.
    #[must_use]
    pub fn ready_at_ms(&self) -> Option<u64> {
        self.ready_at_ms
    }

    /// One step. `jitter` is a random number from 0 to 1: the delay before a
    /// restart is between half and all of the backoff.
    pub fn step(&mut self, input: Input, now_ms: u64, jitter: f64) -> Action {
        use {Input as I, State as S};
        let (state, action) = match (self.state, input) {
            (S::Stopped | S::Held, I::Start | I::Restart) => {
                self.forgive();
                (S::Starting, Action::Launch)
            }
            (S::Backoff, I::Start | I::Restart | I::Elapsed) => (S::Starting, Action::Launch),
            (S::Stopped | S::Held | S::Backoff, I::Stop) => (S::Stopped, Action::None),
            (S::Stopped | S::Held | S::Backoff, I::Quarantine) => (S::Quarantined, Action::None),
            (S::Starting, I::Ready) => {
                self.ready_at_ms = Some(now_ms);
                (S::Ready, Action::None)
            }
            (S::Starting | S::Ready | S::Draining, I::Quarantine) => {
                self.next = Next::Quarantined;
                (S::Draining, Action::Kill)
            }
            (S::Starting | S::Ready, I::Stop | I::Restart) => {
                self.next = if input == I::Restart { Next::Started } else { Next::Stopped };
                (S::Draining, if self.state == S::Ready { Action::Drain } else { Action::Kill })
            }
            (S::Draining, I::Drained | I::Elapsed) => (S::Draining, Action::Kill),
            (S::Draining, I::Start | I::Restart | I::Stop) if self.next != Next::Quarantined => {
                self.next = if input == I::Stop { Next::Stopped } else { Next::Started };
                (S::Draining, Action::None)
            }
            (S::Draining, I::Release) if self.next == Next::Quarantined => {
                self.next = Next::Stopped;
                (S::Draining, Action::None)
            }
            (S::Draining, I::Died) => match self.next {
                Next::Stopped => (S::Stopped, Action::None),
                Next::Quarantined => (S::Quarantined, Action::None),
                Next::Started => {
                    self.forgive();
                    (S::Starting, Action::Launch)
                }
            },
            (S::Starting | S::Ready, I::Died) => self.failed(now_ms, jitter),
            (S::Quarantined, I::Release) => (S::Stopped, Action::None),
            (state, _) => (state, Action::None),
        };
        if state != S::Ready {
            self.ready_at_ms = None;
        }
        self.state = state;
        action
    }

    fn forgive(&mut self) {
        self.failures.clear();
        self.streak = 0;
    }

    fn failed(&mut self, now_ms: u64, jitter: f64) -> (State, Action) {
        let healthy = self.ready_at_ms.map_or(0, |since| now_ms.saturating_sub(since));
        if u128::from(healthy) >= self.policy.reset_after.as_millis() {
            self.streak = 0;
        }
        self.failures.push_back(now_ms);
        let window = u64::try_from(self.policy.window.as_millis()).unwrap_or(u64::MAX);
        while self.failures.front().is_some_and(|&at| now_ms.saturating_sub(at) > window) {
            self.failures.pop_front();
        }
        if self.failures.len() >= self.policy.failures_max {
            return (State::Held, Action::Hold);
        }
        let doubled = self.policy.backoff_min.saturating_mul(1 << self.streak.min(20));
        self.streak += 1;
        let delay = doubled.min(self.policy.backoff_max).mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0));
        (State::Backoff, Action::Wait(delay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Input; 9] = [
        Input::Start,
        Input::Stop,
        Input::Restart,
        Input::Quarantine,
        Input::Release,
        Input::Ready,
        Input::Died,
        Input::Drained,
        Input::Elapsed,
    ];

    /// Leads a fresh supervisor into a state.
    fn in_state(state: State) -> Supervisor {
        let mut supervisor = Supervisor::new(RestartPolicy::default());
        let path: &[Input] = match state {
            State::Stopped => &[],
            State::Starting => &[Input::Start],
            State::Ready => &[Input::Start, Input::Ready],
            State::Draining => &[Input::Start, Input::Ready, Input::Stop],
            State::Backoff => &[Input::Start, Input::Died],
            State::Held => &[Input::Start, Input::Died],
            State::Quarantined => &[Input::Quarantine],
        };
        for &input in path {
            supervisor.step(input, 0, 1.0);
        }
        while supervisor.state() != state {
            supervisor.step(Input::Elapsed, 0, 1.0);
            supervisor.step(Input::Died, 0, 1.0);
        }
        supervisor
    }

    #[test]
    fn every_pair_of_state_and_input_is_in_the_table() {
        let table = "\
            stopped: launch>starting none>stopped launch>starting none>quarantined none>stopped none>stopped none>stopped none>stopped none>stopped\n\
            starting: none>starting kill>draining kill>draining kill>draining none>starting none>ready wait>backoff none>starting none>starting\n\
            ready: none>ready drain>draining drain>draining kill>draining none>ready none>ready wait>backoff none>ready none>ready\n\
            draining: none>draining none>draining none>draining kill>draining none>draining none>draining none>stopped kill>draining kill>draining\n\
            backoff: launch>starting none>stopped launch>starting none>quarantined none>backoff none>backoff none>backoff none>backoff launch>starting\n\
            held: launch>starting none>stopped launch>starting none>quarantined none>held none>held none>held none>held none>held\n\
            quarantined: none>quarantined none>quarantined none>quarantined none>quarantined none>stopped none>quarantined none>quarantined none>quarantined none>quarantined";
        let states = [
            State::Stopped,
            State::Starting,
            State::Ready,
            State::Draining,
            State::Backoff,
            State::Held,
            State::Quarantined,
        ];
        for (state, row) in states.into_iter().zip(table.lines()) {
            let cells: Vec<String> = ALL
                .into_iter()
                .map(|input| {
                    let mut supervisor = in_state(state);
                    let action = match supervisor.step(input, 0, 1.0) {
                        Action::None => "none",
                        Action::Launch => "launch",
                        Action::Drain => "drain",
                        Action::Kill => "kill",
                        Action::Wait(_) => "wait",
                        Action::Hold => "hold",
                    };
                    format!("{action}>{}", supervisor.state().as_str())
                })
                .collect();
            assert_eq!(format!("{}: {}", state.as_str(), cells.join(" ")), row.trim());
        }
    }

    #[test]
    fn one_that_drains_is_restarting_unless_somebody_wants_otherwise() {
        let mut supervisor = in_state(State::Ready);
        assert!(!supervisor.is_restarting());
        let mut after = |input| {
            supervisor.step(input, 0, 1.0);
            supervisor.is_restarting()
        };
        assert!(after(Input::Restart));
        assert!(!after(Input::Stop));
        assert!(after(Input::Start));
        assert!(!after(Input::Died), "it is starting");
    }

    #[test]
    fn the_backoff_doubles_up_to_its_limit_and_starts_over_after_health() {
        let mut supervisor = Supervisor::new(RestartPolicy { failures_max: 100, ..RestartPolicy::default() });
        supervisor.step(Input::Start, 0, 1.0);
        let mut delays = Vec::new();
        for _ in 0..11 {
            if let Action::Wait(delay) = supervisor.step(Input::Died, 0, 1.0) {
                delays.push(delay.as_millis());
            }
            supervisor.step(Input::Elapsed, 0, 1.0);
        }
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
        supervisor.step(Input::Ready, 0, 1.0);
        let action = supervisor.step(Input::Died, 60_000, 0.0);
        assert_eq!(action, Action::Wait(Duration::from_millis(50)));
    }

    #[test]
    fn five_failures_in_the_window_hold_and_an_operator_frees() {
        let mut supervisor = Supervisor::new(RestartPolicy::default());
        supervisor.step(Input::Start, 0, 1.0);
        for at in 1..=4 {
            assert!(matches!(supervisor.step(Input::Died, at, 1.0), Action::Wait(_)));
            supervisor.step(Input::Elapsed, at, 1.0);
        }
        assert_eq!(supervisor.step(Input::Died, 5, 1.0), Action::Hold);
        assert_eq!(supervisor.state(), State::Held);
        assert_eq!(supervisor.step(Input::Start, 6, 1.0), Action::Launch);
        assert!(matches!(supervisor.step(Input::Died, 7, 1.0), Action::Wait(_)), "the tally starts over");
    }

    #[test]
    fn failures_far_apart_do_not_hold() {
        let mut supervisor = Supervisor::new(RestartPolicy::default());
        supervisor.step(Input::Start, 0, 1.0);
        for n in 1..=20 {
            assert!(matches!(supervisor.step(Input::Died, n * 20_000, 1.0), Action::Wait(_)));
            supervisor.step(Input::Elapsed, n * 20_000, 1.0);
        }
    }

    #[test]
    fn a_quarantine_outlasts_the_end_of_the_instance_and_every_other_wish() {
        let mut supervisor = in_state(State::Ready);
        assert_eq!(supervisor.step(Input::Restart, 0, 1.0), Action::Drain);
        assert_eq!(supervisor.step(Input::Quarantine, 0, 1.0), Action::Kill);
        for wish in [Input::Start, Input::Restart, Input::Stop] {
            assert_eq!(supervisor.step(wish, 0, 1.0), Action::None);
        }
        assert_eq!(supervisor.step(Input::Died, 0, 1.0), Action::None);
        assert_eq!(supervisor.state(), State::Quarantined);
        supervisor.step(Input::Release, 0, 1.0);
        assert_eq!(supervisor.step(Input::Start, 0, 1.0), Action::Launch);
    }

    #[test]
    fn a_quarantine_that_is_taken_back_before_the_instance_is_gone_leaves_it_stopped() {
        let mut supervisor = in_state(State::Ready);
        supervisor.step(Input::Quarantine, 0, 1.0);
        supervisor.step(Input::Release, 0, 1.0);
        supervisor.step(Input::Died, 0, 1.0);
        assert_eq!(supervisor.state(), State::Stopped);
    }

    #[test]
    fn a_restart_launches_only_after_the_old_instance_is_gone() {
        let mut supervisor = in_state(State::Ready);
        assert_eq!(supervisor.step(Input::Restart, 0, 1.0), Action::Drain);
        assert_eq!(supervisor.step(Input::Drained, 0, 1.0), Action::Kill);
        assert_eq!(supervisor.step(Input::Died, 0, 1.0), Action::Launch);
    }
}
