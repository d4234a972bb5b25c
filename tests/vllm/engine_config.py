"""What vLLM says to command lines before it starts a process: `python engine_config.py JOBS OUTPUT`.

JOBS is a JSON list of the arguments of `vllm serve`, each a list; OUTPUT gets the sentence of each refusal, or null
where vLLM would start.
"""

import json
import sys


def main(jobs_file: str, output: str) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    said = []
    with open(jobs_file) as file:
        jobs = json.load(file)
    for arguments in jobs:
        parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
        try:
            AsyncEngineArgs.from_cli_args(parser.parse_args(arguments)).create_engine_config()
            said.append(None)
        except (ValueError, NotImplementedError, OSError) as refusal:
            said.append(str(refusal))
    with open(output, "w") as file:
        json.dump(said, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
