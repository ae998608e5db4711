//! Rankings, stage by stage.

use ksi_sdk::prelude::Refusal;
use serde_json::Value;

use super::*;

/// A router with what it looks at, and a clock.
struct World {
    config: Config,
    providers: Providers,
    catalogue: Catalogue,
    router: Router,
    loads: Vec<Load>,
    now_ms: u64,
}

impl World {
    fn new(config: Value) -> Self {
        let config: Config = serde_json::from_value(config).unwrap();
        let providers = Providers::new(&config.providers);
        config.check(&providers).unwrap();
        let load = |provider: &crate::provider::Provider| Load {
            name: provider.name.clone(),
            concurrency: provider.concurrency,
            running: 0,
            queued: 0,
        };
        Self {
            catalogue: Catalogue::new(&providers),
            router: Router::new(&config, &providers),
            loads: providers.all().iter().map(load).collect(),
            config,
            providers,
            now_ms: 0,
        }
    }

    fn order(&self, request: Value) -> Order {
        let request = serde_json::from_value(request).unwrap();
        Order::new(request, &self.config, &self.providers).unwrap()
    }

    /// The refusal of a request that nobody can answer.
    fn nobody(&self, request: Value) -> Refusal {
        nobody(&self.rank_as(request.clone(), None), &self.order(request), &self.providers)
    }

    fn rank_as(&self, request: Value, tenant: Option<&str>) -> Vec<Ranked> {
        let order = self.order(request);
        let view = View {
            config: &self.config,
            providers: &self.providers,
            catalogue: &self.catalogue,
            loads: &self.loads,
            tenant,
            spent: &[],
            needs: &[],
        };
        self.router.rank(&order, &view, self.now_ms)
    }

    /// The names of those that can be asked, the best one first.
    fn eligible(&self, request: Value) -> Vec<String> {
        let ranked = self.rank_as(request, None);
        let names = ranked.iter().filter(|one| one.is_eligible());
        names.map(|one| self.providers.name(&one.target).to_string()).collect()
    }

    /// Why a model is left out.
    fn out(&self, request: Value, model: &str) -> Option<Stage> {
        let ranked = self.rank_as(request, None);
        ranked.iter().find(|one| self.providers.name(&one.target).to_string() == model).unwrap().out
    }

    fn target(&self, name: &str) -> Target {
        self.providers.target(name, "model").unwrap()
    }

    fn answer(&mut self, name: &str, first_ms: u64) {
        let target = self.target(name);
        let ticket = self.router.begin(&target, 1, self.now_ms).unwrap();
        self.router.answered(&target, &ticket, first_ms, 1, self.now_ms);
    }

    fn refuse(&mut self, name: &str, refusal: &Refusal) {
        let target = self.target(name);
        let ticket = self.router.begin(&target, 1, self.now_ms).unwrap();
        self.router.refused(&target, &ticket, refusal, self.now_ms);
    }
}

fn pool() -> Value {
    json!({"aliases": {"any": ["mock/fixed:a", "openai/b", "anthropic/c"]}, "breaker": {"failures": 2, "open_ms": 100}})
}

#[test]
fn equals_are_ranked_by_what_was_measured_and_by_their_queues() {
    let mut world = World::new(pool());
    let any = || json!({"prompt": "x", "model": "any"});
    assert_eq!(world.eligible(any()), ["mock/fixed:a", "openai/b", "anthropic/c"], "as they are listed");
    world.answer("openai/b", 200);
    world.answer("anthropic/c", 300);
    assert_eq!(world.eligible(any()), ["openai/b", "anthropic/c", "mock/fixed:a"]);
    world.loads[1].running = 8;
    assert_eq!(world.eligible(any()), ["anthropic/c", "openai/b", "mock/fixed:a"]);
    world.now_ms = LATENCY_AGE_MS;
    assert_eq!(world.eligible(any())[0], "mock/fixed:a", "what was measured long ago counts no more");
}

#[test]
fn a_weight_makes_up_for_time() {
    let mut config = pool();
    config["providers"] = json!({"anthropic": {"weight": 2.0}});
    let mut world = World::new(config);
    world.answer("openai/b", 200);
    world.answer("anthropic/c", 300);
    assert_eq!(world.eligible(json!({"prompt": "x", "model": "any"}))[0], "anthropic/c");
}

#[test]
fn fallbacks_come_after_what_was_asked_for_however_fast_they_are() {
    let mut world = World::new(json!({"fallbacks": ["mock/echo"]}));
    world.answer("mock/fixed:a", 1);
    world.answer("openai/b", 5000);
    let own =
        json!({"prompt": "x", "model": "openai/b", "fallbacks": ["anthropic/c", "mock/fixed:a", "openai/b"]});
    assert_eq!(world.eligible(own), ["openai/b", "anthropic/c", "mock/fixed:a"], "and none twice");
    assert_eq!(world.eligible(json!({"prompt": "x", "model": "openai/b"})), ["openai/b", "mock/echo"]);
    let none = json!({"prompt": "x", "model": "openai/b", "fallbacks": []});
    assert_eq!(world.eligible(none), ["openai/b"]);
}

#[test]
fn what_a_model_is_known_to_lack_leaves_it_out() {
    let world = World::new(json!({"providers": {"openai": {"models": {
        "plain": {"tools": false, "json_schema": false}, "small": {"context_length": 100}
    }}}}));
    let ask = |model: &str, more: Value| {
        let mut ask = json!({"prompt": "x", "model": model});
        ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.out(ask, model)
    };
    let tools = json!({"tools": [{"name": "look"}]});
    let schema = json!({"response_format": {"json_schema": {"schema": {"type": "object"}}}});
    assert_eq!(ask("openai/plain", tools.clone()), Some(Stage::Capability));
    assert_eq!(ask("openai/plain", schema.clone()), Some(Stage::Capability));
    assert_eq!(ask("openai/unknown", tools), None, "what is not known is not held against it");
    assert_eq!(ask("openai/unknown", schema), None);
    assert_eq!(ask("openai/small", json!({"prompt": "x".repeat(1000)})), Some(Stage::Capability));
    assert_eq!(ask("openai/small", json!({"max_tokens": 200})), None, "it may be content with less");
    let larger =
        json!({"prompt": "x", "model": "openai/small", "fallbacks": ["mock/echo"], "max_tokens": 200});
    assert_eq!(world.eligible(larger), ["mock/echo", "openai/small"]);
}

#[test]
fn a_policy_holds_for_everybody_and_for_a_tenant() {
    let world = World::new(json!({"policy": {
        "deny": ["openai/secret"], "tenants": {"guests": {"allow": ["mock/*"]}}
    }}));
    let out = |model: &str, tenant| world.rank_as(json!({"prompt": "x", "model": model}), tenant)[0].out;
    assert_eq!(out("openai/secret", None), Some(Stage::Policy));
    assert_eq!(out("openai/other", Some("us")), None);
    assert_eq!(out("openai/other", Some("guests")), Some(Stage::Policy));
    assert_eq!(out("mock/echo", Some("guests")), None);
    let local = |model: &str| world.out(json!({"prompt": "x", "model": model, "local_only": true}), model);
    assert_eq!((local("openai/other"), local("llama/x")), (Some(Stage::Policy), None));
}

#[test]
fn a_model_that_fails_again_and_again_is_left_alone_and_others_of_its_provider_are_not() {
    let mut world = World::new(pool());
    let down = Refusal::new(Code::Unavailable, "down");
    world.refuse("openai/b", &down);
    assert_eq!(world.out(json!({"prompt": "x", "model": "openai/b"}), "openai/b"), None);
    world.refuse("openai/b", &down);
    assert_eq!(world.out(json!({"prompt": "x", "model": "openai/b"}), "openai/b"), Some(Stage::Health));
    assert_eq!(world.out(json!({"prompt": "x", "model": "openai/c"}), "openai/c"), None);
    let refusal = world.nobody(json!({"prompt": "x", "model": "openai/b"}));
    assert_eq!((refusal.code, refusal.retry_after_ms), (Code::Unavailable, Some(100)));
    assert_eq!(refusal.details.unwrap()["candidates"][0]["stage"], "health");
    world.now_ms = 100;
    assert_eq!(world.out(json!({"prompt": "x", "model": "openai/b"}), "openai/b"), None, "one may try");
}

#[test]
fn what_is_no_fault_of_the_model_says_nothing_about_its_health() {
    let mut world = World::new(pool());
    for refusal in [
        Refusal::new(Code::Busy, "full"),
        Refusal::new(Code::InvalidPayload, "no"),
        Failure::ModelNotFound.refusal("no such model"),
        Failure::TooLarge.refusal("too long"),
        Failure::RateLimited.refusal("slowly"),
    ] {
        for _ in 0..5 {
            world.refuse("openai/b", &refusal);
        }
        assert_eq!(world.eligible(json!({"prompt": "x", "model": "openai/b"})), ["openai/b"], "{refusal}");
    }
    world.refuse("openai/b", &Failure::Unauthorized.refusal("wrong key"));
    world.refuse("openai/b", &Failure::Unauthorized.refusal("wrong key"));
    assert!(world.eligible(json!({"prompt": "x", "model": "openai/b"})).is_empty());
}

#[test]
fn a_provider_that_asked_for_patience_goes_behind_the_others() {
    let mut world = World::new(pool());
    let fallback = || json!({"prompt": "x", "model": "openai/b", "fallbacks": ["anthropic/c"]});
    world.refuse("openai/b", &Refusal::new(Code::Busy, "slowly").retry_after_ms(1000));
    assert_eq!(world.eligible(fallback()), ["openai/b", "anthropic/c"], "that is soon");
    world.refuse("openai/b", &Refusal::new(Code::Busy, "slowly").retry_after_ms(10_000));
    assert_eq!(world.eligible(fallback()), ["anthropic/c", "openai/b"]);
    world.catalogue.missed(2, "not there", 0);
    assert_eq!(world.eligible(fallback()), ["openai/b", "anthropic/c"], "neither is good; the order holds");
}

#[test]
fn a_model_that_has_no_room_leaves_the_others_of_its_provider_alone() {
    let mut world = World::new(pool());
    let wait = |world: &World, model: &str| {
        let best = world.rank_as(json!({"prompt": "x", "model": model}), None).remove(0);
        assert!(best.is_eligible(), "{model}");
        best.wait_ms
    };
    let busy = Refusal::new(Code::Busy, "64 requests wait for this model already").retry_after_ms(1000);
    world.refuse("llama/a", &busy.clone().details(json!({"model": "a"})));
    assert_eq!((wait(&world, "llama/a"), wait(&world, "llama/b")), (1000, 0));
    world.now_ms = 400;
    world.refuse("llama/b", &busy.clone().details(json!({"model": "b"})).retry_after_ms(60_001));
    assert_eq!(wait(&world, "llama/a"), 600);
    let asked = json!({"prompt": "x", "model": "llama/b"});
    assert_eq!(world.out(asked, "llama/b"), Some(Stage::Health), "nobody waits for that long");
    // A provider that names none means all of them.
    world.refuse("llama/c", &busy.retry_after_ms(2000));
    assert_eq!((wait(&world, "llama/a"), wait(&world, "llama/c")), (2000, 2000));
}

#[test]
fn whoever_asked_for_patience_by_any_refusal_that_may_pass_is_not_asked_before() {
    let mut world = World::new(pool());
    let ask = || json!({"prompt": "x", "model": "openai/b"});
    let overloaded = |ms| Failure::Overloaded.refusal("overloaded").retry_after_ms(ms);
    world.refuse("openai/b", &overloaded(1000));
    let waits = |world: &World, ms| {
        let best = world.rank_as(ask(), None).remove(0);
        assert_eq!((best.is_eligible(), best.wait_ms), (true, ms));
    };
    waits(&world, 1000);
    world.now_ms = 1000;
    waits(&world, 0);
    let for_good = Refusal { retryable: false, ..Refusal::new(Code::Denied, "no").retry_after_ms(5000) };
    world.refuse("openai/b", &for_good);
    waits(&world, 0);
    world.refuse("openai/c", &Refusal::new(Code::Busy, "slowly").retry_after_ms(60_001));
    assert_eq!(world.out(ask(), "openai/b"), Some(Stage::Health), "nobody waits for that long");
    let refusal = world.nobody(ask());
    assert_eq!((refusal.code, refusal.retry_after_ms), (Code::Unavailable, Some(60_001)));
    assert!(refusal.message.contains("asked to be left alone for 60001 ms"), "{refusal}");
    world.now_ms += 1;
    waits(&world, 60_000);
}

#[test]
fn what_is_too_large_says_by_how_much_and_whether_it_could_be_trimmed() {
    let world = World::new(json!({"providers": {"openai": {"models": {"*": {"context_length": 100}}}}}));
    let long = "x".repeat(1000);
    let say = |role: &str, text: &str| json!({"role": role, "content": text});
    let ask =
        |messages: Vec<Value>, trim: bool| json!({"messages": messages, "model": "openai/b", "trim": trim});
    let talk = || vec![say("user", &long), say("assistant", "yes"), say("user", "x")];
    let refusal = world.nobody(ask(talk(), false));
    assert_eq!((refusal.code, refusal.hint.contains("`trim`")), (Code::TooLarge, true), "{refusal}");
    let details = refusal.details.unwrap();
    assert_eq!((&details["prompt_tokens"], &details["context"]), (&json!(125), &json!(100)));
    assert_eq!(world.eligible(ask(talk(), true)), ["openai/b"], "there it can be");
    let refusal = world.nobody(ask(vec![say("user", &long)], true));
    assert_eq!((refusal.code, refusal.hint.contains("`trim`")), (Code::TooLarge, false), "{refusal}");
}

#[test]
fn no_more_models_are_remembered_than_a_client_may_fill_memory_with() {
    let mut world = World::new(json!({}));
    for n in 0..MODELS_MAX as u64 + 50 {
        world.now_ms = n;
        world.answer(&format!("openai/m{n}"), 5);
    }
    assert_eq!(world.router.health.len(), MODELS_MAX);
    assert!(!world.router.health.contains_key(&world.target("openai/m0")), "the oldest are forgotten");
}

#[test]
fn a_model_that_was_forgotten_meanwhile_is_paused_alone_all_the_same() {
    let mut world = World::new(json!({}));
    let target = world.target("openai/slow");
    let ticket = world.router.begin(&target, 1, 0).unwrap();
    for n in 1..=MODELS_MAX as u64 {
        world.now_ms = n;
        world.answer(&format!("openai/m{n}"), 5);
    }
    assert!(!world.router.health.contains_key(&target));
    let busy = Refusal::new(Code::Busy, "its queue is full").retry_after_ms(500);
    world.router.refused(&target, &ticket, &busy.details(json!({"model": "slow"})), world.now_ms);
    let paused: Vec<_> =
        world.router.pauses(target.lane, world.now_ms).into_iter().map(|(model, _)| model).collect();
    assert_eq!(paused, [Some("slow")]);
    assert_eq!(world.router.health.len(), MODELS_MAX);
}
