"""Manifests that start a run on TPUs with other tools: a JobSet for GKE, and a task for SkyPilot.

Both are plain dictionaries; `to_yaml` writes them as YAML. Needs no installed packages.
"""

from __future__ import annotations

import json
import math
import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence

from tubevit.preflight.topology import accelerator_types

# The label by which GKE selects the nodes of each family, from its documentation and xpk 1.16.0.
GKE_ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
PREEMPTED, KILLED, TERMINATED = 75, 137, 143  # exit codes after which a job is restarted on GKE
GRACE = 120  # seconds for the last save


def clone(args: Namespace) -> list[str]:
    """Build the command that clones the repository of `--clone` into `tubevit`."""
    branch = [f"--branch={args.branch}"] if args.branch else []
    return ["git", "clone", "--depth=1", *branch, args.clone, "tubevit"]


def jobset(args: Namespace, hosts: int) -> dict:
    """Describe a JobSet of GKE: one job per slice and one pod per host.

    After preemption (75), or if a container or a node was lost, all pods are restarted together, up to
    `--max-restarts` times. Any other exit code but 0 ends the JobSet: launch/restart.py has restarted the process in
    its container until it gave up, or the input was bad.

    Args:
        args: the flags of launch/tpu.py.
        hosts: number of hosts per slice.
    """
    chip, _, topology = accelerator_types()[args.type].partition(":")
    chips = math.prod(map(int, topology.split("x"))) // hosts
    command = ["bash", "launch/host.sh", "run", *args.run]
    if args.clone:
        script = f'{shlex.join(clone(args))} && exec bash tubevit/launch/host.sh run "$@"'
        command = ["bash", "-c", script, "host.sh", *args.run]
    container = {
        "name": "tubevit",
        "image": args.image or "python:3.12",
        "command": [word.replace("$", "$$") for word in command],  # Kubernetes replaces $(NAME), and $$ by $
        "envFrom": [{"secretRef": {"name": args.name, "optional": True}}],
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}],  # libtpu's, within and between slices
        "securityContext": {"privileged": True},  # for the devices of v4 and v5
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
        "resources": {"requests": {"google.com/tpu": chips}, "limits": {"google.com/tpu": chips}},
    }
    selector = {
        "cloud.google.com/gke-tpu-accelerator": GKE_ACCELERATORS[chip],
        "cloud.google.com/gke-tpu-topology": topology,
        "topology.kubernetes.io/zone": args.zone,
    }
    tolerated = ["google.com/tpu"]
    if args.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerated.append("cloud.google.com/gke-spot")
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": selector,
        "tolerations": [{"key": key, "operator": "Exists"} for key in tolerated],
        "containers": [container],
        # Loading processes pass clips through /dev/shm, which has 64 MB in a container unless memory is mounted there.
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    failed = {
        "action": "FailJob",
        "onPodConditions": [],  # required by older versions of JobSet
        "onExitCodes": {
            "containerName": container["name"],
            "operator": "NotIn",
            "values": [PREEMPTED, KILLED, TERMINATED],
        },
    }
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # a lost pod fails the job, and the JobSet restarts all of them
        "podFailurePolicy": {"rules": [failed]},
        "template": {"spec": pod},
    }
    ends = {"name": "failed", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": args.name,
            # Each slice gets a node pool of its own.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {"maxRestarts": args.max_restarts, "rules": [ends]},
            "replicatedJobs": [{"name": "slice", "replicas": args.slices, "template": {"spec": job}}],
        },
    }


def skypilot(args: Namespace, runtime_version: str) -> dict:
    """Describe a managed job of SkyPilot, whose commands run on every host of the slice.

    SkyPilot recovers the job if the slice is preempted or lost. After 75 it does so, too, however often; any other exit
    code but 0 ends the job.

    Args:
        args: the flags of launch/tpu.py.
        runtime_version: the TPU software version.
    """
    workdir: str | dict = "."  # the folder where `sky` is called: the checkout, without what git ignores
    if args.clone:
        workdir = {"url": args.clone} | ({"ref": args.branch} if args.branch else {})
    region = args.zone.rpartition("-")[0]
    return {
        "name": args.name,
        "workdir": workdir,
        "resources": {
            "infra": f"gcp/{region}/{args.zone}",
            "accelerators": f"tpu-{args.type}",
            "accelerator_args": {"runtime_version": runtime_version},
            "use_spot": args.spot,
            "job_recovery": {"recover_on_exit_codes": [PREEMPTED]},
        },
        "setup": "bash launch/host.sh setup",
        "run": shlex.join(["bash", "launch/host.sh", "run", *args.run]),
    }


def to_yaml(value, indent: str = "") -> str:
    """Write nested dictionaries and lists as YAML; texts are quoted as in JSON, which YAML contains."""
    if isinstance(value, Mapping) and value:
        pairs = ((f"{indent}{key}:", each) for key, each in value.items())
        return "".join(
            f"{head}\n{to_yaml(each, indent + '  ')}" if _nested(each) else f"{head} {_scalar(each)}\n"
            for head, each in pairs
        )
    return "".join(
        f"{indent}- {to_yaml(each, indent + '  ').lstrip()}" if _nested(each) else f"{indent}- {_scalar(each)}\n"
        for each in value
    )


def _nested(value) -> bool:
    return isinstance(value, Mapping | Sequence) and not isinstance(value, str) and bool(value)


def _scalar(value) -> str:
    return json.dumps(value, ensure_ascii=False)
