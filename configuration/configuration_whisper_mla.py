"""The configuration of a Whisper model with multi-head latent attention."""

from typing import Any

from transformers import WhisperConfig

# What a field accepts, said once for every error message.
_RANK_RANGE = "an integer from 1 to d_model ({d_model}), where d_model means exact"
# Bits of a code for each dtype of rounded latents.
LATENT_BITS = {"int8": 8, "int4": 4}
# Both latents have groups of bits of their own, `kv_bits` and `cross_kv_bits`.
MIXED = "mixed"


class WhisperMLAConfig(WhisperConfig):
    """A [`WhisperConfig`] plus the ranks of the latents that attention stores.

    Every latent has one size, its rank: the number of values cached per position. The full rank, `d_model`, is exact
    (the latent is the layer's input itself, nothing is factorised); a smaller one is a low-rank approximation.

    Args:
        kv_rank (`int` or `list[int]`, *optional*):
            Decoder self-attention: values cached per text position, one number for all decoder layers or one per layer.
            `None` means exact in every layer.
        cross_kv_rank (`int` or `list[int]`, *optional*):
            Cross-attention: values kept per audio frame. `None` means exact: every layer attends to the encoder output
            itself, which is kept once per audio. A list (one rank per decoder layer) needs `cross_kv_shared=False`.
        cross_kv_shared (`bool`, defaults to `True`):
            With a `cross_kv_rank`: one latent shared by all decoder layers, or one latent per layer.
        audio_kv_rank (`int` or `list[int]`, *optional*):
            Encoder self-attention, one number or one per encoder layer. It caches nothing; a rank makes its key and
            value projections smaller. `None` means stock attention.
        cross_cache (`str`, defaults to `"latent"`):
            `"latent"`, or `"key_value"`: every decoder layer caches full keys and values of the audio, as stock Whisper
            does (the variant of the Whisper-MLA paper, arXiv 2603.00563).
        latent_dtype (`str` or `list[str | None]`, *optional*):
            What cached latents are stored in: `None`, the model's dtype; `"int8"` or `"int4"`, rounded in groups that
            share a scale and a minimum in float16 (see `latent_quantization.py`). One for all, or two: of the text
            (decoder self-attention) and of the audio (cross-attention). Or `"mixed"`: both latents hold their
            principal directions, in groups that have bits of their own (see `mixed_quantization.py`).
        kv_bits (`list[list[int]]`, *optional*):
            With `latent_dtype="mixed"`: for each decoder layer the bits of each group of its latent, 1 to 8. The
            layer's `kv_rank` is their number times `latent_group_size`; `d_model` is not exact here.
        cross_kv_bits (`list[int]`, *optional*):
            The same of the latent of the audio, which all layers share, and `cross_kv_rank`.
        latent_group_size (`int`, defaults to 32):
            Values in a group, a power of two from 4 that divides the width of every rounded latent. With 32 a value
            takes 9 bits in int8 and 5 in int4, with 64 half a bit less. For `"mixed"` at least 8. Where latents are
            rounded anew and no size is given, by a conversion, by `from_pretrained(exact, latent_dtype=…)` or by
            `generate`, it is `fitting_group_size`.

    The fields must not begin with "decoder" or "encoder": `get_text_config(decoder=True)` renames such fields.

    Raises:
        ValueError: a field of the wrong type, out of range, of the wrong length, or of an unknown value. The message
            names the field, its value and what is allowed.
    """

    model_type = "whisper_mla"

    kv_rank: int | list[int] | None = None
    cross_kv_rank: int | list[int] | None = None
    cross_kv_shared: bool = True
    audio_kv_rank: int | list[int] | None = None
    cross_cache: str = "latent"
    latent_dtype: str | list[str | None] | None = None
    kv_bits: list[list[int]] | None = None
    cross_kv_bits: list[int] | None = None
    latent_group_size: int = 32

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self._check_rank("kv_rank", self.decoder_layers, "decoder")
        self._check_rank("cross_kv_rank", self.decoder_layers, "decoder")
        self._check_rank("audio_kv_rank", self.encoder_layers, "encoder")
        if not isinstance(self.cross_kv_shared, bool):
            raise ValueError(f"cross_kv_shared={self.cross_kv_shared!r}: expected True or False.")
        if self.cross_cache not in ("latent", "key_value"):
            raise ValueError(f"cross_cache={self.cross_cache!r}: expected 'latent' or 'key_value'.")
        if self.cross_kv_shared and isinstance(self.cross_kv_rank, list):
            raise ValueError(
                f"cross_kv_rank={self.cross_kv_rank!r}: a latent shared by all layers has one rank. Give one integer, "
                "or cross_kv_shared=False for one latent per layer."
            )
        if self.cross_cache == "key_value" and self.cross_kv_rank is not None:
            raise ValueError(
                f"cross_kv_rank={self.cross_kv_rank!r} with cross_cache='key_value': full keys and values are cached "
                "whatever the rank. Use cross_cache='latent', or leave cross_kv_rank=None."
            )
        self._check_latent_dtype()

    def _check_rank(self, field: str, num_layers: int, stack: str):
        """Raise `ValueError` unless `field` is `None`, a rank, or one rank for each of the `stack`'s layers."""
        value = getattr(self, field)
        allowed = _RANK_RANGE.format(d_model=self.d_model)
        if isinstance(value, tuple):
            value = list(value)
            setattr(self, field, value)
        if value is None:
            return
        if isinstance(value, list) and len(value) != num_layers:
            raise ValueError(
                f"{field}={value!r}: a list needs one rank for each of the {num_layers} {stack} layers, "
                f"not {len(value)}."
            )
        for rank in value if isinstance(value, list) else [value]:
            if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= self.d_model:
                raise ValueError(
                    f"{field}={value!r}: expected None, or {allowed}, or a list of them, one for each of the "
                    f"{num_layers} {stack} layers."
                )

    def _check_latent_dtype(self):
        """Raise `ValueError` unless both latents have a known dtype, and groups that fit."""
        value, size = self.latent_dtype, self.latent_group_size
        if isinstance(value, tuple):
            value = self.latent_dtype = list(value)
        if value == MIXED or self.kv_bits is not None or self.cross_kv_bits is not None:
            self._check_mixed()
            return
        both = self.latent_dtypes
        if any(str(dtype).startswith(("fp8", "float8")) for dtype in both):
            raise ValueError(
                f"latent_dtype={value!r}: not offered, because 'int8', with its scales 8.5 bits per value, "
                "errs a fifth as much. Use 'int8'."
            )
        if len(both) != 2 or any(dtype not in (None, *LATENT_BITS) for dtype in both):
            raise ValueError(
                f"latent_dtype={value!r}: expected None (the model's dtype), {', '.join(map(repr, LATENT_BITS))}, or "
                f"two of these: of the text and of the audio; or {MIXED!r}."
            )
        if isinstance(size, bool) or not isinstance(size, int) or size < 4 or size & (size - 1):
            raise ValueError(f"latent_group_size={size!r}: expected a power of two from 4, such as 32.")
        if self.cross_cache == "key_value" and both[1] is not None:
            raise ValueError(
                f"latent_dtype={value!r} with cross_cache='key_value': there is no latent of the audio to round. Give "
                f"latent_dtype=[{both[0]!r}, None], or cross_cache='latent'."
            )
        fields = [("kv_rank", self.kv_ranks), ("cross_kv_rank", self.cross_kv_ranks)]
        for (field, ranks), dtype in zip(fields, both, strict=True):
            unfit = next((rank for rank in ranks if rank % size), None)
            if dtype is not None and unfit is not None:
                named = f"d_model={unfit}" if getattr(self, field) is None else f"{field}={getattr(self, field)!r}"
                raise ValueError(
                    f"latent_group_size={size}: does not divide {named}, and latent_dtype={value!r} rounds in such "
                    "groups. Give a group size that divides every rank, or ranks that are multiples of it."
                )

    def _check_mixed(self):
        """Raise `ValueError` unless the bits of mixed latents fit their ranks."""
        size = self.latent_group_size
        if self.latent_dtype != MIXED:
            raise ValueError(f"kv_bits, cross_kv_bits: belong to latent_dtype={MIXED!r}, not {self.latent_dtype!r}.")
        if self.kv_bits is None or self.cross_kv_bits is None:
            raise ValueError(f"latent_dtype={MIXED!r}: needs kv_bits and cross_kv_bits, which a conversion finds.")
        if isinstance(size, bool) or not isinstance(size, int) or size < 8 or size & (size - 1):
            raise ValueError(f"latent_group_size={size!r}: expected a power of two from 8, such as 32.")
        if self.cross_cache != "latent" or not self.cross_kv_shared:
            raise ValueError(f"latent_dtype={MIXED!r}: needs cross_cache='latent' and cross_kv_shared=True.")
        rows = [*self.kv_bits, self.cross_kv_bits]
        if any(type(bits) is not int or not 1 <= bits <= 8 for row in rows for bits in row):
            raise ValueError(f"kv_bits={self.kv_bits!r}, cross_kv_bits={self.cross_kv_bits!r}: expected 1 to 8 bits.")
        fields = [("kv_rank", self.kv_ranks, self.kv_bits), ("cross_kv_rank", self.cross_kv_ranks[:1], rows[-1:])]
        for field, ranks, found in fields:
            expected = [size * len(row) for row in found]
            if ranks != expected or not all(0 < rank <= self.d_model for rank in expected):
                raise ValueError(
                    f"{field}={getattr(self, field)!r}: with latent_group_size={size} the bits say {expected}, which "
                    f"must be within d_model={self.d_model}."
                )

    def _per_layer(self, rank: int | list[int] | None, num_layers: int) -> list[int]:
        return list(rank) if isinstance(rank, list) else [self.d_model if rank is None else rank] * num_layers

    @property
    def kv_ranks(self) -> list[int]:
        """Values cached per text position in each decoder layer; `d_model` where exact."""
        return self._per_layer(self.kv_rank, self.decoder_layers)

    @property
    def cross_kv_ranks(self) -> list[int]:
        """Width of the latent that each decoder layer's cross-attention reads; `d_model` where exact."""
        return self._per_layer(self.cross_kv_rank, self.decoder_layers)

    @property
    def audio_kv_ranks(self) -> list[int]:
        """Rank of each encoder layer's self-attention; `d_model` where it is stock."""
        return self._per_layer(self.audio_kv_rank, self.encoder_layers)

    @property
    def latent_dtypes(self) -> list[str | None]:
        """`latent_dtype` of the text's latents (decoder self-attention) and of the audio's (cross-attention)."""
        return list(self.latent_dtype) if isinstance(self.latent_dtype, list) else [self.latent_dtype] * 2

    @property
    def fitting_group_size(self) -> int:
        """The group size for `latent_dtype` where nobody gives one: 64 for int8 if it divides the ranks, else 32.

        Of eight bits groups of 64 cost real models no accuracy, of four they do."""
        fields = zip(self.latent_dtypes, (self.kv_ranks, self.cross_kv_ranks), strict=True)
        rounded = [(dtype, rank) for dtype, ranks in fields if dtype for rank in ranks]
        return 64 if rounded and all(dtype == "int8" and rank % 64 == 0 for dtype, rank in rounded) else 32

    @property
    def text_latent_bits(self) -> list[int | tuple[int, ...] | None]:
        """For each decoder layer the bits of a rounded value of its latents, without its share of scale and minimum;
        mixed: of each group; None: not rounded."""
        if self.latent_dtype == MIXED:
            return [tuple(row) for row in self.kv_bits or []]
        return [LATENT_BITS.get(self.latent_dtypes[0] or "")] * self.decoder_layers

    @property
    def audio_latent_bits(self) -> int | tuple[int, ...] | None:
        """The same of the audio's latent."""
        if self.latent_dtype == MIXED:
            return tuple(self.cross_kv_bits or [])
        return LATENT_BITS.get(self.latent_dtypes[1] or "")

    @property
    def cross_latent_is_encoder_output(self) -> bool:
        """Whether cross-attention reads the encoder output itself rather than a projection of it."""
        return self.latent_dtype != MIXED and all(rank == self.d_model for rank in self.cross_kv_ranks)

    @property
    def cross_latent_width(self) -> int:
        """Values kept per audio frame for cross-attention, all layers together, when `cross_cache="latent"`."""
        if self.cross_latent_is_encoder_output:
            return self.d_model
        ranks = self.cross_kv_ranks
        return ranks[0] if self.cross_kv_shared else sum(ranks)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As in Transformers; exact latents that are to be rounded get groups that fit.

        Args:
            config_dict: fields of a configuration.
            kwargs: fields instead of these, such as `latent_dtype`, and arguments that Transformers knows.
        """
        dtype = kwargs.get("latent_dtype")
        if dtype and not config_dict.get("latent_dtype") and "latent_group_size" not in kwargs:
            kwargs["latent_group_size"] = cls(**{**config_dict, "latent_dtype": dtype}).fitting_group_size
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def from_whisper_config(cls, config: WhisperConfig, **latent_fields) -> "WhisperMLAConfig":
        """Describe the conversion of a stock model.

        Args:
            config: the configuration of the stock Whisper model. It is not modified.
            latent_fields: any of `LATENT_FIELDS`; `latent_group_size` left out is `fitting_group_size`.

        Returns:
            WhisperMLAConfig: everything of `config`, plus the latent fields.

        Raises:
            ValueError: `config` is not of a stock Whisper, or a latent field is invalid.
        """
        if config.model_type != WhisperConfig.model_type:
            raise ValueError(f"config.model_type={config.model_type!r}: expected {WhisperConfig.model_type!r}.")
        fields = config.to_dict()
        for field in ("model_type", "architectures", "transformers_version", "auto_map"):
            fields.pop(field, None)
        # A stock configuration may hold anything under a name that only means something to us.
        fields = {
            name: value for name, value in fields.items() if hasattr(WhisperConfig, name) or not hasattr(cls, name)
        }
        new = cls(**fields, **latent_fields)
        if "latent_group_size" not in latent_fields:
            new.latent_group_size = new.fitting_group_size
        new._name_or_path = config._name_or_path
        return new

    def to_whisper_config(self) -> WhisperConfig:
        """The configuration of the stock model with the same outputs (see `to_whisper`)."""
        fields = self.to_dict()
        for field in ("model_type", "architectures", "transformers_version", "auto_map", *LATENT_FIELDS):
            fields.pop(field, None)
        return WhisperConfig(**fields)


LATENT_FIELDS = (
    "kv_rank",
    "cross_kv_rank",
    "cross_kv_shared",
    "audio_kv_rank",
    "cross_cache",
    "latent_dtype",
    "kv_bits",
    "cross_kv_bits",
    "latent_group_size",
)

__all__ = ["LATENT_FIELDS", "WhisperMLAConfig"]
