"""What happens beside the steps of training: one concern per file."""
