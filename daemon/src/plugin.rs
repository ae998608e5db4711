//! Plugins: where they run, who keeps them, what they say.
//!
//! Each plugin has a [`keeper`], a task that launches it, carries out what its
//! [`supervisor`] decides, and tells the world. What runs is a [`guest`]: an
//! [`actor`] in this process or a child behind a [`link`]. The [`fleet`] is all
//! keepers together.

pub mod supervisor;
pub mod guest;
pub mod actor;
pub mod link;
pub mod spawner;
pub mod keeper;
pub mod fleet;
