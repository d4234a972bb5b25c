import json

import matplotlib.image
import pytest

from whisper_mla.conversion import from_whisper, write_report


def test_report_and_picture(tiny, tiny_statistics, tmp_path):
    model = from_whisper(tiny, cache_cut=0.85, audio_kv_rank=8, calibration=tiny_statistics, force=True)
    write_report(model.conversion_report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.png"]
    written = json.loads((tmp_path / "report.json").read_text())
    assert written == json.loads(json.dumps(model.conversion_report))
    assert written["cache"]["model_bytes"] <= 0.15 * written["cache"]["stock_bytes"]
    height, width, _ = matplotlib.image.imread(tmp_path / "report.png").shape
    assert width > 1000 and height > 300


def test_without_calibration_errors_are_unknown(tiny, tmp_path):
    model = from_whisper(tiny, kv_rank=8, preserved_key_dims=1)
    report = model.conversion_report
    assert report["quality"] is None and report["calibration"] is None
    assert all(latent["score_error"] is None and latent["vectors"] is None for latent in report["latents"])
    assert all(0 < latent["retained_energy"] < 1 for latent in report["latents"])
    write_report(report, tmp_path)
    assert matplotlib.image.imread(tmp_path / "report.png").size


def test_an_exact_conversion_has_a_report_without_picture(tiny, tmp_path):
    write_report(from_whisper(tiny).conversion_report, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["method"] == "exact" and report["latents"] == []
    assert report["cache"]["model_bytes"] < report["cache"]["stock_bytes"] == 4 * (40 + 30) * 128


def test_a_folder_that_is_not_there(tiny, tmp_path):
    with pytest.raises(FileNotFoundError):
        write_report(from_whisper(tiny).conversion_report, tmp_path / "nothing")
