"""vLLM asks for a class for each quantization method that a config.json names. Ours says why there is none."""

from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from ..int8_weights import METHOD
from .refusals import INT8_WEIGHTS


def register_refusal() -> None:
    """Let vLLM answer a checkpoint with our int8 weights with a sentence."""
    register_quantization_config(METHOD)(Int8WeightsRefusal)


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
