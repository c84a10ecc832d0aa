//! Control plane and runtimes together: who may speak for a session, whatever breaks.

mod lease_protocol;
