"""Reading: from a file or a folder of any known form to batches of a training step, and back to shards."""
