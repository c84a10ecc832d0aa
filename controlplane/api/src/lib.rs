//! What a runtime asks of a control plane: who may speak for a session.
