"""The float network: named nodes and their meaning in numpy."""
