//! `CycloneDX` 1.5, the JSON form of <https://cyclonedx.org/docs/1.5/json/>.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Component, ComponentKind, IMAGE, Sbom};

pub(super) fn write(sbom: &Sbom) -> serde_json::Result<Vec<u8>> {
    let identifiers = sbom.identifiers();
    let mut components: Vec<Value> = sbom
        .components
        .iter()
        .zip(&identifiers)
        .map(|(component, identifier)| described(component, identifier))
        .collect();
    let image = components.remove(IMAGE);
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": format!("urn:uuid:{}", sbom.uuid()?),
        "version": 1,
        "metadata": {
            "timestamp": sbom.created,
            "tools": { "components": [{
                "type": "application",
                "name": "mayfly",
                "version": env!("CARGO_PKG_VERSION"),
            }]},
            "component": image,
        },
        "components": components,
        "dependencies": dependencies(sbom, &identifiers),
    });
    let mut bytes = serde_json::to_vec_pretty(&document)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn described(component: &Component, identifier: &str) -> Value {
    let mut described = json!({
        "type": kind(component.kind),
        "bom-ref": identifier,
        "name": component.name,
    });
    let mut add = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            described[key] = value;
        }
    };
    add("version", component.version.clone().map(Value::from));
    add("purl", component.purl.clone().map(Value::from));
    add(
        "supplier",
        component.supplier.as_ref().map(|(name, address)| match address {
            Some(address) => json!({ "name": name, "contact": [{ "email": address }] }),
            None => json!({ "name": name }),
        }),
    );
    let license = |license| json!([{ "expression": license }]);
    add("licenses", component.license.as_ref().map(license));
    let digest = |digest| json!([{ "alg": "SHA-256", "content": digest }]);
    add("hashes", component.sha256.as_ref().map(digest));
    let source = |source| json!([{ "name": "mayfly:source", "value": source }]);
    add("properties", component.source.as_ref().map(source));
    let addresses = [("website", &component.homepage), ("distribution", &component.location)];
    let references: Vec<Value> = addresses
        .into_iter()
        .filter_map(|(kind, url)| Some(json!({ "type": kind, "url": url.as_ref()? })))
        .collect();
    add("externalReferences", (!references.is_empty()).then(|| references.into()));
    described
}

fn kind(kind: ComponentKind) -> &'static str {
    match kind {
        ComponentKind::Image | ComponentKind::System => "operating-system",
        ComponentKind::Part => "file",
        ComponentKind::Program => "application",
        ComponentKind::Library => "library",
    }
}

/// Returns the contents of each component that contains others.
fn dependencies(sbom: &Sbom, identifiers: &[String]) -> Vec<Value> {
    let mut within: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for (component, identifier) in sbom.components.iter().zip(identifiers) {
        if let Some(parent) = component.within {
            within.entry(parent).or_default().push(identifier);
        }
    }
    within
        .into_iter()
        .map(|(parent, parts)| json!({ "ref": identifiers[parent], "dependsOn": parts }))
        .collect()
}
