"""Standard streams that are closed, full or have another encoding, in real processes."""

import os
import pathlib
import subprocess
import sys

import pytest

import tubevit

ROOT = pathlib.Path(tubevit.__file__).parent.parent
TUBEVIT = f"{sys.executable} -m tubevit"


def shell(command, cwd, **environment):
    """The exit code of the first command of a pipe, stdout and stderr."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TUBEVIT": TUBEVIT} | environment
    run = subprocess.run(["bash", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True)
    return run.returncode, run.stdout, run.stderr


@pytest.fixture(scope="module")
def clips(digits_cache):
    return " ".join(f"'{path}'" for path in sorted((digits_cache / "videos/test").iterdir()))


def test_a_reader_that_leaves(tiny_run, clips, tmp_path):
    first_line = f"$TUBEVIT predict --checkpoint {tiny_run} {clips} | head -1; echo ${{PIPESTATUS[0]}}"
    code, out, err = shell(first_line, tmp_path)
    assert out.splitlines()[0].count("motion: ") == 1 and out.splitlines()[1:] == ["0"] and err == ""
    for arguments in ("--help", "predict --help", "inspect tubevit_nano8"):
        nothing = f"$TUBEVIT {arguments} | true; echo ${{PIPESTATUS[0]}}"
        assert shell(nothing, tmp_path) == (0, "0\n", ""), arguments


def test_closed_streams(tiny_run, clips, tmp_path):
    """What is printed is discarded; the files that are opened do not get the numbers of the streams."""
    command = f"$TUBEVIT predict --checkpoint {tiny_run} {clips}"
    assert shell(f"{command} >&- <&-", tmp_path) == (0, "", "")
    code, out, err = shell(f"{command} --csv rows.csv >&- 2>&-", tmp_path)
    assert code == 0 and (tmp_path / "rows.csv").read_text().count("\n") == 1 + 8 * 5
    code, out, err = shell("$TUBEVIT trian >&- 2>&-", tmp_path)
    assert code == 2


def test_a_full_disk(tmp_path):
    code, out, err = shell("$TUBEVIT inspect tubevit_nano8 > /dev/full", tmp_path)
    assert code == 1 and err == "tubevit: [Errno 28] No space left on device\n"


def test_an_encoding_that_lacks_letters(tiny_run, digits_cache, tmp_path):
    clip = next((digits_cache / "videos/test").iterdir())
    (tmp_path / "ünï.mp4").write_bytes(clip.read_bytes())
    command = f"$TUBEVIT predict --checkpoint {tiny_run} *.mp4"
    for settings, shown in (
        ({"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}, "\\xfcn\\xef.mp4"),
        ({"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "\\udcc3\\udcbcn\\udcc3\\udcaf.mp4"),
    ):
        code, out, err = shell(command, tmp_path, **settings)
        assert (code, err) == (0, "") and out.startswith(f"{shown}  motion: ")
