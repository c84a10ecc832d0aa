//! Which version new sessions get (F-093, F-100, F-165, NF-030).

use std::collections::BTreeMap;

use rspp_controlplane_api::{Client, ControlError, reason, wire};
use wire::{change::Change, change_rollout_response::Outcome};

use crate::rig::{Rig, change, direct, publish};

async fn changed(client: &Client, it: Change) -> wire::Rollout {
    let answer = client.change_rollout(change("desk", it)).await.unwrap();
    match answer.outcome.unwrap() {
        Outcome::Rollout(rollout) => rollout,
        Outcome::Proposal(proposal) => panic!("{proposal:?}"),
    }
}

fn percent(version: &str, percent: u32) -> Change {
    Change::Try(wire::Try {
        version: version.to_owned(),
        strategy: Some(wire::Strategy {
            strategy: Some(wire::strategy::Strategy::Percent(percent)),
        }),
    })
}

#[track_caller]
fn refused(error: ControlError, expected: &str) -> String {
    match error {
        ControlError::Refused {
            reason, message, ..
        } => {
            assert_eq!(reason, expected);
            message
        }
        other => panic!("{other:?}"),
    }
}

/// F-093: issue 4: v2 at 10 %, counted over a thousand routes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenth_of_a_thousand_routes_gets_the_candidate() {
    let rig = Rig::start().await;
    rig.pipeline("desk-1").await;
    let _a = rig.node("a").await;
    publish(&rig.admin(), "desk-2").await;
    changed(&rig.admin(), percent("desk-2", 10)).await;
    let operator = rig.client("operator/otto");
    let route = |session: String| {
        let request = wire::RouteRequest {
            tenant: "acme".to_owned(),
            session,
            transport: "websocket".to_owned(),
            ..wire::RouteRequest::default()
        };
        operator.route_session(request)
    };
    // Until it is followed, some session that falls into the share does not yet.
    let mut counted = 0;
    for _ in 0..20 {
        counted = 0;
        for chunk in 0..20 {
            let routes = (0..50).map(|n| route(format!("call-{}", chunk * 50 + n)));
            let routes = futures::future::try_join_all(routes).await.unwrap();
            counted += routes.iter().filter(|it| it.pipeline == "desk-2").count();
        }
        if counted > 0 {
            break;
        }
    }
    assert!((70..=130).contains(&counted), "{counted} of 1000");
}

/// F-097, F-100: paused, rolled back, and on record; a repeated request goes back once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_is_paused_and_rolled_back() {
    let rig = Rig::start().await;
    let (admin, operator) = (rig.admin(), rig.client("operator/otto"));
    let unpublished = Change::Direct("desk-9".to_owned());
    let error = admin
        .change_rollout(change("desk", unpublished))
        .await
        .unwrap_err();
    refused(error, reason::NOT_FOUND);
    for version in ["desk-1", "desk-2", "desk-3"] {
        publish(&admin, version).await;
        direct(&admin, version).await;
    }
    publish(&admin, "desk-4").await;
    changed(&admin, percent("desk-4", 50)).await;
    let paused = changed(&operator, Change::Pause(wire::Nothing {})).await;
    assert!(paused.candidate.unwrap().paused);
    let back = changed(&operator, Change::RollBack(String::new())).await;
    assert_eq!((back.stable.as_str(), back.candidate), ("desk-3", None));
    let error = operator
        .change_rollout(change("desk", Change::Pause(wire::Nothing {})))
        .await
        .unwrap_err();
    assert!(refused(error, reason::ROLLOUT_REFUSED).contains("on trial"));
    // Back twice would be one too many.
    let request = wire::ChangeRolloutRequest {
        request_id: "back-1".to_owned(),
        reason: "it coughs".to_owned(),
        ..change("desk", Change::RollBack(String::new()))
    };
    for _ in 0..3 {
        let answer = operator.change_rollout(request.clone()).await.unwrap();
        let Some(Outcome::Rollout(rollout)) = answer.outcome else {
            panic!("{answer:?}");
        };
        assert_eq!(rollout.stable, "desk-2");
    }
    let outdated = wire::ChangeRolloutRequest {
        if_generation: 1,
        ..change("desk", Change::RollBack(String::new()))
    };
    let error = operator.change_rollout(outdated).await.unwrap_err();
    refused(error, reason::VERSION_CONFLICT);
    let asked = wire::ListEntriesRequest {
        operation: "rollout_rollback".to_owned(),
        outcome: "done".to_owned(),
        ..wire::ListEntriesRequest::default()
    };
    let entries = admin.list_entries(asked).await.unwrap().entries;
    assert_eq!(entries.len(), 2);
    let last = entries.last().unwrap();
    assert_eq!(
        (last.actor.as_str(), last.subject.as_str()),
        ("otto", "pipeline/desk")
    );
    assert!(
        last.detail.contains("it coughs") && last.detail.contains("desk-3"),
        "{}",
        last.detail
    );
}

/// F-165: where somebody else has to agree, nothing happens before; a retreat needs nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_waits_for_somebody_else() {
    let rig = Rig::start().await;
    let (ana, alma) = (rig.admin(), rig.client("admin/alma"));
    rig.pipeline("desk-1").await;
    publish(&ana, "desk-2").await;
    let rules = wire::SetGovernanceRequest {
        document: "approvals: { approvals: 1 }".to_owned(),
        ..wire::SetGovernanceRequest::default()
    };
    ana.set_governance(rules).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let wanted = Change::Direct("desk-2".to_owned());
    let answer = ana.change_rollout(change("desk", wanted)).await.unwrap();
    let Some(Outcome::Proposal(proposal)) = answer.outcome else {
        panic!("{answer:?}");
    };
    let get = wire::GetRolloutRequest {
        kind: wire::Kind::Pipeline.into(),
        line: "desk".to_owned(),
    };
    assert_eq!(ana.get_rollout(get.clone()).await.unwrap().stable, "desk-1");
    let yes = wire::DecideProposalRequest {
        id: proposal.id.clone(),
        approve: true,
        request_id: String::new(),
    };
    let error = ana.decide_proposal(yes.clone()).await.unwrap_err();
    assert!(refused(error, reason::APPROVAL_REFUSED).contains("somebody else"));
    let open = wire::ListProposalsRequest {
        open_only: true,
        ..wire::ListProposalsRequest::default()
    };
    let waiting = alma.list_proposals(open.clone()).await.unwrap().proposals;
    assert_eq!(waiting.len(), 1);
    let answer = alma.decide_proposal(yes.clone()).await.unwrap();
    assert!(matches!(answer.outcome, Some(Outcome::Rollout(ref it)) if it.stable == "desk-2"));
    assert_eq!(alma.list_proposals(open).await.unwrap().proposals, []);
    let error = alma.decide_proposal(yes).await.unwrap_err();
    refused(error, reason::APPROVAL_REFUSED);
    let back = changed(
        &rig.client("operator/otto"),
        Change::RollBack(String::new()),
    )
    .await;
    assert_eq!(back.stable, "desk-1");
    // What was refused is on record as well.
    for _ in 0..200 {
        let asked = wire::ListEntriesRequest {
            outcome: "refused".to_owned(),
            ..wire::ListEntriesRequest::default()
        };
        let entries = ana.list_entries(asked).await.unwrap().entries;
        if entries.len() == 2 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("refusals are not on record");
}

/// F-165: nobody sets aside alone what others have to agree to: fewer approvals wait for as many as are in force,
/// and nothing else comes with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fewer_approvals_have_to_be_approved() {
    let rig = Rig::start().await;
    let (ana, alma) = (rig.admin(), rig.client("admin/alma"));
    let set = async |document: &str| {
        let rules = wire::SetGovernanceRequest {
            document: document.to_owned(),
            ..wire::SetGovernanceRequest::default()
        };
        ana.set_governance(rules).await
    };
    let in_force = async || {
        let rules = ana
            .get_governance(wire::GetGovernanceRequest {})
            .await
            .unwrap();
        let document: serde_json::Value = serde_json::from_str(&rules.document).unwrap();
        (
            rules.version,
            document["approvals"]["approvals"].as_u64().unwrap(),
        )
    };
    let decide = async |by: &rspp_controlplane_api::Client, id: &str, approve: bool| {
        let request = wire::DecideProposalRequest {
            id: id.to_owned(),
            approve,
            request_id: String::new(),
        };
        by.decide_proposal(request).await
    };
    assert_eq!(
        set("approvals: { approvals: 1 }").await.unwrap().proposal,
        None
    );
    let answer = set("approvals: { approvals: 0 }").await.unwrap();
    let proposal = answer.proposal.unwrap();
    assert_eq!((answer.version, in_force().await), (1, (1, 1)));
    assert_eq!(proposal.approvals.unwrap().people, 0);
    let error = decide(&ana, &proposal.id, true).await.unwrap_err();
    assert!(refused(error, reason::APPROVAL_REFUSED).contains("somebody else"));
    // What is left out of a document is nobody's approval either.
    let error = set("error_budget: { min_sessions: 7 }").await.unwrap_err();
    let told = refused(error, reason::INVALID_ARGUMENT);
    assert!(told.contains("1 are in force and 0 asked for"), "{told}");
    let answer = decide(&alma, &proposal.id, true).await.unwrap();
    let Some(Outcome::Proposal(done)) = answer.outcome else {
        panic!("{answer:?}");
    };
    assert_eq!(
        (done.state.as_str(), in_force().await),
        ("activated", (2, 0))
    );
    // More need nobody. What was proposed for other rules has to be proposed again.
    set("approvals: { approvals: 2 }").await.unwrap();
    let fewer = set("approvals: { approvals: 1 }")
        .await
        .unwrap()
        .proposal
        .unwrap();
    set("{ approvals: { approvals: 2 }, error_budget: { min_sessions: 7 } }")
        .await
        .unwrap();
    let (bert, carl) = (rig.client("admin/bert"), rig.client("admin/carl"));
    decide(&bert, &fewer.id, true).await.unwrap();
    let error = decide(&carl, &fewer.id, true).await.unwrap_err();
    assert!(refused(error, reason::APPROVAL_REFUSED).contains("propose it again"));
    assert_eq!(in_force().await, (4, 2));
    let again = "{ approvals: { approvals: 1 }, error_budget: { min_sessions: 7 } }";
    let fewer = set(again).await.unwrap().proposal.unwrap();
    decide(&bert, &fewer.id, false).await.unwrap();
    let error = decide(&carl, &fewer.id, true).await.unwrap_err();
    assert!(refused(error, reason::APPROVAL_REFUSED).contains("rejected"));
    assert_eq!(in_force().await, (4, 2));
}

/// NF-030, F-093: a canary's breached gate ends the trial; a spent budget freezes what would be new, and only that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_breached_gate_ends_the_trial() {
    let rig = Rig::start().await;
    let admin = rig.admin();
    rig.pipeline("desk-1").await;
    publish(&admin, "desk-2").await;
    let canary = Change::Try(wire::Try {
        version: "desk-2".to_owned(),
        strategy: Some(wire::Strategy {
            strategy: Some(wire::strategy::Strategy::Canary(wire::Canary {
                percent: 10,
                ..wire::Canary::default()
            })),
        }),
    });
    changed(&admin, canary.clone()).await;
    let a = rig.client("runtime/a");
    let report = |number, version: &str, sessions, failed| wire::ReportReadingsRequest {
        by: Some(wire::Holder {
            runtime: "a".to_owned(),
            incarnation: 1,
        }),
        number,
        counts: vec![wire::VersionCount {
            kind: wire::Kind::Pipeline.into(),
            version: version.to_owned(),
            sessions,
            failed,
            first_audio: BTreeMap::from([(900, sessions)]),
        }],
    };
    let judged = |answer: wire::ReportReadingsResponse| answer.judged.into_iter().next();
    let fine = a.report_readings(report(1, "desk-2", 19, 5)).await.unwrap();
    let fine = judged(fine).unwrap();
    assert!(fine.breach.is_empty() && fine.rollout.unwrap().candidate.is_some());
    // What comes again is not counted again, or the trial would end by it.
    for _ in 0..3 {
        let again = a.report_readings(report(1, "desk-2", 19, 5)).await.unwrap();
        assert_eq!(judged(again), None);
    }
    // Another version's readings are nobody's business now, and those of a line without a rollout never are.
    let other = a
        .report_readings(report(2, "desk-7", 20, 20))
        .await
        .unwrap();
    assert!(judged(other).unwrap().breach.is_empty());
    let unknown = a
        .report_readings(report(3, "shop-1", 20, 20))
        .await
        .unwrap();
    assert_eq!(judged(unknown), None);
    // Nobody else speaks for it.
    let b = rig.client("runtime/b");
    let posing = b.report_readings(report(4, "desk-2", 1, 1)).await;
    assert!(
        matches!(posing, Err(ControlError::Denied { .. })),
        "{posing:?}"
    );
    let ended = a.report_readings(report(4, "desk-2", 1, 0)).await.unwrap();
    let ended = judged(ended).unwrap();
    assert!(ended.breach.contains("2500 of 10000"), "{}", ended.breach);
    let rollout = ended.rollout.unwrap();
    assert_eq!(
        (rollout.stable.as_str(), rollout.candidate),
        ("desk-1", None)
    );
    let asked = wire::GetRolloutRequest {
        kind: wire::Kind::Pipeline.into(),
        line: "desk".to_owned(),
    };
    let shown = admin.get_rollout(asked.clone()).await.unwrap();
    let measured = shown.readings.unwrap();
    let candidate = measured.candidate.unwrap();
    assert_eq!(
        (
            measured.tried.as_str(),
            candidate.sessions,
            candidate.failed
        ),
        ("desk-2", 20, 5)
    );
    assert_eq!(candidate.first_audio_p95_ms, Some(900));
    // Of 40 sessions nothing is said; of 140 it is.
    assert!(shown.frozen.is_empty());
    let burning = a
        .report_readings(report(5, "desk-1", 100, 0))
        .await
        .unwrap();
    let burning = judged(burning).unwrap();
    assert_eq!(burning.burn_alert, "fast");
    assert_eq!(burning.rollout.unwrap().frozen, "budget_spent");
    let error = admin
        .change_rollout(change("desk", canary))
        .await
        .unwrap_err();
    assert!(refused(error, reason::ROLLOUT_REFUSED).contains("frozen"));
    changed(&admin, Change::Thaw(wire::Nothing {})).await;
    // What was spent is let go, or it would be frozen again at once.
    let after = a.report_readings(report(6, "desk-1", 10, 0)).await.unwrap();
    assert!(judged(after).unwrap().rollout.unwrap().frozen.is_empty());
    let asked = |operation: &str| wire::ListEntriesRequest {
        operation: operation.to_owned(),
        ..wire::ListEntriesRequest::default()
    };
    for operation in ["automatic_rollback", "automatic_freeze"] {
        let found = admin.list_entries(asked(operation)).await.unwrap().entries;
        assert_eq!(found.len(), 1, "{operation}");
    }
}
