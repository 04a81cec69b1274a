"""Hugging Face's Trainer: a callback that holds masks and stops by the rule, and a trainer for `incop.search`.

Needs `pip install 'incop[transformers]'`. Accelerate needs no adapter: `incop.hold` takes what `Accelerator.prepare` returns.
"""

from incop.errors import MissingExtra

try:
    import transformers.trainer_callback  # type: ignore[import-not-found,unused-ignore]  # noqa: F401  # not the Trainer: that is slow
except ImportError as error:
    raise MissingExtra("transformers", "transformers", "incop.integrations.hugging_face") from error

from incop.integrations.hugging_face.callback import InCoPCallback
from incop.integrations.hugging_face.trainer import HuggingFaceTrainer

__all__ = ["HuggingFaceTrainer", "InCoPCallback"]
