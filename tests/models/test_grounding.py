"""SAM 2's encoder as SALMA calls it."""

from __future__ import annotations

import torch


def test_encodings_of_positions_do_not_keep_the_batch_alive(tiny_model):
    tables = tiny_model.grounding.image_encoder.neck.position_encoding.cache
    tables.clear()
    side = tiny_model.config.sam2.image_size
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, again = tiny_model.grounding.encode(images), tiny_model.grounding.encode(images[:1])
    assert len(tables) >= 3
    for table in tables.values():
        assert table.untyped_storage().nbytes() == table.numel() * table.element_size()
    assert torch.equal(first.position, again.position)
