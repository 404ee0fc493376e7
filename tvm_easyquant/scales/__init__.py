"""What becomes integer, its scales, the table that keeps them, and the integers in numpy."""
