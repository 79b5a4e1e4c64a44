"""torchtitan with the converter: against its stock run, against a wrapped model, in stages, resumed, and on two processes."""

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import PIECES
from lighthouse_attention import set_mode, wrap
from processes import run_program
from titan import END, LAYERS, TOKENS, VOCABULARY, config_of, make_files, train

# isort: split
# After titan, which tells torchtitan its device.
from torchtitan.distributed import ParallelDims
from torchtitan.models.llama3 import Llama3StateDictAdapter, Transformer, llama3_args
from torchtitan.protocols.train_spec import get_train_spec

from lighthouse_attention.torchtitan import InnerAttention, Lighthouse, LighthouseConverter

pytestmark = pytest.mark.skipif("LIGHTHOUSE_TEST_DEVICE" in os.environ, reason="gloo, on the CPU")

CONVERTER = """
[job]
custom_config_module = "lighthouse_attention.torchtitan"
[model]
converters = ["lighthouse"]
[lighthouse]
levels = 3
pooling_factor = 4
budget = 16
tile_budget = 8
local = 64
warmup_steps = 0
"""
THREE_STAGES = CONVERTER + "lighthouse_at = 1\ndense_at = 2\n"
DENSE = CONVERTER + "dense_at = 0\n"
COMPILED = ("--compile.enable", "--compile.components=model")
DOCUMENTS = ("--model.flavor=tiny_varlen",)
PACKED = THREE_STAGES + "max_documents = 4\n"
SELECTIVE = ("--activation_checkpoint.mode=selective", "--activation_checkpoint.selective_ac_option=op")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("titan")
    make_files(folder)
    dist.init_process_group("gloo", init_method=f"file://{folder}/one", rank=0, world_size=1)
    yield folder
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def stock(folder: Path) -> list[float]:
    return train(folder).losses


@pytest.fixture(scope="module")
def in_stages(folder: Path) -> list[float]:
    return train(folder, toml=THREE_STAGES).losses


@pytest.fixture(scope="module")
def packed(folder: Path) -> list[float]:
    return train(folder, *DOCUMENTS, toml=PACKED).losses


def test_the_dense_stage_is_the_stock_run(folder: Path, stock: list[float], in_stages: list[float]) -> None:
    trainer = train(folder, toml=DENSE)
    assert trainer.losses == stock and in_stages[0] != pytest.approx(stock[0], rel=1e-4)
    with torch.device("meta"):
        keys = list(Transformer(llama3_args["tiny"]).state_dict())
    assert list(trainer.model_parts[0].state_dict()) == keys


def test_sequences_below_the_crossover_are_dense(folder: Path, stock: list[float]) -> None:
    assert train(folder, toml=CONVERTER + "dense_at = 1.0\ncrossover = 257\n").losses == stock


def pair(folder: Path, flavor: str) -> tuple[Any, Any]:
    """A Trainer, and a wrapped model of transformers with the same weights."""
    toml = CONVERTER + "lighthouse_at = 1\ndense_at = 2\ndense_layers = [-1]\nmax_documents = 6\n"
    trainer = train(folder, f"--model.flavor={flavor}", toml=toml)
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5}
    theirs = LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}))
    theirs.load_state_dict(Llama3StateDictAdapter(llama3_args["tiny"], None).to_hf(trainer.model_parts[0].state_dict()))
    wrap(theirs, PIECES, dense_layers=(-1,), max_documents=6)
    return trainer, theirs


def test_each_stage_is_that_of_a_wrapped_model(folder: Path) -> None:
    """The shift of each layer and the dense layers among them."""
    trainer, theirs = pair(folder, "tiny")
    model = trainer.model_parts[0]
    inner = [module for module in model.modules() if isinstance(module, InnerAttention)]
    assert [module.config.local_shift for module in inner] == [0, 32, 0] and [m.dense for m in inner] == [0, 0, 1]
    tokens = torch.stack([torch.randperm(VOCABULARY)[:TOKENS] for _ in range(2)])
    found = []
    for trainer.step, mode in enumerate(("local", "lighthouse", "dense"), 1):
        set_mode(theirs, mode)
        found.append(model(tokens))
        torch.testing.assert_close(found[-1], theirs(tokens, use_cache=False).logits, rtol=1e-4, atol=1e-4)
    trainer.step = 1
    torch.testing.assert_close(model.eval()(tokens), found[-1])
    assert (found[0] - found[1]).abs().max() > 1e-3 < (found[1] - found[2]).abs().max()


def test_documents_of_a_varlen_flavor_do_not_see_one_another(folder: Path) -> None:
    """In every stage as in a wrapped model, and in evaluation as by transformers' own mask; two of them, and four."""
    trainer, theirs = pair(folder, "tiny_varlen")
    model = trainer.model_parts[0]
    tokens = torch.stack([torch.randperm(VOCABULARY)[:TOKENS] for _ in range(2)])
    tokens[1, [30, 31, 200]] = END  # one document has one token
    begins = F.pad(tokens[:, :-1] == END, (1, 0))
    index = torch.arange(TOKENS).expand(2, -1)
    positions = index - torch.where(begins, index, 0).cummax(1).values
    masks = model.get_attention_masks(tokens, trainer.tokenizer)
    found = []
    for trainer.step, mode in enumerate(("local", "lighthouse", "dense"), 1):
        set_mode(theirs, mode)
        expected = theirs(tokens, position_ids=positions, use_cache=False).logits
        found.append(model(tokens, attention_masks=masks))
        torch.testing.assert_close(found[-1], expected, rtol=1e-4, atol=1e-4)
    assert (found[0] - found[1]).abs().max() > 1e-3 < (found[1] - found[2]).abs().max()
    expected = theirs.eval()(tokens, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(model.eval()(tokens, attention_masks=masks), expected, rtol=1e-4, atol=1e-4)
    tokens[0, :5] = END
    with pytest.raises(
        ValueError, match=r"a row holds 7 documents, and lighthouse\.max_documents is 6; it must be that"
    ):
        model(tokens, attention_masks=model.get_attention_masks(tokens, trainer.tokenizer))


def test_a_resumed_run_goes_on_in_its_stage(folder: Path) -> None:
    """The warm-up after the switch too."""
    toml = THREE_STAGES.replace("warmup_steps = 0", "warmup_steps = 3")
    saving = ("--checkpoint.enable", "--checkpoint.interval=2")
    whole = train(folder, *saving, toml=toml, steps=4)
    resumed = train(folder, *saving, "--checkpoint.load_step=2", toml=toml, steps=4)
    assert len(resumed.losses) == 2 and resumed.losses == whole.losses[2:]
    assert train(folder, toml=THREE_STAGES, steps=4).losses[3] != pytest.approx(whole.losses[3], rel=1e-4)


def test_the_learning_rate_warms_up_after_a_switch(folder: Path) -> None:
    trainer = train(folder, toml=THREE_STAGES.replace("warmup_steps = 0", "warmup_steps = 2"), steps=3)
    (optimizer,) = trainer.optimizers
    scheduled, taken = optimizer.param_groups[0]["lr"], []
    optimizer.register_step_pre_hook(lambda o, *_: taken.append(o.param_groups[0]["lr"]))
    for trainer.step in (1, 2, 3):
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == scheduled
    assert taken == pytest.approx([scheduled, scheduled / 2, scheduled / 2])


def test_selective_checkpointing_keeps_selection_and_attention(folder: Path, in_stages: list[float]) -> None:
    assert train(folder, *SELECTIVE, toml=THREE_STAGES).losses == in_stages
    for mode, times in (("selective", 1), ("full", 2)):
        with Calls() as calls:
            train(
                folder, *SELECTIVE, f"--activation_checkpoint.mode={mode}", toml=CONVERTER + "dense_at = 1.0", steps=1
            )
        for name in ("score", "select", "attend_both"):
            assert calls.count[f"lighthouse.{name}.default"] == times * LAYERS


class Calls(TorchDispatchMode):
    """Counts operators as they are computed, and not as a checkpoint has them from its store."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(function)] += 1
        return function(*args, **kwargs or {})


def test_compiled_blocks_give_the_same_losses(folder: Path, in_stages: list[float], packed: list[float]) -> None:
    eager = ("--compile.backend=aot_eager",)
    compiled = train(folder, *COMPILED, *eager, toml=THREE_STAGES).losses
    assert compiled == pytest.approx(in_stages, rel=1e-5)
    torch._dynamo.reset()  # which counts what it compiles of a layer
    assert train(folder, *DOCUMENTS, *COMPILED, *eager, toml=PACKED).losses == pytest.approx(packed, rel=1e-5)


ONE = ParallelDims(dp_replicate=1, dp_shard=1, cp=1, tp=1, pp=1, ep=1, etp=1, world_size=1)
CONTEXT = ("--parallelism.context_parallel_degree=2",)
TWO_PROCESSES: dict[str, tuple[tuple[str, ...], str]] = {
    "fsdp": ((), THREE_STAGES),
    "tensor": (("--parallelism.tensor_parallel_degree=2",), THREE_STAGES),
    "documents": (DOCUMENTS, PACKED),
    "documents, tensor": ((*DOCUMENTS, *SELECTIVE, "--parallelism.tensor_parallel_degree=2"), PACKED),
    "pipeline": (("--parallelism.pipeline_parallel_degree=2",), THREE_STAGES),
    "heads": ((*CONTEXT, *SELECTIVE), THREE_STAGES),
    "heads, contiguous": ((*CONTEXT, "--parallelism.context_parallel_load_balancer=None"), THREE_STAGES),
    "heads, compiled": ((*CONTEXT, *COMPILED, "--compile.backend=eager"), THREE_STAGES),
    "ring": ((*CONTEXT, *SELECTIVE), THREE_STAGES + "exchange = 'ring'\n"),
    "gather": (CONTEXT, THREE_STAGES + "exchange = 'gather'\n"),
    "ring, dense": (CONTEXT, DENSE + "exchange = 'ring'\n"),
}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # not by the host's name, for which each of torchtitan's groups may wait
    dist.init_process_group("gloo", init_method=f"file://{folder}/two", rank=rank, world_size=2)
    found = {name: train(Path(folder), *args, toml=toml).losses for name, (args, toml) in TWO_PROCESSES.items()}
    if rank == 1:  # the last of a pipeline has its losses
        torch.save(found, f"{folder}/found")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_are_one(folder: Path, stock: list[float], in_stages: list[float], packed: list[float]) -> None:
    mp.spawn(worker, (str(folder),), nprocs=2)
    found = torch.load(folder / "found")
    assert list(found) == list(TWO_PROCESSES)
    assert packed != pytest.approx(in_stages, rel=1e-3)
    for name, losses in found.items():
        # Chunks select by themselves: another selection, and the same by either way.
        expected = {"ring": found["gather"], "gather": found["ring"], "ring, dense": stock}.get(
            name, packed if name.startswith("documents") else in_stages
        )
        assert losses == pytest.approx(expected, rel=1e-4), name
    assert found["ring"] != pytest.approx(in_stages, rel=1e-4)


def test_the_recipe_of_the_documentation(folder: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/trainers.md").read_text()
    recipe, keys = (
        re.search(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE),
        re.findall(r"^\| (`.*?`) \|", page, re.M),
    )
    assert recipe is not None
    job = config_of(folder, "--training.seq_len=98304", toml=recipe[1])
    converter = LighthouseConverter(job, ONE)
    with torch.device("meta"):
        converter.convert(Transformer(llama3_args["debugmodel"]))
    assert converter.config.budget == 512
    assert {field.name for field in dataclasses.fields(Lighthouse)} == set(re.findall("[a-z_]+", " ".join(keys)))


def convert(folder: Path, toml: str, *arguments: str, cp: int = 1, pp: int = 1, name: str = "llama3") -> None:
    job = config_of(folder, f"--model.name={name}", *arguments, toml=toml)
    dims = dataclasses.replace(ONE, cp=cp, pp=pp, world_size=cp * pp)
    spec = get_train_spec(name)
    with torch.device("meta"):
        model = spec.model_cls(spec.model_args[job.model.flavor])
    LighthouseConverter(job, dims).convert(model)
    model(torch.zeros(1, 8, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize(
    ("toml", "arguments", "message"),
    [
        ("", (), r"job\.custom_config_module is ''; it must be 'lighthouse_attention\.torchtitan', or a module whose"),
        (CONVERTER, (), r"lighthouse\.dense_at is not given; it must be the first dense step"),
        (CONVERTER + "dense_at = 4", (), r"lighthouse\.dense_at is 4, and training has 3 steps: the dense stage would"),
        (CONVERTER + "dense_at = 1.5", (), r"lighthouse\.dense_at is 1\.5; it must be a step, or a share"),
        (
            CONVERTER + "dense_at = 1\nlighthouse_at = 2",
            (),
            r"lighthouse\.dense_at is 1, which is step 1 of 3; it must",
        ),
        (CONVERTER + "dense_at = 1\ndilation = 0", (), r"lighthouse\.dilation is 0; it must be at least"),
        (CONVERTER + "dense_at = 1\ncrossover = -1", (), r"lighthouse\.crossover is -1; it must be at least 0"),
        (
            CONVERTER + "dense_at = 1\nexchange = 'all'",
            (),
            r"lighthouse\.exchange is 'all'; it must be one of auto, heads",
        ),
        (
            CONVERTER + "dense_at = 1\ndense_layers = [3]",
            (),
            r"lighthouse\.dense_layers holds 3; the model has 3 layers",
        ),
        (
            CONVERTER.replace("local = 64", "") + "dense_at = 1",
            (),
            r"lighthouse\.dense_layers is \(0, 1, -2, -1\) \(the default\), which leaves no layer to Lighthouse",
        ),
        (
            CONVERTER.replace("local = 64", "lighthouse_at = 1") + "dense_at = 1",
            (),
            r"lighthouse\.lighthouse_at is 1, and lighthouse\.local is 0, without pieces",
        ),
        (
            DENSE,
            ("--model.flavor=debugmodel_flex_attn",),
            r"model\.flavor is 'debugmodel_flex_attn', whose attention is Fl.*'sdpa', or 'varlen' to keep documents",
        ),
        (
            DENSE.replace("local = 64", ""),
            DOCUMENTS,
            r"model\.flavor is 'tiny_varlen', which keeps documents apart, and lighthouse\.local is 0; documents need",
        ),
        (DENSE + "scorer = 'gla'", DOCUMENTS, r"'tiny_varlen', .*lighthouse\.scorer is 'gla'; it must be 'norm'"),
        (DENSE + "max_documents = 0", (), r"lighthouse\.max_documents is 0; it must be at least 1"),
    ],
)
def test_errors_name_the_key(folder: Path, toml: str, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(folder, toml, *arguments)


def test_errors_of_other_models_and_trainers(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"lighthouse\.scorer is 'norm', and the attention of .* has q_norm and k_norm"
    ):
        convert(folder, DENSE, "--model.flavor=debugmodel", name="qwen3")
    with pytest.raises(
        ValueError, match=r"pipeline_parallel_degree is 2, and .*'tiny_varlen' keeps documents apart; it"
    ):
        convert(folder, DENSE, *DOCUMENTS, pp=2)
    with pytest.raises(
        RuntimeError, match=r"does not know the step: convert\(\) was not called by torchtitan's Trainer"
    ):
        convert(folder, DENSE)


def test_errors_of_context_parallelism(folder: Path) -> None:
    for toml, arguments, message in (
        ("", ("--parallelism.context_parallel_load_balancer=ptrr",), "load_balancer is 'ptrr'; with the converter"),
        (
            "exchange = 'ring'\n",
            ("--parallelism.context_parallel_load_balancer=None",),
            r"load_balancer is None; with lighthouse\.exchange 'ring' it must be 'headtail'",
        ),
        ("exchange = 'heads'\n", (), r"exchange is 'heads', and a rank has 4 heads, which .*_degree 3 must divide"),
        (
            "exchange = 'ring'\n",
            (),
            r"budget is 16; with lighthouse\.exchange 'ring' over 3 ranks it must be a multiple of 6",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            convert(folder, DENSE + toml, *arguments, cp=3)


def test_the_benchmark_runs(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts/bench_torchtitan"
    printed = run_program(script, "--quick", "--repeats", 1, "--json", "times.json", "lighthouse-2048", folder=tmp_path)
    (result,) = json.loads((tmp_path / "times.json").read_text())
    assert result["case"] == "lighthouse-2048" and len(result["seconds"]) == 4, printed
