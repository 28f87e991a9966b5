//! AccessService through the door, on a real store: who may hand out what, and what is left of it when it is taken away.

mod bindings;
mod certificates;
mod changes;
mod held;
mod keys;
mod questions;
mod refused;
mod replay;
mod roles;
mod world;
