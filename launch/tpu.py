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
import sys
import tempfile
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # for modules that need no installed packages

from launch.accelerators import RUNTIMES, accelerator_types  # noqa: E402
from launch.commands import ROOT, STATUS, commands_of, describe, later, on_hosts  # noqa: E402
from launch.manifests import jobset, skypilot, to_yaml  # noqa: E402
from launch.processes import run_all  # noqa: E402
from launch.queued import watch  # noqa: E402
from tubevit.errors import UserError, unknown  # noqa: E402
from tubevit.preflight.topology import accelerator_types as types_with_topology  # noqa: E402
from tubevit.ranges import COUNT, WHOLE, Range  # noqa: E402

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


def main(arguments: list[str] | None = None, watch: Callable[[argparse.Namespace], int | None] = watch) -> int:
    """Print or run the commands, and return an exit code; `watch` maintains a queued resource."""
    try:
        args = parse(sys.argv[1:] if arguments is None else arguments)
        return show(args) if args.dry_run else launch(args, watch)
    except UserError as error:
        print(f"tpu.py: {error}", file=sys.stderr)
        return 2


def show(args: argparse.Namespace) -> int:
    """Print what `launch` would run, and return 0."""
    if args.how in MANIFESTS:
        print(manifest(args), end="")
        _print_later(args, "# ")  # comments in the YAML
        return 0
    print("\n".join(shlex.join(command) for command in commands_of(args)))
    if args.how == "queued":
        print("# repeated until the run ends; a SUSPENDED or FAILED resource is deleted and created again as above:")
        print(shlex.join(describe(args)))
        print(shlex.join(on_hosts(args, STATUS)))
    _print_later(args)
    return 0


def launch(args: argparse.Namespace, watch: Callable[[argparse.Namespace], int | None]) -> int:
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
