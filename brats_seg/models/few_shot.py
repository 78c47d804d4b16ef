"""Networks that classify an image from a few labeled images of each class: prototypical networks, matching
networks and memory networks.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Support = Float[Tensor, "episodes ways shots features"]
Queries = Float[Tensor, "episodes queries features"]
ClassScores = Float[Tensor, "episodes queries ways"]
"""Logarithms of class probabilities, up to a constant for each query."""
_BLOCKS = 4


def make_embedding(n_channels: int, *, width: int) -> nn.Module:
    """Four blocks of convolution, batch norm, ReLU and pooling (Vinyals et al. 2016, section 4.1.1; Snell et
    al. 2017): images (B, C, Y, X) of at least 16 pixels a side to features (B, F).
    """
    layers: list[nn.Module] = []
    for block in range(_BLOCKS):
        layers += [
            nn.Conv2d(width if block else n_channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten())


def n_features(image_size: tuple[int, int], *, width: int) -> int:
    """The number of features that `make_embedding` computes from an image of (Y, X) pixels."""
    y, x = image_size
    return (y >> _BLOCKS) * (x >> _BLOCKS) * width


class EpisodeNetwork(nn.Module):
    """A network that learns from whole episodes. The loss of each image is the mean loss of the queries of
    its episode.

    A batch contains episodes one after the other. An episode contains `ways` classes one after the other. A
    class contains first its `shots` (images whose class is given), then its queries.
    """

    def __init__(self, embedding: nn.Module, *, ways: int, shots: int, queries: int) -> None:
        super().__init__()
        self.embedding, self.ways, self.shots, self.queries = embedding, ways, shots, queries

    @abstractmethod
    def scores(self, support: Support, queries: Queries) -> ClassScores:
        """The score of each class for each query."""

    def forward(self, images: Float[Tensor, "b c y x"]) -> Float[Tensor, "b 1"]:
        """The loss of each image: cross-entropy of the queries."""
        each = self.ways * (self.shots + self.queries)
        n_episodes = len(images) // each
        features = self.embedding(images).reshape(n_episodes, self.ways, each // self.ways, -1)
        support, queries = features.split([self.shots, self.queries], dim=2)
        scores = self.scores(support, queries.flatten(1, 2))
        truth = torch.arange(self.ways, device=images.device).repeat_interleave(self.queries)
        losses = F.cross_entropy(scores.transpose(1, 2), truth.expand(n_episodes, -1), reduction="none")
        return losses.mean(1).repeat_interleave(each)[:, None]


class Prototypical(EpisodeNetwork):
    """Choose the class with the nearest mean of the features, by squared distance (Snell et al. 2017,
    equations 1 and 2).
    """

    def scores(self, support: Support, queries: Queries) -> ClassScores:
        """The negative squared distance to the mean of each class."""
        return -torch.cdist(queries, support.mean(2)).square()


class Matching(EpisodeNetwork):
    """Attention over the labeled images (Vinyals et al. 2016, equations 1 and 2), without full context
    embeddings.
    """

    def scores(self, support: Support, queries: Queries) -> ClassScores:
        """The logarithm of the total attention on the images of each class. The attention is the softmax of
        the cosine similarity.
        """
        shown = F.normalize(support.flatten(1, 2), dim=-1)
        cosine = F.normalize(queries, dim=-1) @ shown.transpose(1, 2)
        attention = F.log_softmax(cosine, dim=-1).unflatten(-1, support.shape[1:3])
        return torch.logsumexp(attention, dim=-1)


@dataclass(frozen=True)
class MemoryState:
    """The state of a memory network between two steps.

    Attributes:
        hidden: hidden state (b, h) and cell state of the LSTM.
        slots: the memory (b, m, w).
        usage: how much each slot was read and written, with decay over the steps (b, m).
        attended: how much each slot was read in the last step (b, m).
        read: the values that were read (b, w).
    """

    hidden: tuple[Tensor, Tensor]
    slots: Tensor
    usage: Tensor
    attended: Tensor
    read: Tensor

    def repeated(self, n: int) -> "MemoryState":
        """Each state n times, one after the other."""
        hidden, cell = (values.repeat_interleave(n, 0) for values in self.hidden)
        others = (self.slots, self.usage, self.attended, self.read)
        return MemoryState((hidden, cell), *(values.repeat_interleave(n, 0) for values in others))


class MemoryCell(nn.Module):
    """An LSTM with an external memory. It reads by content, and writes to the least used slot or to the slots
    that it read last (Graves et al. 2014, section 3.3.1; Santoro et al. 2016, section 3.1).
    """

    def __init__(self, n_inputs: int, *, hidden: int, slots: int, width: int, fade: float = 0.95) -> None:
        super().__init__()
        self.slots, self.width, self.fade = slots, width, fade
        self.controller = nn.LSTMCell(n_inputs + width, hidden)
        self.head = nn.Linear(hidden, 2 * width + 2)
        self.n_outputs = hidden + width

    def begin(self, n: int) -> MemoryState:
        """The state of n sequences before their first step: an almost empty memory."""
        like = self.head.weight
        hidden, width = self.controller.hidden_size, self.width
        empty = [like.new_zeros(n, size) for size in (hidden, hidden, self.slots, self.slots, width)]
        slots = like.new_full((n, self.slots, width), 1e-6)
        return MemoryState((empty[0], empty[1]), slots, *empty[2:])

    def forward(
        self, inputs: Float[Tensor, "b n"], state: MemoryState
    ) -> tuple[Float[Tensor, "b outputs"], MemoryState]:
        """One step. Returns the hidden state joined with the values read, and the next state."""
        hidden, cell = self.controller(torch.cat([inputs, state.read], 1), state.hidden)
        key, content, strength, gate = self.head(hidden).split([self.width, self.width, 1, 1], 1)
        least_used = F.one_hot(state.usage.argmin(1), self.slots).to(inputs.dtype)
        share = torch.sigmoid(gate)
        written = share * state.attended + (1 - share) * least_used
        slots = (
            state.slots * (1 - least_used)[:, :, None] + written[:, :, None] * torch.tanh(content)[:, None]
        )
        cosine = F.cosine_similarity(torch.tanh(key)[:, None], slots, dim=2, eps=1e-6)
        attended = torch.softmax((1 + F.softplus(strength)) * cosine, 1)
        read = (attended[:, None] @ slots)[:, 0]
        usage = self.fade * state.usage + attended + written
        return torch.cat([hidden, read], 1), MemoryState((hidden, cell), slots, usage, attended, read)


class MemoryNetwork(EpisodeNetwork):
    """A network that reads images one after the other, each with the class of the image before. It recalls
    the class of a query from its memory (Santoro et al. 2016, section 2).

    The labeled images are ordered in rounds with one image of each class. Each query uses the memory as it is
    after all labeled images.
    """

    def __init__(self, embedding: nn.Module, *, ways: int, shots: int, queries: int, n_features: int) -> None:
        super().__init__(embedding, ways=ways, shots=shots, queries=queries)
        self.cell = MemoryCell(n_features + ways, hidden=128, slots=64, width=40)
        self.output = nn.Linear(self.cell.n_outputs, ways)

    def scores(self, support: Support, queries: Queries) -> ClassScores:
        """The output of the last layer for each query."""
        n, ways, shots, _ = support.shape
        labels = torch.eye(ways, device=support.device)
        before, state = labels.new_zeros(n, ways), self.cell.begin(n)
        for shot in range(shots):
            for way in range(ways):
                state = self.cell(torch.cat([support[:, way, shot], before], 1), state)[1]
                before = labels[way].expand(n, -1)
        each = queries.shape[1]
        given = torch.cat([queries.flatten(0, 1), before.repeat_interleave(each, 0)], 1)
        outputs: Tensor = self.output(self.cell(given, state.repeated(each))[0])
        return outputs.reshape(n, each, ways)
