"""Which visits make up each forward pass of each process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from salmacli.data.training.mix import TrainingMix

# So many groups are sorted together: enough for groups of like length, few enough to stay at random.
SORTED_GROUPS = 64


class VisitOrder:
    """Batches of keys (epoch, visit) for one rank, for ever.

    A pure function of the pass, so any can be the first. All ranks' batches of a pass together are one global batch;
    global batches follow each other through the epochs, of which each holds every visit once. Where the mix groups
    lengths, the samples of a global batch are of like length, except where one epoch ends in it and another begins.

    Args:
        mix: what is visited.
        batch_size: samples per rank.
        rank, ranks: whose batches.
        first_pass: which pass comes first.
    """

    def __init__(self, mix: TrainingMix, batch_size: int, *, rank: int, ranks: int, first_pass: int) -> None:
        self.mix, self.batch_size, self.rank, self.ranks = mix, batch_size, rank, ranks
        self.first_pass = first_pass
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        place = self.first_pass
        while True:
            start = (place * self.ranks + self.rank) * self.batch_size
            yield [self._key(position) for position in range(start, start + self.batch_size)]
            place += 1

    def _key(self, position: int) -> tuple[int, int]:
        epoch, within = divmod(position, len(self.mix))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, order(self.mix, epoch, self.batch_size * self.ranks)
        return epoch, int(self._order[within])


def order(mix: TrainingMix, epoch: int, group: int) -> np.ndarray:
    """The visits of one epoch: a permutation of all of them.

    Args:
        mix: what is visited.
        epoch: which one.
        group: samples of a global batch.
    """
    rng = np.random.default_rng((mix.seed, epoch))
    visits = rng.permutation(len(mix))
    if mix.lengths is None:
        return visits
    # An epoch begins inside the global batch in which the one before it ends.
    head = min(-epoch * len(mix) % group, len(mix))
    whole = (len(mix) - head) // group
    inside = visits[head : head + whole * group]
    lengths = mix.lengths[inside]
    for start in range(0, len(inside), SORTED_GROUPS * group):
        part = slice(start, start + SORTED_GROUPS * group)
        inside[part] = inside[part][np.argsort(lengths[part], kind="stable")]
    groups = inside.reshape(whole, group)
    visits[head : head + whole * group] = groups[rng.permutation(whole)].ravel()
    return visits
