import os

import pytest

from tests.scripts import script


@pytest.fixture
def gcloud(tmp_path, monkeypatch):
    """`gcloud(**answers)`: puts a `gcloud` on the path that runs the bash of the first word found in its arguments.

    Returns the file of its calls.
    """

    def make(**answers):
        cases = "\n".join(f"*'{word}'*) {answer} ;;" for word, answer in answers.items())
        path = tmp_path / "bin/gcloud"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/usr/bin/env bash\necho "$*" >>{tmp_path}/calls\ncase "$*" in\n{cases}\nesac\n')
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
        return tmp_path / "calls"

    return make


@pytest.fixture
def tpu(gcloud):
    gcloud()
    return script("launch/tpu.py")


@pytest.fixture
def fake(tmp_path):
    """A command that ends with the next of the given codes each time (-9: killed), and a way to run the loop on it."""

    def make(*codes):
        path = tmp_path / "command"
        lines = " ".join(map(str, codes))
        path.write_text(
            f"#!/usr/bin/env bash\ncd {tmp_path}\ncodes=({lines})\necho run $* >>runs\n"
            "code=${codes[$(($(wc -l <runs) - 1))]}\n"
            "if [ $code -lt 0 ]; then kill $code $$; fi\nexit $code\n"
        )
        path.chmod(0o755)
        return path

    return make
