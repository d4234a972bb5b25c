import pytest
import torch
from transformers import pipeline

from whisper_mla import WhisperMLAASRPipeline, WhisperMLAForConditionalGeneration

pytestmark = pytest.mark.usefixtures("encode_once")


@pytest.fixture(scope="module")
def folder(digits, processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("exact")
    WhisperMLAForConditionalGeneration.from_whisper(digits).save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture
def pipelines(folder, digits_folder):
    """Fresh ones: word timestamps change a model's attention for good."""
    return [
        pipeline("automatic-speech-recognition", model=str(path), dtype=torch.float32)
        for path in (folder, digits_folder)
    ]


WAYS = {
    "plain": {},
    "timestamps": {"return_timestamps": True},
    "words": {"return_timestamps": "word"},
    "chunks": {"chunk_length_s": 10},
    "chunks, words": {"chunk_length_s": 10, "return_timestamps": "word"},
    "language and task": {"generate_kwargs": {"language": "en", "task": "transcribe", "num_beams": 1}},
}


@pytest.mark.parametrize("way", WAYS)
def test_one_file_and_a_batch(pipelines, clips, way):
    files = [clips[name]["samples"] for name in ("clip00", "clip04", "clip03")]
    ours, stock = pipelines
    assert ours(files[0].copy(), **WAYS[way]) == stock(files[0].copy(), **WAYS[way])
    batch = ours([file.copy() for file in files], batch_size=2, **WAYS[way])
    assert batch == stock([file.copy() for file in files], batch_size=2, **WAYS[way])
    assert [result["text"].strip() for result in batch] == [clips[n]["text"] for n in ("clip00", "clip04", "clip03")]


def test_language_of_one_file(pipelines, clips):
    """Of one only: the stock pipeline fails on the language of a batch."""
    ours, stock = (p(clips["clip00"]["samples"].copy(), return_language=True) for p in pipelines)
    assert ours == stock


@pytest.mark.parametrize("way", [{"return_timestamps": True}, {"return_timestamps": "word"}], ids=str)
def test_long_form(pipelines, clips, way):
    ours, stock = (p(clips["long"]["samples"].copy(), **way) for p in pipelines)
    assert ours == stock
    assert len(ours["text"].split()) > 30


def test_chunked_long_audio_in_batches(pipelines, clips):
    way = {"chunk_length_s": 10, "batch_size": 3}
    ours, stock = (p(clips["long"]["samples"].copy(), **way) for p in pipelines)
    assert ours == stock


def test_a_file_path(pipelines, clips):
    assert pipelines[0](str(clips["clip00"]["path"]))["text"].strip() == clips["clip00"]["text"]


@pytest.mark.parametrize("of_the_assistant", [None, torch.float16])
def test_an_assistant_by_name(folder, digits_folder, processor, digits, tmp_path, clips, of_the_assistant):
    model = WhisperMLAForConditionalGeneration.from_whisper(digits, kv_rank=64, cross_kv_rank=128)
    model.to(of_the_assistant or model.dtype).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    plain, stock, ours = (
        pipeline("automatic-speech-recognition", model=str(folder), dtype=torch.float32, assistant_model=assistant)
        for assistant in (None, str(digits_folder), str(tmp_path))
    )
    assert ours.assistant_model.config.model_type == "whisper_mla" and ours.assistant_model.dtype == torch.float32
    assert stock.assistant_model.config.model_type == "whisper"
    expected = plain(clips["clip00"]["samples"].copy())
    assert all(p(clips["clip00"]["samples"].copy()) == expected for p in (stock, ours))


def test_stock_whisper_is_decoded_as_before(pipelines):
    ours, stock = pipelines
    assert isinstance(ours, WhisperMLAASRPipeline)
    assert ours.type == stock.type == "seq2seq_whisper"
    assert ours.model.config.model_type == "whisper_mla"
    assert stock.model.config.model_type == "whisper"
