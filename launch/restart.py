"""Run a command, and restart it depending on its exit code.

    python3 launch/restart.py [--wait 100] [--limit 5] [--exit-file FILE] -- .venv/bin/tubevit train ...

0 (done) and 2 (bad input) end the loop. After 75 (preempted after saving), the command is restarted at once. After
anything else (1 for a failure, or a signal), it is restarted after a delay, which doubles with each consecutive
failure. The loop gives up after `--limit` consecutive failures; a run of an hour (`--healthy`) or more resets the
count, however it ends. The loop exits with the command's last exit code (128 + the signal that ended it), which is
also written to `--exit-file`. SIGTERM is passed on to the command, which saves; the loop then exits with 75 (restart
me) and does not write that file.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # for modules that need no installed packages

from tubevit.ranges import NOT_NEGATIVE, WHOLE  # noqa: E402

DONE, BAD_INPUT, PREEMPTED = 0, 2, 75
LONGEST = 900.0  # seconds: the longest delay


def main() -> int:
    """Run the loop, and return the last exit code of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    # The default is longer than the processes of a job take to notice that one is gone: all of them restart together.
    parser.add_argument(
        "--wait", type=NOT_NEGATIVE, default=100.0, help="seconds before the first restart after a failure"
    )
    parser.add_argument(
        "--limit", type=WHOLE, default=5, help="number of consecutive failures after which the loop gives up"
    )
    parser.add_argument(
        "--healthy", type=NOT_NEGATIVE, default=3600.0, help="seconds after which a run resets the count of failures"
    )
    parser.add_argument("--exit-file", help="file to which the last exit code is written")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    if args.exit_file:  # before the run, not after it
        try:
            open(args.exit_file + ".new", "w").close()
            os.remove(args.exit_file + ".new")
        except OSError as error:
            parser.error(f"cannot write --exit-file {args.exit_file}: {error.strerror}")

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
        if stopped.is_set():  # the signal arrived before the command was started
            child.send_signal(signal.SIGTERM)
        code = child.wait()
        code = 128 - code if code < 0 else code
        if time.monotonic() - begin >= args.healthy:
            failures = 0
        if code in (DONE, BAD_INPUT):
            say(f"exit code {code}: not restarting")
            break
        if stopped.is_set():
            break
        if code == PREEMPTED:
            say("preempted after saving: restarting at once")
            continue
        failures += 1
        if failures > args.limit:
            say(f"exit code {code}: giving up after {failures} consecutive failures")
            break
        wait = min(args.wait * 2 ** min(failures - 1, 20), LONGEST)
        say(f"exit code {code}: restarting in {wait:g} s (restart {failures} of {args.limit})")
        if stopped.wait(wait):
            break
    if stopped.is_set() and code not in (DONE, BAD_INPUT):
        say(f"stopped by a signal; the command's last exit code was {code}")
        return PREEMPTED
    if args.exit_file:
        with open(args.exit_file + ".new", "w") as file:
            file.write(f"{code}\n")
        os.replace(args.exit_file + ".new", args.exit_file)
    return code


def say(text: str) -> None:
    """Print a line to stderr."""
    print(f"restart: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
