"""Stages of a run, whatever the trainer."""

import pytest

from conftest import PIECES, SMALL
from lighthouse_attention.plan import Stages, dense_layers_of


def test_each_step_has_the_mode_of_its_stage() -> None:
    stages = Stages({"lighthouse_at": 0.4, "dense_at": 4}, ("local", "lighthouse", "dense"))
    assert stages.starts(5) == [0, 2, 4]
    assert [stages.mode(step, 5) for step in range(5)] == ["local"] * 2 + ["lighthouse"] * 2 + ["dense"]
    at_once = Stages({"lighthouse_at": 0, "dense_at": 0}, ("local", "lighthouse", "dense"))
    assert at_once.mode(0, 5) == "dense"


def test_a_warm_up_is_20_steps_or_a_quarter_of_the_stage() -> None:
    def warm_up(switch_at: int, first: int, steps: int, warmup_steps: int | None = None) -> list[float]:
        stages = Stages({"switch_at": switch_at}, ("lighthouse", "dense"), warmup_steps)
        shares = [stages.warmup_share(step, steps) for step in range(first, steps)]
        return shares[: shares.index(1.0)]

    assert warm_up(500, 500, 1000) == pytest.approx([step / 20 for step in range(1, 20)])
    assert warm_up(960, 960, 1000) == pytest.approx([step / 10 for step in range(1, 10)])
    assert warm_up(900, 900, 1000, 4) == [0.25, 0.5, 0.75]
    assert warm_up(0, 0, 1000) == []


def test_errors_name_the_setting_as_the_trainer_calls_it() -> None:
    modes = ("lighthouse", "dense")
    with pytest.raises(ValueError, match=r"lighthouse\.dense_at is 1.5; it must be a step, or a share"):
        Stages({"dense_at": 1.5}, modes, prefix="lighthouse.")
    with pytest.raises(ValueError, match=r"lighthouse\.warmup_steps is -1; it must be at least 0"):
        Stages({"dense_at": 1}, modes, -1, prefix="lighthouse.")
    with pytest.raises(ValueError, match=r"lighthouse\.dense_at is 6, and training has 5 steps: the dense stage would"):
        Stages({"dense_at": 6}, modes, prefix="lighthouse.").check(5)


def test_dense_layers() -> None:
    assert dense_layers_of(None, 8, SMALL) == {0, 1, 6, 7} and dense_layers_of(None, 8, PIECES) == set()
    assert dense_layers_of(iter([0, -1]), 8, PIECES) == {0, 7}
    with pytest.raises(ValueError, match="layers holds 8; the model has 8 layers, so that it must be from -8 to 7"):
        dense_layers_of([8], 8, PIECES, "layers")
    with pytest.raises(TypeError, match=r"layers is 8; it must be the indices of layers, such as \(0, -1\)"):
        dense_layers_of(8, 8, PIECES, "layers")  # type: ignore[arg-type]
