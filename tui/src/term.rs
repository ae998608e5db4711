//! The terminal: taken when the monitor starts, given back however it ends.
//!
//! A panic restores it first and prints its message after (the hook that
//! [`ratatui::try_init`] sets); a return, an error and a signal drop the
//! [`Screen`], which does the same.

use std::io;

use ratatui::DefaultTerminal;

use crate::{state::State, view};

/// The terminal in raw mode, on its alternate screen.
#[derive(Debug)]
pub(crate) struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    ///
    /// There is none, or it does not do as told; it is then as it was before.
    pub(crate) fn open() -> io::Result<Self> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                // Part of it may have been done. That the way back fails too
                // adds nothing to the first error.
                let _ = ratatui::try_restore();
                Err(error)
            }
        }
    }

    /// Rows of the terminal.
    pub(crate) fn rows(&self) -> u16 {
        self.terminal.size().map_or(24, |size| size.height)
    }

    /// Shows the state.
    ///
    /// # Errors
    ///
    /// The terminal is gone.
    pub(crate) fn draw(&mut self, state: &State) -> io::Result<()> {
        self.terminal.draw(|frame| view::draw(state, frame)).map(|_| ())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone (hang-up) cannot be restored, and nobody
        // would see it.
        let _ = self.terminal.show_cursor();
        let _ = ratatui::try_restore();
    }
}
