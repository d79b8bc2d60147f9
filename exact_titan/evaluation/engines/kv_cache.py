"""The keys and values of one batch of sequences, in buffers with room for further tokens.

The cache of transformers copies all keys and values in every decoding step. Here a step writes its own tokens only. A
crop changes one number.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class BufferLayer(DynamicLayer):
    """Keys and values of one layer, [batch, heads, tokens, head dim] each.

    The layer keeps all tokens. A layer with sliding-window attention gets its window from the mask.
    """

    def __init__(self) -> None:
        super().__init__()
        self.length = self.reserved = 0
        self.is_initialized = True
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append tokens, and return views of all keys and values."""
        end = self.length + key_states.shape[-2]
        if self._buffers is None or end > self._buffers[0].shape[-2]:
            self._grow(key_states, value_states, max(end, self.reserved, 2 * self.length))
        assert self._buffers is not None
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : end] = new
        self.length = end
        return self._buffers[0][:, :, :end], self._buffers[1][:, :, :end]

    def get_seq_length(self, *_: Any) -> int:
        """Return the number of tokens."""
        return self.length

    def get_mask_sizes(self, query: Any) -> tuple[int, int]:
        """Return the number of keys of the next forward pass, and the index of the first key.

        Args:
            query: number of new tokens. In transformers 4 a tensor of their positions.
        """
        return self.length + (query if isinstance(query, int) else query.shape[0]), 0

    def repeated(self, batch: int) -> "BufferLayer":
        """Return a copy whose single sequence is repeated ``batch`` times."""
        copy = BufferLayer()
        if self._buffers is not None and self.length:
            copy.reserved = self.reserved
            copy.update(*(buffer[:, :, : self.length].expand(batch, -1, -1, -1) for buffer in self._buffers))
        return copy

    def _grow(self, keys: torch.Tensor, values: torch.Tensor, capacity: int) -> None:
        grown = []
        for number, new in enumerate((keys, values)):
            buffer = new.new_empty(*new.shape[:2], capacity, new.shape[-1])  # [batch, heads, tokens, head dim]
            if self._buffers is not None:
                buffer[:, :, : self.length] = self._buffers[number][:, :, : self.length]
            grown.append(buffer)
        self._buffers = (grown[0], grown[1])


class BufferCache(Cache):
    """The cache of all layers of a model."""

    def __init__(self, layers: int | list[BufferLayer]) -> None:
        self.layers: list[BufferLayer]  # type: ignore[assignment]
        super().__init__(layers=[BufferLayer() for _ in range(layers)] if isinstance(layers, int) else [*layers])

    @property
    def length(self) -> int:
        """Number of tokens of every sequence."""
        return self.layers[0].length

    def reserve(self, tokens: int) -> None:
        """Give the next larger buffers room for at least this number of tokens."""
        for layer in self.layers:
            layer.reserved = tokens

    def cut(self, length: int) -> None:
        """Forget all tokens from the index ``length`` on."""
        for layer in self.layers:
            layer.length = min(layer.length, length)

    def repeated(self, batch: int) -> "BufferCache":
        """Return a copy whose single sequence is repeated ``batch`` times."""
        return BufferCache([layer.repeated(batch) for layer in self.layers])
