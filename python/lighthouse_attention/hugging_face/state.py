"""What is known of a wrapped model: of each Lighthouse layer, and of the forward pass under way."""

import dataclasses
import threading
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lighthouse_attention.config import LighthouseConfig
from lighthouse_attention.hugging_face.sharing import Sharing
from lighthouse_attention.plan import Mode as Mode

LIGHTHOUSE = "lighthouse"
"""The attention implementation's name, and the keyword argument that tells a layer which mode to compute: none, or
"dense", where it is the model's own attention."""
ATTRIBUTE = "_lighthouse"
"""Where a wrapped decoder keeps its `Wrapping`, and each attention module that is not left to itself its `Layer`."""


class Notices:
    """Warnings of a wrapped model, each given once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def give(self, text: str) -> None:
        """Compiled code is silent."""
        if not torch.compiler.is_compiling() and text not in self._given:
            self._given.add(text)
            warnings.warn(text, stacklevel=2)


@dataclasses.dataclass
class Layer:
    """What an attention module keeps that trains with Lighthouse, or whose sequences processes share."""

    place: int
    """Among the layers with full attention: pieces are shifted in every second one."""
    config: LighthouseConfig
    """With the layer's own local_shift."""
    notices: Notices
    norms: list[str]
    """Names of its submodules that normalize q, k, or first q and then k."""
    dense: bool = False
    """In every mode."""
    sharing: Sharing | None = None
    """The processes that share its sequences."""
    handles: list[Any] = dataclasses.field(default_factory=list)
    """Of its hooks."""
    vetted: bool = False
    """Whether norms of q and k were seen to differ."""

    def normalizations(self, attention: nn.Module) -> list[nn.Module]:
        """Of the attention module that is running, which may be a replica."""
        return [attention.get_submodule(name) for name in self.norms]


@dataclasses.dataclass
class Pass:
    """A forward pass under way. The mask function learns of it by this alone."""

    without_mask: object = None
    """The model configuration of a forward pass that needs no mask but the causal one, and in which transformers could not
    see that: it is traced, of a part of each sequence, or of documents, which attention itself keeps apart."""
    document_starts: Tensor | None = None
    """Where its documents start; for masks that are not the causal one."""
    awaits_lighthouse: bool = False
    """Whether a layer should compute Lighthouse, or attend inside pieces, and none has yet."""


class _Thread(threading.local):
    def __init__(self) -> None:
        # An object of its own: PyTorch 2.15 loses what compiled code writes into the thread's attributes themselves.
        self.under_way = Pass()


this_thread = _Thread()

traced: list[bool] = []
"""Not empty once a wrapped layer was compiled: in this process it is not seen any more whether one ran."""


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def note_traced() -> bool:
    traced.append(True)
    return True
