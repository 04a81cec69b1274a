"""Hugging Face's Trainer: a callback that holds masks and stops by the rule, and an adapter that a search drives.

Needs `pip install 'incop[transformers]'`. Accelerate needs no adapter: `incop.hold` takes what `Accelerator.prepare` returns.
"""

from incop.errors import MissingExtra

try:
    import transformers.trainer_callback  # type: ignore[import-not-found,unused-ignore]  # noqa: F401  # not the Trainer: that is slow
except ImportError as error:
    raise MissingExtra("transformers", "transformers", "incop.integrations.hugging_face") from error

from incop.integrations.hugging_face.adapter import HuggingFaceTrainer
from incop.integrations.hugging_face.callback import InCoPCallback

__all__ = ["HuggingFaceTrainer", "InCoPCallback"]
