"""The command `python -m lighthouse_attention.passkey`: hides a digit in long prompts and asks a model for it.

The test of the paper, for any causal language model of transformers: what `lighthouse passkey` does for models of bytes.
"""

import argparse
import inspect
import itertools
import json
import math
import pathlib
import random
import string
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

Encode = Callable[[str], list[int]]
"""The tokens of a text, without special ones."""

_QUESTION = "\nThe pass key is "
_DIGITS = string.digits
_SHORTEST = 64


def passkeys_found(
    model: nn.Module,
    encode: Encode,
    context: int,
    depth: float,
    trials: int = 10,
    seed: int = 0,
    begin: Sequence[int] = (),
) -> int:
    """In how many prompts, of the ten digits, the hidden one has the largest logit at the end; chance is a tenth.

    Attention is that of evaluation, which is dense.

    Args:
        model: A Hugging Face language model, on any device; its mode is left as it was.
        encode: The tokenizer, such as `lambda text: tokenizer.encode(text, add_special_tokens=False)`.
        context: Tokens of a prompt.
        depth: Where the digit is hidden, from 0, the beginning, to 1, the end.
        begin: Tokens that begin every prompt, such as that of the beginning of a text.

    Raises:
        ValueError: The context is too short, the depth is out of range, or the tokenizer does not tell the digits apart.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    device = next(model.parameters()).device
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    found = 0
    try:
        for trial in range(trials):
            ids, digits, digit = _prompt(encode, context, depth, f"{seed} {context} {depth} {trial}", begin)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False, **last).logits[0, -1]
            found += int(logits[digits].argmax()) == digit
    finally:
        for module in training:
            module.training = True
    return found


def _prompt(
    encode: Encode, context: int, depth: float, seed: str, begin: Sequence[int]
) -> tuple[list[int], list[int], int]:
    """The prompt, exactly `context` tokens; the token that each digit would be after it; and the digit."""
    if not 0 <= depth <= 1:
        raise ValueError(f"depth is {depth}; it must be from 0 to 1")
    dice = random.Random(seed)
    digit = dice.randrange(10)
    question, answers = _question(encode)
    digits = [answer[len(question)] for answer in answers]
    key = [*answers[digit], *encode(". Remember it.\n")]
    free = context - len(begin) - len(key) - len(question)
    if free < 0:
        raise ValueError(f"context is {context} tokens; it must be at least {context - free}")
    before = round(depth * free)
    filler = _filler(encode, free, dice)
    return [*begin, *filler[:before], *key, *filler[before:], *question], digits, digit


def _question(encode: Encode) -> tuple[list[int], list[list[int]]]:
    """The question, and question and answer for each digit, whose tokens first differ after the question."""
    # A tokenizer may join the blank before a digit to all of them, or, of which nothing can be asked, to some.
    joined = [encode(_QUESTION + digit) for digit in _DIGITS]
    apart = [encode(_QUESTION) + encode(digit) for digit in _DIGITS]
    for answers in (joined, apart):
        same = sum(1 for _ in itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*answers)))
        if len({tuple(answer[same : same + 1]) for answer in answers} - {()}) == len(_DIGITS):
            return answers[0][:same], answers
    raise ValueError(f"the tokenizer must tell the ten digits apart by one token; after {_QUESTION!r} it makes {apart}")


def _filler(encode: Encode, tokens: int, dice: random.Random) -> list[int]:
    """So many tokens of random words of letters and digits."""
    ids: list[int] = []
    while len(ids) < tokens:
        words = ("".join(dice.choices(string.ascii_letters + _DIGITS, k=dice.randint(1, 8))) for _ in range(256))
        ids += encode(" ".join(words) + " ")
    return ids[:tokens]


def _load(path: str, device: torch.device) -> tuple[Any, Encode, list[int]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32 if device.type == "cpu" else torch.bfloat16
    )
    empty = tokenizer("").input_ids
    begin = empty[:1] if empty[:1] == [tokenizer.bos_token_id] else []
    return model.to(device), lambda text: tokenizer(text, add_special_tokens=False).input_ids, begin


def _numbers(kind: Callable[[str], Any], least: float, most: float) -> Callable[[str], list[Any]]:
    def parse(text: str) -> list[Any]:
        try:
            values = [kind(part) for part in text.split(",")]
        except ValueError:
            values = [math.nan]
        if not all(least <= value <= most for value in values):
            raise argparse.ArgumentTypeError(f"is {text!r}; it must be numbers from {least} to {most}, as in 15,50")
        return values

    return parse


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lighthouse_attention.passkey",
        description="Hide a digit in long prompts of random words and ask a model for it.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a Hugging Face model with its tokenizer")
    add("--contexts", type=_numbers(int, 1, math.inf), metavar="N,N", help="tokens of prompts [1/8, 1/4, 1/2, all]")
    add("--depths", type=_numbers(float, 0, 100), default=[0, 15, 30, 50, 70, 85, 100], metavar="D,D")
    add("--trials", type=int, default=10, metavar="N", help="prompts of a cell [10]")
    add("--seed", type=int, default=0, metavar="N", help="of the prompts [0]")
    add("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    add("--json", type=pathlib.Path, metavar="FILE", help="also write all figures, which `lighthouse plot` draws")
    options = parser.parse_args(arguments)
    if (trials := options.trials) < 1:
        parser.error(f"--trials is {trials}; it must be 1 or more")
    try:
        model, encode, begin = _load(options.model, options.device)
    except (OSError, ValueError) as error:
        parser.error(f"MODEL is '{options.model}'; it must be a model with its tokenizer: {error}")
    longest = model.config.max_position_embeddings
    contexts = options.contexts or [max(_SHORTEST, longest // part) for part in (8, 4, 2, 1)]
    print(f"{options.model}, {trials} trials a cell, seed {options.seed}; chance is 10 %\n")
    print("context " + "".join(f"{depth:7g} %" for depth in options.depths) + "      all")
    cells = []
    for context in contexts:
        of_context = 0
        print(f"{context:<8}", end="", flush=True)
        for depth in options.depths:
            try:
                found = passkeys_found(model, encode, context, depth / 100, trials, options.seed, begin)
            except ValueError as error:
                parser.error(str(error))
            print(f"{f'{found}/{trials}':>9}", end="", flush=True)
            cells.append({"context": context, "depth": depth, "found": found})
            of_context += found
        print(f"{f'{of_context}/{trials * len(options.depths)}':>9}")
    of_all = len(cells) * trials
    share = sum(int(cell["found"]) for cell in cells) / of_all
    deviation = math.sqrt(share * (1 - share) / of_all)
    print(f"\npasskeys found: {100 * share:.1f} % +- {100 * deviation:.1f} % of {of_all}")
    if options.json is not None:
        figures = {"as_trained": False, "seed": options.seed, "trials": trials, "share": share, "cells": cells}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
