"""What vLLM asks about a model before any process is started: refusals, and how much audio is encoded at a time."""

from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

from ..int8_weights import METHOD
from .refusals import INT8_WEIGHTS, check_folder, check_served


def register_config(architecture: str) -> None:
    """Let vLLM ask [`ServedConfig`], and answer a checkpoint with our int8 weights with a sentence."""
    MODELS_CONFIG_MAP[architecture] = ServedConfig
    register_quantization_config(METHOD)(Int8WeightsRefusal)


class ServedConfig(VerifyAndUpdateConfig):
    """Called by vLLM with its whole configuration."""

    @staticmethod
    def verify_and_update_config(vllm_config) -> None:
        """Refuse what cannot be served, and let a step encode one audio.

        vLLM 0.32 hands encoder outputs to the model in the order in which requests were scheduled and writes them in
        that of the batch. The two differ where a request that had to give its blocks back begins again beside a new
        one, and each then heard the other's audio. The number is also the length of audio that vLLM plans its cache by.

        Raises:
            ValueError: see [`check_served`] and [`check_folder`].
        """
        model = vllm_config.model_config
        check_folder(model.model, model.tokenizer)
        config = model.hf_config
        cache = vllm_config.cache_config
        options = {
            "--enable-lora": vllm_config.lora_config,
            "--runner pooling": model.runner_type == "pooling",
            "--enable-prefix-caching": cache.enable_prefix_caching,
            "--kv-transfer-config": vllm_config.kv_transfer_config,
        }
        given = [option for option, value in options.items() if value]
        overridden = model.hf_overrides if isinstance(model.hf_overrides, dict) else {}
        parallel, scheduler = vllm_config.parallel_config.tensor_parallel_size, vllm_config.scheduler_config
        draft = vllm_config.speculative_config and vllm_config.speculative_config.method
        check_served(config, cache.cache_dtype, parallel, model.quantization, draft, given, overridden)
        scheduler.max_num_encoder_input_tokens = config.max_source_positions


class Int8WeightsRefusal(QuantizationConfig):
    """Raises `ValueError` as soon as it is made from a config."""

    @classmethod
    def get_name(cls) -> str:
        return METHOD

    @classmethod
    def get_supported_act_dtypes(cls) -> list:
        return []

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict) -> "QuantizationConfig":
        raise ValueError(INT8_WEIGHTS)

    def get_quant_method(self, layer, prefix: str):
        return None
