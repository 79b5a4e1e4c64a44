"""Lighthouse Attention in a Hugging Face decoder, in place: wrap, set_mode, unwrap.

The decoder's forward pre-hook decides for each forward pass whether Lighthouse applies, holds the inputs to what the
method covers, and tells the layers by a keyword argument, which transformers hands down to the attention function (and
which activation checkpointing repeats). Everything else goes to PyTorch's attention as if the model were not wrapped.
"""

import dataclasses
import inspect
import re
import threading
import warnings
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils.import_utils import is_tracing

from lighthouse_attention import _check
from lighthouse_attention.config import LighthouseConfig
from lighthouse_attention.operators import TokenScores, select

Mode = Literal["lighthouse", "dense"]

_IMPLEMENTATION = "lighthouse"
_STATE = "_lighthouse"
_TAKEN_IN = "_lighthouse_norms"
_QK_NORM = re.compile("(q|k|qk|query|key)_(layer_?)?norm")
_ATTENTION_DROPOUT = re.compile("att.*drop")
_LEAST_DEVIATION = 0.003
"""Of norms, beside their mean, at least: above what rounding in bfloat16 makes of equal ones."""
_DENSE_LAYERS = (0, 1, -2, -1)
_CHANGES_ATTENTION = {
    "sliding_window": "a sliding window",
    "softcap": "a soft cap",
    "s_aux": "attention sinks",
    "position_bias": "a bias by position",
}
"""Options of transformers' attention functions that change what is computed, and what they are."""
_DOCUMENT_BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens")


class UnsupportedError(ValueError):
    """A training forward pass asked Lighthouse for what the method does not cover."""


def wrap(
    model: nn.Module,
    config: LighthouseConfig | None = None,
    dense_layers: Iterable[int] = _DENSE_LAYERS,
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
        dense_layers: Layers that stay dense, by their index, negative ones counted from the last; the first and last two
            in the paper.
        crossover: Below so many tokens the model stays dense.

    Returns:
        What was wrapped; as a context manager it unwraps at the end.

    Raises:
        TypeError: The model is not a Hugging Face one, or its attention does not go through AttentionInterface.
        ValueError: Naming the argument, its value and what it must be.
    """
    _check.instance("model", model, nn.Module)
    config = LighthouseConfig() if config is None else config
    _check.instance("config", config, LighthouseConfig)
    if config.scale is not None:
        raise ValueError(f"config.scale is {config.scale}; it must be None: the model has a scale of its own")
    _check.integer("crossover", crossover, least=0)
    if wrapped(model):
        raise ValueError("the model is wrapped already; unwrap it first")
    decoder, attentions = _find_decoder(model)
    _check_decoder(decoder, attentions)
    layers = _lighthouse_layers(attentions, decoder.config.num_hidden_layers, dense_layers)
    if config.scorer == "norm":
        _check_norms({i: attentions[i] for i in layers})
    decoder.set_attn_implementation(_IMPLEMENTATION)
    if decoder.config._attn_implementation != _IMPLEMENTATION:
        raise TypeError(f"{type(decoder).__name__} does not take its attention from transformers' AttentionInterface")
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
            layer = _Layer(self, _qk_norms(module) if config.scorer == "norm" else [])
            setattr(module, _STATE, layer)
            layer.handles = [module.register_forward_pre_hook(_before_attention, with_kwargs=True)]
            layer.handles += [norm.register_forward_pre_hook(_keep_norms) for norm in layer.normalizations(module)]

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
            layer: _Layer = getattr(module, _STATE)
            for handle in layer.handles:
                handle.remove()
            for norm in layer.normalizations(module):
                norm.__dict__.pop(_TAKEN_IN, None)
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
        if inputs is None:
            return None
        cached = any(_is_cache(value) for value in given.values())
        reason = ""
        if self.mode == "lighthouse":
            # With Lighthouse compiled code is for one length: len(range()) has the compiler guard it.
            tokens = len(range(inputs.shape[1]))
            short = self._dense_because(tokens)
            reason = (
                ": a cache of keys and values was passed in" if cached else short and f" over {tokens} tokens: {short}"
            )
        lighthouse = self.mode == "lighthouse" and not reason
        if torch.is_grad_enabled():
            if lighthouse:
                self._trained_lighthouse = True
                self._trained_dense = False
            else:
                self._trained_dense = True
            if reason:
                self.say(f"dense attention{reason}")
        if lighthouse:
            _refuse_masks(given)
            _forward.awaits_lighthouse = True
        masks = ("attention_mask", "position_ids", *_DOCUMENT_BOUNDS)
        plain = lighthouse or (not cached and all(given.get(name) is None for name in masks))
        if plain and is_tracing(inputs):
            _forward.without_mask = self.decoder.config
        return (args, {**kwargs, _IMPLEMENTATION: True}) if lighthouse else None

    def _dense_because(self, tokens: int) -> str:
        return _dense_because(tokens, self.crossover, **dataclasses.asdict(self.config))

    def warn_without_dense_stage(self, done: str) -> None:
        """Warns, once, where the model was trained with Lighthouse and with nothing else since."""
        if self._trained_lighthouse and not self._trained_dense and not self._warned:
            self._warned = True
            warnings.warn(
                f"the model is {done} after training with Lighthouse alone: its dense loss is better after a second "
                "stage, set_mode(model, 'dense') and some more steps, which is part of the method",
                stacklevel=2,
            )

    def say(self, text: str) -> None:
        """Warns of it, once; compiled code is silent."""
        if not torch.compiler.is_compiling() and text not in self._said:
            self._said.add(text)
            warnings.warn(text, stacklevel=2)


@dataclasses.dataclass
class _Layer:
    """What an attention module that trains with Lighthouse knows of it."""

    wrapping: Wrapping
    norms: list[str]
    """Names of its submodules that normalize q, k, or first q and then k."""
    handles: list[Any] = dataclasses.field(default_factory=list)
    vetted: bool = False
    """Whether norms of q and k were seen to differ."""

    def normalizations(self, attention: nn.Module) -> list[nn.Module]:
        """Of the attention module that is running, which may be a replica."""
        return [attention.get_submodule(name) for name in self.norms]


class _Forward(threading.local):
    """The forward pass under way in this thread. The mask function learns of it by this alone."""

    def __init__(self) -> None:  # defaults of the class would be what torch.compile reads
        self.without_mask: object = None
        """The model configuration of a traced training forward pass of which plain causal attention is right."""
        self.awaits_lighthouse = False
        """Whether a layer should compute Lighthouse and none has yet."""


_forward = _Forward()


_traced: list[bool] = []
"""Not empty once a layer with Lighthouse was compiled: in this process it is not seen any more whether one ran."""


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def _note_traced() -> bool:
    _traced.append(True)
    return True


def _after_forward(decoder: nn.Module, args: object, out: object) -> None:
    missed, _forward.awaits_lighthouse = _forward.awaits_lighthouse, False
    _forward.without_mask = None
    if missed and out is not None and not _traced and not torch.compiler.is_compiling():
        raise UnsupportedError(
            f"no layer of {type(decoder).__name__} computed Lighthouse Attention: its layers do not hand keyword "
            "arguments down to attention, so that the model cannot be trained with it; unwrap it"
        )


def _before_saving(decoder: nn.Module, *_: object) -> None:
    getattr(decoder, _STATE).warn_without_dense_stage("saved")


def _before_attention(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """In a pass with Lighthouse, has what normalizes q and k keep the norms of what it takes in."""
    for norm in getattr(attention, _STATE).normalizations(attention):
        setattr(norm, _TAKEN_IN, () if kwargs.get(_IMPLEMENTATION) else None)


def _keep_norms(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
    taken_in = getattr(norm, _TAKEN_IN, None)
    if taken_in is not None:
        setattr(norm, _TAKEN_IN, (*taken_in, *(_norms(x) for x in args)))


def _is_cache(value: object) -> bool:
    """Whether it holds keys and values of earlier tokens; one of transformers', or what behaves like one."""
    return isinstance(value, Cache) or (hasattr(value, "update") and hasattr(value, "get_seq_length"))


def _mask(
    *,
    mask_function: Any,
    q_length: int,
    kv_length: int,
    config: object = None,
    use_vmap: bool = False,
    local_size: int | None = None,
    **kwargs: Any,
) -> Any:
    """transformers' own mask, but where it is traced and it is known beforehand that none is needed.

    Tracing, transformers cannot see that, and would form all N x N of it: of the causal mask and, since it cannot see
    that the positions are of one document either, of an "and" of it with one of documents.
    """
    plain = mask_function.__name__ in ("causal_mask_function", "and_mask") and not use_vmap and local_size is None
    if plain and q_length == kv_length and config is not None and config is _forward.without_mask:
        return None
    return sdpa_mask(
        mask_function=mask_function,
        q_length=q_length,
        kv_length=kv_length,
        config=config,
        use_vmap=use_vmap,
        local_size=local_size,
        **kwargs,
    )


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
    of_queries = key.shape[2] == query.shape[2] == value.shape[2]
    if layer is not None and lighthouse:
        if torch.compiler.is_compiling():
            _note_traced()
        else:
            _forward.awaits_lighthouse = False
        if not of_queries:
            layer.wrapping.say(
                f"dense attention in layer {module.layer_idx}: it has {query.shape[2]} queries and {key.shape[2]} keys"
            )
    if layer is None or not lighthouse or not of_queries:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    _refuse_options(module, attention_mask, dropout, kwargs)
    config, scores = layer.wrapping.config, _scores(module, query, key)
    if not torch.compiler.is_compiling() and config.scorer == "norm" and not layer.vetted:
        layer.vetted = _vet(scores or TokenScores(_norms(query), _norms(key)), value, module)
    rows, slots = (None, None) if scores is None else select(query, key, value, config, scores)
    settings = {**dataclasses.asdict(config), "scale": scaling}
    out = torch.ops.lighthouse.attention(query, key, value, **settings, rows=rows, slots=slots)
    return out.transpose(1, 2), None


def _refuse_masks(given: dict[str, Any]) -> None:
    """Holds a forward pass's arguments to one whole sequence in each row of the batch."""
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        _require(
            mask.bool().all(),
            "attention_mask masks tokens, and Lighthouse Attention does not support padding: train on full sequences",
        )
    elif isinstance(mask, Tensor) and mask.dim() != 4:
        raise UnsupportedError(f"attention_mask has {mask.dim()} dimensions; it must have 2, (batch, tokens)")
    if isinstance(positions, Tensor):
        _require(
            (positions.diff(dim=-1) == 1).all(),
            "position_ids restart within a row, and Lighthouse Attention does not support packed documents: leave "
            "position_ids out, so that attention crosses documents, or give each document its own row",
        )
    for name in _DOCUMENT_BOUNDS:
        if given.get(name) is not None and given[name].numel() > 2:
            raise UnsupportedError(
                f"{name} bounds {given[name].numel() - 1} documents, and Lighthouse Attention does not support packed "
                "documents: leave it out, so that attention crosses documents, or give each document its own row"
            )


def _refuse_options(
    attention: nn.Module, attention_mask: Tensor | None, dropout: float, options: dict[str, Any]
) -> None:
    """Holds what reaches a layer's attention to plain causal attention."""
    if attention_mask is not None:
        raise UnsupportedError(
            f"attention_mask of shape {tuple(attention_mask.shape)} reached the attention of layer "
            f"{attention.layer_idx}; Lighthouse Attention is causal and supports no other mask: train on full sequences "
            "without one, or, where the layer itself attends over chunks, name it in dense_layers"
        )
    if dropout != 0:
        config = getattr(attention, _STATE).wrapping.decoder.config.to_dict()
        keys = ", ".join(f"{key}=0.0" for key, value in config.items() if _ATTENTION_DROPOUT.search(key) and value)
        loading = f"load the model with from_pretrained(..., {keys}), or " if keys else ""
        raise UnsupportedError(
            f"attention dropout is {dropout}, which Lighthouse Attention does not support: {loading}set the dropout of "
            "its attention modules to 0"
        )
    for name, meaning in _CHANGES_ATTENTION.items():
        if options.get(name) is not None:
            raise UnsupportedError(
                f"the attention of layer {attention.layer_idx} has {meaning} ({name}), which Lighthouse Attention does "
                "not support: name the layer in dense_layers"
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
def _dense_because(tokens: int, crossover: int, **settings: Any) -> str:
    """Why Lighthouse cannot pay over so many tokens; empty where it can."""
    if tokens < crossover:
        return f"below the crossover of {crossover}"
    reason: str = torch.ops.lighthouse.dense_because(tokens, **settings)
    return reason


def _norms(x: Tensor) -> Tensor:
    """In float32; taken in the type of x where that is wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(x.detach(), dim=-1, dtype=wide)
    return norms.float()


def _scores(attention: nn.Module, query: Tensor, key: Tensor) -> TokenScores | None:
    """Norms of what went into the normalization of q and k by head; None where nothing normalizes them by head."""
    layer: _Layer = getattr(attention, _STATE)
    found: dict[str, Tensor] = {}
    for name, norm in zip(layer.norms, layer.normalizations(attention)):
        sides = "qk" if name.startswith("qk_") else name[0]
        taken_in = getattr(norm, _TAKEN_IN, None) or ()
        setattr(norm, _TAKEN_IN, None)
        if len(taken_in) != len(sides):
            raise UnsupportedError(
                f"{name} of layer {attention.layer_idx} took in {len(taken_in)} tensors where {len(sides)} were expected, "
                "so that there are no norms to score by: name the layer in dense_layers, or use the scorer 'dilated'"
            )
        for side, norms in zip(sides, taken_in):
            by_heads = _by_heads(norms, query if side == "q" else key)
            if by_heads is not None:
                found[side] = by_heads
    if not found:
        return None
    return TokenScores(found["q"] if "q" in found else _norms(query), found["k"] if "k" in found else _norms(key))


def _by_heads(norms: Tensor, like: Tensor) -> Tensor | None:
    """(B, N, heads), (B, heads, N), or (B, N) of one head -> (B, heads, N); None where all heads have one norm."""
    batch, heads, tokens, _ = like.shape
    if norms.shape == (batch, tokens):
        return norms.unsqueeze(1) if heads == 1 else None
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


@torch.no_grad()
def _vet(scores: TokenScores, value: Tensor, attention: nn.Module) -> bool:
    """Norms that are equal where tokens are not say nothing: something normalizes q or k out of sight.

    Returns:
        Whether it could be seen: tensors without data show nothing, nor do tokens that are all alike, as of a dry run.
    """
    capturing = value.is_cuda and torch.cuda.is_current_stream_capturing()
    if value.is_meta or isinstance(value, FakeTensor) or capturing:
        return False
    steps = value.diff(dim=2).abs().amax(-1) > _LEAST_DEVIATION * value.abs().max()
    if steps.float().mean() < 0.5:
        return False
    for side, norms in zip("qk", scores):
        deviation, mean = torch.std_mean(norms, dim=-1)
        if (deviation < _LEAST_DEVIATION * mean).all():
            raise UnsupportedError(
                f"all {side} of layer {attention.layer_idx} have the same norm, so that the scorer 'norm' cannot tell "
                "them apart: name the layer in dense_layers, or use the scorer 'dilated'"
            )
    return True


def _find_decoder(model: nn.Module) -> tuple[PreTrainedModel, dict[int, nn.Module]]:
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


def _check_decoder(decoder: PreTrainedModel, attentions: dict[int, nn.Module]) -> None:
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
                raise TypeError(f"{type(module).__name__} of {name} does not hand keyword arguments down to attention")


def _lighthouse_layers(attentions: dict[int, nn.Module], count: int, dense_layers: Iterable[int]) -> list[int]:
    if not isinstance(dense_layers, Iterable):
        raise TypeError(f"dense_layers is {dense_layers!r}; it must be the indices of layers, such as (0, -1)")
    dense_layers = tuple(dense_layers)
    for index in dense_layers:
        _check.integer("dense_layers holds an index that", index)
        if not -count <= index < count and dense_layers != _DENSE_LAYERS:
            raise ValueError(
                f"dense_layers holds {index}; the model has {count} layers, so that it must be from {-count} to {count - 1}"
            )
    dense = {index % count for index in dense_layers}
    windows = {i for i, module in attentions.items() if _sliding_window(module) is not None}
    layers = [i for i in attentions if i not in dense | windows]
    if not layers:
        others = "".join(
            f", {number} of them {what}"
            for number, what in (
                (len(windows), "with a sliding window"),
                (count - len(attentions), "without causal attention"),
            )
            if number
        )
        default = " (the default)" if dense_layers == _DENSE_LAYERS else ""
        raise ValueError(
            f"dense_layers is {dense_layers}{default}, which leaves no layer to Lighthouse: the model has "
            f"{count} layers{others}"
        )
    return layers


def _qk_norms(attention: nn.Module) -> list[str]:
    return [name for name, _ in attention.named_children() if _QK_NORM.fullmatch(name)]


def _check_norms(attentions: dict[int, nn.Module]) -> None:
    for index, attention in attentions.items():
        sides = "".join("qk" if name.startswith("qk_") else name[0] for name in _qk_norms(attention))
        if sorted(sides) not in ([], ["k", "q"]):
            raise ValueError(
                f"layer {index} normalizes {_qk_norms(attention)} of q and k, so that the scorer 'norm' has no norms of the "
                "other: name the layer in dense_layers, or use the scorer 'dilated'"
            )


def _sliding_window(attention: nn.Module) -> int | None:
    """Its length; None where there is none, which some configs write as 0."""
    holder = attention if hasattr(attention, "sliding_window") else attention.config
    return getattr(holder, "sliding_window", None) or None


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


# At import: a wrapped model that was pickled is one again where it is loaded.
AttentionInterface.register(_IMPLEMENTATION, _attention_forward)
AttentionMaskInterface.register(_IMPLEMENTATION, _mask)
