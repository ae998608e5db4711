//! Flow control: chunks that wait until a client allows more.
//!
//! Only chunks cost credit. The end of a stream waits behind its chunks; a
//! refusal does not: who has given up, or is too late, is not to pay for
//! chunks first, and what waited is dropped.

use std::collections::{HashMap, VecDeque};

use ksi_kernel::{Answer, Delivery};
use ksi_protocol::{Code, Refusal, frame::Id};

/// The streams of one client that have a limit.
#[derive(Debug, Default)]
pub(super) struct Credits {
    streams: HashMap<Id, Stream>,
    held_bytes: usize,
}

#[derive(Debug)]
struct Stream {
    left: u32,
    held: VecDeque<Delivery>,
}

impl Credits {
    /// A request begins.
    ///
    /// # Errors
    ///
    /// `conflict` where an earlier request under its id has not ended for the
    /// client.
    pub(super) fn begin(&mut self, id: Id, credit: Option<u32>) -> Result<(), Refusal> {
        if self.streams.contains_key(&id) {
            let message = format!("a request with the id {id} is in flight already");
            return Err(Refusal::new(Code::Conflict, message).hint("use another id for every request"));
        }
        if let Some(left) = credit {
            self.streams.insert(id, Stream { left, held: VecDeque::new() });
        }
        Ok(())
    }

    /// Bytes that wait.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Keeps what there is no credit for, and gives back what may go.
    pub(super) fn limit(&mut self, delivery: Delivery) -> Option<Delivery> {
        let Delivery::Answer { id, answer, .. } = &delivery else { return None };
        let id = *id;
        let Some(stream) = self.streams.get_mut(&id) else { return Some(delivery) };
        if matches!(answer, Answer::Refusal(_)) {
            self.held_bytes -= stream.held.iter().map(weight).sum::<usize>();
            self.streams.remove(&id);
            return Some(delivery);
        }
        let last = answer.is_last();
        if !stream.held.is_empty() || (stream.left == 0 && !last) {
            self.held_bytes += weight(&delivery);
            stream.held.push_back(delivery);
            return None;
        }
        if last {
            self.streams.remove(&id);
        } else {
            stream.left -= 1;
        }
        Some(delivery)
    }

    /// Allows `n` more chunks of a stream, and gives those that waited.
    pub(super) fn add(&mut self, id: Id, n: u32) -> Vec<Delivery> {
        let mut free = Vec::new();
        let Some(stream) = self.streams.get_mut(&id) else { return free };
        stream.left = stream.left.saturating_add(n);
        let mut ended = false;
        while let Some(next) = stream.held.front() {
            if is_chunk(next) {
                if stream.left == 0 {
                    break;
                }
                stream.left -= 1;
            }
            ended = is_last(next);
            free.extend(stream.held.pop_front());
        }
        if ended {
            self.streams.remove(&id);
        }
        self.held_bytes -= free.iter().map(weight).sum::<usize>();
        free
    }

    /// The client gives up a stream whose end waits for credit, so that nobody
    /// else knows of it any more: what waits is dropped, and the end becomes a
    /// refusal.
    pub(super) fn give_up(&mut self, id: Id) -> Option<Delivery> {
        self.streams.get(&id)?.held.back().filter(|last| is_last(last))?;
        let mut stream = self.streams.remove(&id)?;
        self.held_bytes -= stream.held.iter().map(weight).sum::<usize>();
        let mut last = stream.held.pop_back()?;
        if let Delivery::Answer { answer, .. } = &mut last {
            *answer = Refusal::new(Code::Cancelled, "the request was cancelled").into();
        }
        Some(last)
    }

    /// Drops everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

fn is_chunk(delivery: &Delivery) -> bool {
    matches!(delivery, Delivery::Answer { answer: Answer::Chunk(_), .. })
}

fn is_last(delivery: &Delivery) -> bool {
    matches!(delivery, Delivery::Answer { answer, .. } if answer.is_last())
}

/// Bytes that an answer is charged for.
pub(super) fn weight(delivery: &Delivery) -> usize {
    128 + match delivery {
        Delivery::Answer {
            answer: Answer::Reply(data) | Answer::Chunk(data) | Answer::End(data), ..
        } => data.len(),
        _ => 0,
    }
}
