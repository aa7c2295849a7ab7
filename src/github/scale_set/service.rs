//! Calls of the scale set service.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, USER_AGENT};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::bootstrap::{Connection, connect};
use super::session::{MessageSession, RawSession};
use super::types::{ListResponse, RawSet, ScaleSet, ScaleSetRunner};
use crate::client::GitHubClient;
use crate::error::CallError;
use crate::job::lenient;
use crate::runners::{DeletionOutcome, JitRunner, escaped};
use crate::transport::{DEADLINE, HttpRequest, Response};
use crate::wire::{Wire, read};

/// The default runner group's ID in this service, as in its own clients.
const DEFAULT_GROUP: u64 = 1;
const VERSION: &str = "api-version=6.0-preview";
const ACCEPTED: &str = "application/json; api-version=6.0-preview";
const SETS: &str = "_apis/runtime/runnerscalesets";
const AGENTS: &str = "_apis/distributedtask/pools/0/agents";

/// A client of the scale set service, for one scope. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ScaleSetClient(pub(super) Arc<ClientInner>);

pub(super) struct ClientInner {
    rest: GitHubClient,
    /// Separate from the REST API's: its rate limit does not apply to the service.
    pub(super) wire: Wire,
    connection: Mutex<Option<Connection>>,
}

/// A call of the service.
pub(super) struct ServiceCall<'a> {
    pub(super) method: Method,
    /// The path under the tenant's URL.
    pub(super) path: String,
    pub(super) body: Option<Value>,
    /// Used instead of the admin token.
    pub(super) token: Option<&'a HeaderValue>,
    /// The scale set's ID, for the user agent.
    pub(super) set: Option<u64>,
}

impl<'a> ServiceCall<'a> {
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

impl ScaleSetClient {
    /// Creates a client with the credentials and the target of `rest`.
    pub(crate) fn new(rest: &GitHubClient) -> Self {
        let wire = Wire::new(rest.0.wire.transport.clone(), String::new(), Duration::ZERO);
        Self(Arc::new(ClientInner { rest: rest.clone(), wire, connection: Mutex::default() }))
    }

    /// Returns the scale set `name` in a runner group (`None`: the default one), and creates it if
    /// needed. Its labels are `labels` and the name itself.
    pub(crate) async fn ensure(
        &self,
        name: &str,
        group: Option<&str>,
        labels: &[String],
    ) -> Result<ScaleSet, CallError> {
        let group = self.group(group).await?;
        let mut all_labels = vec![name.to_owned()];
        all_labels.extend(labels.iter().filter(|label| !label.eq_ignore_ascii_case(name)).cloned());
        let labels: Vec<Value> =
            all_labels.iter().map(|label| json!({ "type": "System", "name": label })).collect();
        let body = json!({
            "name": name,
            "runnerGroupId": group,
            "labels": labels,
            "RunnerSetting": { "disableUpdate": true },
        });
        let Some(set) = self.find(name, group).await? else {
            let created =
                self.read::<RawSet>(ServiceCall::new(Method::POST, SETS).body(body)).await;
            return match created {
                Ok(set) => Ok(set.into()),
                // Created meanwhile, or by the previous attempt, whose response was lost.
                Err(error @ CallError::Refused { status: 409, .. }) => {
                    self.find(name, group).await?.ok_or(error)
                }
                Err(error) => Err(error),
            };
        };
        let same = set.labels.len() == all_labels.len()
            && all_labels
                .iter()
                .all(|label| set.labels.iter().any(|has| has.eq_ignore_ascii_case(label)));
        if same {
            return Ok(set);
        }
        let change =
            ServiceCall::new(Method::PATCH, format!("{SETS}/{}", set.id)).set(set.id).body(body);
        Ok(self.read::<RawSet>(change).await?.into())
    }

    /// Deletes a scale set. The service refuses while it has running jobs.
    pub(crate) async fn remove(&self, set: u64) -> Result<(), CallError> {
        match self.call(&ServiceCall::new(Method::DELETE, format!("{SETS}/{set}")).set(set)).await {
            Ok(_) | Err(CallError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes the scale set `name` in a runner group, if it exists.
    pub(crate) async fn remove_named(
        &self,
        name: &str,
        group: Option<&str>,
    ) -> Result<(), CallError> {
        let group = match self.group(group).await {
            // A deleted group takes its sets with it.
            Err(CallError::NotFound { .. }) => return Ok(()),
            group => group?,
        };
        match self.find(name, group).await? {
            Some(set) => self.remove(set.id).await,
            None => Ok(()),
        }
    }

    /// Opens the set's only session. If another owner's session lingers (409;
    /// [`super::is_session_conflict`]), retry after [`super::recovery::CONFLICT_WAIT`]: it ends
    /// about 50 s after its owner.
    pub(crate) async fn open(&self, set: u64, owner: &str) -> Result<MessageSession, CallError> {
        let call = ServiceCall::new(Method::POST, format!("{SETS}/{set}/sessions"))
            .set(set)
            .body(json!({ "ownerName": owner }));
        let raw: RawSession = self.read(call).await?;
        MessageSession::new(self.clone(), set, raw)
    }

    /// Creates a runner of the set. The name must be new, as with the REST API.
    pub(crate) async fn create_jit_runner(
        &self,
        set: u64,
        name: &str,
        work_folder: &str,
    ) -> Result<JitRunner, CallError> {
        #[derive(Deserialize)]
        struct Created {
            runner: RawAgent,
            #[serde(rename = "encodedJITConfig")]
            jit_config: SecretString,
        }
        let call = ServiceCall::new(Method::POST, format!("{SETS}/{set}/generatejitconfig"))
            .set(set)
            .body(json!({ "name": name, "workFolder": work_folder }));
        match self.read::<Created>(call).await {
            Ok(created) => {
                Ok(JitRunner { runner_id: created.runner.id, jit_config: created.jit_config })
            }
            Err(CallError::Refused { call, message, .. })
                if message.contains("AgentExistsException") =>
            {
                Err(CallError::NameTaken { call })
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the runner with that name.
    pub(crate) async fn runner_by_name(
        &self,
        name: &str,
    ) -> Result<Option<ScaleSetRunner>, CallError> {
        let path = format!("{AGENTS}?agentName={}", escaped(name));
        let found: ListResponse<RawAgent> = self.read(ServiceCall::new(Method::GET, path)).await?;
        Ok(found.value.into_iter().find(|agent| agent.name == name).map(|agent| ScaleSetRunner {
            id: agent.id,
            name: agent.name,
            set: agent.set.filter(|set| *set != 0),
        }))
    }

    /// Deletes a runner. Succeeds if it is already gone.
    pub(crate) async fn delete_runner(&self, id: u64) -> Result<DeletionOutcome, CallError> {
        match self.call(&ServiceCall::new(Method::DELETE, format!("{AGENTS}/{id}"))).await {
            Ok(_) => Ok(DeletionOutcome::Deleted),
            Err(CallError::NotFound { .. }) => Ok(DeletionOutcome::Gone),
            Err(CallError::Refused { message, .. })
                if message.contains("AgentNotFoundException") =>
            {
                Ok(DeletionOutcome::Gone)
            }
            // Recognized by its type: the status is 400 in one source, 409 in another.
            Err(CallError::Refused { message, .. })
                if message.contains("JobStillRunningException") =>
            {
                Ok(DeletionOutcome::Busy)
            }
            Err(error) => Err(error),
        }
    }

    async fn find(&self, name: &str, group: u64) -> Result<Option<ScaleSet>, CallError> {
        let path = format!("{SETS}?runnerGroupId={group}&name={}", escaped(name));
        let found: ListResponse<RawSet> = self.read(ServiceCall::new(Method::GET, path)).await?;
        Ok(found.value.into_iter().map(ScaleSet::from).find(|set| set.name == name))
    }

    async fn group(&self, name: Option<&str>) -> Result<u64, CallError> {
        #[derive(Deserialize)]
        struct Group {
            id: u64,
        }
        let Some(name) = name else { return Ok(DEFAULT_GROUP) };
        let path = format!("_apis/runtime/runnergroups/?groupName={}", escaped(name));
        let call = ServiceCall::new(Method::GET, path);
        let (call_name, found) = (call.name(), self.read::<ListResponse<Group>>(call).await?);
        found.value.first().map(|group| group.id).ok_or_else(|| CallError::NotFound {
            call: call_name,
            message: format!("unknown runner group {name:?}"),
            needs: Some("a runner group with that name"),
        })
    }

    pub(super) async fn read<T: serde::de::DeserializeOwned>(
        &self,
        call: ServiceCall<'_>,
    ) -> Result<T, CallError> {
        read(&self.call(&call).await?, &call.name())
    }

    /// Sends a call. If the admin token is rejected (401), renews it and resends the call once.
    pub(super) async fn call(&self, call: &ServiceCall<'_>) -> Result<Response, CallError> {
        let connection = self.connection(None).await?;
        match self.send(call, &connection).await {
            Err(CallError::Unauthorized { .. }) if call.token.is_none() => {
                let renewed = self.connection(Some(&connection.admin)).await?;
                self.send(call, &renewed).await
            }
            result => result,
        }
    }

    async fn send(
        &self,
        call: &ServiceCall<'_>,
        connection: &Connection,
    ) -> Result<Response, CallError> {
        let separator = if call.path.contains('?') { '&' } else { '?' };
        let request = HttpRequest {
            method: call.method.clone(),
            url: format!("{}/{}{separator}{VERSION}", connection.tenant, call.path),
            headers: headers(call.token.unwrap_or(&connection.admin), call.set),
            body: call.body.as_ref().map(|body| body.to_string().into_bytes()),
            deadline: DEADLINE,
        };
        self.exchange(request, &call.name()).await
    }

    pub(super) async fn exchange(
        &self,
        request: HttpRequest,
        call: &str,
    ) -> Result<Response, CallError> {
        self.0.wire.wait_for_slot(false, call).await?;
        self.0.wire.exchange(request, call, None).await
    }

    /// Returns the connection; a new one if it is about to expire or its token was `refused`.
    /// Locked for the length of a renewal, so that only one runs.
    async fn connection(&self, refused: Option<&HeaderValue>) -> Result<Connection, CallError> {
        let mut connection = self.0.connection.lock().await;
        let now = self.0.rest.0.wire.now();
        let usable = connection.as_ref().filter(|known| {
            now < known.renew_at && refused.is_none_or(|refused| known.admin != *refused)
        });
        if let Some(known) = usable {
            return Ok(known.clone());
        }
        let new = connect(&self.0.rest).await?;
        *connection = Some(new.clone());
        Ok(new)
    }
}

#[derive(Deserialize)]
struct RawAgent {
    id: u64,
    name: String,
    #[serde(rename = "runnerScaleSetId", default, deserialize_with = "lenient")]
    set: Option<u64>,
}

/// Returns the headers of every call to the service, which expects a JSON object as user agent.
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
