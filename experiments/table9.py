"""Table 9: from Tiny to Base, on Kinetics-600.

    tubevit train --config table9:row=last_4,small=runs/k600_ti16,large=vit_b/ --workdir runs/table9_last_4

| row | what is trained | top-1 in the paper |
|---|---|---|
| last_fc | pooling and head | 79.6 % |
| last_1 | pooling, head and the last block | 80.8 % |
| last_4 | pooling, head and the last 4 blocks | 81.1 % |
| full | everything | 81.4 % |

Hardware: TPUs. Choose a slice with several clips per chip.
Time: 50,000 steps each, by the cycles that the compiler expects (docs/preflight.md; row full). We have neither run nor
timed them.

    model        slice      mesh.fsdp  ms/step  of peak    hours chip-hours
    vit_b16      v5e:8x8    1              22        28 %      0.3         20

Expected: the column above; nobody has reproduced it.
"""

from tubevit.errors import unknown
from tubevit.recipes.paper import bootstrap_config

ROWS = {"last_fc": 0, "last_1": 1, "last_4": 4, "full": None}


def get_config(
    row: str = "last_4",
    small: str = "tubevit_ti16",
    large: str = "vit_b16",
    videos: str = "k600:data/k600@data/k600/clips",
):
    if row not in ROWS:
        raise unknown("row of Table 9", row, ROWS)
    return bootstrap_config(small, large, videos, train_last=ROWS[row])
