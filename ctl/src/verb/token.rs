//! `token …`: what others may do with a part of what one may oneself.

use ksi_protocol::token::{CreateToken, CreatedToken, RevokeToken, RevokedTokens, TokenInfo, Tokens};
use serde_json::json;

use super::work::age;
use crate::{
    args,
    error::Result,
    invocation::Invocation,
    output::{Report, Table, millis},
    time::{now_ms, whole_ms},
};

/// `ksi token …`.
///
/// # Errors
///
/// Fails as the daemon refuses.
pub(super) async fn run(at: &Invocation, token: args::Token) -> Result<()> {
    match token {
        args::Token::Create(create) => self::create(at, create).await,
        args::Token::List => list(at).await,
        args::Token::Revoke { id } => revoke(at, id).await,
    }
}

/// The token alone goes to standard output, so that it can go on into a file.
async fn create(at: &Invocation, create: args::CreateToken) -> Result<()> {
    let args::CreateToken { name, can, tenant, expires } = create;
    let expires_in_ms = expires.map(whole_ms);
    let client = at.connect().await?;
    let ask = CreateToken { name, can, tenant, expires_in_ms };
    let created: CreatedToken = at.ask(&client, "token:create", &ask).await?;
    let TokenInfo { id, can, tenant, .. } = &created.info;
    at.out.note(&format!("token {id}: {} for the tenant {tenant}; it is shown this once", can.join(", ")));
    let text = created.token.expose().to_owned();
    at.out.print(&Report::text(&created, text.clone())?.named(vec![text]))
}

async fn list(at: &Invocation) -> Result<()> {
    let client = at.connect().await?;
    let tokens: Tokens = at.ask(&client, "token:list", &json!({})).await?;
    at.out.print(&listed(&tokens, now_ms())?)
}

fn listed(tokens: &Tokens, now_ms: u64) -> Result<Report> {
    let mut table = Table::new(&["ID", "NAME", "CAN", "TENANT", "AGE", "EXPIRES", "+MADE BY"]);
    for info in &tokens.tokens {
        let expires = match info.expires_ms {
            None => "never".to_owned(),
            Some(at) if at <= now_ms => "expired".to_owned(),
            Some(at) => format!("in {}", millis(at - now_ms)),
        };
        table.row([
            info.id.clone(),
            info.name.clone(),
            info.can.join(" "),
            info.tenant.clone(),
            age(info.created_ms, now_ms),
            expires,
            info.giver.clone(),
        ]);
    }
    let names = tokens.tokens.iter().map(|info| info.id.clone()).collect();
    Report::list(tokens, "tokens", names, table)
}

async fn revoke(at: &Invocation, id: String) -> Result<()> {
    let client = at.connect().await?;
    let revoked: RevokedTokens = at.ask(&client, "token:revoke", &RevokeToken { id }).await?;
    let text = format!("revoked: {}", revoked.revoked.join(", "));
    at.out.print(&Report::text(&revoked, text)?.named(revoked.revoked.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_says_until_when_each_token_is_valid() {
        let info = |id: &str, expires_ms| TokenInfo {
            id: id.into(),
            name: "ci".into(),
            can: vec!["a.b".into(), "c.*".into()],
            tenant: "local".into(),
            giver: "user:owner".into(),
            created_ms: 1_000,
            expires_ms,
        };
        let tokens = Tokens { tokens: vec![info("1", None), info("2", Some(2_000)), info("3", Some(9_000))] };
        let text = format!("{:?}", listed(&tokens, 4_000).unwrap());
        for word in ["never", "expired", "in 5", "a.b c.*"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}
