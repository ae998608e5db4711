//! How secrets are named: rules that the daemon, which hands them out, and
//! `ksi`, which keeps them, agree on. No secret comes near this module.

/// What begins a handle: `secret:NAME` in a plugin's configuration stands for
/// the secret of that name.
pub const HANDLE: &str = "secret:";

/// Shortest secret, bytes. A shorter one could not be kept out of the log
/// without spoiling it.
pub const BYTES_MIN: usize = 8;

/// Longest secret, bytes.
pub const BYTES_MAX: usize = 16 * 1024;

/// Whether a text can name a secret: 1 to 64 lower-case letters, digits, `_`
/// and `-`.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

/// The name in a handle; `None` where the text is none.
#[must_use]
pub fn handle(text: &str) -> Option<&str> {
    text.strip_prefix(HANDLE).filter(|name| is_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_the_prefix_and_a_name_and_nothing_else() {
        assert_eq!(handle("secret:open-ai_2"), Some("open-ai_2"));
        for text in
            ["secret:", "secret: x", "secret:A", "Secret:a", "a secret:a", "secret:a b", "secret:../a"]
        {
            assert_eq!(handle(text), None, "{text}");
        }
        assert_eq!(handle(&format!("secret:{}", "a".repeat(65))), None);
    }
}
