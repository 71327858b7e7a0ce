from __future__ import annotations

import numpy as np
import pytest

from salmacli.data.training.clips import BadClip, Clip
from salmacli.data.training.mix import Grouping, Source, TrainingMix
from salmacli.data.training.sources import Sampling
from salmacli.errors import DataError
from tests.data.training.conftest import CHAT, GCG, Rows, Talks

SAMPLING = Sampling(clip_frames=4, decoded_frames=2, expressions=2)


def mix(*sources: Source, seed: int = 0) -> TrainingMix:
    return TrainingMix(sources, seed, SAMPLING, Grouping(4, 3))


def same(one: Clip, other: Clip) -> bool:
    return all(
        np.array_equal(value, getattr(other, name))
        if name in ("masks", "foreground", "shown", "frames")
        else value == getattr(other, name)
        for name, value in vars(one).items()
    )


def test_every_sample_has_as_many_visits_as_its_set_has_repeats(tmp_path):
    found = mix(Source(Rows(tmp_path, 2), 3), Source(Talks([GCG, CHAT, CHAT]), 2), Source(Talks([CHAT]), 1))
    assert len(found) == 2 * 3 + 3 * 2 + 1
    places = [found.place(visit) for visit in range(len(found))]
    assert places == [(0, 0)] * 3 + [(0, 1)] * 3 + [(1, 0)] * 2 + [(1, 1)] * 2 + [(1, 2)] * 2 + [(2, 0)]
    assert found.sets() == [source.set for source in found.sources]


def test_a_visit_is_a_function_of_seed_epoch_and_number(rows):
    source = Source(rows, 2)
    assert same(mix(source)[3, 1], mix(source)[3, 1])
    others = [mix(source)[4, 1], mix(source)[3, 0], mix(source, seed=1)[3, 1]]
    assert not any(same(mix(source)[3, 1], other) for other in others)
    assert len({mix(source)[epoch, visit].seed for epoch in range(5) for visit in range(6)}) == 30


def test_what_is_drawn_does_not_depend_on_what_was_read_before(rows):
    used, fresh = mix(Source(rows, 1)), mix(Source(rows, 1))
    for visit in (2, 0, 1):
        used[0, visit]
    assert same(used[5, 2], fresh[5, 2])


def test_an_unreadable_frame_is_named_and_not_fatal_here(tmp_path):
    benchmark = Rows(tmp_path, frames=1)
    (tmp_path / "v1" / "00000.png").write_bytes(b"not a picture")
    bad = mix(Source(benchmark, 1))[0, 1]
    assert isinstance(bad, BadClip) and bad.name == "rows/v1" and "00000.png" in bad.reason


def test_sets_of_one_name_stay_apart(tmp_path):
    """Clips of one name would be taken for visits to the same objects."""
    found = mix(Source(Rows(tmp_path / "a"), 1), Source(Talks([CHAT]), 1), Source(Rows(tmp_path / "b"), 1))
    assert [found[0, visit].name for visit in (0, 3, 4)] == ["rows (1)/v0", "talks/0", "rows (3)/v0"]


def test_an_empty_mix_is_an_error(tmp_path):
    with pytest.raises(DataError, match="empty"):
        mix(Source(Rows(tmp_path, videos=0), 1))


def test_lengths_are_known_without_reading(tmp_path):
    picture, video, text = (Talks([CHAT]), Talks([CHAT], 9, still=False), Talks([CHAT], None))
    benchmark = Rows(tmp_path)
    found = mix(Source(picture, 1), Source(video, 2), Source(text, 1), Source(benchmark, 1))
    said = Talks([CHAT]).length(0) // 4
    lengths = found.lengths
    assert lengths is not None and len(lengths) == len(found)
    assert lengths[:4].tolist() == [4 * (3 + 1) + said, 4 * 4 + said, 4 * 4 + said, said]
    assert TrainingMix([Source(text, 1)], 0, SAMPLING).lengths is None


def test_texts_are_of_all_sets_once(rows):
    texts = mix(Source(rows, 2), Source(Talks([CHAT, CHAT]), 1)).texts()
    assert texts == sorted(set(texts)) and {"the red one", "What is it?", "A film."} <= set(texts)
