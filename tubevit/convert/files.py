"""Files of arrays: recognise them by content, read them without running code, write them completely or not at all."""

import hashlib
import json
import pathlib
import zipfile

import ml_dtypes
import numpy as np
from flax import serialization

from tubevit.checkpoint.paths import flatten
from tubevit.convert.torch_file import damaged, read_torch
from tubevit.errors import UserError, optional_import

_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_COMPRESSION = 8  # times that an archive may grow, at most
_SAFETENSORS = ("a .safetensors file", "convert")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def kind_of(path: pathlib.Path) -> str:
    """Return `npz`, `torch`, `safetensors` or `msgpack`, by content; raises UserError for other and damaged files."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(9)
    if start.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                names, held = archive.namelist(), sum(each.file_size for each in archive.infolist())
        except Exception as error:  # a damaged directory may raise anything
            raise damaged(path, error) from error
        if held > max(_COMPRESSION * size, 2**30):  # trained weights hardly shrink
            raise damaged(path, f"it would grow from {size / 1e6:,.0f} to {held / 1e6:,.0f} MB")
        if any(name.endswith("data.pkl") for name in names):
            return "torch"
        if names and all(name.endswith(".npy") for name in names):
            return "npz"
        raise UserError(f"{path} is a zip file, but neither .npz nor torch; it holds {', '.join(names[:5])}")
    if start[8:9] == b"{":
        if int.from_bytes(start[:8], "little") > size:
            raise damaged(path, "its header reaches beyond its end")
        return "safetensors"
    if start.startswith(b"\x80"):
        raise UserError(
            f"{path} was saved by torch before 1.6 and cannot be read without running code in it; load it with torch "
            "and save its state dict again, as safetensors or with torch.save"
        )
    if start and (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):  # a map that is not empty
        return "msgpack"
    raise UserError(
        f"{path} is not a .npz, .safetensors or torch .pth file, nor one of flax (msgpack); it begins with {start!r}"
    )


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file by name; raises UserError if it is of no known kind, is damaged or holds code."""
    readers = {"npz": _read_npz, "torch": read_torch, "safetensors": _read_safetensors, "msgpack": _read_msgpack}
    return readers[kind_of(path)](path)


def read_folder(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], list[pathlib.Path]]:
    """Read the arrays of a folder, from model.safetensors, its shards or pytorch_model.bin; returns the files, too."""
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder} holds no weights: expected one of {', '.join(WEIGHTS)}; found {_listing(folder)}")
    if found.suffix != ".json":
        return read_arrays(found), [found]
    files = [folder / name for name in shards_of(found)]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise UserError(f"{folder} lacks {', '.join(absent)}, which {found.name} names")
    arrays = {}
    for file in files:
        arrays |= read_arrays(file)
    return arrays, files


def shards_of(index: pathlib.Path) -> list[str]:
    """List the files that model.safetensors.index.json names; raises UserError unless all of them lie beside it."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(
        isinstance(x, str) and pathlib.Path(x).name == x for x in shards.values()
    ):
        raise UserError(f"{index} must have a weight_map from names of arrays to files beside it")
    return sorted(set(shards.values()))


def read_json(path: pathlib.Path) -> dict:
    """Read a JSON object; raises UserError if the file is missing, damaged or holds something else."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}; found {_listing(path.parent)}") from None
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object; found {type(values).__name__}")
    return values


def sha256(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as libraries for torch expect them."""
    optional_import("safetensors.numpy", *_SAFETENSORS).save_file(arrays, path, metadata={"format": "pt"})


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: _with_bfloat16(archive[name]) for name in archive.files}
    except Exception as error:  # NumPy parses whatever a damaged header holds
        if "allow_pickle" in str(error):
            raise UserError(f"{path} holds Python objects, which may be code; expected only arrays") from error
        raise damaged(path, error) from error


def _with_bfloat16(array: np.ndarray) -> np.ndarray:
    """Return the numbers of a bfloat16 array, whose type NumPy writes as 2 bytes without a meaning."""
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    library = optional_import("safetensors", *_SAFETENSORS)
    try:
        entries = library.deserialize(path.read_bytes())
    except library.SafetensorError as error:
        raise damaged(path, error) from error
    other = sorted({entry["dtype"] for _, entry in entries} - _DTYPES.keys())
    if other:
        raise UserError(f"{path} holds arrays of type {', '.join(other)}; valid: {', '.join(_DTYPES)}")
    return {
        name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"]) for name, entry in entries
    }


def _read_msgpack(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read the arrays of a nested dict that flax has written; their names are the keys, joined by `/`."""
    try:
        restored = serialization.msgpack_restore(path.read_bytes())
        leaves = flatten(restored) if isinstance(restored, dict) else {}
    except Exception as error:  # a damaged file may raise anything
        raise damaged(path, error) from error
    return {name: leaf for name, leaf in leaves.items() if isinstance(leaf, np.ndarray)}


def _listing(folder: pathlib.Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
