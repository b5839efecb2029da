"""What the engine and the kernels run on; nothing here knows a loss."""
