//! The daemon's own events: names, help and schemas, for discovery.

use serde_json::{Value, json};

/// One event of the daemon's own.
pub(super) struct Spec {
    pub(super) event: &'static str,
    pub(super) about: &'static str,
    /// Fields of the request: name, type, whether required, help.
    pub(super) fields: &'static [Field],
    pub(super) fact: bool,
}

pub(super) type Field = (&'static str, &'static str, bool, &'static str);

const fn request(event: &'static str, about: &'static str, fields: &'static [Field]) -> Spec {
    Spec { event, about, fields, fact: false }
}

const fn fact(event: &'static str, about: &'static str, fields: &'static [Field]) -> Spec {
    Spec { event, about, fields, fact: true }
}

const NAME: &[Field] = &[("name", "string", true, "Name of the plugin.")];
const BORN: &[Field] = &[
    ("name", "string", true, "Name of the plugin."),
    ("generation", "integer", true, "Counts the starts of this plugin."),
    ("placement", "string", true, "`in-process` or `child`."),
    ("sandbox", "string", true, "Sandbox level in force: `L0` to `L5`, `none` in-process."),
    ("sandbox_lacks", "array", true, "Layers that are off or incomplete, each with its reason."),
    ("pid", "integer", false, "Process id of the child."),
];
const GONE: &[Field] =
    &[("name", "string", true, "Name of the plugin."), ("reason", "string", true, "Why, one sentence.")];

pub(super) const ALL: &[Spec] = &[
    request("system:health", "Tell whether the daemon is alive, ready and whole.", &[]),
    request(
        "system:ready",
        "Wait until no plugin is starting any more, then tell the health.",
        &[("timeout_ms", "integer", false, "Longest wait in milliseconds; 60,000 without it.")],
    ),
    request("system:status", "Tell health, figures and plugins.", &[]),
    request(
        "system:discover",
        "List everything that can be asked or heard.",
        &[
            ("namespace", "string", false, "Only events of this namespace."),
            ("detail", "boolean", false, "With schemas."),
        ],
    ),
    request("system:describe", "Describe one event.", &[("event", "string", true, "Name of the event.")]),
    request(
        "system:shutdown",
        "Stop the daemon: finish what is in flight, then go.",
        &[("grace_ms", "integer", false, "Time that requests in flight may take, in milliseconds.")],
    ),
    request(
        "system:restart",
        "Start the daemon anew in the same process, from the file that it was started from: an upgrade that \
         refuses no client. Refused where that file would not start.",
        &[("grace_ms", "integer", false, "Time that requests in flight may take, in milliseconds.")],
    ),
    request(
        "system:freeze",
        "Stop everything but reading and administration, or let it go on; over restarts of the daemon too. What \
         is under way ends, what is accepted is kept and waits.",
        &[
            ("on", "boolean", true, "Whether to freeze or to go on."),
            ("reason", "string", false, "Why, one sentence; whoever is stopped by it hears it."),
        ],
    ),
    request("plugin:list", "List all plugins.", &[]),
    request("plugin:inspect", "Tell everything about one plugin, and how it died.", NAME),
    request(
        "plugin:probe",
        "Start another child with the plugin's sandbox, try from inside what is denied there, and tell.",
        NAME,
    ),
    request(
        "plugin:load",
        "Load a plugin library, or a plugin of the manifest that was unloaded.",
        &[
            ("library", "string", true, "Absolute path of a library, or a name of the manifest."),
            ("placement", "string", false, "`in-process` or `child`; `child` without it."),
        ],
    ),
    request("plugin:unload", "Stop a plugin until it is loaded again.", NAME),
    request("plugin:reload", "Start a plugin anew, with its library and configuration read again.", NAME),
    request("plugin:restart", "Start a plugin anew, also one that is held.", NAME),
    request(
        "plugin:quarantine",
        "Stop a plugin at once, and keep it from running until it is released, over restarts of the daemon too.",
        &[
            ("name", "string", true, "Name of the plugin."),
            ("reason", "string", false, "Why, one sentence; whoever asks the plugin for something hears it."),
        ],
    ),
    request(
        "plugin:instance:start",
        "Start an instance of the plugin that asks, in a child of its own, or wait for one that is there; it ends \
         with the plugin.",
        &[
            ("key", "string", true, "Which one: its name is that of the plugin, `@` and this."),
            ("config", "object", false, "Takes the place of keys of the plugin's configuration."),
        ],
    ),
    request(
        "plugin:instance:stop",
        "Stop an instance of the plugin that asks, and forget it.",
        &[("key", "string", true, "Which one.")],
    ),
    request("plugin:instance:list", "List the instances of the plugin that asks.", &[]),
    request("plugin:release", "Let a plugin run again that is quarantined or held.", NAME),
    request("config:show", "Show the configuration in force and where each value comes from.", &[]),
    request("config:reload", "Read the configuration and the tokens again.", &[]),
    request(
        "token:create",
        "Make a token, which gives whoever shows it what the asker holds or less, for no longer. It is shown \
         this once.",
        &[
            ("name", "string", true, "What it is for, for people."),
            ("can", "array", true, "Its capabilities: `completion.*`, `*.read`."),
            ("tenant", "string", false, "Whose data it sees; without it, the asker's."),
            ("expires_in_ms", "integer", false, "How long it is valid; without it, until it is revoked."),
        ],
    ),
    request("token:list", "List the tokens that the asker has made, and those made with them.", &[]),
    request(
        "token:revoke",
        "Take a token back, and all that were made with it, also on connections that are open.",
        &[("id", "string", true, "Its id, as `token:list` has it.")],
    ),
    fact("system:started", "The daemon accepts clients.", &[("boot", "string", true, "Names this start.")]),
    fact("system:stopping", "The daemon takes no new requests.", &[("reason", "string", true, "Why.")]),
    fact(
        "system:frozen",
        "Only reading and administration go on.",
        &[("reason", "string", true, "Why, one sentence.")],
    ),
    fact("system:thawed", "Everything goes on again.", &[]),
    fact("plugin:started", "A plugin runs; it is not ready yet.", BORN),
    fact("plugin:ready", "A plugin answers.", BORN),
    fact("plugin:died", "A plugin is gone without having been told to.", GONE),
    fact("plugin:held", "A plugin failed too often and is not restarted any more.", GONE),
    fact("plugin:stopped", "A plugin was stopped.", NAME),
    fact("plugin:quarantined", "A plugin is kept from running, by an operator's order.", GONE),
    fact("plugin:released", "A plugin is quarantined no longer.", NAME),
    fact("plugin:degraded", "A plugin says that it cannot do all that it is there for.", GONE),
    fact("plugin:recovered", "A plugin says that it can do all that it is there for again.", NAME),
];

pub(super) fn requests() -> impl Iterator<Item = &'static Spec> {
    ALL.iter().filter(|spec| !spec.fact)
}

/// The JSON schema of a spec's fields.
pub(super) fn schema(spec: &Spec) -> Value {
    let properties: serde_json::Map<String, Value> = spec
        .fields
        .iter()
        .map(|(name, kind, _, about)| ((*name).to_owned(), json!({"type": kind, "description": about})))
        .collect();
    let required: Vec<&str> =
        spec.fields.iter().filter(|(_, _, required, _)| *required).map(|(name, ..)| *name).collect();
    json!({
        "type": "object",
        "description": spec.about,
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}
