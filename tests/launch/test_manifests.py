"""JobSets and SkyPilot's tasks, without a cluster: against the fields of the tools' schemas, and with fake tools."""

import json
import math
import os
import pathlib
import shlex
import subprocess

import jsonschema
import pytest
import yaml

from tests.scripts import script
from tubevit.preflight.topology import accelerator_types

ROOT = pathlib.Path(__file__).parents[2]
RUN = ["train", "--config", "k600:list=a b.csv,note=it's $HOME $(id)", "--workdir", "gs://b/run"]
CALLS = {
    "jobset, image": "jobset --type v6e-16 --image registry/i:1",
    "jobset, one host": "jobset --type v5litepod-8 --image i",
    "jobset, all flags": "jobset --type v5p-128 --clone URL --branch b --spot --slices 2 --max-restarts 7",
    "skypilot": "skypilot --type v6e-16",
    "skypilot, all flags": "skypilot --type v5litepod-16 --spot --clone https://host/a.git --branch b",
}


@pytest.fixture(scope="module")
def tpu():
    return script("launch/tpu.py")


@pytest.fixture
def described(tpu, capsys):
    """`described(call)`: the manifest that a dry run prints."""

    def dry_run(call):
        assert tpu.main([*shlex.split(call), "--name", "my-run", "--zone", "us-east1-d", "--dry-run", "--", *RUN]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    return dry_run


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_manifests_follow_the_schemas(described, call):
    schema = json.loads((ROOT / f"tests/data/{call.split()[0]}_schema.json").read_text())
    manifest = described(call)
    jsonschema.validate(manifest, schema)
    with pytest.raises(jsonschema.ValidationError, match="unknown_field"):
        jsonschema.validate(manifest | {"unknown_field": 1}, schema)


def pod_of(jobset):
    (group,) = jobset["spec"]["replicatedJobs"]
    return group, group["template"]["spec"], group["template"]["spec"]["template"]["spec"]


def test_a_jobset_has_a_pod_for_each_host_of_each_slice(described):
    group, job, pod = pod_of(described(CALLS["jobset, all flags"]))
    assert (group["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (2, 16, 16, 0)
    selector = pod["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5p-slice"
    assert selector["cloud.google.com/gke-tpu-topology"] == "4x4x4"
    assert selector["cloud.google.com/gke-spot"] == "true"
    assert selector["topology.kubernetes.io/zone"] == "us-east1-d"
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    _, _, pod = pod_of(described(CALLS["jobset, one host"]))
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 8}
    assert "cloud.google.com/gke-spot" not in pod["nodeSelector"]


def test_loading_processes_have_shared_memory(described):
    for call in (CALLS["jobset, image"], CALLS["jobset, all flags"]):
        _, _, pod = pod_of(described(call))
        (container,) = pod["containers"]
        at = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes[at["/dev/shm"]]["emptyDir"] == {"medium": "Memory"}  # as large as the pod's memory allows


def test_every_type_has_all_its_chips(described):
    for name, topology in accelerator_types().items():
        _, job, pod = pod_of(described(f"jobset --image i --type {name}"))
        chips = job["parallelism"] * pod["containers"][0]["resources"]["requests"]["google.com/tpu"]
        shape = topology.partition(":")[2]
        assert chips == math.prod(map(int, shape.split("x"))), name
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == shape


def restarts(jobset, code):
    """Whether a JobSet restarts after a container ended with this code, by the rules of Kubernetes."""
    _, job, pod = pod_of(jobset)
    (rule,) = job["podFailurePolicy"]["rules"]
    (ends,) = jobset["spec"]["failurePolicy"]["rules"]
    exits = rule["onExitCodes"]
    assert (rule["action"], ends["action"]) == ("FailJob", "FailJobSet") and exits["operator"] == "NotIn"
    assert exits["containerName"] in [container["name"] for container in pod["containers"]]
    assert ends["onJobFailureReasons"] == ["PodFailurePolicy"] and pod["restartPolicy"] == "Never"
    assert exits["values"] == sorted(set(exits["values"]))
    return code in exits["values"]


def test_a_job_is_restarted_after_preemption_only(described):
    jobset = described(CALLS["jobset, image"])
    assert {code: restarts(jobset, code) for code in (1, 2, 75, 134, 137, 143)} == {
        **dict.fromkeys((1, 2, 134), False),
        **dict.fromkeys((75, 137, 143), True),
    }
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 100
    recovery = described(CALLS["skypilot"])["resources"]["job_recovery"]
    assert recovery == {"recover_on_exit_codes": [75]}


def test_the_command_reaches_the_container_whole(described, tmp_path):
    """As Kubernetes and bash see it: with a `git` that makes a checkout whose host.sh prints its arguments."""
    git = tmp_path / "git"
    git.write_text(
        "#!/usr/bin/env bash\nmkdir -p tubevit/launch\n"
        'echo \'printf "%s\\n" "$@"\' >tubevit/launch/host.sh\necho "$@" >cloned\n'
    )
    git.chmod(0o755)
    _, _, pod = pod_of(described(CALLS["jobset, all flags"]))
    command = [word.replace("$$", "$") for word in pod["containers"][0]["command"]]
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["run", *RUN]
    assert (tmp_path / "cloned").read_text() == "clone --depth=1 --branch=b URL tubevit\n"
    _, _, pod = pod_of(described(CALLS["jobset, image"]))
    command = [word.replace("$$", "$") for word in pod["containers"][0]["command"]]
    assert command == ["bash", "launch/host.sh", "run", *RUN]


def test_skypilot_runs_the_same_on_every_host(described):
    task = described(CALLS["skypilot, all flags"])
    assert task["workdir"] == {"url": "https://host/a.git", "ref": "b"}
    assert task["resources"]["infra"] == "gcp/us-east1/us-east1-d"
    assert task["resources"]["accelerators"] == "tpu-v5litepod-16" and task["resources"]["use_spot"] is True
    assert shlex.split(task["run"]) == ["bash", "launch/host.sh", "run", *RUN]
    assert described(CALLS["skypilot"])["workdir"] == "."


@pytest.mark.parametrize("call", [CALLS["jobset, image"], CALLS["skypilot"]])
@pytest.mark.parametrize("code", [0, 3])
def test_the_tool_gets_the_manifest(tpu, described, monkeypatch, tmp_path, capsys, call, code):
    for name in ("kubectl", "sky"):
        tool = tmp_path / name
        tool.write_text(
            '#!/usr/bin/env bash\nfile=${@: -1}\n[ -e "${file#--filename=}" ] || file=$2\n'
            f'echo "$(basename $0) $1 $2 $PWD" >{tmp_path}/called\ncp "${{file#--filename=}}" {tmp_path}/manifest\n'
            f"exit {code}\n"
        )
        tool.chmod(0o755)
    expected = described(call)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    result = tpu.main([*call.split(), "--name", "my-run", "--zone", "us-east1-d", "--", *RUN])
    assert result == (1 if code else 0)
    assert yaml.safe_load((tmp_path / "manifest").read_text()) == expected
    called = (tmp_path / "called").read_text().split()
    assert called[:2] == (["kubectl", "apply"] if "jobset" in call else ["sky", "jobs"]) and called[-1] == str(ROOT)
    printed = capsys.readouterr()
    assert ("failed with exit code 3" in printed.err) == bool(code)
    assert ("# delete:" in printed.out) == (not code)


TOOLS = [("jobset --image i", "kubectl"), ("skypilot", "sky"), ("pod", "gcloud"), ("queued", "gcloud")]


@pytest.mark.parametrize("how, tool", TOOLS)
def test_a_tool_that_is_missing(tpu, monkeypatch, tmp_path, capsys, how, tool):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tpu.main([*how.split(), "--type", "v6e-16", "--name", "a", "--zone", "us-east1-d", "--", *RUN]) == 2
    assert capsys.readouterr().err == f"tpu.py: {tool} is not installed, see docs/tpu.md\n"


def test_nothing_of_the_environment_is_described(tpu, capsys, monkeypatch):
    planted = {"HOME": "/home/planted-user", "WANDB_API_KEY": "planted-key", "HF_TOKEN": "hf_planted", "X": "planted-x"}
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    for call in CALLS.values():
        assert tpu.main([*call.split(), "--name", "a", "--zone", "us-east1-d", "--dry-run", "--", *RUN]) == 0
    printed = capsys.readouterr().out
    assert "planted" not in printed and str(ROOT) not in printed


def test_yaml_is_what_was_meant():
    from launch.manifests import to_yaml

    texts = ["", "yes", "null", "1", "~", "a: b # c", "- x", 'it\'s "quoted" \\', "two\nlines\t", "é 😀 $HOME %", "@x"]
    nested = {"list": [texts, [], {}, {"a": {"b": [1, True, None, -0.5]}, "c": [[1], [2, [3]]]}], "empty": {}, "s": "x"}
    assert yaml.safe_load(to_yaml(nested)) == nested
    assert yaml.safe_load(to_yaml({text: text for text in ("a.b/c", "plain")})) == {"a.b/c": "a.b/c", "plain": "plain"}
