"""Loading a Segment Anything network of any size from its file of weights.

A. Kirillov et al., "Segment Anything", ICCV 2023 (arXiv:2304.02643).
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_recon.errors import InputError
from lightning_recon.files import spoiled

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

_WANTED = (
    "wanted is one of SAM's own, sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth or "
    "sam_vit_h_4b8939.pth, of https://dl.fbaipublicfiles.com/segment_anything/"
)
_OTHERS = {
    "HQ-SAM's network": ("hf_token", "hf_mlp", "compress_vit_feat", "embedding_maskfeature"),
    "SAM 2's network": ("memory_attention", "memory_encoder", "image_encoder.trunk"),
    "MobileSAM's network": ("image_encoder.layers.",),
}
"""By what the names of their tensors hold: networks that are taken for SAM's."""


def load_sam(path: Path) -> "Sam":
    """Load a Segment Anything checkpoint of any size.

    Args:
        path: the file: a state dict of the architecture in the ``segment_anything`` package.

    Returns:
        The network in evaluation mode on the CPU.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a broken file fails in many ways, all of them the user's to mend
        what = spoiled(path) or f"cannot be read ({_first_line(error)}); {_WANTED}"
        raise InputError(f"{path.absolute()} {what}") from error
    if (other := _other_network(state)) is not None:
        raise InputError(f"{path.absolute()} holds {other}; {_WANTED}")
    try:
        sam = sam_for(state)
        sam.load_state_dict(state)
    except Exception as error:  # names and shapes of another network fail in many ways, too
        raise InputError(
            f"{path.absolute()} holds no Segment Anything network that is known here "
            f"({type(error).__name__}: {_first_line(error)}); {_WANTED}"
        ) from error
    sam.eval().requires_grad_(False)
    return sam


def _other_network(state: Any) -> str | None:
    """Return what a checkpoint holds in the place of a network of segment_anything, if it does."""
    if not isinstance(state, Mapping):
        return f"a {type(state).__name__}, not tensors by name"
    names = [str(name) for name in state]
    for network, parts in _OTHERS.items():
        for name in names:
            if any(part in name for part in parts):
                return f"{network} (it has {name})"
    inside = [key for key in state if isinstance(state[key], Mapping)]
    if inside and not any(isinstance(tensor, Tensor) for tensor in state.values()):
        known = filter(None, (_other_network(state[key]) for key in inside))
        return next(known, f"its tensors under the key {inside[0]}; save that part alone")
    if not any(name.startswith("image_encoder.") for name in names):
        return f"other names than SAM's, such as {names[0]}" if names else "nothing"
    return None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def sam_for(state: Mapping[str, Tensor]) -> "Sam":
    """Build the Segment Anything network that these weights fit.

    All sizes are in the shapes but one: the two-way transformer's eight heads, the same in every
    release.

    Args:
        state: state dict by parameter name.

    Returns:
        The network with fresh weights.
    """
    from segment_anything.modeling import (
        ImageEncoderViT,
        MaskDecoder,
        PromptEncoder,
        Sam,
        TwoWayTransformer,
    )

    encoder = "image_encoder."
    embed_dim, _, patch_size, _ = state[f"{encoder}patch_embed.proj.weight"].shape
    grid = state[f"{encoder}pos_embed"].shape[1]
    depth = _count(state, f"{encoder}blocks")
    rel_pos = [state[f"{encoder}blocks.{i}.attn.rel_pos_h"] for i in range(depth)]
    # A block that attends within S x S patches has 2 S - 1 relative positions.
    spans = [(len(table) + 1) // 2 for table in rel_pos]
    out_chans = len(state[f"{encoder}neck.0.weight"])
    image_size = grid * patch_size
    decoder, transformer = "mask_decoder.", "mask_decoder.transformer."
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=embed_dim // rel_pos[0].shape[1],
            mlp_ratio=len(state[f"{encoder}blocks.0.mlp.lin1.weight"]) / embed_dim,
            out_chans=out_chans,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=min(spans),
            global_attn_indexes=tuple(i for i, span in enumerate(spans) if span == grid),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=out_chans,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=len(state["prompt_encoder.mask_downscaling.3.weight"]),
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=out_chans,
            transformer=TwoWayTransformer(
                depth=_count(state, f"{transformer}layers"),
                embedding_dim=out_chans,
                num_heads=8,
                mlp_dim=len(state[f"{transformer}layers.0.mlp.lin1.weight"]),
            ),
            num_multimask_outputs=len(state[f"{decoder}mask_tokens.weight"]) - 1,
            iou_head_depth=_count(state, f"{decoder}iou_prediction_head.layers"),
            iou_head_hidden_dim=len(state[f"{decoder}iou_prediction_head.layers.0.weight"]),
        ),
    )


def _count(state: Mapping[str, Any], prefix: str) -> int:
    """Number of numbered entries below ``prefix``."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({found.group(1) for name in state if (found := pattern.match(name))})
