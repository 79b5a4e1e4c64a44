"""Lighthouse Attention in decoders of Hugging Face transformers.

The rooms, from below: `unsupported` refuses what the method does not cover; `documents` finds those that are packed into
rows; `sharing` is for sequences that processes share; `state` is what a wrapped model keeps; `decoder` finds the layers to
wrap; `scores` takes the scores of models with QK-norm; `interface` is what transformers calls; `wrap` puts it into a model;
`stages` trains in stages; `module` is all of it as a module around a model.
"""

_OLDEST = (5, 17)


def _check_transformers() -> None:
    needed = ".".join(map(str, _OLDEST))
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError(
            f"this part of lighthouse_attention needs transformers {needed} or later: pip install 'transformers>={needed}' "
            "accelerate"
        ) from None
    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < _OLDEST:
        raise ImportError(
            f"lighthouse_attention needs transformers {needed} or later, and transformers here is "
            f"{transformers.__version__}: pip install --upgrade transformers"
        )


_check_transformers()
