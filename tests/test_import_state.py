"""Importing the package changes nothing in the process that imports it."""

import subprocess
import sys

PROGRAM = """
import ast, importlib, logging, os, pathlib, pkgutil, signal, sys, threading, warnings
import cv2, fsspec

def third_party(path):
    for node in ast.parse(path.read_text()).body:
        names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        yield from (name for name in names if not name.startswith("tubevit"))

def logger_state(name):
    logger = logging.getLogger(name)
    return logger.level, list(logger.handlers), list(logger.filters), logger.propagate, logger.disabled

def state():
    return {
        "environment": dict(os.environ),
        "opencv threads": cv2.getNumThreads(),
        "fsspec": {key: dict(value) for key, value in fsspec.config.conf.items()},
        "logging": {name: logger_state(name) for name in (None, "absl", "gcsfs", "jax", "orbax", "tubevit")},
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "warnings": list(warnings.filters),
    }

package = pathlib.Path(importlib.util.find_spec("tubevit").origin).parent
twin = "tubevit_torch"  # needs torch; exports contain it, and nothing here imports it
paths = [path for path in package.rglob("*.py") if path.stem != twin]
for name in sorted({name for path in paths for name in third_party(path)}):
    importlib.import_module(name)  # these have states of their own
before = state()
for module in pkgutil.walk_packages([str(package)], "tubevit."):
    if not module.name.endswith(("__main__", twin)):
        importlib.import_module(module.name)
for name, after in state().items():
    after, old = (value if isinstance(value, dict) else {"": value} for value in (after, before[name]))
    changed = [key for key in {*after, *old} if after.get(key) != old.get(key)]
    if changed:
        print(name, "changed:", *changed)
"""


def test_importing_every_module_changes_no_state():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
