"""Table 5: what joint training is worth, on Kinetics-600 with ViT-L.

    tubevit train --config table5:row=joint,videos=k600:LIST@CLIPS,images=imagenet:DIR --workdir runs/table5_joint

| row | | the paper's top-1 |
|---|---|---|
| kinetics | videos only | 85.6 % |
| two_stage | ImageNet, then Kinetics: first `imagenet:model=tubevit_l16`, named by init= | 90.4 % |
| joint | ImageNet and Kinetics together | 91.5 % |
| patches_2d | joint, the 2D tube alone, at every 16th frame (section 3.2) | 87.6 % |
| inflated_3d | 2x16x16 patches, inflated from the model of init=, then Kinetics | 88.4 % |

Hardware: meant for a TPU pod slice. Time: 300,000 steps each; not measured, we have not run it.
Expected: the column above; nobody has reproduced it. The paper gives neither the size of the inflated patches nor the
strides of the 2D ones in this table: those are ours. With 64 frames the inflated row has 6,272 tokens.
"""

from tubevit.errors import unknown
from tubevit.recipes.paper import add_images, add_videos, paper_config

ROWS = ("kinetics", "two_stage", "joint", "patches_2d", "inflated_3d")


def get_config(
    row: str = "joint",
    model: str = "tubevit_l16",
    videos: str = "k600:data/k600@data/k600/clips",
    images: str = "imagenet:data/imagenet",
    init: str = "runs/imagenet_l16",
):
    if row not in ROWS:
        raise unknown("row of Table 5", row, ROWS)
    config = paper_config("k600", model)
    add_videos(config, "k600", videos, "k600")
    if row in ("joint", "patches_2d"):
        add_images(config, images)
    if row in ("two_stage", "inflated_3d"):
        config.init.checkpoint = init
    if row == "patches_2d":
        config.model.tubes = "image_2d_stride16"
    if row == "inflated_3d":
        config.model.tubes = "dense_2x16x16"
        config.init.tubes = "inflate"
    return config
