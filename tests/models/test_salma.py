"""The model as a whole: one decode for training and prediction, branches that do not see each other, greedy answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from salmacli.config.loading import load_config
from salmacli.config.schema import PredictConfig
from salmacli.data.collate import Batch, Collator
from salmacli.data.conversation import INTERNVL, Turn, branch, prefix
from salmacli.data.frames import arrays
from salmacli.data.templates import ANSWERS, QUESTIONS
from salmacli.data.training.clips import Clip
from salmacli.engine.prediction.predictor import Predictor
from salmacli.engine.training.step import counts_of
from salmacli.models.losses import total_loss
from salmacli.models.salma import Salma
from salmacli.models.trained import prepare_training, trained_parts

TEXTS = ("the red circle", "the blue square on the left")


@pytest.fixture(scope="module")
def model() -> Salma:
    """With an attention that does something, unlike a fresh one."""
    torch.manual_seed(0)
    built = Salma.build(load_config("tiny", ["model.cma.enabled=true"]).model, TEXTS).eval()
    assert built.cma is not None
    built.cma.gamma.data.fill_(0.5)
    return built


def clip(texts: tuple[str, ...] = TEXTS, frames: int = 2) -> Clip:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (frames, 40, 60, 3)).astype(np.uint8)
    return Clip(
        name="test",
        shown=tuple(pictures[n % frames] for n in range(4)),
        frames=tuple(pictures),
        dialogues=tuple((Turn(QUESTIONS[0], ANSWERS[0], text),) for text in texts),
        targets=tuple((str(n),) for n in range(len(texts))),
        masks=rng.random((len(texts), frames, 40, 60)) > 0.5,
        foreground=rng.random((frames, 40, 60)) > 0.5,
    )


def collate(model: Salma, *clips: Clip) -> Batch:
    collator = Collator(
        model.tokenizer, model.mllm.frame_size, model.mllm.tokens_per_frame, model.config.sam2.image_size
    )
    return collator.batch(clips)


def test_training_decode_equals_prediction_decode(model):
    """The predecessor has two code paths here, and loses accuracy to their difference."""
    batch = collate(model, clip(frames=1))
    with torch.no_grad():
        trained = model(batch).masks.logits  # (expressions, h, w): one frame
    predictor = Predictor(model, PredictConfig(mode="frames"))
    tracks = predictor.video([clip(frames=1).frames[0]], TEXTS, answer=ANSWERS[0], keep_logits=True)
    predicted = torch.stack([torch.from_numpy(track.logits[0]) for track in tracks])
    assert torch.allclose(trained, predicted, atol=1e-5)


@pytest.mark.parametrize("most", [1, 6])
def test_a_picture_is_shown_in_prediction_as_in_training(model, most):
    """Once: in tiles and as a whole, or as a whole only."""
    tiled = model.config.model_copy(update={"tiles": most})
    one = replace(clip(frames=1), still=True, shown=clip(frames=1).frames)
    collator = Collator(
        model.tokenizer, model.mllm.frame_size, model.mllm.tokens_per_frame, model.config.sam2.image_size, tiles=most
    )
    batch = collator.batch([one])
    assert len(batch.mllm_pixels) == {1: 1, 6: 6 + 1}[most]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(model, "config", tiled)
        trained = model(batch).masks.logits
        predictor = Predictor(model, PredictConfig(mode="frames"))
        tracks = predictor.video(arrays(one.frames, still=True), TEXTS, answer=ANSWERS[0], keep_logits=True)
    assert torch.allclose(trained, torch.stack([torch.from_numpy(track.logits[0]) for track in tracks]), atol=1e-5)


def test_expressions_do_not_see_each_other(model):
    """Two expressions in one conversation give the masks of two conversations with one each."""
    with torch.no_grad():
        together = model(collate(model, clip())).masks.logits
        masks, alone = clip().masks, []
        for n, text in enumerate(TEXTS):
            one = clip((text,))
            alone.append(model(collate(model, Clip(**{**vars(one), "masks": masks[n : n + 1]}))).masks.logits)
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_clips_of_a_batch_do_not_see_each_other(model):
    short, long = clip(TEXTS[:1]), clip((TEXTS[1], "the red circle that is on the left of the blue square"))
    with torch.no_grad():
        together = model(collate(model, short, long)).masks.logits
        alone = torch.cat([model(collate(model, one)).masks.logits for one in (short, long)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_answers_go_on_one_prefix_as_if_alone(model):
    """Cached and batched answering gives the states of a plain forward pass over the whole text."""
    mllm, tokenizer = model.mllm, model.tokenizer
    pixels = torch.randn(4, 3, *mllm.frame_size)
    start = torch.from_numpy(prefix(tokenizer, INTERNVL, [mllm.tokens_per_frame] * 4))
    questions = [torch.from_numpy(branch(tokenizer, INTERNVL, text, QUESTIONS[0], None).ids) for text in TEXTS]
    with torch.no_grad():
        frames = mllm.encode_frames(pixels)
        out = mllm.answer(mllm.read(start, frames), questions, max_new_tokens=5)
        for row, question in enumerate(questions):
            ids = torch.cat([start, question])[None]
            attention = torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
            hidden = mllm(ids, frames.flatten(0, 1), attention, torch.arange(ids.shape[1])[None])
            assert torch.allclose(out.words[row, : len(question)], hidden[0, len(start) :], atol=1e-5)
            if out.ids[row]:
                assert out.ids[row][0] == int(mllm.vocabulary_logits(hidden[0, -1]).argmax())


@pytest.mark.parametrize("recipe", ["lora", "full", "decoder-only", "cma-only"])
@pytest.mark.parametrize("token", ["single", "best-of-three"])
def test_what_trains_gets_a_gradient_even_at_gamma_zero(recipe, token):
    """Every part, and every tensor of the mask decoder: weight decay would wear down what no loss reaches."""
    torch.manual_seed(0)
    settings = load_config(
        "tiny",
        [
            "model.cma.enabled=true",
            f"train.recipe={recipe}",
            f"model.mask_token={token}",
            "train.lora.rank=4",
            "model.sam2.object_scores=true",
        ],
    )
    fresh = Salma.build(settings.model, TEXTS)
    prepare_training(fresh, settings, bf16=False)
    batch = collate(fresh, clip())
    loss, parts = total_loss(fresh(batch), batch, settings.losses, counts_of(batch))
    loss.backward()
    assert set(parts) >= {"bce", "dice", "iou", "lm", "tmc", "prior"}
    for name, part in trained_parts(fresh, settings).items():
        silent = [key for key, p in part.items() if p.grad is None or not p.grad.count_nonzero()]
        assert len(silent) < len(part), name
        if name == "SAM 2 mask decoder":  # in one batch not every one of three masks is the best of some
            assert not [key for key in silent if token == "single" or "output_hypernetworks" not in key]
    assert not [key for key, p in fresh.named_parameters() if p.grad is not None and not p.requires_grad]


def test_prior_is_detached_from_the_attention(model):
    """What the attention learns must not reach the pre-pass: language would leak into the prior."""
    features = model.grounding.encode(torch.randn(1, 3, 128, 128))
    prior = torch.randn(1, 32, 32, requires_grad=True)
    language = model.language(torch.randn(1, 128), torch.randn(1, 3, 128), torch.ones(1, 3, dtype=torch.bool))
    model.decode(model.grounding.decodable(features), language, prior).logits.sum().backward()
    assert prior.grad is None


def test_best_of_three_takes_the_mask_with_the_best_predicted_iou(model):
    features = model.grounding.encode(torch.randn(2, 3, 128, 128))
    with torch.no_grad():
        rows = model.grounding.decodable(features)
        best = model.grounding.decode(rows, None, best_of_three=True)
        single = model.grounding.decode(rows, None, best_of_three=False)
    assert best.logits.shape == single.logits.shape == (2, 32, 32)
    assert not torch.allclose(best.logits, single.logits)
