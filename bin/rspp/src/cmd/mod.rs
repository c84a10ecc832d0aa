//! One file per subcommand: what it takes and what it does.

pub(crate) mod archive;
pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod doctor;
pub(crate) mod gates;
pub(crate) mod key;
pub(crate) mod loopback;
pub(crate) mod models;
pub(crate) mod node;
pub(crate) mod package;
pub(crate) mod pipeline;
pub(crate) mod plan;
pub(crate) mod policy;
pub(crate) mod region;
pub(crate) mod rehearse;
pub(crate) mod replay;
pub(crate) mod rollout;
pub(crate) mod rules;
pub(crate) mod schema;
pub(crate) mod seals;
pub(crate) mod session;
pub(crate) mod summary;
pub(crate) mod timeline;
pub(crate) mod tree;
pub(crate) mod up;
pub(crate) mod validate;
