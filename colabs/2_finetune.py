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
# You have videos, each with a label. This notebook starts from a trained checkpoint, adds a new head for your labels,
# trains the model, and shows the result. The number of steps, the learning rate, the input and the augmentation are
# chosen from your files.

# %%
# In Colab, this installs tubevit. Elsewhere it does nothing, because tubevit is already installed.
# pip may install missing packages, but must keep jax, its plugins and NumPy: other versions would not match Colab's
# drivers or the modules that are loaded. Their versions therefore become constraints. If tubevit needs newer versions,
# pip ends with an error (without --quiet it explains why) and changes nothing; in that case choose a newer runtime.
import importlib.metadata
import pathlib
import subprocess
import sys

REPOSITORY = "https://github.com/OWNER/tubevit"  # replace OWNER by the owner of this repository

if "google.colab" in sys.modules:
    assert "OWNER" not in REPOSITORY, f"change the line above: {REPOSITORY} is no address"
    here = [each for each in importlib.metadata.distributions() if each.name.startswith(("jax", "libtpu", "numpy"))]
    pathlib.Path("constraints.txt").write_text("".join(f"{each.name}=={each.version}\n" for each in here))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "-c", "constraints.txt"]
    subprocess.run([*pip, f"tubevit[plot] @ git+{REPOSITORY}"], check=True)

# %% tags=["parameters"]
data = ""  # your csv file, or a folder with DIR/CLASS/FILE; "" generates an example
init = "tubevit_nano8@moving_digits"  # the checkpoint to start from: a released one, or the folder of a run
workdir = "runs/finetuned"  # the folder of the run; an existing run is resumed
clips = 200  # number of training clips of the example
changes = {}  # keys of the configuration to change, such as {"train.steps": "1000"}

# %% [markdown]
# ## The data
#
# There are two common layouts:
#
# - a folder with one subfolder per class: `DIR/running/a.mp4`, `DIR/jumping/b.mp4`, ...;
# - a csv file with the header `path,label` and optionally `split` (`train`, `val`, `test`); paths are relative to the
#   file.
#
# Without `split`, 20 % of the files are held out, and a note tells you so. Files may have any length and size.
#
# The example is generated: digits that move in 8 directions. The labels are new to the checkpoint: the axis of the
# motion instead of its direction. The checkpoint was trained on such clips, so this example is easier than your own
# videos will be.

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
from tubevit.zoo.names import open_checkpoint

if not data:
    make_moving_digits("example", train_clips=clips, held_out_digits=max(clips // 20, 1))
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
# The chosen settings are printed first. Without `init=`, training on fewer than 5,000 files starts from the released
# checkpoint whose input size is closest to that of the frames. `init=none` starts from random parameters, which needs
# more videos and steps. The same from a shell:
# `tubevit train --config finetune:data=clips.csv,init=NAME --workdir runs/finetuned`.

# %%
install_logging()  # shows progress
config = load_config(f"finetune:data={data},init={init}", changes)
train(config, workdir)

# %% [markdown]
# ## Training curves
#
# Lines show training batches, points the held-out files. The training loss is higher because training is harder: clips
# are cropped, their colours are changed, and labels are smoothed.

# %%
metrics = read_metrics(pathlib.Path(workdir, "metrics.jsonl").read_text())
loss_figure(metrics)

# %%
score_figure(metrics)

# %% [markdown]
# The confusion matrix shows labels as rows and predictions as columns.

# %%
checkpoint = open_checkpoint(workdir)
model = checkpoint.load_model()  # tubevit.load_model(workdir)
held_out = evaluate_stored(model, "data", checkpoint.experiment["data"]["eval"]["data"])
used = held_out.predictions.used
matrix = confusion_matrix(held_out.predictions.probabilities[used], held_out.source.labels[used])
confusion_figure(matrix, held_out.source.classes)

# %% [markdown]
# ## Use the model
#
# The folder of the run is a checkpoint like any other. This cell classifies one of the held-out files and shows where
# the model looked:

# %%
clip = held_out.clip(int(np.flatnonzero(used)[0]))  # for a file: tubevit.read_video(path, **model.input)[0]
probabilities = np.asarray(jax.nn.softmax(model(clip[None])[0]))
labels = held_out.source.classes
answer = ", ".join(f"{labels[i]} {probabilities[i]:.0%}" for i in probabilities.argsort()[::-1][:3])
print(answer)
attention_figure(clip, *heat_maps(model, clip), answer)

# %% [markdown]
# Next steps: `tubevit predict --checkpoint runs/finetuned FILE...`,
# `tubevit evaluate --workdir runs/finetuned --views 4x3` (averages several views of each video),
# `tubevit report runs/finetuned` (a page of figures), `tubevit export` (for programs that do not use this package).
