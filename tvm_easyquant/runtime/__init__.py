"""What runs compiled networks: TVM's small runtime libraries by their C interface. No TVM package."""
