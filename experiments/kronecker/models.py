"""The autoencoder and the character-level transformer."""

import itertools

import torch
from torch import Tensor, nn

WIDTHS = (784, 256, 64, 16)


def autoencoder() -> nn.Module:
    """Build the fully connected autoencoder, tanh between its maps, with Glorot's weights.

    Returns:
        The network, from pixels ``(n, 784)`` to logits ``(n, 784)``.
    """
    sizes = [*WIDTHS, *WIDTHS[-2::-1]]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class _Block(nn.Module):
    """Causal self-attention and a perceptron, each on a normalised input and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        rows = self.query_key_value(self.before_attention(x))
        query, key, value = rows.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, length, width))
        added: Tensor = x + self.mlp(self.before_mlp(x))
        return added


class CharacterTransformer(nn.Module):
    """A causal transformer on characters."""

    def __init__(self, characters: int, context: int, width: int, depth: int, heads: int) -> None:
        """Build it.

        Args:
            characters: Size of the alphabet.
            context: Characters that it sees.
            width: Size of a character's representation.
            depth: Number of blocks.
            heads: Heads of each attention.
        """
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        self.places = nn.Embedding(context, width)
        nn.init.normal_(self.characters.weight, std=0.1)
        nn.init.normal_(self.places.weight, std=0.1)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters)

    def forward(self, text: Tensor) -> Tensor:
        """Compute the logits of the next characters.

        Args:
            text: Characters ``(n, length)`` as ``int64``.

        Returns:
            Logits ``(n, length, characters)``.
        """
        places = self.places(torch.arange(text.shape[1], device=text.device))
        logits: Tensor = self.head(self.norm(self.blocks(self.characters(text) + places)))
        return logits
