"""Maintain a queued resource: create it again after a preemption, and start the run again, until the run ends."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable

from launch.accelerators import accelerator_types
from launch.commands import LOG, STATUS, create, delete, deploy, describe, on_hosts
from launch.processes import QUICK, execute

Execute = Callable[..., subprocess.CompletedProcess[str]]
SILENT = 10  # consecutive polls without an answer after which the resource is recreated
FAILURES = 5  # failed attempts, or failed checks in a row, after which the loop gives up


def watch(
    args: argparse.Namespace,
    execute: Execute = execute,
    sleep: Callable[[float], None] = time.sleep,
) -> int | None:
    """Maintain a queued resource and its run until the run ends; return the run's exit code, or None after giving up.

    The function keeps no state of its own, so it can be stopped and started again at any time.

    Args:
        args: the flags of launch/tpu.py.
        execute: runs a command, which fails after the given number of seconds.
        sleep: waits between two checks.
    """
    silent = unanswered = failures = 0  # each answer resets the second count, a run in progress the third
    while max(unanswered, failures) < FAILURES:
        found = execute(describe(args), QUICK)
        state = found.stdout.strip() if found.returncode == 0 else "NONE" if "NOT_FOUND" in found.stderr else ""
        said = status(args, execute) if state == "ACTIVE" else ""
        silent = silent + 1 if state == "ACTIVE" and not said else 0
        unanswered = 0 if state else unanswered + 1
        print(f"tpu.py: {args.name} is {state or 'unknown'}, the run {said or 'unknown'}", flush=True)
        failed = state == "FAILED"
        if state == "NONE":
            failed = execute(create(args)).returncode != 0
        elif state in ("FAILED", "SUSPENDED") or silent >= SILENT:  # unavailable, preempted, or lost
            failed |= execute(delete(args)).returncode != 0
            silent = 0
        elif said == "none":
            failed = any(execute(command).returncode for command in deploy(args))
        elif said == "running":
            failures = 0
        elif said:
            print(execute(on_hosts(args, LOG, everywhere=said != "0"), QUICK).stdout)  # whichever host has failed
            failed = execute(delete(args)).returncode != 0
            if not failed:
                return int(said)
        failures += failed
        sleep(args.poll)
    print(f"tpu.py: giving up after {FAILURES} failures", file=sys.stderr)
    return None


def status(args: argparse.Namespace, execute: Execute) -> str:
    """Return the state of the run: none, running, or an exit code; "" if not all hosts answer."""
    said = re.findall(r"^status: (none|running|\d+)$", execute(on_hosts(args, STATUS), QUICK).stdout, re.MULTILINE)
    codes = [word for word in said if word.isdecimal()]
    if failed := [code for code in codes if code != "0"]:
        return failed[0]  # the other hosts would wait for that host forever
    if len(said) < accelerator_types()[args.type] * args.slices:
        return ""
    return "none" if "none" in said else "running" if "running" in said else "0"
