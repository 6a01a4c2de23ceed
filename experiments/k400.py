"""Kinetics-400, trained jointly with ImageNet-1k (paper sections 3.5 and 4.1, Table 10).

    tubevit train --config k400:videos=k400:LIST@CLIPS,images=imagenet:DIR --workdir runs/k400_b16
    tubevit train --config k400:model=tubevit_l16,videos=...,images=... --workdir runs/k400_l16

Hardware: TPUs, as for k600, which has the same step; the paper does not name its own. A step takes 256 clips of
64x224x224 and 256 images. Forward and backward pass cost 0.22 PFLOPs for tubevit_b16 and 0.75 for tubevit_l16.
Time: 300,000 steps; we have neither run nor timed them.
Expected: the paper reports 88.6 % (B) and 90.2 % (L) top-1 with 4x3 views (Table 1). Nobody has reproduced them with
this or any other public code.
"""

from tubevit.recipes.paper import kinetics_and_imagenet


def get_config(
    model: str = "tubevit_b16", videos: str = "k400:data/k400@data/k400/clips", images: str = "imagenet:data/imagenet"
):
    return kinetics_and_imagenet("k400", model, videos, images)
