"""torchtitan's own Trainer, its Llama in small, on a CPU: what the tests of the converter run.

The wheel has neither its debug data nor its tokenizer, so both are made here.
"""

import dataclasses
import gc
import json
import os
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

# What a CPU and Gloo cannot do is done otherwise here, and nothing else. Without a GPU it takes a machine for one with CUDA.
with mock.patch("torch._utils._get_available_device_type", lambda: "cpu"):
    import torchtitan.components.metrics
    import torchtitan.distributed.utils
    import torchtitan.models.llama3.infra.parallelize as parallelize
    import torchtitan.train
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torchtitan.components.metrics import DeviceMemStats
from torchtitan.config import ConfigManager
from torchtitan.models.llama3 import TransformerModelArgs, llama3_args
from torchtitan.models.llama3.model.args import RoPEScalingArgs

TOKENS = 256
VOCABULARY = 257
"""Text holds each token once in a row of that many: equal tokens have equal norms, of which rounding would choose."""
LAYERS = 3
END = 100
"""The token that ends a document of "tiny_varlen": each row has it once."""
llama3_args["tiny"] = TransformerModelArgs(
    **{"dim": 64, "n_layers": LAYERS, "n_heads": 4, "n_kv_heads": 2, "vocab_size": VOCABULARY, "multiple_of": 32},
    **{"rope_theta": 10000, "rope_scaling_args": RoPEScalingArgs(scaling_factor=1.0)},
)
llama3_args["tiny_varlen"] = dataclasses.replace(llama3_args["tiny"], attn_type="varlen", attn_mask_type="block_causal")


class NoMemory:
    """A CPU has no device memory to watch."""

    device_name = "CPU"

    def get_peak_stats(self) -> DeviceMemStats:
        return DeviceMemStats(*[0] * 6)

    def reset_peak_stats(self) -> None:
        pass


torchtitan.components.metrics.build_device_memory_monitor = NoMemory
torchtitan.distributed.utils.set_pg_timeouts = lambda **_: None  # asks for the index of a device
torchtitan.train.time = SimpleNamespace(perf_counter=time.perf_counter, sleep=lambda _: None)  # 2 seconds at the end


def sum_gradients(model: torch.nn.Module) -> None:
    """As torchtitan asks of FSDP, by a way that Gloo has too."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


parallelize.disable_fsdp_gradient_division = sum_gradients


def set_weights(model: torch.nn.Module) -> None:
    """By the parameters' names and shapes alone."""
    with torch.no_grad():
        for name, parameter in sorted(get_model_state_dict(model).items()):
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            whole = torch.randn(parameter.shape, generator=generator) * (0.05 if parameter.dim() > 1 else 0.0)
            if parameter.dim() == 1:
                whole += 1.0  # of a normalization
            if isinstance(parameter, DTensor):
                whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.copy_(whole)


class Trainer(torchtitan.train.Trainer):
    """Keeps the loss of every step, and begins with the same weights however they are distributed."""

    def __init__(self, job_config: Any) -> None:
        self.losses: list[float] = []
        super().__init__(job_config)
        for model in self.model_parts:
            set_weights(model)
        self.tokenizer.eos_id = END

    def train_step(self, data_iterator: Any) -> None:
        log = self.metrics_processor.log
        self.metrics_processor.log = lambda step, loss, *_, **__: self.losses.append(loss)
        super().train_step(data_iterator)
        self.metrics_processor.log = log


def make_files(folder: Path) -> None:
    """A tokenizer of single characters, and a text whose next character follows from the last."""
    words = {chr(0x4E00 + token): token for token in range(VOCABULARY)}
    tokenizer: dict[str, Any] = {"version": "1.0", "added_tokens": []}
    tokenizer |= {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    }
    tokenizer |= {"model": {"type": "WordLevel", "vocab": words, "unk_token": chr(0x4E00)}}
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer))
    characters = list(words)
    rows = ["".join(characters[(start + 7 * i) % VOCABULARY] for i in range(VOCABULARY)) for start in range(0, 240, 16)]
    lines = [json.dumps({"text": row}) + "\n" for row in rows]
    (folder / "data").mkdir()
    # The first half to rank 0 of 2 and the second to rank 1: as to one process alone.
    (folder / "data" / "text.json").write_text("".join(2 * lines))


def config_of(folder: Path, *arguments: str, toml: str = "", steps: int = 3) -> Any:
    """torchtitan's configuration; the files are those of `make_files`."""
    given = ["--model.name=llama3", "--model.flavor=tiny", f"--model.hf_assets_path={folder}/tokenizer"]
    given += ["--training.dataset=c4_test", f"--training.dataset_path={folder}/data", f"--training.seq_len={TOKENS}"]
    given += ["--training.local_batch_size=2", f"--training.steps={steps}", "--lr_scheduler.warmup_steps=1"]
    given += ["--optimizer.lr=0.1", "--optimizer.eps=0.1", "--optimizer.implementation=for-loop"]
    given += ["--metrics.log_freq=1", "--comm.trace_buf_size=0", f"--job.dump_folder={folder}/out"]
    given += ["--training.mixed_precision_param=float32", "--activation_checkpoint.mode=none"]
    path = folder / f"run-{os.getpid()}.toml"
    path.write_text(toml)
    return ConfigManager().parse_args([*given, f"--job.config_file={path}", *arguments])


def train(folder: Path, *arguments: str, **changes: Any) -> Trainer:
    """Trains; its arguments are those of `config_of`."""
    with mock.patch.dict(os.environ, LOCAL_RANK=str(dist.get_rank())):
        trainer = Trainer(config_of(folder, *arguments, **changes))
        trainer.train()
    trainer.close()
    gc.enable()  # which torchtitan disables
    return trainer
