"""Results of compiles in the cache folder: a plan that ran out of time goes on where it stopped."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jaxlib

import tubevit
from tubevit import storage
from tubevit.config import load_config
from tubevit.config.resolve import resolve
from tubevit.data.sources.embedded import cache_folder
from tubevit.preflight.devices import compiler_version
from tubevit.preflight.topology import Topology


def remembered(compiler: Callable[..., dict]) -> Callable[..., dict]:
    """Return a compiler that compiles nothing twice with the same code, versions and settings.

    Args:
        compiler: function with the arguments and the result of `compile_in_process`. Its errors are not remembered.
    """

    def compile_once(
        config: str, overrides: Mapping[str, str], topology: Topology, parts: Sequence[str], effort: str = "full"
    ) -> dict:
        path = cache_folder() / "preflight" / f"{_key(config, overrides, topology, parts, effort)}.json"
        with contextlib.suppress(OSError, ValueError):  # missing, or cut off by a full disk
            return json.loads(path.read_bytes())
        result = compiler(config, overrides, topology, parts, effort)
        with contextlib.suppress(OSError):  # it is only slower without
            path.parent.mkdir(parents=True, exist_ok=True)
            storage.write_text(path, json.dumps(result))
        return result

    return compile_once


def _key(config: str, overrides: Mapping[str, str], topology: Topology, parts: Sequence[str], effort: str) -> str:
    """Hash all that a result depends on."""
    resolved, code = resolve(load_config(config, overrides), assume_missing=True), hashlib.sha256()
    for file in sorted(pathlib.Path(tubevit.__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    versions = [compiler_version(topology), jax.__version__, jaxlib.__version__, code.hexdigest()]
    versions.append(os.environ.get("LIBTPU_INIT_ARGS", ""))
    settings = [resolved.config.to_json(sort_keys=True), repr(resolved.model), topology.name, list(parts), effort]
    return hashlib.sha256(json.dumps([*versions, *settings]).encode()).hexdigest()
