"""The bank in other people's loops: an IterableDataset for a DataLoader."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from brats_seg.bank.bank import PatchBank
from brats_seg.imbalance.samplers import Sampler

_MAX_WORKERS = 1024


class BankDataset(IterableDataset[dict[str, Tensor]]):
    """Batches that a sampler chooses from a bank. A pass over the `DataLoader` is the rest of the sampler's epoch.

    ```python
    bank = PatchBank("BANK", patch_size=(64, 64))
    sampler = make_sampler("balanced", bank.index, batch_size=120, steps=1000, seed=0)
    loader = DataLoader(BankDataset(bank, sampler), batch_size=None, num_workers=0)
    ```

    A batch is a dictionary: `image` float32 (B, M, [Z,] Y, X), `label` uint8 (B, [Z,] Y, X) with 255 outside the brain (give it to a
    loss as `ignore_index`, or make it 0), `ids` and `positions` int64 (B,), which voxels these are and which draws of the epoch.

    With worker processes each makes every n-th batch, so that every position comes once, in the order they have without workers.
    Workers draw from copies of the sampler: its own `epoch` and `state_dict` stay where they were, and each pass is one epoch further.
    None are needed for speed.
    """

    def __init__(self, bank: PatchBank, sampler: Sampler) -> None:
        self.bank = bank
        self.sampler = sampler
        # passes that each worker has begun, in memory all processes share: the copy a new worker gets does not know of earlier ones
        self._passes = torch.zeros(_MAX_WORKERS, dtype=torch.int64).share_memory_()

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
                yield {"image": batch.inputs, "label": batch.targets, "ids": ids, "positions": positions}

    def _skip_to(self, n_passes: int) -> None:
        """Set this worker's copy of the sampler `n_passes` epochs past where the caller's stands."""
        if not hasattr(self, "_start"):
            self._start = (self.sampler.epoch, self.sampler.step)
        epoch, step = self._start
        state = self.sampler.state_dict() | {"epoch": epoch + n_passes, "step": step if n_passes == 0 else 0}
        self.sampler.load_state_dict(state)
