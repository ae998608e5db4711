//! The plan of a load: how a model is to run, and whether there is room for it.
//!
//! Looks at a header, the configuration and the memory of the machine, and
//! loads nothing. Whoever keeps models in memory makes the room.

use ksi_sdk::prelude::{Code, Refusal, json};

use crate::budget::{Estimate, Parts, available_bytes, room_on};
use crate::config::{
    BUILT_FOR_CARDS, CONTEXT_DEFAULT, CONTEXT_MIN, Config, gpu_layer_count, slot_count, thread_count,
};
use crate::engine::{RETRY_AFTER_MS, STEP_TOKENS_MAX, Setup};
use crate::gguf::Header;
use crate::metrics::Card;
use crate::tuning::{self, CacheType, RopeScaling, Setting, Tuning};

/// Largest context where positions are scaled.
const CONTEXT_SCALED_MAX: u32 = 1 << 20;

/// Among the details of a refusal for want of room on graphics cards.
const ON_CARDS: &str = "on_cards";

/// Whether a load was refused for want of room on graphics cards.
#[must_use]
pub fn lacks_cards(refusal: &Refusal) -> bool {
    refusal.details.as_ref().is_some_and(|details| details[ON_CARDS] == true)
}

/// How a model is to run.
#[derive(Debug)]
pub struct Plan {
    name: String,
    /// Tokens of context for each conversation.
    context: u32,
    /// Conversations at the same time, where there is memory for them.
    wanted: u32,
    tuning: Tuning,
    /// What is set, and by whom.
    pub settings: Vec<Setting>,
    /// What it takes of the machine's memory.
    estimate: Estimate,
    /// What it takes of graphics cards.
    on_cards: Estimate,
    /// What is free there, where that is known.
    cards_free: Option<u64>,
    /// Memory for all models together.
    budget: u64,
    max_loaded: usize,
    queue: u32,
    /// What was decided differently from the configuration, and why.
    pub notes: Vec<String>,
}

/// What is in memory already.
#[derive(Debug, Default)]
pub struct Taken {
    /// Names of the models.
    pub names: Vec<String>,
    /// Memory that they take, an estimate.
    pub bytes: u64,
    /// Whether one of them is in nobody's use.
    pub idle: bool,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The idle model that was used longest ago goes.
    MakeRoom,
    /// The model runs with so many slots.
    Run(u32),
}

impl Plan {
    /// The plan for a model with this header, and adapters of so many bytes, for
    /// whoever asks for these settings. Where the graphics cards were not looked at,
    /// a build for cards takes them to have room: whoever sees them plans again.
    ///
    /// # Errors
    ///
    /// `invalid_payload` for a context that it cannot have, and for settings that
    /// do not go together.
    pub fn of(
        config: &Config,
        name: &str,
        asked: &Tuning,
        header: &Header,
        adapters: u64,
        cards: Option<&[Card]>,
    ) -> Result<Self, Refusal> {
        let (tuning, settings) = config.tuning_of(name, asked);
        let context = context_for(name, asked.context, &tuning, header)?;
        // Each layer alone was found to be sound.
        let hint = format!("`ksi send llama:profile --model {name}` shows what is set, and where");
        if let Some(refusal) = tuning::refusal(tuning.problems("", &[]), &hint) {
            return Err(refusal);
        }
        let mut notes = Vec::new();
        let threads = thread_count(tuning.threads, header.size_bytes);
        if let Some(asked) = tuning.threads.filter(|asked| *asked > threads) {
            notes.push(format!("{threads} of {asked} threads: there are no more processors"));
        }
        let tuning = Tuning {
            threads: Some(threads),
            threads_batch: tuning.threads_batch.map(|asked| thread_count(Some(asked), header.size_bytes)),
            ..tuning
        };
        let cache = |kind: Option<CacheType>| kind.unwrap_or(CacheType::F16);
        let (keys, values) = (cache(tuning.cache_type_k), cache(tuning.cache_type_v));
        let step = tuning.ubatch_size.unwrap_or(STEP_TOKENS_MAX);
        let cards_free = cards.and_then(room_on);
        let with_cards = if cards.is_some() { cards_free.is_some() } else { BUILT_FOR_CARDS };
        let layers = if with_cards { gpu_layer_count(tuning.gpu_layers) } else { 0 };
        let parts = Parts::of(header, context, step, keys, values).with(adapters);
        let (estimate, on_cards) = parts.split(layers);
        Ok(Self {
            name: name.to_owned(),
            context,
            wanted: slot_count(tuning.slots),
            estimate,
            on_cards,
            cards_free: cards_free.filter(|_| layers > 0),
            budget: config.max_memory_mb.map_or(u64::MAX, |mb| mb.saturating_mul(1024 * 1024)),
            max_loaded: config.max_loaded as usize,
            queue: config.queue,
            tuning,
            settings,
            notes,
        })
    }

    /// Conversations at the same time, where there is memory for them.
    #[must_use]
    pub fn wanted(&self) -> u32 {
        self.wanted
    }

    /// What is to be done next, with this in memory.
    ///
    /// # Errors
    ///
    /// `unavailable` where it fits neither the budget nor what is free, of the
    /// machine or of its graphics cards, `busy` where all that is in memory is in
    /// use.
    pub fn next(&self, taken: &Taken) -> Result<Step, Refusal> {
        let fit = |wanted, bytes, limit| self.estimate.fit(&self.name, wanted, bytes, limit);
        let slots = fit(self.wanted, self.budget, "are allowed by `max_memory_mb`")?;
        let bytes = taken.bytes.saturating_add(self.estimate.with_slots(slots));
        if taken.names.len() >= self.max_loaded || bytes > self.budget {
            return if taken.idle { Ok(Step::MakeRoom) } else { Err(self.no_room(&taken.names)) };
        }
        let fitted = fit(slots, available_bytes().unwrap_or(u64::MAX), "are free")
            .and_then(|slots| self.fit_on_cards(slots));
        match fitted {
            // Rather another model goes than this one runs slowly.
            fitted if fitted != Ok(slots) && taken.idle => Ok(Step::MakeRoom),
            fitted => fitted.map(Step::Run),
        }
    }

    /// How many of so many slots have room on the graphics cards.
    fn fit_on_cards(&self, slots: u32) -> Result<u32, Refusal> {
        let Some(free) = self.cards_free else { return Ok(slots) };
        let fitted = self.on_cards.fit(&self.name, slots, free, "are free on the graphics cards");
        fitted.map_err(|mut refusal| {
            if let Some(details) = refusal.details.as_mut().and_then(|details| details.as_object_mut()) {
                details.insert(ON_CARDS.to_owned(), true.into());
            }
            refusal.hint(
                "put fewer layers there: `ksi model load NAME --set gpu_layers=N`, or the same in the \
                 configuration; or unload another model, or lower `context`",
            )
        })
    }

    fn no_room(&self, loaded: &[String]) -> Refusal {
        let message =
            format!("no room for model `{}`: all {} models in memory are in use", self.name, loaded.len());
        Refusal::new(Code::Busy, message)
            .hint("ask again later, or raise `max_loaded` or `max_memory_mb` of the llama plugin")
            .details(json!({ "loaded": loaded }))
            .retry_after_ms(RETRY_AFTER_MS)
    }

    /// Memory of graphics cards that it takes with so many slots.
    #[must_use]
    pub fn card_bytes(&self, slots: u32) -> u64 {
        self.on_cards.with_slots(slots)
    }

    /// How it runs with so many slots, and the memory of the machine that it will
    /// take.
    pub fn settle(&mut self, slots: u32) -> (Setup, u64) {
        if slots < self.wanted {
            self.notes.push(format!("{slots} of {} slots: there is no memory for more", self.wanted));
        }
        let setup = Setup {
            context: self.context,
            slots,
            threads: self.tuning.threads.unwrap_or(1),
            queue: self.queue,
            tuning: self.tuning.clone(),
        };
        (setup, self.estimate.with_slots(slots))
    }
}

/// Tokens of context for each conversation.
fn context_for(name: &str, asked: Option<u32>, tuning: &Tuning, header: &Header) -> Result<u32, Refusal> {
    let trained = u32::try_from(header.context_length).unwrap_or(u32::MAX);
    // Scaled positions reach further than the training.
    let most = match tuning.rope_scaling {
        Some(RopeScaling::Linear | RopeScaling::Yarn) => CONTEXT_SCALED_MAX.max(trained),
        _ => trained,
    };
    match asked {
        Some(context) if context < CONTEXT_MIN || context > most => {
            let message =
                format!("a context of {context} tokens; model `{name}` takes {CONTEXT_MIN} to {most}");
            Err(Refusal::new(Code::InvalidPayload, message)
                .hint("leave `context` out for the default")
                .details(json!({ "context": context, "min": CONTEXT_MIN, "max": most })))
        }
        Some(context) => Ok(context),
        None => Ok(tuning.context.map_or(CONTEXT_DEFAULT.min(trained), |context| context.min(most))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let dir = tempfile::tempdir().unwrap();
        let library = crate::models::Library::new(dir.path().join("models"), dir.path());
        library.find("ksi-tiny").unwrap().1
    }

    #[test]
    fn the_context_is_what_was_asked_configured_or_trained() {
        let header = header();
        let tuning = Tuning { context: Some(512), ..Tuning::default() };
        assert_eq!(context_for("m", None, &tuning, &header), Ok(512));
        assert_eq!(context_for("m", Some(64), &tuning, &header), Ok(64));
        let short = Header { context_length: 100, ..header.clone() };
        assert_eq!(context_for("m", None, &tuning, &short), Ok(100));
        for context in [0, 15, 1025, u32::MAX] {
            let refusal = context_for("m", Some(context), &tuning, &header).unwrap_err();
            assert!(refusal.message.contains("1024"), "{refusal}");
        }
        let scaled = Tuning { rope_scaling: Some(RopeScaling::Yarn), ..tuning };
        assert_eq!(context_for("m", Some(4096), &scaled, &header), Ok(4096));
    }

    #[test]
    fn what_a_request_sets_goes_over_all_else_and_must_go_with_it() {
        let config = Config {
            tuning: Tuning { flash_attn: Some(crate::tuning::FlashAttention::Off), ..Tuning::default() },
            models: [("m*".to_owned(), Tuning { slots: Some(2), context: Some(64), ..Tuning::default() })]
                .into(),
            ..Config::default()
        };
        let asked = Tuning { slots: Some(8), context: Some(128), ..Tuning::default() };
        let mut plan = Plan::of(&config, "my", &asked, &header(), 0, None).unwrap();
        let from = plan.settings.iter().find(|setting| setting.name == "slots").unwrap().from.clone();
        assert_eq!(from, "request");
        let (setup, _) = plan.settle(8);
        assert_eq!((setup.slots, setup.context), (8, 128));
        let asked = Tuning { cache_type_v: Some(CacheType::Q8_0), ..Tuning::default() };
        let refusal = Plan::of(&config, "my", &asked, &header(), 0, None).unwrap_err();
        assert_eq!(refusal.code, Code::InvalidPayload);
        assert!(refusal.message.contains("`cache_type_v` is quantised"), "{refusal}");
    }

    #[test]
    fn an_idle_model_goes_before_one_more_is_refused() {
        let config = Config { max_loaded: 1, ..Config::default() };
        let plan = Plan::of(&config, "m", &Tuning::default(), &header(), 0, None).unwrap();
        assert_eq!(plan.next(&Taken::default()), Ok(Step::Run(4)));
        let mut taken = Taken { names: vec!["a".into()], bytes: 1, idle: true };
        assert_eq!(plan.next(&taken), Ok(Step::MakeRoom));
        taken.idle = false;
        assert_eq!(plan.next(&taken).unwrap_err().code, Code::Busy);
    }

    #[test]
    fn what_is_on_a_card_is_charged_to_it_and_refused_where_it_has_no_room() {
        let big = Header { size_bytes: 40_000_000_000, ..header() };
        let config = Config { max_memory_mb: Some(30_000), ..Config::default() };
        let card = |free_bytes, shared| Card {
            name: "CUDA0".into(),
            about: "a card".into(),
            memory_bytes: 80_000_000_000,
            free_bytes,
            shared,
        };
        let plan = |layers, cards: &[Card]| {
            let asked = Tuning { gpu_layers: Some(layers), slots: Some(1), ..Tuning::default() };
            Plan::of(&config, "big", &asked, &big, 0, Some(cards)).unwrap()
        };
        let next = |plan: &Plan| plan.fit_on_cards(plan.wanted());
        // Without a card, or with one that has no memory of its own, it is too large for the budget.
        for cards in [&[][..], &[card(1 << 40, true)], &[card(1 << 40, false)]] {
            let mut plan = plan(999, cards);
            let beyond =
                plan.next(&Taken::default()).is_err_and(|refusal| refusal.message.contains("max_memory_mb"));
            let on_card = cards.iter().any(|card| !card.shared);
            assert_eq!(beyond, !on_card, "{cards:?}");
            assert_eq!(plan.card_bytes(1) > 30_000_000_000, on_card, "{cards:?}");
            assert_eq!(plan.settle(1).1 > 30_000_000_000, !on_card, "{cards:?}");
        }
        let refusal = next(&plan(999, &[card(20_000_000_000, false)])).unwrap_err();
        assert_eq!(refusal.code, Code::Unavailable);
        assert!(refusal.message.contains("20000 MB are free on the graphics cards"), "{refusal}");
        assert!(refusal.hint.contains("gpu_layers") && lacks_cards(&refusal), "{refusal:?}");
        assert_eq!(next(&plan(1, &[card(20_000_000_000, false)])), Ok(1));
        assert_eq!(plan(0, &[card(0, false)]).card_bytes(1), 0);
    }
}
