"""The adapter of live PyTorch models: read their batch norms, observe them, and write them."""

from homeostat.models.torch.adapter import TorchModel
from homeostat.models.torch.files import load_weights

__all__ = ["TorchModel", "load_weights"]
