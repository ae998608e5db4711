//! Time since the start, in milliseconds, that never goes back: where the
//! machine's clock is set back, it goes on from where it is.

use std::cell::Cell;

use ksi_sdk::Ctx;

/// The clock of the plugin.
pub(crate) struct Clock {
    ctx: Ctx,
    /// What the machine's clock said last.
    seen_ms: Cell<u64>,
    now_ms: Cell<u64>,
}

impl Clock {
    pub(crate) fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.clone(), seen_ms: Cell::new(ctx.now_ms()), now_ms: Cell::new(0) }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        let wall_ms = self.ctx.now_ms();
        let passed_ms = wall_ms.saturating_sub(self.seen_ms.replace(wall_ms));
        self.now_ms.set(self.now_ms.get() + passed_ms);
        self.now_ms.get()
    }
}
