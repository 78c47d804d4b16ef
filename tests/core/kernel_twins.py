"""The kernels of `core/kernels.py` in plain NumPy: what their results must equal."""

import numpy as np

from brats_seg.core.kernels import AnyArray


def joint_counts_numpy(
    a: AnyArray, b: AnyArray, words_a: AnyArray, words_b: AnyArray, n_classes: int
) -> AnyArray:
    """Twin of `joint_counts`."""
    valid = (a < n_classes) & (b < n_classes)
    pairs = a[valid].astype(np.int64) * n_classes + b[valid]
    return np.bincount(pairs, minlength=n_classes * n_classes).reshape(n_classes, n_classes)


def joint_box_numpy(a: AnyArray, b: AnyArray) -> AnyArray:
    """Twin of `joint_box`."""
    either = (a | b) != 0
    bounds: list[int] = []
    for others in ((1, 2), (0, 2), (0, 1)):
        hit = np.flatnonzero(either.any(axis=others))
        bounds += [int(hit[0]), int(hit[-1]) + 1] if hit.size else [0, 0]
    return np.array(bounds, np.int64)


def surface_voxels_numpy(labels: AnyArray, inside: AnyArray) -> AnyArray:
    """Twin of `surface_voxels`."""
    mask = inside[labels]
    padded = np.pad(mask, 1)
    inner = (
        padded[:-2, 1:-1, 1:-1] & padded[2:, 1:-1, 1:-1] & padded[1:-1, :-2, 1:-1] & padded[1:-1, 2:, 1:-1]
    )
    return mask & ~(inner & padded[1:-1, 1:-1, :-2] & padded[1:-1, 1:-1, 2:])


def steps_along_x_numpy(surface: AnyArray) -> AnyArray:
    """Twin of `steps_along_x`."""
    x = np.arange(surface.shape[2])
    apart = np.where(surface[:, :, None, :], np.abs(x[:, None] - x), np.iinfo(np.int32).max).min(
        axis=3, initial=np.iinfo(np.int32).max
    )
    return np.where(surface.any(axis=2, keepdims=True), apart, -1).astype(np.int32)


def nearest_in_rows_numpy(points: AnyArray, steps: AnyArray, spacing: AnyArray, reach: float) -> AnyArray:
    """Twin of `nearest_in_rows`."""
    found = np.full(int(points.sum()), np.inf)
    z, y = (axis.astype(np.float64) for axis in np.indices(points.shape[:2]))
    for n, (at_z, at_y, at_x) in enumerate(np.argwhere(points)):
        squares = (
            ((z - at_z) * spacing[0]) ** 2
            + ((y - at_y) * spacing[1]) ** 2
            + (steps[:, :, at_x] * spacing[2]) ** 2
        )
        best = squares.min(initial=reach * reach, where=steps[:, :, at_x] >= 0)
        if best < reach * reach:
            found[n] = np.sqrt(best)
    return found


def largest_class_numpy(logits: AnyArray, inside: AnyArray, shift: AnyArray, out: AnyArray) -> bool:
    """Twin of `largest_class`."""
    _, n_y, n_x = out.shape
    shifted = logits[:, :n_y, :n_x] + shift
    out[...] = np.where(inside, shifted.argmax(axis=-1), 0)
    return not np.isnan(shifted).any()


def mark_nonzero_numpy(values: AnyArray, marks: AnyArray) -> None:
    """Twin of `mark_nonzero`."""
    marks |= (values != 0).astype(np.uint8)


def histogram16_numpy(values: AnyArray) -> AnyArray:
    """Twin of `histogram16`."""
    return np.bincount(values, minlength=65536)


def look_up16_numpy(
    values: AnyArray, table: AnyArray, marks: AnyArray, image: AnyArray, channel: int
) -> None:
    """Twin of `look_up16`."""
    image[:, channel] = table[values] * marks.astype(np.uint16)


def mark_outside_numpy(tissue: AnyArray, marks: AnyArray, outside: int) -> int:
    """Twin of `mark_outside`."""
    n_others = int(np.count_nonzero(tissue[marks == 0]))
    tissue[(marks == 0) & (tissue == 0)] = outside
    return n_others


def group_positions_numpy(labels: AnyArray, n_classes: int) -> tuple[AnyArray, AnyArray]:
    """Twin of `group_positions`."""
    groups = [np.flatnonzero(labels == k).astype(np.uint32) for k in range(n_classes)]
    return np.array([len(group) for group in groups], np.int64), np.concatenate(groups)
