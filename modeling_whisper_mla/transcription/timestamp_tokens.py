"""Which token ids are times, whatever a tokenizer lists."""

from dataclasses import dataclass

COUNT = 1501
SECONDS = 0.02


@dataclass(frozen=True)
class TimestampTokens:
    """The 1,501 ids from 0.00 to 30.00 s that follow the id of `<|notimestamps|>`.

    Tokenizers saved before autumn 2023 do not list them, so their text is no way to know them. Ids behind them are
    ordinary added tokens.

    Attributes:
        first: the id of 0.00 s.
    """

    first: int

    def __contains__(self, token: int) -> bool:
        return self.first <= token < self.first + COUNT

    def seconds(self, token: int) -> float:
        """The time of a token, counted from the beginning of its window."""
        return (token - self.first) * SECONDS


def timestamp_tokens(generation_config) -> TimestampTokens | None:
    """Those of a model; None if its generation config has no `no_timestamps_token_id`."""
    before = getattr(generation_config, "no_timestamps_token_id", None)
    return None if before is None else TimestampTokens(before + 1)
