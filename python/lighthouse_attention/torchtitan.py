"""Lighthouse Attention in torchtitan 0.2: a model converter, with its settings in torchtitan's own TOML.

    [job]
    custom_config_module = "lighthouse_attention.torchtitan"

    [model]
    converters = ["lighthouse"]

    [lighthouse]
    local = 2048
    budget = 512
    dense_at = 0.9

Any torchtitan decoder with `attn_type = "sdpa"` trains with it, and with "varlen", which keeps documents apart; its code, its
checkpoints and their keys stay as they are.
"""

import dataclasses
import inspect
import sys
import weakref
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchtitan.config import JobConfig as TitanConfig
from torchtitan.distributed import ParallelDims
from torchtitan.models.attention import ScaledDotProductAttentionWrapper, VarlenAttentionWrapper, VarlenMetadata
from torchtitan.protocols.model_converter import register_model_converter
from torchtitan.protocols.train_spec import get_train_spec
from torchtitan.tools.logging import logger

from lighthouse_attention import _check, context
from lighthouse_attention._documents import starts_of
from lighthouse_attention.config import LighthouseConfig
from lighthouse_attention.plan import Mode, Stages, default_dense_layers, dense_layers_of

_FIELDS = [field for field in dataclasses.fields(LighthouseConfig) if field.name not in ("scale", "local_shift")]
"""What a run sets; the model has a scale of its own, and each layer a shift."""
_Settings: Any = dataclasses.make_dataclass(
    "_Settings", [(field.name, field.type, dataclasses.field(default=field.default)) for field in _FIELDS], kw_only=True
)


@dataclasses.dataclass(kw_only=True)
class Lighthouse(_Settings):  # type: ignore[misc]
    """The table `[lighthouse]`: the settings of LighthouseConfig by their names, and these."""

    lighthouse_at: int | float = 0
    """The first step with Lighthouse, counted from 0, or a share of training.steps up to 1.0. Before it, attention is
    inside the pieces alone."""
    dense_at: int | float | None = None
    """The first dense step, likewise; required. training.steps: none."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises to the scheduled one after a switch. If not given, 20, or a quarter of the
    stage's steps where that is fewer."""
    dense_layers: list[int] | None = None
    """Layers that stay dense, negative ones counted from the last. If not given, none where local > 0, and else the first
    and last two."""
    crossover: int = 0
    """Over fewer tokens than this, the Lighthouse stage is dense."""
    max_documents: int = 128
    """Documents that a row may hold, of flavors with "varlen" attention; more raise. Shapes depend on it: each takes up to
    one row of the gathered sequence."""
    exchange: Literal["auto", "heads", "gather", "ring"] = "auto"
    """What the ranks of a context-parallel group exchange. "auto": heads where their number allows it, else what is
    faster of the others."""


@dataclasses.dataclass
class JobConfig:
    """What torchtitan merges into its own configuration."""

    lighthouse: Lighthouse = dataclasses.field(default_factory=Lighthouse)


class Switch:
    """The mode of the step under way, which all layers of a run read. A forward pre-hook of the model."""

    def __init__(self, stages: Stages, steps: int, lighthouse_is: Mode) -> None:
        self.mode: Mode = "dense"
        self.trainer: weakref.ref[Any] | None = None
        """torchtitan's; it alone knows the step, also of a run that resumes."""
        self._stages, self._steps, self._lighthouse_is = stages, steps, lighthouse_is
        self._begun = False

    def __deepcopy__(self, memo: object) -> "Switch":
        return self  # the stages of a pipeline are copies of the model

    def __call__(self, model: nn.Module, args: object) -> None:
        if not model.training:
            return
        if self.trainer is None or (trainer := self.trainer()) is None:
            raise RuntimeError(
                "the converter 'lighthouse' does not know the step: convert() was not called by torchtitan's Trainer, or "
                "the Trainer is gone"
            )
        stage = self._stages.mode(trainer.step - 1, self._steps)
        mode = self._lighthouse_is if stage == "lighthouse" else stage
        if not self._begun:
            for optimizer in trainer.optimizers:
                self._warm_up(optimizer, trainer)
        if mode != self.mode or not self._begun:
            logger.info(f"Lighthouse: attention is {mode!r} from step {trainer.step} on")
        self.mode, self._begun = mode, True

    def _warm_up(self, optimizer: torch.optim.Optimizer, trainer: Any) -> None:
        """Has the steps after a switch take a part of the scheduled learning rate."""
        rates: list[Any] = []

        def before(*_: object) -> None:
            share = self._stages.warmup_share(trainer.step - 1, self._steps)
            rates[:] = [group["lr"] for group in optimizer.param_groups] if share < 1 else []
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * share

        def after(*_: object) -> None:
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate  # as the scheduler left it, and before it steps

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)


class Documents:
    """Has the layers of a flavor with "varlen" attention find documents where the operators look for them: (B, M), M
    static. A forward pre-hook of the model, once a pass; torchtitan, too, waits for the device there."""

    def __init__(self, most: int) -> None:
        self._most = most

    def __call__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        masks = kwargs.get("attention_masks")
        if not isinstance(masks, VarlenMetadata):
            return args, kwargs  # for layers to refuse
        bounds = masks.cu_seq_q  # of all rows, one after the other
        batch, tokens = args[0].shape[:2]
        begins = bounds.new_zeros(batch * tokens + 1, dtype=torch.bool)
        begins = begins.index_fill(0, bounds.long(), True)[:-1].view(batch, tokens)[:, 1:]
        found = int(begins.sum(1).max()) + 1
        if found > self._most:
            raise ValueError(
                f"a row holds {found} documents, and lighthouse.max_documents is {self._most}; it must be that many or more"
            )
        starts = starts_of(begins, self._most)
        return args, {**kwargs, "attention_masks": VarlenMetadata(starts, starts, tokens, tokens)}


class InnerAttention(nn.Module):
    """What a layer calls in place of its own attention, which it keeps for dense steps and for evaluation."""

    def __init__(
        self, stock: nn.Module, config: LighthouseConfig, dense: bool, switch: Switch, shared: dict[str, Any] | None
    ) -> None:
        """`shared` is the group, exchange and layout of the ranks that share sequences; None where they are whole."""
        super().__init__()
        self.stock = stock
        self.config, self.dense = config, dense
        self._settings, self._switch, self._shared = config.settings(), switch, shared

    def extra_repr(self) -> str:
        return "dense" if self.dense else f"{self.config.describe()} shift={self.config.local_shift}"

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attention_masks: VarlenMetadata | None = None,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
        is_causal: bool = True,
    ) -> Tensor:
        """q (B, H, N, D), k and v (B, G, N, D) -> (B, H, N, D); N of this rank, where ranks share sequences.

        With attention_masks, which hold where documents start (`Documents`): (B, N, H, D).
        """
        if not is_causal:
            raise ValueError("is_causal is False; Lighthouse Attention is causal")
        mode = self._switch.mode if self.training and not self.dense else "dense"
        # The dense mode reads no settings: compiled code is for those that it reads, and this is one for all layers.
        settings = {"scale": scale} if mode == "dense" else {**self._settings, "scale": scale}
        out: Tensor
        if attention_masks is not None:
            settings["document_starts"] = attention_masks.cu_seq_q
        if self._shared is not None:
            # torchtitan's hooks make DTensors of this rank's tokens, and take back what is none.
            q, k, v = (x.to_local() if isinstance(x, DTensor) else x for x in (q, k, v))
            out = context.attend(q, k, v, settings, mode, scores=None, **self._shared)
        elif mode == "dense" and attention_masks is not None:
            out = torch.ops.lighthouse.dense_attention(q, k, v, **settings)
        elif mode == "dense":
            out = self.stock(q, k, v, scale=scale, enable_gqa=enable_gqa)
        elif mode == "local":
            out = torch.ops.lighthouse.local_attention(q, k, v, **settings)
        else:
            out = torch.ops.lighthouse.attention(q, k, v, **settings)
        return out if attention_masks is None else out.transpose(1, 2).contiguous()


class LighthouseConverter:
    """torchtitan's ModelConverter of the name "lighthouse"."""

    def __init__(self, job_config: TitanConfig, parallel_dims: ParallelDims) -> None:
        settings = getattr(job_config, "lighthouse", None)
        if not isinstance(settings, Lighthouse):
            raise ValueError(
                f"job.custom_config_module is {job_config.job.custom_config_module!r}; it must be {__name__!r}, or a "
                f"module whose JobConfig has a field lighthouse of the type {__name__}.Lighthouse"
            )
        self.settings, self._job, self._dims = settings, job_config, parallel_dims
        try:
            self.config = LighthouseConfig(**{field.name: getattr(settings, field.name) for field in _FIELDS})
            context.check_exchange(settings.exchange)
        except ValueError as error:
            raise ValueError(f"lighthouse.{error}") from None
        _check.integer("lighthouse.crossover", settings.crossover, least=0)
        _check.integer("lighthouse.max_documents", settings.max_documents, least=1)
        self._stages = self._checked_stages()

    def _checked_stages(self) -> Stages:
        steps = self._job.training.steps
        if self.settings.dense_at is None:
            raise ValueError(
                "lighthouse.dense_at is not given; it must be the first dense step, or a share of training.steps such as "
                f"0.9; {steps}, training.steps, for no dense stage"
            )
        starts = {"lighthouse_at": self.settings.lighthouse_at, "dense_at": self.settings.dense_at}
        stages = Stages(starts, ("local", "lighthouse", "dense"), self.settings.warmup_steps, prefix="lighthouse.")
        stages.check(steps)
        if stages.starts(steps)[1] > 0 and self.config.local == 0:
            raise ValueError(
                f"lighthouse.lighthouse_at is {self.settings.lighthouse_at}, and lighthouse.local is 0, without pieces to "
                "attend in before it; lighthouse_at must be 0, or local a length such as 2048"
            )
        return stages

    def convert(self, model: nn.Module) -> None:
        """Replaces the inner attention of every layer, in place."""
        attentions = self._attentions(model)
        dense = dense_layers_of(
            self.settings.dense_layers, len(attentions), self.config, name="lighthouse.dense_layers"
        )
        if len(dense) == len(attentions):
            given = self.settings.dense_layers
            raise ValueError(
                f"lighthouse.dense_layers is {default_dense_layers(self.config) if given is None else given}"
                f"{' (the default)' if given is None else ''}, which leaves no layer to Lighthouse: the model has "
                f"{len(attentions)} layers"
            )
        shared = self._shared_sequences(attentions[0]) if self._dims.cp_enabled else None
        most = 1
        if isinstance(attentions[0].inner_attention, VarlenAttentionWrapper):
            if self._dims.pp_enabled:
                raise ValueError(
                    f"parallelism.pipeline_parallel_degree is {self._dims.pp}, and model.flavor {self._job.model.flavor!r} "
                    "keeps documents apart; it must be 1: micro-batches would have parts of torchtitan's attention_masks"
                )
            most = self.settings.max_documents
            model.register_forward_pre_hook(Documents(most), with_kwargs=True)
        switch = Switch(self._stages, self._job.training.steps, self._lighthouse_is(shared, most))
        switch.trainer = _trainer_of(self._job)
        for index, attention in enumerate(attentions):
            stock = attention.inner_attention
            attention.inner_attention = InnerAttention(
                stock, self.config.of_layer(index), index in dense, switch, shared
            )
        model.register_forward_pre_hook(switch)
        self._save_under_selective_checkpointing()
        logger.info(
            f"Lighthouse: {self.config.describe()} in {len(attentions) - len(dense)} of {len(attentions)} layers; stages "
            f"{', '.join(self._stages.modes)} from steps {self._stages.starts(self._job.training.steps)}"
        )

    def post_optimizer_hook(self, model: nn.Module | list[nn.Module]) -> None:
        """Nothing: the switch reads the step before each forward pass."""

    def _attentions(self, model: nn.Module) -> list[Any]:
        """The attention module of each layer, which holds torchtitan's wrapper of PyTorch's attention."""
        name, flavor = self._job.model.name, self._job.model.flavor
        layers = getattr(model, "layers", None)
        blocks = list(layers.values()) if isinstance(layers, nn.ModuleDict) else []
        attentions: list[Any] = [getattr(block, "attention", None) for block in blocks]
        if not attentions or not all(hasattr(attention, "inner_attention") for attention in attentions):
            raise ValueError(
                f"model.name is {name!r}; the converter 'lighthouse' needs a decoder with attention.inner_attention in "
                "each layer, such as 'llama3'"
            )
        for attention in attentions:
            inner = type(attention.inner_attention)
            if inner not in (ScaledDotProductAttentionWrapper, VarlenAttentionWrapper):
                raise ValueError(
                    f"model.flavor is {flavor!r}, whose attention is {inner.__name__}; it must be a flavor with attn_type "
                    "'sdpa', or 'varlen' to keep documents apart"
                )
            if inner is VarlenAttentionWrapper and self.config.local == 0:
                raise ValueError(
                    f"model.flavor is {flavor!r}, which keeps documents apart, and lighthouse.local is 0; documents need "
                    "pieces: it must be a length such as 2048"
                )
            if inner is VarlenAttentionWrapper and self.config.scorer != "norm":
                raise ValueError(
                    f"model.flavor is {flavor!r}, which keeps documents apart, and lighthouse.scorer is "
                    f"{self.config.scorer!r}; it must be 'norm'"
                )
            norms = [side for side in ("q_norm", "k_norm") if getattr(attention, side, None) is not None]
            if norms and self.config.scorer == "norm":
                raise ValueError(
                    f"lighthouse.scorer is 'norm', and the attention of model.flavor {flavor!r} has {' and '.join(norms)}, "
                    "so that norms say nothing; it must be 'dilated' or 'gla'"
                )
        return attentions

    def _shared_sequences(self, attention: nn.Module) -> dict[str, Any]:
        """How the ranks of the context-parallel group share sequences."""
        ranks, tensor_ranks = self._dims.cp, self._dims.tp
        balancer = self._job.parallelism.context_parallel_load_balancer
        if balancer not in ("headtail", None):
            raise ValueError(
                f"parallelism.context_parallel_load_balancer is {balancer!r}; with the converter 'lighthouse' it must be "
                "'headtail'"
            )
        heads, groups = (int(getattr(attention, n)) // tensor_ranks for n in ("n_heads", "n_kv_heads"))
        exchange: str = self.settings.exchange
        if exchange == "auto":
            tokens = self._job.training.seq_len // ranks
            exchange = context.choose_exchange(heads, groups, tokens, ranks, "lighthouse", self.config.settings())
        if exchange == "heads" and heads % ranks != 0:
            raise ValueError(
                f"lighthouse.exchange is 'heads', and a rank has {heads} heads, which "
                f"parallelism.context_parallel_degree {ranks} must divide; 'gather' and 'ring' take any number"
            )
        if exchange != "heads" and balancer is None:
            raise ValueError(
                f"parallelism.context_parallel_load_balancer is None; with lighthouse.exchange {exchange!r} it must be "
                "'headtail'"
            )
        if exchange != "heads" and self.config.budget % (2 * ranks) != 0:
            raise ValueError(
                f"lighthouse.budget is {self.config.budget}; with lighthouse.exchange {exchange!r} over {ranks} ranks it "
                f"must be a multiple of {2 * ranks}"
            )
        group = self._dims.get_mesh("cp").get_group().group_name
        return {"group": group, "exchange": exchange, "zigzag": balancer is not None}

    def _lighthouse_is(self, shared: dict[str, Any] | None, most_documents: int) -> Mode:
        """The mode of the Lighthouse stage: dense where Lighthouse cannot pay over the sequences of the run."""
        tokens = self._job.training.seq_len
        ranks = 1 if shared is None else self._dims.cp
        by_heads = shared is None or shared["exchange"] == "heads"
        if tokens < self.settings.crossover:
            reason = f"below lighthouse.crossover, {self.settings.crossover}"
        else:
            settings = {**self.config.settings(), "documents": most_documents}
            reason = context.dense_because(tokens // ranks, ranks, by_heads, **settings)
        if reason:
            logger.warning(f"Lighthouse: dense attention over {tokens} tokens: {reason}")
        return "dense" if reason else "lighthouse"

    def _save_under_selective_checkpointing(self) -> None:
        """Adds our selection and attention to what torchtitan's selective checkpointing keeps of each layer."""
        module = sys.modules[inspect.unwrap(get_train_spec(self._job.model.name).parallelize_fn).__module__]
        saved = getattr(module, "_op_sac_save_list", None)
        if saved is not None:
            saved.update(getattr(torch.ops.lighthouse, name).default for name in _SAVED)


_SAVED = (
    *("score", "select", "attend", "attend_pieces", "attend_both", "attend_sequences"),
    *("attend_across", "attend_both_across"),
)
"""Operators whose results are dear to compute again."""


def _trainer_of(job_config: TitanConfig) -> "weakref.ref[Any] | None":
    """The Trainer that is converting its model: torchtitan does not hand it to converters."""
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if hasattr(type(caller), "train_step") and getattr(caller, "job_config", None) is job_config:
            return weakref.ref(caller)
        frame = frame.f_back
    return None


register_model_converter(LighthouseConverter, "lighthouse")
