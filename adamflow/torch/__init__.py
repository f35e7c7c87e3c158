"""adamflow for PyTorch's users: `KAdam` takes the place of `torch.optim.AdamW`. Needs the extra `torch`.

Importing adamflow does not import PyTorch; importing this package does.
"""

from adamflow.torch.kadam import KAdam, stage_decays, state_names

__all__ = ["KAdam", "stage_decays", "state_names"]
