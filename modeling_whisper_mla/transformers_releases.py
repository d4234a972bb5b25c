"""What differs between Transformers releases: all of it, in one place. The rest of the code is written for the newest.

Differences are recognised by what is there, not by version numbers:

- The cache is the argument `cache` since 5.24 and was `past_key_values` before, in forwards, outputs and `generate`.
- `generate` runs the encoder in a method that was renamed in 5.16.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import transformers
from transformers import GenerationMixin
from transformers.models.whisper.modeling_whisper import WhisperAttention

# The releases that the tests are run with, as (major, minor). setup.cfg has the same bounds.
OLDEST_TESTED = (5, 15)
NEWEST_TESTED = (5, 24)
WORKING_RELEASES = "transformers>=5.15,<5.25"

_CACHE_NAMES = ("cache", "past_key_values")

# The name of the cache in the installed release: as an argument of forwards and in `generate`'s `model_kwargs`.
CACHE = next(name for name in _CACHE_NAMES if name in inspect.signature(WhisperAttention.forward).parameters)

# The method in which `generate` runs the encoder.
_ENCODER_STEPS = (
    "_prepare_text_encoder_decoder_kwargs_for_generation",
    "_prepare_encoder_decoder_kwargs_for_generation",
)
ENCODER_STEP = next(name for name in _ENCODER_STEPS if hasattr(GenerationMixin, name))

# Arguments of `generate` that arrive in `prepare_inputs_for_generation` where the way of decoding has no use for them:
# an assistant beside beams, the tokenizer of `stop_strings`. Stock forwards swallow them.
NOT_FOR_FORWARDS = frozenset({"assistant_model", "assistant_tokenizer", "tokenizer", "streamer"})

# Keywords that forwards hand down to others unread: what to return and keep. They mean nothing to the numbers.
_HANDED_DOWN = frozenset({"output_attentions", "output_hidden_states", "return_dict", "use_cache"})


def installed_release() -> tuple[int, int]:
    """Major and minor version of the installed Transformers."""
    major, minor = transformers.__version__.split(".")[:2]
    return int(major), int(minor)


def with_cache_name(arguments: dict[str, Any], name: str) -> dict[str, Any]:
    """`arguments` with the cache, under whichever name it was given, called `name`.

    Raises:
        TypeError: the cache was given under both names.
    """
    first, second = _CACHE_NAMES
    other = second if name == first else first
    if other not in arguments:
        return arguments
    if name in arguments:
        raise TypeError("cache and past_key_values are two names of one argument: give one of them.")
    arguments = dict(arguments)
    arguments[name] = arguments.pop(other)
    return arguments


def strict_forward(forward: Callable | None = None, *, like: Callable | None = None) -> Callable:
    """A forward that knows its keywords: the cache under either name, and nothing that would be ignored.

    Whisper's forwards take `**kwargs` and hand them down to attention, where a name that nobody knows is lost without
    a word. A release of Transformers that renames an argument would then change the tokens.

    Args:
        forward: a method; its named parameters are the known keywords. Left out: returns a decorator.
        like: the stock forward that `forward` overrides, naming only what it needs; the parameters of both are known,
            and positional arguments are those of `like`.

    Returns:
        Callable: the method with the same signature. It raises `TypeError` for an unknown keyword, named together with
        the Transformers version, and for a cache given under both names.
    """
    if forward is None:
        return functools.partial(strict_forward, like=like)
    own = inspect.signature(forward).parameters
    signature = _joined(inspect.signature(like), own) if like else inspect.signature(forward)
    names = [name for name in signature.parameters if name not in ("self", "kwargs")]
    cache = next((name for name in _CACHE_NAMES if name in own or name in names), None)
    known = _HANDED_DOWN | {*names, cache}

    @functools.wraps(forward)
    def checked(self, *args, **kwargs):
        if like is not None:
            if len(args) > len(names):
                raise TypeError(f"{type(self).__name__}.forward() takes {len(names)} arguments, not {len(args)}.")
            args, kwargs = (), dict(zip(names, args, strict=False), **kwargs)
        if cache is not None:
            kwargs = with_cache_name(kwargs, cache)
        for name in kwargs:
            if name not in known:
                raise TypeError(
                    f"{type(self).__name__}.forward() does not know the argument {name!r} and will not ignore it "
                    f"(Transformers {transformers.__version__}; tested: {WORKING_RELEASES})."
                )
        return forward(self, *args, **kwargs)

    checked.__signature__ = signature  # type: ignore[attr-defined]
    return checked


def _joined(stock: inspect.Signature, own: Mapping[str, inspect.Parameter]) -> inspect.Signature:
    """The signature of a stock forward with the parameters that an override adds."""
    *parameters, rest = stock.parameters.values()
    for name, parameter in own.items():
        if name not in (*stock.parameters, *_CACHE_NAMES):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    return stock.replace(parameters=[*parameters, rest])
