"""The network of the study."""

from torch import Tensor, nn

from jitconv import nn as layers


class SimpleConvNet(nn.Module):
    """conv2d(1→20, 5×5) → max_pool2d(2) → flatten → linear(2880→500) → relu → linear(500→10), for 28×28 images.

    Takes x: (N, 1, 28, 28) to logits: (N, 10); the softmax belongs to the loss, or to `predict`.
    `variant` computes every layer (None: the best one for the input's device); ValueError for an unknown one.
    """

    def __init__(self, variant: str | None = None) -> None:
        super().__init__()
        self.conv = layers.Conv2d(1, 20, 5, variant=variant)
        self.pool = layers.MaxPool2d(2, variant=variant)
        self.flatten = layers.Flatten(variant=variant)
        self.fc1 = layers.Linear(20 * 12 * 12, 500, variant=variant)
        self.relu = layers.ReLU(variant=variant)
        self.fc2 = layers.Linear(500, 10, variant=variant)
        self.softmax = layers.Softmax(dim=1, variant=variant)

    def forward(self, x: Tensor) -> Tensor:
        images = self.pool(self.conv(x))
        hidden = self.relu(self.fc1(self.flatten(images)))
        return self.fc2(hidden)

    def predict(self, x: Tensor) -> Tensor:
        """Return the probability of each digit, (N, 10), for images x: (N, 1, 28, 28)."""
        return self.softmax(self(x))
