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
# # In by name, out to PyTorch
#
# This notebook takes a model by its name, for example from the Hugging Face Hub, teaches it new labels by a low-rank
# adapter (LoRA), which leaves its own parameters as they are, and exports the result for PyTorch, where neither JAX nor
# this package is needed.

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
    subprocess.run([*pip, f"tubevit[hub] @ git+{REPOSITORY}"], check=True)

# %% tags=["parameters"]
init = "tubevit_nano8@moving_digits"  # a released model, "hf://owner/repo" on the Hub, or the folder of a run
data = ""  # your csv file, or a folder with DIR/CLASS/FILE; "" generates an example
workdir = "runs/adapted"  # the folder of the run; an existing run is resumed
clips = 200  # number of training clips of the example
changes = {}  # keys of the configuration to change, such as {"train.steps": "1000"}

# %% [markdown]
# ## In
#
# A name on the Hub, `hf://owner/repo[@revision][:subfolder]`, can be used wherever a checkpoint is expected. The model
# may be one of ours, or a ViT or video model of another library, which is converted automatically. Files are
# downloaded once for each commit.

# %%
import tubevit

model = tubevit.load_model(init)
print(f"{model.config.name}: {model.config.width} wide, {model.config.depth} blocks, heads {', '.join(model.labels)}")

# %% [markdown]
# ## An adapter
#
# The example has labels that are new to the model: the axis of a motion instead of its direction. `adapter=lora` trains
# low-rank matrices beside the linear layers of the blocks, the pooling and the new head. The same from a shell:
# `tubevit train --config finetune:data=clips.csv,init=NAME,adapter=lora --workdir runs/adapted`.

# %%
import csv

from tubevit.cli.logs import install_logging
from tubevit.config import load_config
from tubevit.data.moving_digits import DIRECTIONS, make_moving_digits
from tubevit.training.loop import train

if not data:
    make_moving_digits("example", train_clips=clips, held_out_digits=max(clips // 20, 1))
    axes = dict(zip(DIRECTIONS, 2 * ("horizontal", "falling", "vertical", "rising")))
    with open("example/motion.csv") as source, open("example/axis.csv", "w", newline="") as target:
        rows = csv.writer(target)
        rows.writerow(["path", "label", "split"])
        rows.writerows([row["path"], axes[row["motion"]], row["split"]] for row in csv.DictReader(source))
    data = "example/axis.csv"
install_logging()  # shows progress
train(load_config(f"finetune:data={data},init={init},adapter=lora", changes), workdir)

# %% [markdown]
# A checkpoint of the run holds what was trained, and the name and the hash of the model that it belongs to. Loading it
# merges the adapter, so that the result is an ordinary model. `evaluate`, `predict`, `export` and `release` do the
# same.

# %%
from tubevit.visualize.evaluated import evaluate_stored
from tubevit.zoo.names import open_checkpoint

checkpoint = open_checkpoint(workdir)
model = checkpoint.load_model()  # tubevit.load_model(workdir)
held_out = evaluate_stored(model, "data", checkpoint.experiment["data"]["eval"]["data"])
print(f"classes: {', '.join(held_out.source.classes)}")

# %% [markdown]
# ## Out
#
# The export is a folder with the parameters, `config.json`, and `tubevit_torch.py`: the whole model in one file, which
# needs only torch and safetensors. `tubevit export runs/adapted for_torch --format torch` writes it, too.

# %%
from tubevit.convert.export_torch import export_torch

folder = pathlib.Path(workdir, "for_torch")
if not folder.exists():
    export_torch(model, folder)
for file in sorted(folder.iterdir()):
    print(f"{file.name}: {file.stat().st_size:,} bytes")

# %% [markdown]
# The rest could run in another process that has never heard of JAX:

# %%
import torch

sys.path.append(str(folder))
from tubevit_torch import load_model

twin = load_model(folder)
clip = torch.from_numpy(held_out.clip(0))[None]  # (1, T, H, W, 3), uint8
with torch.no_grad():
    logits = twin(clip)[0]
(labels,) = twin.labels.values()
print("in PyTorch:", ", ".join(f"{labels[i]} {logits.softmax(0)[i]:.1%}" for i in logits.argsort(descending=True)))

# %% [markdown]
# It computes what our model computes:

# %%
import numpy as np

expected = np.asarray(model(clip.numpy())[0])
difference = np.abs(logits.numpy() - expected).max() / np.abs(expected).max()
print(f"largest difference: {difference:.0e} of the largest logit")

# %% [markdown]
# What is trained in PyTorch comes back: `torch.save(twin.state_dict(), "for_torch/trained.pt")`, and then
# `tubevit convert for_torch/trained.pt trained`. `tubevit export --format onnx` writes a program for ONNX Runtime, and
# `tubevit release runs/adapted NAME --to hf://owner/repo` publishes the model on the Hub.
