#!/usr/bin/env bash
# Like the real runner's run.sh: hides the listener's exit code, and restarts the listener if the
# code requests it.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [ "$(id -u)" -eq 0 ] && [ -z "${RUNNER_ALLOW_RUNASROOT:-}" ]; then
    echo "Must not run interactively with sudo"
    exit 0
fi

if [ -n "${RUNNER_MANUALLY_TRAP_SIG:-}" ]; then
    # Not INT, like the real one: a shell's background process ignores it.
    trap 'kill -TERM "$listener" 2>/dev/null' INT TERM
fi

while true; do
    "$root/bin/Runner.Listener" run "$@" &
    listener=$!
    # A forwarded signal ends the wait before the listener exits.
    while true; do
        wait "$listener"
        code=$?
        kill -0 "$listener" 2>/dev/null || break
    done
    case $code in
        2 | 3 | 4) echo "Runner listener exited with code $code, starting again"; sleep 5 ;;
        7) [ -n "${ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE:-}" ] && exit 7; exit 0 ;;
        *) exit 0 ;;
    esac
done
