//! What helps where something is larger than the room for it.

use ksi_provider::Failure;
use ksi_sdk::prelude::{Code, Refusal, json};

use super::Run;
use crate::provider::Target;

/// The refusal of an answer that is not passed on.
pub(super) fn too_long(max: usize) -> Refusal {
    Refusal::new(Code::TooLarge, format!("the answer is longer than {max} bytes"))
        .hint("`max_tokens` limits how long an answer gets; ask for it in parts")
        .details(json!({ "answer_bytes_max": max }))
}

/// Whether a refusal is one of [`too_long`].
fn is_too_long(refusal: &Refusal) -> bool {
    refusal.details.as_ref().is_some_and(|details| details["answer_bytes_max"].is_number())
}

impl Run<'_> {
    /// The refusal of the request. Where what a model was to read did not fit, or left no
    /// room for the answer, that says what would help.
    pub(super) fn refused(&self, target: Option<&Target>, refusal: Refusal) -> Refusal {
        let of_the_prompt = refusal.code == Code::TooLarge
            && matches!(Failure::of(&refusal), None | Some(Failure::TooLarge))
            && !is_too_long(&refusal)
            && self.work.trail.said() == 0;
        let told = refusal.hint.as_str();
        let better = match target.and_then(|target| self.answer_beyond(target)) {
            _ if !of_the_prompt => None,
            Some(room) => {
                Some(format!("what is read leaves room for {room} tokens: set a smaller `max_tokens`"))
            }
            None if self.work.order.could_be_trimmed() && !told.contains("`trim`") => {
                Some("`trim` leaves out the oldest messages".to_owned())
            }
            None => None,
        };
        let hint = match better {
            Some(better) if told.is_empty() => better,
            Some(better) => format!("{better}; or {told}"),
            None => told.to_owned(),
        };
        self.work.with_id(Refusal { hint, ..refusal })
    }

    /// How long an answer there is room for, where what is read fits the context of a
    /// model, and the answer that was asked for does not.
    fn answer_beyond(&self, target: &Target) -> Option<u64> {
        let plugin = self.plugin();
        let context = plugin.catalogue.context_length(target, plugin.providers.of(target))?;
        let prepared = self.prepared_for(target);
        let needs = prepared.map_or_else(|| self.work.order.needs(), |prepared| prepared.order.needs());
        let room = context.checked_sub(needs.prompt_tokens).filter(|room| *room > 0)?;
        (needs.max_tokens? > room).then_some(room)
    }
}
