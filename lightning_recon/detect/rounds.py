"""What a payload is beside the one before it, or beside the architecture that was declared."""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from lightning_recon.detect.layers import Layer
from lightning_recon.detect.rows import Evidence

_NOTHING = 1e-2  # norm of a row below which a change counts by itself: a head may start at zero
_FEW = 3


def undeclared(
    sizes: Sequence[tuple[str, tuple[int, ...]]], declared: Sequence[tuple[str, tuple[int, ...]]]
) -> Iterator[tuple[str, Evidence]]:
    """Yield what a payload holds that was not declared.

    Names play no part: the shapes are compared in their order.

    Args:
        sizes: names and shapes of the payload's weights, in its order.
        declared: likewise.
    """
    found, wanted = [size for _, size in sizes], [size for _, size in declared]
    matcher = SequenceMatcher(None, wanted, found, autojunk=False)
    added = [
        sizes[place][0]
        for kind, _, _, first, last in matcher.get_opcodes()
        if kind != "equal"
        for place in range(first, last)
    ]
    if added:
        listed = ", ".join(added[:_FEW]) + (" ..." if len(added) > _FEW else "")
        text = f"{len(added)} weights were not declared: {listed}"
        yield added[0], Evidence("undeclared-layers", 1.0, text)


def changes(layers: Sequence[Layer], before: Sequence[Layer]) -> Iterator[tuple[str, Evidence]]:
    """Yield how far weights and biases of the same places are from those of the last round.

    A head follows the labels, and is left out.

    Args:
        layers: of the payload.
        before: of the last one; of other shapes: nothing can be compared.
    """
    if [one.rows.shape for one in layers] != [one.rows.shape for one in before]:
        return
    for now, then in zip(layers, before, strict=True):
        if now.is_last:
            continue
        size = max(float(then.rows.norm(dim=1).square().mean().sqrt()), _NOTHING)
        moved = float((now.rows - then.rows).norm(dim=1).square().mean().sqrt()) / size
        text = f"the rows differ from the last round's by {moved:.2g} times their size"
        yield now.name, Evidence("beyond-training", moved, text)
        if now.bias is not None and then.bias is not None:
            moved = float((now.bias - then.bias).square().mean().sqrt()) / size
            text = f"the biases differ from the last round's by {moved:.2g} times the rows' size"
            yield now.name, Evidence("beyond-training-biases", moved, text)
