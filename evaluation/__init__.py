"""From a checkpoint to a number that can be trusted: questions, predictions, scores, comparisons."""
