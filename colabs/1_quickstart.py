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
# # Quickstart: classify a video, and see where the model looks
#
# TubeViT reads a video through a few *tubes*: strided 3D windows of different shapes. Each window becomes a token, and
# a plain Vision Transformer processes the tokens. In this notebook, a trained model classifies a video and shows where
# it looked.

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
checkpoint = "tubevit_nano8@moving_digits"  # a released checkpoint, or the folder of a run or of a saved model
video = ""  # your video or animated GIF; "" generates one

# %% [markdown]
# `tubevit.list_models(pretrained=True)` lists the released checkpoints. The default checkpoint is small and was
# trained on generated clips of handwritten digits that move in one of 8 directions. It answers with one of these
# classes for any other video, too. This shows how the model works, but not what your video contains. Notebook 2 trains
# on your own classes.

# %%
# %matplotlib inline
import jax
import numpy as np

import tubevit
from tubevit.data.moving_digits import DIRECTIONS, render_clip, split_instances, write_video
from tubevit.visualize.attention import attention_figure, heat_maps
from tubevit.visualize.kernels import kernel_figure
from tubevit.visualize.layout import layout_figure

if not video:  # a digit of the test split that moves to the right
    video, digit = "example.mp4", split_instances(seed=0)["test"][0]
    write_video(video, render_clip(digit, DIRECTIONS.index("right"), np.random.default_rng(0))[0])

# %% [markdown]
# ## Ten lines
#
# `read_video` reads the frames that the model expects, at its frame rate and size. A model has one head for each set
# of labels that it was trained on; this cell uses the heads for videos.

# %%
model = tubevit.load_model(checkpoint)
clip = tubevit.read_video(video, **model.input)  # (1, frames, rows, columns, 3) uint8
answers = []
for name, head in model.config.heads:
    if head.modality != "image":
        probabilities = np.asarray(jax.nn.softmax(model(clip, head=name)[0]))
        best = probabilities.argsort()[::-1][:3]
        answers.append(f"{name}: " + ", ".join(f"{head.labels[i]} {probabilities[i]:.0%}" for i in best))
        print(answers[-1])
attention_figure(clip[0], *heat_maps(model, clip[0]), answers[0])

# %% [markdown]
# The first row shows up to 8 of the frames. The second row colours each pixel by the weight that the pooling, the last
# step, gives to the tokens that read the pixel. The third row traces these weights back through the attention of all
# blocks. Darker red means a larger weight. Both rows are the same for all heads, because the heads share everything
# before them.
#
# ## What the tubes read
#
# Each row shows one tube: the pixels that it reads in colour, its windows as frames, and the times that it reads in
# the bar. The rest of the video is not read at all, which makes the model cheap.

# %%
print(f"read: {model.config.tubes.pixels_read(clip.shape[1:4]):.0%} of the pixels")
layout_figure(clip[0], model.config.tubes)

# %% [markdown]
# ## What the tubes look for
#
# The figure shows the largest kernels of the first tube, each as a strip over time. Grey is 0.

# %%
kernel_figure(model, 0)

# %% [markdown]
# ## Features
#
# For search or for your own classifier, use the pooled features instead of labels.

# %%
model.features(clip).shape

# %% [markdown]
# The same works from a shell: `tubevit predict --checkpoint NAME FILE...` prints labels, `--features FILE.npz` writes
# features, and `tubevit report NAME` creates a page of figures.
