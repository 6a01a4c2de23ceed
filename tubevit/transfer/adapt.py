"""The tokenizer and the learned positions of a checkpoint, in the form that another model has them."""

from __future__ import annotations

import dataclasses

import numpy as np

from tubevit.errors import UserError
from tubevit.models.config import ModelConfig
from tubevit.models.position import is_learned, resize_positions
from tubevit.models.tokenizer import SHARED_KERNEL, is_interpolated, resize_trilinear
from tubevit.transfer.inflate import inflate_kernel, resize_patch, restandardise
from tubevit.tubes import Triple, Tube


@dataclasses.dataclass(frozen=True)
class Donor:
    """The parameters of a checkpoint.

    Attributes:
        name: as the user gave it.
        config: of the model.
        params: {path: array}.
    """

    name: str
    config: ModelConfig
    params: dict[str, np.ndarray]

    def kernel(self, i: int, size: Triple, model: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
        """Kernel and bias of tube i for pixels that are standardised as `model` does it; a shared one of `size`."""
        config = self.config
        if is_interpolated(config.tubes.tubes[i], config):
            shared = self.params["tokenizer/kernel"]
            kernel = np.asarray(resize_trilinear(shared, size, config.gain_norm, config.antialias))
        else:
            kernel = self.params[f"tokenizer/tubes/{i}/kernel"]
        old, new = ((c.mean, c.std) for c in (config, model))
        return restandardise(kernel, self.params[f"tokenizer/tubes/{i}/bias"], old, new)

    def match(self, model: ModelConfig, wanted: list[int]) -> dict[int, int]:
        """{tube of the model: tube of the checkpoint} whose kernels it can take as they are, each of them once.

        Those of the same stride and offset come first, then those of the same index, then any.
        """
        pairs = []
        for i in wanted:
            tube = model.tubes.tubes[i]
            for j, other in enumerate(self.config.tubes.tubes):
                shared = is_interpolated(other, self.config) and is_interpolated(tube, model)
                as_wide = _features(other, self.config) == _features(tube, model)
                if as_wide and other.is_2d == tube.is_2d and (shared or other.kernel == tube.kernel):
                    pairs.append((not _same_place(tube, other), i != j, i, j))
        found: dict[int, int] = {}
        for *_, i, j in sorted(pairs):
            if i not in found and j not in found.values():
                found[i] = j
        return found

    def patch(self, model: ModelConfig) -> tuple[int, np.ndarray, np.ndarray]:
        """Index, kernel and bias of the first 2D tube without space-to-depth.

        Raises:
            UserError: there is none, or it is not as wide as the model.
        """
        for i, tube in enumerate(self.config.tubes.tubes):
            if tube.is_2d and tube.sub_windows == 1 and self.config.width == model.width:
                return i, *self.kernel(i, tube.kernel, model)
        raise UserError(
            f"{self.name} has no 2D tube of width {model.width} to begin from: its width is {self.config.width}, "
            f"its tubes are {self.config.tubes}; init.tubes=random begins from random kernels"
        )


def _features(tube: Tube, config: ModelConfig) -> int:
    return config.channels(tube) // tube.sub_windows


def _same_place(one: Tube, two: Tube) -> bool:
    return (one.kernel, one.stride, one.offset) == (two.kernel, two.stride, two.offset)


def adapt(source: Donor, small: Donor | None, model: ModelConfig, how: str) -> tuple[dict, list[str], list[str]]:
    """A checkpoint's parameters, tokenizer and positions under the names and in the shapes of a model.

    Args:
        source: the checkpoint.
        small: another one that has the 3D tubes, or None.
        model: the configuration that they are for.
        how: what those 3D tubes begin from that neither has: `same` (nothing, they will be missing), `inflate`,
            `zero`, `random`.

    Returns:
        {path: array}, beginnings of the paths that stay new, and lines that say what was changed.

    Raises:
        UserError: there is no 2D kernel to inflate or to resize, or interpolated kernels cannot be inflated.
    """
    found = {path: leaf for path, leaf in source.params.items() if not path.startswith(("tokenizer/", "position/"))}
    new, notes = [], []
    if model.interpolated:
        _adapt_shared_kernel(source, model, how, found, new)
    tubes = model.tubes.tubes
    of_small = [i for i, tube in enumerate(tubes) if small is not None and not tube.is_2d]
    origins = source.match(model, [i for i in range(len(tubes)) if i not in of_small])
    carried = small.match(model, of_small) if small else {}
    for i, tube in enumerate(tubes):
        path, donor, j = f"tokenizer/tubes/{i}", small if i in of_small else source, (origins | carried).get(i)
        if j is not None:
            kernel, bias = donor.kernel(j, tube.kernel, model)
            if not _same_place(tube, other := donor.config.tubes.tubes[j]):
                notes.append(f"tube {tube} has the kernel of {other} of {donor.name}")
        elif tube.is_2d and how != "random" and _has_patch(source, tube, model):
            origins[i], kernel, bias = source.patch(model)
            if kernel.shape != (*tube.kernel, *kernel.shape[3:]):
                notes.append(f"patches of {_text(kernel.shape[1:3])} pixels resized to {_text(tube.kernel[1:])}")
                kernel = resize_patch(kernel, tube.kernel[1:])
        elif how in ("inflate", "zero"):
            kernel, bias = _begin(how, source, tube, model)
            notes.append(f"tube {tube} begins from " + ("the 2D kernel" if how == "inflate" else "0"))
        else:
            new += [path] if how == "random" else []
            continue
        found[f"{path}/bias"] = bias
        if not is_interpolated(tube, model):
            found[f"{path}/kernel"] = kernel
        if model.tube_linear and not tube.is_2d:
            widen = None if j is None else donor.params.get(f"tokenizer/tubes/{j}/widen/kernel")
            new += [f"{path}/widen"] if widen is None else []
            found |= {} if widen is None else {f"{path}/widen/kernel": widen}
    _adapt_positions(source, model, origins, found)
    unused = _unused(source, origins, found)
    if how == "same" and small is None:  # what the model has no place for shows in the comparison
        found = unused | found
    elif unused:
        notes.append(f"left out of {source.name}: {', '.join(sorted(unused))}")
    if small:
        notes.append(f"{len(carried)} tubes carried over from {small.name}")
        left = [tube for j, tube in enumerate(small.config.tubes.tubes) if not tube.is_2d and j not in carried.values()]
        notes += [f"left out of {small.name}: tube {tube}" for tube in left]
    return found, new, notes


def _unused(source: Donor, origins: dict[int, int], found: dict) -> dict:
    """What of the checkpoint's tokenizer and positions the model did not get."""
    unused, taken = {}, {str(j): str(i) for i, j in origins.items()}
    for path, leaf in source.params.items():
        group, _, rest = path.partition("/")
        number = rest.removeprefix("tubes/").split("/")[0]
        if group == "position" and f"position/{taken.get(number)}" not in found:
            unused[path] = leaf
        elif group == "tokenizer" and number not in taken and path not in found:
            unused[path] = leaf
    return unused


def _adapt_shared_kernel(source: Donor, model: ModelConfig, how: str, found: dict, new: list[str]) -> None:
    path, shape = "tokenizer/kernel", (*SHARED_KERNEL, 3, model.width)
    if source.config.interpolated:
        old, current = ((c.mean, c.std) for c in (source.config, model))
        found[path] = restandardise(source.params[path], np.zeros(source.config.width), old, current)[0]
    elif how == "inflate":
        if not model.gain_norm:
            raise UserError(
                "a kernel that is resized to each tube can begin from a 2D kernel only if its gain is normalised: "
                "pass --config.model.gain_norm=true, or init.tubes=random"
            )
        found[path] = inflate_kernel(source.patch(model)[1], SHARED_KERNEL)
    elif how == "zero":
        found[path] = np.zeros(shape, np.float32)
    elif how == "random":
        new.append(path)


def _has_patch(source: Donor, tube: Tube, model: ModelConfig) -> bool:
    """Whether a 2D tube's kernel can be that of the checkpoint, resized."""
    flat = any(other.is_2d and other.sub_windows == 1 for other in source.config.tubes.tubes)
    return flat and tube.sub_windows == 1 and source.config.width == model.width


def _begin(how: str, source: Donor, tube: Tube, model: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of a tube that no checkpoint has."""
    if how == "zero":
        features = _features(tube, model)
        return np.zeros((*tube.kernel, 3, features), np.float32), np.zeros(features, np.float32)
    if model.channels(tube) != model.width:
        raise UserError(
            f"init.tubes=inflate makes tubes of width {model.width}; found model.tube_width={model.tube_width}"
        )
    _, kernel, bias = source.patch(model)
    parts = np.asarray(bias).reshape(tube.sub_windows, -1)
    return inflate_kernel(kernel, tube.kernel, tube.sub_windows), parts.mean(axis=0)


def _adapt_positions(source: Donor, model: ModelConfig, origins: dict[int, int], found: dict) -> None:
    """Tables of learned positions, resized to the grids of the model's tubes."""
    for i, tube in enumerate(model.tubes.tubes):
        table = source.params.get(f"position/{origins[i]}") if i in origins else None
        if table is not None and is_learned(model.position, tube):
            found[f"position/{i}"] = resize_positions(table, tube.grid(model.shape, model.padding))


def _text(sizes) -> str:
    return "x".join(map(str, sizes))
