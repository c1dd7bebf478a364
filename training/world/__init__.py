"""The audio world: clips and questions made by rule, on which the demo and the studies run without a download."""
