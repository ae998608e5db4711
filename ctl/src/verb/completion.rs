//! `completion …`: what was used of models, who could answer, and where a question
//! would go.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    args,
    error::Result,
    invocation::Invocation,
    output::{Report, Table, millis},
};

/// The answer of `completion:usage`.
#[derive(Debug, Serialize, Deserialize)]
struct Usage {
    rows: Vec<Row>,
    total: Row,
    budgets: Vec<Budget>,
}

/// A row of usage, with those of its first fields that it is added up by.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Row {
    #[serde(skip_serializing_if = "Option::is_none")]
    day: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    calls: u64,
    answered: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    money: f64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Budget {
    name: String,
    used: Value,
    reserved: Value,
    limits: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    resets_in_ms: Option<u64>,
}

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
    let usage: Usage = at.ask(&client, "completion:usage", ask).await?;
    at.out.print(&used(&usage)?)?;
    for line in usage.budgets.iter().map(standing) {
        at.out.note(&line);
    }
    Ok(())
}

fn used(usage: &Usage) -> Result<Report> {
    let mut table = Table::new(&["BY", "CALLS", "ANSWERED", "TOKENS READ", "TOKENS MADE", "MONEY"]);
    let mut row = |name: String, row: &Row| {
        table.row([
            name,
            row.calls.to_string(),
            row.answered.to_string(),
            row.prompt_tokens.to_string(),
            row.completion_tokens.to_string(),
            format!("{:.4}", row.money),
        ]);
    };
    let names: Vec<_> = usage.rows.iter().map(name).collect();
    for (one, name) in usage.rows.iter().zip(&names) {
        row(name.clone(), one);
    }
    row("total".into(), &usage.total);
    Report::list(usage, "rows", names, table)
}

/// What a row is of.
fn name(row: &Row) -> String {
    let parts = [&row.day, &row.tenant, &row.principal, &row.agent, &row.model];
    let parts: Vec<_> = parts.into_iter().flatten().map(String::as_str).collect();
    if parts.is_empty() { "-".into() } else { parts.join(" ") }
}

/// One line about a budget: what is used of each thing that it limits.
fn standing(budget: &Budget) -> String {
    let limits = budget.limits.as_object().into_iter().flatten();
    let parts: Vec<_> = limits
        .map(|(what, limit)| format!("{} of {limit} {what}", budget.used.get(what).unwrap_or(&Value::Null)))
        .collect();
    let resets =
        budget.resets_in_ms.map_or_else(String::new, |ms| format!("; starts over in {}", millis(ms)));
    format!("budget {}: {}{resets}", budget.name, parts.join(", "))
}

async fn providers(at: &Invocation) -> Result<()> {
    let client = at.connect().await?;
    let answer = at.value(&client, "completion:providers", &json!({})).await?;
    at.out.print(&answering(&answer)?)
}

fn answering(answer: &Value) -> Result<Report> {
    let mut table = Table::new(&["PROVIDER", "MODELS", "RUNNING", "QUEUED", "STATE", "+HINT"]);
    let mut names = Vec::new();
    for provider in list(answer, "providers") {
        let models = provider["models"].as_array().map_or_else(|| "-".into(), |all| all.len().to_string());
        let open =
            list(provider, "breakers").map(|one| format!("{} {}", text(one, "model"), text(one, "state")));
        let open: Vec<_> = list(provider, "pauses").map(pause).chain(open).collect();
        let state = match provider["unavailable"].as_str() {
            Some(why) => why.to_owned(),
            None if open.is_empty() => "ok".into(),
            None => open.join("; "),
        };
        let running = format!("{}/{}", provider["running"], provider["concurrency"]);
        let queued = provider["queued"].to_string();
        table.row([text(provider, "name"), models, running, queued, state, text(provider, "hint")]);
        names.push(text(provider, "name"));
    }
    Report::list(answer, "providers", names, table)
}

/// Who is left alone, for how long, and why.
fn pause(one: &Value) -> String {
    let who = one["model"].as_str().map_or_else(String::new, |model| format!("{model} "));
    let time = |key: &str| one[key].as_u64().map(millis);
    let left = time("retry_after_ms").unwrap_or_else(|| "-".into());
    let wished = time("wished_ms").map_or_else(String::new, |wished| format!(" (it said {wished})"));
    format!("{who}paused for {left}{wished}: {}", text(one, "why"))
}

async fn route(at: &Invocation, ask: &Value) -> Result<()> {
    let client = at.connect().await?;
    let answer = at.value(&client, "completion:route", ask).await?;
    at.out.print(&ranked(&answer)?)
}

fn ranked(answer: &Value) -> Result<Report> {
    let mut table = Table::new(&["MODEL", "TIER", "SCORE", "VERDICT", "REASONS"]);
    let mut names = Vec::new();
    for one in list(answer, "candidates") {
        let score = one["score_ms"].as_f64().map_or_else(|| "-".into(), |ms| format!("{ms:.0} ms"));
        let verdict = match one["stage"].as_str() {
            Some(stage) => format!("out: {stage}"),
            None if one["model"] == answer["chosen"] => "chosen".into(),
            None => "next".into(),
        };
        let reasons: Vec<_> = list(one, "reasons").filter_map(Value::as_str).collect();
        table.row([text(one, "model"), one["tier"].to_string(), score, verdict, reasons.join("; ")]);
        names.push(text(one, "model"));
    }
    Report::list(answer, "candidates", names, table)
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Format, printed};

    #[test]
    fn usage_is_a_table_with_its_total_and_the_same_as_json() {
        let row = |more: Value| {
            let mut row =
                json!({"calls": 2, "answered": 1, "prompt_tokens": 30, "completion_tokens": 4, "money": 0.5});
            row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            row
        };
        let answer = json!({"rows": [row(json!({"day": "2026-05-31", "model": "openai/x"}))], "total": row(json!({})),
            "budgets": [{"name": "daily", "used": {"calls": 2, "tokens": 34, "money": 0.5}, "reserved": {},
                         "limits": {"calls": 10}, "resets_in_ms": 5000}]});
        let usage: Usage = serde_json::from_value(answer).unwrap();
        let report = used(&usage).unwrap();
        assert_eq!(
            printed(&report, Format::Table),
            "BY                   CALLS  ANSWERED  TOKENS READ  TOKENS MADE  MONEY\n\
             2026-05-31 openai/x  2      1         30           4            0.5000\n\
             total                2      1         30           4            0.5000\n"
        );
        let whole: Value = serde_json::from_str(&printed(&report, Format::Json)).unwrap();
        assert_eq!((&whole["total"]["money"], &whole["rows"][0]["model"]), (&json!(0.5), &json!("openai/x")));
        assert_eq!(standing(&usage.budgets[0]), "budget daily: 2 of 10 calls; starts over in 5.0 s");
    }

    #[test]
    fn providers_that_are_left_alone_are_shown_with_until_when_and_why() {
        let provider = |name: &str, more: Value| {
            let mut one = json!({"name": name, "models": [], "running": 0, "queued": 2, "concurrency": 8});
            one.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            one
        };
        let pause = json!({"until_ms": 1_800_000_000_000_u64, "retry_after_ms": 5000, "wished_ms": 86_400_000,
                           "why": "gpt refused: the quota is used up"});
        let of_one = json!({"model": "big", "until_ms": 1, "retry_after_ms": 2000, "why": "no room"});
        let answer = json!({"providers": [
            provider("openai", json!({"pauses": [pause, of_one]})),
            provider("mock", json!({}))]});
        let shown = printed(&answering(&answer).unwrap(), Format::Table);
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
        let shown = printed(&ranked(&answer).unwrap(), Format::Table);
        assert!(shown.contains("mock/echo  1     12 ms  chosen"), "{shown}");
        assert!(shown.contains("out: capability  it cannot call tools"), "{shown}");
    }
}
