//! `[limits]`: what one user may have of the daemon.

/// How much one user may have, over all connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Connections at once.
    pub connections: usize,
    /// Requests that are not answered yet.
    pub in_flight: usize,
    /// Subscriptions. `None`: 4,096, and the daemon's owner 65,536.
    pub subscriptions: Option<usize>,
    /// Bytes of events and answers that wait to be read, and of large frames and
    /// lines that are not finished.
    pub bytes: usize,
    /// Requests and emissions a second; a second's worth may come at once.
    /// `None`: any number.
    pub per_second: Option<u32>,
    /// New connections a second, where others are connected, too; a second's
    /// worth may come at once. All users wait in one line to be let in.
    pub connects_per_second: u32,
}

impl Default for Share {
    fn default() -> Self {
        Self {
            connections: 512,
            in_flight: 16_384,
            subscriptions: None,
            bytes: 64 * 1024 * 1024,
            per_second: None,
            connects_per_second: 200,
        }
    }
}
