//! Sessions that are broken on purpose, from a seed.
//!
//!     cargo test -p rspp-tests --test simulation                            a few hundred seeds
//!     RSPP_SEEDS=10000 cargo test -p rspp-tests --test simulation           that many
//!     RSPP_SEED=42 cargo test -p rspp-tests --test simulation one_seed      one, line by line

mod found;
mod kernel;
mod planted;
mod sessions;
