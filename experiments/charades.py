"""Charades, multi-label, fine-tuned from a Kinetics-600 + ImageNet model (appendices A and B, Table 10).

    tubevit train --config charades:videos=charades:LISTS@CLIPS,init=runs/k600_l16 --workdir runs/charades_l16
    tubevit train --config charades:interpolated=true,init=runs/k600_interpolated --workdir runs/charades_interpolated

With `interpolated=true`, the 3D tubes are longer and wider versions of one kernel (appendix B). The checkpoint is
trained by `--config k600:model=tubevit_l16 --config.model.tubes=interpolated`.

Hardware: TPUs; tubevit_l16 is efficient where each chip has several clips, as k600 on v6e:4x4 with mesh.fsdp=4.
Time: 300,000 steps of 64 clips of 128x224x224; we have neither run nor timed it.
Expected: the paper reports a mAP of 61.8 % with 4x3 views (L, the tubes of the Kinetics model) and 66.2 % with
interpolated kernels (Table 13). Nobody has reproduced them. The paper's text mentions Mixup but Table 10 shows none; it
is not used here. The paper does not say how multi-label targets are smoothed; we smooth them like single labels.
"""

from tubevit.recipes.paper import add_videos, paper_config


def get_config(
    model: str = "tubevit_l16",
    videos: str = "charades:data/charades@data/charades/clips",
    init: str = "runs/k600_l16",
    interpolated: bool = False,
):
    config = paper_config("charades", model)
    add_videos(config, "charades", videos, "charades")
    config.init.checkpoint = init
    if interpolated:
        config.model.update(tubes="charades", interpolated=True)
    return config
