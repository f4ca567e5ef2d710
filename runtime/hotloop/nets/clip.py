"""The encoders of CLIP (Radford et al. 2021): token ids -> hidden states, pixels -> an embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..weights import keys
from .base import Net

__all__ = ["CLIPText", "CLIPVision"]


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": _quick_gelu, "gelu": F.gelu}


class _Attention(nn.Module):
    def __init__(self, width: int, *, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        # [B, T, C] -> [B, H, T, D]
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int, *, activation: str) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[activation]
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class _Layer(nn.Module):
    def __init__(self, width: int, hidden: int, *, heads: int, activation: str, eps: float, causal: bool) -> None:
        super().__init__()
        self.self_attn = _Attention(width, heads=heads, causal=causal)
        self.layer_norm1 = nn.LayerNorm(width, eps)
        self.mlp = _MLP(width, hidden, activation=activation)
        self.layer_norm2 = nn.LayerNorm(width, eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Embeddings(nn.Module):
    def __init__(self, vocabulary: int, tokens: int, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(tokens, width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class _Encoder(nn.Module):
    """The stack of layers; `default`: hidden size, inner size, layers, heads of a config that leaves them out."""

    def __init__(self, config: Mapping[str, Any], default: tuple[int, int, int, int], *, causal: bool) -> None:
        super().__init__()
        width, hidden, layers, heads = default
        self.layers = nn.ModuleList(
            _Layer(
                config.get("hidden_size", width), config.get("intermediate_size", hidden),
                heads=config.get("num_attention_heads", heads), activation=config.get("hidden_act", "quick_gelu"),
                eps=config.get("layer_norm_eps", 1e-5), causal=causal,
            )
            for _ in range(config.get("num_hidden_layers", layers))
        )  # fmt: skip


class CLIPText(Net):
    """CLIP's text transformer of any size; keys as in transformers' CLIPTextModel."""

    class_name = "CLIPTextModel"
    stem = "model"
    prefix = keys.TEXT_PREFIX
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {"hidden_act": tuple(_ACTIVATIONS)}

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.width = width = config.get("hidden_size", 512)
        self.vocabulary = config.get("vocab_size", 49408)
        self.tokens = config.get("max_position_embeddings", 77)
        self.embeddings = _Embeddings(self.vocabulary, self.tokens, width)
        self.encoder = _Encoder(config, (512, 2048, 12, 8), causal=True)
        self.final_layer_norm = nn.LayerNorm(width, config.get("layer_norm_eps", 1e-5))

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids [B, T] -> the last and the last but one hidden states [B, T, C], both through the final norm."""
        x = penultimate = self.embeddings(input_ids)
        for layer in self.encoder.layers:
            penultimate, x = x, layer(x)
        return self.final_layer_norm(x), self.final_layer_norm(penultimate)

    @classmethod
    def table(cls, names: Iterable[str]) -> dict[str, keys.From]:
        return keys.clip(names)

    def identity(self) -> dict[str, Any]:
        """transformers 5 reads `dtype`, older ones `torch_dtype`. Stock loaders without a wish of their own must raise
        half-precision files to float32, as they do for the other networks, or the pipeline would mix the two.
        """
        return {
            "architectures": [self.class_name], "model_type": "clip_text_model",
            "dtype": "float32", "torch_dtype": "float32",
        }  # fmt: skip


class _Patches(nn.Module):
    """The picture cut into patches, behind one learned token that stands for the whole."""

    def __init__(self, channels: int, width: int, *, patch: int, side: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(channels, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((side // patch) ** 2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [B, patches, C]
        whole = self.class_embedding.expand(patches.shape[0], 1, -1)
        return torch.cat([whole, patches], dim=1) + self.position_embedding.weight


class _Vision(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, eps = config.get("hidden_size", 768), config.get("layer_norm_eps", 1e-5)
        self.embeddings = _Patches(
            config.get("num_channels", 3), width, patch=config.get("patch_size", 32), side=config.get("image_size", 224)
        )
        self.pre_layrnorm = nn.LayerNorm(width, eps)  # the checkpoints' own spelling
        self.encoder = _Encoder(config, (768, 3072, 12, 12), causal=False)
        self.post_layernorm = nn.LayerNorm(width, eps)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.pre_layrnorm(self.embeddings(pixels))
        for layer in self.encoder.layers:
            x = layer(x)
        return self.post_layernorm(x[:, 0])


class CLIPVision(Net):
    """CLIP's vision transformer with its projection; keys as in transformers' CLIPVisionModelWithProjection."""

    class_name = "CLIPVisionModelWithProjection"
    stem = "model"
    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {"hidden_act": tuple(_ACTIVATIONS)}

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.side = config.get("image_size", 224)
        self.embedding = config.get("projection_dim", 512)
        self.vision_model = _Vision(config)
        self.visual_projection = nn.Linear(config.get("hidden_size", 768), self.embedding, bias=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels [B, 3, side, side] -> the picture's embedding [B, embedding]."""
        return self.visual_projection(self.vision_model(pixel_values))

    @classmethod
    def table(cls, names: Iterable[str]) -> dict[str, keys.From]:
        return keys.clip_vision(names)

    def identity(self) -> dict[str, Any]:
        """As the text encoder's."""
        return {
            "architectures": [self.class_name], "model_type": "clip_vision_model",
            "dtype": "float32", "torch_dtype": "float32",
        }  # fmt: skip
