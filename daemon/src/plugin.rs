//! Plugins: where they run, who runs them, what they say.
//!
//! Each plugin has a [`runner`], a task that launches it, carries out what its
//! [`supervisor`] decides, and tells the world: what it is to run is a [`spec`],
//! and what it does is on a [`board`]. What runs is a [`guest`]: an
//! [`actor`] in this process or a child behind a [`link`]. The [`fleet`] is all
//! runners together. What a child is granted is made of its configuration by
//! [`grants`], tried by [`probe`], and held to by its [`cgroup`]; what comes of
//! children is known by [`offspring`].

pub mod supervisor;
pub mod guest;
pub mod actor;
pub mod link;
pub mod offspring;
pub mod cgroup;
pub mod grants;
pub mod probe;
pub mod spawner;
pub mod spec;
pub mod board;
pub mod runner;
pub mod fleet;
