//! One file per subcommand: what it takes and what it does.

pub(crate) mod doctor;
pub(crate) mod gates;
pub(crate) mod loopback;
pub(crate) mod models;
pub(crate) mod plan;
pub(crate) mod rehearse;
pub(crate) mod replay;
pub(crate) mod timeline;
pub(crate) mod tree;
pub(crate) mod validate;
