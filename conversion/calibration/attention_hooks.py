"""Hooks that show what the attentions of a stock model read, and the gradient with respect to it."""

from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import Tensor

from whisper_mla.conversion.source.latents import input_name


class AttentionHooks:
    """While it is entered, calls back at every attention of a forward pass and collects gradients of a backward pass.

    Args:
        attentions: by module name.
        on_input: called with the place (`input_name`) and `x`, once per place.
        on_query: called with the attention's name and its queries, not yet scaled.
        gradients: collect them too.

    Attributes:
        slopes: by place, `[batch, positions, d]`: the gradient with respect to `x` through keys and values, of all
            attentions that read it. Clear it before a backward pass.
    """

    def __init__(
        self,
        attentions: dict[str, Any],
        on_input: Callable[[str, Tensor], None],
        on_query: Callable[[str, Tensor], None] | None = None,
        gradients: bool = True,
    ):
        self._attentions, self._on_input, self._on_query, self._gradients = attentions, on_input, on_query, gradients
        self._handles: list = []
        self.slopes: dict[str, Tensor] = {}

    def __enter__(self) -> "AttentionHooks":
        for name, attention in self._attentions.items():
            if self._on_query is not None:
                self._handles.append(attention.q_proj.register_forward_hook(self._see_query(name)))
            self._handles.append(attention.k_proj.register_forward_hook(self._see_projection(name, is_key=True)))
            self._handles.append(attention.v_proj.register_forward_hook(self._see_projection(name, is_key=False)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _see_query(self, name: str) -> Callable:
        def hook(module, arguments, output):
            assert self._on_query is not None
            self._on_query(name, output.detach())

        return hook

    def _see_projection(self, name: str, is_key: bool) -> Callable:
        place = input_name(name)
        is_first = place == name or name.startswith("model.decoder.layers.0.")  # all cross-attentions read the same

        def hook(module, arguments, output):
            if is_key and is_first:
                self._on_input(place, arguments[0].detach())
            if self._gradients:
                weight = module.weight.detach()
                output.requires_grad_()

                def add(slope):  # to the gradient with respect to the projection's input
                    self.slopes[place] = self.slopes.get(place, 0) + (slope @ weight).double()

                output.register_hook(add)

        return hook
