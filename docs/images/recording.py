#!/usr/bin/env python3
"""Records commands in a terminal and writes them as an animated SVG, for the README.

    docs/images/recording.py PROGRAM OUTPUT.svg     PROGRAM is the mayfly binary; its images must be built

The commands really run. Their output appears in the picture at the time at which it came.
"""

import html
import os
import pty
import re
import sys
import time

COMMANDS = [
    "mayfly run -- sh -c 'id; uname -sr'",
    "mayfly run --egress none -- git ls-remote https://github.com/torvalds/linux",
    "mayfly run --timings -- git --version",
]
# Pixels.
LINE, CHARACTER, MARGIN = 18, 8.4, 16
COLUMNS, PAUSE = 96, 1.2
CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]")


def run(command, program):
    """Runs a command in a terminal. Returns its lines with the seconds until each was complete."""
    start, text, lines = time.monotonic(), b"", []
    process, terminal = pty.fork()
    if process == 0:
        os.environ.update(TERM="dumb", COLUMNS=str(COLUMNS), NO_COLOR="1",
                          PATH=f"{os.path.dirname(os.path.abspath(program))}:{os.environ['PATH']}")
        os.execvp("sh", ["sh", "-c", command])
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # Linux reports the end of a terminal as an error.
            chunk = b""
        if not chunk:
            break
        text += chunk
        while b"\n" in text:
            line, text = text.split(b"\n", 1)
            # What a carriage return overwrote was progress.
            line = CONTROL.sub(b"", line).rstrip(b"\r").split(b"\r")[-1]
            lines.append((time.monotonic() - start, line.decode(errors="replace").rstrip()))
    os.waitpid(process, 0)
    return lines, time.monotonic() - start


def main(program, output):
    rows, clock = [], 0.5
    for command in COMMANDS:
        rows.append((clock, "command", "$ " + command))
        lines, duration = run(command, program)
        rows += [(clock + 0.5 + at, "output", line) for at, line in lines if line]
        clock += duration + PAUSE
    width, height = COLUMNS * CHARACTER + 2 * MARGIN, len(rows) * LINE + 2 * MARGIN
    texts = "".join(
        f'<text x="{MARGIN}" y="{MARGIN + LINE * (number + 0.75):.0f}" class="{kind}" '
        f'style="animation-delay:{at:.2f}s">{html.escape(line[:COLUMNS])}</text>\n'
        for number, (at, kind, line) in enumerate(rows))
    with open(output, "w", encoding="utf-8") as file:
        file.write(f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img"
aria-label="A terminal: {html.escape('; '.join(COMMANDS))}">
<!-- Made by docs/images/recording.py from a real run. -->
<style>
text {{ font: 14px ui-monospace, monospace; white-space: pre; opacity: 0; animation: show 0s forwards }}
.command {{ fill: #8bd5ca; font-weight: bold }} .output {{ fill: #d5d9e0 }}
@keyframes show {{ to {{ opacity: 1 }} }}
@media (prefers-reduced-motion) {{ text {{ opacity: 1; animation: none }} }}
</style>
<rect width="100%" height="100%" rx="8" fill="#1e2430"/>
{texts}</svg>
""")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
