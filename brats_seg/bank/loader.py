"""The bank in a training loop of your own: an IterableDataset for a DataLoader."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from brats_seg.bank.bank import PatchBank
from brats_seg.core.errors import UsageError
from brats_seg.imbalance.sampler import Sampler

_MAX_WORKERS = 1024


class _WholeBatch(dict[str, Tensor]):
    """A batch whose error message says what to do if a loader, such as MONAI's, treats the batch as a list of
    examples.
    """

    def __missing__(self, key: object) -> Tensor:
        if isinstance(key, str):
            raise KeyError(key)
        raise UsageError(
            "a BankDataset gives whole batches: give its loader batch_size=None and "
            "collate_fn=torch.utils.data.default_convert"
        )


class BankDataset(IterableDataset[dict[str, Tensor]]):
    """Batches that a sampler chooses from a bank. A pass over the `DataLoader` gives the remaining
    batches of the sampler's epoch.

    ```python
    held_out = ["BraTS2021_00002", "BraTS2021_00003"]
    train = [case.id for case in PatchBank("BANK").cases if case.id not in held_out]
    bank = PatchBank("BANK", patch_size=(64, 64), cases=train)  # the sampler draws only from these cases
    sampler = make_sampler("balanced", bank.index, batch_size=120, steps=1000, seed=0)
    loader = DataLoader(BankDataset(bank, sampler), batch_size=None, num_workers=0)
    ```

    With MONAI's `DataLoader` add `collate_fn=torch.utils.data.default_convert`: MONAI's own function joins
    examples, but a batch here is already joined.

    A batch is a dictionary:

    - `image`: float32 (B, M, [Z,] Y, X).
    - `label`: the class of each voxel, uint8 (B, [Z,] Y, X): 0 healthy, 1 and more the tumor classes in the
      order of `bank.classes`, 255 outside the brain.
    - `ids` and `positions`: int64 (B,), the voxels of the centers, and the numbers of the draws in the epoch.

    Losses use the labels in one of two ways:

    - `torch.nn.functional.cross_entropy(logits, batch["label"].long(), ignore_index=255)` leaves out voxels
      outside the brain.
    - Dice losses such as MONAI's `DiceLoss(to_onehot_y=True, softmax=True)` need a channel axis and no 255.
      Count voxels outside the brain as healthy: `label = batch["label"].long(); label[label == 255] = 0;
      loss(logits, label[:, None])`.

    With n worker processes each worker makes every n-th batch, so that every position comes once, in the same
    order as without workers. Workers draw from copies of the sampler: the `epoch` and `state_dict` of the
    sampler do not change, and each pass is the next epoch. Workers are not needed for speed.
    """

    def __init__(self, bank: PatchBank, sampler: Sampler) -> None:
        self.bank = bank
        self.sampler = sampler
        # passes that each worker has begun, in memory that all processes share: the copy of a new worker does
        # not know of earlier ones
        self._passes = torch.zeros(_MAX_WORKERS, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        """Number of batches of a whole epoch; a first pass that begins within an epoch is shorter."""
        return self.sampler.steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield this worker's batches of one epoch."""
        worker = get_worker_info()
        first, n_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if worker is not None:
            self._skip_to(int(self._passes[first]))
            self._passes[first] += 1
        for step in range(self.sampler.steps - self.sampler.step):
            draw = self.sampler.next()
            if step % n_workers == first:
                batch = self.bank.batch(draw.ids)
                ids, positions = torch.from_numpy(draw.ids), torch.from_numpy(draw.positions)
                yield _WholeBatch(image=batch.inputs, label=batch.targets, ids=ids, positions=positions)

    def _skip_to(self, n_passes: int) -> None:
        """Move this worker's copy of the sampler `n_passes` epochs past the caller's epoch."""
        if not hasattr(self, "_start"):
            self._start = (self.sampler.epoch, self.sampler.step)
        epoch, step = self._start
        state = self.sampler.state_dict() | {"epoch": epoch + n_passes, "step": step if n_passes == 0 else 0}
        self.sampler.load_state_dict(state)
