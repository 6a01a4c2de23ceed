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
# TubeViT reads a video through a few *tubes*: strided 3D windows of different shapes. What each window holds becomes a
# token, and a plain Vision Transformer does the rest. Here a trained model classifies a video and shows what it looked
# at.

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
checkpoint = "tubevit_nano8@moving_digits"  # a released checkpoint, or the folder of a run or of a saved model
video = ""  # your video or animated GIF; "" draws one

# %% [markdown]
# The released checkpoints are those of `tubevit.list_models(pretrained=True)`. The default one is small and was
# trained on drawn clips: handwritten digits that move in one of 8 directions. For any other video it still answers
# with one of these classes; that shows how it works, not what your video is. Notebook 2 trains on your own classes.

# %%
# %matplotlib inline
import jax
import numpy as np

import tubevit
from tubevit.data.moving_digits import DIRECTIONS, render_clip, split_instances, write_video
from tubevit.visualize.attention import attention_figure, heat_maps
from tubevit.visualize.kernels import kernel_figure
from tubevit.visualize.layout import layout_figure

if not video:  # a digit of the test split, on its way to the right
    video, digit = "example.mp4", split_instances(seed=0)["test"][0]
    write_video(video, render_clip(digit, DIRECTIONS.index("right"), np.random.default_rng(0))[0])

# %% [markdown]
# ## Ten lines
#
# `read_video` takes the frames that the model wants, at its rate and size. A model has a head for each set of labels
# that it was trained on; those for videos answer here.

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
# The first row shows up to 8 of the frames. The second paints on each pixel the weight that the last step, the
# pooling, gives to the tokens that read it. The third follows these weights back through the attention of all blocks.
# Both are the same for all heads, since the heads share everything before them. Darker red is more.
#
# ## What the tubes read
#
# Each row is one tube: in colour what it reads, framed its windows, and in the bar when. The rest of the video is not
# read at all, which is what makes this cheap.

# %%
print(f"read: {model.config.tubes.pixels_read(clip.shape[1:4]):.0%} of the pixels")
layout_figure(clip[0], model.config.tubes)

# %% [markdown]
# ## What the tubes look for
#
# The largest kernels of the first tube, each a strip over time: grey is 0.

# %%
kernel_figure(model, 0)

# %% [markdown]
# ## Features
#
# For search, or a classifier of your own, take the pooled features instead of labels.

# %%
model.features(clip).shape

# %% [markdown]
# The same without Python: `tubevit predict --checkpoint NAME FILE...` for labels, `--features FILE.npz` for features,
# and `tubevit report NAME` for a page of pictures.
