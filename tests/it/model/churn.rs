//! More models than may be loaded, asked, loaded and unloaded at random by many at
//! once: everybody is answered by the model that he asked, and nobody for ever not.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use ksi_tests::{Daemon, Home};
use serde_json::{Value, json};

use super::{TINY, add_model};

/// Of which two are loaded at a time.
const MODELS: [&str; 3] = ["one", "two", "three"];
const CLIENTS: u64 = 6;
/// What each of them does.
const STEPS: usize = 25;

/// The built-in model with weights that are a little off, as many as `salt` says.
fn mutant(salt: u8) -> Vec<u8> {
    let mut bytes = TINY.to_vec();
    // The header is far shorter than half of the file.
    let weights = bytes.len() / 2;
    bytes[weights..].iter_mut().step_by(61).for_each(|byte| *byte ^= salt);
    bytes
}

/// The same numbers each time: those of Knuth's MMIX.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

fn say(daemon: &Daemon, model: &str) -> Result<String, Value> {
    let ask = json!({"model": model, "prompt": "Once there was", "temperature": 0, "max_tokens": 12});
    daemon.ask("llama:generate", ask).map(|answer| {
        assert_eq!(answer["model"], model);
        answer["text"].as_str().expect("a text").to_owned()
    })
}

#[test]
fn models_that_come_and_go_at_random_are_never_taken_for_each_other() {
    let home = Home::with_config("[plugins.llama.config]\nmax_loaded = 2\n");
    for (salt, name) in (0..).zip(MODELS) {
        add_model(&home.paths().models_dir(), name, &mutant(salt));
    }
    let daemon = home.start();
    daemon.ready();
    let texts: BTreeMap<&str, String> =
        MODELS.into_iter().map(|name| (name, say(&daemon, name).expect("an answer"))).collect();
    for (name, other) in [("one", "two"), ("one", "three"), ("two", "three")] {
        assert_ne!(texts[name], texts[other], "{name} and {other} cannot be told apart");
    }
    let (answered, busy) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (daemon, texts, answered, busy) = (&daemon, &texts, &answered, &busy);
            scope.spawn(move || {
                let mut dice = Dice(client);
                for _ in 0..STEPS {
                    let name = MODELS[dice.roll(MODELS.len())];
                    match dice.roll(10) {
                        0 => drop(daemon.ask("llama:unload", json!({ "model": name }))),
                        1 => drop(daemon.ask("llama:load", json!({ "model": name }))),
                        _ => match say(daemon, name) {
                            Ok(text) => {
                                assert_eq!(text, texts[name], "{name} has answered with another's voice");
                                answered.fetch_add(1, Ordering::Relaxed);
                            }
                            // There was no room for it, or it was unloaded before its turn.
                            Err(refusal) => {
                                assert_eq!(refusal["retryable"], true, "{refusal}");
                                busy.fetch_add(1, Ordering::Relaxed);
                            }
                        },
                    }
                }
            });
        }
    });
    let (answered, busy) = (answered.into_inner(), busy.into_inner());
    assert!(answered > 30, "{answered} answered, {busy} not");
    // All are there as before.
    for name in MODELS {
        assert_eq!(say(&daemon, name).unwrap(), texts[name]);
    }
}
