# Runs in the enclosure when the system is finished: writes the files of it that say what its
# packages and its runner are made of into a tar archive.
#
# $1  the new system's root directory
# $2  the runner's directory in it, or nothing
# $3  the archive
set -eu

# In a root of its own, so that no symbolic link of the new system leads out of it.
# shellcheck disable=SC2016 # it is the inner shell that expands
chroot "$1" sh -c '
    cd /
    set -- "$1" usr/lib/os-release usr/share/doc/*/copyright
    if [ -n "$1" ]; then
        set -- "$@" "$1"/bin/*.deps.json "$1"/externals/*/include/node/node_version.h
    fi
    shift
    for file do
        # A pattern that fits nothing stays as it is.
        [ ! -f "$file" ] || printf "%s\0" "$file"
    done | tar --create --null --files-from=- --dereference --hard-dereference
' sh "${2#/}" >"$3"
