//! The wire, tested from outside the crate: every byte of every frame, what is
//! refused, and that `PROTOCOL.md` says all of it.

#[cfg(test)]
mod document;
#[cfg(test)]
mod frames;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod replay;
#[cfg(test)]
mod samples;
