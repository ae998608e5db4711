//! Checkpoints on a shelf, over a real engine in a directory of its own.
