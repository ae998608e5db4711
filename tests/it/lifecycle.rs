//! The life of a daemon: start, stop, crash, and what it leaves.

mod log;
mod start;
mod stop;
