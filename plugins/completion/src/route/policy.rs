//! Whether a model may be asked: by the configuration, by its tenant's part of
//! it, and by the request itself.

use super::View;
use crate::{order::Order, provider::Target};

/// Why a model may not be asked for an order.
pub(super) fn forbids(order: &Order, target: &Target, view: &View<'_>) -> Option<String> {
    let provider = view.providers.of(target);
    if order.local_only && !provider.local {
        return Some(format!("the request stays on this machine, and {} does not", provider.name));
    }
    let name = view.providers.name(target).to_string();
    let policy = &view.config.policy;
    let denied = |deny: &[String]| deny.iter().any(|pattern| matches(pattern, &name));
    let missing =
        |allow: &[String]| !allow.is_empty() && !allow.iter().any(|pattern| matches(pattern, &name));
    if denied(&policy.deny) || missing(&policy.allow) {
        return Some("the configuration does not allow it (`policy`)".into());
    }
    let tenant = policy.tenants.get(view.tenant?)?;
    (denied(&tenant.deny) || missing(&tenant.allow))
        .then(|| "the configuration does not allow it to this tenant (`policy.tenants`)".into())
}

/// Whether a model's name is the pattern, or begins as it does before its `*`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_name_or_its_beginning() {
        for (pattern, name, fits) in [
            ("*", "openai/x", true),
            ("openai/*", "openai/x", true),
            ("openai/*", "openai2/x", false),
            ("openai/x", "openai/x", true),
            ("openai/x", "openai/xy", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }
}
