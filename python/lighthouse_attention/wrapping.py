"""Lighthouse Attention in a Hugging Face decoder, in place: wrap, set_mode, unwrap.

The decoder's forward pre-hook decides for each forward pass whether Lighthouse applies, holds the inputs to what the
method covers, and tells the layers by a keyword argument, which transformers hands down to the attention function (and
which activation checkpointing repeats). Everything else goes to PyTorch's attention as if the model were not wrapped.
"""

import dataclasses
import inspect
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lighthouse_attention.config import LighthouseConfig
from lighthouse_attention.operators import TokenScores, select

Mode = Literal["lighthouse", "dense"]

_IMPLEMENTATION = "lighthouse"
_STATE = "_lighthouse"
_QK_NORMS = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"), ("query_layernorm", "key_layernorm"))
_CHANGES_ATTENTION = ("sliding_window", "softcap", "s_aux", "position_bias")
_DOCUMENT_BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens")


class UnsupportedError(ValueError):
    """A training forward pass asked Lighthouse for what the method does not cover."""


def wrap(
    model: nn.Module,
    config: LighthouseConfig | None = None,
    dense_layers: Iterable[int] = (0, 1, -2, -1),
    *,
    crossover: int = 0,
) -> "Wrapping":
    """Has a Hugging Face decoder train with Lighthouse Attention, in place.

    Training forward passes use it in every layer with full causal attention but the dense ones. Evaluation, generation,
    and sequences over which it cannot pay run the model's own attention. No parameter, buffer or state-dict key is added.

    Args:
        model: A `PreTrainedModel`, or a module that holds one (DistributedDataParallel, a PEFT model), with the "sdpa"
            attention implementation. Wrap before `torch.compile` and before distributing it.
        config: The settings; the paper's, if not given. Its scale stays None: the model has its own.
        dense_layers: Layers that stay dense, negative ones counted from the last; the first and last two in the paper.
        crossover: Below so many tokens the model stays dense.

    Returns:
        What was wrapped; as a context manager it unwraps at the end.

    Raises:
        TypeError: The model is not a Hugging Face one, or its attention does not go through AttentionInterface.
        ValueError: Naming the argument, its value and what it must be.
    """
    config = config or LighthouseConfig()
    if config.scale is not None:
        raise ValueError(f"config.scale is {config.scale}; it must be None, since the model has a scale of its own")
    if crossover < 0:
        raise ValueError(f"crossover is {crossover}; it must be at least 0")
    if wrapped(model):
        raise ValueError("the model is wrapped already; unwrap it first")
    decoder, attentions = _find_decoder(model)
    _check_decoder(decoder, attentions)
    layers = _lighthouse_layers(attentions, list(dense_layers))
    AttentionInterface.register(_IMPLEMENTATION, _attention_forward)
    AttentionMaskInterface.register(_IMPLEMENTATION, _mask)
    decoder.set_attn_implementation(_IMPLEMENTATION)
    if decoder.config._attn_implementation != _IMPLEMENTATION:
        raise TypeError(f"{type(decoder).__name__} does not take its attention from AttentionInterface")
    return Wrapping(decoder, {i: attentions[i] for i in layers}, config, crossover)


def unwrap(model: nn.Module) -> None:
    """Undoes `wrap`: the model is what it was, its weights aside.

    Warns where it was trained with Lighthouse and with nothing else since.

    Raises:
        ValueError: The model is not wrapped.
    """
    _wrapping(model).unwrap()


def wrapped(model: nn.Module) -> bool:
    """Whether the model, or one within it, is wrapped."""
    return _find_wrapping(model) is not None


def set_mode(model: nn.Module, mode: Mode) -> None:
    """Switches a wrapped model between stage 1, "lighthouse", and stage 2, "dense", at any step.

    Raises:
        ValueError: The model is not wrapped, or there is no such mode.
    """
    _wrapping(model).set_mode(mode)


class Wrapping:
    """A wrapped model's decoder, its Lighthouse layers and their mode; `wrap` makes it."""

    def __init__(
        self, decoder: PreTrainedModel, layers: dict[int, nn.Module], config: LighthouseConfig, crossover: int
    ) -> None:
        self.decoder = decoder
        self.layers = layers
        """The attention modules that train with Lighthouse, by the index of their layer."""
        self.config = config
        self.crossover = crossover
        self.mode: Mode = "lighthouse"
        self._parameters = list(inspect.signature(decoder.forward).parameters)
        self._trained_lighthouse = self._trained_dense = self._warned = False
        self._said: set[str] = set()
        self._handles = [
            decoder.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            decoder.register_forward_hook(_after_forward, always_call=True),
            decoder.register_state_dict_pre_hook(_before_saving),  # type: ignore[no-untyped-call]
        ]
        setattr(decoder, _STATE, self)
        for module in layers.values():
            setattr(module, _STATE, _Layer(self, module))

    def __enter__(self) -> "Wrapping":
        return self

    def __exit__(self, *raised: object) -> None:
        self.unwrap()

    def __repr__(self) -> str:
        return f"Wrapping({type(self.decoder).__name__}, layers={list(self.layers)}, mode={self.mode!r}, {self.config})"

    def set_mode(self, mode: Mode) -> None:
        """As the function of this name."""
        if mode not in ("lighthouse", "dense"):
            raise ValueError(f"mode is {mode!r}; it must be 'lighthouse' or 'dense'")
        self.mode = mode

    def uses_lighthouse(self, tokens: int) -> bool:
        """Whether a training forward pass over so many tokens would compute Lighthouse now."""
        return self.mode == "lighthouse" and not self._dense_because(tokens)

    def unwrap(self) -> None:
        """As the function of this name; nothing where it is undone already."""
        if getattr(self.decoder, _STATE, None) is not self:
            return
        self.warn_without_dense_stage("unwrapped")
        for module in self.layers.values():
            getattr(module, _STATE).remove()
            delattr(module, _STATE)
        delattr(self.decoder, _STATE)
        for handle in self._handles:
            handle.remove()
        self.decoder.set_attn_implementation("sdpa")

    def _before_forward(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not decoder.training:
            return None
        if self.decoder.config._attn_implementation != _IMPLEMENTATION:
            raise UnsupportedError(
                f"the attention implementation was changed to {self.decoder.config._attn_implementation!r} while the "
                "model is wrapped: unwrap it first"
            )
        given = dict(zip(self._parameters, args)) | kwargs
        inputs = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
        if inputs is None or given.get("past_key_values") is not None:
            return None
        reason = self._dense_because(inputs.shape[1])
        lighthouse = self.mode == "lighthouse" and not reason
        if torch.is_grad_enabled():
            if lighthouse:
                self._trained_lighthouse = True
                self._trained_dense = False
            else:
                self._trained_dense = True
        if self.mode == "lighthouse" and reason and not torch.compiler.is_compiling():
            self._say(f"dense attention over {inputs.shape[1]} tokens: {reason}")
        if lighthouse:
            _refuse_masks(given)
            _forward.without_mask = self.decoder.config
            _forward.awaits_lighthouse = True
            return args, {**kwargs, _IMPLEMENTATION: True}
        if all(given.get(name) is None for name in ("attention_mask", "position_ids", *_DOCUMENT_BOUNDS)):
            _forward.without_mask = self.decoder.config
        return None

    def _dense_because(self, tokens: int) -> str:
        reason: str = _dense_because(tokens, self.crossover, *self.config.arguments())
        return reason

    def warn_without_dense_stage(self, done: str) -> None:
        """Warns, once, where the model was trained with Lighthouse and with nothing else since."""
        if self._trained_lighthouse and not self._trained_dense and not self._warned:
            self._warned = True
            warnings.warn(
                f"the model is {done} after training with Lighthouse alone: its dense loss is better after a second "
                "stage, set_mode(model, 'dense') and some more steps, which is part of the method",
                stacklevel=2,
            )

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            warnings.warn(text, stacklevel=2)


class _Layer:
    """One attention module that trains with Lighthouse, and its scores between normalization and attention."""

    def __init__(self, wrapping: Wrapping, module: nn.Module) -> None:
        self.wrapping = wrapping
        self.norms_q: Tensor | None = None
        self.norms_k: Tensor | None = None
        self._handles = []
        for names in _QK_NORMS if wrapping.config.scorer == "norm" else ():
            for name, keep in zip(names, (self._keep_q, self._keep_k)):
                if _normalizes_heads(getattr(module, name, None), module):
                    self._handles.append(getattr(module, name).register_forward_pre_hook(keep))
        self._normalized = bool(self._handles)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def scores(self, query: Tensor, key: Tensor) -> TokenScores | None:
        """Norms of what went into the normalization of q and k; None where nothing normalizes them by head."""
        if not self._normalized:
            return None
        norms_q, norms_k = self.norms_q, self.norms_k
        self.norms_q = self.norms_k = None
        return TokenScores(_by_heads(norms_q, query), _by_heads(norms_k, key))

    def _keep_q(self, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        if norm.training and self.wrapping.mode == "lighthouse":
            self.norms_q = _norms(args[0])

    def _keep_k(self, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        if norm.training and self.wrapping.mode == "lighthouse":
            self.norms_k = _norms(args[0])


@dataclasses.dataclass
class _Forward:
    """The forward pass under way. The mask function learns of it by this alone."""

    without_mask: object = None
    """The model configuration of a training forward pass of which it is known that plain causal attention is right."""
    awaits_lighthouse: bool = False
    """Whether a layer should compute Lighthouse and none has yet."""


_forward = _Forward()


def _after_forward(decoder: nn.Module, args: object, out: object) -> None:
    missed, _forward.awaits_lighthouse = _forward.awaits_lighthouse, False
    _forward.without_mask = None
    if missed and out is not None and not torch.compiler.is_compiling():
        raise UnsupportedError(
            f"no layer of {type(decoder).__name__} computed Lighthouse Attention: its layers do not hand keyword "
            "arguments down to attention"
        )


def _before_saving(decoder: nn.Module, *_: object) -> None:
    getattr(decoder, _STATE).warn_without_dense_stage("saved")


def _mask(*, config: object = None, use_vmap: bool = False, local_size: int | None = None, **kwargs: Any) -> Any:
    """transformers' own mask, but where it is known beforehand that none is needed.

    Tracing, transformers cannot see that, and would form all N x N of it.
    """
    if config is not None and config is _forward.without_mask and not use_vmap and local_size is None:
        return None
    return sdpa_mask(config=config, use_vmap=use_vmap, local_size=local_size, **kwargs)


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    lighthouse: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls. q (B, H, N, D), k and v (B, G, N, D) -> (B, N, H, D)"""
    layer: _Layer | None = getattr(module, _STATE, None)
    if layer is None or not lighthouse:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    _refuse_options(attention_mask, dropout, kwargs)
    if not torch.compiler.is_compiling():
        _forward.awaits_lighthouse = False
    config, scores = layer.wrapping.config, layer.scores(query, key)
    selection = (None, None) if scores is None else select(query, key, value, config, scores)
    out = torch.ops.lighthouse.attention(query, key, value, *config.arguments()[:-1], scaling, *selection)
    return out.transpose(1, 2), None


def _refuse_masks(given: dict[str, Any]) -> None:
    """Holds a forward pass's arguments to one whole sequence in each row of the batch."""
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        _require(
            mask.bool().all(),
            "attention_mask masks tokens, and Lighthouse Attention knows no padding: train on full sequences",
        )
    elif isinstance(mask, Tensor) and mask.dim() != 4:
        raise UnsupportedError(
            f"attention_mask has {mask.dim()} dimensions; Lighthouse Attention takes (batch, tokens)"
        )
    if isinstance(positions, Tensor):
        _require(
            (positions.diff(dim=-1) == 1).all(),
            "position_ids start anew within a row, and Lighthouse Attention knows no packed documents: leave "
            "position_ids out, so that attention crosses documents, or give each its own row",
        )
    for name in _DOCUMENT_BOUNDS:
        if given.get(name) is not None and given[name].numel() > 2:
            raise UnsupportedError(
                f"{name} bounds {given[name].numel() - 1} documents, and Lighthouse Attention knows no packed "
                "documents: leave it out, so that attention crosses them, or give each its own row"
            )


def _refuse_options(attention_mask: Tensor | None, dropout: float, options: dict[str, Any]) -> None:
    if attention_mask is not None:
        raise UnsupportedError(
            f"attention_mask of shape {tuple(attention_mask.shape)} reached the attention; Lighthouse Attention is "
            "causal and knows no other mask: train on full sequences without one"
        )
    if dropout != 0:
        raise UnsupportedError(
            f"attention dropout is {dropout}; Lighthouse Attention has none: set attention_dropout of the model's "
            "config, and of its attention modules, to 0"
        )
    for name in _CHANGES_ATTENTION:
        if options.get(name) is not None:
            raise UnsupportedError(
                f"the model's attention has {name}, which Lighthouse Attention does not know: name its layers in "
                "dense_layers"
            )
    if options.get("is_causal") is False:
        raise UnsupportedError("is_causal is False; Lighthouse Attention is causal: leave it out")


def _require(condition: Tensor, message: str) -> None:
    """Raises where it can wait for the value; else has the device assert it."""
    if torch.compiler.is_compiling() or (condition.is_cuda and torch.cuda.is_current_stream_capturing()):
        torch._assert_async(condition, message)
    elif not condition:
        raise UnsupportedError(message)


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def _dense_because(tokens: int, crossover: int, *settings: Any) -> str:
    """Why Lighthouse cannot pay over so many tokens; empty where it can."""
    if tokens < crossover:
        return f"below the crossover of {crossover}"
    try:
        rows = torch.ops.lighthouse.gathered_rows(tokens, *settings)
    except ValueError as error:
        return str(error)
    return f"the gathered sequence would have {rows} rows" if rows >= tokens else ""


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x.detach(), dim=-1, dtype=torch.float32)
    return norms


def _by_heads(norms: Tensor | None, like: Tensor) -> Tensor:
    """(B, N, heads), (B, heads, N), or (B, N) of the one head -> (B, heads, N); norms of `like` where there are none."""
    if norms is None:
        return _norms(like)
    batch, heads, tokens, _ = like.shape
    if norms.shape == (batch, tokens):
        return norms.unsqueeze(1)
    if heads == tokens:
        raise UnsupportedError(f"the model has as many heads as there are tokens, {heads}: use another length")
    if norms.shape == (batch, tokens, heads):
        return norms.transpose(1, 2).contiguous()
    if norms.shape == (batch, heads, tokens):
        return norms
    raise UnsupportedError(
        f"what the model normalizes has norms of the shape {tuple(norms.shape)}; expected one of each of {heads} heads "
        f"and {tokens} tokens: use the scorer 'dilated'"
    )


def _normalizes_heads(norm: Any, attention: nn.Module) -> bool:
    weight = getattr(norm, "weight", None)
    return isinstance(weight, Tensor) and weight.shape[-1] == getattr(attention, "head_dim", None)


def _find_decoder(model: nn.Module) -> tuple[PreTrainedModel, list[nn.Module]]:
    """The decoder, and the attention modules of its layers in their order."""
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


def _causal_attentions(decoder: nn.Module) -> list[nn.Module]:
    found = [
        module
        for module in decoder.modules()
        if getattr(module, "is_causal", False) and isinstance(getattr(module, "layer_idx", None), int)
    ]
    return sorted(found, key=lambda module: int(module.layer_idx))  # type: ignore[arg-type]


def _check_decoder(decoder: PreTrainedModel, attentions: Sequence[nn.Module]) -> None:
    name = type(decoder).__name__
    if decoder.config.is_encoder_decoder or getattr(decoder.config, "add_cross_attention", False):
        raise TypeError(f"{name} has cross-attention, whose masks wrap does not know; it must be a decoder alone")
    found = decoder.config._attn_implementation
    if found != "sdpa":
        raise ValueError(
            f"{name} has the attention implementation {found!r}; it must be 'sdpa': call "
            "model.set_attn_implementation('sdpa') first"
        )
    for module in decoder.modules():
        if module is decoder or module in attentions or any(child in attentions for child in module.children()):
            kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
            if inspect.Parameter.VAR_KEYWORD not in kinds and not isinstance(module, nn.ModuleList):
                raise TypeError(f"{type(module).__name__} of {name} does not hand keyword arguments down to attention")


def _lighthouse_layers(attentions: Sequence[nn.Module], dense_layers: list[int]) -> list[int]:
    count = len(attentions)
    for index in dense_layers:
        if not -count <= index < count:
            raise ValueError(f"dense_layers holds {index}; the model has {count} layers, 0 to {count - 1}")
    dense = {index % count for index in dense_layers}
    windows = {i for i, module in enumerate(attentions) if _sliding_window(module) is not None}
    layers = [i for i in range(count) if i not in dense | windows]
    if not layers:
        sliding = f" and {len(windows)} attend over a sliding window" if windows else ""
        raise ValueError(
            f"dense_layers is {tuple(dense_layers)}, which leaves no layer to Lighthouse: the model has {count}{sliding}"
        )
    return layers


def _sliding_window(attention: nn.Module) -> int | None:
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window  # type: ignore[return-value]
    return getattr(attention.config, "sliding_window", None)


def _find_wrapping(model: nn.Module) -> Wrapping | None:
    for module in model.modules():
        state = getattr(module, _STATE, None)
        if isinstance(state, Wrapping):
            return state
    return None


def _wrapping(model: nn.Module) -> Wrapping:
    state = _find_wrapping(model)
    if state is None:
        raise ValueError(f"{type(model).__name__} is not wrapped")
    return state
