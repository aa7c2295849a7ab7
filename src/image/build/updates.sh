#!/bin/sh
# Runs where apt has the package lists but nothing is installed: writes the available version of
# each package, one line each, name and version separated by a tab.
#
# MAYFLY_WORK    directory with `names`, one package per line; the output is `candidates`
# MAYFLY_KERNEL  kernel package, or one that depends on it; its real name is written to `kernel`
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
kernel=$(apt-cache depends --no-recommends --no-suggests "$MAYFLY_KERNEL" |
    sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
echo "${kernel:-$MAYFLY_KERNEL}" >"$MAYFLY_WORK/kernel"
echo "${kernel:-$MAYFLY_KERNEL}" >>"$MAYFLY_WORK/names"
# A package's section of the output begins with its name and a colon.
xargs apt-cache policy <"$MAYFLY_WORK/names" |
    sed -n 's/^\([^ ].*\):$/\1/p; s/^  Candidate: //p' | paste - - >"$MAYFLY_WORK/candidates"
