//! What an operator sees and orders: health with its reasons, quarantine and
//! release, and what `ksi doctor --fix` repairs.

mod doctor;
mod health;
mod quarantine;
