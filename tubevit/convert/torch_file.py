"""Read torch's .pth and .bin files without torch and without running code from the pickle."""

import collections
import io
import math
import pathlib
import pickle
import pickletools
import zipfile

import ml_dtypes
import numpy as np

from tubevit.errors import UserError

_STORAGES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip
_STATE_DICTS = ("state_dict", "model_state", "model", "module")  # keys under which training programs store it


def damaged(path: pathlib.Path, error: Exception | str) -> UserError:
    """Make the error for a file that cannot be read to its end."""
    return UserError(f"{path} is damaged or incomplete: {' '.join(str(error).split()) or type(error).__name__}")


def read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read a state dict of torch 1.6 or newer; raises UserError if it is damaged or holds more than tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            folder = name.removesuffix("data.pkl")
            if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
                raise UserError(f"{path} was written on a big-endian machine; expected a little-endian file")
            content = archive.read(name)
            _check_memo(content)
            found = _Unpickler(io.BytesIO(content), archive, folder, path).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise damaged(path, error) from error
    if isinstance(found, dict) and {"encoder", "predictor"} <= found.keys():
        raise UserError(f"{path} is an original file of V-JEPA 2, which is not supported: pass Hugging Face's folder")
    if isinstance(found, dict):
        found = next((found[key] for key in _STATE_DICTS if isinstance(found.get(key), dict)), found)
    if not isinstance(found, dict) or not all(isinstance(value, np.ndarray) for value in found.values()):
        raise UserError(f"{path} must hold a state dict of tensors by name; save model.state_dict()")
    return found


def _check_memo(content: bytes) -> None:
    """Refuse an index beyond the length of the pickle: Python would make a table of that many entries."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > len(content):
            raise ValueError(f"the pickle of {len(content)} bytes numbers an object {argument}")


class _Unpickler(pickle.Unpickler):
    """Unpickler that knows only the names in a state dict, each replaced by a function of this module."""

    def __init__(self, file, archive: zipfile.ZipFile, folder: str, path: pathlib.Path):
        super().__init__(file)
        self.archive, self.folder, self.path = archive, folder, path
        self.storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str):
        """Return the replacement for a name in the pickle; raises UserError for unknown names."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _STORAGES:
            return name
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            # A new function each time, because a pickle can set attributes on it.
            return (lambda *args: _tensor(*args)) if name == "_rebuild_tensor_v2" else (lambda data, *_: data)
        raise UserError(
            f"{self.path} refers to {module}.{name}, which could run code: expected only tensors. If you trust the "
            "file, load it with torch and save only its state dict"
        )

    def persistent_load(self, pid):
        """Read the flat values of a storage."""
        _, kind, key, _, count = pid
        if key not in self.storages:
            self.storages[key] = np.frombuffer(self.archive.read(f"{self.folder}data/{key}"), _STORAGES[kind])
        if len(self.storages[key]) != count:
            raise ValueError(f"storage {key} has {len(self.storages[key])} values instead of {count}")
        return self.storages[key]


def _tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_) -> np.ndarray:
    """Make a view into a storage, within its bounds, which does not repeat values."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= len(storage)):
        raise ValueError(f"a tensor of {tuple(size)} reaches beyond its storage of {len(storage)} values")
    if math.prod(size) > len(storage):
        raise ValueError(f"a tensor of {tuple(size)} claims more values than the {len(storage)} of its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), strides, writeable=False)
