//! What of the user's words was handed to the model before all of them were known, and what became of it
//! (turn-plan.md §7).

use rspp_kernel::{handoff::STT_TO_LLM, plan::ResolvedTurnPlan};
use rspp_proto::{Monotonic, TurnNumber, spec::NodeKind};
use rspp_timeline::HandoffAction;

use super::Session;

/// The words of the utterance in progress.
#[derive(Debug, Default)]
pub(super) struct Words {
    /// The revision that was offered last, and its words; whether the model is given them is for the session
    /// to say.
    pub(super) offered: Option<(Box<str>, HandedWords)>,
    /// The revision that the model was given last.
    handed: Option<HandedWords>,
    /// Whether all of them are known.
    pub(super) known: bool,
}

impl Words {
    /// The model is given these words before all are known.
    pub(super) fn given(&mut self, text: &str) {
        if let Some((_, words)) = self.offered.take_if(|(offered, _)| &**offered == text) {
            self.handed = Some(words);
        }
    }

    /// What it was given is taken back: nothing of it is answered.
    pub(super) fn taken_back(&mut self) {
        self.handed = None;
    }
}

/// A revision that is handed over.
#[derive(Clone, Copy, Debug)]
pub(super) struct HandedWords {
    pub(super) revision: u32,
    pub(super) action: HandoffAction,
    pub(super) accepted: Monotonic,
    /// When the model was given it.
    pub(super) started: Monotonic,
    pub(super) pending: u64,
    pub(super) is_full: bool,
}

impl Session {
    /// A turn opens that answers what the user said: evidence of how its words came to the model.
    pub(super) fn words_answered(
        &mut self,
        turn: TurnNumber,
        plan: &ResolvedTurnPlan,
        now: Monotonic,
    ) {
        let Words {
            offered: _,
            handed,
            known,
        } = std::mem::take(&mut self.words);
        if !known || !plan.stt_to_llm().enabled {
            return;
        }
        let whole = |revision, action| HandedWords {
            revision,
            action,
            accepted: now,
            started: now,
            pending: 0,
            is_full: false,
        };
        let is_guessed = self.guesses.plan(turn).is_some();
        let words = match handed {
            Some(handed) if is_guessed => handed,
            // The final words are others.
            Some(handed) => whole(handed.revision + 1, HandoffAction::Supersede),
            None => whole(1, HandoffAction::FinalFallback),
        };
        let graph = &self.setup.blueprint.graph;
        let is_model = |kind: Option<&NodeKind>| kind == Some(&NodeKind::Llm);
        let model = graph.nodes().find(|(_, node)| is_model(node.kind()));
        let Some(edge) = model.and_then(|(_, node)| node.inputs.first().copied()) else {
            return;
        };
        let edge = &graph.edge(edge).id;
        self.publisher.handed_over(STT_TO_LLM, turn, edge, words);
    }
}
