from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from salmacli.data.records import Round, Talk
from salmacli.data.training.mix import Grouping, Source, TrainingMix
from salmacli.data.training.order import VisitOrder
from salmacli.data.training.sources import Sampling
from tests.data.training.conftest import CHAT, GCG, Talks


def mix(counts: dict[int, int], seed: int = 0, grouped: bool = True) -> TrainingMix:
    """Sets of talks, {repeats: talks}, of many lengths."""
    rng = np.random.default_rng(1)
    sources = []
    for repeats, count in counts.items():
        talks = [Talk("t", (Round("x" * int(n), "y"),)) for n in rng.integers(1, 4000, count)]
        sources.append(Source(Talks(talks, frames=None), repeats))
    return TrainingMix(sources, seed, Sampling(2, 1, 1), Grouping(4, 1) if grouped else None)


def passes(source: TrainingMix, batch_size: int, ranks: int, count: int, first: int = 0) -> list[list[tuple[int, int]]]:
    """Global batches."""
    orders = [VisitOrder(source, batch_size, rank=rank, ranks=ranks, first_pass=first) for rank in range(ranks)]
    return [[key for keys in parts for key in keys] for parts in islice(zip(*orders, strict=True), count)]


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(("batch_size", "ranks"), [(1, 1), (4, 1), (2, 2), (3, 2), (64, 2)])
def test_every_epoch_visits_every_sample_as_often_as_its_set_says(batch_size, ranks, grouped):
    source = mix({4: 5, 1: 7, 2: 3}, grouped=grouped)
    assert len(source) == 33
    group, epochs = batch_size * ranks, 4
    keys = [key for keys in passes(source, batch_size, ranks, -(-epochs * 33 // group)) for key in keys]
    assert [epoch for epoch, _ in keys] == sorted(epoch for epoch, _ in keys)
    for epoch in range(epochs):
        visits = Counter(source.place(visit) for number, visit in keys if number == epoch)
        assert visits == {(0, n): 4 for n in range(5)} | {(1, n): 1 for n in range(7)} | {(2, n): 2 for n in range(3)}


def test_two_ranks_see_what_one_sees_with_the_doubled_batch():
    source = mix({3: 20, 1: 11})
    assert passes(source, 3, 2, 60) == passes(source, 6, 1, 60)


def test_global_batches_are_of_like_length_and_come_in_any_order():
    source, whole = mix({1: 1000}), mix({1: 1000}, grouped=False)
    lengths = source.lengths
    assert lengths is not None

    def padding(found: TrainingMix) -> float:
        batches = np.array([[lengths[visit] for _, visit in batch] for batch in passes(found, 4, 2, 250)])
        return float((batches.max(1, keepdims=True) - batches).mean())

    assert padding(source) < 0.1 * padding(whole)
    means = [np.mean([lengths[visit] for _, visit in batch]) for batch in passes(source, 4, 2, 125)]
    assert abs(np.corrcoef(means, np.arange(125))[0, 1]) < 0.3, "not from short to long"


def test_only_the_batch_in_which_an_epoch_ends_is_of_unlike_lengths():
    source = mix({1: 101})
    lengths = source.lengths
    assert lengths is not None
    for batch in passes(source, 4, 2, 60):
        spread = np.ptp([lengths[visit] for _, visit in batch])
        assert spread < 300 or len({epoch for epoch, _ in batch}) == 2


def test_order_can_start_anywhere():
    source = mix({2: 9, 1: 5})
    all_passes = passes(source, 2, 2, 40)
    for first in (1, 5, 6, 17):
        assert passes(source, 2, 2, 3, first) == all_passes[first : first + 3]


def test_epochs_and_seeds_differ():
    source, other = mix({1: 40}), mix({1: 40}, seed=1)
    first, second = passes(source, 4, 1, 20)[:10], passes(source, 4, 1, 20)[10:]
    visits = [[visit for keys in part for _, visit in keys] for part in (first, second, passes(other, 4, 1, 10))]
    assert visits[0] != visits[1] and visits[0] != visits[2]


def test_an_epoch_smaller_than_a_batch_goes_round():
    source = TrainingMix([Source(Talks([GCG, CHAT]), 1)], 0, Sampling(2, 1, 1), Grouping(4, 1))
    (batch,) = passes(source, 5, 1, 1)
    assert Counter(epoch for epoch, _ in batch) == {0: 2, 1: 2, 2: 1}


def test_workers_read_what_the_process_itself_reads(rows):
    """Clips and their order do not depend on how many processes read ahead."""
    from torch.utils.data import DataLoader

    source = TrainingMix([Source(rows, 3), Source(Talks([GCG, CHAT]), 2)], 0, Sampling(2, 2, 2), Grouping(4, 1))

    def read(workers: int) -> list[tuple[str, int]]:
        order = VisitOrder(source, 2, rank=0, ranks=1, first_pass=3)
        loader = DataLoader(source, batch_sampler=order, num_workers=workers, collate_fn=list)
        return [(clip.name, clip.seed) for batch in islice(loader, 12) for clip in batch]

    assert read(0) == read(2)
