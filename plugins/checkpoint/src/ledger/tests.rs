//! The ledger, state by state and history by history.

mod cost;
mod history;
mod keeping;
mod rules;
mod table;
mod turns;
mod world;
