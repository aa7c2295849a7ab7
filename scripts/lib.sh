# Functions of all scripts: messages, and installation of requirements. Sourced, not run.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}

# The tested version of the program between a guest's vsock device and its shepherd. It is built from its
# published source, because no distribution packages it yet.
vsock_version=0.3.0

if [ -t 2 ]; then bold=$'\033[1m' red=$'\033[1;31m' plain=$'\033[0m'; else bold='' red='' plain=''; fi
say() { printf '%s==>%s %s\n' "$bold" "$plain" "$*" >&2; }
fail() { printf '%serror%s: %s\n' "$red" "$plain" "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else fail "this command needs root: $*"
    fi
}

# Succeeds if all named packages are installed.
installed() { dpkg-query -W -f='${db:Status-Abbrev}\n' "$@" 2>/dev/null | grep -cx 'ii *' | grep -qx "$#"; }

# Installs the named packages that are missing.
install_packages() {
    local missing=()
    for package in "$@"; do installed "$package" || missing+=("$package"); done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || fail "missing packages: ${missing[*]} (Debian's names; install them with your package manager)"
    say "installing ${missing[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${apt_options[@]}" "${missing[@]}" >/dev/null
}
apt_options=()

# Debian 12 has QEMU 7.2; its backports have the version of Debian 13. The backports are added with the
# mirror of the machine's own sources.
use_backports_on_debian_12() {
    # shellcheck source=/dev/null
    . /etc/os-release
    [ "${ID:-}" = debian ] && [ "${VERSION_ID:-}" = 12 ] || return 0
    apt_options=(-t bookworm-backports)
    grep -rqs bookworm-backports /etc/apt/sources.list /etc/apt/sources.list.d && return 0
    local list=/etc/apt/sources.list.d/mayfly-backports
    if [ -f /etc/apt/sources.list.d/debian.sources ]; then
        sed -n '1,/^$/p' /etc/apt/sources.list.d/debian.sources |
            sed 's/^Suites:.*/Suites: bookworm-backports/' | as_root tee "$list.sources" >/dev/null
    else
        grep -hm1 -E '^deb .* bookworm ' /etc/apt/sources.list |
            sed 's/ bookworm / bookworm-backports /' | as_root tee "$list.list" >/dev/null
    fi
}

# Installs the packages for building and running microVMs. The Rust toolchain must exist already: see
# `require_rust`.
install_requirements() {
    local packages=(mmdebstrap e2fsprogs kmod uidmap gcc libc6-dev nftables)
    # The keys of the images' suite; Debian itself has them.
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || packages+=(debian-archive-keyring)
    install_packages "${packages[@]}"
    if ! installed qemu-system-x86 qemu-utils; then
        use_backports_on_debian_12
        install_packages qemu-system-x86 qemu-utils
        # All other packages come from the default suite.
        apt_options=()
    fi
}

require_rust() {
    command -v cargo >/dev/null ||
        fail "cargo is not installed: install Rust with rustup (https://rustup.rs) and try again"
}

# Builds the agent. It is linked statically, because the initramfs has no libraries.
build_agent() {
    local triple=x86_64-unknown-linux-gnu
    (cd "$root" && RUSTFLAGS='-C target-feature=+crt-static' \
        cargo build --quiet --locked --profile guest --package mayfly-guest --target "$triple")
    install -D "$target/$triple/guest/mayfly-guest" "$target/libexec/mayfly/mayfly-guest"
}

# Installs vhost-device-vsock where the programs under target/ look for it.
install_vsock() {
    local libexec=$target/libexec/mayfly
    [ -x "$libexec/vhost-device-vsock" ] &&
        [ "$("$libexec/vhost-device-vsock" --version)" = "vhost-device-vsock $vsock_version" ] && return
    say "building vhost-device-vsock $vsock_version"
    # Its version and its dependencies (--locked) are pinned; our compiler flags do not apply.
    cargo install --quiet --locked --root "$target/vsock" --target-dir "$target/vsock/build" \
        vhost-device-vsock --version "$vsock_version"
    install -D "$target/vsock/bin/vhost-device-vsock" "$libexec/vhost-device-vsock"
    rm -rf "$target/vsock"
}
