//! SPDX 2.3, the JSON form of <https://spdx.github.io/spdx-spec/v2.3/>.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Component, ComponentKind, IMAGE, Sbom, license};

const NO_ASSERTION: &str = "NOASSERTION";

pub(super) fn write(sbom: &Sbom) -> serde_json::Result<Vec<u8>> {
    let identifiers: Vec<String> =
        sbom.identifiers().into_iter().map(|text| format!("SPDXRef-{text}")).collect();
    let components = sbom.components.iter().zip(&identifiers);
    let mut document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": sbom.name,
        "documentNamespace":
            format!("https://spdx.org/spdxdocs/mayfly-{}-{}", sbom.name, sbom.uuid()?),
        "creationInfo": {
            "created": sbom.created,
            "creators": [format!("Tool: mayfly-{}", env!("CARGO_PKG_VERSION"))],
        },
        "packages": components.map(|(component, id)| package(component, id)).collect::<Vec<_>>(),
        "relationships": relationships(sbom, &identifiers),
    });
    let extracted = extracted(sbom);
    if !extracted.is_empty() {
        document["hasExtractedLicensingInfos"] = extracted.into();
    }
    let mut bytes = serde_json::to_vec_pretty(&document)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn package(component: &Component, identifier: &str) -> Value {
    let mut package = json!({
        "SPDXID": identifier,
        "name": component.name,
        "downloadLocation": component.location.as_deref().unwrap_or(NO_ASSERTION),
        "filesAnalyzed": false,
        "supplier": supplier(component),
        "licenseConcluded": NO_ASSERTION,
        "licenseDeclared": component.license.as_deref().unwrap_or(NO_ASSERTION),
        "copyrightText": NO_ASSERTION,
        "primaryPackagePurpose": purpose(component.kind),
    });
    let mut add = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            package[key] = value;
        }
    };
    add("versionInfo", component.version.clone().map(Value::from));
    add("homepage", component.homepage.clone().map(Value::from));
    add("sourceInfo", component.source.clone().map(Value::from));
    let checksum = |digest| json!([{ "algorithm": "SHA256", "checksumValue": digest }]);
    add("checksums", component.sha256.as_ref().map(checksum));
    let reference = |purl| {
        json!([{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": purl,
        }])
    };
    add("externalRefs", component.purl.as_ref().map(reference));
    package
}

fn supplier(component: &Component) -> String {
    match &component.supplier {
        Some((name, Some(address))) => format!("Organization: {name} ({address})"),
        Some((name, None)) => format!("Organization: {name}"),
        None => NO_ASSERTION.to_owned(),
    }
}

fn purpose(kind: ComponentKind) -> &'static str {
    match kind {
        ComponentKind::Image | ComponentKind::System => "OPERATING-SYSTEM",
        ComponentKind::Part => "FILE",
        ComponentKind::Program => "APPLICATION",
        ComponentKind::Library => "LIBRARY",
    }
}

fn relationships(sbom: &Sbom, identifiers: &[String]) -> Vec<Value> {
    let relation = |from: &str, kind: &str, to: &str| json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to });
    let mut relations = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", &identifiers[IMAGE])];
    for (component, identifier) in sbom.components.iter().zip(identifiers) {
        let within = component.within.and_then(|within| identifiers.get(within));
        relations.extend(within.map(|within| relation(within, "CONTAINS", identifier)));
    }
    relations
}

/// Returns the licenses that are not in SPDX's list. Their texts are in the image.
fn extracted(sbom: &Sbom) -> Vec<Value> {
    let licenses = sbom.components.iter().filter_map(|component| component.license.as_deref());
    let references: BTreeSet<&str> = licenses.flat_map(license::references).collect();
    let entry = |reference: &&str| {
        json!({
            "licenseId": reference,
            "extractedText":
                "See /usr/share/doc/PACKAGE/copyright in the image, of each package that has it.",
        })
    };
    references.iter().map(entry).collect()
}
