"""Kinetics-600, trained jointly with ImageNet-1k (paper sections 3.5 and 4.1, Table 10).

    tubevit train --config k600:videos=k600:LIST@CLIPS,images=imagenet:DIR --workdir runs/k600_b16
    tubevit train --config k600:model=tubevit_l16,videos=...,images=... --workdir runs/k600_l16

Hardware: intended for a TPU pod slice; the paper does not name its hardware. A step takes 256 clips of 64x224x224 and
256 images. Forward and backward pass cost 0.22 PFLOPs for tubevit_b16 and 0.75 for tubevit_l16.
Time: 300,000 steps; we have neither run nor timed it.
Expected: the paper reports 90.9 % (B) and 91.5 % (L) top-1 with 4x3 views (Table 2). Nobody has reproduced them with
this or any other public code.
"""

from tubevit.recipes.paper import kinetics_and_imagenet


def get_config(
    model: str = "tubevit_b16", videos: str = "k600:data/k600@data/k600/clips", images: str = "imagenet:data/imagenet"
):
    return kinetics_and_imagenet("k600", model, videos, images)
