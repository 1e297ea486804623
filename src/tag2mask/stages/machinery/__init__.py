"""What several stages are made of: the plan of batches, the work on them, what is stored, fits, and what changed."""
