"""The multiplies of each family of instruction sets."""
