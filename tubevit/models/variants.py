"""The architectures, and models created by their names (Table 11)."""

import dataclasses
import numbers
from collections.abc import Mapping

from flax import nnx

from tubevit.errors import UserError, unknown
from tubevit.models.config import Head, ModelConfig
from tubevit.models.tubevit import TubeViT
from tubevit.tubes import TubeSet, as_tube_set

_SIZES = {
    "ti": dict(width=192, depth=12, num_heads=3, mlp_dim=768),
    "s": dict(width=384, depth=12, num_heads=6, mlp_dim=1536),
    "b": dict(width=768, depth=12, num_heads=12, mlp_dim=3072),
    "l": dict(width=1024, depth=24, num_heads=16, mlp_dim=4096),
    "h": dict(width=1280, depth=32, num_heads=16, mlp_dim=5120),
    "g": dict(width=1408, depth=40, num_heads=16, mlp_dim=6144),
    "nano": dict(width=96, depth=3, num_heads=3, mlp_dim=384),
}
_PAPER = dict(tubes="paper", frames=32, size=224)
_EMBEDDED = dict(tubes="small", frames=16, size=64)  # the embedded moving digits
_PATCHES = (14, 16, 32)
OTHER_VIT = "vit"
_DEFINING = {"width", "depth", "num_heads", "mlp_dim", "tubes"}


def patch_tubes(patch: int) -> TubeSet:
    """Return the paper's tubes for another patch size: strides of two patches, offsets of half and one patch."""
    if patch == 8:
        return as_tube_set("small")
    two, one, half = 2 * patch, patch, patch // 2
    return TubeSet.from_text(
        f"8x8x8/16x{two}x{two}%2x1x1_16x4x4/6x{two}x{two}+4x{half}x{half}%1x2x2_"
        f"4x12x12/16x{two}x{two}+0x{one}x{one}_1x{one}x{one}/32x{one}x{one}"
    )


def _plain_vit(size: str, patch: int) -> dict:
    """Return the fields of a plain ViT: one 2D tube on one frame, learned positions and a class token."""
    tubes = f"1x{patch}x{patch}/32x{patch}x{patch}"
    learned = dict(position="learned", class_token=True, pooling="cls")
    return _SIZES[size] | learned | dict(tubes=tubes, frames=1, size=224)


def _video_vit(scale: str, tubelet: str, frames: int, fps: float | None = None, **fields) -> dict:
    """Return the fields of a model over all tubelets of a clip, one dense tube."""
    values = _SIZES[scale] | dict(tubes=f"{tubelet}/{tubelet}", frames=frames, fps=fps, size=224)
    return values | fields


_CLASS_TOKEN: dict = dict(class_token=True, pooling="cls")
_VIVIT: dict = _CLASS_TOKEN | dict(position="learned", gelu="tanh")
_FACTORISED: dict = _VIVIT | dict(position="learned_space", pattern="factorised_encoder")
_TIMESFORMER: dict = _CLASS_TOKEN | dict(
    position="learned_space_time", pattern="divided", mean=(0.45,) * 3, std=(0.225,) * 3
)
_IMAGENET: dict = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_VIDEOMAE: dict = _IMAGENET | dict(position="index", pooling="mean", final_norm="pooled")
_VJEPA2: dict = _IMAGENET | dict(position="rope", pooling="attentive", size=256)
_PEERS: dict[str, dict] = {  # docs/video_vits.md says whose they are
    **{f"vivit_{size}16x2": _video_vit(size, "2x16x16", 32, 12.5, **_VIVIT) for size in ("b", "l")},
    "vivit_fe_b16x2": _video_vit("b", "2x16x16", 32, 12.5, temporal_depth=4, **_FACTORISED),
    "vivit_fe_l16x2": _video_vit("l", "2x16x16", 32, 12.5, temporal_depth=24, **_FACTORISED),
    "timesformer_b16": _video_vit("b", "1x16x16", 8, 0.9375, **_TIMESFORMER),
    "timesformer_hr_b16": _video_vit("b", "1x16x16", 16, 1.875, **_TIMESFORMER | dict(size=448)),
    "timesformer_l_b16": _video_vit("b", "1x16x16", 96, 7.5, **_TIMESFORMER),
    **{f"videomae_{size}16": _video_vit(size, "2x16x16", 16, 7.5, **_VIDEOMAE) for size in ("s", "b", "l", "h")},
    "videomae_g14": _video_vit("g", "2x14x14", 16, 7.5, **_VIDEOMAE),
    **{f"vjepa2_{size}16": _video_vit(size, "2x16x16", 64, **_VJEPA2) for size in ("l", "h")},
    "vjepa2_g16": _video_vit("g", "2x16x16", 64, **_VJEPA2 | dict(num_heads=22)),
    **{  # for the embedded data
        f"{name}_nano8": _video_vit("nano", "4x8x8", 16, **fields | dict(size=64))
        for name, fields in {
            "vivit": _VIVIT, "vivit_fe": _FACTORISED | dict(temporal_depth=1), "timesformer": _TIMESFORMER,
            "videomae": _VIDEOMAE, "vjepa2": _VJEPA2,
        }.items()
    },
}  # fmt: skip
ARCHITECTURES: dict[str, dict] = {
    **{f"tubevit_{size}16": _SIZES[size] | _PAPER for size in ("ti", "s", "b", "l", "h")},
    "tubevit_h14": _SIZES["h"] | _PAPER | dict(tubes=str(patch_tubes(14))),
    "tubevit_nano8": _SIZES["nano"] | _EMBEDDED,
    "tubevit_ti8": _SIZES["ti"] | _EMBEDDED,
    **{f"vit_{size}{patch}": _plain_vit(size, patch) for size in ("ti", "s", "b", "l", "h") for patch in _PATCHES},
    **{f"vit_{size}8": _plain_vit(size, 8) | dict(size=64) for size in ("nano", "ti")},
    **_PEERS,
}


def model_config(name: str, *, num_classes: int | None = None, heads: Mapping | None = None, **fields) -> ModelConfig:
    """Return the configuration of an architecture; see `create_model` for the arguments.

    The name `vit` is for a converted ViT of any size, whose sizes and tubes must be given.
    """
    if name not in ARCHITECTURES and not (name == OTHER_VIT and _DEFINING <= fields.keys()):
        raise unknown("model", name, ARCHITECTURES)
    known = {field.name for field in dataclasses.fields(ModelConfig)} - {"name"}
    for field in fields:
        if field not in known:
            raise unknown("keyword", field, known | {"num_classes"})
    values = {**ARCHITECTURES.get(name, {}), **fields}
    return ModelConfig(name=name, heads=as_heads(num_classes, heads, as_tube_set(values["tubes"])), **values)


def as_heads(num_classes: int | None, heads: Mapping | None, tubes: TubeSet) -> tuple[tuple[str, Head], ...]:
    """Convert arguments of `create_model` to pairs of name and `Head`; raises UserError if they are invalid."""
    if num_classes is not None and heads is not None:
        raise UserError("pass num_classes= or heads=, not both")
    if heads is None:
        # A single unnamed head classifies videos, unless all tubes are 2D.
        heads = {"default": Head(num_classes, "any" if tubes.is_2d else "video")} if num_classes else {}
    return tuple((name, _head(name, value)) for name, value in heads.items())


def _head(name: str, value) -> Head:
    if isinstance(value, Head):
        return value
    if isinstance(value, Mapping):
        known = [field.name for field in dataclasses.fields(Head)]
        for field in value:
            if field not in known:
                raise unknown(f"keyword of head {name!r}", str(field), known)
        if "classes" in value:
            return Head(**value)
    if isinstance(value, tuple | list) and len(value) == 2:
        return Head(*value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return Head(int(value))
    expected = "a number of classes, (classes, modality), a dict with `classes` or a Head"
    raise UserError(f"head {name!r} must be {expected}; found {value!r}")


def create_model(
    name: str, *, num_classes: int | None = None, heads: Mapping | None = None, seed: int = 0, **fields
) -> TubeViT:
    """Create a randomly initialised model in evaluation mode.

    Args:
        name: architecture, one of `tubevit.list_models()`.
        num_classes: number of classes of a single head named `default`; 0 or None gives pooled features.
        heads: several heads instead: {name: classes}, {name: (classes, "video" or "image")} or {name: Head}.
        seed: seed of the initialisation.
        **fields: any field of `ModelConfig`, e.g. tubes="core", frames=64, precision="bfloat16".

    Raises:
        UserError: the name or a keyword is unknown, or a value does not fit.
    """
    return TubeViT(model_config(name, num_classes=num_classes, heads=heads, **fields), rngs=nnx.Rngs(seed))
