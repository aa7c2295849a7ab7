#!/usr/bin/env bash
# As the runner's own: hides what the listener's exit code says, starts it again where it asks for
# that.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [ "$(id -u)" -eq 0 ] && [ -z "${RUNNER_ALLOW_RUNASROOT:-}" ]; then
    echo "Must not run interactively with sudo"
    exit 0
fi

if [ -n "${RUNNER_MANUALLY_TRAP_SIG:-}" ]; then
    # Not INT, as the real one: a shell's background process ignores that.
    trap 'kill -TERM "$listener" 2>/dev/null' INT TERM
fi

while true; do
    "$root/bin/Runner.Listener" run "$@" &
    listener=$!
    # A signal that is forwarded ends a wait before the listener's end.
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
