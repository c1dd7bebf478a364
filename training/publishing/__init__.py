"""Makes a run loadable for others: merges, exports or pushes it, and checks it after the push."""
