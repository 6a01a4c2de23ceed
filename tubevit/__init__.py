"""TubeViT in JAX: sparse video tubes for joint image and video learning.

Names are loaded on first use, so that `tubevit.tubes` needs NumPy only.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "Tube": "tubes", "TubeSet": "tubes", "list_tubes": "tubes",
    "TubeBatch": "windows", "take_windows": "windows",
    "TubeViTError": "errors", "UserError": "errors",
    "Head": "models.config", "ModelConfig": "models.config", "TubeViT": "models.tubevit",
    "create_model": "models.variants", "list_models": "zoo.registry",
    "read_video": "data.video", "read_image": "data.video",
    "load_model": "zoo.names", "save_model": "checkpoint.checkpoint",
}  # fmt: skip
_MODULES = ("checkpoint", "cli", "config", "convert", "data", "errors", "evaluation", "models", "recipes", "training",
            "transfer", "tubes", "visualize", "zoo")  # fmt: skip

__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f"tubevit.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"tubevit.{name}")
    from tubevit.errors import closest

    raise AttributeError(f"module 'tubevit' has no attribute {name!r}; {closest(name, __all__)}")


def __dir__():
    return sorted([*__all__, *_MODULES])
