//! The calls of the scale sets' service.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, USER_AGENT};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::bootstrap::{Connection, connect};
use super::session::{RawSession, Session};
use super::types::{Agent, Listed, RawSet, ScaleSet};
use crate::github::client::Client as RestClient;
use crate::github::error::CallError;
use crate::github::job::lenient;
use crate::github::runners::{Minted, Removal, escaped};
use crate::github::transport::{Answer, DEADLINE, Question};
use crate::github::wire::{Wire, read};

/// The default runner group's number in this service, as in its own clients.
const DEFAULT_GROUP: u64 = 1;
const VERSION: &str = "api-version=6.0-preview";
const ACCEPTED: &str = "application/json; api-version=6.0-preview";
const SETS: &str = "_apis/runtime/runnerscalesets";
const AGENTS: &str = "_apis/distributedtask/pools/0/agents";

/// Calls the service of one scope's scale sets. Cheap to clone.
#[derive(Clone)]
pub struct Client(pub(super) Arc<Shared>);

pub(super) struct Shared {
    rest: RestClient,
    /// Its own: the REST API's rate limit is not the service's.
    pub(super) wire: Wire,
    connection: Mutex<Option<Connection>>,
}

/// A call to the service.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    /// Under the tenant's address.
    pub(super) path: String,
    pub(super) body: Option<Value>,
    /// Instead of the admin token.
    pub(super) token: Option<&'a HeaderValue>,
    /// The scale set that it is about, for the user agent.
    pub(super) set: Option<u64>,
}

impl<'a> Call<'a> {
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: None, token: None, set: None }
    }

    pub(super) fn body(self, body: Value) -> Self {
        Self { body: Some(body), ..self }
    }

    pub(super) fn token(self, token: &'a HeaderValue) -> Self {
        Self { token: Some(token), ..self }
    }

    pub(super) fn set(self, set: u64) -> Self {
        Self { set: Some(set), ..self }
    }

    fn name(&self) -> String {
        format!("{} {}", self.method, self.path.split('?').next().unwrap_or_default())
    }
}

impl Client {
    /// A client with the credentials and the target of `rest`.
    pub fn new(rest: &RestClient) -> Self {
        let wire = Wire::new(rest.0.wire.transport.clone(), String::new(), Duration::ZERO);
        Self(Arc::new(Shared { rest: rest.clone(), wire, connection: Mutex::default() }))
    }

    /// The scale set of that name in that runner group (`None`: the default one), made if it is
    /// not there; with those labels and the name itself as one.
    pub async fn ensure(
        &self,
        name: &str,
        group: Option<&str>,
        labels: &[String],
    ) -> Result<ScaleSet, CallError> {
        let group = self.group(group).await?;
        let mut wanted = vec![name.to_owned()];
        wanted.extend(labels.iter().filter(|label| !label.eq_ignore_ascii_case(name)).cloned());
        let labels: Vec<Value> =
            wanted.iter().map(|label| json!({ "type": "System", "name": label })).collect();
        let body = json!({
            "name": name,
            "runnerGroupId": group,
            "labels": labels,
            "RunnerSetting": { "disableUpdate": true },
        });
        let Some(set) = self.find(name, group).await? else {
            let made = self.read::<RawSet>(Call::new(Method::POST, SETS).body(body)).await;
            return match made {
                Ok(set) => Ok(set.into()),
                // Made meanwhile, or by the try before whose answer was lost.
                Err(error @ CallError::Refused { status: 409, .. }) => {
                    self.find(name, group).await?.ok_or(error)
                }
                Err(error) => Err(error),
            };
        };
        let same = set.labels.len() == wanted.len()
            && wanted
                .iter()
                .all(|label| set.labels.iter().any(|has| has.eq_ignore_ascii_case(label)));
        if same {
            return Ok(set);
        }
        let change = Call::new(Method::PATCH, format!("{SETS}/{}", set.id)).set(set.id).body(body);
        Ok(self.read::<RawSet>(change).await?.into())
    }

    /// Deletes a scale set; refused while it has running jobs.
    pub async fn remove(&self, set: u64) -> Result<(), CallError> {
        match self.call(&Call::new(Method::DELETE, format!("{SETS}/{set}")).set(set)).await {
            Ok(_) | Err(CallError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes the scale set of that name in that runner group, if there is one.
    pub async fn remove_named(&self, name: &str, group: Option<&str>) -> Result<(), CallError> {
        let group = match self.group(group).await {
            // With the group its sets went.
            Err(CallError::NotFound { .. }) => return Ok(()),
            group => group?,
        };
        match self.find(name, group).await? {
            Some(set) => self.remove(set.id).await,
            None => Ok(()),
        }
    }

    /// Opens the set's one session. If another's lingers (409; [`super::is_session_conflict`]),
    /// try again after [`super::recover::CONFLICT_WAIT`]: it is gone about 50 s after its owner.
    pub async fn open(&self, set: u64, owner: &str) -> Result<Session, CallError> {
        let call = Call::new(Method::POST, format!("{SETS}/{set}/sessions"))
            .set(set)
            .body(json!({ "ownerName": owner }));
        let raw: RawSession = self.read(call).await?;
        Session::new(self.clone(), set, raw)
    }

    /// Makes a runner of the set; as for the REST API's call, the name is to be new.
    pub async fn mint(&self, set: u64, name: &str, work_folder: &str) -> Result<Minted, CallError> {
        #[derive(Deserialize)]
        struct Answered {
            runner: RawAgent,
            #[serde(rename = "encodedJITConfig")]
            jit_config: SecretString,
        }
        let call = Call::new(Method::POST, format!("{SETS}/{set}/generatejitconfig"))
            .set(set)
            .body(json!({ "name": name, "workFolder": work_folder }));
        match self.read::<Answered>(call).await {
            Ok(made) => Ok(Minted { runner_id: made.runner.id, jit_config: made.jit_config }),
            Err(CallError::Refused { call, message, .. })
                if message.contains("AgentExistsException") =>
            {
                Err(CallError::NameTaken { call })
            }
            Err(error) => Err(error),
        }
    }

    /// The runner of that name.
    pub async fn runner_by_name(&self, name: &str) -> Result<Option<Agent>, CallError> {
        let path = format!("{AGENTS}?agentName={}", escaped(name));
        let found: Listed<RawAgent> = self.read(Call::new(Method::GET, path)).await?;
        Ok(found.value.into_iter().find(|agent| agent.name == name).map(|agent| Agent {
            id: agent.id,
            name: agent.name,
            set: agent.set.filter(|set| *set != 0),
        }))
    }

    /// Deletes a runner; that it is gone already is well.
    pub async fn delete_runner(&self, id: u64) -> Result<Removal, CallError> {
        match self.call(&Call::new(Method::DELETE, format!("{AGENTS}/{id}"))).await {
            Ok(_) => Ok(Removal::Deleted),
            Err(CallError::NotFound { .. }) => Ok(Removal::Gone),
            Err(CallError::Refused { message, .. })
                if message.contains("AgentNotFoundException") =>
            {
                Ok(Removal::Gone)
            }
            // Told by its type: 400 in one source, 409 in another.
            Err(CallError::Refused { message, .. })
                if message.contains("JobStillRunningException") =>
            {
                Ok(Removal::Busy)
            }
            Err(error) => Err(error),
        }
    }

    async fn find(&self, name: &str, group: u64) -> Result<Option<ScaleSet>, CallError> {
        let path = format!("{SETS}?runnerGroupId={group}&name={}", escaped(name));
        let found: Listed<RawSet> = self.read(Call::new(Method::GET, path)).await?;
        Ok(found.value.into_iter().map(ScaleSet::from).find(|set| set.name == name))
    }

    async fn group(&self, name: Option<&str>) -> Result<u64, CallError> {
        #[derive(Deserialize)]
        struct Group {
            id: u64,
        }
        let Some(name) = name else { return Ok(DEFAULT_GROUP) };
        let path = format!("_apis/runtime/runnergroups/?groupName={}", escaped(name));
        let call = Call::new(Method::GET, path);
        let (call_name, found) = (call.name(), self.read::<Listed<Group>>(call).await?);
        found.value.first().map(|group| group.id).ok_or_else(|| CallError::NotFound {
            call: call_name,
            message: format!("there is no runner group {name:?}"),
            needs: Some("a runner group of that name"),
        })
    }

    pub(super) async fn read<T: serde::de::DeserializeOwned>(
        &self,
        call: Call<'_>,
    ) -> Result<T, CallError> {
        read(&self.call(&call).await?, &call.name())
    }

    /// Sends a call; with the admin token once more, renewed, if it is refused (401).
    pub(super) async fn call(&self, call: &Call<'_>) -> Result<Answer, CallError> {
        let connection = self.connection(None).await?;
        match self.send(call, &connection).await {
            Err(CallError::Unauthorized { .. }) if call.token.is_none() => {
                let renewed = self.connection(Some(&connection.admin)).await?;
                self.send(call, &renewed).await
            }
            end => end,
        }
    }

    async fn send(&self, call: &Call<'_>, connection: &Connection) -> Result<Answer, CallError> {
        let separator = if call.path.contains('?') { '&' } else { '?' };
        let question = Question {
            method: call.method.clone(),
            address: format!("{}/{}{separator}{VERSION}", connection.tenant, call.path),
            headers: headers(call.token.unwrap_or(&connection.admin), call.set),
            body: call.body.as_ref().map(|body| body.to_string().into_bytes()),
            deadline: DEADLINE,
        };
        self.exchange(question, &call.name()).await
    }

    pub(super) async fn exchange(
        &self,
        question: Question,
        call: &str,
    ) -> Result<Answer, CallError> {
        self.0.wire.turn(false, call).await?;
        self.0.wire.exchange(question, call, None).await
    }

    /// The connection; a new one if it is about to end or if its token was `refused`. Locked for
    /// the length of a renewal: there is one at a time.
    async fn connection(&self, refused: Option<&HeaderValue>) -> Result<Connection, CallError> {
        let mut connection = self.0.connection.lock().await;
        let now = self.0.rest.0.wire.time();
        let usable = connection.as_ref().filter(|known| {
            now < known.renew_at && refused.is_none_or(|refused| known.admin != *refused)
        });
        if let Some(known) = usable {
            return Ok(known.clone());
        }
        let made = connect(&self.0.rest).await?;
        *connection = Some(made.clone());
        Ok(made)
    }
}

#[derive(Deserialize)]
struct RawAgent {
    id: u64,
    name: String,
    #[serde(rename = "runnerScaleSetId", default, deserialize_with = "lenient")]
    set: Option<u64>,
}

/// What every call of the service carries; the user agent is a JSON object there.
pub(super) fn headers(token: &HeaderValue, set: Option<u64>) -> HeaderMap {
    let agent = json!({
        "system": "mayfly",
        "version": env!("CARGO_PKG_VERSION"),
        "commit_sha": "",
        "scale_set_id": set.unwrap_or(0),
        "subsystem": "",
        "build_version": env!("CARGO_PKG_VERSION"),
        "build_commit_sha": "",
        "kind": "scaleset",
    });
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, token.clone());
    headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
    if let Ok(agent) = HeaderValue::from_str(&agent.to_string()) {
        headers.insert(USER_AGENT, agent);
    }
    headers
}
