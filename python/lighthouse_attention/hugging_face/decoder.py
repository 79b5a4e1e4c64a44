"""Which modules of a model `wrap` works on: its decoder, and the layers that train with Lighthouse."""

import inspect
from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from lighthouse_attention.config import LighthouseConfig
from lighthouse_attention.plan import default_dense_layers, dense_layers_of


def find_decoder(model: nn.Module) -> tuple[PreTrainedModel, dict[int, nn.Module]]:
    """The decoder, and its causal attention modules by the index of their layer."""
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    if not models:
        raise TypeError(f"model is a {type(model).__name__}; it must be, or hold, a transformers PreTrainedModel")
    innermost = [m for m in models if not any(isinstance(c, PreTrainedModel) for c in m.modules() if c is not m)]
    decoders = {decoder: attentions for decoder in innermost if (attentions := _causal_attentions(decoder))}
    if len(decoders) != 1:
        raise TypeError(
            f"{type(model).__name__} holds {len(decoders)} decoders with causal self-attention; it must hold one"
        )
    return next(iter(decoders.items()))


def _causal_attentions(decoder: nn.Module) -> dict[int, nn.Module]:
    found: dict[int, nn.Module] = {}
    for module in decoder.modules():
        index = getattr(module, "layer_idx", None)
        if getattr(module, "is_causal", False) and isinstance(index, int):
            if index in found:
                raise TypeError(f"{type(decoder).__name__} has several attention modules in layer {index}")
            found[index] = module
    return dict(sorted(found.items()))


def check_decoder(decoder: PreTrainedModel, attentions: dict[int, nn.Module]) -> None:
    name = type(decoder).__name__
    if decoder.config.is_encoder_decoder or getattr(decoder.config, "add_cross_attention", False):
        raise TypeError(f"{name} has cross-attention, which wrap does not support; it must be a decoder alone")
    if not decoder._supports_sdpa:
        raise TypeError(
            f"{name} cannot be wrapped: transformers does not offer 'sdpa' for it, PyTorch's attention, which cannot "
            "compute what its layers need, such as a soft cap or attention sinks; nor can Lighthouse Attention"
        )
    found = decoder.config._attn_implementation
    if found != "sdpa":
        raise ValueError(
            f"{name} has the attention implementation {found!r}; it must be 'sdpa': call "
            "model.set_attn_implementation('sdpa') first"
        )
    on_the_way = set(attentions.values())
    for module in decoder.modules():
        if module is decoder or module in on_the_way or not on_the_way.isdisjoint(module.children()):
            kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
            if inspect.Parameter.VAR_KEYWORD not in kinds and not isinstance(module, nn.ModuleList):
                raise TypeError(
                    f"{type(module).__name__} of {name} does not hand keyword arguments down to attention, as wrap needs"
                )


def lighthouse_layers(
    attentions: dict[int, nn.Module], count: int, dense_layers: Iterable[int] | None, config: LighthouseConfig
) -> dict[int, int]:
    """The layers that train with Lighthouse, and the place of each among those with full attention, dense ones included."""
    default = dense_layers is None
    if not default and isinstance(dense_layers, Iterable):
        dense_layers = tuple(dense_layers)  # it may be an iterator
    dense = dense_layers_of(dense_layers, count, config)
    full = [i for i, module in attentions.items() if _sliding_window(module) is None]
    layers = {i: place for place, i in enumerate(full) if i not in dense}
    if not layers:
        others = "".join(
            f", {number} of them {what}"
            for number, what in (
                (len(attentions) - len(full), "with a sliding window"),
                (count - len(attentions), "without causal attention"),
            )
            if number
        )
        raise ValueError(
            f"dense_layers is {default_dense_layers(config) if default else dense_layers}"
            f"{' (the default)' if default else ''}, which leaves no layer to Lighthouse: the model has {count} layers{others}"
        )
    return layers


def check_shareable(decoder: PreTrainedModel, attentions: dict[int, nn.Module]) -> None:
    """Raises ValueError where a layer is not of full causal attention, which would see the tokens of one process alone."""
    others = not_full(decoder, attentions)
    if others:
        index = min(others)
        raise ValueError(
            f"layer {index} of {type(decoder).__name__} has {others[index]}; with context_group all layers must have full "
            "causal attention, since others would see the tokens of one process alone"
        )


def not_full(decoder: PreTrainedModel, attentions: dict[int, nn.Module]) -> dict[int, str]:
    """What layers have in place of full causal attention, by their index."""
    kinds = getattr(decoder.config, "layer_types", None) or []
    others = {i: kind for i, kind in enumerate(kinds) if kind != "full_attention"}
    others |= {i: "sliding_attention" for i, module in attentions.items() if _sliding_window(module) is not None}
    layers = range(decoder.config.num_hidden_layers)
    return others | {i: "no causal attention" for i in layers if i not in attentions | others}


def _sliding_window(attention: nn.Module) -> int | None:
    """Its length; None where there is none, which some configs write as 0."""
    holder = attention if hasattr(attention, "sliding_window") else attention.config
    return getattr(holder, "sliding_window", None) or None
