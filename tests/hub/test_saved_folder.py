"""Conversion record and model card beside the weights."""

import hashlib
import json

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForSpeechSeq2Seq

from tests.conftest import random_whisper
from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.conversion import from_whisper
from whisper_mla.hub.conversion_record import read_conversion_record
from whisper_mla.hub.model_card import write_model_card


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "tiny"
    random_whisper().save_pretrained(folder)
    return folder


def test_record_says_what_was_converted_and_how(source, tmp_path):
    model = from_whisper(source, kv_rank=[6, 32], method="layer_norm", damping=0.05)
    model.save_pretrained(tmp_path / "model")
    record = json.loads((tmp_path / "model" / "conversion.json").read_text())
    assert record["source"]["name"] == "tiny"
    assert record["source"]["sha256"] == {"model.safetensors": sha256(source / "model.safetensors")}
    assert record["weights"] == {"model.safetensors": sha256(tmp_path / "model" / "model.safetensors")}
    assert (record["method"], record["method_options"]) == ("layer_norm", {"damping": 0.05})
    assert record["ranks"]["kv_rank"] == [6, 32]
    (latent,) = record["latents"]
    assert (latent["name"], latent["rank"]) == ("decoder.layers.0.self_attn", 6)
    assert 0 < latent["relative_error"] < 1
    assert record["calibration"] is None and record["quality"] is None
    assert str(tmp_path) not in json.dumps(record)


def test_conversion_is_deterministic(source, tmp_path):
    for name in ("a", "b"):
        from_whisper(source, kv_rank=6, cross_kv_rank=8).save_pretrained(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    for file in files:
        first, second = (tmp_path / name / file for name in "ab")
        if file == "conversion.json":
            records = [{**json.loads(path.read_text()), "date": 0, "seconds": 0} for path in (first, second)]
            assert records[0] == records[1]
        else:
            assert first.read_bytes() == second.read_bytes(), file


def test_record_survives_loading_and_sharding(source, tmp_path):
    from_whisper(source, kv_rank=6).save_pretrained(tmp_path / "a")
    for load in (AutoModelForSpeechSeq2Seq, WhisperMLAForConditionalGeneration):
        model = load.from_pretrained(tmp_path / "a")
        assert model.conversion_record == read_conversion_record(tmp_path / "a")
    model.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    weights = read_conversion_record(tmp_path / "b")["weights"]
    assert len(weights) > 1
    assert weights == {path.name: sha256(path) for path in (tmp_path / "b").glob("*.safetensors")}
    loaded, info = WhisperMLAForConditionalGeneration.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert loaded.conversion_record["source"] == model.conversion_record["source"] and not info["missing_keys"]


def test_a_model_that_was_not_converted_has_no_record(source, tmp_path):
    model = WhisperMLAForConditionalGeneration.from_pretrained(source)
    assert model.conversion_record is None
    model.save_pretrained(tmp_path / "model")
    assert not {"conversion.json", "README.md"} & {path.name for path in (tmp_path / "model").iterdir()}


def test_a_damaged_record_does_not_stop_from_pretrained(source, tmp_path):
    from_whisper(source).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "conversion.json").write_text("{")
    assert WhisperMLAForConditionalGeneration.from_pretrained(tmp_path / "model").conversion_record is None


def test_card_states_what_is_known(source, tmp_path):
    (source / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en, de]\n---\n# A Whisper\n")
    model = from_whisper(source, kv_rank=6)
    model.conversion_record["source"]["name"] = "someone/whisper-tiny"
    model.save_pretrained(tmp_path / "model")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    fields = card.data.to_dict()
    assert fields["base_model"] == "someone/whisper-tiny"
    assert fields["library_name"] == "transformers"
    assert fields["pipeline_tag"] == "automatic-speech-recognition"
    assert fields["license"] == "apache-2.0" and fields["language"] == ["en", "de"]
    assert "whisper_mla" in fields["tags"]
    # 2 layers, 40 positions, ranks 6 of 32; 30 frames of the encoder output: bytes in float16.
    assert "| self-attention | 0.01 MB | 0.00 MB | -90.6% |" in card.text
    assert "`joint_svd`" in card.text and "| 6 |" in card.text
    assert "Not measured." in card.text and "trust_remote_code=True" in card.text and "2603.00563" in card.text


def test_card_invents_nothing(source, tmp_path):
    from_whisper(source).save_pretrained(tmp_path / "model")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert {"base_model", "license", "language"}.isdisjoint(card.data.to_dict())
    assert "nothing was factorised" in card.text and "KL" not in card.text


def test_card_has_the_quality_that_was_measured(source, tmp_path):
    model = from_whisper(source, kv_rank=6)
    measured = {"measured_on": "held-out audio", "kl_per_token": 0.0123, "token_agreement": 0.987, "tokens": 77}
    model.conversion_record["quality"] = measured
    model.save_pretrained(tmp_path / "model")
    text = (tmp_path / "model" / "README.md").read_text()
    assert "0.012 nats per token" in text and "98.70 %" in text and "77 tokens" in text and "Not measured" not in text


def test_an_edited_card_is_kept(source, tmp_path):
    model = from_whisper(source)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("mine")
    model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "README.md").read_text() == "mine"
    write_model_card(tmp_path / "model")
    assert (tmp_path / "model" / "README.md").read_text() != "mine"
