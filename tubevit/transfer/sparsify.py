"""A dense video model with fewer or other tubes, without any training."""

from tubevit.checkpoint.checkpoint import Checkpoint
from tubevit.checkpoint.paths import flatten, unflatten
from tubevit.models.abstract import model_of
from tubevit.models.tubevit import TubeViT
from tubevit.transfer.adapt import Adapted, Donor
from tubevit.transfer.dense import sparse_config
from tubevit.tubes import Tube, TubeSet


def sparsify(dense: Checkpoint, tubes: str | Tube | TubeSet) -> tuple[TubeViT, list[str]]:
    """Make a model of other tubes from a dense video model; no parameter is trained, and none is random.

    The kernels come from the dense one by `inflate_kernel`, and positions are read from its table at the centres of the
    tubes. Heads, labels, blocks, pooling and pixel statistics stay.

    Args:
        dense: a checkpoint of a model with one tube and joint attention.
        tubes: a preset's name, text, a tube or a tube set; space-to-depth is left out, see `sparse_config`.

    Returns:
        The model in evaluation mode, and one line per change.

    Raises:
        UserError: the checkpoint is damaged, its model is not such a model, or its clip is too small for a tube.
    """
    model = sparse_config(dense.model, tubes, dense.name)
    donor = Donor(dense.name, dense.model, flatten(dense.read_parameters()))
    adapted = Adapted(donor, None, model, "dense")
    of = dense.model.budget
    dropped = [] if of is None else [f"budget {of}, which chose among the tokens of {dense.model.tubes}, is dropped"]
    return model_of(model, unflatten(adapted.params)), [*adapted.notes, *dropped]


def sparse_source(dense: Checkpoint) -> dict:
    """Describe what a sparse model was made of, as JSON values for the `source` of its metadata.

    What is known of the dense model's own source, such as its licence and its preprocessing, is kept.
    """
    origin = {"format": "sparsify", "name": dense.name, "tubes": str(dense.model.tubes), "step": dense.step}
    known = dense.metadata.get("source", {})
    kept = {key: known[key] for key in ("preprocessing", "licence") if key in known}
    return kept | origin | {"source": known or None}
