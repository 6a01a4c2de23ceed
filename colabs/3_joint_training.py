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
# # Train one model on images and videos at once
#
# This is the main idea of the paper: one of the tubes is 2D, a patch of a single frame, so the same weights also
# process images. Every training step uses batches of videos and a batch of images. This notebook trains on the
# embedded data: moving digits (labelled with their direction, or with digit and direction) and still digits (labelled
# with the digit).

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
workdir = "runs/joint"  # the folder of the run; an existing run is resumed
steps = 1000
changes = {}  # keys of the configuration to change, such as {"optimizer.learning_rate": "6e-3"}

# %% [markdown]
# ## The configuration
#
# `data.train` lists the data sets of each step, and `batch_size` sets the number of examples of each. The heads are
# derived from the data: one for each set of labels. On first use, the data (7,800 clips, 6,288 images) are generated in
# a minute or two.

# %%
# %matplotlib inline
import numpy as np

from tubevit.cli.logs import install_logging
from tubevit.config import load_config
from tubevit.data.moving_digits import DIRECTIONS
from tubevit.evaluation.metrics import confusion_matrix
from tubevit.training.loop import train
from tubevit.visualize.attention import attention_figure, heat_maps
from tubevit.visualize.confusion import confusion_figure
from tubevit.visualize.curves import loss_figure, read_metrics, score_figure
from tubevit.visualize.evaluated import evaluate_stored
from tubevit.visualize.kernels import kernel_figure
from tubevit.zoo.names import open_checkpoint

config = load_config("quickstart", {"train.steps": str(steps), **changes})
for name, dataset in config.data.train.items():
    print(f"{name}: head {dataset.head}, {dataset.batch_size} in a step")

# %% [markdown]
# ## Train
#
# From a shell: `tubevit train --config quickstart --workdir runs/joint`. 1,000 steps take about 6 minutes on 2
# CPU cores.

# %%
install_logging()  # shows progress
train(config, workdir)

# %%
metrics = read_metrics(pathlib.Path(workdir, "metrics.jsonl").read_text())
loss_figure(metrics)

# %%
score_figure(metrics)

# %% [markdown]
# ## One model, two kinds of input
#
# A video gives tokens of all tubes, an image only those of the 2D tube. An image is never repeated to form a video.

# %%
checkpoint = open_checkpoint(workdir)
model = checkpoint.load_model()  # tubevit.load_model(workdir)
held_out = checkpoint.experiment["data"]["eval"]
videos = evaluate_stored(model, "moving_digits", held_out["moving_digits"])
images = evaluate_stored(model, "still_digits", held_out["still_digits"])
clip, image = videos.clip(0), images.clip(0)
print("video", clip.shape, "->", model.tokenize(clip[None])[0].shape[1], "tokens")
print("image", image.shape, "->", model.tokenize(image[None])[0].shape[1], "tokens")

# %% [markdown]
# ## Videos

# %%
confusion_figure(confusion_matrix(videos.predictions.probabilities, videos.source.labels), videos.source.classes)

# %%
found = videos.source.classes[videos.predictions.probabilities[0].argmax()]
attention_figure(clip, *heat_maps(model, clip), f"predicted: {found}")

# %% [markdown]
# Does the model use motion, or something that is visible in single frames? A reversed clip has the same frames, so a
# model that uses motion should predict the opposite direction.

# %%
some = np.stack([videos.clip(i) for i in range(min(64, len(videos.source)))])
named = np.array(videos.source.classes)
forward, backward = (named[np.asarray(model(each, head="motion")).argmax(axis=1)] for each in (some, some[:, ::-1]))
opposite = [DIRECTIONS.index(a) == (DIRECTIONS.index(b) + 4) % 8 for a, b in zip(forward, backward)]
print(
    f"backwards, {np.mean(opposite):.0%} of {len(some)} clips are called the opposite of what they were called before"
)

# %% [markdown]
# ## Images

# %%
confusion_figure(confusion_matrix(images.predictions.probabilities, images.source.labels), images.source.classes)

# %% [markdown]
# ## The kernels
#
# The figure shows kernels of the first tube as strips over time. Grey is 0.

# %%
kernel_figure(model, 0)

# %% [markdown]
# For your own data, copy `experiments/quickstart.py` and replace the sources. Each may be a csv file, a folder or one
# of the supported data sets. `experiments/k600.py` is the paper's joint training on Kinetics-600 and ImageNet.
