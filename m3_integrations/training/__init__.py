"""Moving the model: what it learns from, the losses, and the loop."""
