"""The loop that maintains a queued resource, with scripted answers of gcloud and with a fake gcloud."""

import functools
import subprocess

import pytest

from launch.processes import LONG, QUICK, TIMED_OUT, execute
from launch.queued import FAILURES, watch

RUN = ["train", "--config", "k600", "--workdir", "gs://b/run"]
QUEUED = ["queued", "--name", "a", "--zone", "z", "--type", "v6e-16", "--", *RUN]


class Cloud:
    """Answers gcloud's commands for one queued resource, from a script of its states and of what the hosts say."""

    def __init__(self, *story):
        self.story, self.calls = list(story), []

    def __call__(self, command, timeout=None):
        words = " ".join(command)
        name = "status" if "host.sh status" in words else "start" if "host.sh start" in words else command[4]
        self.calls.append(name)
        code, out, err = 0, "", ""
        if name in ("describe", "status"):
            out = self.story.pop(0)
            if out in ("NOT_FOUND", "offline"):
                code, out, err = 1, "", f"ERROR: {out}"
        return subprocess.CompletedProcess(command, code, out, err)


def watched(tpu, *story, type="v6e-16", slices=1, sleep=lambda seconds: None):
    cloud = Cloud(*story)
    call = ["queued", "--name", "a", "--zone", "z", "--type", type, "--slices", str(slices), "--", *RUN]
    return tpu.main(call, functools.partial(watch, execute=cloud, sleep=sleep)), cloud


def said(*words):
    return "".join(f"status: {word}\n" for word in words)


def test_a_queued_resource_comes_again(tpu):
    none, running = said(*["none"] * 4), said(*["running"] * 4)
    first = ["NOT_FOUND", "WAITING_FOR_RESOURCES", "ACTIVE", "", "ACTIVE", none, "ACTIVE", running]
    preempted = ["SUSPENDING", "SUSPENDED", "NOT_FOUND", "offline", "ACTIVE", none, "ACTIVE", running]
    code, cloud = watched(tpu, *first, *preempted, "ACTIVE", said("0", "running", "0", "0"), "ACTIVE",
                          said(*"0000"))  # fmt: skip
    assert code == 0 and not cloud.story
    acts = [name for name in cloud.calls if name in ("create", "delete", "scp", "start")]
    assert acts == ["create", "scp", "start", "delete", "create", "scp", "start", "delete"]


@pytest.mark.parametrize("code", [1, 2])
def test_a_queued_run_that_failed_ends(tpu, code):
    result, cloud = watched(tpu, "ACTIVE", said("running", str(code)))
    assert result == code and cloud.calls == ["describe", "status", "ssh", "delete"]


def test_what_is_not_to_be_had_ends(tpu, capsys):
    result, cloud = watched(tpu, *["NOT_FOUND", "FAILED"] * 5)
    assert result == 1 and cloud.calls.count("create") == 5 and not cloud.story
    assert "# delete:\ngcloud compute tpus queued-resources delete a --force" in capsys.readouterr().out


def test_an_interrupt_leaves_the_resource_and_says_how_to_delete_it(tpu, capsys):
    def interrupt(seconds):
        raise KeyboardInterrupt

    result, cloud = watched(tpu, "ACTIVE", said(*["running"] * 4), sleep=interrupt)
    assert result == 1 and cloud.calls == ["describe", "status"]
    assert "# delete:\ngcloud" in capsys.readouterr().out


def test_hosts_that_do_not_answer_are_replaced(tpu):
    silent = ["ACTIVE", said("running")] * 10  # one of two slices of four hosts
    result, cloud = watched(tpu, *silent, "NOT_FOUND", "ACTIVE", said(*"0" * 8), slices=2)
    assert result == 0 and [name for name in cloud.calls if name in ("create", "delete")] == [
        "delete",
        "create",
        "delete",
    ]


def test_waiting_outlasts_checks_that_fail(tpu):
    waiting = ["offline", "WAITING_FOR_RESOURCES"] * 20
    result, cloud = watched(tpu, *waiting, "ACTIVE", said(*"0000"))
    assert result == 0 and not cloud.story
    result, cloud = watched(tpu, "WAITING_FOR_RESOURCES", *["offline"] * 5)
    assert result == 1 and not cloud.story


@pytest.mark.parametrize("code, hosts", [(0, "--worker=0"), (3, "--node=all --worker=all")])
def test_the_log_is_read_before_its_host_is_deleted(tpu, gcloud, capsys, code, hosts):
    """That of all hosts if one failed, whatever bytes it has."""
    statuses = said(*"000", str(code)).replace("\n", "\\n")
    calls = gcloud(describe="echo ACTIVE", status=f"printf '{statuses}'", tail="printf 'caf\\xe9 é\\n'", delete=":")
    assert tpu.main(QUEUED) == code
    assert "caf\\xe9 é\n" in capsys.readouterr().out
    *_, log, delete = calls.read_text().splitlines()
    assert f"ssh a {hosts} --command=" in log and "delete a --force" in delete


def test_hosts_that_never_answer_are_replaced(tpu, gcloud, capsys):
    def execute_impatiently(command, timeout=LONG):
        return execute(command, timeout * (0.05 / QUICK if "host.sh status" in " ".join(command) else 1))

    calls = gcloud(describe="echo ACTIVE", status="exec sleep 60", delete="exit 1")
    assert tpu.main(QUEUED, functools.partial(watch, execute=execute_impatiently, sleep=lambda seconds: None)) == 1
    assert calls.read_text().count(" delete ") == FAILURES
    assert "gcloud did not end within 0.05 s" in capsys.readouterr().err


def test_what_was_printed_in_time_is_kept():
    done = execute(["bash", "-c", "echo begun; exec sleep 60"], 0.5)
    assert (done.returncode, done.stdout) == (TIMED_OUT, "begun\n")
