# Runs in the enclosure when the system is finished: writes its files that describe its packages and
# its runner into a tar archive.
#
# $1  the new system's root directory
# $2  the runner's directory in it, or empty
# $3  the archive
set -eu

# With a root of its own, so that no symbolic link of the new system leads outside.
# shellcheck disable=SC2016 # the inner shell expands it
chroot "$1" sh -c '
    cd /
    set -- "$1" usr/lib/os-release usr/share/doc/*/copyright
    if [ -n "$1" ]; then
        set -- "$@" "$1"/bin/*.deps.json "$1"/externals/*/include/node/node_version.h
    fi
    shift
    for file do
        # A pattern without a match is left unexpanded.
        [ ! -f "$file" ] || printf "%s\0" "$file"
    done | tar --create --null --files-from=- --dereference --hard-dereference
' sh "${2#/}" >"$3"
