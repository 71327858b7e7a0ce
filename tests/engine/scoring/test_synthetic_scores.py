"""The evaluator on the synthetic benchmark in the official layouts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from salmacli.data.rle import decode, encode
from salmacli.data.synthetic.make import make, open_synthetic
from salmacli.engine.scoring.evaluator import evaluate
from salmacli.engine.scoring.protocols import PROTOCOLS
from salmacli.errors import DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make(
        tmp_path_factory.mktemp("data") / "synthetic",
        sizes={"train": 1, "valid": 5, "held_out": 3},
        processes=1,
    )


def predict(benchmark, folder, change=lambda mask: mask):
    folder.mkdir()
    for video in benchmark.videos:
        expressions = {}
        for expression in video.expressions:
            masks = [change(decode(one)) for one in benchmark.truth(video, expression)]
            counts = [encode(mask)["counts"] for mask in masks]
            expressions[expression.id] = {
                "text": expression.text,
                "answer": "",
                "fallback": None,
                "masks": counts,
            }
        size = list(benchmark.size(video))
        content = {"schema": 1, "video": video.name, "size": size, "frames": list(video.frames)}
        (folder / f"{video.name}.json").write_text(json.dumps({**content, "expressions": expressions}))
    return folder


@pytest.mark.parametrize("name", ["mevis", "davis", "revos", "refcoco", "refcoco+", "refcocog", "grefcoco"])
def test_the_truth_scores_one_in_every_layout_and_protocol(name, root, tmp_path):
    benchmark = open_synthetic(name, root)
    folder = predict(benchmark, tmp_path / "p")
    for protocol in PROTOCOLS[name]:
        results = evaluate(benchmark, folder, protocol).results
        assert {results["scores"][metric] for metric in results["metrics"]} == {1.0}, protocol
        assert results["synthetic"] is True
        assert results["protocol"]["name"] == protocol
        assert results["counts"]["missing"] == results["counts"]["extra"] == 0
        # As 0/255, the official script finds no pixel of a perfect prediction right.
        perfect = protocol != "visa-compat"
        assert (results["scores"].get("A", 1.0) == 1.0) == perfect


def test_revos_reads_the_foreground_for_its_robustness(root, tmp_path):
    benchmark = open_synthetic("revos", root)
    folder = predict(benchmark, tmp_path / "p", lambda mask: np.ones_like(mask))
    evaluation = evaluate(benchmark, folder)
    video = benchmark.videos[0]
    truth = [decode(one) for one in benchmark.truth(video, video.expressions[0])]
    foreground = [one.to_mask() for one in benchmark.annotated_bits(video)]
    assert all((t <= f).all() for t, f in zip(truth, foreground, strict=True))
    expected = [max(1 - (~t).sum() / f.sum(), 0) for t, f in zip(truth, foreground, strict=True)]
    assert evaluation.rows["R"][0] == pytest.approx(np.mean(expected), abs=1e-9)
    assert evaluation.results["scores"]["R"] < 0.5


def test_refytvos_says_that_it_has_no_truth(root, tmp_path):
    (tmp_path / "p").mkdir()
    with pytest.raises(DataError, match="refytvos valid has no public truth"):
        evaluate(open_synthetic("refytvos", root), tmp_path / "p")
