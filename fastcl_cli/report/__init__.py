"""Reading runs from their folders, while they go on or afterwards, and the page made of them."""
