"""Fix axes of a user's batch that are missing or in another place than a loss expects."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from twinloss.harness.diagnosis.batch import are_whole
from twinloss.harness.diagnosis.batch_files import BatchError
from twinloss.harness.model.operand import Array
from twinloss.harness.model.twin import Twin

# Channels are taken to be last only if the last axis is shorter than NARROW, and no spatial axis is. An axis longer
# than SLICES may also hold the slices of an image, unless the target is one-hot along it.
NARROW, SLICES = 16, 4


def reshaped(twin: Twin, arrays: Mapping[str, Array]) -> tuple[dict[str, Array], list[str]]:
    """Return the arrays with the axes that the loss expects, where these are clear, and a sentence for each change.

    Raises:
        BatchError: if an array has no axis of channels, or input and target are swapped.
    """
    made = dict(arrays)
    first, x = next(iter(arrays.items()))
    if x.ndim < 2:
        raise BatchError(
            f"{first} has shape {x.shape}, but losses take (batch, channels, *spatial): add the missing axes"
        )
    changes = [_move_channels(twin, made)]
    if "input" in twin.operands:
        _refuse_swapped(made)
        changes += [_add_batch(made), _add_channel(twin, made)]
    return made, [sentence for sentence in changes if sentence]


def _move_channels(twin: Twin, made: dict[str, Array]) -> str | None:
    """Move the channels to axis 1 if they are last."""
    first, x = next(iter(made.items()))
    if not _channels_last(twin, x, made.get("target")):
        return None
    moved = {name: np.moveaxis(values, -1, 1) for name, values in made.items() if values.ndim == x.ndim}
    made |= {name: np.ascontiguousarray(values) for name, values in moved.items()}
    return (
        f"{first} has shape {x.shape}: the channels seem to be last, but losses take (batch, channels, *spatial). "
        f"Move them in all arguments: {first}.movedim(-1, 1). All other findings are for the moved axes."
    )


def _channels_last(twin: Twin, x: Array, target: Array | None) -> bool:
    if x.ndim < 4:
        return False
    if target is None:  # a field has as many components as spatial axes
        return bool(x.shape[1] != x.ndim - 2 == x.shape[-1])
    labels = target.shape in (x.shape[:-1], (*x.shape[:-1], 1)) and x.shape[1] != 1 != x.shape[-1]
    if "input" in twin.operands and labels:
        return target.shape != (len(x), 1, *x.shape[2:])
    if x.shape[-1] >= NARROW or min(x.shape[1:-1]) < NARROW or target.shape != x.shape:
        return False
    return x.shape[-1] <= SLICES or bool((target.sum(-1) == 1).all())


def _refuse_swapped(made: Mapping[str, Array]) -> None:
    x, target = made["input"], made["target"]
    if x.ndim == target.ndim and x.shape[1] == 1 < target.shape[1] and are_whole(x):
        raise BatchError(
            f"input and target seem to be swapped: input has shape {x.shape} and holds whole numbers, as labels do, "
            f"and target has shape {target.shape}. The prediction comes first: loss(prediction, target)"
        )


def _add_batch(made: dict[str, Array]) -> str | None:
    """Add the batch axis if a single item was saved."""
    x, target = made["input"], made["target"]
    alone = (x.shape[1:], (1, *x.shape[1:]), (1, 1, *x.shape[1:]))
    if target.shape not in alone or target.shape in (x.shape, (len(x), *x.shape[2:])):
        return None
    made["input"], made["target"] = x[np.newaxis], target.reshape(1, 1, *x.shape[1:])
    return (
        f"The batch axis seems to be missing: input has shape {x.shape} and target {target.shape}. Losses take (batch, "
        "channels, *spatial), so pass input.unsqueeze(0), and a target with as many axes. All other findings are for "
        "the arrays with these axes."
    )


def _add_channel(twin: Twin, made: dict[str, Array]) -> str | None:
    """Add the axis of channels if the target has none; no finding for Wasserstein Dice, which accepts such a target."""
    x, target = made["input"], made["target"]
    if target.shape != (len(x), *x.shape[2:]):
        return None
    made["target"] = target[:, np.newaxis]
    if "dist_matrix" in twin.options:
        return None
    return (
        f"The target has shape {target.shape}, without an axis of channels: the loss takes shape "
        f"{made['target'].shape}, so pass target.unsqueeze(1). All other findings are for the target with that axis."
    )
