"""Start a run on Cloud TPUs: one VM, a pod slice, a queued resource that is recreated when preempted, GKE or SkyPilot.

    python3 launch/tpu.py vm       --name a --zone us-west4-a --type v5litepod-8 -- RUN
    python3 launch/tpu.py pod      --name a --zone us-east1-d --type v6e-256 -- RUN
    python3 launch/tpu.py queued   --name a --zone us-east1-d --type v6e-256 --spot -- RUN
    python3 launch/tpu.py xpk      --name a --zone us-east1-d --type v6e-256 --cluster c -- RUN
    python3 launch/tpu.py jobset   --name a --zone us-east1-d --type v6e-256 --image i -- RUN
    python3 launch/tpu.py skypilot --name a --zone us-east1-d --type v6e-256 --spot -- RUN

The arguments after `--` are passed to `tubevit`. Here RUN stands for `train --config
k600:videos=shards:gs://b/k600,images=shards:gs://b/imagenet --workdir gs://b/a`, with the data in the bucket `b`.
`--dry-run` prints the commands, or the YAML of jobset and skypilot, and runs nothing. See docs/tpu.md.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for modules that need no installed packages

from launch.manifests import clone, jobset, skypilot, to_yaml  # noqa: E402
from tubevit.errors import UserError, unknown  # noqa: E402
from tubevit.preflight.topology import accelerator_types as types_with_topology  # noqa: E402
from tubevit.ranges import COUNT, WHOLE, Range  # noqa: E402

RUNTIMES = {  # the TPU software version of each family
    "v4": "tpu-ubuntu2204-base",
    "v5p": "v2-alpha-tpuv5",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v6e": "v2-alpha-tpuv6e",
}
MANIFESTS = {"jobset": "kubectl", "skypilot": "sky"}  # described by a file instead of commands: the tools that take it
ONLY = {  # the ways that know a flag; with others it would change nothing
    "--project": ("vm", "pod", "queued", "xpk"),
    "--reserved": ("vm", "pod", "queued"),
    "--no-create": ("vm", "pod"),
    "--clone": ("vm", "pod", "queued", "jobset", "skypilot"),
    "--cluster": ("xpk",),
    "--create-cluster": ("xpk",),
    "--image": ("xpk", "jobset"),
}
SILENT = 10  # consecutive polls without an answer after which the resource is recreated
FAILURES = 5  # failed attempts, or failed checks in a row, after which the loop gives up
QUICK, LONG = 300.0, 3600.0  # seconds after which a question, or a command that changes something, has failed
TIMED_OUT = 124  # the code of such a command, as that of `timeout`
STATUS = "if [ -e tubevit/launch/host.sh ]; then bash tubevit/launch/host.sh status; else echo status: none; fi"
LOG = "hostname; tail -n 100 tubevit/runs/launch/log"


def accelerator_types() -> dict[str, int]:
    """Return the number of hosts of each accelerator type.

    v4 and v5p types count cores, 8 per host; v5litepod and v6e types count chips, 4 per host.
    """
    types = {f"{family}-{n}": n // 8 for family in ("v4", "v5p") for n in (8, 16, 32, 64)}
    types |= {f"v4-{n}": n // 8 for n in range(128, 8192 + 1, 128)}
    types |= {f"v5p-{n}": n // 8 for n in range(128, 12288 + 1, 128)}
    for family in ("v5litepod", "v6e"):
        types |= {f"{family}-{n}": 1 for n in (1, 4, 8)} | {f"{family}-{n}": n // 4 for n in (16, 32, 64, 128, 256)}
    return types


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse and check the flags; `run` holds the arguments for `tubevit`."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    flags, run = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("how", choices=("vm", "pod", "queued", "xpk", *MANIFESTS))
    parser.add_argument("--name", required=True, help="name of the TPU, the queued resource or the workload")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--type", required=True, help="accelerator type, such as v5litepod-8 or v6e-256")
    parser.add_argument(
        "--project", help="vm, pod, queued and xpk: Google Cloud project (default: the one configured in gcloud)"
    )
    parser.add_argument(
        "--slices", type=COUNT, default=1, help="queued, xpk and jobset: number of slices; also set config.mesh.slices"
    )
    parser.add_argument(
        "--spot", action="store_true", help="use spot capacity, which is cheaper but may be preempted at any time"
    )
    parser.add_argument("--reserved", action="store_true", help="vm, pod and queued: use the project's reservation")
    parser.add_argument(
        "--create-flag",
        action="append",
        default=[],
        metavar="FLAG",
        help="flag for the create command, or for kubectl apply and sky jobs launch; e.g. --network=n",
    )
    parser.add_argument("--no-create", action="store_true", help="vm and pod: use an existing TPU")
    parser.add_argument(
        "--clone", metavar="URL", help="repository to clone instead of copying the checkout's last commit"
    )
    parser.add_argument("--branch", help="branch of --clone")
    parser.add_argument(
        "--poll", type=Range(float, least=1, most=86400), default=60.0, help="queued: seconds between two checks"
    )
    parser.add_argument("--cluster", help="xpk: the GKE cluster")
    parser.add_argument("--create-cluster", action="store_true", help="xpk: create it first")
    parser.add_argument(
        "--image",
        help="xpk and jobset: use this Docker image, which has a checkout as its working directory; xpk can build one",
    )
    parser.add_argument(
        "--max-restarts", type=WHOLE, default=100, help="xpk and jobset: maximum number of restarts of the whole job"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands or the YAML, and run nothing")
    args = parser.parse_args(flags)
    args.run = run

    types = accelerator_types()
    if args.how == "xpk":
        types = {name: hosts for name, hosts in types.items() if name not in ("v5litepod-1", "v5litepod-4")}
    if args.how == "jobset":
        types = {name: hosts for name, hosts in types.items() if name in types_with_topology()}
    if (gcloud_name := args.type.replace("v5e-", "v5litepod-")) != args.type and gcloud_name in types:
        raise UserError(f"unknown accelerator type {args.type!r}; did you mean {gcloud_name!r}?")
    if args.type not in types:
        raise unknown("accelerator type", args.type, types)
    if args.how == "vm" and types[args.type] > 1:
        raise UserError(f"{args.type} has {types[args.type]} hosts, expected one; use pod instead of vm")
    if args.slices > 1 and args.how not in ("queued", "xpk", "jobset"):
        raise UserError(f"--slices {args.slices}: expected 1, or more with queued, xpk or jobset")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", args.name):
        raise UserError(
            f"--name {args.name!r}: expected up to 40 lower-case letters, digits and '-', starting with a letter"
        )
    if args.how == "xpk" and not args.cluster:
        raise UserError("xpk needs --cluster NAME")
    if args.how == "jobset" and not (args.image or args.clone):
        raise UserError("jobset needs --image IMAGE, which has a checkout as its working directory, or --clone URL")
    for flag, ways in ONLY.items():
        if getattr(args, flag.removeprefix("--").replace("-", "_")) and args.how not in ways:
            raise UserError(f"{flag} is for {', '.join(ways)}; found {args.how}")
    if args.branch and not args.clone:
        raise UserError(f"--branch {args.branch} is a branch of --clone, which is missing")
    if not run or run[0].startswith("-"):
        raise UserError("the arguments for tubevit are missing: add -- train --config FILE --workdir DIR")
    for flag, value in zip(run, [*run[1:], ""]):
        workdir = flag.partition("=")[2] if flag.startswith("--workdir=") else value if flag == "--workdir" else "gs://"
        if args.how != "vm" and not workdir.startswith("gs://"):
            raise UserError(
                f"--workdir {workdir}: expected gs://BUCKET/...; other hosts cannot see a folder of one host"
            )
    return args


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


def manifest(args: argparse.Namespace) -> str:
    """Build the YAML of a JobSet or of SkyPilot's task."""
    if args.how == "jobset":
        return to_yaml(jobset(args, accelerator_types()[args.type]))
    return to_yaml(skypilot(args, RUNTIMES[args.type.split("-")[0]]))


def submit(args: argparse.Namespace) -> int:
    """Hand the manifest to its tool, and return an exit code."""
    with tempfile.NamedTemporaryFile("w", prefix=f"tubevit-{args.name}-", suffix=".yaml") as file:
        file.write(manifest(args))
        file.flush()
        command = ["kubectl", "apply", f"--filename={file.name}", *args.create_flag]
        if args.how == "skypilot":
            command = ["sky", "jobs", "launch", "--yes", "--detach-run", *args.create_flag, file.name]
        return run_all([command], cwd=ROOT)  # the folder that SkyPilot copies


def run_all(commands: list[list[str]], **options) -> int:
    """Run commands until one fails, and return an exit code; `options` are those of `subprocess.run`."""
    for command in commands:
        if code := subprocess.run(command, **options).returncode:
            print(f"tpu.py: {shlex.join(command)} failed with exit code {code}", file=sys.stderr)
            return 1
    return 0


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


def status(args: argparse.Namespace) -> str:
    """Return the state of the run: none, running, or an exit code; "" if not all hosts answer."""
    said = re.findall(r"^status: (none|running|\d+)$", execute(on_hosts(args, STATUS), QUICK).stdout, re.MULTILINE)
    codes = [word for word in said if word.isdecimal()]
    if failed := [code for code in codes if code != "0"]:
        return failed[0]  # the other hosts would wait for that host forever
    if len(said) < accelerator_types()[args.type] * args.slices:
        return ""
    return "none" if "none" in said else "running" if "running" in said else "0"


def watch(args: argparse.Namespace) -> int | None:
    """Maintain a queued resource and its run until the run ends; return the run's exit code, or None after giving up.

    The function keeps no state of its own, so it can be stopped and started again at any time.
    """
    silent = unanswered = failures = 0  # each answer resets the second count, a run in progress the third
    while max(unanswered, failures) < FAILURES:
        found = execute(gcloud(args, "describe", args.name, "--format=value(state.state)"), QUICK)
        state = found.stdout.strip() if found.returncode == 0 else "NONE" if "NOT_FOUND" in found.stderr else ""
        said = status(args) if state == "ACTIVE" else ""
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
        time.sleep(args.poll)
    print(f"tpu.py: giving up after {FAILURES} failures", file=sys.stderr)
    return None


def main(arguments: list[str] | None = None) -> int:
    """Print or run the commands, and return an exit code."""
    try:
        args = parse(sys.argv[1:] if arguments is None else arguments)
        return show(args) if args.dry_run else launch(args)
    except UserError as error:
        print(f"tpu.py: {error}", file=sys.stderr)
        return 2


def commands_of(args: argparse.Namespace) -> list[list[str]]:
    """Build the commands that start a run in a way that has no manifest."""
    return xpk(args) if args.how == "xpk" else [create(args), *deploy(args)][args.no_create :]


def show(args: argparse.Namespace) -> int:
    """Print what `launch` would run, and return 0."""
    if args.how in MANIFESTS:
        print(manifest(args), end="")
        _print_later(args, "# ")  # comments in the YAML
        return 0
    print("\n".join(shlex.join(command) for command in commands_of(args)))
    if args.how == "queued":
        print("# repeated until the run ends; a SUSPENDED or FAILED resource is deleted and created again as above:")
        print(shlex.join(gcloud(args, "describe", args.name, "--format=value(state.state)")))
        print(shlex.join(on_hosts(args, STATUS)))
    _print_later(args)
    return 0


def launch(args: argparse.Namespace) -> int:
    """Start the run, and return an exit code; print how to delete what it may have left in the cloud."""
    tools = [MANIFESTS[args.how]] if args.how in MANIFESTS else [command[0] for command in commands_of(args)]
    for tool in tools:  # all of them, before anything is created
        if shutil.which(tool) is None:
            raise UserError(f"{tool} is not installed, see docs/tpu.md")
    code = 1
    with contextlib.suppress(KeyboardInterrupt):
        if args.how == "queued":
            if (ended := watch(args)) is not None:
                return ended
        elif args.how in MANIFESTS:
            if code := submit(args):
                return code
        else:
            code = run_all(commands_of(args))
    _print_later(args)
    return code


def _print_later(args: argparse.Namespace, mark: str = "") -> None:
    for what, command in later(args).items():
        print(f"# {what}:\n{mark}{shlex.join(command)}")


if __name__ == "__main__":
    sys.exit(main())
