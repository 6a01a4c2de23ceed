"""The commands of gcloud, xpk, kubectl and SkyPilot that start a run, follow it and delete it.

The functions take the flags of launch/tpu.py. They build the commands and run nothing.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import tempfile

from launch.accelerators import RUNTIMES
from launch.manifests import clone

ROOT = pathlib.Path(__file__).resolve().parent.parent
STATUS = "if [ -e tubevit/launch/host.sh ]; then bash tubevit/launch/host.sh status; else echo status: none; fi"
LOG = "hostname; tail -n 100 tubevit/runs/launch/log"


def gcloud(args: argparse.Namespace, *words: str) -> list[str]:
    """Build a gcloud command for this TPU or queued resource."""
    group = "queued-resources" if args.how == "queued" else "tpu-vm"
    project = [f"--project={args.project}"] if args.project else []
    return ["gcloud", "compute", "tpus", group, *words, f"--zone={args.zone}", *project, "--quiet"]


def create(args: argparse.Namespace) -> list[str]:
    """Build the command that creates the TPU or the queued resource."""
    flags = [f"--accelerator-type={args.type}"]
    version = RUNTIMES[args.type.split("-")[0]]
    if args.how != "queued":
        flags += [f"--version={version}"]
    elif args.slices == 1:
        flags += [f"--runtime-version={version}", f"--node-id={args.name}"]
    else:
        flags += [f"--runtime-version={version}", f"--node-count={args.slices}", f"--node-prefix={args.name}"]
    flags += ["--spot"] * args.spot + ["--reserved"] * args.reserved
    return gcloud(args, "create", args.name, *flags, *args.create_flag)


def describe(args: argparse.Namespace) -> list[str]:
    """Build the command that prints the state of the queued resource."""
    return gcloud(args, "describe", args.name, "--format=value(state.state)")


def on_hosts(args: argparse.Namespace, command: str, everywhere: bool = True) -> list[str]:
    """Build the command that runs another command on all hosts, or on the first host."""
    where = ["--node=all", "--worker=all"] if args.how == "queued" else ["--worker=all"]
    return gcloud(args, "ssh", args.name, *(where if everywhere else ["--worker=0"]), f"--command={command}")


def pack(args: argparse.Namespace) -> tuple[list[str], str]:
    """Build the command that packs the checkout's last commit; return it with the path of the archive."""
    archive = f"{tempfile.gettempdir()}/tubevit-{args.name}.tar.gz"
    return ["git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={archive}", "HEAD"], archive


def deploy(args: argparse.Namespace) -> list[list[str]]:
    """Build the commands that copy the code to all hosts, set it up and start the run in the background."""
    start = on_hosts(args, shlex.join(["bash", "tubevit/launch/host.sh", "start", *args.run]))
    setup = "bash tubevit/launch/host.sh setup"
    if args.clone:
        return [on_hosts(args, f"{{ [ -e tubevit ] || {shlex.join(clone(args))}; }} && {setup}"), start]
    command, archive = pack(args)
    where = ["--node=all", "--worker=all"] if args.how == "queued" else ["--worker=all"]
    copy = gcloud(args, "scp", archive, f"{args.name}:tubevit.tar.gz", *where)
    unpack = "mkdir -p tubevit && tar -xzf tubevit.tar.gz -C tubevit"
    return [command, copy, on_hosts(args, f"{unpack} && {setup}"), start]


def delete(args: argparse.Namespace) -> list[str]:
    """Build the command that deletes the TPU or the queued resource."""
    return gcloud(args, "delete", args.name, *(["--force"] if args.how == "queued" else []))


def xpk(args: argparse.Namespace) -> list[list[str]]:
    """Build the commands that create a workload on GKE, and the cluster if requested.

    A job is restarted as a whole, up to `--max-restarts` times, after preemption (75) or if a process was killed. A
    failed process (1) is restarted by launch/restart.py in its container until that gives up, which ends the job. 0 and
    2 end it.
    """
    place = [
        f"--cluster={args.cluster}",
        f"--tpu-type={args.type}",
        f"--num-slices={args.slices}",
        f"--zone={args.zone}",
    ]
    place += [f"--project={args.project}"] if args.project else []
    commands = []
    if args.create_cluster:
        capacity = ["--spot" if args.spot else "--on-demand"]
        commands += [["xpk", "cluster", "create", *place, *capacity, *args.create_flag]]
    if args.image:
        image = [f"--docker-image={args.image}"]
    else:
        command, archive = pack(args)
        folder = archive.removesuffix(".tar.gz")
        commands += [command, ["mkdir", "-p", folder], ["tar", "-xzf", archive, "-C", folder]]
        image = ["--base-docker-image=python:3.12", f"--script-dir={folder}"]
    # exec: xpk sends SIGTERM to the shell that it starts, which would not pass the signal on.
    run = "exec " + shlex.join(["bash", "launch/host.sh", "run", *args.run])
    restarts = [f"--max-restarts={args.max_restarts}", "--restart-on-exit-codes=75"]
    restarts += ["--termination-grace-period-seconds=120"]  # for the last save
    workload = ["xpk", "workload", "create", f"--workload={args.name}", *place, *image, *restarts, f"--command={run}"]
    return [*commands, workload]


def commands_of(args: argparse.Namespace) -> list[list[str]]:
    """Build the commands that start a run in a way that has no manifest."""
    return xpk(args) if args.how == "xpk" else [create(args), *deploy(args)][args.no_create :]


def later(args: argparse.Namespace) -> dict[str, list[str]]:
    """Build the commands that are printed for later use."""
    if args.how == "jobset":
        pods = f"--selector=jobset.sigs.k8s.io/jobset-name={args.name},batch.kubernetes.io/job-completion-index=0"
        return {
            "log": ["kubectl", "logs", "--follow", pods],
            "status": ["kubectl", "get", "jobset", args.name],
            "delete": ["kubectl", "delete", "jobset", args.name],
        }
    if args.how == "skypilot":
        name = f"--name={args.name}"
        return {
            "log": ["sky", "jobs", "logs", name],
            "status": ["sky", "jobs", "queue"],
            "delete": ["sky", "jobs", "cancel", name],
        }
    if args.how == "xpk":
        place = [f"--cluster={args.cluster}", f"--zone={args.zone}"]
        place += [f"--project={args.project}"] if args.project else []
        return {
            "list": ["xpk", "workload", "list", *place, f"--filter-by-job={args.name}"],
            "delete": ["xpk", "workload", "delete", *place, f"--workload={args.name}"],
        }
    return {
        "log": on_hosts(args, LOG + " -f", everywhere=False),
        "status": on_hosts(args, STATUS),
        "delete": delete(args),
    }
