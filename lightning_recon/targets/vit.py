"""A small vision transformer whose first attention block reads the embedding as it is."""

import torch
from torch import Tensor, nn

from lightning_recon.errors import InputError
from lightning_recon.targets.base import Target, load_weights, seeded


class SelfAttention(nn.Module):
    """Multi-head self-attention with linear layers ``query``, ``key``, ``value`` and ``output``.

    Vaswani et al., "Attention is All You Need", NeurIPS 2017, section 3.2.

    Args:
        width: of the tokens.
        num_heads: a divisor of ``width``.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what the tokens, B N D, take from each other, B N D."""
        query, key, value = (
            layer(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        # written out: the fused kernels cannot be differentiated twice
        scores = query @ key.mT / query.shape[-1] ** 0.5
        mixed = scores.softmax(-1) @ value
        result: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    """A block of a vision transformer: attention, then a two-layer perceptron.

    Args:
        width: of the tokens.
        num_heads: of the attention.
        is_plain: whether the attention reads the tokens without layer norm and hands them on
            without a shortcut.
    """

    def __init__(self, width: int, num_heads: int, is_plain: bool) -> None:
        super().__init__()
        self.is_plain = is_plain
        self.norm = nn.Identity() if is_plain else nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return B N D tokens for B N D tokens."""
        mixed: Tensor = self.attention(self.norm(tokens))
        tokens = mixed if self.is_plain else tokens + mixed
        result: Tensor = tokens + self.perceptron(tokens)
        return result


class TinyViT(Target):
    """A vision transformer with a learnable position embedding, of the form that APRIL reads.

    Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, small.  As in the closed form
    of Lu et al. (APRIL, CVPR 2022), the sum of patch and position embedding goes into the queries,
    keys and values of the first block, and nowhere else: no layer norm before it, no shortcut
    around it.  There is no class token: the head reads the mean token.  Random positions are those
    of ``nn.Embedding``, N(0, 1): with the usual .02 an untrained attention makes all tokens alike.

    Args:
        num_classes: length of the output.
        image_size: height and width of the images.
        patch_size: height and width of a patch, a divisor of ``image_size``.
        width: of the tokens.
        depth: number of blocks.
        num_heads: of every attention.
        is_plain: whether the first block's attention has neither layer norm nor shortcut, so that
            the closed form can read it; false: that of a usual vision transformer.
        in_channels: channels of the images.
        weights: a file with the tensors, or null for random weights drawn from ``seed``.
        seed: of the random weights.

    Raises:
        InputError: if sizes do not divide each other.
    """

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int = 32,
        patch_size: int = 4,
        width: int = 96,
        depth: int = 2,
        num_heads: int = 4,
        is_plain: bool = True,
        in_channels: int = 3,
        weights: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes)
        if image_size % patch_size or width % num_heads or depth < 1:
            raise InputError(
                "TinyViT: patch_size must divide image_size, num_heads width, and depth be at "
                f"least 1, not {patch_size}, {image_size}, {num_heads}, {width} and {depth}"
            )
        self.is_plain = is_plain
        with seeded(seed):
            self.patch_embedding = nn.Conv2d(in_channels, width, patch_size, patch_size)
            num_patches = (image_size // patch_size) ** 2
            self.position_embedding = nn.Parameter(torch.randn(num_patches, width))
            self.blocks = nn.Sequential(
                *(Block(width, num_heads, is_plain and place == 0) for place in range(depth))
            )
            self.norm = nn.LayerNorm(width)
            self.classifier = nn.Linear(width, num_classes)
        load_weights(self, weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of B C H W images in [0, 1]."""
        patches = self.patch_embedding(images).flatten(2).mT
        tokens = self.blocks(patches + self.position_embedding)
        logits: Tensor = self.classifier(self.norm(tokens).mean(1))
        return logits
