"""Train the network with a memory on the copy task, and print its bit error at length 10.

The network is shown vectors of random bits, then a sign, and must give the bits back in their order
(Graves et al. 2014, section 4.1).

python tools/copy_task.py --steps 5000
"""

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brats_seg.models.few_shot import MemoryCell

BITS = 6
LENGTH = 10


class Copier(nn.Module):
    """A memory cell and an output layer: bits (b, t, BITS) -> logits of the same bits."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = MemoryCell(BITS + 2, hidden=100, slots=24, width=24)
        self.output = nn.Linear(self.cell.n_outputs, BITS)

    def forward(self, bits: Tensor) -> Tensor:
        """All bits are shown before the first is given back."""
        n, length, _ = bits.shape
        state = self.cell.begin(n)
        shown = F.pad(bits, (0, 2))
        for place in range(length):
            state = self.cell(shown[:, place], state)[1]
        sign, silence = (F.one_hot(torch.tensor(k), BITS + 2).float().expand(n, -1) for k in (BITS, BITS + 1))
        state = self.cell(sign, state)[1]
        given = []
        for _ in range(length):
            outputs, state = self.cell(silence, state)
            given.append(self.output(outputs))
        return torch.stack(given, 1)


def bit_error(network: Copier, *, n: int, generator: torch.Generator) -> float:
    """Share of bits that are wrong in n sequences of length 10."""
    bits = torch.randint(0, 2, (n, LENGTH, BITS), generator=generator).float()
    with torch.no_grad():
        return ((network(bits) > 0) != (bits > 0.5)).float().mean().item()


def main() -> None:
    """Train on lengths 1 to 10 and print the bit error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    asked = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network, generator, start = Copier(), torch.Generator().manual_seed(1), time.perf_counter()
    optimizer = torch.optim.Adam(network.parameters(), lr=asked.lr)
    for step in range(asked.steps + 1):
        if step % 500 == 0:
            error = bit_error(network, n=200, generator=generator)
            print(f"step {step}: bit error {error:.4f}, {time.perf_counter() - start:.0f} s", flush=True)
            if error == 0:
                break
        # Short sequences first: the longest of a step grows to 10 over the first half of the training.
        most = min(LENGTH, 2 + int(2 * step / asked.steps * LENGTH))
        length = int(torch.randint(1, most + 1, (), generator=generator))
        bits = torch.randint(0, 2, (asked.batch, length, BITS), generator=generator).float()
        loss = F.binary_cross_entropy_with_logits(network(bits), bits)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
    print(f"bit error at length {LENGTH}: {bit_error(network, n=2000, generator=generator):.4f}")


if __name__ == "__main__":
    main()
