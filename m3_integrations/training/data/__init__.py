"""Training examples, their files, batches and samplers."""
