"""Lightning: a callback that ends a fit by the rule, and a trainer that lets `incop.search` drive a LightningModule.

Needs the extra `lightning`; the older package `pytorch_lightning` will do too.
"""

from incop.integrations.lightning.callback import LightningCallback as InCoPCallback
from incop.integrations.lightning.trainer import LightningTrainer

__all__ = ["InCoPCallback", "LightningTrainer"]
