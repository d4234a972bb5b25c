"""Transformers' own model tests pass for our classes exactly where they pass for stock Whisper.

About 160 tests for each pair of classes: saving and loading in every way, tied and missing weights, gradient
checkpointing, training, attention implementations against each other in three dtypes, outputs, resizing, configuration.
Most of those that are skipped need an accelerator or are for another kind of model.
"""

from collections import Counter

import pytest
from transformers import WhisperConfig, WhisperForCausalLM, WhisperForConditionalGeneration, WhisperModel

from whisper_mla import (
    WhisperMLAConfig,
    WhisperMLAForCausalLM,
    WhisperMLAForConditionalGeneration,
    WhisperMLAModel,
)

from . import fetched_tests
from .whisper_tester import Family, add_to_name_tables, make_cases, outcomes

pytestmark = pytest.mark.transformers_suite

STOCK = Family(WhisperConfig, (WhisperModel, WhisperForConditionalGeneration), WhisperForCausalLM, {})
VARIANTS = {
    "exact": {},
    "small": {"kv_rank": 6, "cross_kv_rank": 10},
    "per layer": {
        "kv_rank": [6, 16],
        "cross_kv_rank": [16, 5],
        "cross_kv_shared": False,
        "audio_kv_rank": [7, 16],
    },
}
KINDS = ("models", "decoder")

# Tests that stock Whisper does not pass here, and why.
STOCK_FAILS = {
    "models": {
        "test_generation_tester_mixin_inheritance": "asks for tests that the source distribution does not hold",
        "test_resize_embeddings_untied": "changes inputs_dict['input_ids'], which a model of audio has not",
        "test_resize_tokens_embeddings": "changes inputs_dict['input_ids'], which a model of audio has not",
    },
    "decoder": {
        "test_generation_tester_mixin_inheritance": "asks for tests that the source distribution does not hold",
    },
}


@pytest.fixture(scope="module")
def common(request):
    """The common tests, or a skip that says why there are none."""
    try:
        folder = fetched_tests.fetch(request.config.cache.mkdir("transformers_suite"))
    except fetched_tests.NotAvailable as error:
        pytest.skip(f"Transformers' own model tests cannot be fetched from the package index: {error}")
    for name in fetched_tests.markers(folder):  # else strict markers refuse them
        request.config.addinivalue_line("markers", f"{name}: of Transformers' own tests")
    return fetched_tests.load(folder)


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def stock(common, kind) -> tuple[dict[str, str], dict[str, str]]:
    return outcomes(make_cases(common, STOCK)[kind])


def test_stock_whisper_passes(stock, kind):
    """What ours is measured against is no empty promise."""
    kinds, reasons = stock
    unexpected = {name: reason for name, reason in reasons.items() if name not in STOCK_FAILS[kind]}
    assert not unexpected, "\n\n".join(unexpected.values())
    assert Counter(kinds.values())["passed"] >= 85


@pytest.mark.parametrize("variant", VARIANTS)
def test_ours_passes_where_stock_passes(common, stock, kind, variant, monkeypatch):
    models = WhisperMLAModel, WhisperMLAForConditionalGeneration
    family = Family(WhisperMLAConfig, models, WhisperMLAForCausalLM, VARIANTS[variant])
    add_to_name_tables(common, family, monkeypatch)
    ours, reasons = outcomes(make_cases(common, family)[kind])
    expected, _ = stock
    assert ours.keys() == expected.keys()
    differing = [name for name in ours if ours[name] != expected[name]]
    differences = [f"{name}: stock {expected[name]}, ours {ours[name]}" for name in differing]
    assert not differences, "\n".join([*differences, *reasons.values()])
