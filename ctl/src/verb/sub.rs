//! `sub`: events as they happen, or as the journal has them.

use ksi_client::{Client, FollowOptions, Follower, Item, Subscription};
use ksi_protocol::{
    Pattern,
    frame::{Event, Gap},
    json::timestamp,
    system::{Discovery, EventInfo, EventKind},
};
use serde_json::{Value, json};

use crate::{
    args,
    error::{Failure, Result},
    exit::Exit,
    invocation::{Invocation, readable},
    output::{Format, Report},
};

/// `ksi sub`.
///
/// # Errors
///
/// Fails where the pattern is none or the daemon goes away; ends with 7 when
/// `--timeout` is over before `-n` events came.
pub(super) async fn sub(at: &Invocation, options: &args::Sub) -> Result<()> {
    let pattern = Pattern::parse(&options.pattern).map_err(|error| {
        Failure::usage(error.to_string()).hint("for example 'completion:*', 'state:**' or '*'")
    })?;
    let listening = listen(at, &pattern, options);
    match at.timeout {
        None => listening.await,
        Some(time) => tokio::time::timeout(time, listening)
            .await
            .unwrap_or_else(|_| Err(Failure::timeout(format!("{time:?} are over")))),
    }
}

/// Where the events come from.
enum Source {
    /// As they happen; ends with the daemon.
    Live(Box<Subscription>),
    /// From the journal; goes on when the daemon comes back.
    Durable(Box<Follower>),
}

impl Source {
    async fn next(&mut self) -> Result<Item> {
        let (item, error) = match self {
            Self::Live(subscription) => (subscription.next().await, None),
            Self::Durable(follower) => {
                let item = follower.next().await;
                (item, follower.error())
            }
        };
        item.ok_or_else(|| match error {
            Some(error) => error.into(),
            None => Failure::new(Exit::NotRunning, "not_running", "the daemon has stopped")
                .hint("start it: ksi up"),
        })
    }

    /// All that was printed is dealt with.
    async fn finish(self) -> Result<()> {
        match self {
            Self::Live(_) => Ok(()),
            Self::Durable(mut follower) => Ok(follower.ack().await?),
        }
    }
}

/// Whether no durable fact matches a pattern; `false` where that may not be asked.
async fn hears_nothing(at: &Invocation, client: &Client, pattern: &Pattern) -> bool {
    let all = json!({});
    let (declared, config) = tokio::join!(
        at.ask::<Discovery>(client, "system:discover", &all),
        at.value(client, "config:show", &all),
    );
    match (declared, config) {
        (Ok(declared), Ok(reply)) => !any_durable(pattern, &declared, &reply["config"]["events"]),
        _ => false,
    }
}

/// Whether a pattern matches a durable fact: one that is declared, or one that
/// only the configuration names, which clients tell.
fn any_durable(pattern: &Pattern, declared: &Discovery, configured: &Value) -> bool {
    let fact = |info: &EventInfo| info.kind == EventKind::Fact && info.delivery == "durable";
    let is_declared = |name: &str| declared.events.iter().any(|info| info.event == name);
    declared.events.iter().any(|info| fact(info) && pattern.matches(&info.event))
        || configured.as_object().is_some_and(|events| {
            events.iter().any(|(name, policy)| {
                policy["delivery"] == "durable" && pattern.matches(name) && !is_declared(name)
            })
        })
}

async fn listen(at: &Invocation, pattern: &Pattern, options: &args::Sub) -> Result<()> {
    if !options.durable {
        let client = at.connect().await?;
        let subscription = client.subscribe(pattern.as_str(), options.class.into()).await?;
        return hear(at, Source::Live(Box::new(subscription)), pattern, options).await;
    }
    let client = at.connect_lasting().await?;
    if hears_nothing(at, &client, pattern).await {
        at.out.note(&format!(
            "no fact that matches {pattern} is durable as things are, so the journal has none; \
             without --durable they come as they are told"
        ));
    }
    let mut follow = FollowOptions::new();
    if let Some(seq) = options.since {
        follow = follow.since(seq);
    }
    if let Some(name) = &options.consumer {
        follow = follow.consumer(name);
    }
    let follower = client.follow(pattern.as_str(), follow).await?;
    at.outliving(&client, hear(at, Source::Durable(Box::new(follower)), pattern, options)).await
}

async fn hear(at: &Invocation, mut source: Source, pattern: &Pattern, options: &args::Sub) -> Result<()> {
    at.out.note(&format!("listening to {pattern}; Ctrl-C ends"));
    let mut left = options.count.unwrap_or(u64::MAX);
    while left > 0 {
        match source.next().await? {
            Item::Event(event) => {
                print(at, &event)?;
                left -= 1;
            }
            Item::Gap(gap) => print_gap(at, &gap, options.durable)?,
            // Said already.
            Item::Reconnected { .. } => {}
        }
    }
    source.finish().await
}

/// An event as programs read it; the same keys as on the socket.
fn data(event: &Event) -> Value {
    let Event { event: name, data, origin, seq, at_ms, correlation_id, .. } = event;
    let data = readable(data).unwrap_or_else(|failure| json!({"undecodable": failure.message}));
    json!({
        "event": name,
        "data": data,
        "seq": seq,
        "origin": origin,
        "correlation_id": correlation_id,
        "timestamp": timestamp(*at_ms),
    })
}

fn print(at: &Invocation, event: &Event) -> Result<()> {
    let data = data(event);
    // Only the time of day: a person watches now.
    let time = timestamp(event.at_ms);
    let time = time.get(11..23).unwrap_or(&time);
    let wide = if at.out.format == Format::Wide { format!(" {}", event.origin) } else { String::new() };
    let text = format!("{time} {}{wide} {}", event.event, data["data"]);
    at.out.item(&Report::text(&data, text)?.named(vec![event.event.to_string()]))
}

fn print_gap(at: &Invocation, gap: &Gap, durable: bool) -> Result<()> {
    let Gap { missed, from_seq, to_seq, .. } = gap;
    at.out.warn(&if durable {
        format!("the journal no longer keeps what was told from {from_seq} to {to_seq}")
    } else {
        format!("{missed} events lost ({from_seq} to {to_seq}): ksi reads too slowly")
    });
    if at.out.machine() {
        let gap = json!({"gap": {"missed": missed, "from_seq": from_seq, "to_seq": to_seq}});
        at.out.item(&Report::data(gap))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ksi_protocol::EventName;

    #[test]
    fn only_facts_that_are_kept_come_from_the_journal() {
        let event = |name: &str, kind: &str, delivery: &str| {
            json!({"event": name, "owner": "x", "kind": kind, "about": "", "available": true,
                   "delivery": delivery})
        };
        let declared: Discovery = serde_json::from_value(json!({"events": [
            event("work:done", "fact", "live"),
            event("completion:async", "request", "durable"),
            event("completion:result", "fact", "durable"),
        ]}))
        .unwrap();
        let configured = json!({"completion:async": {"delivery": "durable"},
                                "test:born": {"delivery": "durable"}, "test:seen": {"delivery": "live"}});
        let heard = |pattern: &str| any_durable(&Pattern::parse(pattern).unwrap(), &declared, &configured);
        for pattern in ["*", "completion:*", "completion:result", "test:*", "test:born"] {
            assert!(heard(pattern), "{pattern}");
        }
        for pattern in ["work:*", "nope:*", "completion:async", "test:seen"] {
            assert!(!heard(pattern), "{pattern}");
        }
    }

    #[test]
    fn an_event_has_the_keys_of_the_socket() {
        let event = Event {
            sub: 1,
            seq: 7,
            event: EventName::parse("a:b").unwrap(),
            data: ksi_protocol::encode(&json!({"x": 1})).unwrap(),
            origin: "daemon".into(),
            at_ms: 0,
            correlation_id: None,
            tenant: None,
            chain: None,
        };
        assert_eq!(
            data(&event),
            json!({"event": "a:b", "data": {"x": 1}, "seq": 7, "origin": "daemon",
                   "correlation_id": null, "timestamp": "1970-01-01T00:00:00.000Z"})
        );
    }
}
