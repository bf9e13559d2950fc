# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The demo models, small checkpoints that ship with the package, and what they were made from.

`checkpoint` is a Llama, `mixture_checkpoint` a mixture of experts of the same size, tokenizer and
tasks. `scripts/train_demo_model` makes them from text that `corpus` generates; `tasks` holds the
checkable tasks, and `evaluation` measures how often a model gets them exactly right.
"""

from importlib.resources import files
from pathlib import Path

__all__ = ["DEMO_MODELS", "demo_model_path"]

# Names that stand for a shipped checkpoint, and its folder.
DEMO_MODELS = {"demo": "checkpoint", "demo-moe": "mixture_checkpoint"}


def demo_model_path(name: str = "demo") -> Path:
    """The folder of a shipped checkpoint, in Hugging Face format. ``name``: of DEMO_MODELS.

    Raises:
        KeyError: no checkpoint of that name is shipped.
        FileNotFoundError: the installation lacks the checkpoint.
    """
    folder = Path(str(files(__name__) / DEMO_MODELS[name]))
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder} holds no model.safetensors: reinstall slipstream, or run "
            "scripts/train_demo_model to make the demo model"
        )
    return folder
