"""ImageNet-1k alone: the image-only reference of section 4.1, and the first stage of two rows of Table 5.

    tubevit train --config imagenet:images=imagenet:DIR --workdir runs/imagenet_b16
    tubevit train --config imagenet:model=tubevit_l16,images=imagenet:DIR --workdir runs/imagenet_l16

Hardware: a TPU host or a small slice.
Time: 300,000 steps of 256 images (60 epochs), by the cycles that the compiler expects (docs/preflight.md). We have
neither run nor timed them.

    model        slice      mesh.fsdp  ms/step  of peak    hours chip-hours
    tubevit_b16  v5e:2x4    1              37        46 %      3.1         25

Expected: the paper reports 78.1 % top-1 (B, images only; 81.4 % when trained jointly with Kinetics-600). It gives no
hyper-parameters for this run; we use those of Kinetics in Table 10, and one view.
"""

from tubevit.recipes.paper import add_images, paper_config


def get_config(model: str = "tubevit_b16", images: str = "imagenet:data/imagenet"):
    config = paper_config("k600", model)
    add_images(config, images)
    config.eval.views = "1x1"
    return config
