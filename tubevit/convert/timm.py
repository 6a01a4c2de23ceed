"""timm's vit_{tiny,small,base,large,huge}_patch{14,16,32}: a .safetensors, .pth or .bin file, or a hub folder."""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from tubevit.convert.architecture import depth_of, has_class_row, heads_of, plain_vit, side_of
from tubevit.convert.files import write_safetensors
from tubevit.convert.foreign import Foreign, Options, leave_out, shapes_of, statistics
from tubevit.convert.layout import Array, Layout, dense, norm, patches
from tubevit.errors import UserError
from tubevit.models.config import Head, ModelConfig

_BLOCK = "blocks.*"
LAYOUT = Layout(
    (
        *patches("patch_embed.proj"),
        Array("position/0", ("pos_embed",), "1 N D"),
        Array("class_token", ("cls_token",), "1 1 D"),
        *norm("encoder/blocks/norm1", f"{_BLOCK}.norm1"),
        *dense("encoder/blocks/attention/qkv", f"{_BLOCK}.attn.qkv", shape="3D D"),
        *dense("encoder/blocks/attention/out", f"{_BLOCK}.attn.proj", shape="D D"),
        Array("encoder/blocks/scale1", (f"{_BLOCK}.ls1.gamma",), "D"),
        *norm("encoder/blocks/norm2", f"{_BLOCK}.norm2"),
        *dense("encoder/blocks/mlp/up", f"{_BLOCK}.mlp.fc1", shape="M D"),
        *dense("encoder/blocks/mlp/down", f"{_BLOCK}.mlp.fc2", shape="D M"),
        Array("encoder/blocks/scale2", (f"{_BLOCK}.ls2.gamma",), "D"),
        *norm("encoder/norm", "norm"),
        *dense("heads/default", "head", shape="C D"),
    )
)
MARK = "patch_embed.proj.weight"
_SUFFIX = ".safetensors"
GELUS = {"gelu": "exact", "gelu_tanh": "tanh"}
# Architectures of plain ViTs for which timm's code, and no file, says the tanh approximation. Many other SigLIPs have
# the exact GELU there. Activations that are not GELUs come with arrays that are refused.
TANH = frozenset({
    "vit_base_patch32_siglip_gap_256", "vit_large_patch16_siglip_gap_512", "vit_so400m_patch16_siglip_gap_256",
    "vit_so400m_patch16_siglip_gap_384", "vit_so400m_patch16_siglip_gap_512", "vit_giantopt_patch16_siglip_gap_256",
    "vit_giantopt_patch16_siglip_gap_384",
})  # fmt: skip
_REFUSED = {  # prefixes of names, and what they are
    "pre_logits.": "a representation layer before its head; --headless leaves both out",
    "fc_norm.": "a normalisation after pooling",
    "attn_pool.": "attention pooling",
    "reg_token": "registers",
    "norm_pre.": "a normalisation before the blocks",
    "blocks.0.attn.q_norm.": "normalised queries and keys",
    "dist_token": "a distillation token",
}


def read(
    path: pathlib.Path, weights: Mapping[str, np.ndarray], options: Options, values: Mapping | None = None
) -> Foreign:
    """Read a ViT; `values` is the content of the config.json beside it. Raises UserError if it is not a plain ViT."""
    values, notes = values or {}, ()
    if options.headless:
        weights, notes = leave_out(weights, ("head.", "pre_logits."))
    refused = [
        f"{name.rstrip('.')}, {what}" for name, what in _REFUSED.items() if any(k.startswith(name) for k in weights)
    ]
    if refused:
        raise UserError(f"{path} is not a plain ViT: it has {'; '.join(refused)}")
    ranks = {"pos_embed": 3, MARK: 4, "blocks.0.mlp.fc1.weight": 2}
    (_, rows, width), (*_, patch), (mlp_dim, _) = shapes_of(weights, ranks, str(path))
    class_position = has_class_row(rows)  # with no_embed_class the class token has no position
    has_class = class_position or "cls_token" in weights
    gelu, assumed = _settings(values, has_class, path)
    notes += assumed
    sizes = dict(width=width, depth=depth_of(weights, _BLOCK), mlp_dim=mlp_dim)
    known = values.get("pretrained_cfg")
    known = known if isinstance(known, dict) else {}
    pixels, assumed = statistics(options, known.get("mean"), known.get("std"), str(path))
    config = plain_vit(
        **sizes, num_heads=heads_of(sizes, options.heads, str(path)), patch=patch,
        size=patch * side_of(rows - class_position, str(path)), gelu=gelu, norm_epsilon=1e-6,
        qkv_bias="blocks.0.attn.qkv.bias" in weights, layer_scale=1.0 if "blocks.0.ls1.gamma" in weights else None,
        class_token=has_class, pooling="cls" if has_class else "mean",
        head=Head(weights["head.bias"].size) if "head.bias" in weights else None, **pixels,
    )  # fmt: skip
    layout = dataclasses.replace(LAYOUT, class_position=class_position)
    return Foreign(config, weights, layout, (path,), known.get("interpolation"), notes + assumed)


def _settings(values: Mapping, has_class: bool, path: pathlib.Path) -> tuple[str, tuple[str, ...]]:
    """Return our name of the GELU, and a note on the settings that neither the arrays nor config.json show.

    Raises UserError if config.json has settings that our models do not have.
    """
    wrong, assumed, arguments = [], [], values.get("model_args")
    given = {**values, **arguments} if isinstance(arguments, dict) else values
    pool, meant = ("token", "the class token") if has_class else ("avg", "the mean of all patches")
    pooling, activation = given.get("global_pool"), given.get("act_layer")
    if activation is None and "architecture" in values:  # its code says it
        activation = "gelu_tanh" if str(values["architecture"]).split(".")[0] in TANH else "gelu"
    if pooling is None:
        assumed.append(("pooling", meant))
    elif pooling != pool:
        wrong.append(f"global_pool {pooling!r} instead of {pool!r}")
    if activation is None:
        assumed.append(("activation", "the exact GELU"))
    elif activation not in list(GELUS):  # it may be of any type
        wrong.append(f"act_layer {activation!r} instead of {' or '.join(map(repr, GELUS))}")
    if wrong:
        raise UserError(f"{path} is not a plain ViT: its config.json has {' and '.join(wrong)}")
    gelu = GELUS[activation or "gelu"]
    if not assumed:
        return gelu, ()
    whats, meanings = (" and ".join(words) for words in zip(*assumed))
    return gelu, (f"{path} does not say {whats}: assumed to be {meanings}",)


def write(path: pathlib.Path, config: ModelConfig, params: Mapping[str, np.ndarray]) -> None:
    """Write a file for `timm.create_model(..., checkpoint_path=path)`; arguments as in `hugging_face.write`."""
    write_safetensors(path, LAYOUT.to_theirs(params, config))


def check(path: pathlib.Path, config: ModelConfig) -> list[str]:
    """Check that timm can hold a model and read the path; returns notes on what the file will not hold."""
    if path.suffix != _SUFFIX:
        raise UserError(f"timm reads only files that end in {_SUFFIX}; found {path.name}")
    if config.gelu != "exact":
        raise UserError(
            "timm's ViTs have the exact GELU, this model the tanh approximation; --format hugging-face supports it"
        )
    notes = [f"the file does not hold num_heads {config.num_heads}, mean {config.mean} and std {config.std}"]
    if config.norm_epsilon != 1e-6:
        notes.append(
            f"the file does not hold the epsilon {config.norm_epsilon} of layer normalisations; timm assumes 1e-06"
        )
    if any(head.labels for _, head in config.heads):
        notes.append("the names of the classes are left out")
    return notes
