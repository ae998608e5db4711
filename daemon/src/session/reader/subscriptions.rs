//! What a client listens to: live and latest events from the kernel, durable
//! ones from the plugin that keeps work.

use std::{
    convert::Infallible,
    sync::{Arc, Weak},
    time::Duration,
};

use ksi_protocol::{
    Code, EventName, Frame, Refusal,
    frame::{self, Class, Subscribe},
    json,
};

use super::{Seat, Session};
use crate::{
    hub::{Hub, Port, Turn},
    jitter,
    session::outbox::{Outbox, follow::Ear},
};

/// First and longest pause before a durable subscription is asked for anew, so
/// that a plugin that refuses it again is not asked without end.
const RESUME_MIN: Duration = Duration::from_millis(100);
const RESUME_MAX: Duration = Duration::from_secs(5);

/// The pause after so many tries: doubled by each, less up to a half by chance.
fn resume_pause(tries: u32, chance: f64) -> Duration {
    let pause = RESUME_MAX.min(RESUME_MIN * (1 << tries.min(10)));
    pause.mul_f64(1.0 - chance / 2.0)
}

/// Sees to durable subscriptions: gives credit as events are written, and asks
/// anew for those whose plugin has gone, once it is back.
pub(super) async fn keep_up(hub: &Hub, seat: &Seat<'_>, outbox: &Arc<Outbox>) -> Infallible {
    loop {
        outbox.follow_up.notified().await;
        let mut turn = hub.turn_of(outbox);
        for (id, n) in outbox.grants() {
            outbox.add_credit(id, n);
            turn.credit(seat.port(), id, n);
        }
        turn.end();
        while outbox.has_lapsed() {
            let kept = hub.kept.notified();
            if hub.kernel.keeper().is_none() {
                kept.await;
            }
            tokio::time::sleep(resume_pause(outbox.tries(), jitter::fraction())).await;
            let mut turn = hub.turn_of(outbox);
            for ask in outbox.resumed() {
                turn.request(seat.port(), ask);
            }
            turn.touch(outbox);
            turn.end();
        }
    }
}

/// What a port may hear of durable facts.
#[derive(Debug)]
struct PortEar {
    hub: Weak<Hub>,
    /// Its handle holds what this lies in.
    port: Weak<Port>,
}

pub(super) fn ear(hub: &Arc<Hub>, port: &Arc<Port>) -> Box<dyn Ear> {
    Box::new(PortEar { hub: Arc::downgrade(hub), port: Arc::downgrade(port) })
}

impl Ear for PortEar {
    fn hears(&self, event: &EventName, tenant: Option<&str>) -> bool {
        let (Some(hub), Some(port)) = (self.hub.upgrade(), self.port.upgrade()) else { return false };
        hub.kernel.hears(&port, event, tenant, hub.now_ms())
    }
}

impl Session<'_> {
    pub(super) fn subscribe(&self, subscribe: Subscribe, turn: &mut Turn<'_>) -> Result<(), Refusal> {
        let Subscribe { id, class, .. } = subscribe;
        if class == Class::Durable {
            return self.follow(subscribe, turn);
        }
        let Subscribe { since_seq, consumer, credit, pattern, .. } = subscribe;
        if since_seq.is_some() || consumer.is_some() || credit.is_some() {
            let message = "`since_seq`, `consumer` and `credit` are for durable subscriptions";
            return Err(Refusal::new(Code::InvalidFrame, message).hint("subscribe with the class `durable`"));
        }
        self.outbox.may_subscribe(id, self.seat.port().quota.subscriptions as usize)?;
        self.outbox.account().subscribe()?;
        let subscribed = self.hub.kernel.subscribe(self.seat.port(), id, pattern, class, turn.now_ms());
        subscribed.inspect_err(|_| self.outbox.account().unsubscribe(1))?;
        let data = json::from_json(&serde_json::json!({ "subscribed": true }));
        let data = data.unwrap_or_else(|_| ksi_protocol::empty());
        self.outbox.open_sub(id, &Frame::Reply { id, data });
        Ok(())
    }

    /// Begins a durable subscription, which the plugin that keeps work serves, and
    /// confirms.
    fn follow(&self, subscribe: Subscribe, turn: &mut Turn<'_>) -> Result<(), Refusal> {
        if self.hub.kernel.keeper().is_none() {
            let message =
                format!("`{}` cannot be followed: nobody is there who keeps facts", subscribe.pattern);
            return Err(Refusal::new(Code::Unavailable, message)
                .retry_after_ms(200)
                .hint("`ksi plugin list` shows how the plugin that keeps work fares"));
        }
        self.hub.kernel.may_follow(self.seat.port(), &subscribe.pattern, turn.now_ms())?;
        self.outbox.account().may_ask(turn.now_ms())?;
        let ask = self.outbox.follow(subscribe, self.seat.port().quota.subscriptions as usize)?;
        turn.request(self.seat.port(), ask);
        Ok(())
    }

    pub(super) fn unsubscribe(&self, id: frame::Id, turn: &mut Turn<'_>) -> Result<(), Refusal> {
        if let Some(runs) = self.outbox.end_follow(id) {
            if runs {
                turn.cancel(self.seat.port(), id);
            }
            return Ok(());
        }
        self.hub.kernel.unsubscribe(self.seat.port(), id)?;
        self.outbox.remove_sub(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_its_limit_and_differs_by_chance() {
        let ms = |tries, chance| resume_pause(tries, chance).as_millis();
        assert_eq!([0, 1, 2, 5, 6, 100].map(|tries| ms(tries, 0.0)), [100, 200, 400, 3200, 5000, 5000]);
        assert_eq!([ms(0, 1.0), ms(100, 1.0)], [50, 2500]);
    }
}
