#!/bin/sh
# Runs where apt knows the package lists, with nothing installed: writes down which version of each
# package is to be had, a line each, the name and the version with a tab between.
#
# MAYFLY_WORK    directory with `names`, a package a line; the answer goes to `candidates`
# MAYFLY_KERNEL  kernel package, or one that depends on it: its real name goes to `kernel`
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
kernel=$(apt-cache depends --no-recommends --no-suggests "$MAYFLY_KERNEL" |
    sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
echo "${kernel:-$MAYFLY_KERNEL}" >"$MAYFLY_WORK/kernel"
echo "${kernel:-$MAYFLY_KERNEL}" >>"$MAYFLY_WORK/names"
# A package's part of the answer begins with its name and a colon.
xargs apt-cache policy <"$MAYFLY_WORK/names" |
    sed -n 's/^\([^ ].*\):$/\1/p; s/^  Candidate: //p' | paste - - >"$MAYFLY_WORK/candidates"
