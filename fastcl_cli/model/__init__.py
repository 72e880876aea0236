"""The networks: a compressed forward around timm's ViT, the heads, the momentum copy."""
