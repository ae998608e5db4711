//! Proving the trail: the whole chain from the disk, and every head.

use ksi_sdk::{
    prelude::{Code, Refusal},
    protocol::audit::{Problem, Record, Verified},
    trust::{Digest, Key, audit::Head},
};

use super::{Trail, View};
use crate::journal::{JournalError, VerifyReport};

/// Problems that are told; there may be many more.
const PROBLEMS_MAX: usize = 100;

impl Trail {
    /// Walks along the chain and checks the heads against it.
    ///
    /// # Errors
    ///
    /// `unavailable` where the disk cannot be read. What is wrong with the trail
    /// is part of the report.
    pub fn verify(&self, now_ms: u64) -> Result<Verified, Refusal> {
        let view = self.view(now_ms)?;
        let unreadable =
            |error: JournalError| Refusal::new(Code::Unavailable, format!("the audit trail: {error}"));
        let report = view.archive.verify(&mut || {}).map_err(unreadable)?;
        let mut problems: Vec<Problem> = report
            .damage
            .iter()
            .map(|damage| Problem { seq: Some(damage.from), what: damage.to_string() })
            .collect();
        let key: Key = view.key.parse().expect("minisign's own key is one");
        let (heads, signed_seq) = check_heads(&view, &report, &key, &mut problems).map_err(unreadable)?;
        problems.sort_by_key(|problem| problem.seq);
        problems.truncate(PROBLEMS_MAX);
        Ok(Verified {
            ok: problems.is_empty(),
            records: report.records,
            first_seq: report.first,
            last_seq: report.last,
            heads,
            signed_seq,
            chain: report.head,
            public_key: view.key,
            problems,
        })
    }
}

/// Checks each head's signature, and that the chain is what it says; how many
/// heads hold, and how far they reach.
fn check_heads(
    view: &View,
    report: &VerifyReport,
    key: &Key,
    problems: &mut Vec<Problem>,
) -> Result<(u64, u64), JournalError> {
    let mut heads: Vec<&Head> = Vec::new();
    for head in &view.heads {
        match head {
            Err(what) => problems.push(Problem { seq: None, what: what.clone() }),
            Ok(head) => match head.verify(key) {
                Ok(()) => heads.push(head),
                Err(error) => {
                    let what = format!("the head of record {} is not to be believed: {error}", head.seq);
                    problems.push(Problem { seq: Some(head.seq), what });
                }
            },
        }
    }
    heads.sort_by_key(|head| head.seq);
    let (mut holds, mut signed_seq, mut let_go) = (0, 0, 0);
    let mut left = heads.into_iter().peekable();
    // Those of records that are no more have nothing to be held against.
    while left.next_if(|head| head.seq < report.first).is_some() {}
    let mut records = view.archive.read(0);
    while let Some(read) = records.next() {
        let (seq, payload) = match read {
            Ok(read) => read,
            Err(JournalError::Damaged(_)) => continue,
            Err(error) => return Err(error),
        };
        if let Ok(Record::Retired(retired)) = serde_json::from_slice(&payload) {
            let_go = let_go.max(retired.before_seq);
        }
        while let Some(head) = left.next_if(|head| head.seq <= seq) {
            let chain = Digest::from(records.chain_after());
            if head.seq == seq && head.chain == chain {
                holds += 1;
                signed_seq = seq;
            } else {
                let what = format!(
                    "up to here something was changed: the signed head of record {} says {}, the chain is {chain}",
                    head.seq, head.chain
                );
                problems.push(Problem { seq: Some(head.seq), what });
            }
        }
    }
    for head in left {
        let what = format!("records are missing at the end: one is signed with position {}", head.seq);
        problems.push(Problem { seq: Some(report.last + 1), what });
    }
    if report.first > let_go.max(1) {
        let what =
            format!("records before {} are missing, and none says that they were let go", report.first);
        problems.push(Problem { seq: Some(report.first), what });
    }
    Ok((holds, signed_seq))
}
