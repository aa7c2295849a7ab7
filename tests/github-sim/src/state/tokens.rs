//! Tokens: permissions, lifetimes, rate limits.

use std::collections::BTreeMap;

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use super::State;
use crate::app_key;
use crate::time::{Millis, SECOND, seconds};

/// The maximum validity of a JWT at GitHub, in seconds.
const MAX_JWT_SECONDS: u64 = 600;

/// The clock difference that GitHub tolerates, in seconds.
const JWT_LEEWAY: u64 = 60;

/// The purpose of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A personal access token, with all permissions.
    Personal,
    /// An installation token.
    Installation {
        /// Its permissions.
        permissions: BTreeMap<String, String>,
        /// Its repositories, without their owner; `None` is all.
        repositories: Option<Vec<String>>,
    },
    /// For registering with the scale set service.
    Registration,
    /// For the scale set service.
    Admin,
    /// For the message queue of a session.
    Queue {
        /// The session's ID.
        session: String,
    },
}

/// A token.
#[derive(Debug, Clone)]
pub struct Token {
    /// Its purpose.
    pub purpose: Purpose,
    /// When it expires.
    pub expires_at: Millis,
    /// Whether it was revoked.
    pub revoked: bool,
    /// The calls left in this hour.
    pub remaining: u64,
    /// When the hour ends.
    pub reset_at: Millis,
}

impl Token {
    /// Creates a personal access token, which never expires.
    pub fn personal(calls: u64) -> Self {
        Self::new(Purpose::Personal, Millis::MAX, calls)
    }

    fn new(purpose: Purpose, expires_at: Millis, calls: u64) -> Self {
        Self { purpose, expires_at, revoked: false, remaining: calls, reset_at: 0 }
    }

    /// Whether it has a permission, e.g. `("administration", "write")`.
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
    /// Issues a token.
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

    /// Returns the token with this text, if it is valid.
    pub fn token(&self, text: &str, now: Millis) -> Option<&Token> {
        self.tokens.get(text).filter(|token| !token.revoked && now < token.expires_at)
    }

    /// Revokes a token.
    pub fn revoke(&mut self, text: &str) {
        if let Some(token) = self.tokens.get_mut(text) {
            token.revoked = true;
        }
    }

    /// Revokes all installation tokens, as when an App's secret has leaked.
    pub fn revoke_installation_tokens(&mut self) {
        for token in self.tokens.values_mut() {
            token.revoked |= matches!(token.purpose, Purpose::Installation { .. });
        }
    }

    /// Counts a call. Returns `None` if no calls are left.
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

    /// Checks the App's JWT like GitHub.
    ///
    /// # Errors
    ///
    /// GitHub's error message.
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
        if expires > now + MAX_JWT_SECONDS {
            return Err("'Expiration time' claim ('exp') is too far in the future");
        }
        if let Some(id) = claims["jti"].as_str() {
            self.seen_jwts.push(id.to_owned());
        }
        Ok(())
    }
}
