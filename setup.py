"""Packaging: `pip install -e .`.

Extras: cuda, tpu, gcs, hub, convert, int8, onnx, plot, wandb, mlflow, beam, peers, notebook, docs, dev, lint.
"""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "tubevit/__init__.py").read_text()).group(1)

setup(
    name="tubevit",
    version=VERSION,
    description="TubeViT in JAX: sparse video tubes for joint image and video learning",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The wheel contains experiments and released weights inside the package; in a checkout they lie beside it.
    packages=[*find_packages(include=["tubevit", "tubevit.*"]), "tubevit.experiments", "tubevit.checkpoints"],
    package_dir={"tubevit.experiments": "experiments", "tubevit.checkpoints": "checkpoints"},
    package_data={"tubevit": ["py.typed"], "tubevit.checkpoints": ["**/*"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.6",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "ml-collections>=1.1",
        "grain>=0.2.18",
        "clu>=0.0.12",
        "tensorflow-datasets>=4.9.10",
        "numpy>=2.0",
        "jaxtyping>=0.3.3",
        "einops>=0.8",
        "fsspec>=2024.2",
        "array_record>=0.8",
        "msgpack>=1.0",
        "tqdm>=4.60",
        "shtab>=1.13",
        "av>=18",  # before, conversions ignored the colours that frames declare
        "opencv-python-headless>=5",
        "scikit-learn>=1.5",
        "tensorboardX>=2.6",
    ],
    extras_require={
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]", "gcsfs>=2024.2"],
        "gcs": ["gcsfs>=2024.2"],
        "beam": ["apache-beam[gcp]>=2.77", "gcsfs>=2024.2"],
        "convert": ["safetensors>=0.4.3", "flatbuffers>=24"],
        "onnx": ["torch", "onnx>=1.19", "onnxscript>=0.5", "onnxruntime>=1.23"],
        "int8": ["qwix>=0.1.8"],
        "hub": ["huggingface_hub>=2.4", "safetensors>=0.4.3"],
        "plot": ["matplotlib>=3.8"],
        "wandb": ["wandb>=0.31"],
        "mlflow": ["mlflow-skinny>=3.17"],  # the client alone
        "peers": ["torch", "torchvision", "timm", "transformers>=5", "safetensors>=0.4.3"],
        "notebook": ["jupytext>=1.17", "nbclient>=0.10", "nbconvert>=7.16", "ipykernel>=6.29", "matplotlib>=3.8"],
        "docs": ["mkdocs>=1.6", "mkdocs-material>=9.7", "mkdocstrings[python]>=1"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.6",
            "build>=1.2",
            "hypothesis>=6",
            "beartype>=0.21",
            "pillow>=10",
            "gcsfs>=2024.2",
            "gcp-storage-emulator",
            "safetensors>=0.4.3",
            "huggingface_hub>=2.4",
            "flatbuffers>=24",
            "matplotlib>=3.8",
            "jupytext>=1.17",
            "griffelib>=2",
        ],
        "lint": ["basedpyright>=1.40"],  # pyright as one wheel, without a download at run time
    },
    entry_points={"console_scripts": ["tubevit=tubevit.cli.main:entry"]},
)
