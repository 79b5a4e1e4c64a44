"""What transformers calls in a wrapped model."""

import torch
from transformers.masking_utils import create_causal_mask

from families import (
    DEVICE,
    TOKENS,
    every_version,
    make_model,
    wrap_small,
)
from lighthouse_attention.hugging_face import state


@every_version
def test_masks_of_more_than_documents_are_formed() -> None:
    """Blocks that see all of themselves, and an attention that is not causal, in a pass that plain causal is right for."""
    model = make_model("Llama")
    wrap_small(model)
    embeds, blocks = torch.zeros(1, TOKENS, 32, device=DEVICE), torch.zeros(1, TOKENS, dtype=torch.int64, device=DEVICE)
    given = dict(config=model.config, inputs_embeds=embeds, attention_mask=None, past_key_values=None)
    state.this_thread.under_way.without_mask = model.config
    try:
        assert create_causal_mask(**given) is None
        assert create_causal_mask(**given, block_sequence_ids=blocks).all()
        assert create_causal_mask(**given, or_mask_function=lambda b, h, q, k: k < 100)[0, 0, 0, 99]
    finally:
        state.this_thread.under_way.without_mask = None
