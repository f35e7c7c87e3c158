"""Watch a PyTorch training run cross its edge of stability: a character transformer with AdamW.

Plain PyTorch: warm-up, cosine decay and gradient clipping on minibatches. The lines with `monitor` and `plotting`
are all that is added. In the picture, `monitor_torch.png`: the loss; ηs beside its edge (2 − ηλ)(1 + γ)/(1 − γ), with
the cheap measures, which need no eigenvalue; and the largest entry of the update beside its bound.

The text is short and the batches are large, so that little noise remains: with batches of 64 from a long text ηs
comes to 0.35 to 0.7 of the edge. The run needs the extra `torch`, and a minute:

    python examples/monitor_torch.py
"""

import math

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from adamflow import plotting
from adamflow.problems.text import read_text
from adamflow.torch import Monitor

STEPS, WARM_UP, HORIZON, PEAK, CLIP_NORM = 240, 40, 400, 5e-2, 1.0
CONTEXT, WIDTH, HEADS, BATCH = 16, 32, 2, 256

torch.manual_seed(0)
text = read_text()[:1_500]
alphabet = sorted(set(text))
characters = torch.tensor([alphabet.index(character) for character in text])


class Transformer(nn.Module):
    """One block: attention and a perceptron, each behind a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(alphabet), WIDTH)
        self.position = nn.Parameter(0.1 * torch.randn(CONTEXT, WIDTH))
        self.first_norm = nn.LayerNorm(WIDTH)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.attention_out = nn.Linear(WIDTH, WIDTH)
        self.second_norm = nn.LayerNorm(WIDTH)
        self.perceptron = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, len(alphabet))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.position
        parts = self.query_key_value(self.first_norm(x)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).flatten(-2))
        return self.head(x + self.perceptron(self.second_norm(x)))


def draw_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Random pieces of the text, and the same one character further."""
    starts = torch.randint(len(characters) - CONTEXT - 1, (BATCH,))
    pieces = torch.stack([characters[start : start + CONTEXT + 1] for start in starts])
    return pieces[:, :-1], pieces[:, 1:]


def loss_of(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The mean cross entropy of the next character."""
    tokens, targets = batch
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def schedule(step: int) -> float:
    """Warm-up, then a cosine that ends at 0 at the horizon."""
    return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / HORIZON))


model = Transformer()
optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.99), weight_decay=0.1)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
watched_batch = draw_batch()


def watched_loss() -> torch.Tensor:
    """The loss on one batch that stays the same, with attention that has a second derivative."""
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        return loss_of(watched_batch)


monitor = Monitor(model, optimizer, watched_loss, every=10, clip_norm=CLIP_NORM)
losses = []
for step in range(STEPS):
    optimizer.zero_grad()
    loss = loss_of(draw_batch())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
    optimizer.step()
    scheduler.step()
    losses.append(loss.item())
    if monitor():
        report = monitor.reports[-1]
        print(f"step {step + 1:4}: loss {losses[-1]:.3f}, ηs {report.scaled_sharpness:8.3f} of {report.edge:.2f}")

print(f"\n{max(monitor.reports, key=lambda report: report.ratio)}")
data = monitor.to_xarray()

figure = plotting.training_run(data)
figure.axes[0].plot(range(1, STEPS + 1), losses, linewidth=0.8, zorder=0, label="minibatches")
figure.axes[0].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
figure.savefig("monitor_torch.png", dpi=120)

print("\nWhat part of s the cheap measures see: least, median and most of all looks")
for name in ("gradient_preconditioned_curvature", "update_preconditioned_curvature", "critical_sharpness"):
    least, median, most = (data[name] / data["preconditioned_sharpness"]).quantile([0, 0.5, 1]).values
    print(f"  {name:34} {least:7.3f} {median:7.3f} {most:7.3f}")

if not (data["update_max"] <= data["update_bound"]).all():
    raise RuntimeError("an entry of the update exceeds its bound")
if not (data["ratio"] > 1).any():
    raise RuntimeError(f"the run did not cross its edge: the largest ratio is {float(data['ratio'].max()):.3g}")
