"""Your own videos or images, from scratch or from any checkpoint.

    tubevit train --config finetune:data=clips.csv --workdir runs/mine
    tubevit train --config finetune:data=folder_of_clips,init=runs/quickstart --workdir runs/mine
    tubevit train --config finetune:data=clips.csv,init=vivit_converted,tubes=paper --workdir runs/sparse
    tubevit train --config finetune:data=clips.csv,init=large_model,adapter=lora --workdir runs/adapted

With fewer than 5,000 files, training begins from the closest released checkpoint, unless `init=` names another one;
`init=none` begins from scratch. Classes, steps, warm-up, learning rate, input size and augmentation follow from the
data. They are printed first, with the number of epochs and the expected time; `--config.KEY=VALUE` changes any of them.
Evaluation uses the split `val`, else `test`. `flip=true` mirrors half of the clips; use it only if the labels allow it.
`model=NAME` chooses the architecture to train from scratch. `tubes=` gives a dense video model, such as a converted
ViViT or VideoMAE, other tubes, which begin from its kernel and its positions. `adapter=lora` keeps a large model as it
is, and trains low-rank adapters beside it, see docs/bootstrapping.md.

Hardware: any; use a small model for few clips. Time: printed when the run starts.
Expected: depends on the data; docs/colabs/2_finetune.md shows a run.
"""

from tubevit.recipes.finetune import CLOSEST, finetune_config


def get_config(
    data: str = "moving_digits",
    init: str | None = CLOSEST,
    model: str | None = None,
    flip: bool = False,
    tubes: str | None = None,
    adapter: str | None = None,
):
    return finetune_config(data, init, model or None, flip, tubes or None, adapter or None)
