"""The compressed forward against plain timm, in float64."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F

from fastcl_cli.compression.patches import pi_resize, reduction_matrix
from fastcl_cli.compression.tokens import draw_kept_tokens
from fastcl_cli.model.paths import draw_paths
from fastcl_cli.model.position import learned_embedding, sincos_embedding
from fastcl_cli.model.vit import Encoder

MODELS = {
    "class token": ("vit_tiny_patch16_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"patch_size": 16}),
    "mean pooling": ("vit_small_patch16_36x1_224", {"global_pool": "avg", "class_token": False}),
}


def encoder(kind: str = "class token", position: str = "learned", image: int = 96) -> Encoder:
    name, options = MODELS[kind]
    torch.manual_seed(0)
    vit = timm.create_model(
        name, num_classes=0, img_size=image, embed_dim=48, depth=2, num_heads=3, **options
    ).double()
    with torch.no_grad():
        for parameter in vit.parameters():  # timm starts biases and tokens at zero: too easy
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return Encoder(vit.eval(), position)  # type: ignore[arg-type]


def images(n: int, side: int) -> torch.Tensor:
    return torch.randn(
        n, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(7)
    )


@pytest.mark.parametrize("kind", MODELS)
def test_all_tokens_give_timm_own_features(kind: str) -> None:
    network, view = encoder(kind), images(3, 96)
    timm_features = network.vit.forward_head(network.vit.forward_features(view), pre_logits=True)
    assert (network(view) - timm_features).abs().max() <= 1e-12
    everything = torch.arange(36).expand(3, -1)
    assert (network(view, everything) - timm_features).abs().max() <= 1e-12


def test_attention_on_a_cpu_is_fused_in_float32_and_products_in_bf16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Either way it is the same function, to the 8 bits of bf16."""
    exact = encoder()
    features = exact(images(3, 96))
    network, view = Encoder(exact.vit.float(), "learned"), images(3, 96).float()
    fused = F.scaled_dot_product_attention
    calls: list[torch.dtype] = []

    def counted(query: torch.Tensor, *others: torch.Tensor, **options: object) -> torch.Tensor:
        calls.append(query.dtype)
        return fused(query, *others, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    for precision, expected, tolerance in (
        (torch.bfloat16, [], 0.02),
        (torch.float32, [torch.float32] * 2, 1e-5),
    ):
        calls.clear()
        with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
            found = network(view).double()
        assert calls == expected
        assert (found - features).norm() <= tolerance * features.norm()


@pytest.mark.parametrize("position", ["learned", "sincos"])
def test_larger_patches_equal_a_model_with_the_resized_kernel(position: str) -> None:
    """A timm forward whose kernel is PI-resized and whose embeddings are of the small grid."""
    network, view = encoder(position=position), images(2, 96)
    reduction = reduction_matrix(96, 32, 16)
    assert reduction is not None
    vit = network.vit
    x = F.conv2d(view, pi_resize(vit.patch_embed.proj.weight, 32), vit.patch_embed.proj.bias, 32)
    x = x.flatten(2).transpose(1, 2)
    if position == "learned":
        table = vit.pos_embed[:, 1:].transpose(1, 2).reshape(1, 48, 6, 6)
        table = F.interpolate(table, (3, 3), mode="bicubic", antialias=True)
        embedding = torch.cat([vit.pos_embed[:, :1], table.flatten(2).transpose(1, 2)], dim=1)
    else:
        embedding = torch.cat([vit.pos_embed[:, :1], sincos_embedding(3, 6, 48)[None]], dim=1)
    x = torch.cat([vit.cls_token.expand(2, -1, -1), x], dim=1) + embedding
    expected = vit.forward_head(vit.norm(vit.blocks(x)), pre_logits=True)
    assert (network(reduction @ view @ reduction.T) - expected).abs().max() <= 1e-10


def test_dropped_patches_get_no_gradient_and_kept_ones_do() -> None:
    network, view = encoder(), images(2, 96).requires_grad_()
    kept = draw_kept_tokens(2, 36, 10, torch.Generator().manual_seed(0))
    network(view, kept).sum().backward()
    assert view.grad is not None
    per_patch = view.grad.reshape(2, 3, 6, 16, 6, 16).abs().amax(dim=(1, 3, 5)).reshape(2, 36)
    touched = torch.zeros(2, 36, dtype=torch.bool).scatter_(1, kept, True)
    assert (per_patch[~touched] == 0).all()
    assert (per_patch[touched] > 0).all()


def test_dropping_equals_a_sequence_without_those_tokens() -> None:
    network, view = encoder("registers"), images(2, 96)
    kept = draw_kept_tokens(2, 36, 12, torch.Generator().manual_seed(1))
    vit = network.vit
    x = vit._pos_embed(vit.patch_embed(view))
    prefix = vit.num_prefix_tokens
    rows = torch.stack([x[i, [*range(prefix), *(prefix + kept[i]).tolist()]] for i in range(2)])
    expected = vit.norm(vit.blocks(vit.norm_pre(rows)))
    output = network.tokens(view, kept)
    assert output.shape == (2, prefix + 12, 48)
    assert (output - expected).abs().max() <= 1e-12


def test_state_dict_has_timm_names() -> None:
    network = encoder()
    plain = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=96, embed_dim=48, depth=2, num_heads=3
    )
    assert network.vit.state_dict().keys() == plain.state_dict().keys()


def test_sincos_code_at_the_base_grid_is_mocos() -> None:
    """sin and cos of i·w in the first half (rows), of j·w in the second, w_k = 10000^(-k/(D/4))."""
    code = sincos_embedding(14, 14, 64).reshape(14, 14, 64)
    for i, j, k in [(0, 0, 0), (3, 11, 5), (13, 2, 15)]:
        w = 10000 ** (-k / 16)
        expected = torch.tensor([i * w, j * w], dtype=torch.float64)
        assert torch.allclose(code[i, j, [k, 32 + k]], expected.sin(), atol=1e-12)
        assert torch.allclose(code[i, j, [16 + k, 48 + k]], expected.cos(), atol=1e-12)


def test_sincos_code_of_a_larger_patch_stands_at_its_centre() -> None:
    """A 32-pixel token covers base tokens 0 and 1: its centre is at 0.5, the next one's at 2.5."""
    code = sincos_embedding(7, 14, 64).reshape(7, 7, 64)
    assert torch.allclose(code[0, 1, 0], torch.tensor(0.5, dtype=torch.float64).sin())
    assert torch.allclose(code[0, 1, 32], torch.tensor(2.5, dtype=torch.float64).sin())


def test_gradients_reach_the_base_parameters_through_resampling() -> None:
    network = encoder()
    network(images(2, 48)).square().sum().backward()
    assert network.vit.pos_embed.grad.abs().max() > 0
    assert network.vit.patch_embed.proj.weight.grad.abs().max() > 0


def test_fixed_embeddings_take_no_gradient() -> None:
    network = encoder(position="sincos")
    network(images(1, 96)).sum().backward()
    assert network.vit.pos_embed.grad is None
    assert (network.vit.pos_embed[0, 0] == 0).all()


def test_path_factors_scale_residual_branches() -> None:
    """A factor of 0 skips a branch, any other multiplies it: y = x + f_a·attn, y + f_m·mlp."""
    network, view = encoder(), images(2, 96)
    paths = torch.tensor([[[0.0, 1.0], [2.0, 0.0]], [[1.5, 0.5], [0.0, 0.0]]]).double()
    vit = network.vit
    x = vit._pos_embed(vit.patch_embed(view))
    for block, (attn, mlp) in zip(vit.blocks, paths, strict=True):
        x = x + attn.reshape(2, 1, 1) * block.attn(block.norm1(x))
        x = x + mlp.reshape(2, 1, 1) * block.mlp(block.norm2(x))
    expected = vit.forward_head(vit.norm(x), pre_logits=True)
    assert (network(view, None, paths) - expected).abs().max() <= 1e-12
    assert not torch.equal(network(view), expected), "factors do not outlive the call"


def test_path_draws_have_the_linear_rate_and_mean_one() -> None:
    paths = draw_paths(20_000, 5, 0.4, torch.Generator().manual_seed(0))
    rates = (paths == 0).double().mean(dim=(1, 2))
    assert torch.allclose(rates, torch.linspace(0, 0.4, 5).double(), atol=0.01)
    assert torch.allclose(paths.double().mean(dim=(1, 2)), torch.ones(5).double(), atol=0.02)


@pytest.mark.parametrize(("grid", "base"), [(7, 14), (8, 14), (6, 14), (3, 4), (20, 14)])
def test_learned_embeddings_are_resampled_like_timm(grid: int, base: int) -> None:
    parameter = torch.randn(1, 1 + base**2, 24, generator=torch.Generator().manual_seed(0))
    expected = timm.layers.resample_abs_pos_embed(parameter, [grid, grid], [base, base])
    assert (learned_embedding(parameter, grid, base, 1) - expected).abs().max() <= 1e-5
