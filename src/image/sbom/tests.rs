//! The SBOM of a small image, in both formats. `tests/sbom.rs` validates those of a real image
//! against the published schemas.

use serde_json::Value;

use super::*;
use crate::manifest::{InstalledPackage, PartName};

const COPYRIGHT: &str = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
License: GPL-2+ and public-domain
";

fn digest(text: &str) -> Digest {
    hash::of_bytes(text.as_bytes())
}

fn facts() -> SystemFacts {
    let package = |line| DebianPackage::parse(line).unwrap();
    let library = package(
        "libstdc++6\t14.2.0-19\tamd64\tgcc-14\t14.2.0-19\t\
         Debian GCC Maintainers <gcc@example.com>\thttp://gcc.example.com/",
    );
    let kernel = package("linux-image-6\t6.12\tamd64\tlinux\t6.12\tKernel Team\tnot a URL");
    let mut facts = SystemFacts::new(vec![library], kernel);
    facts.add_file("usr/lib/os-release", "ID=debian\nVERSION_ID=\"13\"\n");
    facts.add_file("usr/share/doc/libstdc++6/copyright", COPYRIGHT);
    facts.add_file(
        "r/bin/a.deps.json",
        r#"{"libraries": {"System.Text.Json/8.0.5": {"type": "package"}}}"#,
    );
    facts
}

fn sbom(facts: &SystemFacts) -> Sbom {
    let part = |file, text| Part { file, bytes: 1, sha256: digest(text) };
    let runner = InstalledRunner {
        version: "2.335.1".to_owned(),
        sha256: digest("runner"),
        released: 0,
        directory: "/home/runner/actions-runner".to_owned(),
    };
    let download = InstalledDownload {
        name: "cosign".to_owned(),
        version: "3.0.0".to_owned(),
        path: "/usr/local/bin/cosign".to_owned(),
        url: "https://example.com/cosign".to_owned(),
        sha256: digest("cosign"),
    };
    let subject = SbomSubject {
        name: &"small".parse().unwrap(),
        suite: "trixie",
        created: 1_700_000_000,
        parts: [
            &part(PartName::Kernel, "k"),
            &part(PartName::Initramfs, "i"),
            &part(PartName::Rootfs, "r"),
        ],
        agent: &AgentInfo { version: "0.1.0".to_owned(), sha256: digest("agent") },
        runner: Some(&runner),
        downloads: &[download],
    };
    Sbom::new(&subject, facts)
}

fn parsed(bytes: serde_json::Result<Vec<u8>>) -> Value {
    serde_json::from_slice(&bytes.unwrap()).unwrap()
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let list = list.as_array().unwrap();
    list.iter().find(|entry| entry["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

const LIBRARY: &str = "pkg:deb/debian/libstdc%2B%2B6@14.2.0-19?arch=amd64&distro=debian-13&upstream=gcc-14%4014.2.0-19";

#[test]
fn spdx_has_suppliers_and_licenses() {
    let document = parsed(sbom(&facts()).to_spdx());
    let packages = &document["packages"];
    let library = named(packages, "libstdc++6");
    assert_eq!(library["supplier"], "Organization: Debian GCC Maintainers (gcc@example.com)");
    assert_eq!(library["licenseDeclared"], "GPL-2.0-or-later AND LicenseRef-public-domain");
    assert_eq!(library["externalRefs"][0]["referenceLocator"], LIBRARY);
    let extracted = &document["hasExtractedLicensingInfos"];
    assert_eq!(extracted.as_array().unwrap().len(), 1);
    assert_eq!(extracted[0]["licenseId"], "LicenseRef-public-domain");
    let kernel = named(packages, "linux-image-6");
    assert_eq!(kernel["licenseDeclared"], "NOASSERTION");
    assert!(kernel.get("homepage").is_none(), "an invalid URL is omitted");
    let rootfs = named(packages, "rootfs.img");
    assert_eq!(rootfs["checksums"][0]["checksumValue"], digest("r").as_str());
    assert_eq!(named(packages, "cosign")["downloadLocation"], "https://example.com/cosign");
    assert_eq!(document["creationInfo"]["created"], "2023-11-14T22:13:20Z");
}

#[test]
fn spdx_contains_each_component_in_another() {
    let document = parsed(sbom(&facts()).to_spdx());
    let id = |name| named(&document["packages"], name)["SPDXID"].clone();
    let relations = document["relationships"].as_array().unwrap();
    let has = |from: Value, kind: &str, to: Value| {
        relations.iter().any(|relation| {
            relation["spdxElementId"] == from
                && relation["relationshipType"] == kind
                && relation["relatedSpdxElement"] == to
        })
    };
    assert!(has("SPDXRef-DOCUMENT".into(), "DESCRIBES", id("small")));
    assert!(has(id("small"), "CONTAINS", id("libstdc++6")));
    assert!(has(id("actions-runner"), "CONTAINS", id("System.Text.Json")));
    assert!(has(id("mayfly-guest"), "CONTAINS", id("nix")));
    // One for each component: all except the image are contained in another.
    assert_eq!(relations.len(), document["packages"].as_array().unwrap().len());
}

#[test]
fn cyclonedx_has_the_same_content() {
    let document = parsed(sbom(&facts()).to_cyclonedx());
    assert_eq!(document["metadata"]["component"]["name"], "small");
    let components = &document["components"];
    let library = named(components, "libstdc++6");
    assert_eq!(library["purl"], LIBRARY);
    let expression = &library["licenses"][0]["expression"];
    assert_eq!(expression, "GPL-2.0-or-later AND LicenseRef-public-domain");
    assert_eq!(named(components, "debian")["type"], "operating-system");
    let runner = named(components, "actions-runner");
    assert_eq!(runner["purl"], "pkg:github/actions/runner@v2.335.1");
    let dependencies = document["dependencies"].as_array().unwrap();
    let of_runner = dependencies.iter().find(|entry| entry["ref"] == runner["bom-ref"]).unwrap();
    let json = &named(components, "System.Text.Json")["bom-ref"];
    assert_eq!(of_runner["dependsOn"].as_array().unwrap(), std::slice::from_ref(json));
}

#[test]
fn an_sbom_depends_on_the_image_only() {
    let (first, again) = (sbom(&facts()), sbom(&facts()));
    assert_eq!(first.to_spdx().unwrap(), again.to_spdx().unwrap());
    assert_eq!(first.to_cyclonedx().unwrap(), again.to_cyclonedx().unwrap());

    let mut changed = facts();
    let package = &changed.packages[0].package;
    changed.packages[0].package =
        InstalledPackage { version: "14.2.0-20".to_owned(), ..package.clone() };
    let (one, other) = (parsed(first.to_spdx()), parsed(sbom(&changed).to_spdx()));
    assert_ne!(one["documentNamespace"], other["documentNamespace"]);
}

#[test]
fn the_uuid_is_valid() {
    let uuid = sbom(&facts()).uuid().unwrap();
    let lengths: Vec<_> = uuid.split('-').map(str::len).collect();
    assert_eq!(lengths, [8, 4, 4, 4, 12]);
    assert_eq!((&uuid[14..15], &uuid[19..20]), ("8", "8"), "version and variant");
}
