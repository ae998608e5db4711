//! The plan of a load: how a model is to run, whether there is room for it, and
//! who makes it.
//!
//! Looks at a header, the configuration and the memory of the machine, and
//! loads nothing. Nobody has to go for a model that has no room then either.

use std::time::Instant;

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

/// Among the details of a refusal for want of room: whose is short.
const SHORT: &str = "short";

/// What a load was refused for want of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Short {
    /// Memory of the machine, where no graphics card was seen that has its own.
    Cards,
    /// Room on graphics cards: so many bytes are needed there, and so many free.
    RoomOnCards {
        /// Needed.
        needed: u64,
        /// Free.
        free: u64,
    },
}

impl Short {
    const CARDS: &str = "cards";
    const ROOM_ON_CARDS: &str = "room_on_cards";

    /// What a refusal was for want of, where it tells.
    #[must_use]
    pub fn of(refusal: &Refusal) -> Option<Self> {
        let details = refusal.details.as_ref()?;
        match details[SHORT].as_str()? {
            Self::CARDS => Some(Self::Cards),
            Self::ROOM_ON_CARDS => Some(Self::RoomOnCards {
                needed: details["needed_bytes"].as_u64()?,
                free: details["available_bytes"].as_u64()?,
            }),
            _ => None,
        }
    }

    fn tell(of: &str, mut refusal: Refusal) -> Refusal {
        if let Some(details) = refusal.details.as_mut().and_then(|details| details.as_object_mut()) {
            details.insert(SHORT.to_owned(), of.into());
        }
        refusal
    }
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
    /// Whether it was to have layers on cards, and there are none.
    lacks_cards: bool,
    /// Memory for all models together.
    budget: u64,
    max_loaded: usize,
    queue: u32,
    /// What was decided differently from the configuration, and why.
    pub notes: Vec<String>,
}

/// A model that is in memory already.
#[derive(Debug, Clone)]
pub struct Occupant {
    /// Its name.
    pub name: String,
    /// Memory that it takes, an estimate.
    pub bytes: u64,
    /// Memory of graphics cards that it takes, an estimate.
    pub card_bytes: u64,
    /// When it was asked last.
    pub used: Instant,
    /// Whether it is in nobody's use.
    pub idle: bool,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The idle model of this name goes.
    Evict(String),
    /// The model runs with so many slots.
    Run(u32),
}

/// What an occupant takes of what is wanted.
type Share = fn(&Occupant) -> u64;

/// Those that may go, of those that have some of what is wanted.
fn idle(there: &[Occupant], share: Share) -> impl Iterator<Item = &Occupant> {
    there.iter().filter(move |one| one.idle && share(one) > 0)
}

/// What is free once those have gone, where so many bytes are now; `given` says what of
/// a share comes back.
fn free_without(there: &[Occupant], share: Share, free: u64, given: fn(u64) -> u64) -> u64 {
    idle(there, share).fold(free, |sum, one| sum.saturating_add(given(share(one))))
}

/// What may become free at most where so many bytes are estimated: an estimate may
/// be short, and a process has more than its model. What it was is seen afterwards.
fn at_most(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 8).saturating_add(512 << 20)
}

/// Who makes room on graphics cards for so many bytes, of which so many are free:
/// the one of the idle that was used longest ago. Nobody where that would not do.
#[must_use]
pub fn room_maker_on_cards(there: &[Occupant], needed: u64, free: u64) -> Option<String> {
    let on_cards: Share = |one| one.card_bytes;
    let would_do = free_without(there, on_cards, free, at_most) >= needed;
    let goes = idle(there, on_cards).min_by_key(|one| one.used).filter(|_| would_do);
    goes.map(|one| one.name.clone())
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
        let asked_layers = gpu_layer_count(tuning.gpu_layers);
        let layers = if with_cards { asked_layers } else { 0 };
        let parts = Parts::of(header, context, step, keys, values).with(adapters);
        let (estimate, on_cards) = parts.split(layers);
        Ok(Self {
            name: name.to_owned(),
            context,
            wanted: slot_count(tuning.slots),
            estimate,
            on_cards,
            cards_free: cards_free.filter(|_| layers > 0),
            lacks_cards: layers < asked_layers,
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

    /// What is to be done next, with these in memory. One of the same name makes room
    /// before all others.
    ///
    /// # Errors
    ///
    /// `unavailable` where it fits neither the budget nor what could be free, of the
    /// machine or of its graphics cards, `busy` where what is in use leaves no room.
    pub fn next(&self, there: &[Occupant]) -> Result<Step, Refusal> {
        let refused = |refusal| match self.lacks_cards {
            true => Short::tell(Short::CARDS, refusal),
            false => refusal,
        };
        let slots = self.estimate.fit(&self.name, self.wanted, self.budget, "are allowed by `max_memory_mb`");
        let slots = slots.map_err(refused)?;
        let needed = self.estimate.with_slots(slots);
        let has_room = |idle_too: bool| {
            let staying = there.iter().filter(|one| idle_too || !one.idle);
            let bytes = staying.clone().fold(needed, |sum, one| sum.saturating_add(one.bytes));
            staying.count() < self.max_loaded && bytes <= self.budget
        };
        if !has_room(false) {
            return Err(self.no_room(there));
        }
        let goes = |share| idle(there, share).min_by_key(|one| (one.name != self.name, one.used));
        if !has_room(true)
            && let Some(one) = goes(|_| 1)
        {
            return Ok(Step::Evict(one.name.clone()));
        }
        let fit = |estimate: &Estimate, slots, free, share: Share, limit: &str| {
            if estimate.fit(&self.name, 1, free_without(there, share, free, at_most), limit).is_err() {
                // What is known to become free is less still, and that is told.
                estimate.fit(&self.name, 1, free_without(there, share, free, |bytes| bytes), limit)?;
            }
            match (estimate.fit(&self.name, slots, free, limit), goes(share)) {
                // Rather another model goes than this one runs slowly.
                (fitted, Some(one)) if fitted != Ok(slots) => Ok(Step::Evict(one.name.clone())),
                (fitted, _) => fitted.map(Step::Run),
            }
        };
        let free = available_bytes().unwrap_or(u64::MAX);
        let fitted = fit(&self.estimate, slots, free, |one| one.bytes, "are free or could be");
        match (fitted.map_err(refused)?, self.cards_free) {
            (Step::Run(slots), Some(free)) => {
                let limit = "are free on the graphics cards, or could be";
                fit(&self.on_cards, slots, free, |one| one.card_bytes, limit).map_err(|refusal| {
                    Short::tell(Short::ROOM_ON_CARDS, refusal).hint(
                        "put fewer layers there: `ksi model load NAME --set gpu_layers=N`, or the same in the \
                         configuration; or unload another model, or lower `context`",
                    )
                })
            }
            (step, _) => Ok(step),
        }
    }

    /// The graphics cards as they are after somebody has made room there.
    pub fn look_again(&mut self, cards: Option<&[Card]>) {
        if self.cards_free.is_some() {
            self.cards_free = cards.and_then(room_on);
        }
    }

    fn no_room(&self, there: &[Occupant]) -> Refusal {
        let in_use: Vec<_> = there.iter().filter(|one| !one.idle).map(|one| &one.name).collect();
        let message =
            format!("no room for model `{}` beside what is in use: {} models", self.name, in_use.len());
        Refusal::new(Code::Busy, message)
            .hint("ask again later, or raise `max_loaded` or `max_memory_mb` of the llama plugin")
            .details(json!({ "in_use": in_use }))
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

    fn occupant(name: &str, bytes: u64, card_bytes: u64, idle: bool) -> Occupant {
        Occupant { name: name.into(), bytes, card_bytes, used: Instant::now(), idle }
    }

    fn evict(name: &str) -> Result<Step, Refusal> {
        Ok(Step::Evict(name.into()))
    }

    #[test]
    fn an_idle_model_goes_before_one_more_is_refused() {
        let config = Config { max_loaded: 2, ..Config::default() };
        let plan = Plan::of(&config, "m", &Tuning::default(), &header(), 0, None).unwrap();
        assert_eq!(plan.next(&[]), Ok(Step::Run(4)));
        let mut there = [occupant("a", 1, 0, true), occupant("b", 1, 0, true)];
        assert_eq!(plan.next(&there[..1]), Ok(Step::Run(4)));
        assert_eq!(plan.next(&there), evict("a"), "it was used longest ago");
        there[0].idle = false;
        assert_eq!(plan.next(&there), evict("b"));
        there[1].name = "m".into();
        there[0].idle = true;
        assert_eq!(plan.next(&there), evict("m"), "what it is itself with other settings");
        there.iter_mut().for_each(|one| one.idle = false);
        assert_eq!(plan.next(&there).unwrap_err().code, Code::Busy);
    }

    #[test]
    fn nobody_goes_where_there_is_no_room_then_either() {
        let config = Config { max_loaded: 9, max_memory_mb: Some(200), ..Config::default() };
        let plan = Plan::of(&config, "m", &Tuning::default(), &header(), 0, None).unwrap();
        let used = |mb: u64| [occupant("used", mb << 20, 0, false), occupant("idle", 100 << 20, 0, true)];
        assert_eq!(plan.next(&used(100)), evict("idle"));
        let refusal = plan.next(&used(190)).unwrap_err();
        assert_eq!((refusal.code, &refusal.details.unwrap()["in_use"]), (Code::Busy, &json!(["used"])));
        // More than there is in the machine, whoever goes.
        let big = Header { size_bytes: 1 << 60, ..header() };
        let plan = Plan::of(&Config::default(), "m", &Tuning::default(), &big, 0, None).unwrap();
        assert_eq!(plan.next(&[occupant("idle", 1, 0, true)]).unwrap_err().code, Code::Unavailable);
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
        let own = |free_bytes| [card(free_bytes, false)];
        // Without a card, or with one that has no memory of its own, it is too large for the budget.
        for cards in [&[][..], &[card(1 << 40, true)], &[card(1 << 40, false)]] {
            let mut plan = plan(999, cards);
            let on_card = cards.iter().any(|card| !card.shared);
            let refusal = plan.next(&[]).err().filter(|refusal| refusal.message.contains("max_memory_mb"));
            assert_eq!(refusal.as_ref().and_then(Short::of), (!on_card).then_some(Short::Cards), "{cards:?}");
            assert_eq!(plan.card_bytes(1) > 30_000_000_000, on_card, "{cards:?}");
            assert_eq!(plan.settle(1).1 > 30_000_000_000, !on_card, "{cards:?}");
        }
        let refusal = plan(0, &[]).next(&[]).unwrap_err();
        assert_eq!(Short::of(&refusal), None, "it was not to be on a card");
        assert_eq!(plan(0, &own(0)).card_bytes(1), 0);
    }

    #[test]
    fn who_has_nothing_on_a_card_makes_no_room_there() {
        // All of it can be on the card.
        let big = Header { size_bytes: 40_000_000_000, vocabulary: 1, ..header() };
        let free = 20_000_000_000;
        let card = Card {
            name: "CUDA0".into(),
            about: "a card".into(),
            memory_bytes: 80_000_000_000,
            free_bytes: free,
            shared: false,
        };
        let asked = Tuning { gpu_layers: Some(999), slots: Some(1), ..Tuning::default() };
        let config = Config { max_loaded: 9, ..Config::default() };
        let mut plan = Plan::of(&config, "big", &asked, &big, 0, Some(std::slice::from_ref(&card))).unwrap();
        let there = |on_card| [occupant("a", 1, 0, true), occupant("b", 1, on_card, true)];
        for (on_card, goes) in [(30_000_000_000, true), (10_000_000_000, false)] {
            let there = there(on_card);
            let next = plan.next(&there);
            // The same by what its process would tell.
            let Short::RoomOnCards { needed, free } = Short::of(&plan.next(&[]).unwrap_err()).unwrap() else {
                panic!("{next:?}")
            };
            assert_eq!(
                (room_maker_on_cards(&there, needed, free).as_deref(), goes),
                (goes.then_some("b"), goes)
            );
            match next {
                Err(refusal) if !goes => {
                    assert_eq!(refusal.code, Code::Unavailable);
                    assert!(refusal.message.contains("30000 MB are free on the graphics cards"), "{refusal}");
                    assert!(refusal.hint.contains("gpu_layers"), "{refusal:?}");
                }
                next => assert_eq!((next, goes), (evict("b"), true)),
            }
        }
        // When it has gone, there is what it had.
        plan.look_again(Some(&[Card { free_bytes: 50_000_000_000, ..card }]));
        assert_eq!(plan.next(&there(0)[..1]), Ok(Step::Run(1)));
    }
}
