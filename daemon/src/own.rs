//! The daemon's own events: their names, what they take, answer and say, and the
//! help for all of it.
//!
//! This is the one place where they are listed. What `ksi describe` shows, whom
//! the daemon has to answer and what it can tell are made from the two tables
//! here: a [`Request`] has the types of its question and of its answer, and a
//! [`Fact`] that of what it says, so nothing else goes out under its name. What a
//! request leads to stands in [`system`](crate::system).

use std::marker::PhantomData;

use ksi_protocol::{
    sandbox::Probe,
    system::{
        ConfigChanges, ConfigShown, Describe, Discover, Discovery, EventInfo, Freeze, Freezing, Health,
        Nothing, PluginBorn, PluginInspection, PluginList, PluginLoad, PluginName, PluginNamed, PluginStatus,
        PluginTrouble, Quarantine, Ready, Reason, Shutdown, StartInstance, Started, Status, StopInstance,
    },
    token::{CreateToken, CreatedToken, RevokeToken, RevokedTokens, Tokens},
};
use schemars::JsonSchema;
use serde_json::Value;

/// Namespaces in which only the daemon answers and speaks, each with the right of
/// those who administer what is in it. To see to tokens no right but that of their
/// users is declared.
pub const NAMESPACES: [(&str, &str); 4] = [
    ("system", "system.admin"),
    ("plugin", "plugin.admin"),
    ("config", "config.admin"),
    ("token", "system.admin"),
];

/// Whether a namespace is the daemon's own.
#[must_use]
pub fn is_own(namespace: &str) -> bool {
    NAMESPACES.iter().any(|(own, _)| *own == namespace)
}

/// What discovery tells of an event.
#[derive(Debug)]
pub struct Spec {
    /// Its name.
    pub event: &'static str,
    /// What it does or says.
    pub about: &'static str,
    /// The JSON schema of its payload.
    pub payload: fn() -> Value,
    /// The JSON schema of its answer; none of a fact.
    pub reply: Option<fn() -> Value>,
}

/// What a request is asked with, and what it is answered.
#[derive(Debug)]
pub struct Types<Ask, Answer>(PhantomData<fn(Ask) -> Answer>);

/// A fact of the daemon's own, and what is said with it.
#[derive(Debug)]
pub struct Fact<Says> {
    /// Its name.
    pub event: &'static str,
    says: PhantomData<fn(Says)>,
}

fn schema<T: JsonSchema>() -> Value {
    schemars::schema_for!(T).to_value()
}

macro_rules! requests {
    ($($request:ident = $event:literal: $ask:ty => $answer:ty, $about:literal;)*) => {
        /// A request that the daemon itself answers.
        #[derive(Debug)]
        pub enum Request {
            $(#[doc = $about] $request(Types<$ask, $answer>),)*
        }

        impl Request {
            /// The one of this name.
            #[must_use]
            pub fn of(event: &str) -> Option<Self> {
                match event {
                    $($event => Some(Self::$request(Types(PhantomData))),)*
                    _ => None,
                }
            }
        }

        /// All that the daemon itself answers.
        pub const REQUESTS: &[Spec] = &[$(Spec {
            event: $event,
            about: $about,
            payload: schema::<$ask>,
            reply: Some(schema::<$answer>),
        }),*];
    };
}

macro_rules! facts {
    ($($fact:ident = $event:literal: $says:ty, $about:literal;)*) => {
        $(#[doc = $about]
        pub const $fact: Fact<$says> = Fact { event: $event, says: PhantomData };)*

        /// All that the daemon itself tells.
        pub const FACTS: &[Spec] =
            &[$(Spec { event: $event, about: $about, payload: schema::<$says>, reply: None }),*];
    };
}

requests! {
    Health = "system:health": Nothing => Health, "Tell whether the daemon is alive, ready and whole.";
    Ready = "system:ready": Ready => Health,
        "Wait until no plugin is starting any more, then tell the health.";
    Status = "system:status": Nothing => Status, "Tell health, figures and plugins.";
    Discover = "system:discover": Discover => Discovery, "List everything that can be asked or heard.";
    Describe = "system:describe": Describe => EventInfo, "Describe one event.";
    Shutdown = "system:shutdown": Shutdown => Nothing,
        "Stop the daemon: finish what is in flight, then go.";
    Restart = "system:restart": Shutdown => Nothing,
        "Start the daemon anew in the same process, from the file that it was started from: an upgrade that \
         refuses no client. Refused where that file would not start.";
    Freeze = "system:freeze": Freeze => Freezing,
        "Stop everything but reading and administration, or let it go on; over restarts of the daemon too. \
         What is under way ends, what is accepted is kept and waits.";
    PluginList = "plugin:list": Nothing => PluginList, "List all plugins.";
    PluginInspect = "plugin:inspect": PluginName => PluginInspection,
        "Tell everything about one plugin, and how it died.";
    PluginProbe = "plugin:probe": PluginName => Probe,
        "Start another child with the plugin's sandbox, try from inside what is denied there, and tell.";
    PluginLoad = "plugin:load": PluginLoad => PluginStatus,
        "Load a plugin library, or a plugin of the manifest that was unloaded.";
    PluginUnload = "plugin:unload": PluginName => PluginStatus, "Stop a plugin until it is loaded again.";
    PluginReload = "plugin:reload": PluginName => PluginStatus,
        "Start a plugin anew, with its library read again and the configuration in force, which `config:reload` \
         reads.";
    PluginRestart = "plugin:restart": PluginName => PluginStatus,
        "Start a plugin anew, also one that is held.";
    PluginQuarantine = "plugin:quarantine": Quarantine => PluginStatus,
        "Stop a plugin at once, and keep it from running until it is released, over restarts of the daemon too.";
    PluginRelease = "plugin:release": PluginName => PluginStatus,
        "Let a plugin run again that is quarantined or held.";
    InstanceStart = "plugin:instance:start": StartInstance => PluginStatus,
        "Start an instance of the plugin that asks, in a child of its own, or wait for one that is there; it \
         ends with the plugin.";
    InstanceStop = "plugin:instance:stop": StopInstance => PluginStatus,
        "Stop an instance of the plugin that asks, and forget it.";
    InstanceList = "plugin:instance:list": Nothing => PluginList,
        "List the instances of the plugin that asks.";
    ConfigShow = "config:show": Nothing => ConfigShown,
        "Show the configuration in force and where each value comes from.";
    ConfigReload = "config:reload": Nothing => ConfigChanges, "Read the configuration and the tokens again.";
    TokenCreate = "token:create": CreateToken => CreatedToken,
        "Make a token, which gives whoever shows it what the asker holds or less, for no longer. It is shown \
         this once.";
    TokenList = "token:list": Nothing => Tokens,
        "List the tokens that the asker has made, and those made with them.";
    TokenRevoke = "token:revoke": RevokeToken => RevokedTokens,
        "Take a token back, and all that were made with it, also on connections that are open.";
}

facts! {
    STARTED = "system:started": Started, "The daemon accepts clients.";
    STOPPING = "system:stopping": Reason, "The daemon takes no new requests.";
    FROZEN = "system:frozen": Reason, "Only reading and administration go on.";
    THAWED = "system:thawed": Nothing, "Everything goes on again.";
    PLUGIN_STARTED = "plugin:started": PluginBorn, "A plugin runs; it is not ready yet.";
    PLUGIN_READY = "plugin:ready": PluginBorn, "A plugin answers.";
    PLUGIN_DIED = "plugin:died": PluginTrouble, "A plugin is gone without having been told to.";
    PLUGIN_HELD = "plugin:held": PluginTrouble, "A plugin failed too often and is not restarted any more.";
    PLUGIN_STOPPED = "plugin:stopped": PluginNamed, "A plugin was stopped.";
    PLUGIN_QUARANTINED = "plugin:quarantined": PluginTrouble,
        "A plugin is kept from running, by an operator's order.";
    PLUGIN_RELEASED = "plugin:released": PluginNamed, "A plugin is quarantined no longer.";
    PLUGIN_DEGRADED = "plugin:degraded": PluginTrouble,
        "A plugin says that it cannot do all that it is there for.";
    PLUGIN_RECOVERED = "plugin:recovered": PluginNamed,
        "A plugin says that it can do all that it is there for again.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ksi_protocol::EventName;
    use serde_json::json;

    use super::*;

    #[test]
    fn every_event_has_one_name_in_a_namespace_of_the_daemons_own() {
        let mut names = BTreeSet::new();
        for spec in REQUESTS.iter().chain(FACTS) {
            let name = EventName::parse(spec.event).unwrap();
            assert!(is_own(name.namespace()), "{name}");
            assert!(names.insert(spec.event), "{name} is there twice");
            assert_eq!(Request::of(spec.event).is_some(), spec.reply.is_some(), "{name}");
        }
        assert!(Request::of("echo:say").is_none() && !is_own("echo"));
    }

    #[test]
    fn every_payload_and_every_answer_is_an_object_whose_fields_say_what_they_are() {
        for spec in REQUESTS.iter().chain(FACTS) {
            for schema in [Some(spec.payload), spec.reply].into_iter().flatten().map(|schema| schema()) {
                assert_eq!(schema["type"], "object", "{}: {schema}", spec.event);
                for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
                    assert!(schema["description"].is_string(), "{} {field}: {schema}", spec.event);
                }
            }
        }
    }

    #[test]
    fn a_request_says_what_it_takes_and_nothing_else_may_be_in_it() {
        let schema = |event: &str| (REQUESTS.iter().find(|spec| spec.event == event).unwrap().payload)();
        for spec in REQUESTS {
            assert_eq!((spec.payload)()["additionalProperties"], false, "{}", spec.event);
        }
        let load = schema("plugin:load");
        assert_eq!(load["required"], json!(["library"]));
        let text = load.to_string();
        assert!(text.contains("\"in-process\"") && text.contains("\"child\""), "{text}");
    }
}
