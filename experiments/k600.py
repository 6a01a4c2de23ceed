"""Kinetics-600, trained jointly with ImageNet-1k (paper sections 3.5 and 4.1, Table 10).

    tubevit train --config k600:videos=k600:LIST@CLIPS,images=imagenet:DIR --workdir runs/k600_b16
    tubevit train --config k600:model=tubevit_l16,videos=...,images=... --workdir runs/k600_l16

Hardware: TPUs; the paper does not name its own. A step takes 256 clips of 64x224x224 and 256 images. Forward and
backward pass cost 0.22 PFLOPs for tubevit_b16 and 0.75 for tubevit_l16. Choose a slice with several clips per chip.
Time: 300,000 steps, by the cycles that the compiler expects (docs/preflight.md). We have neither run nor timed them.

    model        slice      mesh.fsdp  ms/step  of peak    hours chip-hours
    tubevit_b16  v5e:4x4    4             125        56 %     10.4        167
    tubevit_b16  v5e:8x8    8              32        54 %      2.7        172
    tubevit_b16  v5e:8x8    1              40        44 %      3.3        211
    tubevit_l16  v6e:4x4    4             187        27 %     15.6        249
    tubevit_l16  v6e:16x16  1              32        10 %      2.7        683
    tubevit_h16  v5e:16x16  16             62        48 %      5.2       1327

tubevit_l16 on v6e:4x4 takes 166 ms with --config.model.scan=false, which takes about 10 minutes to compile.
Expected: the paper reports 90.9 % (B) and 91.5 % (L) top-1 with 4x3 views (Table 2). Nobody has reproduced them with
this or any other public code.
"""

from tubevit.recipes.paper import kinetics_and_imagenet


def get_config(
    model: str = "tubevit_b16", videos: str = "k600:data/k600@data/k600/clips", images: str = "imagenet:data/imagenet"
):
    return kinetics_and_imagenet("k600", model, videos, images)
