from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from salmacli.checkpoints.files import hub
from salmacli.checkpoints.files.hub import resolve
from salmacli.errors import CheckpointError

PATTERNS = ["*.json", "*.safetensors"]
SHARDS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
INDEX = json.dumps({"weight_map": SHARDS})

Cache = Callable[..., Path]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """A function that puts files of ``org/model`` into the hub library's cache, and gives their folder."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)

    def fill(files: dict[str, str], revision: str = "main") -> Path:
        repository = tmp_path / "cache" / "models--org--model"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text("c0ffee")
        snapshot = repository / "snapshots" / "c0ffee"
        snapshot.mkdir(parents=True)
        for name, text in files.items():
            (snapshot / name).write_text(text)
        return snapshot

    return fill


def _online(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any]) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = []
    cached = hub.snapshot_download

    def snapshot_download(name: str, **options: Any) -> Any:
        if options.get("local_files_only"):
            return cached(name, **options)
        asked.append({"name": name, **options})
        return answer()

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return asked


def _raise(error: Exception) -> Callable[..., Any]:
    def answer() -> Any:
        raise error

    return answer


def _http(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "404 Client Error\nRequest ID: x")
    return error


def test_a_path_is_taken_as_it_is(tmp_path: Path, cache: Cache) -> None:
    cache({"model.safetensors": ""})
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert resolve("org/model", PATTERNS) == Path("org/model")
    assert resolve(tmp_path / "org", PATTERNS) == tmp_path / "org"


def test_what_is_in_the_cache_needs_no_network(cache: Cache) -> None:
    folder = cache({"config.json": "{}", "model.safetensors": "x"})
    assert resolve("org/model", PATTERNS) == folder
    assert resolve(Path("org/model"), PATTERNS) == folder  # as the command line hands it over


def test_a_revision(cache: Cache) -> None:
    folder = cache({"model.safetensors": "x"}, revision="v2")
    assert resolve("org/model", PATTERNS, revision="v2") == folder
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        resolve("org/model", PATTERNS)


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": "{}"},
        {"model.safetensors.index.json": INDEX, SHARDS["a"]: "x"},
        {SHARDS["a"]: "x", "config.json": "{}"},
        {"model.pt": "x"},
    ],
)
def test_an_unfinished_download_is_not_taken_for_the_model(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str]
) -> None:
    cache(files)
    with pytest.raises(CheckpointError, match=r"org/model is no path and not \(whole\) in the cache .* hf download"):
        resolve("org/model", PATTERNS)
    asked = _online(monkeypatch, lambda: str(tmp_path))
    assert resolve("org/model", PATTERNS, revision="main") == tmp_path
    assert asked == [{"name": "org/model", "revision": "main", "allow_patterns": PATTERNS}]


def test_shards_that_are_all_there(cache: Cache) -> None:
    other = json.dumps({"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}})  # not asked for
    files = {"model.safetensors.index.json": INDEX, "pytorch_model.bin.index.json": other}
    folder = cache({**files, **dict.fromkeys(SHARDS.values(), "x")})
    assert resolve("org/model", PATTERNS) == folder


@pytest.mark.parametrize("name", ["nowhere", "runs/a/b", "../org/model", "/org/model", "org/model/"])
def test_what_can_be_no_hub_id_is_a_missing_path(cache: Cache, name: str) -> None:
    with pytest.raises(CheckpointError, match="is missing; check the path"):
        resolve(name, PATTERNS)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (_http(RepositoryNotFoundError), "is neither a path here nor a model on the hub"),
        (_http(GatedRepoError), "accept them on https://huggingface.co/org/model"),
        (LocalEntryNotFoundError("An error happened.\nMore."), r"could not be asked for it \(An error happened\.\)"),
        (TimeoutError(), r"could not be asked for it \(TimeoutError\)"),
    ],
)
def test_what_the_hub_says(cache: Cache, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str) -> None:
    _online(monkeypatch, _raise(error))
    with pytest.raises(CheckpointError, match=told):
        resolve("org/model", PATTERNS)
