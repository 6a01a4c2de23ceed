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
# # From a small tube model and a large image ViT to a large video model
#
# Large video models are expensive to train. Section 3.6 of the paper proposes to train the tubes with a small model,
# combine them with the blocks of a large ViT that was trained on images, and train only the last blocks of the
# combined model. This notebook does so with models that fit a CPU. It demonstrates the steps, not the benefit, which
# needs more data and time than a notebook has.

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
small = "tubevit_nano8@moving_digits"  # the small tube model: a released checkpoint, or the folder of a run
workdir = "runs/small_to_large"  # the folder of the two runs; existing runs are resumed
vit_changes = {}  # keys of the image ViT's configuration to change, such as {"train.steps": "1200"}
changes = {}  # the same for the large video model

# %% [markdown]
# ## 1. A large image ViT
#
# Here, an image ViT of width 192 with 6 blocks is trained on images of digits, for 600 steps to save time; that of the
# released model had 2,000. For a real ViT, this step is not needed: `tubevit convert SRC DST` turns a ViT of Hugging
# Face, timm, big_vision or AugReg into a checkpoint.

# %%
# %matplotlib inline
import jax
import numpy as np

import tubevit
from tubevit.cli.logs import install_logging
from tubevit.config import load_config
from tubevit.models.abstract import parameters
from tubevit.models.freeze import split_frozen
from tubevit.training.loop import train
from tubevit.visualize.attention import attention_figure, heat_maps
from tubevit.visualize.curves import loss_figure, read_metrics
from tubevit.visualize.evaluated import evaluate_stored
from tubevit.visualize.kernels import kernel_figure
from tubevit.zoo.names import open_checkpoint

install_logging()  # shows progress
vit = f"{workdir}/vit"
train(load_config("digits_bootstrap:stage=vit,steps=600", vit_changes), vit)

# %% [markdown]
# ## 2. The large video model
#
# This model learns 80 classes from clips, each a pair of a digit and a direction. Only its last 2 blocks, the pooling,
# the head and the gate are trained. To do the same with your own models and videos, run
# `tubevit train --config bootstrap:small=SMALL,large=VIT,videos=clips.csv --workdir runs/large`.

# %%
config = load_config(f"digits_bootstrap:stage=gate,small={small},large={vit}", changes)
train(config, f"{workdir}/large")

# %%
metrics = read_metrics(pathlib.Path(workdir, "large", "metrics.jsonl").read_text())
loss_figure(metrics)

# %% [markdown]
# The run evaluates the 80 classes (chance is 1.25 %) once, at its end. In
# `tubevit_ti8@moving_digits_bootstrap`, all blocks were trained; see docs/bootstrapping.md.
#
# ## What was reused
#
# A token must have the width of the large model. This needs no new weights: the small model's tube is applied at
# several positions, and the results are concatenated. The factor after `%` gives the number of positions along each
# axis.

# %%
checkpoint = open_checkpoint(f"{workdir}/large")
donor, model = tubevit.load_model(small), checkpoint.load_model()
for name, each in (("small", donor), ("large", model)):
    print(f"{name}: {each.config.width} wide, {each.config.depth} blocks, tubes {each.config.tubes}")

# %% [markdown]
# The kernels of the 3D tubes are still those of the small model, because they were not trained. The 2D tube is the
# ViT's own.

# %%
for i, tube in enumerate(donor.config.tubes.tubes):
    if not tube.is_2d:
        before, after = (each.tokenizer.tubes[str(i)].kernel[...] for each in (donor, model))
        print(f"tube {tube.kernel}: largest difference {np.abs(before - after).max()}")
kernel_figure(model, 0)

# %% [markdown]
# Frozen parameters have no gradient and no optimiser state, and need no backward pass.

# %%
trained, frozen = (
    sum(leaf.size for leaf in jax.tree.leaves(part)) for part in split_frozen(parameters(model), model.config)
)
print(f"trained: {trained:,} of {trained + frozen:,} parameters ({trained / (trained + frozen):.0%})")

# %% [markdown]
# The gate of equation 8 adds the input tokens of the encoder, multiplied by tanh(alpha), to the output of the first
# trained block. Alpha is initialised to 0, where the model equals the image ViT on the new tokens.

# %%
print("tanh(alpha):", np.tanh(np.asarray(model.encoder.gate[...])))

# %% [markdown]
# ## Where the model looks

# %%
held_out = evaluate_stored(model, "clips", checkpoint.experiment["data"]["eval"]["clips"])
clip = held_out.clip(0)
probabilities = held_out.predictions.probabilities[0]
answer = f"{held_out.source.classes[probabilities.argmax()]} ({probabilities.max():.0%})"
attention_figure(clip, *heat_maps(model, clip), answer)
