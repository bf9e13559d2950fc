# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The demo model: a small Llama checkpoint that ships with the package, and what it was made from.

`scripts/train_demo_model` makes the checkpoint from text that `corpus` generates; `tasks` holds the
checkable tasks, and `evaluation` measures how often a model gets them exactly right.
"""

from importlib.resources import files
from pathlib import Path

__all__ = ["demo_model_path"]


def demo_model_path() -> Path:
    """The folder of the shipped checkpoint, in Hugging Face format.

    Raises:
        FileNotFoundError: the installation lacks the checkpoint.
    """
    folder = Path(str(files(__name__) / "checkpoint"))
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder} holds no model.safetensors: reinstall slipstream, or run "
            "scripts/train_demo_model to make the demo model"
        )
    return folder
