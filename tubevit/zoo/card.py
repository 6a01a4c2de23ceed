"""The model card of a released checkpoint in Markdown."""

import pathlib
from collections.abc import Mapping, Sequence

from tubevit.data.labels import distinct_names
from tubevit.models.config import Head, ModelConfig
from tubevit.models.flops import count_parameters, num_tokens
from tubevit.zoo.registry import Release

_LABELS = 20  # at most this many are listed


def model_card(
    release: Release, model: ModelConfig, *, steps: int | None, began: Sequence[str] = (), curves: Sequence[str] = ()
) -> str:
    """Write the card: model, data, input, numbers with their command, training, licence and limits.

    Args:
        release: entry in the index.
        model: configuration of the model.
        steps: number of training steps, if known.
        began: checkpoints that training started from.
        curves: file names of figures of the training, which lie beside the card.
    """
    parts = [
        f"# {release.name}",
        _what(release, model, steps, began),
        f'    model = tubevit.load_model("{release.source or release.name}")',
        "## Data\n\n" + "\n".join(f"- `{name}`: `{source}`" for name, source in release.data.items()),
        "\n".join(_classes(name, head) for name, head in model.heads),
        "## Input\n\n" + _input(release, model),
        "## Numbers\n\n" + _table(release.metrics),
        f"This command reproduces them with the weights as stored:\n\n    {release.command}",
        "## Training\n\n" + _training(release),
        "\n\n".join(["## Curves", *(f"![{pathlib.PurePath(name).stem}]({name})" for name in curves)]) if curves else "",
        f"## Licence\n\n{release.licence}",
        "## Limits\n\n" + _limits(release, model),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _what(release: Release, model: ModelConfig, steps: int | None, began: Sequence[str]) -> str:
    kind = "An image ViT" if model.is_plain_vit else "A TubeViT"
    begun = f", starting from {' and '.join(f'`{name}`' for name in began)}" if began else ""
    trained = "" if steps is None else f" It was trained for {steps:,} steps{begun}."
    return (
        f"{kind} ({model.width} wide, {model.depth} blocks, {model.num_heads} heads, "
        f"{count_parameters(model) / 1e6:.2f} M parameters) with tubes `{model.tubes}`, "
        f"{num_tokens(model, model.shape)} tokens per clip.{trained} The weights take {release.bytes / 1e6:.1f} MB."
    )


def _classes(name: str, head: Head) -> str:
    shown = ", ".join(distinct_names(head.labels)[:_LABELS]) + (", ..." if len(head.labels) > _LABELS else "")
    kinds = {"video": "videos", "image": "images", "any": "videos and images"}
    several = "; a sample may have several" if head.multi_label else ""
    labels = f": {shown}" if shown else ""
    return f"- head `{name}` takes {kinds[head.modality]}, {head.classes} classes{several}{labels}"


def _input(release: Release, model: ModelConfig) -> str:
    size = f"{release.input['size']}x{release.input['size']} pixels"
    fps = release.input["fps"]
    rate = "spread over the whole video" if fps is None else f"at {fps:g} frames per second"
    clips = "" if model.is_plain_vit else f"Clips of {release.input['frames']} frames {rate}, {size}. "
    takes_images = model.tubes.is_2d or any(head.modality != "video" for _, head in model.heads)
    images = f"Images of {size}. " if takes_images else ""
    return f"{clips}{images}RGB, {release.input['range']}; `model.input` holds the arguments for `tubevit.read_video`."


def _table(metrics: Sequence[Mapping]) -> str:
    rows = ["| data set | split | head | views | files | correct | top-1 | top-5 | mAP |", "|" + "---|" * 9]
    for each in metrics:
        shares = ["" if each[key] is None else f"{100 * each[key]:.2f} %" for key in ("top1", "top5", "map")]
        counts = [each["clips"], "" if each["correct"] is None else each["correct"]]
        cells = [each["dataset"], each["split"], each["head"], each["views"], *counts, *shares]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def _training(release: Release) -> str:
    text = "The complete configuration is stored in the metadata of the checkpoint, under `config`."
    command = f"    tubevit train --workdir DIR --config {release.config}" if release.config else text
    return command + (f"\n\nReleased with the code at commit {release.commit}." if release.commit else "")


def _limits(release: Release, model: ModelConfig) -> str:
    sources = ", ".join(dict.fromkeys(f"`{each['source']}`" for each in release.metrics))
    lines = [
        "The model knows only the classes above and predicts one of them for every input.",
        f"The numbers were measured on {sources}; the accuracy on other data is unknown.",
        f"It was trained at {'x'.join(map(str, model.shape))} (frames, rows, columns). It accepts other sizes, but "
        "its accuracy there was not measured.",
    ]
    return "\n".join(f"- {line}" for line in lines)
