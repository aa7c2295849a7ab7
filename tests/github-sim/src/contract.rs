//! Validates exchanges against GitHub's own `OpenAPI` description.
//!
//! The description is not part of the project: `MAYFLY_GITHUB_CONTRACT` names the directory with
//! `openapi-runners.json` (the JSON of `@octokit/openapi`, or an excerpt with the calls that Mayfly
//! makes) and GitHub's sample webhooks. Validated are the path and method, the request's body, the
//! response's status and its body. The description does not cover responses of faults, of the
//! scale set service and of the simulator's own calls.

mod schema;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::faults::Fault;
use crate::record::Exchange;
use schema::Schemas;

/// The environment variable that names the description's directory.
pub const VARIABLE: &str = "MAYFLY_GITHUB_CONTRACT";

/// The description's file name.
const DESCRIPTION: &str = "openapi-runners.json";

/// Statuses that every call may return, whether or not its description lists them.
const ALWAYS: [u16; 7] = [304, 401, 403, 404, 429, 502, 503];

/// An error of loading the description.
#[derive(Debug, thiserror::Error)]
pub enum ContractError {
    /// The file can't be read.
    #[error("can't read the API description {0}")]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// The file is not JSON.
    #[error("the API description {0} is not JSON")]
    NotJson(PathBuf, #[source] serde_json::Error),
}

/// A violation of the description by an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// `POST /orgs/octo/actions/runners/generate-jitconfig 201`
    pub exchange: String,
    /// The error, and its position in the body.
    pub message: String,
}

/// GitHub's API description.
#[derive(Debug)]
pub struct Contract {
    description: Value,
}

impl Contract {
    /// Loads the description that the environment names; `None` if the variable is unset.
    ///
    /// # Errors
    ///
    /// The description can't be loaded.
    pub fn from_environment() -> Result<Option<Self>, ContractError> {
        let directory = std::env::var_os(VARIABLE);
        directory.map(|path| Self::load(&Path::new(&path).join(DESCRIPTION))).transpose()
    }

    /// Loads a description.
    ///
    /// # Errors
    ///
    /// The file can't be read or is not JSON.
    pub fn load(path: &Path) -> Result<Self, ContractError> {
        let text = std::fs::read(path)
            .map_err(|error| ContractError::Unreadable(path.to_owned(), error))?;
        let description = serde_json::from_slice(&text)
            .map_err(|error| ContractError::NotJson(path.to_owned(), error))?;
        Ok(Self { description })
    }

    /// Validates exchanges.
    ///
    /// # Errors
    ///
    /// All violations.
    pub fn validate(&self, exchanges: &[Exchange]) -> Result<(), Vec<Violation>> {
        let mut violations = Vec::new();
        for exchange in exchanges.iter().filter(|exchange| is_described(exchange)) {
            for message in self.check(exchange) {
                violations.push(Violation { exchange: exchange.masked(), message });
            }
        }
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }

    fn check(&self, exchange: &Exchange) -> Vec<String> {
        let Some(operation) = self.operation(&exchange.method, &exchange.path) else {
            return vec!["the call is not described".to_owned()];
        };
        let schemas = Schemas::new(&self.description);
        let mut errors = Vec::new();
        let request = schemas.resolve(&operation["requestBody"]);
        // A request that GitHub rejects may be invalid.
        if exchange.status < 400 && exchange.fault.is_none() {
            if exchange.request.is_empty() {
                if request["required"] == true {
                    errors.push("the request has no body".to_owned());
                }
            } else if !request.is_null() {
                let schema = &request["content"]["application/json"]["schema"];
                check_body(&schemas, schema, &exchange.request, "request", &mut errors);
            }
        }
        if exchange.fault.is_some_and(|fault| fault != Fault::CutBody && fault != Fault::LostAnswer)
        {
            return errors;
        }
        let response = schemas.resolve(&operation["responses"][exchange.status.to_string()]);
        if response.is_null() {
            if !ALWAYS.contains(&exchange.status) {
                errors.push(format!("the status {} is not described", exchange.status));
            }
            return errors;
        }
        let schema = &response["content"]["application/json"]["schema"];
        if schema.is_null() {
            if !exchange.response.is_empty() {
                errors.push("the response has a body, but none is described".to_owned());
            }
        } else {
            check_body(&schemas, schema, &exchange.response, "response", &mut errors);
        }
        errors
    }

    /// Returns the operation of a method at the matching path with the fewest variables.
    fn operation(&self, method: &str, path: &str) -> Option<&Value> {
        let paths = self.description["paths"].as_object()?;
        let fitting = paths.iter().filter(|(template, _)| fits(template, path));
        let (_, item) = fitting.min_by_key(|(template, _)| template.matches('{').count())?;
        item.get(method.to_lowercase())
    }
}

/// Whether GitHub's description covers a call.
fn is_described(exchange: &Exchange) -> bool {
    let undescribed = ["/_sim/", "/_apis/", "/actions/runner-registration", "/enterprises/"];
    !undescribed.iter().any(|prefix| exchange.path.starts_with(prefix))
}

fn fits(template: &str, path: &str) -> bool {
    let (mut parts, mut expected) = (path.split('/'), template.split('/'));
    loop {
        match (expected.next(), parts.next()) {
            (None, None) => return true,
            (Some(expected), Some(part)) if expected == part => {}
            (Some(expected), Some(part)) if expected.starts_with('{') && !part.is_empty() => {}
            _ => return false,
        }
    }
}

fn check_body(
    schemas: &Schemas<'_>,
    schema: &Value,
    text: &str,
    which: &str,
    errors: &mut Vec<String>,
) {
    match serde_json::from_str(text) {
        Ok(body) => {
            let found = schemas.check(schema, &body, "");
            errors.extend(found.into_iter().map(|error| format!("{which}: {error}")));
        }
        Err(error) => errors.push(format!("{which}: not JSON: {error}")),
    }
}
