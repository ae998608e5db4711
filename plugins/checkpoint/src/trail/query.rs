//! Reading the trail: a page of the records that fit.

use ksi_sdk::{
    prelude::{Code, Refusal},
    protocol::{
        Pattern,
        audit::{Entry, Page, Query, Record},
    },
};

use super::Trail;
use crate::journal::JournalError;

/// Records on a page, where nothing else is asked and at most.
const LIMIT: u32 = 100;
const LIMIT_MAX: u32 = 1_000;
/// Records that are looked at for one page; then it ends where it is.
const LOOKED_AT_MAX: usize = 100_000;

impl Trail {
    /// A page of the trail, oldest first.
    ///
    /// # Errors
    ///
    /// `invalid_payload` for a pattern or limit that is none, `unavailable`
    /// where the trail cannot be read.
    pub fn query(&self, query: &Query, now_ms: u64) -> Result<Page, Refusal> {
        let limit = query.limit.unwrap_or(LIMIT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Refusal::invalid_payload(format!(
                "`limit` is {limit}, and must be from 1 to {LIMIT_MAX}"
            )));
        }
        let pattern = query.event.as_deref().map(Pattern::parse).transpose();
        let pattern = pattern.map_err(|error| Refusal::invalid_payload(format!("`event`: {error}")))?;
        let archive = self.view(now_ms)?.archive;
        let from =
            query.after_seq.map_or(0, |after| after.saturating_add(1)).max(begin(query, &archive.stat()));
        let mut page = Page::default();
        let mut last = 0;
        for (looked_at, read) in archive.read(from).enumerate() {
            let (seq, payload) = match read {
                Ok(read) => read,
                // What is damaged cannot be shown; `audit:verify` tells of it.
                Err(JournalError::Damaged(_)) => continue,
                Err(error) => {
                    return Err(Refusal::new(Code::Unavailable, format!("the audit trail: {error}")));
                }
            };
            if page.records.len() == limit as usize || looked_at == LOOKED_AT_MAX {
                page.next = Some(last);
                break;
            }
            last = seq;
            let Ok(record) = serde_json::from_slice::<Record>(&payload) else { continue };
            if query.until_ms.is_some_and(|until| record.at_ms() > until) {
                continue;
            }
            if fits(query, pattern.as_ref(), &record) {
                page.records.push(Entry { seq, record });
            }
        }
        Ok(page)
    }
}

/// The first record that can be young enough. Files say when they were begun,
/// and records are at most a moment older than their place.
fn begin(query: &Query, stat: &crate::journal::Stat) -> u64 {
    let Some(since_ms) = query.since_ms else { return 0 };
    let young = stat.segments.iter().skip(1).position(|next| next.begun_ms >= since_ms);
    let at = young.unwrap_or(stat.segments.len().saturating_sub(1));
    stat.segments.get(at).map_or(0, |segment| segment.first)
}

fn fits(query: &Query, pattern: Option<&Pattern>, record: &Record) -> bool {
    if query.since_ms.is_some_and(|since| record.at_ms() < since) {
        return false;
    }
    let is_of = |principal: &str, event: &str, allowed: bool| {
        query.principal.as_deref().is_none_or(|asked| asked == principal)
            && pattern.is_none_or(|pattern| pattern.matches(event))
            && query.allowed.is_none_or(|asked| asked == allowed)
    };
    match record {
        Record::Decision(one) => is_of(&one.principal, &one.event, one.allowed),
        Record::Repeated(many) => is_of(&many.principal, &many.event, many.denied == 0),
        // What is lost or let go is of interest to whoever asks for everything.
        Record::Lost(_) | Record::Retired(_) => {
            query.principal.is_none() && pattern.is_none() && query.allowed.is_none()
        }
    }
}
