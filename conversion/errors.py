"""What goes wrong with a source or a target, said in one line."""


class ConversionError(ValueError):
    """A checkpoint that cannot be converted, exported or written. The message names the cause and the remedy."""
