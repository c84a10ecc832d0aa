//! Runs voice sessions: drives the kernel with supervised actors and carries out its effects.
