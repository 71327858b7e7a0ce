from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from salmacli.models.gathering import gather_rows, process_count

TOTAL = 5


def test_alone_rows_are_what_they_are():
    rows = torch.randn(3, 2, requires_grad=True)
    assert gather_rows(rows) is rows and process_count() == 1


@pytest.mark.slow
@pytest.mark.parametrize("compare", ["rows", "losses"])
def test_two_processes_have_the_gradients_of_one(tmp_path, compare):
    """Also where one of them has no mask."""
    multiprocessing.spawn(_compare, (str(tmp_path / "meet"), compare), nprocs=2)


def _compare(rank: int, place: str, what: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    for first in (2, TOTAL, 0):
        own = range(first) if rank == 0 else range(first, TOTAL)
        (_compare_rows if what == "rows" else _compare_losses)(own)
    dist.destroy_process_group()


def _compare_rows(own: range) -> None:
    """The weights' gradient, mean over processes, against that of one process that has all rows."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(TOTAL, 4, generator=generator), torch.randn(4, 3, generator=generator)
    numbers, mine = torch.arange(TOTAL), slice(own.start, own.stop)

    def gradient(rows: torch.Tensor, gathered: bool) -> torch.Tensor:
        learnt = weight.clone().requires_grad_()
        out = (rows @ learnt).tanh()
        out = gather_rows(out) if gathered else out
        (out @ out.T).square().sum().backward()
        assert learnt.grad is not None
        return learnt.grad

    shared = gradient(x[mine], True)
    dist.all_reduce(shared)
    assert torch.allclose(shared / 2, gradient(x, False), rtol=1e-5)
    assert torch.equal(gather_rows(numbers[mine]), numbers)
    assert gather_rows(x[:0]).shape == (0, 4)


def _compare_losses(own: range) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from test_losses import ALL, nothing, step

    from salmacli.models.losses import Counts, total_loss

    def losses(samples: range, gathered: bool) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        outputs, batch = step(samples) if len(samples) else nothing()
        said = outputs.said.clone().requires_grad_()
        processes = 2 if gathered else 1
        counts = Counts(4 * TOTAL / processes, TOTAL / processes, 2 * TOTAL / processes)
        total, parts = total_loss(replace(outputs, said=said), batch, ALL, counts, gather=gathered)
        total.backward()
        assert said.grad is not None
        return said.grad, total.detach(), parts

    gradient, total, parts = losses(range(TOTAL), False)
    shared_gradient, shared_total, shared_parts = losses(own, True)
    rows = slice(4 * own.start, 4 * own.stop)
    assert torch.allclose(shared_gradient / 2, gradient[:, rows], atol=1e-7)
    for name, value in {**shared_parts, "total": shared_total}.items():
        dist.all_reduce(value)
        assert torch.allclose(value / 2, {**parts, "total": total}[name], atol=1e-6), name
