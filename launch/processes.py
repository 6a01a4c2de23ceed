"""Run the commands of other tools: one whose output is read, or several until one fails."""

from __future__ import annotations

import shlex
import subprocess
import sys

QUICK, LONG = 300.0, 3600.0  # seconds after which a question, or a command that changes something, has failed
TIMED_OUT = 124  # the code of such a command, as that of `timeout`


def run_all(commands: list[list[str]], **options) -> int:
    """Run commands until one fails, and return an exit code; `options` are those of `subprocess.run`."""
    for command in commands:
        if code := subprocess.run(command, **options).returncode:
            print(f"tpu.py: {shlex.join(command)} failed with exit code {code}", file=sys.stderr)
            return 1
    return 0


def execute(command: list[str], timeout: float = LONG) -> subprocess.CompletedProcess:
    """Print and run a command, capture its output as text, and show its stderr; it fails after `timeout` seconds.

    Bytes that are not UTF-8, as a log may have, are written as escapes.
    """
    print("$ " + shlex.join(command), flush=True)
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout)
        code, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as late:
        code, out, err = TIMED_OUT, late.stdout or b"", late.stderr or b""
        err += f"tpu.py: {command[0]} did not end within {timeout:g} s\n".encode()
    out, err = (output.decode(errors="backslashreplace") for output in (out, err))
    sys.stderr.write(err)
    return subprocess.CompletedProcess(command, code, out, err)
