//! Recordings from their recorder through their file to their reader.

mod conversation;
mod evidence;
mod fidelity;
mod file;
mod recorder;
mod redaction;
mod show;
mod verify;
