"""Lighthouse Attention in a Hugging Face decoder, in place: wrap, set_mode, unwrap.

The decoder's forward pre-hook decides for each forward pass whether Lighthouse applies, holds the inputs to what the
method covers, and tells the layers by a keyword argument, which transformers hands down to the attention function (and
which activation checkpointing repeats). Everything else goes to PyTorch's attention as if the model were not wrapped.
"""

import copy
import dataclasses
import inspect
import warnings
from collections.abc import Iterable
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.utils.import_utils import is_tracing

from lighthouse_attention import _check
from lighthouse_attention._documents import starts_of
from lighthouse_attention.config import LighthouseConfig
from lighthouse_attention.context import BOUNDS, bounds_in, dense_because
from lighthouse_attention.hugging_face import documents, interface, scores
from lighthouse_attention.hugging_face.decoder import (
    check_decoder,
    check_shareable,
    find_decoder,
    lighthouse_layers,
    not_full,
)
from lighthouse_attention.hugging_face.sharing import SHARED_TOKENS, Sharing
from lighthouse_attention.hugging_face.state import ATTRIBUTE, LIGHTHOUSE, Layer, Mode, Notices, this_thread, traced
from lighthouse_attention.hugging_face.unsupported import UnsupportedError, require

interface.register()  # at import: a wrapped model that was pickled is one again where it is loaded


def wrap(
    model: nn.Module,
    config: LighthouseConfig | None = None,
    dense_layers: Iterable[int] | None = None,
    *,
    crossover: int = 0,
    max_documents: int | None = None,
    context_group: dist.ProcessGroup | None = None,
    exchange: str = "auto",
) -> "Wrapping":
    """Has a Hugging Face decoder train with Lighthouse Attention, in place.

    Training forward passes use it in every layer with full causal attention but the dense ones. Evaluation, generation,
    and sequences over which it cannot pay run the model's own attention. No parameter, buffer or state-dict key is added.
    `set_mode` switches between the parts of a training run.

    In training, documents that are packed into a row do not see each other. They start where cu_seq_lens_q, cu_seq_lens_k
    or cu_seqlens say, or else where position_ids of (batch, tokens) restart or jump. Padding before and after the tokens
    of a row is kept apart by its attention_mask. Both need config.local > 0 and the scorer "norm", but in the dense mode;
    elsewhere they raise `UnsupportedError`.

    With a `context_group`, its processes share each sequence, and attend to all of it in every layer, every mode and in
    evaluation. Each calls the model with its own part of the tokens, which `lighthouse_attention.context.shard` cuts:
    zigzag or contiguous, by their position_ids, which must be given, and are checked. There are no caches then, nor
    generation. Documents start where cu_seq_lens_q of the whole row says; or by position_ids, if `max_documents` is given.

    Args:
        model: A `PreTrainedModel`, or a module that holds one (DistributedDataParallel, a PEFT model), with the "sdpa"
            attention implementation. Wrap before `torch.compile` and before distributing it.
        config: The settings; the paper's, if not given. Its scale stays None and its local_shift 0: the model has a
            scale of its own, and each layer a shift. Every second layer with full attention has its pieces shifted by
            half a piece (`LighthouseConfig.of_layer`).
        dense_layers: Layers that stay dense, by their index, negative ones counted from the last. If not given, none
            where config.local > 0, and the first and last two, as in the paper, where it is 0.
        crossover: The model stays dense over fewer tokens than this.
        max_documents: Documents that a row may hold, padding aside, 128 if not given; more raise. Shapes depend on it: each
            takes up to one row of the gathered sequence. Where processes share sequences and it is given, they gather
            position_ids in every forward pass without cu_seq_lens_q, and the host waits for them.
        context_group: The processes that share sequences; none do, if not given.
        exchange: How they exchange tokens, as `lighthouse_attention.context.context_attention` takes it.

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
    if config.local_shift != 0:
        raise ValueError(
            f"config.local_shift is {config.local_shift}; it must be 0: each layer gets a shift of its own"
        )
    _check.integer("crossover", crossover, least=0)
    if max_documents is not None:
        _check.integer("max_documents", max_documents, least=1)
    if wrapped(model):
        raise ValueError("the model is wrapped already; unwrap it first")
    decoder, attentions = find_decoder(model)
    check_decoder(decoder, attentions)
    places = lighthouse_layers(attentions, decoder.config.num_hidden_layers, dense_layers, config)
    layers = {i: attentions[i] for i in places}
    sharing = None
    if context_group is not None:
        check_shareable(decoder, attentions)
        heads = decoder.config.num_attention_heads
        kv_heads = getattr(decoder.config, "num_key_value_heads", None) or heads
        sharing = Sharing.of(context_group, exchange, heads, kv_heads)
    elif exchange != "auto":
        raise ValueError(
            f"exchange is {exchange!r}, and context_group is None: processes that share sequences exchange"
        )
    if config.scorer == "norm":
        scores.check_norms(layers)
    shared_config = _take_own_config(decoder) if sharing is not None else None
    decoder.set_attn_implementation(LIGHTHOUSE)
    if decoder.config._attn_implementation != LIGHTHOUSE:
        raise TypeError(f"{type(decoder).__name__} does not take its attention from transformers' AttentionInterface")
    without = sorted(set(range(decoder.config.num_hidden_layers)) - attentions.keys())
    others = not_full(decoder, attentions)
    wrapping = Wrapping(decoder, layers, places, config, crossover, max_documents, without, others, sharing)
    if sharing is not None:
        wrapping.watch_all(model, attentions, shared_config)
    return wrapping


def unwrap(model: nn.Module) -> None:
    """Undoes `wrap`: the model is what it was, its weights aside.

    Warns where it was trained, and not densely since.

    Raises:
        ValueError: The model is not wrapped.
    """
    _wrapping(model).unwrap()


def wrapped(model: nn.Module) -> bool:
    """Whether the model, or one within it, is wrapped."""
    return _find_wrapping(model) is not None


def sharing_of(model: nn.Module) -> Sharing | None:
    """The processes that share a wrapped model's sequences; None where none do."""
    wrapping = _find_wrapping(model)
    return None if wrapping is None else wrapping.sharing


def set_mode(model: nn.Module, mode: Mode, local: int | None = None) -> None:
    """Switches the attention that a wrapped model trains with, at any step.

    Args:
        model: As `wrap` took it.
        mode: "local" is attention inside the pieces of config.local tokens alone; "lighthouse", the mode after `wrap`, is
            Lighthouse Attention, with the pieces beside it where config.local > 0; "dense" is the model's own attention.
        local: Tokens of a piece from now on; as before, if not given. Only for models that were wrapped with pieces.

    Raises:
        ValueError: The model is not wrapped, there is no such mode, or there are no pieces.
    """
    _wrapping(model).set_mode(mode, local)


class Wrapping:
    """A wrapped model's decoder, its Lighthouse layers and their mode; `wrap` makes it."""

    def __init__(
        self,
        decoder: PreTrainedModel,
        layers: dict[int, nn.Module],
        places: dict[int, int],
        config: LighthouseConfig,
        crossover: int,
        max_documents: int | None,
        without_attention: list[int],
        not_full: dict[int, str],
        sharing: Sharing | None = None,
    ) -> None:
        self.decoder = decoder
        self.layers = layers
        """The attention modules that train with Lighthouse, by the index of their layer."""
        self.config = config
        self.crossover = crossover
        self.max_documents = 128 if max_documents is None else max_documents
        self._asks_positions = max_documents is not None
        """Of all processes that share sequences, to find documents."""
        self.sharing = sharing
        """The processes that share sequences, if any do."""
        self.mode: Mode = "lighthouse"
        self._dense_layers: list[nn.Module] = []
        self._shared_config: Any = None
        self._without_attention = without_attention
        """Layers whose states documents would share."""
        self._not_full = not_full
        """Layers with other than full attention, and what they have."""
        self._parameters = list(inspect.signature(decoder.forward).parameters)
        self._awaits_dense = self._warned = False
        self._notices = Notices()
        self._handles = [
            decoder.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            decoder.register_forward_hook(_after_forward, always_call=True),
            decoder.register_state_dict_pre_hook(_before_saving),  # type: ignore[no-untyped-call]
        ]
        setattr(decoder, ATTRIBUTE, self)
        for index, module in layers.items():
            norms = scores.qk_norms(module) if config.scorer == "norm" else []
            layer = Layer(places[index], config.of_layer(places[index]), self._notices, norms, sharing=sharing)
            setattr(module, ATTRIBUTE, layer)
            layer.handles = scores.watch(module, layer)

    def watch_all(self, model: nn.Module, attentions: dict[int, nn.Module], shared_config: Any) -> None:
        """Where processes share sequences: has the dense layers attend to all of them too, and holds labels to be shifted
        before they were cut."""
        self._shared_config = shared_config
        for index, module in attentions.items():
            if index not in self.layers:
                self._dense_layers.append(module)
                layer = Layer(index, self.config, self._notices, [], dense=True, sharing=self.sharing)
                setattr(module, ATTRIBUTE, layer)
        for module in model.modules():
            if isinstance(module, PreTrainedModel) and module is not self.decoder and self.decoder in module.modules():
                self._handles.append(module.register_forward_pre_hook(_refuse_unshifted_labels, with_kwargs=True))

    def __enter__(self) -> "Wrapping":
        return self

    def __exit__(self, *raised: object) -> None:
        self.unwrap()

    def __repr__(self) -> str:
        return f"Wrapping({type(self.decoder).__name__}, layers={list(self.layers)}, mode={self.mode!r}, {self.config})"

    def set_mode(self, mode: Mode, local: int | None = None) -> None:
        """As the function of this name."""
        if mode not in get_args(Mode):
            raise ValueError(f"mode is {mode!r}; it must be 'local', 'lighthouse' or 'dense'")
        if self.config.local == 0 and (mode == "local" or local is not None):
            given = "mode is 'local'" if local is None else f"local is {local!r}"
            raise ValueError(
                f"{given}, and the model was wrapped with local=0, without pieces; wrap it with a config such as "
                "LighthouseConfig(local=2048)"
            )
        if local is not None:
            _check.integer("local", local, least=1)
            self.config = dataclasses.replace(self.config, local=local)
            for module in self.layers.values():
                layer: Layer = getattr(module, ATTRIBUTE)
                layer.config = self.config.of_layer(layer.place)
        self.mode = mode

    def uses_lighthouse(self, tokens: int) -> bool:
        """Whether a training forward pass over `tokens` tokens would compute Lighthouse now."""
        return self.mode == "lighthouse" and not self._dense_because(tokens)

    def unwrap(self) -> None:
        """As the function of this name; nothing where it is undone already."""
        if getattr(self.decoder, ATTRIBUTE, None) is not self:
            return
        self.warn_without_dense_stage("unwrapped")
        for module in self.layers.values():
            layer: Layer = getattr(module, ATTRIBUTE)
            for handle in layer.handles:
                handle.remove()
            scores.forget(module, layer)
            delattr(module, ATTRIBUTE)
        for module in self._dense_layers:
            delattr(module, ATTRIBUTE)
        delattr(self.decoder, ATTRIBUTE)
        for handle in self._handles:
            handle.remove()
        self.decoder.set_attn_implementation("sdpa")
        if self._shared_config is not None:
            _replace_config(self.decoder, self._shared_config)

    def warn_without_dense_stage(self, done: str) -> None:
        """Warns, once, where the model was trained, and not densely since."""
        if self._awaits_dense and not self._warned:
            self._warned = True
            warnings.warn(
                f"the model is {done} without a dense stage: its dense loss is better after set_mode(model, 'dense') and "
                "some more steps, which are part of the method",
                stacklevel=2,
            )

    def _before_forward(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not decoder.training and self.sharing is None:
            return None
        if self.decoder.config._attn_implementation != LIGHTHOUSE:
            raise UnsupportedError(
                f"the attention implementation was changed to {self.decoder.config._attn_implementation!r} while the "
                "model is wrapped: unwrap it first"
            )
        given = dict(zip(self._parameters, args)) | kwargs
        inputs = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
        cached = any(_is_cache(value) for value in given.values())
        if self.sharing is not None:
            return args, kwargs | self._share(given, inputs, cached)
        dense = self.mode == "dense" or self._stays_dense(inputs, cached)
        if not dense and _check.is_sharded():
            raise UnsupportedError(_check.SHARDED)
        starts = None if cached or inputs is None else self._find_documents(given, inputs, dense)
        if starts is not None and not dense:
            dense = self._stays_dense(inputs, cached, starts.shape[1])
        if torch.is_grad_enabled():
            self._awaits_dense = not dense
        this_thread.under_way.awaits_lighthouse = not dense or starts is not None
        this_thread.under_way.document_starts = starts
        bounds = ("attention_mask", "position_ids", *BOUNDS)
        plain = not dense or (not cached and all(given.get(name) is None for name in bounds))
        if starts is not None or (plain and inputs is not None and is_tracing(inputs)):
            this_thread.under_way.without_mask = self.decoder.config
        if dense and starts is None:
            return None
        return args, {**kwargs, LIGHTHOUSE: "dense" if dense else self.mode, documents.DOCUMENTS: starts}

    def _find_documents(self, given: dict[str, Any], inputs: Tensor, dense: bool) -> Tensor | None:
        """Where documents start; None where every row is one, and where the model's own attention keeps them apart."""
        ranks = self._ranks()
        refusal = ""
        if self._without_attention:
            refusal = f"and layer {self._without_attention[0]} has no causal attention to keep them apart"
        elif ranks > 1 and self._not_full:  # with context_group there are none
            index = min(self._not_full)
            refusal = f"and layer {index} has {self._not_full[index]}, which sees the tokens of one process alone"
        elif self.sharing is not None and self.sharing.refuses_documents:
            refusal = self.sharing.refuses_documents
        elif not dense and self.config.local == 0:
            refusal = "which need pieces: wrap the model with a config such as LighthouseConfig(local=2048)"
        elif self.mode == "lighthouse" and not dense and self.config.scorer != "norm":
            refusal = f"which the scorer {self.config.scorer!r} does not support: use the scorer 'norm'"
        if self.sharing is not None or ranks > 1:
            return self._find_shared_documents(given, inputs, dense, ranks, refusal)
        if dense and (refusal or not documents.may_pack(given)):
            return None
        return documents.find_starts(given, inputs, self.max_documents, refusal)

    def _find_shared_documents(
        self, given: dict[str, Any], inputs: Tensor, dense: bool, ranks: int, refusal: str
    ) -> Tensor | None:
        """Where documents of rows start of which this process has a part."""
        where = "with context_group" if self.sharing is not None else "under DeepSpeed's Ulysses attention"
        if self.sharing is not None or not dense:
            padding = {"attention_mask": given.get("attention_mask")}
            documents.find_starts(padding, inputs, 1, f"which are not supported {where}")
        positions, batch, tokens = given.get("position_ids"), len(range(inputs.shape[0])), len(range(inputs.shape[1]))
        rows = bounds_in(given)
        if not rows and self._asks_positions and not refusal:
            if self.sharing is not None:
                positions = self.sharing.whole_positions(positions, batch, tokens)
            else:
                positions = interface.ulysses_positions(positions)
            return documents.find_starts({"position_ids": positions}, inputs, self.max_documents, "", ranks)
        starts = documents.find_starts(rows, inputs, self.max_documents, refusal, ranks)
        if self.sharing is not None:
            if rows and not refusal:
                one = torch.zeros((1, ranks * tokens - 1), dtype=torch.bool, device=inputs.device)
                self.sharing.check_documents(starts_of(one, self.max_documents) if starts is None else starts)
            self.sharing.check_positions(positions, batch, tokens, starts)
        elif not rows:
            remedy = f"which {where} need cu_seq_lens_q of whole rows, or wrap(..., max_documents=...)"
            documents.find_starts({"position_ids": positions}, inputs, 1, refusal or remedy)
            if isinstance(positions, Tensor) and positions.dim() == 2:  # documents may start where parts do
                rank = interface.ulysses_rank()
                first = rank * tokens
                found = f"position_ids of rank {rank} do not begin with {first}, so that a row holds documents"
                require((positions[:, 0] == first).all(), f"{found}, {refusal or remedy}")
        return starts

    def _ranks(self) -> int:
        """Processes that share each sequence."""
        return self.sharing.ranks if self.sharing is not None else interface.ulysses_ranks()

    def _share(self, given: dict[str, Any], inputs: Tensor | None, cached: bool) -> dict[str, Any]:
        """The keyword arguments of a forward pass over a part of each sequence, in training and in evaluation."""
        if cached:
            raise UnsupportedError(
                "a cache of keys and values was passed in; with context_group there is none of all tokens, nor generation: "
                "unwrap the model first"
            )
        if inputs is None:
            raise UnsupportedError("neither input_ids nor inputs_embeds was passed in; context_group needs one of them")
        mode = self.mode if self.decoder.training else "dense"
        if mode != "dense" and self._stays_dense(inputs, cached):
            mode = "dense"
        starts = self._find_documents(given, inputs, mode == "dense")
        if starts is not None and mode != "dense" and self._stays_dense(inputs, cached, starts.shape[1]):
            mode = "dense"
        if self.decoder.training and torch.is_grad_enabled():
            self._awaits_dense = mode != "dense"
        this_thread.under_way.awaits_lighthouse = True
        this_thread.under_way.without_mask = self.decoder.config
        tokens = len(range(inputs.shape[1]))
        return {LIGHTHOUSE: mode, "use_cache": False, documents.DOCUMENTS: starts, SHARED_TOKENS: tokens}

    def _stays_dense(self, inputs: Tensor | None, cached: bool, most_documents: int = 1) -> bool:
        """Whether the model's own attention runs though the mode is another; warns once of it in training."""
        if cached:
            reason = ": a cache of keys and values was passed in"
        elif inputs is None:
            reason = ": neither input_ids nor inputs_embeds was passed in"
        else:
            tokens = len(range(inputs.shape[1]))  # so that the compiler guards it: compiled code is for one length
            tokens *= self._ranks()
            because = self._dense_because(tokens, most_documents)
            packed = f" of up to {most_documents} documents" if most_documents > 1 else ""
            reason = f" over {tokens} tokens{packed}: {because}" if because else ""
        if reason and torch.is_grad_enabled():
            self._notices.give(f"dense attention{reason}")
        return reason != ""

    def _dense_because(self, tokens: int, most_documents: int = 1) -> str:
        """Why the mode, if not "dense", cannot pay over `tokens` tokens; empty where it can. Pieces alone always do."""
        if tokens < self.crossover:
            return f"below the crossover of {self.crossover}"
        if self.mode != "lighthouse":
            return ""
        ranks, by_heads = (1, True) if self.sharing is None else (self.sharing.ranks, self.sharing.by_heads)
        settings = {**self.config.settings(), "documents": most_documents}
        reason: str = dense_because(tokens // ranks, ranks, by_heads, **settings)
        return reason


def _after_forward(decoder: nn.Module, args: object, out: object) -> None:
    missed, this_thread.under_way.awaits_lighthouse = this_thread.under_way.awaits_lighthouse, False
    this_thread.under_way.without_mask = this_thread.under_way.document_starts = None
    if missed and out is not None and not traced and not torch.compiler.is_compiling():
        raise UnsupportedError(
            f"no layer of {type(decoder).__name__} computed Lighthouse Attention: its layers do not hand keyword "
            "arguments down to attention, so that the model cannot be trained with it; unwrap it"
        )


def _before_saving(decoder: nn.Module, *_: object) -> None:
    getattr(decoder, ATTRIBUTE).warn_without_dense_stage("saved")


def _refuse_unshifted_labels(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = dict(zip(inspect.signature(model.forward).parameters, args)) | kwargs
    if given.get("labels") is not None and given.get("shift_labels") is None:
        raise UnsupportedError(
            "labels are given without shift_labels; with context_group the label of a part's last token is another process's, "
            "so that they must be shifted before they are cut: lighthouse_attention.context.shard(batch, group) does it"
        )


def _take_own_config(decoder: PreTrainedModel) -> Any:
    """So that the model around the decoder, whose attention a Trainer asks for, stays one with "sdpa".

    Returns:
        The one that they shared.
    """
    shared = decoder.config
    _replace_config(decoder, copy.copy(shared))
    return shared


def _replace_config(decoder: PreTrainedModel, config: Any) -> None:
    former = decoder.config
    for module in decoder.modules():
        if getattr(module, "config", None) is former:
            module.config = config


def _is_cache(value: object) -> bool:
    """Whether it holds keys and values of earlier tokens; one of transformers', or what behaves like one."""
    return isinstance(value, Cache) or (hasattr(value, "update") and hasattr(value, "get_seq_length"))


def _find_wrapping(model: nn.Module) -> Wrapping | None:
    for module in model.modules():
        state = getattr(module, ATTRIBUTE, None)
        if isinstance(state, Wrapping):
            return state
    return None


def _wrapping(model: nn.Module) -> Wrapping:
    state = _find_wrapping(model)
    if state is None:
        raise ValueError(f"{type(model).__name__} is not wrapped")
    return state
