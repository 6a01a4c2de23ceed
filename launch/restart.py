"""Runs a command again for as long as its exit code asks for it.

    python3 launch/restart.py [--wait 100] [--limit 5] [--exit-file FILE] -- .venv/bin/tubevit train ...

0 (done) and 2 (bad input) end the loop. 75 (preempted after saving) starts the command again at once. Anything else,
1 (failed) or a signal, starts it again after a wait that doubles with each failure in a row; after `--limit` of them
the loop gives up. A run of an hour or more ends such a row. The exit code is the command's last (128 + the signal
where one ended it), which `--exit-file` gets too. SIGTERM goes on to the command, which saves, and ends the loop with
75 (start me again) and without that file.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time

DONE, BAD_INPUT, PREEMPTED = 0, 2, 75
HEALTHY, LONGEST = 3600.0, 900.0  # seconds: a run that ends a row of failures; the longest wait


def main() -> int:
    """Runs the loop; returns the last exit code of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    # By default longer than the other processes of a job take to notice that one is gone: all start again together.
    parser.add_argument("--wait", type=float, default=100.0, help="seconds before the first restart after a failure")
    parser.add_argument("--limit", type=int, default=5, help="give up after so many failures in a row")
    parser.add_argument("--exit-file", help="gets the last exit code")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()

    child: subprocess.Popen | None = None
    stopped = threading.Event()

    def stop(number, frame):
        stopped.set()
        if number == signal.SIGTERM and child is not None:  # Ctrl-C reaches the command by itself
            child.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

    failures = 0
    while True:
        begin = time.monotonic()
        try:
            child = subprocess.Popen(args.command)
        except OSError as error:
            say(f"cannot run {args.command[0]}: {error.strerror}")
            code = BAD_INPUT
            break
        if stopped.is_set():  # the signal came before there was a command
            child.send_signal(signal.SIGTERM)
        code = child.wait()
        code = 128 - code if code < 0 else code
        if code in (DONE, BAD_INPUT):
            say(f"exit code {code}: the end")
            break
        if stopped.is_set():
            break
        if code == PREEMPTED:
            say("preempted after saving: again at once")
            continue
        failures = 1 if time.monotonic() - begin >= HEALTHY else failures + 1
        if failures > args.limit:
            say(f"exit code {code}: {failures} failures in a row, the end")
            break
        wait = min(args.wait * 2 ** (failures - 1), LONGEST)
        say(f"exit code {code}: again in {wait:g} s (restart {failures} of {args.limit})")
        if stopped.wait(wait):
            break
    if stopped.is_set() and code not in (DONE, BAD_INPUT):
        say(f"told to end; the command's last exit code was {code}")
        return PREEMPTED
    if args.exit_file:
        with open(args.exit_file + ".new", "w") as file:
            file.write(f"{code}\n")
        os.replace(args.exit_file + ".new", args.exit_file)
    return code


def say(text: str) -> None:
    """Prints a line on stderr."""
    print(f"restart: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
