"""The scales that keep each layer's output what it was."""
