//! What is wrong with settings: names that there are not, with the one that may
//! be meant, and values that are not accepted. All of it is found at once, in the
//! configuration and in a request alike.

use ksi_sdk::{
    prelude::{Code, Deserialize, Refusal, json},
    protocol::nearest,
};
use serde_json::{Map, Value};

use super::{CacheType, FlashAttention, Lora, Tuning};
use crate::config::{CONTEXT_MIN, SLOTS_MAX};

/// Largest batch, in tokens.
const BATCH_MAX: u32 = 8192;
/// Most adapters of one model.
const LORA_MAX: usize = 16;
/// Longest part that is shown of what a request has in the place of a name.
const SHOWN_BYTES_MAX: usize = 64;
/// Most problems that are told of.
const TOLD_MAX: usize = 32;

/// The names of all settings.
const NAMES: [&str; 16] = [
    "batch_size",
    "cache_type_k",
    "cache_type_v",
    "context",
    "flash_attn",
    "gpu_layers",
    "lora",
    "mlock",
    "mmap",
    "rope_freq_base",
    "rope_freq_scale",
    "rope_scaling",
    "slots",
    "threads",
    "threads_batch",
    "ubatch_size",
];

impl Tuning {
    /// The settings of a request, which are at `place` of it.
    ///
    /// # Errors
    ///
    /// `invalid_payload` with all that is wrong.
    pub(crate) fn read(place: &str, given: &Map<String, Value>) -> Result<Self, Refusal> {
        let (mut sound, mut problems) = (Map::new(), Vec::new());
        for (name, value) in given {
            let alone = Value::Object([(name.clone(), value.clone())].into_iter().collect());
            match Self::deserialize(alone) {
                Ok(_) => drop(sound.insert(name.clone(), value.clone())),
                Err(error) => {
                    let (name, value, why) = (short(name), value.to_string(), error.to_string());
                    problems.push(format!("`{place}{name}` is {}: {}", short(&value), short(&why)));
                }
            }
        }
        // Each of them was read alone.
        let tuning: Self = serde_json::from_value(Value::Object(sound)).unwrap_or_default();
        problems.extend(tuning.problems(place, &[]));
        let hint = format!("settings have the names of llama.cpp: {}", NAMES.join(", "));
        refusal(problems, &hint).map_or(Ok(tuning), Err)
    }

    /// What is wrong with settings at `place`, where these names are known, too.
    /// Each names the key, its value and what is accepted.
    pub(crate) fn problems(&self, place: &str, also_known: &[&str]) -> Vec<String> {
        let unknown = self.unknown.keys().map(|name| {
            let known = NAMES.iter().chain(also_known).copied();
            let near =
                nearest::best(name, known).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            format!("there is no setting `{place}{}`{near}", short(name))
        });
        let mut problems: Vec<String> = unknown.collect();
        for (name, value, min, max) in [
            ("slots", self.slots, 1, SLOTS_MAX),
            ("context", self.context, CONTEXT_MIN, 1 << 24),
            // Any number: one beyond the cores is clamped, and the load says so.
            ("threads", self.threads, 1, u32::MAX),
            ("threads_batch", self.threads_batch, 1, u32::MAX),
            ("batch_size", self.batch_size, 32, BATCH_MAX),
            ("ubatch_size", self.ubatch_size, 32, BATCH_MAX),
        ] {
            if let Some(value) = value.filter(|value| !(min..=max).contains(value)) {
                problems.push(format!("`{place}{name}` is {value}; accepted is {min} to {max}"));
            }
        }
        for (name, value, max) in
            [("rope_freq_base", self.rope_freq_base, 1e12), ("rope_freq_scale", self.rope_freq_scale, 1e3)]
        {
            if let Some(value) = value.filter(|value| !(*value > 0.0 && *value <= max)) {
                problems.push(format!("`{place}{name}` is {value}; accepted is above 0 to {max}"));
            }
        }
        let lora = self.lora.as_deref().unwrap_or_default();
        if lora.len() > LORA_MAX {
            problems.push(format!("`{place}lora` names {} adapters; {LORA_MAX} at most", lora.len()));
        }
        for one in lora {
            if let Err(why) = Lora::parse(one) {
                problems.push(format!("`{place}lora` has {:?}, {}", short(one), short(why)));
            }
        }
        let quantised = self.cache_type_v.is_some_and(CacheType::is_quantised);
        if quantised && self.flash_attn == Some(FlashAttention::Off) {
            problems.push(format!("`{place}cache_type_v` is quantised, which needs `flash_attn`"));
        }
        problems
    }
}

/// The refusal for problems; `None` where there are none.
pub(crate) fn refusal(mut problems: Vec<String>, hint: &str) -> Option<Refusal> {
    let more = problems.len().saturating_sub(TOLD_MAX);
    if more > 0 {
        problems.truncate(TOLD_MAX);
        problems.push(format!("and {more} more"));
    }
    let refusal = || {
        Refusal::new(Code::InvalidPayload, format!("llama: {}", problems.join("; ")))
            .hint(hint)
            .details(json!({ "problems": problems }))
    };
    (!problems.is_empty()).then(refusal)
}

/// The beginning of what may be long.
fn short(text: &str) -> String {
    match text.len() {
        ..=SHOWN_BYTES_MAX => text.to_owned(),
        _ => format!("{}...", &text[..text.floor_char_boundary(SHOWN_BYTES_MAX)]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: Value) -> Result<Tuning, Refusal> {
        Tuning::read("settings.", given.as_object().unwrap())
    }

    #[test]
    fn the_names_are_those_of_the_settings() {
        let schema = serde_json::to_value(schemars::schema_for!(Tuning)).unwrap();
        let mut names: Vec<_> = schema["properties"].as_object().unwrap().keys().cloned().collect();
        names.sort();
        assert_eq!(names, NAMES);
    }

    #[test]
    fn all_that_is_wrong_with_a_request_is_told_at_once() {
        let refusal = read(json!({"thread": 2, "slots": 0, "flash_attn": "maybe", "xyz": 1, "mmap": true,
            "context": "long", "lora": [":1"]}))
        .unwrap_err();
        assert_eq!(refusal.code, Code::InvalidPayload);
        let details = refusal.details.clone().unwrap();
        let problems = details["problems"].as_array().unwrap();
        for part in [
            "there is no setting `settings.thread`; did you mean `threads`?",
            "there is no setting `settings.xyz`",
            "`settings.slots` is 0; accepted is 1 to 64",
            "`settings.flash_attn` is \"maybe\": unknown variant",
            "`settings.context` is \"long\": invalid type",
            "`settings.lora` has \":1\"",
        ] {
            let tellers =
                problems.iter().filter(|problem| problem.as_str().unwrap().starts_with(part)).count();
            assert!(tellers == 1 && refusal.message.contains(part), "{part}: {refusal}");
        }
        assert_eq!(problems.len(), 6, "{problems:?}");
    }

    #[test]
    fn what_is_long_or_much_is_refused_in_few_words() {
        let long = "ä".repeat(10_000_000);
        let refusal = read(json!({long.as_str(): 1, "flash_attn": long, "lora": [long]})).unwrap_err();
        assert!(refusal.message.len() < 1000, "{}", refusal.message.len());
        let many: Map<_, _> = (0..1000).map(|n| (format!("x{n}"), json!(1))).collect();
        let refusal = read(Value::Object(many)).unwrap_err();
        assert!(refusal.message.ends_with("and 968 more"), "{refusal}");
    }

    #[test]
    fn what_is_sound_is_read() {
        let tuning =
            read(json!({"threads": 1, "context": 2048, "cache_type_k": "q8_0", "mlock": null})).unwrap();
        let expected = Tuning {
            threads: Some(1),
            context: Some(2048),
            cache_type_k: Some(CacheType::Q8_0),
            ..Tuning::default()
        };
        assert_eq!(tuning, expected);
    }
}
