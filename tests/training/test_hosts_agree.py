"""Two real processes whose files or flags differ do not start: both end, and name what differs."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

import tubevit
from tests.hosts import free_address
from tubevit.models.config import Head

ROOT = pathlib.Path(tubevit.__file__).parent.parent
CONFIG = """
from tests import tiny
from tubevit.config import dataset_config

def get_config(source: str = "pets", seed: int = 0):
    config = tiny.get_config(seed)
    config.data.train = {"pets": dataset_config(source=source, batch_size=4)}
    config.data.eval = {"pets": dataset_config(source=source, split="test", batch_size=4)}
    return config
"""
# Each process has a folder of its own, in which all cases are tried in turn.
PROGRAM = """
import json, os, pathlib, sys, jax
address, index, out, root = sys.argv[1:]
sys.path.insert(0, root)
jax.distributed.initialize(address, num_processes=2, process_id=int(index))
from tubevit.config import load_config
from tubevit.evaluation import EvalOptions, evaluate_checkpoint
from tubevit.training.loop import train

found = {}
for case in sorted(path.name for path in pathlib.Path().iterdir()):
    os.chdir(case)
    spec = pathlib.Path("spec").read_text()
    try:
        if case == "evaluate":
            evaluate_checkpoint(spec, EvalOptions(data="pets", split="test"))
        else:
            train(load_config(spec), "run")
    except Exception as error:
        found[case] = [type(error).__name__, str(error)]
    os.chdir("..")
pathlib.Path(out).write_text(json.dumps(found))
"""


def write_pets(folder, classes=("cat", "dog")):
    image = np.zeros((32, 32, 3), np.uint8)
    for split, count in (("train", 4), ("test", 2)):
        for label in classes:
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                cv2.imwrite(str(folder / split / label / f"{i}.png"), image)


def write_csv(folder, changed=()):
    rows = [f"pets/{split}/cat/{i}.png,{('dog' if (split, i) in changed else 'cat' if i else 'dog')},{split}"
            for split in ("train", "test") for i in range(2)]  # fmt: skip
    (folder / "pets.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """The folders of two hosts, `<case>/pets` and what to train in `<case>/spec`; host 1 differs in one thing."""
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "pets_config.py").write_text(CONFIG)
    spec = str(folder / "pets_config.py")
    cases = ("training_clip", "test_clip", "label", "class_folder", "config_key", "evaluate")
    for host in (0, 1):
        for case in cases:
            here = folder / str(host) / case
            write_pets(here / "pets")
            write_csv(here, {("train", 1)} if host and case == "label" else ())
            arguments = ":source=pets.csv" if case == "label" else ":seed=1" if host and case == "config_key" else ""
            (here / "spec").write_text(spec + arguments)
        (folder / str(host) / "evaluate/spec").write_text(str(folder / "model"))
    heads = {"pets": Head(2, "image", ("cat", "dog"))}
    tubevit.save_model(tubevit.create_model("tubevit_nano8", heads=heads), folder / "model")
    pets = {case: folder / "1" / case / "pets" for case in cases}
    (pets["training_clip"] / "train/dog/2.png").unlink()
    (pets["evaluate"] / "test/dog/0.png").unlink()
    (pets["test_clip"] / "test/cat/1.png").unlink()
    for split in ("train", "test"):
        shutil.rmtree(pets["class_folder"] / split / "dog")
    return folder


def run_both(commands, folder):
    """Exit codes, lines on stderr and seconds of two processes, each in the folder of its host."""
    start, environment = time.monotonic(), os.environ | {"PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(words, cwd=folder / str(i), env=environment, stderr=subprocess.PIPE, text=True)
        for i, words in enumerate(commands)
    ]
    outputs = [process.communicate(timeout=180)[1] for process in running]
    return [process.returncode for process in running], outputs, time.monotonic() - start


@pytest.fixture(scope="module")
def errors(hosts, tmp_path_factory):
    """{case: (type, text)} of each process."""
    outs, address = [tmp_path_factory.mktemp("errors") / str(i) for i in (0, 1)], free_address()
    commands = [[sys.executable, "-c", PROGRAM, address, str(i), str(out), str(ROOT)] for i, out in enumerate(outs)]
    codes, outputs, _ = run_both(commands, hosts)
    assert codes == [0, 0], outputs
    return [json.loads(out.read_text()) for out in outs]


@pytest.mark.parametrize("case, parts", {
    "training_clip": ("differ in data.train.pets (10 and 9 entries)", "'pets/train/dog/2.png labelled dog'"),
    "test_clip": ("differ in data.eval.pets (6 and 5 entries)", "'pets/test/cat/1.png labelled cat'"),
    "label": ("differ in data.train.pets:", "'pets/train/cat/1.png labelled cat' where process 1 has", "labelled dog'"),
    "class_folder": ("differ in data.train.pets", "process 0 has 'class dog' where process 1 has"),
    "evaluate": ("differ in data.eval.data (held-out split) (6 and 5 entries)", "'pets/test/dog/0.png labelled dog'"),
    "config_key": ("differ in the configuration", "'seed = 0' where process 1 has 'seed = 1'"),
}.items())  # fmt: skip
def test_both_name_what_differs(errors, case, parts):
    assert errors[0][case] == errors[1][case]
    kind, text = errors[0][case]
    assert kind == "UserError" and all(part in text for part in parts), text


def test_nothing_is_written(errors, hosts):
    assert not list(hosts.glob("*/*/run"))


def test_the_command_ends_in_time(hosts):
    """Exit code 2 in both processes, one line, well within 30 s of the start-up of JAX."""
    address = free_address()
    command = ["train", "--config", str(hosts / "pets_config.py"), "--workdir", str(hosts / "run")]
    flags = [["--coordinator", address, "--num-processes", "2", "--process-id", str(i)] for i in (0, 1)]
    code = "import os; from tubevit.cli.main import entry; os.chdir('training_clip'); entry()"
    words = [[sys.executable, "-c", code, *command, *own] for own in flags]
    codes, outputs, seconds = run_both(words, hosts)
    assert codes == [2, 2] and seconds < 60, outputs
    for text in outputs:
        (line,) = [line for line in text.splitlines() if line.startswith("tubevit: ")]
        assert "differ in data.train.pets" in line and "'pets/train/dog/2.png labelled dog'" in line
        assert "Traceback" not in text
