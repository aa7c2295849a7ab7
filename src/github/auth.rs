//! Credentials: what each call is authorised by, and its renewal.

use std::time::{Duration, SystemTime};

use hyper::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::error::{CallError, SetupError};
use super::job::time;
use super::jwt::Signer;
use super::settings::{Credentials, Hook, Settings};
use super::target::{Scope, Target};
use super::transport::secret_header;
use super::wire::{Ask, Wire, read};

/// How long before its end a token is replaced: longer than any call takes, and than a job needs
/// from its minting to its first request.
const RENEWED_BEFORE: Duration = Duration::from_secs(5 * 60);
/// How long a token lasts if GitHub does not say so legibly (it is an hour).
const ASSUMED_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// What authorises calls.
pub(super) enum Authority {
    /// A personal access token, for good.
    Token(HeaderValue),
    /// A GitHub App.
    App(Box<App>),
}

pub(super) struct App {
    signer: Signer,
    target: Target,
    hook: Option<Hook>,
    /// Locked for the length of a renewal: there is one at a time, and the others wait for it.
    state: Mutex<State>,
}

struct State {
    installation: Option<u64>,
    token: Option<Token>,
}

struct Token {
    value: HeaderValue,
    /// By GitHub's clock.
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

impl Authority {
    pub(super) fn new(settings: &Settings) -> Result<Self, SetupError> {
        match &settings.credentials {
            Credentials::Token(token) => {
                if settings.hook == Some(Hook::App) {
                    return Err(SetupError::HookOfApp);
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

    /// What to authorise a call by.
    pub(super) async fn header(&self, wire: &Wire) -> Result<HeaderValue, CallError> {
        match self {
            Self::Token(value) => Ok(value.clone()),
            Self::App(app) => app.token(wire, None).await,
        }
    }

    /// What to authorise a call by that was refused (401) with `refused`; `None` if there is
    /// nothing else to try.
    pub(super) async fn renewed(
        &self,
        wire: &Wire,
        refused: &HeaderValue,
    ) -> Result<Option<HeaderValue>, CallError> {
        match self {
            Self::Token(_) => Ok(None),
            Self::App(app) => app.token(wire, Some(refused)).await.map(Some),
        }
    }

    /// Asks as the App itself, by a JWT.
    pub(super) async fn ask_as_app(
        &self,
        wire: &Wire,
        ask: &Ask,
    ) -> Result<super::transport::Answer, CallError> {
        match self {
            Self::Token(value) => wire.ask(ask, value).await,
            Self::App(app) => app.ask(wire, ask).await,
        }
    }

    /// The App's installation, once it is known.
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
            wire.time() < token.renew_at && refused.is_none_or(|refused| token.value != *refused)
        });
        if let Some(token) = usable {
            return Ok(token.value.clone());
        }
        let installation = match state.installation {
            Some(id) => id,
            None => self.find_installation(wire).await?,
        };
        state.installation = Some(installation);
        let token = self.renew(wire, installation).await?;
        let value = token.value.clone();
        state.token = Some(token);
        Ok(value)
    }

    async fn find_installation(&self, wire: &Wire) -> Result<u64, CallError> {
        let ask = Ask::get(format!("{}/installation", self.target.path()))
            .needs("the App installed for this organisation or repository");
        let answer = self.ask(wire, &ask).await?;
        Ok(read::<Installation>(&answer, &ask.name())?.id)
    }

    async fn renew(&self, wire: &Wire, installation: u64) -> Result<Token, CallError> {
        let path = format!("/app/installations/{installation}/access_tokens");
        let ask = Ask::post(path, self.rights()).needs(match self.target.scope {
            Scope::Repository(_) => "App permissions Administration: write and Actions: read",
            _ => "App permissions Self-hosted runners: write (organisation) and Actions: read",
        });
        let answer = self.ask(wire, &ask).await?;
        let token: AccessToken = read(&answer, &ask.name())?;
        let ends = time(&token.expires_at).unwrap_or_else(|| wire.time() + ASSUMED_LIFETIME);
        let value = secret_header(&format!("Bearer {}", token.token.expose_secret()));
        let value = value.ok_or_else(|| CallError::Ambiguous {
            call: ask.name(),
            source: "the token has characters that a header can't carry".into(),
        })?;
        tracing::debug!(installation, "renewed the installation's token");
        Ok(Token { value, renew_at: ends - RENEWED_BEFORE })
    }

    /// The rights that a token is to have: those that are used, whatever the App has.
    fn rights(&self) -> Value {
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

    /// Asks with a JWT; once more if the answer told that our clock was why it was refused.
    async fn ask(&self, wire: &Wire, ask: &Ask) -> Result<super::transport::Answer, CallError> {
        let before = wire.skew();
        match wire.ask(ask, &self.identity(wire, ask)?).await {
            Err(CallError::Unauthorized { .. }) if wire.skew() != before => {
                tracing::warn!(seconds = wire.skew(), "this host's clock is not GitHub's");
                wire.ask(ask, &self.identity(wire, ask)?).await
            }
            end => end,
        }
    }

    fn identity(&self, wire: &Wire, ask: &Ask) -> Result<HeaderValue, CallError> {
        let token = self.signer.sign(wire.time()).ok();
        token
            .and_then(|token| secret_header(&format!("Bearer {}", token.expose_secret())))
            .ok_or_else(|| CallError::NotSent {
                call: ask.name(),
                source: "the App's key can't sign".into(),
            })
    }
}
