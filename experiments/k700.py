"""Kinetics-700, trained jointly with ImageNet-1k (paper sections 3.5 and 4.1, Table 10).

    tubevit train --config k700:videos=k700:LIST@CLIPS,images=imagenet:DIR --workdir runs/k700_b16
    tubevit train --config k700:model=tubevit_l16,videos=...,images=... --workdir runs/k700_l16

Hardware: meant for a TPU pod slice; the paper does not name its own. A step is 256 clips of 64x224x224 and 256 images:
0.22 PFLOPs forward and backward for tubevit_b16, 0.75 for tubevit_l16.
Time: 300,000 steps; not measured, we have not run it.
Expected: 83.8 % (L; no B is given) top-1 with 4x3 views are the paper's (Table 3). Nobody has reproduced
them, with this or any other public code.
"""

from tubevit.recipes.paper import kinetics_and_imagenet


def get_config(
    model: str = "tubevit_b16", videos: str = "k700:data/k700@data/k700/clips", images: str = "imagenet:data/imagenet"
):
    return kinetics_and_imagenet("k700", model, videos, images)
