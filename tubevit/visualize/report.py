"""Select the pictures of a checkpoint; sections without pictures give the reason."""

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
from tubevit.visualize.evaluated import Evaluated, OwnFile, evaluate_stored
from tubevit.visualize.page import Animation, Picture, Section
from tubevit.visualize.style import size_text
from tubevit.zoo.release import began_from

_NO_DATA = "the checkpoint names no evaluation data, because it is not from a training run"
_CLIPS, _IMAGES, _MISTAKES = 3, 8, 6
_TUBES, _LOOK = "What the tubes read", "Where predictions look"
_ATTENTION = (
    "Pooling: the weights of the tokens in the attention pooling. Rollout: the same weights traced back through the "
    "attention of all blocks, half through the residual connections; the MLPs are ignored. The weight of a token is "
    "spread over the pixels that it reads. Darker red means more, on a dark page brighter."
)


def facts(checkpoint: Checkpoint, model: TubeViT) -> dict[str, str]:
    """Describe a checkpoint for the top of the page: {what: text}."""
    config = model.config
    count = sum(int(np.size(leaf)) for leaf in flatten(parameters(model)).values())
    rate = f" at {config.fps:g} frames per second" if config.fps else ""
    heads = ", ".join(f"{name} ({head.classes} classes)" for name, head in config.heads)
    return {
        "Checkpoint": checkpoint.name, "Model": f"{config.name}, {count / 1e6:.1f} M parameters",
        "Tubes": f"{config.tubes}: {config.tubes.num_tokens(config.shape)} tokens",
        "Input": f"{size_text(config.shape)} (frames, rows, columns){rate}", "Heads": heads or "none",
        "Trained on": learned_on(checkpoint),
    }  # fmt: skip


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


def sections(
    checkpoint: Checkpoint, model: TubeViT, files: Sequence[OwnFile] = (), evaluate=evaluate_stored
) -> list[Section]:
    """Return the sections of the page, in order; a section whose inputs are missing has no pictures but a reason.

    Args:
        checkpoint: a checkpoint, whose `home` may hold the metrics of its training.
        model: its model.
        files: files to show tubes and attention on, instead of the evaluation data.
        evaluate: function with the arguments and the result of `evaluate_stored`.
    """
    evaluated, missing = _evaluated(checkpoint, model, evaluate)
    reason = "; ".join(f"{name}: {why}" for name, why in missing.items()) or _NO_DATA
    if files:
        shown = _on_files(model, files)
    else:
        shown = [_layout(model, evaluated, reason), _attention(model, evaluated, reason)]
    return [
        *_kernels(model, learned_on(checkpoint)),
        *shown,
        _positions(model),
        _curves(checkpoint),
        *_confusion(evaluated, reason),
        *_mistakes(evaluated, reason),
        *(Section(f"Evaluation data {name}", why) for name, why in missing.items() if evaluated),
    ]


def _evaluated(checkpoint: Checkpoint, model: TubeViT, evaluate) -> tuple[list[Evaluated], dict[str, str]]:
    """Evaluate the data sets of the run; also returns {name: reason} for those that cannot be evaluated."""
    evaluated, missing = [], {}
    for name, values in checkpoint.experiment.get("data", {}).get("eval", {}).items():
        try:
            evaluated.append(evaluate(model, name, values))
        except UserError as error:
            missing[name] = str(error)
    return evaluated, missing


def _kernels(model: TubeViT, data: str) -> list[Section]:
    learned, moving, components = [], [], []
    for i, tube in enumerate(model.config.tubes.tubes):
        of_tube = f"of tube {size_text(tube.kernel)}"
        draw = functools.partial(kernels.kernel_figure, model, i)
        learned.append(Picture(f"kernels_{i}", f"Kernels {of_tube}", draw))
        draw = functools.partial(kernels.component_figure, model, i)
        components.append(Picture(f"components_{i}", f"Principal components of the kernels {of_tube}", draw))
        if not tube.is_2d:
            draw = functools.partial(kernels.kernel_animation, model, i)
            moving.append(Animation(f"kernels_{i}", f"Kernels {of_tube} as an animation", draw))
    text = (
        "The kernels with the largest norms, each scaled separately: grey is 0, full colour its largest value. Kernels "
        f"of 3D tubes are shown as strips over time and as animations. Trained on: {data}."
    )
    about = (
        "The directions in which a tube's kernels vary most, in descending order of variance; the sign is arbitrary."
    )
    return [
        Section("Learned kernels", text, learned + moving),
        Section("Principal components of the kernels", about, components),
    ]


def _layout(model: TubeViT, evaluated: list[Evaluated], reason: str) -> Section:
    videos = [each for each in evaluated if each.source.modality == "video"]
    if not videos:
        return Section(_TUBES, "the evaluation data contains no videos" if evaluated else reason)
    clip = videos[0].clip(int(np.flatnonzero(videos[0].predictions.used)[0]))
    return Section(_TUBES, *_layout_of(model, clip, f"A clip of {videos[0].name}"))


def _layout_of(model: TubeViT, pixels: np.ndarray, name: str) -> tuple[str, list[Picture]]:
    """Return the caption and the picture of the tubes over a clip or an image."""
    image = pixels.ndim == 3
    tubes = (model.config.tubes.for_images() if image else model.config.tubes).with_budget(None)
    clip = pixels[None] if image else pixels
    text = (
        f"{name}: the pixels that a tube reads in colour, with a frame around each window; the bars mark the frames. "
        f"All tubes together read {tubes.pixels_read(clip.shape[:3]):.1%} of the pixels."
    )
    picture = Picture("layout", f"Tubes over {name}", lambda: layout.layout_figure(clip, tubes), photo=True, wide=True)
    return text, [picture]


def _on_files(model: TubeViT, files: Sequence[OwnFile]) -> list[Section]:
    """Show the tubes on the first of the user's videos, or else images, and the attention on all files."""
    first = next((file for file in files if file.pixels.ndim == 4), files[0])
    pictures = []
    for i, file in enumerate(files):
        maps = attention.heat_maps(model, file.pixels)
        clip = file.pixels if file.pixels.ndim == 4 else file.pixels[None]
        draw = functools.partial(attention.attention_figure, clip, *maps, file.text)
        pictures.append(Picture(f"attention_{i}", f"Attention on {file.text}", draw, photo=True, wide=True))
    return [
        Section(_TUBES, *_layout_of(model, first.pixels, first.name)),
        Section(_LOOK, f"Predictions for your files. {_ATTENTION}", pictures),
    ]


def _attention(model: TubeViT, evaluated: list[Evaluated], reason: str) -> Section:
    pictures = []
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
        return Section(_LOOK, "no prediction on the evaluation data is correct" if evaluated else reason)
    return Section(_LOOK, f"The most confident correct predictions, one per class. {_ATTENTION}", pictures)


def _relative(heat: np.ndarray) -> np.ndarray:
    return heat / heat.max() if heat.max() > 0 else heat


def _prediction(each: Evaluated, file: int) -> str:
    probabilities = each.predictions.probabilities[file]
    return f"{each.class_names[int(probabilities.argmax())]} ({probabilities.max():.0%})"


def _positions(model: TubeViT) -> Section:
    title = "Position embedding"
    try:
        positions.position_similarity(model)
    except UserError as error:
        return Section(title, str(error))
    text = (
        f"Cosine similarity of the embeddings ({model.config.position}); tokens are in the order of the grid (t, y, x) "
        "of each tube. The maps show the similarity of each position of one tube to all its positions."
    )
    pictures = [
        Picture("positions", "Similarity of all positions", lambda: positions.similarity_figure(model)),
        Picture("positions_2d", "Similarity maps of one tube", lambda: positions.neighbour_figure(model)),
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
    text = "Lines show training batches, faint as logged and solid averaged; points show evaluations."
    return Section(title, text, pictures)


def _confusion(evaluated: list[Evaluated], reason: str) -> list[Section]:
    title, pictures, texts, multi = "Confusion", [], [], []
    for each in evaluated:
        if each.source.multi_label:
            multi.append(each.name)
            continue
        used = each.predictions.used
        matrix = confusion_matrix(each.predictions.probabilities[used], each.source.labels[used])
        draw = functools.partial(confusion.confusion_figure, matrix, each.class_names)
        wide = len(each.source.classes) > confusion.NUMBERED
        pictures.append(Picture(f"confusion_{each.name}", f"Confusion matrix of {each.name}", draw, wide=wide))
        texts.append(each.looked_at)
    text = f"Rows are labels, columns predicted classes; the colour shows the share of the row. {'; '.join(texts)}."
    sections = [Section(title, text, pictures)] if pictures else []
    if not evaluated or multi:
        sections.append(Section(title, f"{', '.join(multi)} is multi-label" if multi else reason))
    return sections


def _mistakes(evaluated: list[Evaluated], reason: str) -> list[Section]:
    title = "Most confident mistakes"
    if not evaluated:
        return [Section(title, reason)]
    sections, pictures, texts = [], [], []
    for each in evaluated:
        if each.source.multi_label:
            sections.append(Section(title, f"{each.name} is multi-label"))
            continue
        predictions, labels = each.predictions, each.source.labels
        found = mistakes.most_confident_mistakes(predictions.probabilities, labels, predictions.used, _MISTAKES)
        if not found:
            sections.append(Section(title, f"none in {each.looked_at}"))
            continue
        clips = [each.clip(mistake.file) for mistake in found]
        draw = functools.partial(mistakes.mistakes_figure, clips, found, each.class_names)
        describes = f"Mistakes on {each.name}"
        pictures.append(Picture(f"mistakes_{each.name}", describes, draw, photo=True, wide=True))
        wrong = int((predictions.probabilities.argmax(axis=1) != labels)[predictions.used].sum())
        texts.append(f"{wrong} of {each.looked_at} are wrong")
    text = f"The predicted class, its probability and the label. {'; '.join(texts)}."
    return ([Section(title, text, pictures)] if pictures else []) + sections
