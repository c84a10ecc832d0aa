//! How the local models describe themselves.

use rspp_proto::ProviderId;
use rspp_provider_api::Description;

/// A model on this machine that answers when its input is complete.
pub(crate) fn describe(id: &str, model: &str) -> Description {
    Description {
        id: ProviderId::new(id).expect("the ids in this crate are valid"),
        model: model.to_owned(),
        streaming: false,
        networked: false,
    }
}
