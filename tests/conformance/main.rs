//! Behaviour that the specification fixes, driven through real actors.

mod authority;
mod conversation;
mod failure;
mod interruption;
mod lifecycle;
mod nodes;
mod plans;
mod shutdown;
