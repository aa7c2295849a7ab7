# The paths of an installation, for scripts/install and scripts/uninstall. Sourced, not run.
# shellcheck shell=bash disable=SC2034 # the scripts use these

prefix=/usr/local
# The root directory of all paths; empty for this machine.
tree=''
settings=/etc/mayfly/mayfly.toml

# set_path OPTION DIRECTORY
set_path() {
    case $2 in
    /*) ;;
    *) fail "$1 requires an absolute path" ;;
    esac
    case $2 in
    *[!A-Za-z0-9/._+@-]*) fail "$1 $2: systemd units would need quotes for this path" ;;
    esac
    case $1 in
    --prefix) prefix=${2%/} ;;
    --root) tree=${2%/} ;;
    esac
}

# Derives the other paths from the options.
derive_paths() {
    share=$prefix/share/mayfly
    manifest=$share/installed
    # systemd searches these directories by default; for other prefixes use the administrator's.
    case $prefix in
    '' | /usr) units=/usr/lib/systemd/system ;;
    /usr/local) units=/usr/local/lib/systemd/system ;;
    *) units=/etc/systemd/system ;;
    esac
}
