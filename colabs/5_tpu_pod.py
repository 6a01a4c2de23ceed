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
# Large models are trained on slices of a TPU pod, which cost money as long as they exist. This notebook shows what you
# can find out in advance: whether a configuration fits, what it costs, and which commands would be run. Nothing here
# needs a TPU, starts one, or costs anything. We have not run these commands on a TPU, because we have none.

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
experiment = "k600:model=tubevit_h16"  # ViT-H on Kinetics-600 and ImageNet
topology = "v5litepod-256"  # the slice: gcloud's accelerator type
changes = {"mesh.fsdp": "16"}  # keys of the configuration to change; this one shards the parameters over 16 chips
on_hosts = "k600:model=tubevit_h16,videos=shards:gs://BUCKET/k600,images=shards:gs://BUCKET/imagenet"  # with the data
workdir = "gs://BUCKET/k600_h16"  # a bucket in the region of the slice
zone = "us-west4-a"

# %% [markdown]
# ## What a configuration needs on any hardware
#
# Tokens, parameters, FLOPs and activation memory for one clip are counted, not measured.

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
# Preflight compiles the real training step for the slice with the TPU compiler, `libtpu`, on this machine. If `libtpu`
# is not installed, this cell prints how to install it, and you can continue without it.

# %%
chips = find_topology(topology)
print(f"{topology} is {chips.name}: {chips.devices} chips")
print("tubevit preflight --config", experiment, "--topology", topology, *flags)
if importlib.util.find_spec("libtpu"):
    print(report(preflight(experiment, changes, chips)))
else:
    print("libtpu is not installed: pip install 'tubevit[tpu]'")

# %% [markdown]
# `peak` is the memory that a step needs on one chip, compared with the memory of the chip. Step times are estimates
# from published peaks. If the step does not fit, `tubevit preflight --suggest` tries settings that save memory.
#
# ## Launch
#
# `launch/tpu.py` creates the slice, copies the code, installs it on every host and starts the run. It is part of the
# repository, but not of the package. `--dry-run` prints the commands and runs nothing. To launch, you need `gcloud`,
# logged in, and a project with TPU quota. The hosts read the data from the bucket, so the experiment names
# it here.

# %%
checkout = pathlib.Path(tubevit.__file__).parent.parent
if not (checkout / "launch/tpu.py").exists():
    checkout = pathlib.Path("checkout")
    if not checkout.exists():
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", REPOSITORY, str(checkout)], check=True)


def launch(how, *more):
    """Print the commands that would start the run."""
    flags_of_launch = ["--name", "my-run", "--zone", zone, "--type", topology, *more, "--dry-run"]
    run = ["train", "--config", on_hosts, "--workdir", workdir, *flags]
    command = [sys.executable, str(checkout / "launch/tpu.py"), how, *flags_of_launch, "--", *run]
    print(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


launch("pod")

# %% [markdown]
# A queued resource waits for free capacity. With `--spot` it is cheaper, but may be preempted at any time. The
# launcher then creates it again, and the run resumes from its last checkpoint.

# %%
launch("queued", "--spot")

# %% [markdown]
# The last of the commands deletes what was created. **It costs money until this command has run.** Remove `--dry-run`
# to run the commands. `docs/tpu.md` describes GKE, several slices, restarts and the relevant settings.
