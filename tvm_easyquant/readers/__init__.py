"""Models as files -> `network.graph.Graph`."""
