//! What holds of the kernel as a whole: permissions on every path, races, and
//! the scripts in which tests say what comes of what.

mod permissions;
mod races;
pub(crate) mod script;
