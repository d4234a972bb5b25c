"""Decode clips with vLLM in a process of its own: `python decode.py FOLDER JOBS OUTPUT`.

JOBS is a JSON list of {"audio": a wav file, "prompt": token ids, "max_tokens": number}; OUTPUT gets a list of token id
lists, and what vLLM says of its cache.
"""

import json
import sys

import soundfile


def main(folder: str, jobs_file: str, output: str, *options: str) -> None:
    from vllm import LLM, SamplingParams

    with open(jobs_file) as file:
        jobs = json.load(file)
    llm = LLM(
        model=folder,
        dtype="float32",
        max_num_seqs=4,
        max_num_batched_tokens=1500,
        kv_cache_memory_bytes=64 << 20,
        enforce_eager=True,
        limit_mm_per_prompt={"audio": 1},
        tensor_parallel_size=int(options[0]) if options else 1,
    )
    prompts = [
        {
            "encoder_prompt": {
                "prompt": "",
                "multi_modal_data": {"audio": soundfile.read(job["audio"], dtype="float32")},
            },
            "decoder_prompt": {"prompt_token_ids": job["prompt"]},
        }
        for job in jobs
    ]
    # Whisper's lists of forbidden tokens are no part of vLLM: the comparison is of plain greedy decoding.
    params = [SamplingParams(temperature=0, max_tokens=job["max_tokens"]) for job in jobs]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    cache = llm.llm_engine.vllm_config.cache_config
    said = {"num_gpu_blocks": cache.num_gpu_blocks, "block_size": cache.block_size}
    with open(output, "w") as file:
        json.dump({"tokens": [list(found.outputs[0].token_ids) for found in outputs], "cache": said}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
