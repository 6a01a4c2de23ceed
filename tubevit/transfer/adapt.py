"""The tokenizer and the learned positions of a checkpoint, in the shapes that another model needs."""

import dataclasses

import numpy as np

from tubevit.errors import UserError
from tubevit.models.config import ModelConfig
from tubevit.models.position import is_learned, resize_positions, table_grid
from tubevit.models.tokenizer import SHARED_KERNEL, is_interpolated, resize_trilinear
from tubevit.transfer.dense import check_dense, dense_positions, read_positions
from tubevit.transfer.inflate import inflate_kernel, resize_patch, restandardise
from tubevit.tubes import Triple, Tube


@dataclasses.dataclass(frozen=True)
class Donor:
    """The parameters of a checkpoint.

    Attributes:
        name: the name that the user gave.
        config: the configuration of its model.
        params: {path: array}.
    """

    name: str
    config: ModelConfig
    params: dict[str, np.ndarray]

    def restandardised(self, kernel, bias, model: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
        """Adjust a kernel and a bias to pixels that are standardised with the mean and std of `model`."""
        return restandardise(kernel, bias, (self.config.mean, self.config.std), (model.mean, model.std))

    def kernel(self, i: int, size: Triple, model: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
        """Return kernel and bias of tube i for the pixel statistics of `model`, a shared kernel resized to `size`."""
        config = self.config
        if is_interpolated(config.tubes.tubes[i], config):
            shared = self.params["tokenizer/kernel"]
            kernel = np.asarray(resize_trilinear(shared, size, config.gain_norm, config.antialias))
        else:
            kernel = self.params[f"tokenizer/tubes/{i}/kernel"]
        return self.restandardised(kernel, self.params[f"tokenizer/tubes/{i}/bias"], model)

    def match(self, model: ModelConfig, wanted: list[int]) -> dict[int, int]:
        """Match tubes of the model to tubes of the checkpoint with the same kernel shape, each at most once.

        Tubes with the same stride, offset and space-to-depth are matched first, then those with the same index, then
        any.
        """
        pairs = []
        for i in wanted:
            tube = model.tubes.tubes[i]
            for j, other in enumerate(self.config.tubes.tubes):
                shared = is_interpolated(other, self.config) and is_interpolated(tube, model)
                as_wide = _features(other, self.config) == _features(tube, model)
                if as_wide and other.is_2d == tube.is_2d and (shared or other.kernel == tube.kernel):
                    pairs.append((not _same_place(tube, other), i != j, i, j))
        matched: dict[int, int] = {}
        for *_, i, j in sorted(pairs):
            if i not in matched and j not in matched.values():
                matched[i] = j
        return matched

    def patch_tube(self, model: ModelConfig) -> int | None:
        """Return the index of the first 2D tube without space-to-depth, or None if the width differs."""
        tubes = enumerate(self.config.tubes.tubes if self.config.width == model.width else ())
        return next((i for i, tube in tubes if tube.is_2d and tube.sub_windows == 1), None)

    def patch(self, model: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
        """Return kernel and bias of `patch_tube`; raises UserError if there is none."""
        i = self.patch_tube(model)
        if i is None:
            raise UserError(
                f"{self.name} has no 2D tube of width {model.width} to start from: its width is {self.config.width}, "
                f"its tubes are {self.config.tubes}; init.tubes=random starts from random kernels"
            )
        return self.kernel(i, self.config.tubes.tubes[i].kernel, model)


def _features(tube: Tube, config: ModelConfig) -> int:
    return config.channels(tube) // tube.sub_windows


def _same_place(one: Tube, two: Tube) -> bool:
    """Return whether tubes read the same pixels, as many sub-windows in the same order; wider tokens have more."""
    in_order = one.sub_windows != two.sub_windows or one.space_to_depth == two.space_to_depth
    return in_order and (one.kernel, one.stride, one.offset) == (two.kernel, two.stride, two.offset)


class Adapted:
    """A checkpoint's parameters under the names and in the shapes of a model.

    Attributes:
        params: {path: array}.
        new: prefixes of the paths that keep their random values.
        notes: one line per change.
    """

    def __init__(self, source: Donor, small: Donor | None, model: ModelConfig, missing_tubes: str):
        """Adapt tokenizer and positions of `source`, with the 3D tubes of `small`; the rest stays unchanged.

        3D tubes that neither checkpoint has start as `missing_tubes` says: `inflate`, `zero` or `random`; `same` leaves
        them out. With `dense` all tubes and their positions come from the only tube of `source`.

        Raises:
            UserError: there is no kernel to inflate or to resize, or interpolated kernels cannot be inflated.
        """
        self.source, self.small, self.model, self.missing_tubes = source, small, model, missing_tubes
        self.params = {p: leaf for p, leaf in source.params.items() if not p.startswith(("tokenizer/", "position/"))}
        self.new: list[str] = []
        self.notes: list[str] = []
        # Which tubes of the two checkpoints the tubes of the model take their kernels from.
        tubes = model.tubes.tubes
        from_small = [i for i, tube in enumerate(tubes) if small is not None and not tube.is_2d]
        self._dense = missing_tubes == "dense"
        if self._dense:
            check_dense(source.config, source.name)
        unmatched = range(len(tubes)) if self._dense else from_small
        self._origins: dict = source.match(model, [i for i in range(len(tubes)) if i not in unmatched])
        self._inflated_places: dict[int, int] = {}  # inflated tubes that lie where the patches of the checkpoint do
        self._carried_over = small.match(model, from_small) if small else {}
        if model.interpolated:
            self._add_shared_kernel()
        for i in range(len(tubes)):
            self._add_tube(i)
        self._add_positions()
        self._report_unused()

    def _add_shared_kernel(self) -> None:
        path, source = "tokenizer/kernel", self.source
        if source.config.interpolated:
            self.params[path], _ = source.restandardised(source.params[path], np.zeros(source.config.width), self.model)
        elif self.missing_tubes in ("inflate", "dense"):
            if not self.model.gain_norm:
                raise UserError(
                    "a kernel that is resized to each tube can start from another tube's kernel only if its gain is "
                    "normalised: pass --config.model.gain_norm=true, or init.tubes=random"
                )
            self.params[path] = inflate_kernel(self._given()[0], SHARED_KERNEL)
        elif self.missing_tubes == "zero":
            self.params[path] = np.zeros((*SHARED_KERNEL, 3, self.model.width), np.float32)
        elif self.missing_tubes == "random":
            self.new.append(path)

    def _add_tube(self, i: int) -> None:
        """Add kernel, bias and linear layer of tube i of the model."""
        model, tube, path = self.model, self.model.tubes.tubes[i], f"tokenizer/tubes/{i}"
        donor, j = self.source, self._origins.get(i)
        if self.small and i in self._carried_over:
            donor, j = self.small, self._carried_over[i]
        if j is not None:
            kernel, bias = donor.kernel(j, tube.kernel, model)
            other = donor.config.tubes.tubes[j]
            if not _same_place(tube, other):
                self.notes.append(f"tube {tube} has the kernel of {other} of {donor.name}")
        elif self._is_resized_patch(tube):
            kernel, bias = self._resized_patch(i, tube)
        elif self.missing_tubes in ("inflate", "dense"):
            kernel, bias = self._inflated(tube)
            patch = None if self._dense else self.source.patch_tube(model)
            if patch is not None and _same_rows(tube, self.source.config.tubes.tubes[patch]):
                self._inflated_places[i] = patch
            origin = f"kernel of {donor.config.tubes}" if self._dense else "2D kernel"
            averaged = ", whose parts of the channels are averaged for space-to-depth" if tube.sub_windows > 1 else ""
            self.notes.append(f"tube {tube} starts from the {origin}{averaged}")
        elif self.missing_tubes == "zero":
            features = _features(tube, model)
            kernel, bias = np.zeros((*tube.kernel, 3, features), np.float32), np.zeros(features, np.float32)
            self.notes.append(f"tube {tube} starts from 0")
        else:
            if self.missing_tubes == "random":
                self.new.append(path)
            return
        self.params[f"{path}/bias"] = bias
        if not is_interpolated(tube, model):
            self.params[f"{path}/kernel"] = kernel
        if model.tube_linear and not tube.is_2d:
            widen = None if j is None else donor.params.get(f"tokenizer/tubes/{j}/widen/kernel")
            if widen is None:
                self.new.append(f"{path}/widen")
            else:
                self.params[f"{path}/widen/kernel"] = widen

    def _is_resized_patch(self, tube: Tube) -> bool:
        is_patch = tube.is_2d and tube.sub_windows == 1 and not self._dense
        return is_patch and self.missing_tubes != "random" and self.source.patch_tube(self.model) is not None

    def _resized_patch(self, i: int, tube: Tube) -> tuple[np.ndarray, np.ndarray]:
        kernel, bias = self.source.patch(self.model)
        self._origins[i] = self.source.patch_tube(self.model)
        if kernel.shape[:3] != tube.kernel:
            self.notes.append(f"patches of {_text(kernel.shape[1:3])} pixels resized to {_text(tube.kernel[1:])}")
            kernel = resize_patch(kernel, tube.kernel[1:])
        return kernel, bias

    def _given(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the kernel and the bias that the tubes start from."""
        source, model = self.source, self.model
        if not self._dense:
            return source.patch(model)
        if source.config.width != model.width:
            raise UserError(f"{source.name} is {source.config.width} wide; expected the model's width, {model.width}")
        return source.kernel(0, source.config.tubes.tubes[0].kernel, model)

    def _inflated(self, tube: Tube) -> tuple[np.ndarray, np.ndarray]:
        model = self.model
        if model.channels(tube) != model.width:
            raise UserError(
                f"init.tubes={self.missing_tubes} makes tubes of width {model.width}; found "
                f"model.tube_width={model.tube_width}"
            )
        kernel, bias = self._given()
        parts = np.asarray(bias).reshape(tube.sub_windows, -1)
        return inflate_kernel(kernel, tube.kernel, tube.sub_windows), parts.mean(axis=0)

    def _add_positions(self) -> None:
        """Add the tables of learned positions, resized to the grids of the model's tubes."""
        model, dense = self.model, self.source.config
        learned = {i: tube for i, tube in enumerate(model.tubes.tubes) if is_learned(model.position, tube)}
        if self._dense and learned:
            if model.position.startswith("learned_space"):
                raise UserError(f"init.tubes=dense needs model.position=learned; found {model.position}")
            table = dense_positions(dense, self.source.params)
            self.params |= {f"position/{i}": read_positions(table, dense, model, tube) for i, tube in learned.items()}
            return
        for i, j in (self._origins | self._inflated_places).items():
            table, tube = self.source.params.get(f"position/{j}"), model.tubes.tubes[i]
            if table is not None and is_learned(model.position, tube):
                grid = table_grid(model.position, tube.grid(model.shape, model.tubes.padding))
                self.params[f"position/{i}"] = resize_positions(table, grid)

    def _report_unused(self) -> None:
        """Note the tubes and positions that the model did not take over."""
        unused, taken = {}, {str(j): str(i) for i, j in (self._origins | self._inflated_places).items()}
        for path, leaf in self.source.params.items():
            group, _, rest = path.partition("/")
            number = rest.removeprefix("tubes/").split("/")[0]
            if self._dense and group == "position" and "position/0" in self.params:
                continue  # the tables of all tubes were read from it
            if group == "position" and f"position/{taken.get(number)}" not in self.params:
                unused[path] = leaf
            elif group == "tokenizer" and number not in taken and path not in self.params:
                unused[path] = leaf
        if self.missing_tubes == "same" and self.small is None:  # the comparison with the model reports them
            self.params = unused | self.params
        elif unused:
            self.notes.append(f"left out of {self.source.name}: {', '.join(sorted(unused))}")
        if self.small:
            self.notes.append(f"{len(self._carried_over)} tubes carried over from {self.small.name}")
            for j, tube in enumerate(self.small.config.tubes.tubes):
                if not tube.is_2d and j not in self._carried_over.values():
                    self.notes.append(f"left out of {self.small.name}: tube {tube}")


def _same_rows(tube: Tube, patch: Tube) -> bool:
    """Return whether the tokens of two tubes lie in the same rows and columns."""
    return all(getattr(tube, key)[1:] == getattr(patch, key)[1:] for key in ("kernel", "stride", "offset"))


def _text(sizes) -> str:
    return "x".join(map(str, sizes))
