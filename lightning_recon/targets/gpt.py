"""A decoder in the shape of GPT-2 that classifies sequences of tokens.

Radford, Wu, Child, Luan, Amodei, Sutskever, "Language Models are Unsupervised Multitask Learners",
2019: learned positions, layer norm in front of attention and of the network behind it, one linear
layer for queries, keys and values.  No :class:`~lightning_recon.targets.Target`: it reads tokens,
not images.  Weights are random, as GPT-2 draws them; the logits are of the last token, as in DAGER.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_recon.errors import InputError
from lightning_recon.targets.base import seeded


class Block(nn.Module):
    """Attention to what came before, and two linear layers, each added to what it reads.

    Args:
        width: d.
        num_heads: of the attention; it divides the width.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.ln_1 = nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def heads(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each ... heads d/heads, of states ... d."""
        each = self.c_attn(self.ln_1(states)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = each.unbind(-3)
        return query, key, value

    def behind(self, states: Tensor, attended: Tensor) -> Tensor:
        """Return states, ... d, after what attention found, ... heads d/heads, is added."""
        states = states + self.c_proj(attended.flatten(-2))
        added: Tensor = self.mlp(self.ln_2(states))
        return states + added

    def forward(self, states: Tensor) -> Tensor:
        """Return the states of B sequences of T tokens, B T d."""
        query, key, value = (part.transpose(1, 2) for part in self.heads(states))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.behind(states, attended.transpose(1, 2))


class SmallGPT(nn.Module):
    """A decoder that gives the logits of whole sequences.

    Args:
        num_classes: length of the output.
        vocabulary: number of tokens; 50,257 are those of GPT-2's tokenizer.
        width: d; 768 in the smallest GPT-2.
        num_heads: of each attention.
        depth: blocks, at least 2; 12 in the smallest GPT-2.
        context: tokens of a sequence, at the most.
        seed: of the random weights.

    Raises:
        InputError: if a number is out of its range.
    """

    def __init__(
        self,
        num_classes: int = 2,
        vocabulary: int = 50257,
        width: int = 768,
        num_heads: int = 12,
        depth: int = 3,
        context: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if width % num_heads or depth < 2:
            raise InputError(
                "SmallGPT: the heads divide the width, and there are at least 2 blocks, not "
                f"num_heads {num_heads}, width {width}, depth {depth}"
            )
        with seeded(seed):
            self.wte = nn.Embedding(vocabulary, width)
            self.wpe = nn.Embedding(context, width)
            self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
            self.ln_f = nn.LayerNorm(width)
            self.classifier = nn.Linear(width, num_classes, bias=False)
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits, B num_classes, of B sequences of T tokens, int64."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        states = self.wte(tokens) + self.wpe(places)
        for block in self.blocks:
            states = block(states)
        logits: Tensor = self.classifier(self.ln_f(states)[:, -1])
        return logits
