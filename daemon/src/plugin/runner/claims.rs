//! What a plugin may say of itself: whether its descriptor claims only what the
//! manifest makes its own.
//!
//! A child writes its descriptor itself, in a process that is its own, so nothing of
//! it is believed before it was looked at here.

use ksi_identity::Rights;
use ksi_protocol::{Code, Descriptor, EventName, Refusal};

use crate::config::Plugin;

/// Most things that are named of those which a plugin asks for beyond its grants.
const NOT_GRANTED_MAX: usize = 16;

/// Refuses a descriptor that claims more than is the plugin's own. `outer` tells by
/// which name others know an event of it.
///
/// # Errors
///
/// Says what it claims, and what can be done.
pub(super) fn check(
    plugin: &Plugin,
    descriptor: &Descriptor,
    outer: impl Fn(EventName) -> EventName,
) -> Result<(), Refusal> {
    let mut requests = descriptor.requests.iter().map(|spec| outer(spec.event.clone()));
    match requests.find(|name| !plugin.owns(name.namespace())) {
        Some(name) => Err(not_its_own(plugin, descriptor, &name)),
        None => agrees(plugin, descriptor),
    }
}

fn not_its_own(plugin: &Plugin, descriptor: &Descriptor, event: &EventName) -> Refusal {
    let (name, own, called) = (&plugin.name, plugin.own_namespace(), &descriptor.name);
    let message = format!("plugin {name} wants to answer `{event}`, and it answers only what is `{own}:*`");
    // Under another name than its own, a library needs to be told its namespace.
    let hint = if plugin.namespace.is_none() && called != name && event.namespace() == called {
        format!("its library calls itself {called}; plugins.{name}.namespace = \"{name}\" renames its events")
    } else {
        format!("its library must name its requests `{called}:...`")
    };
    Refusal::new(Code::Denied, message).hint(hint)
}

/// Whether manifest and library say the same of who keeps work.
fn agrees(plugin: &Plugin, descriptor: &Descriptor) -> Result<(), Refusal> {
    let name = &plugin.name;
    let message = match (descriptor.keeps_work, plugin.keeps_work) {
        (true, false) => {
            format!("the library of plugin {name} keeps work, and the manifest says nothing of it")
        }
        (false, true) => format!("plugin {name} is to keep work, and its library does not"),
        _ => return Ok(()),
    };
    let hint = format!("plugins.{name}.keeps_work and the library must agree");
    Err(Refusal::new(Code::Conflict, message).hint(hint))
}

/// What a plugin asks to hear or to have a word on beyond what it is granted; of
/// many the first, and how many more.
pub(super) fn not_granted(rights: &Rights, descriptor: &Descriptor) -> Vec<String> {
    let intercepts = descriptor.intercepts.iter().map(|spec| &spec.pattern);
    let listens = descriptor.listens.iter().map(|pattern| ("listens", pattern, &rights.listens));
    let asked = listens.chain(intercepts.map(|one| ("intercepts", one, &rights.intercepts)));
    let mut lacking = asked.filter(|(_, pattern, granted)| {
        !granted.iter().any(|granted| granted == *pattern || granted.matches(pattern.as_str()))
    });
    let named = lacking.by_ref().take(NOT_GRANTED_MAX);
    let mut named: Vec<_> = named.map(|(right, pattern, _)| format!("{right} {pattern}")).collect();
    let more = lacking.count();
    if more > 0 {
        named.push(format!("{more} more"));
    }
    named
}

#[cfg(test)]
mod tests {
    use ksi_protocol::{Pattern, descriptor::RequestSpec, system::Placement};
    use serde_json::{Value, json};

    use super::*;
    use crate::plugin::fleet::unlisted;

    fn plugin(name: &str, namespace: Option<&str>, keeps_work: bool) -> Plugin {
        let plugin = unlisted(name, "libx.so".into(), Placement::Child).unwrap();
        Plugin { namespace: namespace.map(Into::into), keeps_work, ..plugin }
    }

    fn descriptor(name: &str, keeps_work: bool, requests: &[&str]) -> Descriptor {
        let spec = |event: &&str| RequestSpec {
            event: EventName::parse(event).unwrap(),
            about: String::new(),
            request: Value::Null,
            reply: Value::Null,
            chunk: None,
        };
        let requests: Vec<_> = requests.iter().map(spec).collect();
        let fixed = json!({"name": name, "version": "1", "about": "", "keeps_work": keeps_work});
        Descriptor { requests, ..serde_json::from_value(fixed).unwrap() }
    }

    #[test]
    fn a_plugin_answers_nothing_beyond_its_own_namespace() {
        let echo = plugin("echo", None, false);
        check(&echo, &descriptor("echo", false, &["echo:say"]), |name| name).unwrap();
        for foreign in ["state:get", "system:bye", "work:get", "echo_child:say", "echo@one:say"] {
            let refusal =
                check(&echo, &descriptor("echo", false, &["echo:say", foreign]), |name| name).unwrap_err();
            assert!(refusal.message.contains(foreign), "{refusal}");
        }
        let system = plugin("system", None, false);
        check(&system, &descriptor("system", false, &["system:bye"]), |name| name).unwrap_err();
    }

    #[test]
    fn under_an_alias_that_is_the_namespace_and_the_declared_one_is_not() {
        let renamed = |name: EventName| match name.as_str() {
            "echo:say" => EventName::parse("second:say").unwrap(),
            _ => name,
        };
        let second = plugin("second", Some("second"), false);
        check(&second, &descriptor("echo", false, &["echo:say"]), renamed).unwrap();
        check(&second, &descriptor("echo", false, &["echo:say", "state:get"]), renamed).unwrap_err();
        let unnamed = plugin("second", None, false);
        let refusal = check(&unnamed, &descriptor("echo", false, &["echo:say"]), |name| name).unwrap_err();
        assert!(refusal.hint.contains("plugins.second.namespace = \"second\""), "{refusal}");
    }

    #[test]
    fn of_much_that_is_not_granted_the_first_is_named_and_the_rest_is_counted() {
        let pattern = |n: usize| Pattern::parse(&format!("test{n}:*")).unwrap();
        let rights = Rights { listens: vec![pattern(0)], ..Rights::default() };
        let asks = |n: usize| Descriptor {
            listens: (0..=n).map(pattern).collect(),
            ..descriptor("echo", false, &[])
        };
        assert!(not_granted(&rights, &asks(0)).is_empty());
        assert_eq!(not_granted(&rights, &asks(1)), ["listens test1:*"]);
        assert_eq!(not_granted(&rights, &asks(NOT_GRANTED_MAX)).len(), NOT_GRANTED_MAX);
        let many = not_granted(&rights, &asks(NOT_GRANTED_MAX + 5));
        assert_eq!((many.len(), many.last().unwrap().as_str()), (NOT_GRANTED_MAX + 1, "5 more"));
    }

    #[test]
    fn who_keeps_work_answers_for_it_where_manifest_and_library_say_so() {
        let all = ["checkpoint:follow", "work:get", "space:get", "audit:append", "own:thing"];
        let keeper = plugin("own", None, true);
        check(&keeper, &descriptor("own", true, &all), |name| name).unwrap();
        check(&keeper, &descriptor("own", true, &["state:get"]), |name| name).unwrap_err();
        check(&keeper, &descriptor("own", false, &[]), |name| name).unwrap_err();
        check(&plugin("own", None, false), &descriptor("own", true, &[]), |name| name).unwrap_err();
    }
}
