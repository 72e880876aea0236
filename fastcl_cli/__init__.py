"""fastcl: pre-train Vision Transformers with MoCo-v3, SimCLR and DINO, at less compute."""

__version__ = "0.1.0"
