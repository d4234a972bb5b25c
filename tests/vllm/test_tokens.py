"""vLLM gives the tokens of our Transformers model: greedy, float32, clips and prompts of mixed lengths in one batch."""

import pytest

from tests.vllm.conftest import decode_with_vllm, greedy
from whisper_mla import WhisperMLAForConditionalGeneration

pytest.importorskip("vllm", reason="needs the [vllm] extra")
pytestmark = pytest.mark.vllm

# Every kind of latent that vLLM holds, tensor-parallel processes, blocks: of a cache in which requests have to give
# theirs back and begin again, and drafted tokens. Encoder ranks, which vLLM holds at full rank, go with the third.
SERVED = {
    "exact": ({}, 1, 53, 0),
    "shared": ({"kv_rank": 64, "cross_kv_rank": 96}, 2, 0, 0),
    "per_layer": (
        {
            "kv_rank": [64, 48, 128, 256],
            "cross_kv_rank": [64, 256, 32, 48],
            "cross_kv_shared": False,
            "audio_kv_rank": [128, 256, 96, 200],
        },
        1,
        0,
        2,
    ),
}
CLIPS = ("clip00", "clip03", "clip04", "clip07")


def prompts(processor) -> list[list[int]]:
    """Without timestamps, with them, after a previous text, and for a language and task of its own."""
    ids = processor.tokenizer.convert_tokens_to_ids
    start, task = [ids("<|startoftranscript|>"), ids("<|en|>")], ids("<|transcribe|>")
    previous = [ids("<|startofprev|>"), *processor.tokenizer(" one two three", add_special_tokens=False).input_ids]
    return [
        [*start, task, ids("<|notimestamps|>")],
        [*start, task],
        [*previous, *start, task, ids("<|notimestamps|>")],
        [start[0], ids("<|de|>"), ids("<|translate|>"), ids("<|notimestamps|>")],
    ]


@pytest.mark.parametrize("name", SERVED)
def test_vllm_decodes_as_transformers_does(name, digits, processor, clips, tmp_path):
    ranks, processes, blocks, draft = SERVED[name]
    model = WhisperMLAForConditionalGeneration.from_whisper(digits, **ranks)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    jobs, expected = [], []
    for clip in CLIPS:
        features = processor(clips[clip]["samples"], sampling_rate=16_000, return_tensors="pt").input_features
        for prompt in prompts(processor):
            jobs.append({"audio": str(clips[clip]["path"]), "prompt": prompt, "max_tokens": 60})
            expected.append(greedy(model, features, prompt, 60))
    found = decode_with_vllm(tmp_path / "model", jobs, tmp_path, processes, blocks, draft)
    assert found["tokens"] == expected
    assert (found["preemptions"] > 0, found["drafted"] > 0) == (blocks > 0, draft > 0)
    # They are not all the same, and some stop by themselves: what is compared depends on audio and prompt.
    assert len({tuple(tokens) for tokens in expected}) >= 8
    assert any(tokens[-1] == model.generation_config.eos_token_id for tokens in expected)
