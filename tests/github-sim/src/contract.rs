//! Checks exchanges against GitHub's own `OpenAPI` description.
//!
//! The description is not part of the project: `MAYFLY_GITHUB_CONTRACT` names the directory of
//! `openapi-runners.json` (the JSON of `@octokit/openapi`, or an excerpt with the calls that Mayfly
//! makes), in which GitHub's sample webhooks are, too. Checked are the path and method, the body of the request, that the status is one that is described, and the body of the
//! answer. Answers of faults, of the scale-set service and of the simulator's own calls are not
//! GitHub's to describe.

mod schema;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::faults::Fault;
use crate::record::Exchange;
use schema::Schemas;

/// The variable that names the directory of the description.
pub const VARIABLE: &str = "MAYFLY_GITHUB_CONTRACT";

/// The description in it.
const DESCRIPTION: &str = "openapi-runners.json";

/// Statuses that every call may answer, whether or not its description says so.
const ALWAYS: [u16; 7] = [304, 401, 403, 404, 429, 502, 503];

/// Why the description can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ContractError {
    /// The file can't be read.
    #[error("the description of GitHub's calls {0} can't be read")]
    Unreadable(PathBuf, #[source] std::io::Error),
    /// It isn't JSON.
    #[error("the description of GitHub's calls {0} is not JSON")]
    NotJson(PathBuf, #[source] serde_json::Error),
}

/// What is wrong with an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// `POST /orgs/octo/actions/runners/generate-jitconfig 201`
    pub exchange: String,
    /// What, and where in the body.
    pub problem: String,
}

/// GitHub's description of its calls.
#[derive(Debug)]
pub struct Contract {
    description: Value,
}

impl Contract {
    /// The description that the environment names; `None` where it names none.
    ///
    /// # Errors
    ///
    /// If it names one that can't be read.
    pub fn from_environment() -> Result<Option<Self>, ContractError> {
        let directory = std::env::var_os(VARIABLE);
        directory.map(|path| Self::load(&Path::new(&path).join(DESCRIPTION))).transpose()
    }

    /// Reads a description.
    ///
    /// # Errors
    ///
    /// If it can't be read or isn't JSON.
    pub fn load(path: &Path) -> Result<Self, ContractError> {
        let text = std::fs::read(path)
            .map_err(|error| ContractError::Unreadable(path.to_owned(), error))?;
        let description = serde_json::from_slice(&text)
            .map_err(|error| ContractError::NotJson(path.to_owned(), error))?;
        Ok(Self { description })
    }

    /// Checks exchanges.
    ///
    /// # Errors
    ///
    /// All that is wrong.
    pub fn validate(&self, exchanges: &[Exchange]) -> Result<(), Vec<Violation>> {
        let mut violations = Vec::new();
        for exchange in exchanges.iter().filter(|exchange| is_described(exchange)) {
            for problem in self.check(exchange) {
                violations.push(Violation { exchange: exchange.masked(), problem });
            }
        }
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }

    fn check(&self, exchange: &Exchange) -> Vec<String> {
        let Some(operation) = self.operation(&exchange.method, &exchange.path) else {
            return vec!["no such call is described".to_owned()];
        };
        let schemas = Schemas::new(&self.description);
        let mut problems = Vec::new();
        let asked = schemas.resolve(&operation["requestBody"]);
        // A request that GitHub refuses as invalid may well be.
        if exchange.status < 400 && exchange.fault.is_none() {
            if exchange.request.is_empty() {
                if asked["required"] == true {
                    problems.push("the request has no body".to_owned());
                }
            } else if !asked.is_null() {
                let schema = &asked["content"]["application/json"]["schema"];
                check_body(&schemas, schema, &exchange.request, "request", &mut problems);
            }
        }
        if exchange.fault.is_some_and(|fault| fault != Fault::CutBody && fault != Fault::LostAnswer)
        {
            return problems;
        }
        let response = schemas.resolve(&operation["responses"][exchange.status.to_string()]);
        if response.is_null() {
            if !ALWAYS.contains(&exchange.status) {
                problems.push(format!("the status {} is not described", exchange.status));
            }
            return problems;
        }
        let schema = &response["content"]["application/json"]["schema"];
        if schema.is_null() {
            if !exchange.answer.is_empty() {
                problems.push("the answer has a body, none is described".to_owned());
            }
        } else {
            check_body(&schemas, schema, &exchange.answer, "answer", &mut problems);
        }
        problems
    }

    /// The operation of a method at the path with the fewest variables that fits.
    fn operation(&self, method: &str, path: &str) -> Option<&Value> {
        let paths = self.description["paths"].as_object()?;
        let fitting = paths.iter().filter(|(template, _)| fits(template, path));
        let (_, item) = fitting.min_by_key(|(template, _)| template.matches('{').count())?;
        item.get(method.to_lowercase())
    }
}

/// Whether GitHub's description says anything about a call at all.
fn is_described(exchange: &Exchange) -> bool {
    let beside = ["/_sim/", "/_apis/", "/actions/runner-registration", "/enterprises/"];
    !beside.iter().any(|prefix| exchange.path.starts_with(prefix))
}

fn fits(template: &str, path: &str) -> bool {
    let (mut parts, mut wanted) = (path.split('/'), template.split('/'));
    loop {
        match (wanted.next(), parts.next()) {
            (None, None) => return true,
            (Some(want), Some(part)) if want == part => {}
            (Some(want), Some(part)) if want.starts_with('{') && !part.is_empty() => {}
            _ => return false,
        }
    }
}

fn check_body(
    schemas: &Schemas<'_>,
    schema: &Value,
    text: &str,
    which: &str,
    problems: &mut Vec<String>,
) {
    match serde_json::from_str(text) {
        Ok(body) => {
            let found = schemas.check(schema, &body, "");
            problems.extend(found.into_iter().map(|problem| format!("{which}: {problem}")));
        }
        Err(error) => problems.push(format!("{which}: not JSON: {error}")),
    }
}
