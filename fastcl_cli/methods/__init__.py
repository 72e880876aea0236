"""The self-supervised methods: each a loss that reads like its paper above a thin module."""
