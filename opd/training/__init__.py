"""Training: the loop that turns grades into updates, and what examines a run before it starts."""
