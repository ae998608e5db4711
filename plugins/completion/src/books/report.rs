//! Usage added up for whoever asks.

use std::collections::BTreeMap;

use super::keeping::Row;
use crate::payload::{By, UsageRow, Used};

/// Rows for each combination of what it is added up by, and all together.
pub(crate) fn added_up(rows: &[Row], by: &[By]) -> (Vec<UsageRow>, Used) {
    let mut groups: BTreeMap<Vec<String>, UsageRow> = BTreeMap::new();
    let mut total = Used::default();
    for row in rows {
        let has = |one| by.contains(&one);
        let part = |one, text: &Option<String>| text.clone().filter(|_| has(one));
        let shown = UsageRow {
            day: has(By::Day).then(|| date(row.day)),
            tenant: part(By::Tenant, &row.tenant),
            principal: has(By::Principal).then(|| row.principal.clone()),
            agent: part(By::Agent, &row.agent),
            model: has(By::Model).then(|| row.model.clone()),
            used: Used::default(),
        };
        let key = by.iter().map(|one| value(&shown, *one)).collect();
        add(&mut groups.entry(key).or_insert(shown).used, &row.used());
        add(&mut total, &row.used());
    }
    (groups.into_values().collect(), total)
}

fn value(row: &UsageRow, by: By) -> String {
    let value = match by {
        By::Day => &row.day,
        By::Tenant => &row.tenant,
        By::Principal => &row.principal,
        By::Agent => &row.agent,
        By::Model => &row.model,
    };
    value.clone().unwrap_or_default()
}

fn add(sum: &mut Used, more: &Used) {
    sum.calls += more.calls;
    sum.answered += more.answered;
    sum.prompt_tokens += more.prompt_tokens;
    sum.completion_tokens += more.completion_tokens;
    sum.money += more.money;
}

/// The date of a day since 1970, by the rule of the Gregorian calendar: eras of
/// 400 years, years that begin in March.
fn date(day: u64) -> String {
    let shifted = day + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day_of_month:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_their_dates() {
        for (day, text) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (20_454, "2026-01-01"),
            (20_818, "2026-12-31"),
        ] {
            assert_eq!(date(day), text);
        }
    }
}
