//! Checks `[telemetry]`.

use super::draft::TelemetryDraft;
use super::environment::Environment;
use super::error::{ConfigError, ValueError};
use super::sources::Sources;
use super::types::{OtlpConfig, Secret, TelemetryConfig};
use mayfly_telemetry::otlp::{Collector, CollectorError};

/// The standard variables of OpenTelemetry.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";

pub(super) fn telemetry(
    draft: &TelemetryDraft,
    sources: &Sources,
    environment: &Environment,
) -> Result<TelemetryConfig, ConfigError> {
    const KEY: &str = "telemetry.otlp_endpoint";
    let (endpoint, origin) = match (&draft.otlp_endpoint, environment.variable(ENDPOINT)) {
        (Some(endpoint), _) => (endpoint.as_str(), sources.origin(KEY)),
        (None, Some(endpoint)) => (endpoint, ENDPOINT.to_owned()),
        (None, None) => return Ok(TelemetryConfig { otlp: None }),
    };
    let headers = environment
        .variable(HEADERS)
        .map(|text| Secret { value: text.into(), source: HEADERS.to_owned() });
    let to_error = |error| match error {
        CollectorError::InvalidAddress => ConfigError::Value {
            origin,
            key: KEY.to_owned(),
            value: endpoint.to_owned(),
            reason: ValueError::Collector(error),
        },
        // The headers are credentials, so the error does not repeat them.
        CollectorError::InvalidHeaders => ConfigError::Value {
            origin: HEADERS.to_owned(),
            key: KEY.to_owned(),
            value: "…".to_owned(),
            reason: ValueError::Collector(error),
        },
    };
    let collector = Collector::new(endpoint, headers.as_ref().map(|headers| &headers.value));
    let collector = collector.map_err(to_error)?;
    Ok(TelemetryConfig {
        otlp: Some(OtlpConfig { endpoint: endpoint.to_owned(), headers, collector }),
    })
}
