"""Test cases of Transformers' common tests for a Whisper, stock or ours: one description for both."""

import unittest
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "num_mel_bins": 16,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_source_positions": 30,
    "max_target_positions": 40,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
BATCH, POSITIONS, FRAMES = 2, 7, 30


@dataclass
class ModelTester:
    """What the common tests ask of a model tester, for encoder and decoder or for the decoder alone."""

    parent: unittest.TestCase
    config_class: type[PreTrainedConfig]
    fields: dict[str, Any]
    decoder_only: bool = False

    # Read by the common tests under these names.
    batch_size = BATCH
    seq_length = FRAMES
    encoder_seq_length = FRAMES
    decoder_seq_length = POSITIONS
    hidden_size = SIZES["d_model"]
    num_hidden_layers = SIZES["decoder_layers"]
    num_attention_heads = SIZES["decoder_attention_heads"]
    is_training = True

    def __post_init__(self):
        if self.decoder_only:
            self.seq_length = self.encoder_seq_length = POSITIONS

    def get_config(self) -> PreTrainedConfig:
        config = self.config_class(**SIZES, **self.fields)
        if self.decoder_only:
            config.is_encoder_decoder = False
        return config

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        """Random inputs, of plain tokens."""
        tokens = torch.randint(4, 96, (BATCH, POSITIONS))
        if self.decoder_only:
            states = torch.randn(BATCH, FRAMES, SIZES["d_model"])
            return self.get_config(), {
                "input_ids": tokens,
                "attention_mask": torch.ones_like(tokens),
                "encoder_outputs": states,
            }
        features = torch.rand(BATCH, SIZES["num_mel_bins"], 2 * FRAMES)
        return self.get_config(), {
            "input_features": features,
            "decoder_input_ids": tokens,
            "decoder_attention_mask": torch.ones_like(tokens),
        }


@dataclass(frozen=True)
class Family:
    """A configuration class, its models, and the fields that make a variant.

    Attributes:
        models: the base model and the one with a head, for speech recognition.
        decoder: the decoder alone with a head.
    """

    config_class: type[PreTrainedConfig]
    models: tuple[type, type]
    decoder: type
    fields: dict[str, Any]


def make_cases(common, family: Family) -> dict[str, type[unittest.TestCase]]:
    """The common tests as test cases for `family`.

    Args:
        common: what `fetched_tests.load` returned.
        family: what to test.

    Returns:
        dict[str, type]: "models" (encoder and decoder), "decoder" (the decoder alone).
    """

    def case(models: tuple[type, ...], decoder_only: bool) -> type[unittest.TestCase]:
        class Case(common.ModelTesterMixin, unittest.TestCase):
            all_model_classes = models
            is_encoder_decoder = not decoder_only

            def setUp(self):
                torch.manual_seed(0)
                self.model_tester = ModelTester(self, family.config_class, family.fields, decoder_only)
                self.config_tester = common.ConfigTester(
                    self, config_class=family.config_class, has_text_modality=True, **SIZES, **family.fields
                )

            def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
                # The common tests give labels as long as the audio to classes of tables that Whisper is not in.
                inputs = super()._prepare_for_class(inputs_dict, model_class)
                if return_labels and (decoder_only or model_class is not models[0]):
                    inputs["labels"] = torch.zeros(BATCH, POSITIONS, dtype=torch.long)
                return inputs

            def test_config(self):
                self.config_tester.run_common_tests()

        return Case

    return {"models": case(family.models, False), "decoder": case((family.decoder,), True)}


def add_to_name_tables(common, family: Family, monkeypatch) -> None:
    """The common tests decide by class names in static tables, which registering with an Auto class does not touch."""
    tables = {
        "MODEL_MAPPING_NAMES": family.models[0],
        "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES": family.models[1],
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": family.decoder,
    }
    for table, model_class in tables.items():
        monkeypatch.setitem(getattr(modeling_auto, table), family.config_class.model_type, model_class.__name__)
    # Decoders that take their labels aligned already, as stock Whisper's.
    unshifted = getattr(common.modeling, "UNSHIFTED_LM_HEADS", None)
    if unshifted is not None:
        monkeypatch.setattr(common.modeling, "UNSHIFTED_LM_HEADS", {*unshifted, family.decoder.__name__})


# Of the older name of the cache, which stock Whisper announces as deprecated by a warning that these tests ignore, and
# which ours takes without a word; tests/modeling/test_transformers_releases.py has both names.
NOT_COMPARED = {"test_bc_cache_name_forward"}


def outcomes(case: type[unittest.TestCase]) -> tuple[dict[str, str], dict[str, str]]:
    """Run every test of a case.

    Returns:
        tuple: for each test "passed", "skipped" or "failed"; and of those that failed, why.
    """
    kinds, reasons = {}, {}
    for name in sorted({*unittest.defaultTestLoader.getTestCaseNames(case)} - NOT_COMPARED):
        result = unittest.TestResult()
        case(name).run(result)
        wrong = result.failures + result.errors
        kinds[name] = "failed" if wrong else "skipped" if result.skipped else "passed"
        if wrong:
            reasons[name] = "\n".join(traceback for _, traceback in wrong)
    return kinds, reasons
