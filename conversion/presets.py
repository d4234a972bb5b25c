"""Named settings for people who do not want to choose between ranks and bits."""

from collections.abc import Mapping
from typing import Any

# What each gave on real weights: accuracy_tiny_en.md, accuracy_base.md, and of the last accuracy_tiny_en_mixed.md and
# accuracy_base_mixed.md, in benchmarks/results.
PRESETS: dict[str, dict[str, Any]] = {
    "lossless": {},
    "near-lossless": {"latent_dtype": "int8"},
    "small": {"latent_dtype": "int4"},
    "smallest": {"latent_dtype": "mixed"},
}
_SETTLED = ("kv_rank", "cross_kv_rank", "audio_kv_rank", "latent_dtype")


def with_preset(preset: str | None, latent_fields: Mapping[str, Any], has_budget: bool) -> dict[str, Any]:
    """The fields of a configuration that a preset stands for.

    Args:
        preset: of `PRESETS`: "lossless" keeps every token; "near-lossless" rounds latents to eight bits, "small" to
            four, "smallest" gives their directions 3.5 bits in the mean, for which it needs audio; all say what that
            costs. None changes nothing.
        latent_fields: as the user gave them.
        has_budget: whether a budget was given too.

    Raises:
        ValueError: an unknown preset, or one together with what it settles; a group size where nothing is rounded.
    """
    if preset not in (None, *PRESETS):
        raise ValueError(f"preset={preset!r}: expected one of {', '.join(map(repr, PRESETS))}.")
    settings = {} if preset is None else PRESETS[preset]
    given = [name for name in _SETTLED if latent_fields.get(name) is not None] or ["the budget"] * has_budget
    if given and preset is not None:
        raise ValueError(f"preset={preset!r} settles ranks and latent_dtype: leave out {given[0]}, or the preset.")
    fields = {**latent_fields, **settings}
    if "latent_group_size" in fields and not fields["latent_dtype"]:
        raise ValueError(
            f"latent_group_size={fields['latent_group_size']}: nothing is rounded without a latent_dtype. Give one, as "
            "'int8', or leave the size out."
        )
    return fields


__all__ = ["PRESETS", "with_preset"]
