//! Tokens: who may do what, for how long, how often.

use std::collections::BTreeMap;

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use super::State;
use crate::app_key;
use crate::time::{Millis, SECOND, seconds};

/// GitHub refuses a JWT that is valid for longer, in seconds.
const LONGEST_JWT: u64 = 600;

/// How far the clock of an App may be off, in seconds.
const JWT_LEEWAY: u64 = 60;

/// What a token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A person's, good for everything.
    Personal,
    /// An installation's.
    Installation {
        /// What it is good for.
        permissions: BTreeMap<String, String>,
        /// The repositories that it is good for, without their owner; `None` is all.
        repositories: Option<Vec<String>>,
    },
    /// For registering at the scale-set service.
    Registration,
    /// For the scale-set service.
    Admin,
    /// For the message queue of a session.
    Queue {
        /// The session.
        session: String,
    },
}

/// A token.
#[derive(Debug, Clone)]
pub struct Token {
    /// What it is for.
    pub purpose: Purpose,
    /// When it ends.
    pub expires_at: Millis,
    /// Whether it was taken back.
    pub revoked: bool,
    /// Calls left in this hour.
    pub remaining: u64,
    /// When the hour ends.
    pub reset_at: Millis,
}

impl Token {
    /// A person's token, which never ends.
    pub fn personal(calls: u64) -> Self {
        Self::new(Purpose::Personal, Millis::MAX, calls)
    }

    fn new(purpose: Purpose, expires_at: Millis, calls: u64) -> Self {
        Self { purpose, expires_at, revoked: false, remaining: calls, reset_at: 0 }
    }

    /// Whether it may do something: `("administration", "write")`.
    pub fn permits(&self, permission: &str, access: &str) -> bool {
        match &self.purpose {
            Purpose::Personal => true,
            Purpose::Installation { permissions, .. } => permissions
                .get(permission)
                .is_some_and(|granted| access == "read" || granted == "write"),
            _ => false,
        }
    }
}

impl State {
    /// Makes a token.
    pub fn issue(&mut self, purpose: Purpose, life: Millis, now: Millis) -> (String, Millis) {
        let random = self.random_text(18);
        let text = match &purpose {
            Purpose::Admin | Purpose::Queue { .. } => {
                let part = |value: Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
                let header = part(json!({"alg": "none", "typ": "JWT"}));
                let claims = part(json!({"exp": seconds(now + life), "jti": random}));
                format!("{header}.{claims}.{random}")
            }
            Purpose::Registration => format!("A{}", random.to_uppercase()),
            _ => format!("ghs_{random}"),
        };
        let expires_at = now + life;
        let token = Token::new(purpose, expires_at, self.settings.rate_limit);
        self.tokens.insert(text.clone(), token);
        (text, expires_at)
    }

    /// The token with this text, if it is still good.
    pub fn token(&self, text: &str, now: Millis) -> Option<&Token> {
        self.tokens.get(text).filter(|token| !token.revoked && now < token.expires_at)
    }

    /// Takes a token back.
    pub fn revoke(&mut self, text: &str) {
        if let Some(token) = self.tokens.get_mut(text) {
            token.revoked = true;
        }
    }

    /// Takes all tokens of installations back, as when an App's secret leaked.
    pub fn revoke_installation_tokens(&mut self) {
        for token in self.tokens.values_mut() {
            token.revoked |= matches!(token.purpose, Purpose::Installation { .. });
        }
    }

    /// Counts a call. Returns `None` when none was left.
    pub fn spend(&mut self, text: &str, now: Millis) -> Option<()> {
        let limit = self.settings.rate_limit;
        let token = self.tokens.get_mut(text)?;
        if now >= token.reset_at {
            token.remaining = limit;
            token.reset_at = now + 3_600 * SECOND;
        }
        token.remaining = token.remaining.checked_sub(1)?;
        Some(())
    }

    /// Checks the JWT of the App as GitHub does.
    ///
    /// # Errors
    ///
    /// What GitHub says is wrong with it.
    pub fn check_jwt(&mut self, jwt: &str, now: Millis) -> Result<(), &'static str> {
        let app = self.settings.app.as_ref().ok_or("Integration not found")?;
        let claims = app_key::verified_claims(jwt, &app.public_key)?;
        let issuer = match &claims["iss"] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        if issuer != app.client_id && issuer != app.id.to_string() {
            return Err("Integration not found");
        }
        let now = seconds(now);
        let (Some(issued), Some(expires)) = (claims["iat"].as_u64(), claims["exp"].as_u64()) else {
            return Err("Missing 'issued at' or 'expiration time' claim");
        };
        if issued > now + JWT_LEEWAY {
            return Err("'Issued at' claim ('iat') must be an Integer representing the time that \
                        the assertion was issued");
        }
        if expires <= now {
            return Err(
                "'Expiration time' claim ('exp') must be a numeric value representing the \
                        future time at which the assertion expires",
            );
        }
        if expires > now + LONGEST_JWT {
            return Err("'Expiration time' claim ('exp') is too far in the future");
        }
        if let Some(id) = claims["jti"].as_str() {
            self.seen_jwts.push(id.to_owned());
        }
        Ok(())
    }
}
