"""The loop that restarts a command depending on its exit code, with fake commands."""

import pathlib
import re
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


RESTARTS = {  # codes of the command: those of the loop, runs, waits
    (0,): (0, 1, []),
    (2, 0): (2, 1, []),
    (75, 75, 75, 0): (0, 4, []),
    (1, 75, 0): (0, 3, [0.01]),
    (-9, 1, -15, 0): (0, 4, [0.01, 0.02, 0.04]),
    (1, 1, 2, 0): (2, 3, [0.01, 0.02]),
    (1, 134, 3, 1, 0): (1, 4, [0.01, 0.02, 0.04]),
    (1, -9, -9, -9, 0): (137, 4, [0.01, 0.02, 0.04]),
}


@pytest.mark.parametrize("codes", RESTARTS, ids=str)
def test_restarts_follow_the_exit_code(fake, tmp_path, codes):
    code, runs, waits = RESTARTS[codes]
    command = [sys.executable, ROOT / "launch/restart.py", "--wait=0.01", "--limit=3", f"--exit-file={tmp_path}/exit"]
    done = subprocess.run([*command, "--", fake(*codes), "train", "--x=a b"], capture_output=True, text=True)
    assert done.returncode == code and (tmp_path / "exit").read_text() == f"{code}\n"
    assert (tmp_path / "runs").read_text() == "run train --x=a b\n" * runs
    assert re.findall(r"restarting in (\S+) s", done.stderr) == [str(wait) for wait in waits]
    assert done.stderr.count("restarting at once") == codes[:runs].count(75)


def test_a_long_run_resets_the_count_however_it_ends(tmp_path):
    run = "echo >>runs; n=$(wc -l <runs); codes=(1 1 75 1 1 0); if [ $n = 3 ]; then sleep 1.2; fi; exit ${codes[n-1]}"
    loop = [sys.executable, ROOT / "launch/restart.py", "--wait=0.01", "--limit=2", "--healthy=1", "--"]
    done = subprocess.run([*loop, "bash", "-c", run], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert re.findall(r"\(restart (\d) of 2\)", done.stderr) == ["1", "2", "1", "2"]


def test_a_command_that_is_not_there(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "launch/restart.py", "--", tmp_path / "no"], capture_output=True)
    assert done.returncode == 2 and b"cannot run" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize("code", [75, 0, 1])
def test_a_signal_reaches_the_command_and_ends_the_loop(tmp_path, code):
    saves = f"trap 'echo saved; exit {code}' TERM; echo begun; while true; do sleep 0.05; done"
    command = [sys.executable, ROOT / "launch/restart.py", f"--exit-file={tmp_path}/exit", "--", "bash", "-c", saves]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as loop:
        assert loop.stdout.readline() == "begun\n"
        loop.send_signal(signal.SIGTERM)
        assert loop.stdout.read() == "saved\n"  # and did not begin again
    assert loop.returncode == (0 if code == 0 else 75)
    assert (tmp_path / "exit").exists() == (code == 0)


def test_a_signal_ends_a_wait():
    command = [sys.executable, ROOT / "launch/restart.py", "--", "bash", "-c", "exit 1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as loop:
        assert "restarting in 100 s (restart 1 of 5)" in loop.stderr.readline()
        loop.send_signal(signal.SIGTERM)
        assert loop.wait(timeout=20) == 75
