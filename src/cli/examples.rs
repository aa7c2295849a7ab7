//! Examples for commands with short help texts.

pub(super) const PS: &str = "\
Examples:
  mayfly ps
  mayfly ps --json | jq -r '.[].id'";

pub(super) const IMAGE: &str = "\
Examples:
  mayfly image build images/base/image.toml
  mayfly image list
  mayfly image verify base                  check that it is unchanged
  mayfly image remove base@852d1010";

pub(super) const EGRESS: &str = "\
Examples:
  mayfly egress check github api.github.com example.com:22
  mayfly egress show ci --config mayfly.toml
  mayfly egress learn --name ci egress.jsonl      create rules from what jobs have reached";

pub(super) const CONFIG: &str = "\
Examples:
  mayfly config check --config /etc/mayfly/mayfly.toml
  mayfly config show --json";

pub(super) const AUDIT: &str = "\
Examples:
  mayfly audit verify
  mayfly audit show --after 1200";

pub(super) const DOCTOR: &str = "\
Examples:
  mayfly doctor
  mayfly doctor --json | jq -r '.[] | select(.outcome == \"bad\") | .remedy'";

pub(super) const LOGS: &str = "\
Examples:
  mayfly logs 7
  mayfly logs -f 7                          continue until the job ends";

pub(super) const CANCEL: &str = "\
Examples:
  mayfly cancel 7                           the audit log records who canceled it";

pub(super) const POOLS: &str = "\
Examples:
  mayfly pools
  mayfly pools --json | jq '.[] | {name, warm, waiting}'";

pub(super) const STATUS: &str = "\
Examples:
  mayfly status
  mayfly status --json | jq .running";

pub(super) const DRAIN: &str = "\
Examples:
  mayfly drain                              let running jobs end by themselves
  mayfly drain --end-jobs --within 20s      before a shutdown of the host";

pub(super) const RELOAD: &str = "\
Examples:
  mayfly config check && mayfly reload";

pub(super) const IMAGE_BUILD: &str = "\
Examples:
  mayfly image build images/base/image.toml
  mayfly image build images/runner/image.toml --config mayfly.toml
  mayfly image build images/base/image.toml --set packages+=make --set name=tools";

pub(super) const IMAGE_LIST: &str = "\
Examples:
  mayfly image list
  mayfly image list --json | jq -r '.[] | select(.newest) | .name'";

pub(super) const IMAGE_INSPECT: &str = "\
Examples:
  mayfly image inspect runner
  mayfly image inspect base@0a1b2c --json | jq .packages";

pub(super) const IMAGE_ROLLBACK: &str = "\
Examples:
  mayfly image rollback runner";

pub(super) const IMAGE_VERIFY: &str = "\
Examples:
  mayfly image verify base runner
  mayfly image verify runner --key images.pub";

pub(super) const IMAGE_REMOVE: &str = "\
Examples:
  mayfly image remove base@0a1b2c";

pub(super) const EGRESS_CHECK: &str = "\
Examples:
  mayfly egress check github api.github.com example.com:22
  mayfly egress check ci deb.example.com:80 --config mayfly.toml

Exits with 1 if the policy refuses a destination.";

pub(super) const EGRESS_LEARN: &str = "\
Examples:
  mayfly egress learn --name ci record/egress.jsonl";

pub(super) const EGRESS_SETS: &str = "\
Examples:
  mayfly egress sets";

pub(super) const EGRESS_SHOW: &str = "\
Examples:
  mayfly egress show github
  mayfly egress show ci --config mayfly.toml";

pub(super) const CONFIG_CHECK: &str = "\
Examples:
  mayfly config check --config /etc/mayfly/mayfly.toml
  mayfly config check && mayfly reload";

pub(super) const CONFIG_SHOW: &str = "\
Examples:
  mayfly config show --config /etc/mayfly/mayfly.toml
  mayfly config show --json | jq .host";
