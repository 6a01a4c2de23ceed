"""A large video model from a small tube model and a large image ViT (paper section 3.6).

    tubevit train --config bootstrap:small=runs/k600_b16,large=vit_h/,videos=k600:LIST@CLIPS --workdir runs/k600_h
    tubevit train --config bootstrap:small=SMALL,large=VIT,videos=clips.csv,steps=2000,batch_size=32 --workdir runs/mine

The tubes of `small` are brought to the width of `large` without new weights. The 2D tokens come from the ViT's own
patch kernel, with its positions and its class token. The tubes and all blocks but the last `train_last` are frozen, and
the first trained block has the gate of equation 8. `widen=` and `position=` choose alternatives, see
docs/bootstrapping.md. `tubevit convert` converts an image ViT of Hugging Face, timm or big_vision to `large`.

Hardware: TPUs for a large ViT; small models run anywhere. By the compiler's cycle estimates
(docs/preflight.md, not measured), one clip per chip wastes most of the chip. Choose a slice with several per chip.

    model        slice      mesh.fsdp  ms/step  of peak    hours chip-hours
    vit_h16      v5e:16x16  1              39        14 %      0.5        139

Time: with the last 8 of 32 blocks, a step takes about half as long as in full fine-tuning
(benchmarks/bootstrap_step.csv).
Expected: the paper reports 89.7 % top-1 on Kinetics-600 (B to H, last 8 blocks and gate; Table 6). Nobody has
reproduced it. docs/bootstrapping.md has the results on the embedded data.
"""

from tubevit.recipes.paper import bootstrap_config


def get_config(
    small: str = "tubevit_b16",
    large: str = "vit_h16",
    train_last: int = 8,
    gate: bool = True,
    videos: str = "k600:data/k600@data/k600/clips",
    steps: int = 50_000,
    batch_size: int = 256,
    widen: str = "concatenate",
    position: str = "learned_2d",
):
    config = bootstrap_config(small, large, videos, train_last=train_last, widen=widen, position=position)
    config.train.update(steps=steps, gate=gate)
    config.data.train.videos.batch_size = batch_size
    return config
