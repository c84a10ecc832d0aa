//! What rspp's long-running programs have in common: settings, logs, health, and an orderly end.

pub mod announce;
pub mod credentials;
pub mod health;
pub mod lines;
pub mod logs;
pub mod settings;
pub mod span;
pub mod stop;
pub mod yaml;
