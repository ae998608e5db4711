//! What an operator sees and orders: health with its reasons, quarantine and
//! release, freeze, circles between
//! plugins, and what `ksi doctor --fix` repairs.

mod chains;
mod doctor;
mod freeze;
mod grants;
mod health;
mod quarantine;
