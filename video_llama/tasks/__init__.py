"""What one step of training or evaluation is."""
