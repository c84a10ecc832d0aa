//! Every call as it is sent: with who calls and a deadline, and again while nobody answers.
//!
//! Repeating is safe for all of them: what changes something names its attempt, epoch, version or
//! request id.

use futures::{Stream, StreamExt as _};
use tokio::time::Instant;
use tonic::{Code, Request, Status, Streaming};

use super::{Client, MAX_MESSAGE_BYTES, connect::pause};
use crate::{ControlError, wire};

impl Client {
    /// Repeats a call until it is answered or its deadline passes.
    async fn repeat<Q, A, F>(
        &self,
        message: Q,
        call: impl Fn(Request<Q>) -> F,
    ) -> Result<A, ControlError>
    where
        Q: Clone,
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let until = Instant::now() + self.deadline;
        let mut failures = 0;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut request = self.request(message.clone());
            request.set_timeout(left);
            // The server is told the deadline, and so is whoever waits if the server is not there.
            let answer = tokio::time::timeout_at(until, call(request)).await;
            let status = match answer {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::new(Code::DeadlineExceeded, "the control plane does not answer"),
            };
            let error = ControlError::from(status);
            failures += 1;
            if !error.is_outage() {
                return Err(error);
            }
            let behind = self.faults.behind();
            let again = Instant::now() + pause(failures);
            // What is wrong with credentials does not pass by itself: each replica is asked once.
            let is_hopeless = behind.is_some() && failures >= self.replicas;
            if is_hopeless || again >= until {
                return Err(behind.unwrap_or(error));
            }
            tokio::time::sleep_until(again).await;
        }
    }

    /// Begins a stream, again while nobody answers, until the usual deadline; it may take longer once it flows.
    pub(super) async fn begin<Q, M, F>(
        &self,
        call: impl Fn(Request<Q>) -> F,
    ) -> Result<Streaming<M>, ControlError>
    where
        Q: Clone + Default,
        F: Future<Output = Result<tonic::Response<Streaming<M>>, Status>>,
    {
        self.repeat(Q::default(), |mut request| {
            // The deadline is for its beginning only.
            request.metadata_mut().remove("grpc-timeout");
            call(request)
        })
        .await
    }

    pub(super) fn request<Q>(&self, message: Q) -> Request<Q> {
        let mut request = Request::new(message);
        if let Some(authorization) = self.authorization() {
            request
                .metadata_mut()
                .insert("authorization", authorization);
        }
        request
    }
}

/// The items of a stream, and why it ended.
pub(super) fn items<M: Send + 'static>(
    stream: Streaming<M>,
) -> impl Stream<Item = Result<M, ControlError>> + Send {
    stream.map(|item| item.map_err(ControlError::from))
}

macro_rules! unary {
    ($($(#[$doc:meta])* $module:ident::$service:ident: $method:ident($request:ident) -> $answer:ident;)*) => {
        impl Client {$(
            $(#[$doc])*
            pub async fn $method(
                &self,
                request: wire::$request,
            ) -> Result<wire::$answer, ControlError> {
                self.repeat(request, |request| {
                    let client = wire::$module::$service::new(self.channel.clone());
                    let mut client = client.max_decoding_message_size(MAX_MESSAGE_BYTES);
                    async move { client.$method(request).await }
                })
                .await
            }
        )*}
    };
}

unary! {
    /// Publishes a version.
    registry_client::RegistryClient: publish(PublishRequest) -> PublishResponse;
    /// One version, with its text.
    registry_client::RegistryClient: get_artifact(GetArtifactRequest) -> Artifact;
    /// Versions, by name.
    registry_client::RegistryClient: list_artifacts(ListArtifactsRequest) -> ListArtifactsResponse;
    /// One line's rollout.
    rollouts_client::RolloutsClient: get_rollout(GetRolloutRequest) -> Rollout;
    /// All rollouts of a kind.
    rollouts_client::RolloutsClient: list_rollouts(ListRolloutsRequest) -> ListRolloutsResponse;
    /// Changes a rollout, or proposes to.
    rollouts_client::RolloutsClient: change_rollout(ChangeRolloutRequest) -> ChangeRolloutResponse;
    /// Approves or rejects a proposal.
    rollouts_client::RolloutsClient: decide_proposal(DecideProposalRequest) -> ChangeRolloutResponse;
    /// Proposals.
    rollouts_client::RolloutsClient: list_proposals(ListProposalsRequest) -> ListProposalsResponse;
    /// Reports what was measured.
    rollouts_client::RolloutsClient: report_readings(ReportReadingsRequest) -> ReportReadingsResponse;
    /// The version that a session would get.
    rollouts_client::RolloutsClient: resolve(ResolveRequest) -> ResolveResponse;
    /// Whether a tenant may open another session now.
    admission_client::AdmissionClient: evaluate(EvaluateRequest) -> Decision;
    /// What a tenant uses.
    admission_client::AdmissionClient: get_usage(GetUsageRequest) -> Usage;
    /// Counts tokens.
    admission_client::AdmissionClient: count_usage(ReportUsageRequest) -> ReportUsageResponse;
    /// The rules of the whole control plane.
    admission_client::AdmissionClient: get_governance(GetGovernanceRequest) -> Governance;
    /// Replaces them.
    admission_client::AdmissionClient: set_governance(SetGovernanceRequest) -> Governance;
    /// Grants a lease.
    placements_client::PlacementsClient: acquire_lease(AcquireRequest) -> Lease;
    /// Renews all leases of a runtime.
    placements_client::PlacementsClient: renew_leases(RenewRequest) -> RenewResponse;
    /// Gives a lease up.
    placements_client::PlacementsClient: release_lease(ReleaseRequest) -> ReleaseResponse;
    /// Registers a runtime.
    fleet_client::FleetClient: register_runtime(RegisterRequest) -> RegisterResponse;
    /// Says how busy a runtime is.
    fleet_client::FleetClient: beat(HeartbeatRequest) -> HeartbeatResponse;
    /// All runtimes.
    fleet_client::FleetClient: list_runtimes(ListRuntimesRequest) -> ListRuntimesResponse;
    /// Empties a runtime.
    fleet_client::FleetClient: drain_runtime(DrainRuntimeRequest) -> DrainRuntimeResponse;
    /// Says that a runtime goes, and what it has.
    fleet_client::FleetClient: note_drain(BeginDrainRequest) -> BeginDrainResponse;
    /// Puts down what a runtime removes of its timelines.
    fleet_client::FleetClient: note_removal(NoteRemovalRequest) -> NoteRemovalResponse;
    /// What became of each session of a runtime that was emptied.
    fleet_client::FleetClient: account_drain(AccountDrainRequest) -> DrainAccount;
    /// All regions.
    fleet_client::FleetClient: list_regions(ListRegionsRequest) -> ListRegionsResponse;
    /// Leaves a region.
    fleet_client::FleetClient: set_region(SetRegionRequest) -> Region;
    /// Where a session runs.
    sessions_client::SessionsClient: route_session(RouteRequest) -> Route;
    /// How a session goes.
    sessions_client::SessionsClient: get_status(GetStatusRequest) -> SessionStatus;
    /// Sessions.
    sessions_client::SessionsClient: list_sessions(ListSessionsRequest) -> ListSessionsResponse;
    /// Tells a session's holder to let go of it.
    sessions_client::SessionsClient: move_session(MoveSessionRequest) -> SessionStatus;
    /// Says how sessions go.
    sessions_client::SessionsClient: tell_status(ReportStatusRequest) -> ReportStatusResponse;
    /// Values of a session.
    session_state_client::SessionStateClient: load_values(LoadStateRequest) -> LoadStateResponse;
    /// Writes values of a session.
    session_state_client::SessionStateClient: commit_values(CommitStateRequest) -> CommitStateResponse;
    /// Entries of the audit trail.
    audit_client::AuditClient: list_entries(ListEntriesRequest) -> ListEntriesResponse;
    /// Follows the audit trail from its beginning.
    audit_client::AuditClient: verify_trail(VerifyTrailRequest) -> VerifyTrailResponse;
    /// All trusted keys.
    keys_client::KeysClient: list_keys(ListKeysRequest) -> Keyring;
    /// Trusts a key.
    keys_client::KeysClient: add_key(AddKeyRequest) -> Keyring;
    /// Lets a key sign.
    keys_client::KeysClient: promote_key(PromoteKeyRequest) -> Keyring;
    /// Trusts a key no more.
    keys_client::KeysClient: retire_key(RetireKeyRequest) -> Keyring;
}
