"""Backbones for others: timm files, Hugging Face folders and ONNX files, one module for each."""
