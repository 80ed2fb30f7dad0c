"""Prompt tokens of Gemma 3 270M, trained on prose: what `speculate:drafter=ppd,prompts=FILE` guesses with.

python -m examples.prompt_tokens              trains them again, a quarter of an hour on two cores

The file is small and beside this one.  The text begins behind what the long prompts of `examples.prompts` are made of.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from examples.prompts import untouched
from examples.real_data import prose
from examples.real_models import gemma3_270m

FILE = Path(__file__).with_name("gemma3_270m_prompts.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(prog="examples.prompt_tokens", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=FILE, help="the file to write")
    parser.add_argument("--steps", type=int, default=120, help="steps of training")
    options = parser.parse_args()

    import torch

    from tersor.cli.output import progress_bar
    from tersor.ir.capture import capture
    from tersor.text import opening
    from tersor.train_prompts import train_prompts

    model, tokenizer = gemma3_270m()
    ids = torch.randint(5, 1000, (1, 24))
    program = capture(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    with progress_bar() as report:
        text = untouched(tokenizer, prose())
        trained = train_prompts(
            program, text, steps=options.steps, progress=report, opening=opening(tokenizer)
        )
    trained.save(options.out)
    print(f"before: {trained.before}\nafter:  {trained.after}\nWrote {options.out}")


if __name__ == "__main__":
    main()
