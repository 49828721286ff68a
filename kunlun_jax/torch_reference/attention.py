"""WindowAttention: each event attends to its neighbours in the same history.

    S' = S + W_o softmax(R q_t . R k_{t-w..t+w} / sqrt(d_h)) v,   q, k, v = W Norm(S),   R = ROTE

|i - j| <= w inclusive, both directions. Source: Kunlun (R); pre-norm, which can be left out, and residual (O).
"""

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kunlun_jax.nn.rotary import RoteConfig
from kunlun_jax.torch_reference.operators import window_attention
from kunlun_jax.torch_reference.rotary import rotate, rote_angles


class WindowAttention(nn.Module):
    """Self-attention over events of width `dim` with half window `window`."""

    def __init__(self, dim: int, *, heads: int, window: int, rote: RoteConfig, norm: bool = True):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-5) if norm else nn.Identity()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.heads, self.window, self.rote = heads, window, rote

    def forward(
        self,
        events: Float[Tensor, "batch time dim"],
        age: Float[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time dim"]:
        """S'; ages in seconds."""
        q, k, v = rearrange(
            self.qkv(self.norm(events)),
            "batch time (three heads dim) -> three batch time heads dim",
            three=3,
            heads=self.heads,
        )
        angles = rote_angles(age, q.shape[-1] // 2, self.rote)
        o = window_attention(rotate(q, angles), rotate(k, angles), v, mask, window=(self.window, self.window))
        return events + self.out(rearrange(o, "batch time heads dim -> batch time (heads dim)"))
