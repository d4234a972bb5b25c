"""The report's tables, notes and files, from scores made up here."""

import json

import pytest
import torch
from transformers import WhisperConfig

from whisper_mla.configuration import WhisperMLAConfig
from whisper_mla.evaluation.evaluate_model import PeakMemory
from whisper_mla.evaluation.evaluation_report import (
    describe_model,
    environment,
    report_notes,
    report_tables,
    write_report,
)

STOCK = WhisperConfig(d_model=32, decoder_layers=2, encoder_layers=2, max_source_positions=30, max_target_positions=40)


def score(wer: float | None, **fields) -> dict:
    interval = None if wer is None else [wer - 0.01, wer + 0.02]
    counts = {"utterances": 7, "wer": wer, "wer_interval": interval, "cer": wer, "suspect": 1, "real_time_factor": 0.25}
    return {**counts, "substitutions": 1, "deletions": 2, "insertions": 3, **fields}


def model(name: str, config, wer: float, datasets=("a",), languages=("en",), peak=None) -> dict:
    parts = {code: score(wer) for code in languages}
    scores = {
        "overall": score(wer),
        "datasets": {dataset: score(wer, languages=parts) for dataset in datasets},
        "languages": parts,
    }
    return {**describe_model(name, config, torch.float32, 1, peak), "scores": scores}


@pytest.fixture
def report() -> dict:
    peak = PeakMemory(5_000_000, "somewhere")
    paired = {"difference": 0.01, "low": -0.02, "high": 0.03, "p_value": 0.0001, "better": 1, "worse": 2}
    part = {**paired, "same_transcripts": 4, "utterances": 7}
    return {
        "environment": environment("cpu", 2),
        "settings": {"confidence": 0.9, "resamples": 1000, "normalizer": "auto"},
        "normalizers": {"en": "english", "unknown": "basic"},
        "models": [
            model("org/stock", STOCK, 0.05, peak=peak),
            model("here/latent", WhisperMLAConfig.from_whisper_config(STOCK, kv_rank=8, cross_kv_rank=4), 0.06),
        ],
        "comparisons": [{"model": "here/latent", "against": "org/stock", "overall": part, "datasets": {"a": part}}],
        "unreadable": [],
    }


def test_description_of_models(report):
    stock, latent = report["models"]
    assert stock["cache_bytes"] == {"self_attention": 20480, "cross_attention": 15360, "total": 35840}
    assert latent["cache_bytes"] == {"self_attention": 2560, "cross_attention": 480, "total": 3040}
    assert stock["ranks"] is None and latent["ranks"]["kv"] == [8, 8]
    assert (latent["model_type"], latent["dtype"], latent["peak_memory"]) == ("whisper_mla", "float32", None)


def test_tables(report):
    errors, comparison, cost = report_tables(report)
    assert errors.rows[0] == ["org/stock", "a", "7", "5.00", "4.00 to 7.00", "5.00", "1 / 2 / 3", "1"]
    assert errors.columns[4] == "90% interval"
    assert comparison.title.endswith("org/stock")
    assert comparison.rows == [["here/latent", "a", "+1.00", "-2.00 to +3.00", "< 0.001", "1 / 2", "4 of 7"]]
    assert [row[2:] for row in cost.rows] == [
        ["0.04 MB", "0 %", "0.250", "5 MB"],
        ["0.00 MB", "-91.5%", "0.250", "not measured"],
    ]
    assert len(report_tables({**report, "comparisons": []})) == 2


def test_rows_of_several_datasets_and_languages(report):
    report["models"] = [model("m", STOCK, 0.1, datasets=("a", "b"), languages=("de", "en"))]
    rows = report_tables(report)[0].rows
    assert [row[1] for row in rows] == ["a", "a, de", "a, en", "b", "b, de", "b, en", "all, de", "all, en", "all"]


def test_notes(report):
    text = " ".join(report_notes(report))
    assert "english (en), basic (language not given)" in text and "90% percentile" in text and "1,000" in text
    assert "Memory: somewhere." in text and "could not be read" not in text and "spelling table" not in text
    report["unreadable"] = [{"dataset": "a", "id": f"{i}.wav", "error": "bad"} for i in range(7)]
    report["normalizers"] = {"en": "basic"}
    text = " ".join(report_notes(report))
    assert "7 audio files could not be read and are left out (a: 0.wav, " in text and ", …)" in text
    assert "no tokenizer here has a spelling table" in text


def test_files(report, tmp_path):
    paths = write_report(report, tmp_path, "name")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["name.json", "name.md", "name.png"]
    assert json.loads(paths[0].read_text()) == report
    text = paths[1].read_text()
    assert report["environment"]["command"] in text and "2 process(es)" in text
    assert "| here/latent | a | 7 | 6.00 | 5.00 to 8.00 |" in text
    assert paths[2].read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_plot_shows_every_model_and_survives_a_missing_rate(report, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn, named = [], []
    errorbar, text = Axes.errorbar, Axes.text
    monkeypatch.setattr(Axes, "errorbar", lambda self, x, y, **k: drawn.append((x, y)) or errorbar(self, x, y, **k))
    monkeypatch.setattr(Axes, "text", lambda self, x, y, s, **k: named.append(s) or text(self, x, y, s, **k))
    write_report(report, tmp_path, "name")
    assert drawn == [([0.03584, 0.00304], [5.0, 6.0])]
    assert named == ["stock", "latent"]
    report["models"][1]["scores"]["datasets"]["a"].update(score(None))
    write_report(report, tmp_path, "name")
    assert drawn[1] == ([0.03584], [5.0])
