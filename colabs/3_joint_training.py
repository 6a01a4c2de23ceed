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
# The point of the paper: one of the tubes is flat, a patch of a single frame. So the same weights take images as well,
# and every training step sees both, a batch of videos and a batch of images. Here this is done on embedded data:
# digits that move (label: the direction) and still ones (label: the digit).

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
workdir = "runs/joint"  # where the run goes; a run that is there already goes on
steps = 900
changes = {}  # keys of the configuration that you want otherwise, such as {"optimizer.learning_rate": "1e-3"}

# %% [markdown]
# ## The configuration
#
# `data.train` lists the data sets of each step, `batch_size` says how many of each. The heads follow from the data:
# one for each set of labels. On first use the data is made, 6,000 clips, in a minute or two.

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
from tubevit.visualize.report import read_checkpoint

config = load_config("quickstart", {"train.steps": str(steps), **changes})
for name, dataset in config.data.train.items():
    print(f"{name}: head {dataset.head}, {dataset.batch_size} in a step")

# %% [markdown]
# ## Train
#
# From a shell: `tubevit train --config quickstart --workdir runs/joint`. 900 steps take about 5 minutes on 2 CPU
# cores.

# %%
install_logging()  # shows the progress
train(config, workdir)

# %%
metrics = read_metrics(pathlib.Path(workdir, "metrics.jsonl").read_text())
loss_figure(metrics)

# %%
score_figure(metrics)

# %% [markdown]
# ## One model, two kinds of input
#
# A video gives tokens of all tubes, an image only those of the flat one. It is never repeated to look like a video.

# %%
model, metadata, *_ = read_checkpoint(workdir)  # tubevit.load_model(workdir), and what the run was told
held_out = metadata["config"]["data"]["eval"]
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
# Does it see motion, or something that stands still in the frames? A clip that runs backwards has the same frames; a
# model that sees motion should now name the opposite direction.

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
# Of the first tube, as strips over time. Grey is 0.

# %%
kernel_figure(model, 0)

# %% [markdown]
# For your own data, copy `experiments/quickstart.py` and replace the sources: each may be a csv, a folder or one of
# the known data sets. `experiments/k600.py` is the paper's joint training on Kinetics-600 and ImageNet.
