"""Your own videos or images, from scratch or from any checkpoint.

    tubevit train --config finetune:data=clips.csv --workdir runs/mine
    tubevit train --config finetune:data=folder_of_clips,init=runs/quickstart --workdir runs/mine

Classes, steps, warm-up, learning rate, input size and augmentation follow from the data and are printed first, with
epochs and the expected time; `--config.KEY=VALUE` changes any. It evaluates on the split `val`, else `test`.
`flip=true` mirrors half of the clips, where the labels allow it; `model=NAME` chooses what begins from scratch.

Hardware: any; small models for few clips. Time: printed.
Expected: follows from the data; docs/colabs/2_finetune.md shows a run.
"""

from tubevit.recipes.finetune import finetune_config


def get_config(data: str = "moving_digits", init: str = "", model: str = "", flip: bool = False):
    return finetune_config(data, init or None, model or None, flip)
