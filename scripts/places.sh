# Where scripts/install puts things and scripts/uninstall finds them. Sourced, not run.
# shellcheck shell=bash disable=SC2034 # they use these

prefix=/usr/local
# The tree that all paths are in; empty for this machine's own.
tree=''
settings=/etc/mayfly/mayfly.toml

# place OPTION DIRECTORY
place() {
    case $2 in
    /*) ;;
    *) fail "$1 wants an absolute path" ;;
    esac
    case $2 in
    *[!A-Za-z0-9/._+@-]*) fail "$1 $2: systemd's units would need quotes for such a path" ;;
    esac
    case $1 in
    --prefix) prefix=${2%/} ;;
    --root) tree=${2%/} ;;
    esac
}

# What follows from the choices.
settle() {
    share=$prefix/share/mayfly
    manifest=$share/installed
    # Where systemd looks for itself; elsewhere only the administrator's place is left.
    case $prefix in
    '' | /usr) units=/usr/lib/systemd/system ;;
    /usr/local) units=/usr/local/lib/systemd/system ;;
    *) units=/etc/systemd/system ;;
    esac
}
