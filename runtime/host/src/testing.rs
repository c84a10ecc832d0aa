//! For tests of what a running session refuses.

use rspp_kernel::Input;

use crate::{runtime::SessionHandle, session::Command};

/// Has a session be told something that did not happen, in order with all that does: what is out of
/// place has to be refused, whoever claims it.
pub fn forge(session: &SessionHandle, input: Input) {
    session.command(Command::Forge(Box::new(input)));
}
