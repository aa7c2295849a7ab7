//! Warnings about egress policies that refuse hosts that the runner needs.

use super::*;

fn warnings(url: &str, policy: &str, pool: &str) -> Vec<String> {
    let text = format!(
        "[github]\nurl = '{url}'\nrepositories = ['acme/site']\n\
         [[pool]]\nname = 'a'\nlabels = ['x']\n{pool}\n{policy}"
    );
    let warnings = Fixture::with(&[("GITHUB_TOKEN", "x")]).load(&text).unwrap().warnings;
    warnings.into_iter().filter(|text| text.contains("which its runner needs")).collect()
}

#[test]
fn a_policy_that_refuses_what_a_runner_needs_is_warned_about() {
    let site = "https://github.com/acme/site";
    let narrow = "[egress.policy.ci]\ninclude = ['github-core']";
    let own = "[egress.policy.ci]\nallow = [{ host = 'ghes.example.com' }]";
    let tenant = "[egress.policy.ci]\nallow = [{ host = 'octo.ghe.com' }, \
                  { host = '*.octo.ghe.com' }, { host = 'auth.ghe.com' }]";
    for (url, policy, pool, expected) in [
        (site, "", "", None),
        (site, "", "egress = 'open'", None),
        (site, "", "egress = 'none'\ntrigger = 'none'", None),
        (site, "", "egress = 'none'", Some("refuses github.com and 14 more")),
        (site, narrow, "egress = 'ci'", Some("`include = [\"github-results\"]`")),
        ("https://ghes.example.com/acme/site", "", "", Some("refuses ghes.example.com,")),
        ("https://ghes.example.com/acme/site", own, "egress = 'ci'", None),
        ("https://octo.ghe.com/acme/site", "", "", Some("refuses octo.ghe.com and 2 more")),
        ("https://octo.ghe.com/acme/site", tenant, "egress = 'ci'", None),
    ] {
        let found = warnings(url, policy, pool);
        match expected {
            None => assert!(found.is_empty(), "{url} {policy} {pool}: {found:?}"),
            Some(expected) => assert!(found.len() == 1 && found[0].contains(expected), "{found:?}"),
        }
    }
}
