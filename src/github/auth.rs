//! Credentials: what authorizes each call, and its renewal.

use std::time::{Duration, SystemTime};

use hyper::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::error::{CallError, SetupError};
use super::job::parse_time;
use super::jwt::Signer;
use super::settings::{Credentials, GitHubSettings, Hook};
use super::transport::secret_header;
use super::wire::{ApiCall, Wire, read};
use mayfly_config::github::{Scope, Target};

/// How long before its expiry a token is renewed: longer than any call takes, and longer than a
/// job needs from its JIT configuration to its first request.
const RENEWED_BEFORE: Duration = Duration::from_secs(5 * 60);
/// A token's assumed lifetime if GitHub's expiry time can't be parsed (it is an hour).
const ASSUMED_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// The source of the `Authorization` header.
pub(super) enum Authorizer {
    /// A personal access token, which is never renewed.
    Token(HeaderValue),
    /// A GitHub App.
    App(Box<App>),
}

pub(super) struct App {
    signer: Signer,
    target: Target,
    hook: Option<Hook>,
    /// Locked for the length of a renewal, so that only one runs and the other calls wait for it.
    state: Mutex<State>,
}

struct State {
    installation: Option<u64>,
    token: Option<Token>,
}

struct Token {
    value: HeaderValue,
    /// On GitHub's clock.
    renew_at: SystemTime,
}

#[derive(Deserialize)]
struct Installation {
    id: u64,
}

#[derive(Deserialize)]
struct AccessToken {
    token: SecretString,
    #[serde(default)]
    expires_at: String,
}

impl Authorizer {
    pub(super) fn new(settings: &GitHubSettings) -> Result<Self, SetupError> {
        match &settings.credentials {
            Credentials::Token(token) => {
                if settings.hook == Some(Hook::App) {
                    return Err(SetupError::AppHookWithToken);
                }
                let token = token.expose_secret().trim();
                let value = secret_header(&format!("Bearer {token}"));
                value.filter(|_| !token.is_empty()).map(Self::Token).ok_or(SetupError::Token)
            }
            Credentials::App { id, private_key, installation } => {
                if matches!(settings.target.scope, Scope::Enterprise(_)) {
                    return Err(SetupError::EnterpriseApp);
                }
                Ok(Self::App(Box::new(App {
                    signer: Signer::new(id, private_key)?,
                    target: settings.target.clone(),
                    hook: settings.hook,
                    state: Mutex::new(State { installation: *installation, token: None }),
                })))
            }
        }
    }

    /// Returns the `Authorization` header for a call.
    pub(super) async fn header(&self, wire: &Wire) -> Result<HeaderValue, CallError> {
        match self {
            Self::Token(value) => Ok(value.clone()),
            Self::App(app) => app.token(wire, None).await,
        }
    }

    /// Returns a new header for a call that was rejected (401) with `refused`; `None` if the
    /// credentials can't be renewed.
    pub(super) async fn renew(
        &self,
        wire: &Wire,
        refused: &HeaderValue,
    ) -> Result<Option<HeaderValue>, CallError> {
        match self {
            Self::Token(_) => Ok(None),
            Self::App(app) => app.token(wire, Some(refused)).await.map(Some),
        }
    }

    /// Sends a call as the App itself, authorized by a JWT.
    pub(super) async fn call_as_app(
        &self,
        wire: &Wire,
        call: &ApiCall,
    ) -> Result<super::transport::Response, CallError> {
        match self {
            Self::Token(value) => wire.call(call, value).await,
            Self::App(app) => app.call(wire, call).await,
        }
    }

    /// Returns the App's installation ID, once known.
    pub(super) async fn installation(&self) -> Option<u64> {
        match self {
            Self::Token(_) => None,
            Self::App(app) => app.state.lock().await.installation,
        }
    }
}

impl App {
    async fn token(
        &self,
        wire: &Wire,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, CallError> {
        let mut state = self.state.lock().await;
        let usable = state.token.as_ref().filter(|token| {
            wire.now() < token.renew_at && refused.is_none_or(|refused| token.value != *refused)
        });
        if let Some(token) = usable {
            return Ok(token.value.clone());
        }
        let installation = match state.installation {
            Some(id) => id,
            None => self.find_installation(wire).await?,
        };
        state.installation = Some(installation);
        let token = self.request_token(wire, installation).await?;
        let value = token.value.clone();
        state.token = Some(token);
        Ok(value)
    }

    async fn find_installation(&self, wire: &Wire) -> Result<u64, CallError> {
        let call = ApiCall::get(format!("{}/installation", self.target.path()))
            .needs("the App installed for this organization or repository");
        let response = self.call(wire, &call).await?;
        Ok(read::<Installation>(&response, &call.name())?.id)
    }

    async fn request_token(&self, wire: &Wire, installation: u64) -> Result<Token, CallError> {
        let path = format!("/app/installations/{installation}/access_tokens");
        let call = ApiCall::post(path, self.permissions()).needs(match self.target.scope {
            Scope::Repository(_) => "App permissions Administration: write and Actions: read",
            _ => "App permissions Self-hosted runners: write (organization) and Actions: read",
        });
        let response = self.call(wire, &call).await?;
        let token: AccessToken = read(&response, &call.name())?;
        let ends = parse_time(&token.expires_at).unwrap_or_else(|| wire.now() + ASSUMED_LIFETIME);
        let value = secret_header(&format!("Bearer {}", token.token.expose_secret()));
        let value = value.ok_or_else(|| CallError::Ambiguous {
            call: call.name(),
            source: "the token has characters that are not allowed in a header".into(),
        })?;
        tracing::debug!(installation, "renewed the installation's token");
        Ok(Token { value, renew_at: ends - RENEWED_BEFORE })
    }

    /// Returns the permissions to request for a token: only those that Mayfly uses.
    fn permissions(&self) -> Value {
        let mut permissions = json!({ "actions": "read", "metadata": "read" });
        let hooks = matches!(self.hook, Some(Hook::Id(_)));
        if let Scope::Repository(repository) = &self.target.scope {
            permissions["administration"] = "write".into();
            if hooks {
                permissions["repository_hooks"] = "write".into();
            }
            json!({ "permissions": permissions, "repositories": [repository.name] })
        } else {
            permissions["organization_self_hosted_runners"] = "write".into();
            if hooks {
                permissions["organization_hooks"] = "write".into();
            }
            json!({ "permissions": permissions })
        }
    }

    /// Sends a call with a JWT; resends it once if the rejection was due to our clock.
    async fn call(
        &self,
        wire: &Wire,
        call: &ApiCall,
    ) -> Result<super::transport::Response, CallError> {
        let before = wire.skew();
        match wire.call(call, &self.jwt_header(wire, call)?).await {
            Err(CallError::Unauthorized { .. }) if wire.skew() != before => {
                tracing::warn!(seconds = wire.skew(), "this host's clock differs from GitHub's");
                wire.call(call, &self.jwt_header(wire, call)?).await
            }
            result => result,
        }
    }

    fn jwt_header(&self, wire: &Wire, call: &ApiCall) -> Result<HeaderValue, CallError> {
        let token = self.signer.sign(wire.now()).ok();
        token
            .and_then(|token| secret_header(&format!("Bearer {}", token.expose_secret())))
            .ok_or_else(|| CallError::NotSent {
                call: call.name(),
                source: "can't sign with the App's key".into(),
            })
    }
}
