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
# # On a TPU pod: check first, then launch
#
# Large models are trained on slices of a TPU pod, which cost money from the moment they exist. This shows what can be
# known before: whether a configuration fits, what it costs, and which commands would be run. Nothing here needs a TPU,
# starts one, or costs anything. The commands have not been run on a TPU by us: we have none.

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
experiment = "k600:model=tubevit_h16"  # ViT-H on Kinetics-600 and ImageNet
topology = "v5litepod-256"  # the slice: gcloud's accelerator type
changes = {"mesh.fsdp": "16"}  # keys of the configuration; this one splits the parameters over 16 chips
workdir = "gs://BUCKET/k600_h16"  # a bucket in the region of the slice
zone = "us-west4-a"

# %% [markdown]
# ## What a configuration needs anywhere
#
# Counted, not measured: tokens, parameters, FLOPs and memory of activations, for one clip.

# %%
import importlib.util

import tubevit
from tubevit.cli import main
from tubevit.preflight.report import report
from tubevit.preflight.run import preflight
from tubevit.preflight.topology import find_topology

flags = [f"--config.{key}={value}" for key, value in changes.items()]
print("tubevit inspect --config", experiment, *flags)
assert main(["inspect", "--config", experiment, *flags]) == 0

# %% [markdown]
# ## Does it fit?
#
# Preflight compiles the real training step for the slice with TPU's own compiler, `libtpu`, on this machine. If that
# is not here, this cell says how to get it, and you can go on without.

# %%
chips = find_topology(topology)
print(f"{topology} is {chips.name}: {chips.devices} chips")
print("tubevit preflight --config", experiment, "--topology", topology, *flags)
if importlib.util.find_spec("libtpu"):
    print(report(preflight(experiment, changes, chips)))
else:
    print("libtpu is not installed: pip install 'tubevit[tpu]'")

# %% [markdown]
# `peak` is the memory of one chip in a step, against what the chip has. Step times are estimates from published peaks.
# Where it does not fit, `tubevit preflight --suggest` tries what makes room.
#
# ## Launch
#
# `launch/tpu.py` creates the slice, copies the code, installs it on every host and starts the run. It is in the
# repository, not in the package. `--dry-run` prints the commands and runs nothing. You need `gcloud`, logged in, and a
# project with TPU quota.

# %%
checkout = pathlib.Path(tubevit.__file__).parent.parent
if not (checkout / "launch/tpu.py").exists():
    checkout = pathlib.Path("checkout")
    if not checkout.exists():
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", REPOSITORY, str(checkout)], check=True)


def launch(how, *more):
    """The commands that would start the run."""
    flags_of_launch = ["--name", "my-run", "--zone", zone, "--type", topology, *more, "--dry-run"]
    run = ["train", "--config", experiment, "--workdir", workdir, *flags]
    command = [sys.executable, str(checkout / "launch/tpu.py"), how, *flags_of_launch, "--", *run]
    print(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


launch("pod")

# %% [markdown]
# A queued resource waits until there is room, and with `--spot` it is cheaper but may be taken away at any time. The
# launcher then creates it again, and the run goes on from its last checkpoint.

# %%
launch("queued", "--spot")

# %% [markdown]
# The commands end with the one that deletes what was created. **It costs money until that has run.** Leave `--dry-run`
# away to run them; `docs/tpu.md` has GKE, several slices, restarts and the settings that matter.
