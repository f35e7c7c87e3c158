"""adamflow for PyTorch's users. Needs the extra `torch`.

- `KAdam` takes the place of `torch.optim.AdamW`.
- `Monitor` says where a training loop stands; `from_torch` reads an optimizer's state for it.
- `loss` is a PyTorch model as a loss for runs, flows and the analysis.

Importing adamflow does not import PyTorch; importing this package does.
"""

from adamflow.torch.kadam import KAdam, stage_decays, state_names
from adamflow.torch.model_loss import TorchLoss, loss
from adamflow.torch.monitor import Monitor
from adamflow.torch.torch_state import TorchReading, from_torch

__all__ = ["KAdam", "Monitor", "TorchLoss", "TorchReading", "from_torch", "loss", "stage_decays", "state_names"]
