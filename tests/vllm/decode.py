"""Decode clips with vLLM in a process of its own: `python decode.py FOLDER JOBS OUTPUT PROCESSES BLOCKS DRAFT`.

JOBS is a JSON list of {"audio": a wav file, "prompt": token ids, "max_tokens": number}; OUTPUT gets a list of token id
lists, how often a request had to give its blocks back, and how many drafted tokens were right. PROCESSES: of tensor
parallelism; BLOCKS: of the cache, 0: enough; DRAFT: tokens that vLLM guesses ahead, from what was said before.
"""

import json
import sys

import soundfile


def main(folder: str, jobs_file: str, output: str, processes: str, blocks: str, draft: str) -> None:
    from vllm import LLM, SamplingParams

    with open(jobs_file) as file:
        jobs = json.load(file)
    guess = {"method": "ngram", "num_speculative_tokens": int(draft), "prompt_lookup_min": 1, "prompt_lookup_max": 2}
    llm = LLM(
        model=folder,
        dtype="float32",
        max_num_seqs=8,
        max_num_batched_tokens=1500,
        kv_cache_memory_bytes=64 << 20,
        num_gpu_blocks_override=int(blocks) or None,
        disable_log_stats=False,
        enforce_eager=True,
        limit_mm_per_prompt={"audio": 1},
        tensor_parallel_size=int(processes),
        speculative_config=guess if int(draft) else None,
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

    def counted(name: str) -> int:
        return sum(metric.value for metric in llm.get_metrics() if metric.name == name)

    found = {"preemptions": counted("vllm:num_preemptions"), "drafted": counted("vllm:spec_decode_num_accepted_tokens")}
    with open(output, "w") as file:
        json.dump(found | {"tokens": [list(output.outputs[0].token_ids) for output in outputs]}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
