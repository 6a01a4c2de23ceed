"""Published video ViTs, evaluated as their authors did: nothing is trained.

    tubevit evaluate --checkpoint videomae_b --config eval_published:model=videomae_b16,data=k400:LIST@CLIPS
    tubevit evaluate --checkpoint timesformer --config eval_published:model=timesformer_b16,data=ssv2:LISTS@CLIPS
    tubevit evaluate --checkpoint vivit_b --config eval_published:model=vivit_b16x2,data=val.csv,dataset=k400

`tubevit convert` makes the checkpoint from public weights, see docs/zoo.md. `model=` is its architecture, which it must
have, and `data=` the user's own files. `dataset=` names the data set where `data=` does not begin with its name.

| family | data | clips x crops | mean of | clips lie | short side, crop | frames and their distance |
|---|---|---|---|---|---|---|
| ViViT | Kinetics | 4x3 | logits | evenly | 256, 224 | 32, 1/12.5 s (every 2nd at 25 per second) |
| TimeSformer | Kinetics | 1x3 | logits | at the start | as the crop | 8, 16 (HR), 96 (L), see `_resampled` |
| TimeSformer | SSv2 | 1x3 | logits | middles of T parts | as the crop | 8, 16 (HR), 64 (L) over the video |
| VideoMAE, v2 | Kinetics | 5x3 | probabilities | evenly | as the crop | 16, 1/7.5 s (every 4th at 30 per second) |
| VideoMAE, v2 | SSv2 | 2x3 | probabilities | 0 and 1/2 of T parts | as the crop | 16 over the video |
| V-JEPA 2 | SSv2 | 2x3 | probabilities | at 0 and 1/2 | as the crop | 16, 1/3 s (L, 256); 64, 1/6 s (g, 384) |

ViViT and VideoMAE take every 2nd or 4th frame whatever the frame rate: set `--config.input.fps` for other files than of
25 or 30 frames per second.

Hardware: any; a base model needs 0.4 to 0.9 TFLOPs a view. Time: we have neither run nor timed it.
Expected: top-1 in %, from the tables of the authors' repositories (`published=` is for other checkpoints):

| model | k400 | k600 | ssv2 |
|---|---|---|---|
| vivit_b16x2 | 79.9 | | |
| vivit_fe_b16x2 | 78.4 | | |
| vivit_fe_l16x2 | 80.3 | 81.6 | |
| timesformer_b16 | 77.9 | 79.1 | 59.1 |
| timesformer_hr_b16 | 79.6 | 81.8 | 61.8 |
| timesformer_l_b16 | 80.6 | 82.2 | 62.0 |
| videomae_s16 | 79.0 | | 66.8 |
| videomae_b16 | 81.5 | | 70.8 |
| videomae_l16 | 85.2 | | |
| videomae_h16 | 86.6 | | |
| videomae_g14 (v2) | 88.4 | | 77.0 |

VideoMAE v2 has 83.7 (S) and 86.6 (B) for its distilled models on K400. V-JEPA 2 has 73.7 (L) and 77.3 (g) on SSv2, but
its probe attends to the tokens of both clips at once, which a mean over clips does not reproduce; nothing is printed
beside its result. TimeSformer was trained on SSv2 with blue and red exchanged, see docs/video_vits.md.
"""

from tubevit.config import dataset_config, default_config
from tubevit.errors import unknown
from tubevit.models.variants import ARCHITECTURES, model_config

KINETICS, DATASETS = ("k400", "k600"), ("k400", "k600", "ssv2")
PROTOCOLS = {
    ("vivit", "kinetics"): dict(views="4x3", average="logits"),
    ("timesformer", "kinetics"): dict(views="1x3", average="logits", clip_placement="start"),
    ("timesformer", "ssv2"): dict(views="1x3", average="logits", clip_placement="spread"),
    ("videomae", "kinetics"): dict(views="5x3"),
    ("videomae", "ssv2"): dict(views="2x3", clip_placement="spread"),
    ("vjepa2", "ssv2"): dict(views="2x3", clip_placement="start"),
}
PUBLISHED = {
    "vivit_b16x2": {"k400": 79.9},
    "vivit_fe_b16x2": {"k400": 78.4},
    "vivit_fe_l16x2": {"k400": 80.3, "k600": 81.6},
    "timesformer_b16": {"k400": 77.9, "k600": 79.1, "ssv2": 59.1},
    "timesformer_hr_b16": {"k400": 79.6, "k600": 81.8, "ssv2": 61.8},
    "timesformer_l_b16": {"k400": 80.6, "k600": 82.2, "ssv2": 62.0},
    "videomae_s16": {"k400": 79.0, "ssv2": 66.8},
    "videomae_b16": {"k400": 81.5, "ssv2": 70.8},
    "videomae_l16": {"k400": 85.2},
    "videomae_h16": {"k400": 86.6},
    "videomae_g14": {"k400": 88.4, "ssv2": 77.0},
}
STRIDES = {"timesformer_b16": 32, "timesformer_hr_b16": 16, "timesformer_l_b16": 4}
INPUTS = {  # where they differ from the architecture's
    ("timesformer_l_b16", "ssv2"): dict(frames=64),
    ("vjepa2_l16", "ssv2"): dict(frames=16, fps=3.0),  # SSv2 has 12 frames per second
    ("vjepa2_g16", "ssv2"): dict(frames=64, size=384, fps=6.0),
}


def _resampled(frames: int, stride: int) -> float:
    """Return TimeSformer's frame rate: T frames from the first to the last of T * stride at 30 per second."""
    return 30 * (frames - 1) / (frames * stride - 1)


def get_config(model: str = "videomae_b16", data: str = "k400", dataset: str = "", published: float | None = None):
    dataset = dataset or data.partition(":")[0]
    if dataset not in DATASETS:
        raise unknown("data set (dataset=)", dataset, DATASETS)
    family, kind = model.partition("_")[0], "kinetics" if dataset in KINETICS else dataset
    if (family, kind) not in PROTOCOLS or model not in ARCHITECTURES:
        of_kind = {known for known, other in PROTOCOLS if other == kind}
        raise unknown(
            f"model with a protocol for {dataset}", model, [m for m in ARCHITECTURES if m.split("_")[0] in of_kind]
        )
    architecture = model_config(model)
    published = PUBLISHED.get(model, {}).get(dataset) if published is None else published

    config = default_config()
    config.model.name = model
    config.input.update(path="dense", **INPUTS.get((model, dataset), {}))
    if kind == "kinetics" and model in STRIDES:
        config.input.fps = _resampled(architecture.frames, STRIDES[model])
    config.eval.update(PROTOCOLS[family, kind])
    if family == "vivit":
        config.eval.short_side = architecture.size * 8 // 7
    config.data.eval[dataset] = dataset_config(
        source=data if data != dataset else f"{dataset}:data/{dataset}@data/{dataset}/clips",
        split="val",
        head="default",
        batch_size=4,
        published_top1=None if published is None else round(published / 100, 4),
    )
    return config
