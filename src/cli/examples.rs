//! Examples of verbs whose help is otherwise a line or two.

pub(super) const PS: &str = "\
Examples:
  mayfly ps
  mayfly ps --json | jq -r '.[].id'";

pub(super) const IMAGE: &str = "\
Examples:
  mayfly image build images/base/image.toml
  mayfly image list
  mayfly image verify base                  whether it still is what was built
  mayfly image remove base@852d1010";

pub(super) const EGRESS: &str = "\
Examples:
  mayfly egress check github api.github.com example.com:22
  mayfly egress show ci --config mayfly.toml
  mayfly egress learn --name ci egress.jsonl      rules for what jobs have reached";

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
  mayfly logs -f 7                          go on until the job is over";

pub(super) const CANCEL: &str = "\
Examples:
  mayfly cancel 7";

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
  mayfly drain                              before a host is shut down";

pub(super) const RELOAD: &str = "\
Examples:
  mayfly config check && mayfly reload";
