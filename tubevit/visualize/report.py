"""All pictures of a checkpoint: which there are, and why others are left out."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from tubevit import storage
from tubevit.checkpoint.checkpoint import Checkpoint
from tubevit.checkpoint.paths import flatten
from tubevit.errors import UserError
from tubevit.evaluation.metrics import confusion_matrix
from tubevit.models.abstract import parameters
from tubevit.models.tubevit import TubeViT
from tubevit.visualize import attention, confusion, curves, kernels, layout, mistakes, positions
from tubevit.visualize.evaluated import Evaluated, evaluate_stored
from tubevit.visualize.own_files import OwnFile
from tubevit.visualize.page import Animation, Picture, Section
from tubevit.zoo.release import began_from

_NO_DATA = "the checkpoint names no evaluation data: it is not of a run"
_CLIPS, _IMAGES, _MISTAKES = 3, 8, 6
_TUBES, _LOOK = "What the tubes read", "Where predictions look"
_ATTENTION = (
    "Pooling: the weights of the tokens in the last step. Rollout: the same, followed back through the attention of "
    "all blocks, half of it past the attention; what the MLPs do is left out. Each token's weight is spread over the "
    "pixels that it reads; darker red, on a dark page brighter, is more."
)


def facts(checkpoint: Checkpoint, model: TubeViT) -> dict[str, str]:
    """Describe a checkpoint for the top of the page: {what: text}."""
    config = model.config
    count = sum(int(np.size(leaf)) for leaf in flatten(parameters(model)).values())
    shape = "×".join(map(str, config.shape))
    rate = f" at {config.fps:g} frames a second" if config.fps else ""
    heads = ", ".join(f"{name} ({head.classes} classes)" for name, head in config.heads)
    return {
        "Checkpoint": checkpoint.name,
        "Model": f"{config.name}, {count / 1e6:.1f} M parameters",
        "Tubes": f"{config.tubes}: {config.tubes.num_tokens(config.shape)} tokens",
        "Input": f"{shape} (frames, rows, columns){rate}",
        "Heads": heads or "none",
        "Learned on": learned_on(checkpoint),
    }


def learned_on(checkpoint: Checkpoint) -> str:
    """Describe the training data of a checkpoint in words, as far as it is recorded."""
    config = checkpoint.experiment
    if not config:
        source = checkpoint.metadata.get("source")
        return f"not recorded; converted from {source}" if source else "not recorded in the checkpoint"
    data = [
        name if values["source"] == name else f"{name} ({values['source']})"
        for name, values in config["data"]["train"].items()
    ]
    start = began_from(checkpoint)
    begun = f"the parameters of {' and '.join(start)}" if start else "random parameters"
    return f"{' and '.join(data)}, {checkpoint.step or 0:,} steps, from {begun}"


def sections(checkpoint: Checkpoint, model: TubeViT, files: Sequence[OwnFile] = ()) -> list[Section]:
    """Return the sections of the page, in order; a section whose inputs are missing has no pictures but a reason.

    Args:
        checkpoint: a checkpoint, whose `home` may hold the metrics of its training.
        model: its model.
        files: files to show tubes and attention on, instead of the evaluation data.
    """
    evaluated, missing = _evaluated(checkpoint, model)
    reason = "; ".join(f"{name}: {why}" for name, why in missing.items()) or _NO_DATA
    return [
        *_kernels(model, learned_on(checkpoint)),
        *(
            _on_files(model, files)
            if files
            else (_layout(model, evaluated, reason), _attention(model, evaluated, reason))
        ),
        _positions(model),
        _curves(checkpoint),
        *_confusion(evaluated, reason),
        *_mistakes(evaluated, reason),
        *(Section(f"Evaluation data {name}", why) for name, why in missing.items() if evaluated),
    ]


def _evaluated(checkpoint: Checkpoint, model: TubeViT) -> tuple[list[Evaluated], dict[str, str]]:
    """Evaluate the data sets of the run; also returns {name: reason} for those that cannot be evaluated."""
    evaluated, missing = [], {}
    for name, values in checkpoint.experiment.get("data", {}).get("eval", {}).items():
        try:
            evaluated.append(evaluate_stored(model, name, values))
        except UserError as error:
            missing[name] = str(error)
    return evaluated, missing


def _kernels(model: TubeViT, data: str) -> list[Section]:
    tubes = list(enumerate(model.config.tubes.tubes))
    names = ["×".join(map(str, tube.kernel)) for _, tube in tubes]
    learned = [
        Picture(f"kernels_{i}", f"Kernels of tube {names[i]}", functools.partial(kernels.kernel_figure, model, i))
        for i, _ in tubes
    ]
    moving = [
        Animation(f"kernels_{i}", f"Kernels of tube {names[i]}, moving",
                  functools.partial(kernels.kernel_animation, model, i))
        for i, tube in tubes
        if not tube.is_2d
    ]  # fmt: skip
    components = [
        Picture(f"components_{i}", f"Principal components of the kernels of tube {names[i]}",
                functools.partial(kernels.component_figure, model, i))
        for i, _ in tubes
    ]  # fmt: skip
    text = (
        "Those of the largest norms, each in its own scale: grey is 0, full colour its largest value. The kernels of "
        f"3D tubes are strips over time, then the same as they move. Learned on: {data}."
    )
    about = (
        "In which directions around their mean the kernels of a tube vary most, in falling order; their sign means "
        "nothing."
    )
    return [
        Section("Learned kernels", text, learned + moving),
        Section("Their principal components", about, components),
    ]


def _layout(model: TubeViT, evaluated: list[Evaluated], reason: str) -> Section:
    title = _TUBES
    videos = [each for each in evaluated if each.source.modality == "video"]
    if not videos:
        return Section(title, reason if not evaluated else "the evaluation data holds no video")
    clip = videos[0].clip(int(np.flatnonzero(videos[0].predictions.used)[0]))
    return Section(title, *_layout_of(model, clip, f"A clip of {videos[0].name}"))


def _layout_of(model: TubeViT, pixels: np.ndarray, what: str) -> tuple[str, list[Picture]]:
    """Caption and picture of the tubes over a clip or an image."""
    image = pixels.ndim == 3
    tubes = model.config.tubes.for_images() if image else model.config.tubes
    clip = pixels[None] if image else pixels
    text = (
        f"{what}: in colour what a tube reads, each window framed, the rest faded; bars show in which frames. All "
        f"tubes together read {tubes.pixels_read(clip.shape[:3]):.1%} of its pixels."
    )
    picture = Picture("layout", f"Tubes over {what}", lambda: layout.layout_figure(clip, tubes), photo=True, wide=True)
    return text, [picture]


def _on_files(model: TubeViT, files: Sequence[OwnFile]) -> list[Section]:
    """Tubes and attention on files of one's own, the tubes on the first video if there is one."""
    first = next((file for file in files if file.pixels.ndim == 4), files[0])
    pictures = []
    for i, file in enumerate(files):
        maps = attention.heat_maps(model, file.pixels)
        clip = file.pixels if file.pixels.ndim == 4 else file.pixels[None]
        draw = functools.partial(attention.attention_figure, clip, *maps, file.text)
        pictures.append(Picture(f"attention_{i}", f"Attention on {file.text}", draw, photo=True, wide=True))
    return [
        Section(_TUBES, *_layout_of(model, first.pixels, first.name)),
        Section(_LOOK, f"What is predicted for your files. {_ATTENTION}", pictures),
    ]


def _attention(model: TubeViT, evaluated: list[Evaluated], reason: str) -> Section:
    title, pictures = _LOOK, []
    for each in evaluated:
        images = each.source.modality == "image"
        files = list(each.surest(_IMAGES if images else _CLIPS))
        clips = [each.clip(i) for i in files]
        heat = [attention.heat_maps(model, clip) for clip in clips]
        texts = [_prediction(each, i) for i in files]
        if images and clips:
            rows = np.stack(clips), *(np.concatenate([_relative(m[k]) for m in heat]) for k in range(2))
            groups = [(*rows, f"{each.head}: {',  '.join(texts)}")]
        else:
            groups = [(clip, *maps, f"{each.head}: {text}") for clip, maps, text in zip(clips, heat, texts)]
        for i, group in enumerate(groups):
            draw = functools.partial(attention.attention_figure, *group)
            describes = f"Attention on {each.name}: {group[-1]}"
            pictures.append(Picture(f"attention_{each.name}_{i}", describes, draw, photo=True, wide=True))
    if not pictures:
        return Section(title, reason if not evaluated else "no prediction for the evaluation data is right")
    return Section(title, f"Right predictions, the surest of each of a few classes. {_ATTENTION}", pictures)


def _relative(heat: np.ndarray) -> np.ndarray:
    return heat / heat.max() if heat.max() > 0 else heat


def _prediction(each: Evaluated, file: int) -> str:
    probabilities = each.predictions.probabilities[file]
    return f"{each.source.classes[int(probabilities.argmax())]} ({probabilities.max():.0%})"


def _positions(model: TubeViT) -> Section:
    title = "Position embedding"
    try:
        positions.position_similarity(model)
    except UserError as error:
        return Section(title, str(error))
    text = (
        f"Cosine similarity of the embeddings ({model.config.position}); tokens stand in the order of the grid (t, y, "
        "x) of each tube. The maps show how alike each place of one tube is to its others."
    )
    pictures = [
        Picture("positions", "Similarity of all positions", lambda: positions.similarity_figure(model)),
        Picture(
            "positions_2d", "Maps of the similarity of one tube's places", lambda: positions.neighbour_figure(model)
        ),
    ]
    return Section(title, text, pictures)


def _curves(checkpoint: Checkpoint) -> Section:
    title = "Training"
    path = storage.join(checkpoint.home, "metrics.jsonl")
    if not storage.exists(path):
        return Section(title, "there is no metrics.jsonl beside the checkpoint")
    try:
        metrics = curves.read_metrics(storage.read_bytes(path).decode())
    except UserError as error:
        return Section(title, str(error))
    pictures = [Picture("loss", "Loss over steps", lambda: curves.loss_figure(metrics))]
    if curves.has_scores(metrics):
        pictures.append(Picture("scores", "Accuracy over steps", lambda: curves.score_figure(metrics)))
    return Section(
        title, "Lines are of training batches, faint as logged and full averaged; points of evaluation.", pictures
    )


def _confusion(evaluated: list[Evaluated], reason: str) -> list[Section]:
    title, pictures, texts, multi = "Confusion", [], [], []
    for each in evaluated:
        if each.source.multi_label:
            multi.append(each.name)
            continue
        used = each.predictions.used
        matrix = confusion_matrix(each.predictions.probabilities[used], each.source.labels[used])
        draw = functools.partial(confusion.confusion_figure, matrix, each.source.classes)
        wide = len(each.source.classes) > confusion.NUMBERED
        pictures.append(Picture(f"confusion_{each.name}", f"Confusion matrix of {each.name}", draw, wide=wide))
        texts.append(each.looked_at)
    text = f"Rows are labels, columns the most probable class; colour is the share of a row. {'; '.join(texts)}."
    sections = [Section(title, text, pictures)] if pictures else []
    if not evaluated or multi:
        why = f"files of {', '.join(multi)} may have several labels each" if multi else reason
        sections.append(Section(title, why))
    return sections


def _mistakes(evaluated: list[Evaluated], reason: str) -> list[Section]:
    title = "Most confident mistakes"
    if not evaluated:
        return [Section(title, reason)]
    sections, pictures, texts = [], [], []
    for each in evaluated:
        if each.source.multi_label:
            sections.append(Section(title, f"files of {each.name} may have several labels each"))
            continue
        predictions, labels = each.predictions, each.source.labels
        found = mistakes.most_confident_mistakes(predictions.probabilities, labels, predictions.used, _MISTAKES)
        if not found:
            sections.append(Section(title, f"none in {each.looked_at}"))
            continue
        clips = [each.clip(mistake.file) for mistake in found]
        draw = functools.partial(mistakes.mistakes_figure, clips, found, each.source.classes)
        describes = f"Mistakes on {each.name}"
        pictures.append(Picture(f"mistakes_{each.name}", describes, draw, photo=True, wide=True))
        wrong = int((predictions.probabilities.argmax(axis=1) != labels)[predictions.used].sum())
        texts.append(f"{wrong} of {each.looked_at} are wrong")
    text = f"What was predicted, how surely, and what it is. {'; '.join(texts)}."
    return ([Section(title, text, pictures)] if pictures else []) + sections
