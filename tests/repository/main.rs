//! The repository's own rules: who may know whom, what is shown by which test, what is never said.

mod features;
mod layers;
mod readme;
mod samples;
mod tree;
mod words;
