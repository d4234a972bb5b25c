"""The configuration of a Whisper model with multi-head latent attention."""

from transformers import WhisperConfig

# What a field accepts, said once for every error message.
_RANK_RANGE = "an integer from 1 to d_model ({d_model}), where d_model means exact"


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
    def cross_latent_is_encoder_output(self) -> bool:
        """Whether cross-attention reads the encoder output itself rather than a projection of it."""
        return all(rank == self.d_model for rank in self.cross_kv_ranks)

    @property
    def cross_latent_width(self) -> int:
        """Values kept per audio frame for cross-attention, all layers together, when `cross_cache="latent"`."""
        if self.cross_latent_is_encoder_output:
            return self.d_model
        ranks = self.cross_kv_ranks
        return ranks[0] if self.cross_kv_shared else sum(ranks)

    @classmethod
    def from_whisper_config(cls, config: WhisperConfig, **latent_fields) -> "WhisperMLAConfig":
        """Describe the conversion of a stock model.

        Args:
            config: the configuration of the stock Whisper model. It is not modified.
            latent_fields: any of `kv_rank`, `cross_kv_rank`, `cross_kv_shared`, `audio_kv_rank`, `cross_cache`.

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
        new._name_or_path = config._name_or_path
        return new

    def to_whisper_config(self) -> WhisperConfig:
        """The configuration of the stock model with the same outputs (see `to_whisper`)."""
        fields = self.to_dict()
        for field in ("model_type", "architectures", "transformers_version", "auto_map", *LATENT_FIELDS):
            fields.pop(field, None)
        return WhisperConfig(**fields)


LATENT_FIELDS = ("kv_rank", "cross_kv_rank", "cross_kv_shared", "audio_kv_rank", "cross_cache")

__all__ = ["LATENT_FIELDS", "WhisperMLAConfig"]
