//! Work with a plugin around it, a real engine in a directory of the test's
//! own, and a fake daemon that moves the time.

mod answers;
mod desk;
mod lives;
mod openings;
