# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fine-tune on your own videos
#
# You have videos and a label for each. This begins from a trained checkpoint, gives it a new head for your labels,
# trains, and shows what comes out. Steps, learning rate, input and augmentation follow from your files.

# %%
# In Colab this installs tubevit; elsewhere it does nothing, since you have installed it already.
# pip may add what is missing, but must leave alone jax, its plugins and NumPy: other versions would not fit Colab's
# drivers or the modules that are loaded. So their versions become constraints. If tubevit needs newer ones, pip ends
# with an error (without --quiet it says why) and changes nothing; choose a newer runtime then.
import importlib.metadata
import pathlib
import subprocess
import sys

REPOSITORY = "https://github.com/OWNER/tubevit"  # put the owner of the repository that you opened this from

if "google.colab" in sys.modules:
    assert "OWNER" not in REPOSITORY, f"change the line above: {REPOSITORY} is no address"
    here = [each for each in importlib.metadata.distributions() if each.name.startswith(("jax", "libtpu", "numpy"))]
    pathlib.Path("constraints.txt").write_text("".join(f"{each.name}=={each.version}\n" for each in here))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "-c", "constraints.txt"]
    subprocess.run([*pip, f"tubevit[plot] @ git+{REPOSITORY}"], check=True)

# %% tags=["parameters"]
data = ""  # your csv, or folder with DIR/CLASS/FILE; "" makes an example
init = "tubevit_nano8@moving_digits"  # what to begin from: a released checkpoint, or the folder of a run
workdir = "runs/finetuned"  # where the run goes; a run that is there already goes on
clips = 200  # of the example
changes = {}  # keys of the configuration that you want otherwise, such as {"train.steps": "1000"}

# %% [markdown]
# ## The data
#
# Two forms are usual:
#
# - a folder with a folder for each class: `DIR/running/a.mp4`, `DIR/jumping/b.mp4`, ...;
# - a csv with the header `path,label` and, if you like, `split` (`train`, `val`, `test`); paths are relative to it.
#
# Without `split`, 20 % of the files are held out, and a note says so. Files may be of any length and size.
#
# The example is drawn: digits that move in 8 directions. The labels are new to the checkpoint: the axis of the motion,
# not its direction. Since the checkpoint knows such clips, this is easier than your own videos will be.

# %%
# %matplotlib inline
import csv

import jax
import numpy as np

from tubevit.cli.logs import install_logging
from tubevit.config import load_config
from tubevit.data.moving_digits import DIRECTIONS, make_moving_digits
from tubevit.evaluation.metrics import confusion_matrix
from tubevit.training.loop import train
from tubevit.visualize.attention import attention_figure, heat_maps
from tubevit.visualize.confusion import confusion_figure
from tubevit.visualize.curves import loss_figure, read_metrics, score_figure
from tubevit.visualize.evaluated import evaluate_stored
from tubevit.visualize.report import read_checkpoint

if not data:
    make_moving_digits("example", train_clips=clips, test_digits=max(clips // 10, 1))
    axes = ("horizontal", "falling", "vertical", "rising")  # of right, down_right, down, down_left and their opposites
    with open("example/motion.csv") as source, open("example/axis.csv", "w", newline="") as target:
        rows = csv.writer(target)
        rows.writerow(["path", "label", "split"])
        for row in csv.DictReader(source):
            rows.writerow([row["path"], axes[DIRECTIONS.index(row["motion"]) % 4], row["split"]])
    data = "example/axis.csv"
    print(pathlib.Path(data).read_text()[:150] + "...")

# %% [markdown]
# ## Train
#
# The choices are printed first. `init=` left out begins from random parameters, which needs more videos and steps. The
# same from a shell: `tubevit train --config finetune:data=clips.csv,init=NAME --workdir runs/finetuned`.

# %%
install_logging()  # shows the progress
config = load_config(f"finetune:data={data},init={init}", changes)
train(config, workdir)

# %% [markdown]
# ## How it went
#
# Lines are of training batches, points of the held-out files. Training has the higher loss because it is made harder:
# clips are cropped, their colours changed, and labels smoothed.

# %%
metrics = read_metrics(pathlib.Path(workdir, "metrics.jsonl").read_text())
loss_figure(metrics)

# %%
score_figure(metrics)

# %% [markdown]
# Which classes are confused: rows are labels, columns what was predicted.

# %%
model, metadata, *_ = read_checkpoint(workdir)  # tubevit.load_model(workdir), and what the run was told
held_out = evaluate_stored(model, "data", metadata["config"]["data"]["eval"]["data"])
used = held_out.predictions.used
matrix = confusion_matrix(held_out.predictions.probabilities[used], held_out.source.labels[used])
confusion_figure(matrix, held_out.source.classes)

# %% [markdown]
# ## Use it
#
# The folder of the run is a checkpoint as any other. One of the held-out files, and where the model looked:

# %%
clip = held_out.clip(int(np.flatnonzero(used)[0]))  # of a file: tubevit.read_video(path, **model.input)[0]
probabilities = np.asarray(jax.nn.softmax(model(clip[None])[0]))
labels = held_out.source.classes
answer = ", ".join(f"{labels[i]} {probabilities[i]:.0%}" for i in probabilities.argsort()[::-1][:3])
print(answer)
attention_figure(clip, *heat_maps(model, clip), answer)

# %% [markdown]
# Next: `tubevit predict --checkpoint runs/finetuned FILE...`, `tubevit evaluate --workdir runs/finetuned --views 4x3`
# (several parts of each video, averaged), `tubevit report runs/finetuned` (a page of pictures), `tubevit export` (for
# programs without this package).
