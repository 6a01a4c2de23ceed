"""Results of compiles in the cache folder: a plan that ran out of time goes on where it stopped."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import flax
import jax
import jaxlib
import optax

import tubevit
from tubevit import storage
from tubevit.code_hash import code_hash
from tubevit.config import load_config
from tubevit.config.resolve import resolve
from tubevit.data.sources.embedded import cache_folder
from tubevit.errors import TookTooLong
from tubevit.preflight.devices import ENVIRONMENT, compiler_version
from tubevit.preflight.topology import Topology

_TOO_LONG = "took_too_long"


def remembered(compiler: Callable[..., dict]) -> Callable[..., dict]:
    """Return a compiler that compiles nothing twice with the same code, versions and settings.

    A compile that took too long is not tried again. Other errors are not remembered.

    Args:
        compiler: function with the arguments and the result of `compile_in_process`.
    """

    def compile_once(
        config: str, overrides: Mapping[str, str], topology: Topology, parts: Sequence[str], effort: str = "full"
    ) -> dict:
        path = cache_folder() / "preflight" / f"{_key(config, overrides, topology, parts, effort)}.json"
        result = None
        with contextlib.suppress(OSError, ValueError):  # missing, or cut off by a full disk
            result = json.loads(path.read_bytes())
        if result is None:
            try:
                result = compiler(config, overrides, topology, parts, effort)
            except TookTooLong as error:
                result = {_TOO_LONG: str(error)}
            with contextlib.suppress(OSError):  # it is only slower without
                path.parent.mkdir(parents=True, exist_ok=True)
                storage.write_text(path, json.dumps(result))
        if _TOO_LONG in result:
            raise TookTooLong(f"{result[_TOO_LONG]} (remembered in {path}; remove it to try again)")
        return result

    return compile_once


def _key(config: str, overrides: Mapping[str, str], topology: Topology, parts: Sequence[str], effort: str) -> str:
    """Hash all that a result depends on."""
    resolved = resolve(load_config(config, overrides), assume_missing=True)
    versions = [compiler_version(topology), *(module.__version__ for module in (jax, jaxlib, flax, optax))]
    variables = sorted({**os.environ, **ENVIRONMENT}.items())
    flags = {key: value for key, value in variables if key.startswith(("JAX_", "LIBTPU_INIT_ARGS"))}
    versions += [code_hash(pathlib.Path(tubevit.__file__).parent), str(flags)]
    settings = [resolved.config.to_json(sort_keys=True), repr(resolved.model), topology.name, list(parts), effort]
    return hashlib.sha256(json.dumps([*versions, *settings]).encode()).hexdigest()
