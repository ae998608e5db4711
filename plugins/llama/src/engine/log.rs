//! What llama.cpp logs: kept in a short ring instead of on standard error.
//!
//! llama.cpp answers a failed load with a null pointer; why is only in its
//! log. The last error lines become the reason in the refusal. Lines never
//! contain prompts, since llama.cpp does not log those.

#![expect(unsafe_code, reason = "the log callback is called from C with a C string")]

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_void};
use std::sync::{Mutex, PoisonError};

use llama_cpp_sys_2 as sys;

/// Lines that are kept. A load writes about a hundred, most of them facts
/// about the model that nobody asks for.
const LINES_MAX: usize = 200;
/// Longest line that is kept, in bytes.
const LINE_BYTES_MAX: usize = 500;

static LINES: Mutex<VecDeque<(u32, String)>> = Mutex::new(VecDeque::new());

/// Sends the log of llama.cpp here, for the whole process.
pub(super) fn capture() {
    // SAFETY: the callback is a function of this library, which is never
    // unloaded, and takes no user data.
    unsafe { sys::llama_log_set(Some(receive), std::ptr::null_mut()) };
}

unsafe extern "C" fn receive(level: sys::ggml_log_level, text: *const c_char, _user: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives through the
    // call, and it is not null.
    let text = unsafe { CStr::from_ptr(text) };
    push(level, &text.to_string_lossy());
}

/// Adds text to the ring. A text may be a part of a line.
fn push(level: u32, text: &str) {
    let text = text.trim_end();
    if text.is_empty() {
        return;
    }
    let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    if level == sys::GGML_LOG_LEVEL_CONT
        && let Some((_, last)) = lines.back_mut()
    {
        if last.len() + text.len() <= LINE_BYTES_MAX {
            last.push_str(text);
        }
        return;
    }
    if lines.len() == LINES_MAX {
        lines.pop_front();
    }
    let end = text.floor_char_boundary(LINE_BYTES_MAX);
    lines.push_back((level, text[..end].to_owned()));
}

/// Forgets all lines, before something whose lines matter.
pub(super) fn clear() {
    LINES.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// The last error lines, joined; `None` where there was no error.
pub(super) fn last_errors() -> Option<String> {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    let errors: Vec<&str> = lines
        .iter()
        .filter(|(level, _)| *level == sys::GGML_LOG_LEVEL_ERROR)
        .map(|(_, line)| strip_function(line))
        .collect();
    let last = errors.len().saturating_sub(3);
    (!errors.is_empty()).then(|| errors[last..].join("; "))
}

/// All warnings and errors since the last `clear`.
pub(super) fn warnings() -> Vec<String> {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    let grave = |level: u32| level == sys::GGML_LOG_LEVEL_WARN || level == sys::GGML_LOG_LEVEL_ERROR;
    lines.iter().filter(|(level, _)| grave(*level)).map(|(_, line)| line.clone()).collect()
}

/// A line without the name of the C++ function that wrote it.
fn strip_function(line: &str) -> &str {
    match line.split_once(": ") {
        Some((function, rest)) if !function.contains(' ') && !rest.is_empty() => rest,
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_function_is_not_part_of_the_reason() {
        assert_eq!(strip_function("llama_model_load: error loading model: x"), "error loading model: x");
        assert_eq!(strip_function("a plain line"), "a plain line");
        assert_eq!(strip_function("two words: rest"), "two words: rest");
    }
}
