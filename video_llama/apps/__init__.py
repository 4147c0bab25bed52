"""What people start: the terminal, the page, evaluation, estimates, checks, conversion."""
