//! `completion …`: what was used of models, who could answer, and where a question
//! would go.

use ksi_provider::completion::{
    Budget, PauseInfo, ProviderInfo, Providers, Route, Stage, UsageAnswer, UsageRow, Used,
};
use serde_json::{Value, json};

use crate::{
    args,
    error::Result,
    invocation::Invocation,
    output::{Report, Table, millis},
};

/// `ksi completion …`.
///
/// # Errors
///
/// Fails as the daemon refuses.
pub(super) async fn run(at: &Invocation, completion: args::Completion) -> Result<()> {
    match completion {
        args::Completion::Usage { days, by, agent, conversation } => {
            let mut ask = json!({ "days": days, "by": by });
            if let Some(agent) = agent {
                ask["agent"] = json!(agent);
            }
            if let Some(conversation) = conversation {
                ask["conversation_id"] = json!(conversation);
            }
            usage(at, &ask).await
        }
        args::Completion::Providers => providers(at).await,
        args::Completion::Route { prompt, model, fallback } => {
            let mut ask = json!({ "prompt": prompt });
            if let Some(model) = model {
                ask["model"] = json!(model);
            }
            if !fallback.is_empty() {
                ask["fallbacks"] = json!(fallback);
            }
            route(at, &ask).await
        }
    }
}

async fn usage(at: &Invocation, ask: &Value) -> Result<()> {
    let client = at.connect().await?;
    let (reply, usage) = at.ask_whole(&client, "completion:usage", ask).await?;
    at.out.print(&used(&reply, &usage)?)?;
    for line in usage.budgets.iter().map(standing) {
        at.out.note(&line);
    }
    Ok(())
}

fn used(reply: &Value, usage: &UsageAnswer) -> Result<Report> {
    let mut table = Table::new(&["BY", "CALLS", "ANSWERED", "TOKENS READ", "TOKENS MADE", "MONEY"]);
    let mut row = |name: String, used: &Used| {
        table.row([
            name,
            used.calls.to_string(),
            used.answered.to_string(),
            used.prompt_tokens.to_string(),
            used.completion_tokens.to_string(),
            format!("{:.4}", used.money),
        ]);
    };
    let names: Vec<_> = usage.rows.iter().map(name).collect();
    for (one, name) in usage.rows.iter().zip(&names) {
        row(name.clone(), &one.used);
    }
    row("total".into(), &usage.total);
    Report::list(reply, "rows", names, table)
}

/// What a row is of.
fn name(row: &UsageRow) -> String {
    let parts = [&row.day, &row.tenant, &row.principal, &row.agent, &row.model];
    let parts: Vec<_> = parts.into_iter().flatten().map(String::as_str).collect();
    if parts.is_empty() { "-".into() } else { parts.join(" ") }
}

/// One line about a budget: what is used of each thing that it limits.
fn standing(budget: &Budget) -> String {
    let Budget { name, used, limits, resets_in_ms, .. } = budget;
    let parts = [
        limits.calls.map(|limit| format!("{} of {limit} calls", used.calls)),
        limits.tokens.map(|limit| format!("{} of {limit} tokens", used.tokens)),
        limits.money.map(|limit| format!("{} of {limit} money", used.money)),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    let resets = resets_in_ms.map_or_else(String::new, |ms| format!("; starts over in {}", millis(ms)));
    format!("budget {name}: {}{resets}", parts.join(", "))
}

async fn providers(at: &Invocation) -> Result<()> {
    let client = at.connect().await?;
    let (reply, providers) = at.ask_whole(&client, "completion:providers", &json!({})).await?;
    at.out.print(&answering(&reply, &providers)?)
}

fn answering(reply: &Value, answer: &Providers) -> Result<Report> {
    let mut table = Table::new(&["PROVIDER", "MODELS", "RUNNING", "QUEUED", "STATE", "+HINT"]);
    let dash = || "-".to_owned();
    for provider in &answer.providers {
        let ProviderInfo { name, models, running, concurrency, queued, hint, .. } = provider;
        table.row([
            name.clone(),
            models.as_ref().map_or_else(dash, |all| all.len().to_string()),
            format!("{running}/{concurrency}"),
            queued.to_string(),
            state(provider),
            hint.clone().unwrap_or_else(dash),
        ]);
    }
    let names = answer.providers.iter().map(|provider| provider.name.clone()).collect();
    Report::list(reply, "providers", names, table)
}

/// Why it is not asked, or who of it is left alone.
fn state(provider: &ProviderInfo) -> String {
    if let Some(why) = &provider.unavailable {
        return why.clone();
    }
    let open = provider.breakers.iter().map(|one| format!("{} {}", one.model, one.state));
    let left_alone: Vec<_> = provider.pauses.iter().map(pause).chain(open).collect();
    if left_alone.is_empty() { "ok".into() } else { left_alone.join("; ") }
}

/// Who is left alone, for how long, and why.
fn pause(one: &PauseInfo) -> String {
    let PauseInfo { model, retry_after_ms, wished_ms, why, .. } = one;
    let who = model.as_ref().map_or_else(String::new, |model| format!("{model} "));
    let wished = wished_ms.map_or_else(String::new, |wished| format!(" (it said {})", millis(wished)));
    format!("{who}paused for {}{wished}: {why}", millis(*retry_after_ms))
}

async fn route(at: &Invocation, ask: &Value) -> Result<()> {
    let client = at.connect().await?;
    let (reply, route) = at.ask_whole(&client, "completion:route", ask).await?;
    at.out.print(&ranked(&reply, &route)?)
}

fn ranked(reply: &Value, route: &Route) -> Result<Report> {
    let mut table = Table::new(&["MODEL", "TIER", "SCORE", "VERDICT", "REASONS"]);
    for one in &route.candidates {
        let score = one.score_ms.map_or_else(|| "-".into(), |ms| format!("{ms:.0} ms"));
        let verdict = match one.stage.map(Stage::as_str) {
            Some(stage) => format!("out: {stage}"),
            None if Some(&one.model) == route.chosen.as_ref() => "chosen".into(),
            None => "next".into(),
        };
        table.row([one.model.clone(), one.tier.to_string(), score, verdict, one.reasons.join("; ")]);
    }
    let names = route.candidates.iter().map(|one| one.model.clone()).collect();
    Report::list(reply, "candidates", names, table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        invocation::shaped,
        output::{Format, printed},
    };

    #[test]
    fn a_figure_by_another_name_is_no_zero() {
        let total =
            json!({"calls": 2, "answered": 1, "tokens_read": 30, "completion_tokens": 4, "money": 0.5});
        let reply = json!({"rows": [], "total": total, "budgets": []});
        let failure = shaped::<UsageAnswer>("completion:usage", &reply).unwrap_err();
        let said = &failure.message;
        assert!(said.contains("completion:usage") && said.contains("prompt_tokens"), "{said}");
        assert!(failure.hint.contains("ksi version"), "{}", failure.hint);
    }

    #[test]
    fn usage_is_a_table_with_its_total_and_the_same_as_json() {
        let row = |more: Value| {
            let mut row =
                json!({"calls": 2, "answered": 1, "prompt_tokens": 30, "completion_tokens": 4, "money": 0.5});
            row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            row
        };
        let answer = json!({"rows": [row(json!({"day": "2026-05-31", "model": "openai/x"}))], "total": row(json!({})),
            "budgets": [{"name": "daily", "used": {"calls": 2, "tokens": 34, "money": 0.5},
                         "reserved": {"calls": 0, "tokens": 0, "money": 0.0},
                         "limits": {"calls": 10, "money": 2.5}, "resets_in_ms": 5000}], "newer": true});
        let usage: UsageAnswer = shaped("completion:usage", &answer).unwrap();
        let report = used(&answer, &usage).unwrap();
        assert_eq!(
            printed(&report, Format::Table),
            "BY                   CALLS  ANSWERED  TOKENS READ  TOKENS MADE  MONEY\n\
             2026-05-31 openai/x  2      1         30           4            0.5000\n\
             total                2      1         30           4            0.5000\n"
        );
        let whole: Value = serde_json::from_str(&printed(&report, Format::Json)).unwrap();
        assert_eq!((&whole["total"]["money"], &whole["rows"][0]["model"]), (&json!(0.5), &json!("openai/x")));
        assert_eq!(whole["newer"], true, "programs get all that was said");
        assert_eq!(
            standing(&usage.budgets[0]),
            "budget daily: 2 of 10 calls, 0.5 of 2.5 money; starts over in 5.0 s"
        );
    }

    #[test]
    fn providers_that_are_left_alone_are_shown_with_until_when_and_why() {
        let provider = |name: &str, more: Value| {
            let mut one = json!({"name": name, "about": "", "models": [], "local": false,
                                 "running": 0, "queued": 2, "concurrency": 8});
            one.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            one
        };
        let pause = json!({"until_ms": 1_800_000_000_000_u64, "retry_after_ms": 5000, "wished_ms": 86_400_000,
                           "why": "gpt refused: the quota is used up"});
        let of_one = json!({"model": "big", "until_ms": 1, "retry_after_ms": 2000, "why": "no room"});
        let answer = json!({"providers": [
            provider("openai", json!({"pauses": [pause, of_one]})),
            provider("mock", json!({}))]});
        let shown = printed(&answering(&answer, &shaped("x", &answer).unwrap()).unwrap(), Format::Table);
        let day = millis(86_400_000);
        let paused = format!("paused for 5.0 s (it said {day}): gpt refused: the quota is used up; ");
        assert!(shown.contains(&(paused + "big paused for 2.0 s: no room")), "{shown}");
        assert!(shown.contains("ok"), "{shown}");
    }

    #[test]
    fn a_route_says_who_is_chosen_and_why_others_are_not() {
        let answer = json!({"chosen": "mock/echo", "prompt_tokens": 5, "candidates": [
            {"model": "mock/echo", "tier": 1, "eligible": true, "score_ms": 12.0, "wait_ms": 0, "reasons": ["not measured yet"]},
            {"model": "openai/x", "tier": 0, "eligible": false, "stage": "capability", "wait_ms": 0, "reasons": ["it cannot call tools"]}]});
        let shown = printed(&ranked(&answer, &shaped("x", &answer).unwrap()).unwrap(), Format::Table);
        assert!(shown.contains("mock/echo  1     12 ms  chosen"), "{shown}");
        assert!(shown.contains("out: capability  it cannot call tools"), "{shown}");
    }
}
