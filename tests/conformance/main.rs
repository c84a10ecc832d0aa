//! Behaviour that the specification fixes, driven through real actors.

mod conversation;
mod interruption;
